"""The places of events, found in the marks of a search. They are constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, eps, full
from dil._base.scalars import Scalar
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Backend
from dil.ode._bracket import crossing
from dil.ode._curve import Curve
from dil.ode._event_layer import Place, grazes
from dil.ode._events import EventFunction
from dil.ode._rows_of import rows_of
from dil.ode._watch import SAMPLES


class Located(NamedTuple):
    """The places of the events of one function, in K rows."""

    step: Array
    """The number of the step, from zero, (K, *batch), like all but u and the counts."""
    low: Array
    """See `Place`, like the unit."""
    unit: Array
    u: Array
    """(K, *batch, 1)."""
    t: Array
    status: Array
    counts: Array
    """The number of events, shape batch. It may be larger than K."""

    def first(self, rows: int) -> Located:
        """Return the first rows."""
        step, low, unit, u, t, status = (x[:rows, ...] for x in self[:-1])
        return Located(step, low, unit, u, t, status, self.counts)


class End(NamedTuple):
    """Where events end the solve of each problem, shape batch."""

    t: Array
    """Infinity where none does."""
    by: Array
    """The number of the event, from zero; -1 if none does."""


@dataclass(frozen=True)
class Locator:
    """Finds the places of events."""

    backend: Backend
    functions: tuple[EventFunction, ...]
    rtol: float

    def __call__(
        self, curve: Curve, marks: Array, arrays: Arrays, rows: Sequence[int]
    ) -> tuple[End, tuple[Located, ...]]:
        """Return where the solve ends, and up to so many events of each function until then.

        marks: (steps, events, *batch, SAMPLES). `curve` and `arrays` are constants.
        """
        found = [self._locate(i, curve, marks[:, i, ...], arrays, count) for i, count in enumerate(rows)]
        end = self._first_end(found)
        return end, tuple(_until(end.t, each) for each in found)

    def _locate(self, i: int, curve: Curve, marks: Array, arrays: Arrays, rows: int) -> Located:
        """Return the places of the crossings that are marked in the samples of the steps."""
        xp = array_namespace(marks)
        marks = xp.moveaxis(marks, -1, 1)
        marks = xp.reshape(marks, (-1, *marks.shape[2:]))
        so_far = xp.cumulative_sum(xp.astype(marks != 0, xp.int32), axis=0)
        counts = so_far[-1, ...]
        number = _numbers(rows, counts)
        there = number < counts
        # the k-th crossing is before the first sample until which there are more than k
        sample = xp.astype(xp.count_nonzero(so_far[None, ...] <= number[:, None, ...], axis=1), xp.int32)
        sample = xp.where(there, sample, 0 * sample)
        step, low = sample // SAMPLES, xp.astype(sample % SAMPLES, marks.dtype) / SAMPLES
        direction = xp.where(there, rows_of(marks[..., None], sample)[..., 0], 0.0 * low)
        begin, segment = curve.steps(step)
        if rows == 0:
            return Located(step, low, low, low[..., None], low, sample, counts)

        def solve(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
            return carry, self._solve(self.functions[i], Place.of(row), arrays)

        place = Place(begin, segment, low, direction)
        unit, u, t, slope = self.backend.loops.scan(solve, (), place.arrays, most_rows(counts, rows, low))[1]
        status = xp.where(there & grazes(slope, self.rtol), 0 * sample + int(Status.GRAZING), 0 * sample)
        return Located(step, low, xp.where(there, unit, 0.0 * low), u, t, status, counts)

    def _solve(self, function: EventFunction, place: Place, arrays: Arrays) -> Arrays:
        """Return the unit of the function, the unknown u, (*batch, 1), the time, and the derivative of the function.

        The unit of the place is the direction of the crossing.
        """
        backend, xp = self.backend, array_namespace(place.low)
        args, _ = function.field.arguments.call(arrays)
        read = backend.loops.number
        one = full(place.low[..., None], 1.0)

        def value(x: Scalar) -> Scalar:
            u = one + (x if isinstance(x, float) else x[..., None])
            return read(place.value(function, u, args)[..., 0])

        low, high = value(0.0), value(1.0)
        x = crossing(value, low, high, eps(xp, one.dtype), backend.loops.while_loop)
        u = one + (x if isinstance(x, float) else x[..., None])
        size = xp.maximum(*(abs(v) + 0.0 * place.low for v in (low, high)))
        place = place._replace(unit=place.unit / xp.where(size == 0, full(size, 1.0), size))
        (_,), pull = backend.vjp(lambda w: (place.value(function, w, args),), u)
        t, _ = place.at(u)
        return place.unit, u, t, pull((one,))[0][..., 0]

    def _first_end(self, found: Sequence[Located]) -> End:
        """Return where the solve of each problem ends."""
        xp = array_namespace(found[0].counts)
        t = full(found[0].t, float("inf"), shape=found[0].counts.shape)
        by = full(found[0].counts, -1)
        for i, (function, each) in enumerate(zip(self.functions, found, strict=True)):
            last = function.last
            if last is None or each.t.shape[0] < last:
                continue
            earlier = (each.counts >= last) & (each.t[last - 1, ...] < t)
            t, by = xp.where(earlier, each.t[last - 1, ...], t), xp.where(earlier, full(by, i), by)
        return End(t, by)


def _until(end: Array, found: Located) -> Located:
    """Return the events up to the end. A step in which the solve ends may have later ones."""
    xp, rows = array_namespace(found.counts), found.t.shape[0]
    if rows == 0:
        return found
    there = _numbers(rows, found.counts) < found.counts
    late = there & (found.t > end)
    # those without a row are later still
    kept = xp.sum(xp.astype(there & ~late, found.counts.dtype), axis=0)
    return found._replace(
        unit=xp.where(late, 0.0 * found.unit, found.unit),
        status=xp.where(late, 0 * found.status, found.status),
        counts=xp.where(xp.any(late, axis=0), kept, found.counts),
    )


def _numbers(rows: int, counts: Array) -> Array:
    """Return the numbers of rows, (rows, 1, ..., 1), beside counts of shape batch."""
    xp = array_namespace(counts)
    numbers = xp.arange(rows, dtype=counts.dtype, device=device(counts))
    return xp.reshape(numbers, (rows, *(1,) * counts.ndim))  # type: ignore[no-any-return]


def most_rows(counts: Array, rows: int, like: Array) -> Array:
    """Return the number of rows of the problem that has the most of them, as a float like another array."""
    xp = array_namespace(like)
    most = xp.astype(xp.max(counts), like.dtype)
    return xp.where(most > rows, full(most, float(rows)), most)  # type: ignore[no-any-return]
