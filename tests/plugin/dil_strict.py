"""A backend as a third party would ship it: array_api_strict, which refuses whatever the standard does not promise."""

from __future__ import annotations

from dataclasses import replace

import array_api_strict as xp
import numpy as np

from dil._base.errors import BackendError
from dil._frameworks.dense import Crossover
from dil._frameworks.loops import EAGER
from dil._frameworks.protocol import BackendInfo
from dil._frameworks.reports import eager_reports
from dil_backends._tape import is_box
from dil_backends._taped import assert_constant, children, constant, dense_solves, implicit, value_type, vjp
from dil_backends.numpy import guard, linear_solve, quiet

__all__ = ["assert_constant", "children", "constant", "guard", "implicit", "linear_solve", "vjp"]

NATIVE = "array_api_strict"

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
    return np.from_dlpack(constant(x), copy=True)


def asarray(x, *, dtype=None, device=None):
    if device is not None and str(device) not in ("cpu", "CPU_DEVICE", "array_api_strict.Device('CPU_DEVICE')"):
        message = f"array_api_strict has no device {device!r}"
        raise BackendError(message)
    return xp.asarray(np.asarray(x), dtype=dtype)


def info():
    return BackendInfo(NATIVE, xp.__version__, ("CPU_DEVICE",), None)


loops = replace(EAGER, while_loop=quiet(EAGER.while_loop), run_if=quiet(EAGER.run_if))
dense = dense_solves(np.linalg.LinAlgError, Crossover(symmetric=8, general=32, trial=1 / 8))
reports = eager_reports(to_numpy)
