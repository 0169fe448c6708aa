"""One loop for all iterative solvers. It freezes the problems of a batch that have ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from dil._base.arrays import array_namespace, select
from dil._base.typing import Array
from dil._frameworks.loops import Loops

S = TypeVar("S")
"""A state: a NamedTuple of arrays."""


class Going(Protocol):
    """A state with a mask `going`, (*batch, 1): the problems that have not ended."""

    @property
    def going(self) -> Any: ...


R = TypeVar("R", bound=Going)


def repeat(step: Callable[[S], S], active: Callable[[S], Any], first: S, *, loops: Loops, steps_per_read: int = 1) -> S:
    """Run `state = step(state)` while `active(state)` holds for any problem.

    The step itself must not change the problems that have ended. The host reads the condition after every
    `steps_per_read` steps.
    """

    def steps(state: S) -> S:
        for _ in range(steps_per_read):
            state = step(state)
        return state

    def condition(state: S) -> Any:
        mask = active(state)
        return mask if getattr(mask, "ndim", 0) == 0 else array_namespace(mask).any(mask)

    return cast(S, loops.while_loop(condition, steps if steps_per_read > 1 else step, first))


def frozen(step: Callable[[R], R], batch_ndim: int) -> Callable[[R], R]:
    """Return a step that changes only the problems of a batch in `state.going`. A single problem needs no mask."""
    return step if batch_ndim == 0 else lambda state: freeze(state.going, state, step(state), batch_ndim)


def freeze(mask: Array, old: S, new: S, batch_ndim: int) -> S:
    """Return the new state of the problems in the mask, and the old state of the others."""
    xp, batch, masks = array_namespace(mask), mask.shape[:batch_ndim], {mask.ndim: mask}

    def merged(a: Any, b: Any) -> Any:
        if a is b or b.ndim < batch_ndim:
            return b
        if b.ndim not in masks:
            masks[b.ndim] = xp.reshape(mask, (*batch, *(1,) * (b.ndim - batch_ndim)))
        return xp.where(masks[b.ndim], b, a)

    fields: Any = zip(old, new, strict=True)  # type: ignore[call-overload]
    return type(new)(*(merged(a, b) for a, b in fields))


def choose(mask: Array | bool, a: Array, b: Array, loops: Loops) -> Array:
    """Return a where the mask holds, else b, vectors of each problem. The vectors of a batch are mostly taken whole.

    A `where` of vectors costs as much as a step along one. So a mask that the host can read is read first.
    """
    if not isinstance(mask, bool):
        xp = array_namespace(mask)
        if loops.number(xp.all(mask)) is True:
            return a
        if loops.number(xp.any(mask)) is False:
            return b
    return select(mask, a, b)  # type: ignore[no-any-return]
