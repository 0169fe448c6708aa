"""The steps of a method over a given grid of times."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from dil._base.arrays import array_namespace, full, shared_namespace
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Backend
from dil.ode._methods import Method, Stages


class StepStages(Stages, Protocol):
    """The stages of one step, with the slope at its end and the outcome of its solves."""

    @property
    def end(self) -> Arrays: ...
    @property
    def outcome(self) -> Arrays: ...


class SweepResult(NamedTuple):
    """The last state, and for every step the state and the slope at its end and the outcome of its solves."""

    last: Arrays
    states: Arrays
    slopes: Arrays
    outcome: Arrays
    bulges: Arrays
    """The bulges of the steps (see `Advanced`); empty if the method has none."""


def grid_of(t: Array, steps: int) -> tuple[Array, Array]:
    """Return the begins and the lengths of the steps, both of shape ((T - 1) * steps,)."""
    xp = array_namespace(t)
    h = (t[1:] - t[:-1]) / steps
    if steps == 1:
        return t[:-1], h

    index = xp.stack([full(t[0], float(i)) for i in range(steps)])
    begins = t[:-1][:, None] + h[:, None] * index[None, :]
    return xp.reshape(begins, (-1,)), xp.reshape(h[:, None] + 0.0 * begins, (-1,))


def sweep(
    method: Method,
    backend: Backend,
    stages: Callable[..., StepStages],
    y: Arrays,
    slope: Arrays,
    grid: Arrays,
    count: Array | None = None,
) -> SweepResult:
    """Step from y over the first `count` rows of the grid (begins, lengths, *more), or over all of them.

    `slope` is the guess for the slope of the first stage. `stages(slope, *more)` makes the stages of a step from its
    row of the grid.
    """
    n_states, n_slopes = len(y), len(slope)

    def take(method: Method, carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        now, slope, memory = carry[:n_states], carry[n_states : n_states + n_slopes], carry[n_states + n_slopes :]
        begin, length, *more = row
        step_stages = stages(slope, *more)
        new = method.advance(step_stages, now, memory, begin, length)
        status, *counts = step_stages.outcome
        xp = array_namespace(status)
        nonfinite = (status == 0) & ~xp.all(xp.isfinite(backend.constant(new.y[0])), axis=-1)
        status = xp.where(nonfinite, full(status, float(Status.NON_FINITE)), status)
        end = step_stages.end if new.slope is None else new.slope
        bulge = () if new.bulge is None else new.bulge()
        return (*new.y, *step_stages.last, *new.memory), (*new.y, *end, status, *counts, *bulge)

    first = tuple(x[0, ...] for x in grid)
    memory = (method.starter or method).begin(stages(slope, *first[2:]), y, first[0])
    carry: Arrays = (*y, *slope, *memory)
    outs: list[Arrays] = []
    if method.starter is not None:
        carry, out = take(method.starter, carry, first)
        carry = (*carry[: n_states + n_slopes], *y, first[1])
        outs.append(tuple(x[None, ...] for x in out))
        grid, count = tuple(x[1:, ...] for x in grid), None if count is None else count - 1.0
    if grid[0].shape[0]:
        carry, rest = backend.loops.scan(lambda c, row: take(method, c, row), carry, grid, count)
        outs.append(rest)
    xp = array_namespace(y[0])
    joined = outs[0] if len(outs) == 1 else tuple(xp.concat(parts) for parts in zip(*outs, strict=True))
    ends = n_states + n_slopes
    return SweepResult(
        carry[:n_states], joined[:n_states], joined[n_states:ends], joined[ends : ends + 3], joined[ends + 3 :]
    )


def with_first(first: Array, rest: Array) -> Array:
    """Return the rows with one more before them. A derivative may be recorded of one of the two alone."""
    first = first[None, ...]
    return shared_namespace(first[..., None], rest[..., None]).concat([first, rest])  # type: ignore[no-any-return]
