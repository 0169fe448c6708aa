"""What the tape gives to a backend of eager arrays without a derivative of their own: all but the arrays themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from dil._base.arrays import array_namespace
from dil._base.errors import CapturedError
from dil._base.typing import Array, Arrays
from dil._frameworks.differentiable_solve import differentiable_solve
from dil._frameworks.loops import python_loop as while_loop
from dil._frameworks.loops import python_run_if as run_if
from dil._frameworks.loops import python_scan as scan
from dil._frameworks.protocol import Backend, LinearSystem
from dil_backends._tape import constant, implicit, is_box, value_type, vjp

__all__ = [
    "assert_constant",
    "by_cholesky",
    "by_lu",
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
    "solve_each",
    "value_type",
    "vjp",
    "while_loop",
]


def children(x: object, /) -> None:
    """Arrays of this kind come without pytrees of their own."""


def linear_solve(system: LinearSystem, b: Array, /) -> Array:
    """Solve a linear system; differentiable where the tape is recording."""
    if not any(is_box(x) for x in (b, *system.params)):
        return system.solve(system.A, b, *system.constants)
    return differentiable_solve(cast(Backend, sys.modules[__name__]), system, b)


def map_rows(fn: Callable[[Array], Array], rows: Array, /) -> Array:
    """Apply fn to one row after the other."""
    xp = array_namespace(rows)
    return xp.stack([fn(rows[i, ...]) for i in range(rows.shape[0])])  # type: ignore[no-any-return]


def solve_each(solve: Callable[[Array, Array], Array], failure: type[Exception], A: Array, b: Array) -> Array:
    """Solve a stack of systems; NaN for those where the library raises its exception."""
    try:
        return solve(A, b)
    except failure:
        xp = array_namespace(b)
        if A.ndim == 2:
            return xp.full_like(b, xp.nan)  # type: ignore[no-any-return]
        each = [solve_each(solve, failure, A[i, ...], b[i, ...]) for i in range(A.shape[0])]
        return xp.stack(each)  # type: ignore[no-any-return]


def by_cholesky(A: Array, b: Array) -> Array:
    """Solve systems that Cholesky finds positive definite, in terms of the standard, which has no triangular solve."""
    xp = array_namespace(A)
    xp.linalg.cholesky(A)  # raises; one LU of A is cheaper than one of each triangle
    return xp.linalg.solve(A, b)  # type: ignore[no-any-return]


def by_lu(A: Array, b: Array) -> Array:
    """Solve systems in terms of the standard."""
    return array_namespace(A).linalg.solve(A, b)  # type: ignore[no-any-return]


def assert_constant(x: Array, message: str, /) -> None:
    """Raise if the tape is recording x."""
    if is_box(x):
        raise CapturedError(message)


def observing() -> AbstractContextManager[None]:
    """Return a context that does nothing: what is eager observes at once."""
    return nullcontext()


def shield(fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
    """Return fn: nothing looks on, and nothing casts."""
    return fn


def number(x: Array, /) -> Any:
    """Return x: a scalar stays on its device."""
    return x


def on_host(fn: Callable[..., Arrays], like: Arrays, *arrays: Array) -> Arrays:
    """Call fn now, with plain arrays."""
    return fn(*(constant(x) for x in arrays))
