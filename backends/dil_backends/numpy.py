"""NumPy as a backend: arrays on the CPU, differentiated by the tape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dil._base.errors import BackendError
from dil._base.typing import Array
from dil._frameworks.loops import EAGER
from dil._frameworks.protocol import BackendInfo, LinearSystem
from dil._frameworks.reports import eager_reports
from dil_backends._taped import assert_constant, children, constant, dense_solves, implicit, value_type, vjp
from dil_backends._taped import linear_solve as _linear_solve

__all__ = ["assert_constant", "children", "constant", "implicit", "vjp"]

NATIVE = "numpy"
PLAIN = (np.ndarray, np.generic)


def owns(x: object, /) -> bool:
    """Whether x is a NumPy array or scalar, or a box around one."""
    return issubclass(value_type(x), PLAIN)


def quiet(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return fn without NumPy's warnings: what is not finite ends in a status, so they would say it twice."""
    # no decorator of NumPy's: a warning of dil points to the first frame that is not dil's own
    return partial(_quiet, fn)


def _quiet(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with np.errstate(all="ignore"):
        return fn(*args, **kwargs)


def linear_solve(system: LinearSystem, b: Array, /) -> Array:
    """Solve a linear system; differentiable where the tape is recording."""
    return _quiet(_linear_solve, system, b)  # type: ignore[no-any-return]


def guard(fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
    """Return fn, without NumPy's warnings if it is to be exact."""
    return quiet(fn) if exact else fn


def asarray(x: object, *, dtype: Any = None, device: Any = None) -> Any:
    """Make an array."""
    if device not in (None, "cpu"):
        message = f"NumPy has no device {device!r}; its arrays are on 'cpu', CuPy's, torch's and JAX's elsewhere"
        raise BackendError(message)
    return np.asarray(x, dtype=dtype)


def to_numpy(x: Array, /) -> Any:
    """Return the array behind x."""
    return np.asarray(constant(x))


def info() -> BackendInfo:
    """Describe NumPy: it is always usable, and has one device."""
    return BackendInfo(NATIVE, np.__version__, ("cpu",), None)


def _number(x: Any) -> Any:
    return x.item() if isinstance(x, PLAIN) and x.ndim == 0 else x


loops = replace(
    EAGER,
    while_loop=quiet(EAGER.while_loop),
    run_if=quiet(EAGER.run_if),
    number=_number,
    steps_per_read=lambda x: 1,
)
dense = dense_solves(np.linalg.LinAlgError)
reports = eager_reports(to_numpy)
