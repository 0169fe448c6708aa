"""Backend functions that NumPy and CuPy share. They differentiate with the tape and solve dense systems."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from dil._base.arrays import array_namespace, factor_dtype, size
from dil._base.errors import CapturedError
from dil._base.typing import Array, Tree
from dil._frameworks.dense import Crossover, Dense, Overheads
from dil._frameworks.differentiable_solve import differentiable_solve
from dil._frameworks.fixed import called as once
from dil._frameworks.fixed import with_variables_of_now as fixed
from dil._frameworks.lifted import Lifted
from dil._frameworks.protocol import Autodiff, LinearSystem
from dil._frameworks.registry import leaves_of
from dil_backends._tape import captured_boxes, constant, exchanging, implicit, is_box, value_type, vjp

__all__ = [
    "CROSSOVER",
    "OVERHEADS",
    "adopt",
    "assert_constant",
    "children",
    "compiler",
    "constant",
    "dense_solves",
    "fixed",
    "guard",
    "implicit",
    "lifted",
    "linear_solve",
    "once",
    "value_type",
    "vjp",
]

CROSSOVER = Crossover(symmetric=32, general=128)
OVERHEADS = Overheads(symmetric_step=5e4, general_step=1.6e5, dense=2e5, row=4e4, read_by_row=1 / 2)


def adopt(x: object, /, dtype: object = None) -> Any:
    """Return x: NumPy and CuPy mix their arrays with no others, and a layer not with other dtypes."""
    return x


def children(x: object, /) -> None:
    """Return None: NumPy and CuPy have no pytrees of their own."""


def linear_solve(system: LinearSystem, b: Array, /) -> Array:
    """Solve a linear system. The solution is differentiable if the tape is recording."""
    if not any(is_box(x) for x in (b, *system.params)):
        return system.solve(system.A, b, *system.constants)
    return differentiable_solve(cast(Autodiff, sys.modules[__name__]), system, b)


def assert_constant(x: Array, message: str, /) -> None:
    """Raise if the tape is recording x."""
    if is_box(x):
        raise CapturedError(message)


def lifted(fn: Callable[..., Tree], /, *args: Tree) -> Lifted:
    """Return fn as a function of the arrays with a derivative that its value depends on, beside its arguments."""
    fn = fixed(fn)
    captured = captured_boxes(lambda: leaves_of(fn(*args))[0])

    def call(arrays: Sequence[Any], *args: Tree) -> Tree:
        with exchanging(dict(zip(captured, arrays, strict=True))):
            return fn(*args)

    return Lifted(call, tuple(captured.values()))


def compiler() -> None:
    """Return None: operations run at once."""


def guard(fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
    """Return fn unchanged: no guard is needed."""
    return fn


def dense_solves(failure: type[Exception], crossover: Crossover = CROSSOVER) -> Dense:
    """Return the dense solves of the array API. `failure` is the exception that the library raises if a solve fails."""
    cholesky_solve = partial(_solve_each, _by_cholesky, failure)
    lu_solve = partial(_solve_each, _by_lu, failure)
    return Dense(cholesky_solve, lu_solve, lambda T, b, /, *, upper: lu_solve(T, b), crossover, OVERHEADS)


def _solve_each(solve: Callable[[Array, Array], Array], failure: type[Exception], A: Array, b: Array) -> Array:
    """Solve a stack of systems. A system for which the library raises `failure` gets NaN."""
    xp = array_namespace(b)
    try:
        dtype = factor_dtype(b)  # libraries factor no 16 bits
        x = solve(xp.astype(A, dtype, copy=False), xp.astype(b, dtype, copy=False))
        return xp.astype(x, b.dtype, copy=False)  # type: ignore[no-any-return]
    except failure:
        if size(A.shape[:-2]) == 1:
            return xp.full_like(b, xp.nan)  # type: ignore[no-any-return]
        each = [_solve_each(solve, failure, A[i, ...], b[i, ...]) for i in range(A.shape[0])]
        return xp.stack(each)  # type: ignore[no-any-return]


def _by_cholesky(A: Array, b: Array) -> Array:
    """Check with Cholesky, then solve by LU, because the standard has no triangular solve."""
    xp = array_namespace(A)
    # raises if A is not positive definite; one LU of A is cheaper than one LU of each triangular factor
    xp.linalg.cholesky(A)
    return xp.linalg.solve(A, b)  # type: ignore[no-any-return]


def _by_lu(A: Array, b: Array) -> Array:
    return array_namespace(A).linalg.solve(A, b)  # type: ignore[no-any-return]
