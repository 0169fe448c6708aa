"""Dense linear solves of a framework, and what they cost beside the steps of iterative solvers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.quasi_newton import TriangularSolve
from dil._base.typing import Array


class Host(NamedTuple):
    """A framework whose operations on few numbers cost less."""

    backend: Any
    """Its `Backend`."""
    give: Callable[[Array], Array]
    """Return an array as one of this framework. They may share memory."""
    take: Callable[[Array], Array]
    """Return an array of this framework as it was."""
    run: Callable[..., Any]
    """`run(fn, *args)`: return fn(*args) without warnings of the framework."""


def no_host(*arrays: Array) -> None:
    """Return None: the arrays stay where they are."""


@dataclass(frozen=True)
class Crossover:
    """The sizes above which an iterative solver is faster than a dense solve, if products are cheap.

    Measured by benchmarks/linear.py.
    """

    symmetric: int
    """Largest number of unknowns for which a dense solve is faster, if the matrix is symmetric positive definite."""
    general: int
    """The same number for other matrices, whose iterative solvers cost more per step."""


@dataclass(frozen=True)
class Overheads:
    """What solves cost besides their work on numbers, in nanoseconds.

    They are estimates, not measurements. Only their ratios matter. They are chosen so that with cheap products a dense
    solve comes first up to about the sizes of `Crossover`, which benchmarks/linear.py measured.
    """

    symmetric_step: float
    """One step of CG."""
    general_step: float
    """One step of BiCGSTAB."""
    dense: float
    """One dense solve, its rows apart."""
    row: float
    """One row of a dense matrix."""
    read_by_row: float
    """One number of the arrays that a product reads, for each row. Rows that run at once read it together."""
    alone: float = math.inf
    """Rows of a batch whose products make and read more numbers run one by one: a map may copy its matrices."""


@dataclass(frozen=True)
class Dense:
    """The dense solves of a framework, for matrices (*batch, n, n) and right-hand sides (*batch, n, k)."""

    cholesky_solve: Callable[[Array, Array], Array]
    """`cholesky_solve(A, b)`: solve symmetric systems A x = b. x is NaN where A is not positive definite."""
    lu_solve: Callable[[Array, Array], Array]
    """`lu_solve(A, b)`: solve systems A x = b. x is not finite where A is singular."""
    triangular_solve: TriangularSolve
    """`triangular_solve(T, b, upper=)`: solve systems whose T is triangular, with no zero on its diagonal."""
    crossover: Crossover
    overheads: Overheads
    host: Callable[..., Host | None] = no_host
    """`host(*arrays)`: return where a few numbers are solved for faster, or None if they cannot go there."""
