"""A backend as a third party would ship it: array_api_strict, which refuses whatever the standard does not promise."""

from __future__ import annotations

import array_api_strict as xp
import numpy as np

from dil._base.errors import BackendError
from dil_backends._tape import is_box
from dil_backends._taped import (
    assert_constant,
    children,
    constant,
    implicit,
    map_rows,
    number,
    observing,
    on_host,
    scan,
    shield,
    value_type,
    vjp,
)
from dil_backends.numpy import cholesky_solve, linear_solve, lu_solve, run_if, while_loop

__all__ = [
    "assert_constant",
    "children",
    "cholesky_solve",
    "constant",
    "implicit",
    "linear_solve",
    "lu_solve",
    "map_rows",
    "number",
    "observing",
    "on_host",
    "run_if",
    "scan",
    "shield",
    "vjp",
    "while_loop",
]

NATIVE = "array_api_strict"
DENSE = 8
DENSE_GENERAL = 32
TRIAL = 1 / 8


OPERATORS = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "lt", "le", "gt", "ge", "eq", "ne"]


def _defer(operator):
    """Let an array's operator defer to a box: the library raises where Python's data model asks for NotImplemented."""

    def method(self, other):
        return NotImplemented if is_box(other) else operator(self, other)

    return method


Array = type(xp.zeros(1))
for _name in OPERATORS:
    setattr(Array, f"__{_name}__", _defer(getattr(Array, f"__{_name}__")))


def owns(x, /):
    return issubclass(value_type(x), Array)


def tell(listener, status, value):
    listener(to_numpy(status))
    return value


def observe(listener, *arrays):
    listener(*(to_numpy(x) for x in arrays))


def to_numpy(x, /):
    return np.from_dlpack(constant(x), copy=True)


def namespace():
    return xp


def devices():
    return ["CPU_DEVICE"]


def asarray(x, *, dtype=None, device=None):
    if device is not None and str(device) not in ("cpu", "CPU_DEVICE", "array_api_strict.Device('CPU_DEVICE')"):
        message = f"array_api_strict has no device {device!r}"
        raise BackendError(message)
    return xp.asarray(np.asarray(x), dtype=dtype)


def unusable():
    return None
