"""The NumPy backend: arrays on the CPU, differentiated by the tape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dil._base.arrays import array_namespace
from dil._base.errors import BackendError
from dil._base.typing import Array, Namespace
from dil._frameworks.complex_parts import STANDARD as complex_parts
from dil._frameworks.loops import EAGER, write_rows_at_once
from dil._frameworks.protocol import BackendInfo, LinearSystem
from dil._frameworks.reports import eager_reports
from dil_backends._tape import as_one_box, user_namespace
from dil_backends._taped import (
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
from dil_backends._taped import linear_solve as _linear_solve

__all__ = [
    "assert_constant",
    "children",
    "compiler",
    "complex_parts",
    "constant",
    "fixed",
    "implicit",
    "lifted",
    "once",
    "vjp",
]

NATIVE = "numpy"
FLOAT_CUTS = False
PLAIN = (np.ndarray, np.generic)


def owns(x: object, /) -> bool:
    """Whether x is a NumPy array or scalar, or a box around one."""
    return issubclass(value_type(x), PLAIN)


def adopt(x: object, /, dtype: object = None) -> Any:
    """Return x. An object array of arrays that are being differentiated, as np.array makes it, becomes one array."""
    return as_one_box(x)


def quiet(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return fn with NumPy's warnings off. A value that is not finite already gives a status."""
    # not np.errstate as a decorator: warnings of dil point to the first frame outside dil, which would be NumPy's
    return partial(quietly, fn)


def quietly(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return fn(*args, **kwargs), with NumPy's warnings off."""
    with np.errstate(all="ignore"):
        return fn(*args, **kwargs)


def linear_solve(system: LinearSystem, b: Array, /) -> Array:
    """Solve a linear system. The solution is differentiable if the tape is recording."""
    return quietly(_linear_solve, system, b)  # type: ignore[no-any-return]


def guard(fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
    """Return fn. With `exact`, NumPy's warnings are off inside it."""
    return quiet(fn) if exact else fn


def asarray(x: object, *, dtype: Any = None, device: Any = None) -> Any:
    """Make an array."""
    if device not in (None, "cpu"):
        message = f"NumPy has no device {device!r}; its arrays are on 'cpu', CuPy's, torch's and JAX's elsewhere"
        raise BackendError(message)
    return adopt(np.asarray(x, dtype=dtype))


def to_numpy(x: Array, /) -> Any:
    """Return x as a NumPy array, without its boxes."""
    return np.asarray(constant(x))


def namespace() -> Namespace:
    """Return the array API namespace. Its functions take arrays that are being differentiated."""
    return user_namespace(array_namespace(np.zeros(())))


def info() -> BackendInfo:
    """Describe NumPy. It is always usable, and its only device is the CPU."""
    return BackendInfo(NATIVE, np.__version__, ("cpu",), None)


def _number(x: Any) -> Any:
    return x.item() if isinstance(x, PLAIN) and x.ndim == 0 else x


def _numbers(x: Any) -> Any:
    return x.tolist() if isinstance(x, PLAIN) else x


loops = replace(
    EAGER,
    while_loop=quiet(EAGER.while_loop),
    run_if=quiet(EAGER.run_if),
    set_rows=write_rows_at_once,
    number=_number,
    numbers=_numbers,
    steps_per_read=lambda x: 1,
)
dense = dense_solves(np.linalg.LinAlgError)
reports = eager_reports(to_numpy)
