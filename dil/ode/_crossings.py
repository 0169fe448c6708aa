"""The events of a solve: their times and states, differentiable by the theorem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, full
from dil._base.errors import OptionError
from dil._base.status import Status
from dil._base.typing import Array, Arrays, Tree
from dil._diagnostics.failure_policy import Policy
from dil._frameworks.constants import as_constant
from dil._frameworks.loops import runs_later
from dil._frameworks.protocol import Backend
from dil._layers.first_calls import is_readable
from dil.ode._curve import Curve
from dil.ode._event_layer import IDLE, Place, event_layer
from dil.ode._events import EventFunction
from dil.ode._located import End, Located, Locator, most_rows
from dil.ode._verdict import Verdict


class Crossings(NamedTuple):
    """What a solve found of one event; `dil.ode.Trajectory` and `dil.ode.odeint` hold one for each event.

    The rows are the K events of a problem, in their order. Where operations run at once, K is the number of events, the
    largest in a batch. In a program of JAX, K is `max_events`, and rows of no event hold NaN.

    Attributes
    ----------
    t : float array, shape (K, *batch)
        The times.
    y : tree
        The states, like y0 with a leading dimension K.
    status : int array, shape (K, *batch)
        Codes of `dil.Status`: GRAZING where the time has no derivative, else CONVERGED.
    counts : int array, shape batch
        The number of events. It may be larger than K in a program of JAX: then the first K are there, and the status of
        the problem is MORE_EVENTS.

    Examples
    --------
    >>> import numpy as np, dil
    >>> slope = lambda t, y: np.cos(t) + 0 * y
    >>> found = dil.ode.solve(slope, np.asarray(0.0), [0.0, 9.0], rtol=1e-6, events=lambda t, y: y)
    >>> np.round(found.events[0].t / np.pi, 4), int(found.events[0].counts)
    (array([1., 2.]), 2)
    """

    t: Array
    y: Tree
    status: Array
    counts: Array


class EventRows(NamedTuple):
    """The events of one function: times (K, *batch), states (K, *batch, n), statuses (K, *batch), counts batch."""

    t: Array
    y: Array
    status: Array
    counts: Array


class Stop(NamedTuple):
    """Where events end the solve of each problem. The first two have derivatives."""

    t: Array
    """Shape batch; infinity where none does."""
    y: Array
    """The state there, (*batch, n)."""
    by: Array
    """The number of the event, from zero, shape batch; -1 if none does."""


@dataclass(frozen=True)
class Events:
    """The events of a call."""

    backend: Backend
    functions: tuple[EventFunction, ...]
    max_events: int
    rtol: float
    policy: Policy

    def __call__(self, curve: Curve, marks: Array, arrays: Arrays) -> tuple[tuple[EventRows, ...], Stop]:
        """Return the events of each function, and where they end the solve.

        marks: (steps, events, *batch, SAMPLES).
        """
        rows, locator = self._rows(marks), Locator(self.backend, self.functions, self.rtol)
        count = len(curve)

        def locate(*given: Array) -> Arrays:
            end, found = locator(Curve(*given[:count]), given[count], given[count + 1 :], rows)
            return (*end, *(x for each in found for x in each))

        flat = as_constant(self.backend, locate, *curve, marks, *arrays)
        end, size = End(*flat[:2]), len(Located._fields)
        found = [Located(*flat[i : i + size]) for i in range(2, len(flat), size)]
        reads = self._reads(marks)
        found = [each.first(self._largest(each.counts) if reads else self.max_events) for each in found]
        events = tuple(
            self._differentiable(function, curve, each, arrays)
            for function, each in zip(self.functions, found, strict=True)
        )
        return events, self._stop(events, end, curve.states[0, ...])

    def none(self, y0: Array, t: Array) -> tuple[tuple[EventRows, ...], Stop | None]:
        """Return the events of a solve without a step."""
        if not self.functions:
            return (), None
        xp, batch = array_namespace(y0), y0.shape[:-1]
        rows = 0 if self._reads(t) else self.max_events
        t, y = (full(y0, float("nan"), shape=s) for s in ((rows, *batch), (rows, *y0.shape)))
        zeros = full(y0, 0, shape=batch, dtype=xp.int32)
        each = EventRows(t, y, full(zeros, 0, shape=(rows, *batch)), zeros)
        return (each,) * len(self.functions), Stop(full(t, float("inf"), shape=batch), 0.0 * y0, zeros - 1)

    def _reads(self, x: Array) -> bool:
        """Return whether the number of rows may depend on values like x: JAX has one shape with `jit` and without."""
        return not runs_later(self.backend.loops, self.backend.constant(x)) and is_readable(self.backend, x)

    def _largest(self, counts: Array) -> int:
        return max((int(x) for x in self.backend.to_numpy(counts).reshape(-1)), default=0)

    def _rows(self, marks: Array) -> list[int]:
        """Return the number of rows of each function: the largest number of events, if it can be read.

        Else there is one row more than are kept. It tells whether the next event is before the end.
        """
        xp, reads = array_namespace(marks), self._reads(marks)
        if reads:
            counts = xp.sum(xp.astype(self.backend.constant(marks) != 0, xp.int32), axis=(0, -1))
            return [self._largest(counts[i, ...]) for i in range(len(self.functions))]
        for function in self.functions:
            if function.last is not None and function.last > self.max_events:
                message = (
                    f"{function.which} ends the solve at event number {function.last}, but a program that is "
                    f"compiled, or mapped over a batch, keeps max_events={self.max_events}; raise it"
                )
                raise OptionError(message)
        return [self.max_events + 1] * len(self.functions)

    def _differentiable(self, function: EventFunction, curve: Curve, found: Located, arrays: Arrays) -> EventRows:
        """Return the events with the derivative of the theorem."""
        begin, step = curve.steps(found.step)
        rows = found.t.shape[0]
        if rows == 0:
            return EventRows(begin, step.start, found.status, found.counts)
        xp, place = array_namespace(found.u), Place(begin, step, found.low, found.unit)
        idle = found.unit == 0
        u = xp.where(idle[..., None], full(found.u, IDLE), found.u)

        def solve(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
            *place, u = row
            here = Place.of(tuple(place))
            layer = event_layer(function, here, arrays, self.rtol, self.policy)
            return carry, here.at(layer(here, arrays, u))

        loops = self.backend.loops
        # a mapped program runs no loop whose length depends on values
        count = most_rows(found.counts, rows, u) if runs_later(loops, u) else None
        t, y = loops.scan(solve, (), (*place.arrays, u), count)[1]
        return EventRows(_with_nan(t, idle), _with_nan(y, idle[..., None]), found.status, found.counts)

    def _stop(self, rows: Sequence[EventRows], end: End, like: Array) -> Stop:
        """Return where the solve ends, with the derivatives of the event that ends it."""
        t, y = end.t, 0.0 * like
        for i, (function, each) in enumerate(zip(self.functions, rows, strict=True)):
            last = function.last
            if last is None or each.t.shape[0] < last:
                continue
            here, xp = end.by == i, array_namespace(each.t, each.y)
            t = xp.where(here, each.t[last - 1, ...], t)
            y = xp.where(here[..., None], each.y[last - 1, ...], y)
        return Stop(t, y, end.by)


def with_lost_events(verdict: Verdict, events: Sequence[EventRows], begins: Array) -> Verdict:
    """Return the verdict with MORE_EVENTS where there are more events than rows, from the time of the last row on.

    begins: (*batch, steps) or (steps,), where the steps begin.
    """
    for each in events:
        rows = each.t.shape[0]
        if rows == 0:
            continue
        xp = array_namespace(verdict.status)
        earlier = (verdict.status == int(Status.MORE_EVENTS)) & (each.t[-1, ...] < verdict.begin)
        lost = (each.counts > rows) & ((verdict.status == 0) | earlier)
        last = xp.where(lost, each.t[-1, ...], 0.0 * verdict.status)
        step = xp.sum(xp.astype(begins < last[..., None], last.dtype), axis=-1)
        verdict = Verdict(
            xp.where(lost, full(last, float(Status.MORE_EVENTS)), verdict.status),
            xp.where(lost, step, verdict.step),
            xp.where(lost, last, verdict.begin),
            verdict.length,
            verdict.residual,
        )
    return verdict


def held(stop: Stop, rows: Array, t: Array, backend: Backend) -> Array:
    """Return the states at the times t, (T, *batch, n), with that of the end at all later times."""
    times = backend.constant(t)[(slice(None), *(None,) * (rows.ndim - 2))]
    after = times > backend.constant(stop.t)
    return array_namespace(rows, stop.y).where(after[..., None], stop.y[None, ...], rows)  # type: ignore[no-any-return]


def _with_nan(x: Array, idle: Array) -> Array:
    return array_namespace(x).where(idle, full(x, float("nan")), x)  # type: ignore[no-any-return]
