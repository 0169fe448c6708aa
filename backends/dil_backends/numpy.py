"""NumPy: arrays on the CPU, differentiated by the tape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dil._base.errors import BackendError
from dil._base.typing import Array
from dil._frameworks.loops import python_loop, python_run_if
from dil._frameworks.protocol import LinearSystem
from dil_backends._taped import (
    assert_constant,
    by_cholesky,
    by_lu,
    children,
    constant,
    implicit,
    map_rows,
    observing,
    on_host,
    scan,
    solve_each,
    value_type,
    vjp,
)
from dil_backends._taped import linear_solve as _linear_solve

__all__ = [
    "assert_constant",
    "children",
    "constant",
    "implicit",
    "linear_solve",
    "map_rows",
    "observing",
    "on_host",
    "scan",
    "shield",
    "vjp",
]

NATIVE = "numpy"
DENSE = 32
DENSE_GENERAL = 128
TRIAL = 1 / 8
PLAIN = (np.ndarray, np.generic)


def owns(x: object, /) -> bool:
    """Whether x is a NumPy array or scalar, or a box around one."""
    return issubclass(value_type(x), PLAIN)


def while_loop(cond: Callable[[Any], Array], body: Callable[[Any], Any], state: Any, /) -> Any:
    """Run the loop in Python; what is not finite ends in a status, so NumPy's warnings would say it twice."""
    with np.errstate(all="ignore"):
        return python_loop(cond, body, state)


def run_if(condition: Array, fn: Callable[[Any], Any], state: Any, /) -> Any:
    """Run fn in Python; what is not finite ends in a status, as in a loop."""
    with np.errstate(all="ignore"):
        return python_run_if(condition, fn, state)


def linear_solve(system: LinearSystem, b: Array, /) -> Array:
    """Solve a linear system; what is not finite ends in a status, as in a loop."""
    with np.errstate(all="ignore"):
        return _linear_solve(system, b)


def cholesky_solve(A: Array, b: Array, /) -> Array:
    """Solve by Cholesky."""
    return solve_each(by_cholesky, np.linalg.LinAlgError, A, b)


def lu_solve(A: Array, b: Array, /) -> Array:
    """Solve by LU."""
    return solve_each(by_lu, np.linalg.LinAlgError, A, b)


def shield(fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
    """Return fn, without NumPy's warnings if it is to be exact: what is not finite ends in a status, as in a loop."""
    return partial(_quiet, fn) if exact else fn


def _quiet(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # no decorator of NumPy's: a warning of dil's points to the first frame that is not dil's own
    with np.errstate(all="ignore"):
        return fn(*args, **kwargs)


def tell(listener: Callable[[Any], None], status: Array, value: Array) -> Array:
    """Call the listener now."""
    listener(to_numpy(status))
    return value


def observe(listener: Callable[..., None], *arrays: Array) -> None:
    """Call the listener now."""
    listener(*(to_numpy(x) for x in arrays))


def number(x: Array, /) -> Any:
    """Return a 0-D array as a number of Python."""
    return x.item() if isinstance(x, PLAIN) and x.ndim == 0 else x


def to_numpy(x: Array, /) -> Any:
    """Return the array behind x."""
    return np.asarray(constant(x))


def namespace() -> Any:
    """Return NumPy as an array API namespace."""
    import array_api_compat.numpy as xp

    return xp


def devices() -> list[str]:
    """NumPy knows one device."""
    return ["cpu"]


def asarray(x: object, *, dtype: Any = None, device: Any = None) -> Any:
    """Make an array."""
    if device not in (None, "cpu"):
        message = f"NumPy has no device {device!r}; its arrays are on 'cpu', CuPy's, torch's and JAX's elsewhere"
        raise BackendError(message)
    return np.asarray(x, dtype=dtype)


def unusable() -> str | None:
    """NumPy is always usable."""
    return None
