"""One loop for all iterative solvers. It freezes the problems of a batch that have ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from dil._base.arrays import array_namespace
from dil._base.typing import Array
from dil._frameworks.loops import Loops

S = TypeVar("S")
"""A state: a NamedTuple of arrays."""


class Going(Protocol):
    """A state with a mask `going`, (*batch, 1): the problems that have not ended."""

    @property
    def going(self) -> Any: ...


R = TypeVar("R", bound=Going)


def iterate(
    step: Callable[[S], S],
    active: Callable[[S], Any],
    first: S,
    *,
    batch_ndim: int,
    loops: Loops,
    steps_per_read: int = 1,
) -> S:
    """Run `state = step(state)` for each problem of a batch while `active(state)` holds for this problem.

    Parameters
    ----------
    step : callable
        One step of the algorithm, as in a textbook. It acts on the whole batch, without a mask.
    active : callable
        Returns whether each problem continues: a mask of shape batch or (*batch, 1), or a Python bool.
    first : NamedTuple of arrays
        The state before the first step. A problem that has ended keeps its part of every array of shape (*batch, ...).
        An array with fewer dimensions, such as a count that all problems share, gets the value of the last step.
    batch_ndim : int
        The number of batch dimensions. A single problem needs no mask, because the loop ends when the problem ends.
    loops : Loops
        The control flow of the framework.
    steps_per_read : int
        Steps for each read of the condition. A read makes the host wait for a device. The surplus steps do not change a
        problem that has ended.
    """
    single = batch_ndim == 0 and steps_per_read == 1

    def advance(now: tuple[S, Any]) -> tuple[S, Any]:
        state, mask = now
        new = step(state)
        if single:
            return new, active(new)
        new = freeze(mask, state, new, batch_ndim)
        return new, mask & active(new)

    return repeat(advance, lambda now: now[1], (first, active(first)), loops=loops, steps_per_read=steps_per_read)[0]


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
