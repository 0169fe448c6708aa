"""What `Recycle` did with the problems of a batch."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, full
from dil._base.status import Status
from dil._base.typing import Array
from dil._frameworks.registry import owner
from dil.linear._choice_in_words import ATTEMPT_FIELDS, FIELDS, MOST_ATTEMPTS, Tried, sentence


class RecycledChoice(NamedTuple):
    """What `Recycle` did, as `Solution.extra["choice"]`; `str` says it in a sentence."""

    unknowns: int
    memory: Array
    """The `Tried` of the solve with the memory, shape (); `Tried.NONE` without one."""
    helped: Array
    """Whether it solved the problem: batch."""
    steps: Array
    """Its steps: batch."""
    auto: Array
    """The numbers of the choice of `Auto`, (*batch, fields), int32; zero where it was not called."""

    @staticmethod
    def empty(b: Array) -> RecycledChoice:
        """Return the choice before anything is solved, for right-hand sides like b, (*batch, n)."""
        xp, batch = array_namespace(b), tuple(b.shape[:-1])
        zero, row = (full(b, 0, shape=shape, dtype=xp.int32) for shape in (batch, (*batch, FIELDS)))
        none = full(b, int(Tried.NONE), shape=(), dtype=xp.int32)
        return RecycledChoice(b.shape[-1], none, zero != zero, zero, row)

    def numbers(self) -> Array:
        """Return the numbers that the sentence is made of, (*batch, fields) int32."""
        xp, zero, tried = array_namespace(self.auto), 0 * self.steps, self.memory != int(Tried.NONE)
        status = xp.where(self.helped, zero + int(Status.CONVERGED), zero + int(Status.MAX_ITER))
        attempt = xp.stack([zero + self.memory, status, self.steps], axis=-1)
        front = FIELDS - MOST_ATTEMPTS * ATTEMPT_FIELDS
        auto = xp.where(self.helped[..., None], 0 * self.auto, self.auto)
        first, attempts = auto[..., :front], auto[..., front:]
        after = xp.concat([attempt, attempts[..., :-ATTEMPT_FIELDS]], axis=-1)
        unknowns = 0 * first[..., :1] + self.unknowns
        return xp.concat([unknowns, first[..., 1:], xp.where(tried, after, attempts)], axis=-1)  # type: ignore[no-any-return]

    def __str__(self) -> str:
        numbers = self.numbers()
        backend = owner(numbers)
        assert backend is not None
        return sentence(backend.to_numpy(numbers))
