"""The solution of no linear systems: an empty array whose derivatives are zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dil._base.arrays import full
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Vectorise


@dataclass(frozen=True)
class NoSystems:
    """The rule of x = A^-1 b for no systems. `mapped` says whether b has the axis along which there are none."""

    mapped: bool

    def solution(self, b: Array, *arrays: Array) -> Arrays:
        """Return x, which is like b."""
        return (full(b, 0.0, shape=tuple(b.shape) if self.mapped else (0, *b.shape)),)

    def batched(
        self, axes: Sequence[bool], size: int, vectorise: Vectorise
    ) -> tuple[Callable[..., Arrays], NoSystems] | None:
        """Return the solve and the rule for one more axis of b, or None."""
        return (self.solution, self) if axes[0] and self.mapped else None

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Sequence[Array | None]:
        """Return zero cotangents."""
        return [None for _ in wrt]

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return zero tangents."""
        return (full(y[0], 0.0),)
