"""The events of a search for steps: after each step, which functions have crossed zero, and whether the solve ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, eps, full, logical_not, select
from dil._base.scalars import Scalar, filled, indicator, is_finite
from dil._base.typing import Array, Arrays
from dil._frameworks.loops import Loops
from dil.ode._dense import Segment
from dil.ode._events import EventFunction

SAMPLES = 4
"""A function of an event is evaluated at so many points of a step, at equal distances. The last is the end."""
AFTER_START = 0.5
"""The first value is that at eps to this power, in units of the first step: an event at the start is none."""


class Watched(NamedTuple):
    """What is known of the events. Tuples have an entry for each event; scalars are those of the problems."""

    signs: tuple[Scalar, ...] = ()
    """The sign of each function at the last sample: 1 or -1, and 0 as long as it has been zero."""
    counts: tuple[Scalar, ...] = ()
    marks: Any = ()
    """1 or -1 where a function crosses zero upwards or downwards before a sample, if it counts, else 0.

    Shape (events, *batch, max_steps, SAMPLES).
    """
    ended: Scalar = False
    """Whether an event has ended the solve of a problem."""
    broken: Scalar = False
    """Whether a value was not finite."""


@dataclass(frozen=True)
class Watch:
    """The functions of the events, and the flat arrays of their arguments."""

    functions: tuple[EventFunction, ...]
    arrays: Arrays
    loops: Loops

    def first(self, t: Array, y: Array, slope: Array, h: Array, max_steps: int) -> Watched:
        """Return what is known before the first step, whose length may be h."""
        xp = array_namespace(y)
        after = eps(xp, y.dtype) ** AFTER_START * h
        signs = tuple(map(_sign, self._values(t + after, y + after * slope)))
        zeros = tuple(0.0 * sign for sign in signs)
        shape = (len(signs), *y.shape[:-1], max_steps, SAMPLES)
        marks = xp.zeros(shape, dtype=y.dtype, device=device(y))
        no = zeros[0] != 0
        return Watched(signs, zeros, marks, no, no)

    def look(self, before: Watched, t: Array, step: Segment, taken: Scalar, over: Scalar, place: Any) -> Watched:
        """Return what is known after the step from t, if it was taken. Problems that are over count no more."""
        if taken is False:
            return before
        signs, counts, broken, ended = list(before.signs), list(before.counts), before.broken, before.ended
        marks: list[list[Scalar]] = [[] for _ in signs]
        fractions = [i / SAMPLES for i in range(1, SAMPLES)]
        for s, u in zip((*fractions, 1.0), (*step.at_all(fractions), step.end), strict=True):
            values = self._values(t + s * step.length, u)
            for k, value in enumerate(values):
                mark, signs[k] = _crossing(signs[k], value)
                mark = select(over, 0.0 * mark, _counted(mark, self.functions[k]))
                marks[k].append(mark)
                counts[k] = counts[k] + abs(mark)
                if (last := self.functions[k].last) is not None:
                    ended = ended | (counts[k] >= last)
            for value in values:  # behind the end, a function need not have a value
                broken = broken | (logical_not(over | ended) & logical_not(is_finite(value)))
        rows = self._appended(before.marks, marks, taken, place, step.end)
        if taken is True:
            return Watched(tuple(signs), tuple(counts), rows, ended, broken)

        def chosen(now: Sequence[Scalar], then: Sequence[Scalar]) -> tuple[Scalar, ...]:
            return tuple(select(taken, a, b) for a, b in zip(now, then, strict=True))

        ended, broken = chosen((ended, broken), (before.ended, before.broken))
        return Watched(chosen(signs, before.signs), chosen(counts, before.counts), rows, ended, broken)

    def going(self, steps: Any, watched: Watched) -> Any:
        """Return the maker of the next steps, where the problems that events have ended stand still."""
        field = self.functions[0].field
        if not field.freezes:
            return steps
        return replace(steps, arrays=field.with_going(steps.arrays, logical_not(watched.ended)))

    def _values(self, t: Array, u: Array) -> list[Scalar]:
        """Return the value of each function, as scalars of the problems."""
        now = t if u.ndim == 1 else full(u[..., 0], 0.0) + (t[..., 0] if t.ndim else t)
        return [self.loops.number(function.at(now, u, self.arrays)) for function in self.functions]

    def _appended(self, memory: Array, marks: list[list[Scalar]], taken: Scalar, place: Any, like: Array) -> Array:
        """Return the marks of all steps with those of one more, (events, *batch, SAMPLES)."""
        xp = array_namespace(like)
        if isinstance(marks[0][0], float):
            if not any(map(any, marks)):
                return memory
            row = xp.asarray(marks, dtype=like.dtype, device=device(like))
        else:
            row = xp.stack([xp.stack(row, axis=-1) for row in marks])
        if getattr(place, "ndim", 0):
            return self.loops.set_rows(memory, place, xp.where(taken[..., None], row, 0.0 * row))
        if not isinstance(taken, bool):
            row = xp.where(taken, row, 0.0 * row)
        return self.loops.set_row(memory, place, row)


def going_in(marks: Array, functions: Sequence[EventFunction]) -> Array:
    """Return whether each problem goes on in each step, (steps, *batch), from the marks of all steps."""
    xp = array_namespace(marks)
    each = xp.sum(xp.abs(marks), axis=-1)
    before = xp.cumulative_sum(each, axis=0) - each
    going = before[:, 0, ...] >= 0
    for i, function in enumerate(functions):
        if function.last is not None:
            going = going & (before[:, i, ...] < function.last)
    return going  # type: ignore[no-any-return]


def _sign(x: Scalar) -> Scalar:
    """Return the sign of x; zero for NaN."""
    return select(x > 0, filled(x, 1.0), select(x < 0, filled(x, -1.0), filled(x, 0.0)))


def _crossing(before: Scalar, value: Scalar) -> tuple[Scalar, Scalar]:
    """Return the direction of a crossing, or zero, and the new sign. A value of zero has crossed."""
    up, down = (before < 0) & (value >= 0), (before > 0) & (value <= 0)
    mark = indicator(up, value) - indicator(down, value)
    return mark, select(mark != 0, mark, select(before == 0, _sign(value), before))


def _counted(mark: Scalar, function: EventFunction) -> Scalar:
    """Return the mark if the event counts crossings in its direction, else zero."""
    upwards, downwards = function.signs
    if not upwards:
        mark = select(mark > 0, 0.0 * mark, mark)
    return mark if downwards else select(mark < 0, 0.0 * mark, mark)
