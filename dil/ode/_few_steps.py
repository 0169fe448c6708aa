"""The steps of a search of which few are kept: their ends, every k-th state, and what output times need.

The derivative computes the states between again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, full, nonzero_or_one
from dil._base.typing import Array, Arrays
from dil._frameworks.loops import RecordedLoops
from dil._frameworks.protocol import Backend
from dil.ode._dense import Segment
from dil.ode._methods import Method
from dil.ode._sweep import StepStages


class Spacing(NamedTuple):
    """How many states are kept, and how many steps lie from one to the next."""

    kept: int
    steps: int

    @property
    def rows(self) -> int:
        """The largest number of steps."""
        return self.kept * self.steps

    @classmethod
    def of(cls, max_steps: int, kept: int | None = None) -> Spacing:
        """Return the spacing with so many states. By default, as many are kept as lie between two."""
        kept = min(max_steps, math.isqrt(max_steps - 1) + 1 if kept is None else kept)
        steps = -(-max_steps // kept)
        return cls(-(-max_steps // steps), steps)


class Attempted(NamedTuple):
    """An attempt at a step. `taken` says whether it became one."""

    taken: Any
    place: Any
    """The number of steps before it."""
    t: Array
    h: Array
    end: Array
    """The time at its end, like the state and the slope there."""
    y: Array
    slope: Array
    memory: Arrays
    largest: Array
    """The largest |y| so far, entry by entry."""
    segment: Arrays
    """The states at both ends, the slopes, and the bulge if the method has one."""
    stages: list[Array]


@dataclass(frozen=True)
class Parts:
    """What a step begins from: the state, the slope, the memory of the method, and the time."""

    method: Method
    keeps_stages: bool

    @property
    def solves_again(self) -> bool:
        """Whether the derivative solves the stages again."""
        return self.method.implicit and not self.keeps_stages

    def __call__(self, y: Array, slope: Array, memory: Arrays, largest: Array, t: Array) -> Arrays:
        """Return the arrays. The largest |y| so far tells how accurate a stage must be."""
        own = () if self.method.continues else memory
        return (y, slope, *own, *((largest,) if self.solves_again else ()), t)


@dataclass(frozen=True)
class Log:
    """What the search of a recorded program keeps: it returns, for each attempt, what is written and where."""

    times: Array
    """The times of the output after the first."""
    spacing: Spacing
    parts: Parts

    @property
    def slots(self) -> int:
        """The largest number of steps with output times."""
        return min(self.times.shape[0], self.spacing.rows)

    def first(self, y: Array, slope: Array, memory: Arrays, start: Array) -> tuple[Array, Arrays]:
        """Return the place of the first step with an output time, and the memories."""
        xp, method, rows = array_namespace(y), self.parts.method, self.spacing.rows

        def room(*shape: int) -> Array:
            return xp.zeros(shape, dtype=y.dtype, device=device(y))  # type: ignore[no-any-return]

        slot = xp.zeros((), dtype=xp.int32, device=device(y))
        begun = (*self.parts(y, slope, memory, xp.abs(y), start), xp.astype(slot, y.dtype))
        # one more row for what is not kept
        starts = (xp.concat([x[None, ...], room(self.spacing.kept, *x.shape)]) for x in begun)
        stages = (room(rows, method.stages, *y.shape),) if self._with_stages else ()
        segments = room(self.slots, 4 + method.bulges, *y.shape)
        return slot, (room(rows), segments, room(self.slots, 2), *stages, *starts)

    def entry(self, slot: Array, step: Attempted) -> tuple[Array, tuple[tuple[Array, Array], ...]]:
        """Return the place of the next step with an output time, and what is written."""
        xp, (kept, steps) = array_namespace(step.y), self.spacing
        after = slot + xp.astype(step.taken & holds_time(self.times, step), slot.dtype)
        following = step.place + 1
        # what lies behind the steps that are taken is not read
        segment = xp.where(step.taken, xp.stack(list(step.segment)), 0.0)
        bounds = xp.where(step.taken, xp.stack([step.t, step.h]), 0.0)
        stages = ((step.place, xp.stack(step.stages)),) if self._with_stages else ()
        keeps = step.taken & (following % steps == 0)
        place = xp.where(keeps, following // steps, full(following, kept, dtype=following.dtype))
        parts = self.parts(step.y, step.slope, step.memory, step.largest, step.end)
        starts = (*parts, xp.astype(after, step.y.dtype))
        return after, (
            (step.place, step.end),
            (slot, segment),
            (slot, bounds),
            *stages,
            *((place, x) for x in starts),
        )

    @property
    def _with_stages(self) -> bool:
        return self.parts.keeps_stages and self.parts.method.implicit


def holds_time(times: Array, step: Attempted) -> Array:
    """Return whether an output time lies in a step; that at its end lies in the next one."""
    return array_namespace(times).any((times >= step.t) & (times < step.end))  # type: ignore[no-any-return]


class FewSteps(NamedTuple):
    """What the search found."""

    ends: Array
    """The times at the ends of the steps, (rows,)."""
    segments: Array
    """The states and slopes at both ends, and the bulges, of steps with output times, (slots, 4 or 5, *batch, n)."""
    bounds: Array
    """The begins and lengths of those steps, (slots, 2)."""
    taken: Array
    rejected: Array
    status: Array
    failed: Array
    iterations: Array
    linear: Array
    last: Array
    rest: Arrays
    """The stages of all steps if they are kept, and what every k-th step begins from."""

    @property
    def flat(self) -> Arrays:
        """All arrays."""
        *fields, rest = self
        return (*fields, *rest)

    @classmethod
    def of(cls, flat: Arrays) -> FewSteps:
        """Return the record from all arrays."""
        ends, segments, bounds, taken, rejected, status, failed, iterations, linear, last, *rest = flat
        return cls(ends, segments, bounds, taken, rejected, status, failed, iterations, linear, last, tuple(rest))


class Moved(NamedTuple):
    """A step that was taken again: what the next one begins from, its segment, and its begin and length."""

    parts: Arrays
    segment: Array
    bounds: Array


@dataclass(frozen=True)
class FewSweep:
    """A sweep over the steps that a search found, differentiable in its start."""

    backend: Backend
    parts: Parts
    stages: Callable[..., StepStages]
    """`stages(slope, solutions)` makes the stages of a step."""
    solved: Callable[..., Array]
    """`solved(y, slope, memory, largest, t, h)` solves the stages of a step again."""

    def step(self, start: Arrays, end: Array, solutions: Array | None = None) -> Moved:
        """Take a step that ends at the time `end`."""
        method, plain, (y, slope, *own, t) = self.parts.method, self.backend.constant, start
        xp, h, largest = array_namespace(y), end - t, y
        if self.parts.solves_again:
            largest = own.pop()
            solutions = self.solved(y, slope, tuple(own), largest, t, h)
            largest = xp.maximum(plain(largest), xp.abs(plain(y)))
        memory = (slope,) if method.continues else tuple(own)
        stages = self.stages((plain(slope),), y[None, ...] if solutions is None else solutions)
        new = method.advance(stages, (y,), memory, t, h)
        (z,), (last,) = new.y, stages.end if new.slope is None else new.slope
        bulge = () if new.bulge is None else new.bulge()
        largest = xp.maximum(largest, xp.abs(plain(z)))
        rows = array_namespace(y, z, slope, last).stack([y, z, slope, last, *bulge])
        return Moved(self.parts(z, last, new.memory, largest, end), rows, array_namespace(t, h).stack([t, h]))

    def recorded(self, start: Arrays, found: FewSteps) -> Arrays:
        """Return the segments and bounds of the found steps with their derivatives, in a recorded program."""
        loops, xp = recorded(self.backend), array_namespace(start[0])
        keeps = self.parts.keeps_stages and self.parts.method.implicit
        stages, starts = (found.rest[:1], found.rest[1:]) if keeps else ((), found.rest)
        # the numbers of steps with output times have no derivative
        *moving, slots = (x[:-1, ...] for x in starts)
        known = (*moving, xp.astype(slots, xp.int32))
        lengths = found.bounds[:, 1]
        begins = xp.where(lengths > 0, found.bounds[:, 0], full(lengths, float("inf")))
        count = begins.shape[0]

        def step(carry: Arrays, sums: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
            (*start, slot), t = carry, self.backend.constant(carry[-2])
            moved = self.step(tuple(start), *row)
            needed = (begins[0] if count == 1 else xp.take(begins, xp.clip(slot, 0, count - 1))) == t
            place = xp.where(needed & (slot < count), slot, full(slot, count, dtype=slot.dtype))
            rows = moved.segment, moved.bounds
            after = slot + xp.astype(needed, slot.dtype)
            return (*moved.parts, after), tuple(map(loops.add_row, sums, (place, place), rows))

        begun = (*start, full(slots[0], 0, dtype=xp.int32))
        sums = tuple(xp.zeros_like(x) for x in (found.segments, found.bounds))
        return loops.fold(step, begun, sums, (found.ends, *stages), found.taken, known)[1]


def recorded(backend: Backend) -> RecordedLoops:
    """Return the loops of recorded programs."""
    assert backend.loops.recorded is not None
    return backend.loops.recorded


def states_at(backend: Backend, t: Array, segments: Array, bounds: Array) -> Array:
    """Return the states at the times t, (T, *batch, n). A time after the last step gets the state at its end."""
    xp, plain = array_namespace(segments), backend.constant
    begins, lengths = bounds[:, 0], bounds[:, 1]
    before = (plain(lengths) > 0)[None, :] & (plain(begins)[None, :] <= plain(t)[:, None])
    step = xp.sum(xp.astype(before, xp.int32), axis=1) - 1
    step = xp.where(step < 0, 0 * step, step)

    def column(x: Array) -> Array:
        return xp.reshape(x, (t.shape[0], *(1,) * (segments.ndim - 2)))  # type: ignore[no-any-return]

    chosen, h = xp.take(segments, step, axis=0), column(xp.take(lengths, step, axis=0))
    s = (column(t) - column(xp.take(begins, step, axis=0))) / nonzero_or_one(h)
    s = xp.where(plain(s) > 1.5, xp.astype(plain(h) > 0, s.dtype), s)
    start, end, slope, last, *bulge = (chosen[:, i, ...] for i in range(chosen.shape[1]))
    return Segment(h, start, end, slope, last, bulge[0] if bulge else None).at(s)
