"""Some problems of a batch, taken out of its arrays and put back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dil._base.arrays import array_namespace, size
from dil._base.quasi_newton import Pairs
from dil._base.typing import Array

NO_PART = (RuntimeError, ValueError, TypeError, LookupError, AssertionError)
"""What a function raises that needs the batch as it is: its code, or an array that it captures, names the size."""


@dataclass(frozen=True)
class Rows:
    """Some problems of a batch. Arrays whose shape begins with that of the batch count as having a part for each."""

    batch: tuple[int, ...]
    chosen: Array
    """Whether a problem is one of them, (size of the batch,)."""
    numbers: Array
    """Their numbers in the batch, (k,)."""

    @property
    def count(self) -> int:
        """The number of problems, k."""
        return self.numbers.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the batch of these problems alone, (k, 1, ..., 1)."""
        return (self.count, *(1,) * (len(self.batch) - 1))

    def take(self, x: Any) -> Any:
        """Return the parts of these problems, of shape (k, 1, ..., 1) in the place of that of the batch."""
        if not self._has_parts(x):
            return x
        xp, rest = array_namespace(x), tuple(x.shape[len(self.batch) :])
        some = xp.take(xp.reshape(x, (size(self.batch), *rest)), self.numbers, axis=0)
        return xp.reshape(some, (*self.shape, *rest))

    def put(self, old: Any, new: Any) -> Any:
        """Return an array of the batch with the parts of these problems replaced; `new` if it is no such array."""
        if not self._has_parts(old):
            return new
        xp, rest = array_namespace(old), tuple(old.shape[len(self.batch) :])
        spread = xp.take(xp.reshape(new, (self.count, *rest)), self._places, axis=0)
        return xp.where(xp.reshape(self.chosen, (*self.batch, *(1 for _ in rest))), xp.reshape(spread, old.shape), old)

    @cached_property
    def _places(self) -> Array:
        """The place of each problem of the batch among the chosen ones; that of another problem is any."""
        xp = array_namespace(self.chosen)
        place = xp.cumulative_sum(xp.astype(self.chosen, self.numbers.dtype)) - 1
        return xp.where(place < 0, 0, place)  # type: ignore[no-any-return]

    def _has_parts(self, x: Any) -> bool:
        return tuple(getattr(x, "shape", ())[: len(self.batch)]) == self.batch


def entrywise(fn: Callable[..., Any], batch_ndim: int, state: Any, *others: Any) -> Any:
    """Return the state of fn(array, ...) of each array of a state and of others with the same structure.

    In the pairs of a quasi-Newton method, (m, *batch, n), the axis of the pairs comes after the batch for fn.
    """
    if isinstance(state, Pairs):
        parts = [[array_namespace(x).moveaxis(x, 0, batch_ndim) for x in pairs] for pairs in (state, *others)]
        found = (fn(*entries) for entries in zip(*parts, strict=True))
        return Pairs(*(array_namespace(x).moveaxis(x, batch_ndim, 0) for x in found))
    if isinstance(state, tuple):
        kind = type(state)
        entries = [entrywise(fn, batch_ndim, *entry) for entry in zip(state, *others, strict=True)]
        return kind(*entries) if hasattr(kind, "_fields") else kind(entries)
    return fn(state, *others)
