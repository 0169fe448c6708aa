"""CuPy: arrays on NVIDIA or AMD devices, differentiated by the tape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy
import cupyx
import numpy as np

from dil._base.errors import BackendError
from dil._base.typing import Array
from dil_backends._taped import (
    assert_constant,
    by_cholesky,
    by_lu,
    children,
    constant,
    implicit,
    linear_solve,
    map_rows,
    number,
    observing,
    on_host,
    run_if,
    scan,
    shield,
    solve_each,
    value_type,
    vjp,
    while_loop,
)

__all__ = [
    "assert_constant",
    "children",
    "constant",
    "implicit",
    "linear_solve",
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

NATIVE = "cupy"
DENSE = 32
DENSE_GENERAL = 128
TRIAL = 1 / 8


def owns(x: object, /) -> bool:
    """Whether x is a CuPy array, or a box around one."""
    return issubclass(value_type(x), cupy.ndarray)


def cholesky_solve(A: Array, b: Array, /) -> Array:
    """Solve by Cholesky; CuPy looks at the outcome only where it is asked to raise."""
    with cupyx.errstate(linalg="raise"):
        return solve_each(by_cholesky, np.linalg.LinAlgError, A, b)


def lu_solve(A: Array, b: Array, /) -> Array:
    """Solve by LU."""
    with cupyx.errstate(linalg="raise"):
        return solve_each(by_lu, np.linalg.LinAlgError, A, b)


def tell(listener: Callable[[Any], None], status: Array, value: Array) -> Array:
    """Call the listener now."""
    listener(to_numpy(status))
    return value


def observe(listener: Callable[..., None], *arrays: Array) -> None:
    """Call the listener now."""
    listener(*(to_numpy(x) for x in arrays))


def to_numpy(x: Array, /) -> Any:
    """Copy an array to the host."""
    return cupy.asnumpy(constant(x))


def namespace() -> Any:
    """Return CuPy as an array API namespace."""
    import array_api_compat.cupy as xp

    return xp


def devices() -> list[str]:
    """Name the devices, as CUDA numbers them."""
    return [f"cuda:{i}" for i in range(cupy.cuda.runtime.getDeviceCount())]


def asarray(x: object, *, dtype: Any = None, device: Any = None) -> Any:
    """Make an array on a device: a number, "cuda:1" or a `cupy.cuda.Device`."""
    if isinstance(device, str):
        if device not in devices():
            message = f"CuPy has no device {device!r}; expected one of {', '.join(devices())}"
            raise BackendError(message)
        device = int(device.partition(":")[2])
    with cupy.cuda.Device(device):
        return cupy.asarray(x, dtype=dtype)


def unusable() -> str | None:
    """CuPy imports without a device, and computes with one only."""
    if cupy.is_available():
        return None
    return "CuPy finds no GPU; the NumPy backend runs the same code on the CPU"
