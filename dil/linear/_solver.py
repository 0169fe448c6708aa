"""What a layer asks of a linear solver."""

from __future__ import annotations

from typing import Protocol

from dil._base.operator import Operator
from dil._base.solution import Solution
from dil._base.typing import Array, Loop


class LinearSolver(Protocol):
    """Any callable that solves A x = b for each problem of a batch, with products alone."""

    def __call__(self, A: Operator, b: Array, /, *, loop: Loop) -> Solution:
        """Return a `dil.Solution` whose value is x; b and x: (*batch, n), status: batch.

        `A(p)` is a product with the matrix and `A.T(p)` one with its transpose. The loop is given, so that the numerics
        run under a compiler as they do in Python.
        """
        ...
