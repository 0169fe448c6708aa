"""One loop for all iterative solvers. It freezes problems of a batch that have ended, and rarely reads the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from dil._base.arrays import array_namespace
from dil._base.typing import Array
from dil._frameworks.loops import Loops

S = TypeVar("S")
"""A state: a NamedTuple of arrays."""


class Going(Protocol):
    """A state with a mask of the problems that go on, (*batch, 1)."""

    @property
    def going(self) -> Any: ...


R = TypeVar("R", bound=Going)


def iterate(
    step: Callable[[S], S],
    going: Callable[[S], Any],
    first: S,
    *,
    batch_ndim: int,
    loops: Loops,
    steps_per_read: int = 1,
) -> S:
    """Run `state = step(state)` for each problem of a batch while `going(state)` holds for it.

    Parameters
    ----------
    step : callable
        One step of the algorithm, as in a textbook. It acts on the whole batch and needs no mask.
    going : callable
        Returns whether each problem goes on: a mask of shape batch or (*batch, 1), or a Python bool.
    first : NamedTuple of arrays
        The state before the first step. A problem that has ended keeps its part of every array of shape (*batch, ...).
        An array with fewer dimensions, such as a count that all problems share, is taken from the step.
    batch_ndim : int
        The number of batch dimensions. A single problem needs no mask: the loop ends with it.
    loops : Loops
        The control flow of the framework.
    steps_per_read : int
        Steps for each read of the condition. A read makes the host wait for the device. Frozen problems do not
        change in the additional steps.
    """
    single = batch_ndim == 0 and steps_per_read == 1

    def advance(now: tuple[S, Any]) -> tuple[S, Any]:
        state, on = now
        new = step(state)
        if single:
            return new, going(new)
        new = freeze(on, state, new, batch_ndim)
        return new, on & going(new)

    return repeat(advance, lambda now: now[1], (first, going(first)), loops=loops, steps_per_read=steps_per_read)[0]


def repeat(step: Callable[[S], S], going: Callable[[S], Any], first: S, *, loops: Loops, steps_per_read: int = 1) -> S:
    """Run `state = step(state)` while `going(state)` holds for any problem. The step must freeze ended problems.

    The condition is read after every `steps_per_read` steps.
    """

    def steps(state: S) -> S:
        for _ in range(steps_per_read):
            state = step(state)
        return state

    def condition(state: S) -> Any:
        on = going(state)
        return on if getattr(on, "ndim", 0) == 0 else array_namespace(on).any(on)

    return cast(S, loops.while_loop(condition, steps if steps_per_read > 1 else step, first))


def frozen(step: Callable[[R], R], batch_ndim: int) -> Callable[[R], R]:
    """Return a step that freezes problems of a batch with a false `state.going`. A single problem needs no mask."""
    return step if batch_ndim == 0 else lambda state: freeze(state.going, state, step(state), batch_ndim)


def freeze(on: Array, old: S, new: S, batch_ndim: int) -> S:
    """Return the new state of the problems that are on, and the old state of the others."""
    xp, batch, masks = array_namespace(on), on.shape[:batch_ndim], {on.ndim: on}

    def kept(a: Any, b: Any) -> Any:
        if a is b or b.ndim < batch_ndim:
            return b
        if b.ndim not in masks:
            masks[b.ndim] = xp.reshape(on, (*batch, *(1,) * (b.ndim - batch_ndim)))
        return xp.where(masks[b.ndim], b, a)

    fields: Any = zip(old, new, strict=True)  # type: ignore[call-overload]
    return type(new)(*(kept(a, b) for a, b in fields))
