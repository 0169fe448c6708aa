"""Values with the derivative of other ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Backend


def with_derivative_of(backend: Backend, values: Arrays, images: Arrays) -> Arrays:
    """Return the values, with the derivatives of the images, which are the same numbers computed again.

    A compiler leaves out the images of a program that is not differentiated.
    """
    count = len(values)
    held = tuple(backend.constant(x) for x in values)
    return backend.implicit(lambda *every: every[:count], ReplacedRule(count))(*held, *images)


@dataclass(frozen=True)
class ReplacedRule:
    """The derivative of the second half of the arguments."""

    count: int

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> list[Array | None]:
        """Return the cotangents of the images."""
        return [cotangents[i - self.count] if i >= self.count else None for i in wrt]

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return the tangents of the images."""
        pairs = zip(tangents[self.count :], y, strict=True)
        return tuple(0.0 * x if t is None else t for t, x in pairs)
