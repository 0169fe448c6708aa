"""The loop of a solver whose problems leave the batch when they have ended, so that none waits for the slowest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from dil._base.arrays import array_namespace, size
from dil._base.rows import Rows, entrywise
from dil._base.typing import Array
from dil._frameworks.iteration import freeze, repeat
from dil._frameworks.loops import Loops

MANY = 2**10
"""The fewest unknowns of a batch whose problems leave. An operation on fewer costs about as much as one on a single."""

LEAVING = 8.0
"""About how many evaluations of F, or products with the matrix, of the batch it costs to leave and to compare."""

G = TypeVar("G")
"""What the steps of some problems need besides their state."""
S = TypeVar("S")


class Part(NamedTuple, Generic[G, S]):
    """Some problems of a batch, without the others."""

    given: G
    holds: Callable[[S], bool]
    """Whether the state in which they end is one in the batch. If not, the batch goes on as a whole."""


TakePart: TypeAlias = Callable[[G, Rows, S], Part[G, S] | None]
"""A function that returns some problems of a batch in a state, or None if they cannot be solved alone."""


class Run(NamedTuple):
    """The problems of a loop, and how it runs."""

    batch: tuple[int, ...]
    dimension: int
    """The number of unknowns of one problem."""
    loops: Loops
    steps_per_read: int = 1
    """Steps for each read of the condition. A read makes the host wait for a device."""
    price: float = 0.0
    """The steps of the batch that it costs to leave. Problems leave when those that ended have wasted so much.

    Nobody knows how many steps are to come. To wait until as much is lost costs at most twice the best choice.
    """

    def repeat(self, step: Callable[[S], S], active: Callable[[S], Any], first: S) -> S:
        """Run `state = step(state)` while `active(state)` holds for any problem."""
        return repeat(step, active, first, loops=self.loops, steps_per_read=self.steps_per_read)


def repeat_leaving(
    given: G,
    step: Callable[[G, S], S],
    going: Callable[[S], Array],
    first: S,
    *,
    run: Run,
    part: TakePart[G, S],
) -> S:
    """Run `state = step(given, state)` while a problem is going. The step must not change the others.

    If less than half of a large batch is going, and the steps of the others would have paid for it, the loop continues
    with these problems alone, if a program can know which these are while it runs. `going(state)` is a mask, shape
    batch or (*batch, 1).
    """
    some, problems = partial(step, given), size(run.batch)
    if problems <= 1 or problems * run.dimension < MANY:
        return run.repeat(some, going, first)
    xp = array_namespace(going(first))
    if run.loops.places(xp.reshape(going(first), (-1,))) is None:
        return run.repeat(some, going, first)
    wasted = 0.0

    def together(s: S) -> bool:
        nonlocal wasted
        share = int(xp.count_nonzero(going(s))) / problems
        wasted += (1 - share) * run.steps_per_read
        return share >= 0.5 or (share > 0 and wasted < run.price)

    half = run.repeat(some, together, first)
    chosen = xp.reshape(going(half), (-1,))
    numbers = run.loops.places(chosen)
    if numbers is None or numbers.shape[0] == 0:
        return half
    rows = Rows(run.batch, chosen, numbers)
    alone = part(given, rows, half)
    if alone is not None:
        start: S = entrywise(rows.take, len(run.batch), half)
        last = repeat_leaving(alone.given, step, going, start, run=run._replace(batch=rows.shape), part=part)
        end: S = entrywise(rows.put, len(run.batch), half, last)
        if alone.holds(end):
            return end
    return run.repeat(some, going, half)


def iterate(
    given: G, step: Callable[[G, S], S], active: Callable[[G, S], Any], first: S, *, run: Run, part: TakePart[G, S]
) -> S:
    """Run `state = step(given, state)` for each problem of a batch while `active(given, state)` holds for this problem.

    The step is that of a textbook, without a mask. A problem that has ended keeps its part of every array of shape
    (*batch, ...). An array with fewer dimensions, such as a count that all problems share, gets the value of the last
    step. `active` returns a mask of shape batch or (*batch, 1), or a Python bool. Problems leave the batch as in
    `repeat_leaving`.
    """
    batch_ndim = len(run.batch)
    single = batch_ndim == 0 and run.steps_per_read == 1

    def advance(given: G, now: tuple[S, Any]) -> tuple[S, Any]:
        state, mask = now
        new = step(given, state)
        if single:
            return new, active(given, new)
        if batch_ndim == 0 or run.loops.number(array_namespace(mask).all(mask)) is not True:
            new = freeze(mask, state, new, batch_ndim)
        return new, mask & active(given, new)

    def part_now(given: G, rows: Rows, now: tuple[S, Any]) -> Part[G, tuple[S, Any]] | None:
        found = part(given, rows, now[0])
        return None if found is None else Part(found.given, lambda last: found.holds(last[0]))

    start = (first, active(given, first))
    if batch_ndim == 0:
        return run.repeat(partial(advance, given), lambda now: now[1], start)[0]
    return repeat_leaving(given, advance, lambda now: now[1], start, run=run, part=part_now)[0]
