"""A matrix that the user gives, on the host, for a linear solver that factorises it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dil._base.typing import Arrays


class Kept:
    """A matrix on the host, and what a solver has made of it."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix
        """A SciPy sparse array in columns, or a NumPy array; (n, n) in float64."""
        self.factors: dict[float, Any] = {}
        """The factors for each number that was added to the diagonal."""
        self.of_equation: Kept | None = None
        """I - J, if J is that of a step."""


@dataclass(frozen=True)
class GivenMatrix:
    """The matrix J + shift I, or its transpose, as a function of arrays that a host call reads."""

    at: Callable[..., Kept]
    """`at(*arrays)` returns J at NumPy arrays. At the arrays of the last call, it returns the same object."""
    arrays: Arrays
    transposed: bool = False
    shift: float = 0.0

    @property
    def T(self) -> GivenMatrix:
        """The transpose."""
        return replace(self, transposed=not self.transposed)

    def shifted(self, shift: float) -> GivenMatrix:
        """Return the matrix with a number added to its diagonal."""
        return replace(self, shift=self.shift + shift)
