"""What a search keeps where operations run at once, if the user chooses how many states."""

from __future__ import annotations

from typing import Any

from dil._base.arrays import array_namespace, full
from dil._base.typing import Array, Arrays
from dil.ode._few_steps import Attempted, FewSteps, Parts, holds_time


class ListLog:
    """Lists of the ends of all steps, the steps with output times, and what every k-th step begins from.

    k is doubled, and every second state is dropped, when there are more states than `kept`.
    """

    def __init__(self, times: Array, kept: int, parts: Parts) -> None:
        self.times, self.kept, self.parts = times, kept, parts
        self.spacing = 1
        self.ends: list[Array] = []
        self.starts: list[Arrays] = []
        self.rows: list[tuple[Array, Array]] = []
        self.pending: tuple[Array, Array] | None = None
        """The last step, if no output time is known to lie in it. A time after the end counts as one at its end."""

    def first(self, y: Array, slope: Array, memory: Arrays, start: Array) -> tuple[Any, Arrays]:
        """Keep what the first step begins from."""
        self.starts.append(self.parts(y, slope, memory, array_namespace(y).abs(y), start))
        return (), ()

    def entry(self, slot: Any, step: Attempted) -> tuple[Any, Arrays]:
        """Keep what is needed of an attempt, if it was taken."""
        if not step.taken:
            return (), ()
        xp = array_namespace(step.y)
        self.ends.append(step.end)
        self.pending = xp.stack(list(step.segment)), xp.stack([step.t, step.h])
        if bool(holds_time(self.times, step)):
            self.rows.append(self.pending)
            self.pending = None
        if len(self.ends) % self.spacing == 0:
            self.starts.append(self.parts(step.y, step.slope, step.memory, step.largest, step.end))
        if len(self.starts) > self.kept:
            self.starts, self.spacing = self.starts[::2], 2 * self.spacing
        return (), ()

    def found(self, counts: Arrays, last: Array) -> FewSteps:
        """Return what was kept. Where no step was taken, there is one of no length."""
        xp, (y, *_) = array_namespace(last), self.starts[0]
        rows = self.rows if self.pending is None else [*self.rows, self.pending]
        if not rows:
            zero = full(y, 0.0, shape=(4 + self.parts.method.bulges, *y.shape))
            rows = [(zero, full(y, 0.0, shape=(2,)))]
        segments, bounds = (xp.stack(list(x)) for x in zip(*rows, strict=True))
        ends = xp.stack(self.ends) if self.ends else full(y, 0.0, shape=(0,))
        starts = (xp.stack(list(x)) for x in zip(*self.starts, strict=True))
        taken, rejected, status, failed, iterations, linear = counts
        spacing = full(y, float(self.spacing), shape=())
        rest = (spacing, *starts)
        return FewSteps(ends, segments, bounds, taken, rejected, status, failed, iterations, linear, last, rest)
