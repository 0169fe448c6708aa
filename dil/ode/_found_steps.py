"""The steps that a search found, and their derivative: that of the method on this mesh, with its stages known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

from dil._base.arrays import array_namespace, full, nonzero_or_one
from dil._base.typing import Array, Arrays
from dil._frameworks.forward_mode import jvp_from_vjp
from dil._frameworks.protocol import Backend
from dil.ode._adaptive import Mesh
from dil.ode._sweep import with_first


class FoundSteps(NamedTuple):
    """The steps of a search. There may be more rows than steps were taken; their lengths are zero."""

    states: Array
    """At the end of each step, (steps, *batch, n)."""
    slopes: Array
    bulges: Array
    """See `Advanced`; zero where the method has none."""
    first_slope: Array
    """At the start, (*batch, n)."""
    begins: Array
    """Shape (steps,), or (steps, *batch) with own steps, like the lengths."""
    lengths: Array
    stages: Array
    """The solutions of the stages, (steps, stages, *batch, n)."""
    taken: Array
    """Shape (), or batch with own steps, like `rejected`."""
    rejected: Array
    status: Array
    failed: Array
    iterations: Array
    linear: Array
    last: Array
    """The state at the end of the last step, (*batch, n)."""
    changes: Array
    """The numbers of steps after which the method changes; empty for one method."""
    marks: Array | None = None
    """The crossings of events, (steps, events, *batch, SAMPLES), if there are events (see `Watched`)."""

    @property
    def arrays(self) -> Arrays:
        """The fields that are there."""
        return tuple(x for x in self if x is not None)

    @property
    def moving(self) -> Arrays:
        """The fields that have a derivative."""
        return (self.states, self.slopes, self.bulges, self.first_slope)

    @property
    def most_taken(self) -> Array:
        """The number of steps of the problem that takes most, shape ()."""
        return array_namespace(self.taken).max(self.taken) if self.taken.ndim else self.taken

    def shortened(self, backend: Backend) -> FoundSteps:
        """Return the steps that were taken, if their number can be read, or the first one, of no length."""
        count = backend.loops.number(backend.constant(self.most_taken))
        if not isinstance(count, float):
            return self
        return self.with_rows(lambda x: x[: max(1, int(count)), ...])

    def knots(self, start: Array, backend: Backend, *, stretches: bool) -> Array:
        """Return the times between the steps, (steps + 1,) or (steps + 1, *batch), which begin at `start`.

        They are constants but for the first one. A mesh that `stretches` keeps the ratios of its lengths: if `start`
        moves, all times but the last one move in proportion. A method of two steps uses the ratio of two lengths. If
        the first time moved alone, the derivative of that ratio would divide the rounding of a state by the length of
        the first step, which is tiny where an entry of the state is.
        """
        ends = self.begins + self.lengths
        knots = with_first(full(ends[0, ...], 0.0) + start, ends)
        if not stretches:
            return knots
        fixed = backend.constant(knots)
        last = fixed[-1, ...]
        share = (last - fixed) / nonzero_or_one(last - fixed[0, ...])
        return fixed + share * (start - backend.constant(start))

    def with_rows(self, fn: Callable[[Array], Array]) -> FoundSteps:
        """Return the steps with fn of each array that has a row for each step."""
        names = ("states", "slopes", "bulges", "begins", "lengths", "stages")
        marks = None if self.marks is None else fn(self.marks)
        return self._replace(marks=marks, **{name: fn(getattr(self, name)) for name in names})

    @property
    def runs(self) -> list[FoundSteps]:
        """The runs of steps of one method, one after the other."""
        inner = [int(self.changes[i]) for i in range(self.changes.shape[0])]
        places = pairwise((0, *inner, self.begins.shape[0]))
        return [self.with_rows(itemgetter((slice(*at), ...)))._replace(taken=self.taken - at[0]) for at in places]


def steps_of(mesh: Mesh, first_slope: Array, end: Array, last: Array, changes: Array | None = None) -> FoundSteps:
    """Return the steps of a mesh that leads to the time `end` and to the state `last`."""
    xp = array_namespace(mesh.ends)
    states, slopes, *bulges = (xp.moveaxis(mesh.ends[i, ...], -2, 0) for i in range(mesh.ends.shape[0]))
    grid = xp.moveaxis(mesh.grid, -2, 0)
    begins, lengths = grid[..., 0], grid[..., 1]
    begins = xp.where(lengths > 0, begins, 0.0 * begins + end)
    bulges = bulges or [xp.zeros_like(slopes)]
    stages, none = xp.moveaxis(mesh.stages, -2, 0), begins[:0, ...]
    known = (states, slopes, bulges[0], first_slope, begins, lengths, stages, *mesh[3:-1], last)
    return FoundSteps(*known, none if changes is None else changes)


Sweep = Callable[[Array, Array, Arrays, FoundSteps], Arrays]
"""`sweep(y0, start, arrays, steps)` returns the first four fields of the steps again, with their derivatives."""
MOVING = 4
"""The number of fields of `FoundSteps` that have a derivative. They come first."""


@dataclass(frozen=True)
class FoundRule:
    """The derivative of found steps as functions of (y0, t, *arrays), by a sweep over them."""

    backend: Backend
    sweep: Sweep

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return the cotangents of the arguments, by one sweep over the steps and back."""
        given = FoundSteps(*(full(x, 0.0) if v is None else v for v, x in zip(cotangents, y, strict=True)))
        steps = self._steps(y)
        given = given.with_rows(lambda x: x[: steps.begins.shape[0], ...])
        _, pull = self.backend.vjp(self._function(args, steps, wrt), *(args[i] for i in wrt))
        return pull(given.moving)

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return the tangents of the steps; those of rows that were not taken, and of the mesh, are zero."""
        zeros = tuple(full(x, 0.0) for x in y)
        wrt = [i for i, tangent in enumerate(tangents) if tangent is not None]
        if not wrt:
            return zeros
        steps = self._steps(y)
        fn = self._function(args, steps, wrt)
        _, moved = jvp_from_vjp(self.backend, fn, [args[i] for i in wrt], [tangents[i] for i in wrt])
        taken, xp = steps.begins.shape[0], array_namespace(moved[0])
        *states, first_slope = moved
        rows = (xp.concat([x, zero[taken:, ...]]) for x, zero in zip(states, zeros, strict=False))
        return (*rows, first_slope, *zeros[MOVING:])

    def _steps(self, y: Arrays) -> FoundSteps:
        return FoundSteps(*(self.backend.constant(x) for x in y)).shortened(self.backend)

    def _function(self, args: Arrays, steps: FoundSteps, wrt: Sequence[int]) -> Callable[..., Arrays]:
        def fn(*chosen: Array) -> Arrays:
            given = dict(zip(wrt, chosen, strict=True))
            y0, t, *arrays = (given.get(i, x) for i, x in enumerate(args))
            return self.sweep(y0, t[0], tuple(arrays), steps)

        return fn
