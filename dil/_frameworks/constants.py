"""Results that no derivative passes through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dil._base.arrays import full
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Backend


@dataclass(frozen=True)
class ZeroRule:
    """The rule of a function whose derivative is zero."""

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> list[Array | None]:
        """Return None for every argument: the zero cotangent."""
        return [None for _ in wrt]

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return zeros."""
        return tuple(full(x, 0.0) for x in y)


def as_constant(backend: Backend, fn: Callable[..., Arrays], *arrays: Array, rule: ZeroRule | None = None) -> Arrays:
    """Return fn of the arrays as a constant. fn gets plain arrays, whatever transforms and hooks are active.

    `rule` is a ZeroRule, which may know how to do many calls of fn at once.
    """
    values = backend.implicit(fn, ZeroRule() if rule is None else rule)(*(backend.constant(x) for x in arrays))
    return tuple(backend.constant(x) for x in values)
