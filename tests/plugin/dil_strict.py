"""A backend as a third party would ship it: array_api_strict, which refuses whatever the standard does not promise."""

from __future__ import annotations

from dataclasses import replace

import array_api_strict as xp
import numpy as np

from dil._base.errors import BackendError
from dil._frameworks.complex_parts import STANDARD as complex_parts
from dil._frameworks.dense import Crossover
from dil._frameworks.loops import EAGER
from dil._frameworks.protocol import BackendInfo
from dil._frameworks.reports import eager_reports
from dil_backends._tape import is_box, user_namespace
from dil_backends._taped import (
    adopt,
    assert_constant,
    children,
    compiler,
    constant,
    dense_solves,
    fixed,
    implicit,
    lifted,
    once,
    value_type,
    vjp,
)
from dil_backends.numpy import guard, linear_solve, quiet

__all__ = [
    "adopt",
    "assert_constant",
    "children",
    "compiler",
    "complex_parts",
    "constant",
    "fixed",
    "guard",
    "implicit",
    "lifted",
    "linear_solve",
    "once",
    "vjp",
]

NATIVE = "array_api_strict"
FLOAT_CUTS = False
DEVICES = {name: xp.Device(name) for name in ("CPU_DEVICE", "device1", "device2")}
"""All but the first stand for GPUs: NumPy cannot convert their arrays, and arrays of two devices cannot be combined."""
CPU = DEVICES["CPU_DEVICE"]

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


def to_numpy(x, /):
    return np.from_dlpack(constant(x).to_device(CPU), copy=True)


def asarray(x, *, dtype=None, device=None):
    if device is None or isinstance(device, type(CPU)):
        place = device
    elif str(device) in DEVICES:
        place = DEVICES[str(device)]
    else:
        message = f"array_api_strict has no device {device!r}; expected one of {', '.join(DEVICES)}"
        raise BackendError(message)
    return xp.asarray(np.asarray(x), dtype=dtype, device=place)


def namespace():
    return user_namespace(xp)


def info():
    return BackendInfo(NATIVE, xp.__version__, tuple(DEVICES), None)


def _steps_per_read(x, /):
    """Return 1 on the CPU; another device stands for a GPU."""
    return 1 if x.device == CPU else EAGER.steps_per_read(x)


loops = replace(EAGER, while_loop=quiet(EAGER.while_loop), run_if=quiet(EAGER.run_if), steps_per_read=_steps_per_read)
dense = dense_solves(np.linalg.LinAlgError, Crossover(symmetric=8, general=32))
reports = eager_reports(to_numpy)
