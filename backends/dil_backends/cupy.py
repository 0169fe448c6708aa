"""The CuPy backend: arrays on NVIDIA or AMD devices, differentiated by the tape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import array_api_compat.cupy
import cupy
import cupyx
import numpy as np

from dil._base.errors import BackendError
from dil._base.typing import Array, Namespace
from dil._frameworks.complex_parts import STANDARD as complex_parts
from dil._frameworks.loops import EAGER, write_rows_at_once
from dil._frameworks.protocol import BackendInfo
from dil._frameworks.reports import eager_reports
from dil_backends._tape import user_namespace
from dil_backends._taped import (
    adopt,
    assert_constant,
    children,
    compiler,
    constant,
    dense_solves,
    fixed,
    guard,
    implicit,
    lifted,
    linear_solve,
    once,
    value_type,
    vjp,
)

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
    "loops",
    "once",
    "vjp",
]

NATIVE = "cupy"
FLOAT_CUTS = False


def owns(x: object, /) -> bool:
    """Whether x is a CuPy array, or a box around one."""
    return issubclass(value_type(x), cupy.ndarray)


def asarray(x: object, *, dtype: Any = None, device: Any = None) -> Any:
    """Make an array on a device, which is a number, a name like "cuda:1" or a `cupy.cuda.Device`."""
    if isinstance(device, str):
        known = _devices()
        if device not in known:
            message = f"CuPy has no device {device!r}; expected one of {', '.join(known)}"
            raise BackendError(message)
        device = int(device.partition(":")[2])
    with cupy.cuda.Device(device):
        return cupy.asarray(x, dtype=dtype)


def to_numpy(x: Array, /) -> Any:
    """Copy an array to the host."""
    return cupy.asnumpy(constant(x))


def namespace() -> Namespace:
    """Return the array API namespace. Its functions take arrays that are being differentiated."""
    return user_namespace(array_api_compat.cupy)


def info() -> BackendInfo:
    """Describe CuPy. It can be imported without a device, but it cannot compute without one."""
    if cupy.is_available():
        return BackendInfo(NATIVE, cupy.__version__, tuple(_devices()), None)
    reason = "CuPy finds no GPU; the NumPy backend runs the same code on the CPU"
    return BackendInfo(NATIVE, cupy.__version__, (), reason)


def _devices() -> list[str]:
    """Return the names of the devices, numbered as by CUDA."""
    return [f"cuda:{i}" for i in range(cupy.cuda.runtime.getDeviceCount())]


def _raising(solve: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Return a dense solve that raises if it fails. By default CuPy does not check the outcome."""

    def solve_or_raise(A: Array, b: Array) -> Array:
        with cupyx.errstate(linalg="raise"):
            return solve(A, b)

    return solve_or_raise


_solves = dense_solves(np.linalg.LinAlgError)
loops = replace(EAGER, set_rows=write_rows_at_once)
dense = replace(_solves, cholesky_solve=_raising(_solves.cholesky_solve), lu_solve=_raising(_solves.lu_solve))
reports = eager_reports(to_numpy)
