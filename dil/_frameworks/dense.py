"""Dense linear solves of a framework, and the sizes up to which they are faster than an iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dil._base.typing import Array


@dataclass(frozen=True)
class Crossover:
    """The sizes at which an iteration becomes faster than a dense solve. Measured by benchmarks/linear.py."""

    symmetric: int
    """For symmetric positive definite matrices: the largest number of unknowns at which the dense solve is faster."""
    general: int
    """The same for matrices that are not symmetric or not definite, where a step of an iteration costs more."""
    trial: float
    """Steps that CG gets for each unknown; a system that is slower than that is faster to solve densely."""


@dataclass(frozen=True)
class Dense:
    """The dense solves of a framework; matrices (*batch, n, n), right-hand sides (*batch, n, k)."""

    cholesky_solve: Callable[[Array, Array], Array]
    """`cholesky_solve(A, b)`: solve symmetric systems A x = b; NaN where A is not positive definite."""
    lu_solve: Callable[[Array, Array], Array]
    """`lu_solve(A, b)`: solve systems A x = b; not finite where A is singular."""
    crossover: Crossover
