"""The protocol of a linear solver."""

from __future__ import annotations

from typing import Protocol

from dil._base.errors import ShapeError
from dil._base.operator import Operator
from dil._base.solution import Solution
from dil._base.typing import Array, Loop


class LinearSolver(Protocol):
    """A callable that solves A x = b for each problem of a batch, by products with A alone.

    Examples
    --------
    >>> import numpy as np, dil
    >>> def diagonal_solver(A, b, /, *, loop):
    ...     return dil.Solution(b / A(np.ones_like(b)))
    >>> A = dil.linear.Operator(lambda p: 2.0 * p, symmetric=True)
    >>> diagonal_solver(A, np.asarray([2.0, 4.0]), loop=None).value
    array([1., 2.])
    """

    def __call__(self, A: Operator, b: Array, /, *, loop: Loop) -> Solution:
        """Return a `dil.Solution` whose value is x; b and x: (*batch, n), status: batch.

        `A(p)` returns A p, and `A.T(p)` returns A^T p. The solver iterates by `loop`, so that the same code runs in
        Python and under a compiler.
        """
        ...


def check_solution(solution: object, b: Array) -> None:
    """Refuse an invalid answer of a linear solver before it turns into a gradient or a step.

    Raises
    ------
    ShapeError
        If it is no `Solution`, or its value has another shape than b.
    """
    if not isinstance(solution, Solution):
        message = f"the linear solver returned {type(solution).__name__}; expected a dil.Solution whose value is like b"
        raise ShapeError(message)
    found = tuple(getattr(solution.value, "shape", (None,)))
    if found != tuple(b.shape):
        message = f"the linear solver returned a value of shape {found}; expected shape {tuple(b.shape)}, like b"
        raise ShapeError(message)
