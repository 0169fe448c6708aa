"""What a layer asks of a linear solver."""

from __future__ import annotations

from typing import Protocol

from dil._solution import Solution
from dil._typing import Array, Loop, Matvec


class LinearSolver(Protocol):
    """Any callable that solves A x = b for each problem of a batch, with products A p alone."""

    def __call__(self, matvec: Matvec, b: Array, /, *, loop: Loop) -> Solution:
        """Return a `dil.Solution` whose value is x; b and x: (*batch, n), status: batch.

        The loop is given, so that the numerics run under a compiler as they do in Python.
        """
        ...
