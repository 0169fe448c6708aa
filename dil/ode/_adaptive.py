"""Adaptive steps: the mesh is found first, from estimates of the local error and without derivatives.

The gradient is that of the method on the mesh that was found. The mesh itself is held constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from dil._base.arrays import (
    array_namespace,
    device,
    eps,
    full,
    inner,
    logical_not,
    max_abs,
    nonzero_max_abs,
    nonzero_or_one,
    select,
)
from dil._base.scalars import Scalar, any_of, filled, greater, indicator, is_finite, smaller, sqrt
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil._frameworks.loops import Loops
from dil.ode._dense import Segment
from dil.ode._few_steps import Attempted, Log
from dil.ode._list_log import ListLog
from dil.ode._methods import Method, Stages
from dil.ode._watch import Watch, Watched

LEAST_LIFE = 1e-4
"""The change of the state in one of the shortest steps, relative to the state, from which on it has a pole there."""
PI = (0.6, 0.2)
"""The exponents of this error and of the last one, in units of 1 / (power of h in the error)."""


@dataclass(frozen=True)
class Control:
    """The options of adaptive steps.

    A step may have an error of rtol |y| + atol, in the root mean square over the entries of each problem.
    """

    rtol: float
    atol: Any
    """A number, or NumPy's numbers for each entry of the vectors.

    None: 1e-3 rtol times the largest value that an entry has had, and `noise`.
    """
    first_step: float | None
    max_steps: int
    max_step: float | None = None
    noise: float = 4.0
    """The error that rounding may leave, in eps of the largest value of all."""

    def of_estimate(self, method: Method) -> Control:
        """Return the tolerances of the estimate of a method whose error is smaller than its estimate.

        Where the error is of the order h^6 and the estimate of the order h^4, the error follows rtol if the estimate
        follows rtol^(2/3). The factor is that of Hairer and Wanner's program RADAU5.
        """
        if not method.is_sharper:
            return self
        factor = 0.1 * self.rtol ** (-1.0 / 3.0)
        return replace(self, rtol=factor * self.rtol, atol=None if self.atol is None else factor * self.atol)

    def limited(self, h: Array) -> Array:
        """Return a step size that is no longer than the longest one."""
        if self.max_step is None:
            return h
        return array_namespace(h).where(h > self.max_step, full(h, self.max_step), h)  # type: ignore[no-any-return]

    def allowed(self, y: Array, largest: Array) -> Array:
        """Return the error that each entry of y may have; never zero. `largest` are the largest values so far."""
        xp = array_namespace(y)
        if isinstance(self.atol, float | int):
            return self.atol + self.rtol * y
        if self.atol is not None:
            return xp.asarray(self.atol, dtype=y.dtype, device=device(y)) + self.rtol * y  # type: ignore[no-any-return]
        noise = self.noise * eps(xp, y.dtype) * max_abs(largest)[..., None]
        found = self.rtol * (y + 1e-3 * largest) + noise
        return xp.where(found == 0, 1.0, found)  # type: ignore[no-any-return]


class Mesh(NamedTuple):
    """The steps that were found, the solutions of their stages, and counts of the search.

    The first three fields have one row for each of max_steps steps, in the dimension before the last. Rows of steps
    that were not taken are zero.
    """

    grid: Array
    """Begin and length, (max_steps, 2), or (*batch, max_steps, 2) with own steps."""
    ends: Array
    """The state at the end of the step, the slope there, and the bulge of the step if the method has one.

    Shape (2 or 3, *batch, max_steps, n).
    """
    stages: Array
    """The solutions of the stages, (stages, *batch, max_steps, n)."""
    taken: Scalar
    """Shape (), or batch with own steps, like `rejected`. During a search, numbers that can be read are Python's."""
    rejected: Scalar
    status: Scalar
    """Shape batch, like the fields below."""
    failed: Scalar
    """Where the failed step begins; infinity if none failed."""
    iterations: Scalar
    linear: Scalar
    place: Any = 0
    """The row of the next step: a Python integer where no program is traced, and an array batch with own steps."""


class StepMaker(Protocol):
    """Makes the stages of each step of a search, and chooses what the steps keep for the next ones."""

    def first(self, y: Array, t: Array, slope: Array) -> Arrays:
        """Return what the first step is given."""
        ...

    @property
    def stages(self) -> Callable[[Array, Array, Array, Array, Arrays], SearchStages]:
        """Return the stages of a step, `stages(t, y, slope, allowed, kept)`, whose error may be `allowed`."""
        ...


class SearchStages(Stages, Protocol):
    """The stages of one step of a search."""

    @property
    def solutions(self) -> list[Array]:
        """The solutions of the stages so far."""
        ...

    @property
    def end(self) -> Arrays: ...
    @property
    def outcome(self) -> tuple[Scalar, ...]:
        """The first failed status, the iterations and the linear iterations, shape batch."""
        ...

    def induced(self, error: Array, y: Array, t: Array) -> Array:
        """Return the error of the state y at t from an estimate that holds for M y alone."""
        ...

    @property
    def may_try_again(self) -> Scalar:
        """Whether a step of the same size may succeed, if a stage of this one did not converge."""
        ...

    def after(self, taken: Scalar) -> Arrays:
        """Return what the next attempt is given."""
        ...


class Search(NamedTuple):
    """The state of the search after an attempt at a step."""

    t: Array
    h: Array
    y: Array
    slope: Array
    memory: Arrays
    mesh: Mesh
    largest: Array
    """The largest |y| so far, entry by entry."""
    was_taken: Scalar
    """Whether the last attempt was taken. After a rejected one the step does not grow."""
    error: Scalar
    """The largest error of the last step that was taken, as a share of what is allowed."""
    length: Array
    """The length of that step."""
    active: Scalar
    kept: Arrays
    watched: Watched = Watched()
    slot: Any = ()
    """See `Log`."""


class FoundMesh(NamedTuple):
    """The mesh, the state at its end, the slope at the start, what is known of the events, and what a log wrote."""

    mesh: Mesh
    last: Array
    first_slope: Array
    watched: Watched
    written: Arrays


Attempts = Callable[[Method, StepMaker, Control], Callable[[Search], Search]]
"""`attempts(method, steps, control)` returns an attempt at a step of a method."""


class Turns(Protocol):
    """Makes the attempts of a search by several methods."""

    @property
    def stages(self) -> int:
        """The largest number of stages that a step keeps."""
        ...

    def __call__(self, attempts: Attempts, s: Search, /) -> tuple[Search, Array]:
        """Make attempts until the end. Return the state and the numbers of steps after which the method changes."""
        ...


def find_mesh(
    method: Method,
    steps: StepMaker,
    loops: Loops,
    control: Control,
    y: Array,
    t: tuple[Array, Array],
    watch: Watch | None = None,
    begun: Array | None = None,
    log: Log | ListLog | None = None,
    turns: Turns | None = None,
    *,
    cut: bool = False,
) -> FoundMesh:
    """Return the mesh from t[0] to t[1]. With `cut`, nobody reads the rows of steps that are not taken.

    `begun` is the status of the start, shape batch: problems that failed there end there. With a `log`, a recorded
    program writes there what it keeps, and the mesh has no rows. With `turns`, other methods
    follow the first one.

    All problems of a batch share each step. The problem with the largest error sets the step size. A step is taken if
    every stage converged and every error is allowed. If a problem fails at a step within rounding, it ends there and
    the others go on. The factor of the step size is that of Hairer, Nørsett and Wanner 1993, II.4.
    """
    xp, (start, end), loop = array_namespace(y), t, loops.while_loop
    first = method.starter or method
    zero_slope = full(y, 0.0)
    before = steps.stages(start, y, zero_slope, zero_slope, steps.first(y, start, zero_slope))
    slope = before.slope(start, (y,))[0]
    h = first_step(control, first, lambda h: before.slope(start + h, (y + h * slope,))[0], y, slope, end - start)
    active = loops.number(end > start)
    memory = () if first.continues else first.begin(before, (y,), start)
    kept = steps.first(y, start, slope)
    stages = max(method.stages, first.stages, 0 if turns is None else turns.stages)
    mesh = _no_steps(method, loops, (control.max_steps if log is None else 0, stages), y, start, cut=cut)
    if begun is not None:
        status = loops.number(begun)
        failed = select(status != 0, 0.0 * status + loops.number(start), mesh.failed)
        mesh, active = mesh._replace(status=status, failed=failed), active & any_of(status == 0)
    watched = Watched() if watch is None else watch.first(start, y, slope, h, control.max_steps)
    state = Search(
        start, h, y, slope, memory, mesh, xp.abs(y), active, 0.0 * mesh.taken + 1.0, h, active, kept, watched
    )
    attempt = _Attempt(steps, loops, control, end, watch, log)
    if method.starter is not None:
        state = loop(lambda s: s.active & (s.mesh.taken < 1), lambda s: attempt(first, s), state)
        state = state._replace(memory=(y, state.t - start))
    if turns is not None:
        last, changes = turns(lambda m, s, c: partial(replace(attempt, steps=s, control=c), m), state)
        written: Arrays = (changes,)
    elif log is None:
        last = loop(lambda s: s.active, lambda s: attempt(method, s), state)
        written = ()
    else:
        last, written = attempt.logged(log, method, state)
    incomplete = loops.number(last.t < end) & (last.mesh.status == 0) & logical_not(last.watched.ended)
    status = select(incomplete, filled(last.mesh.status, float(Status.MAX_ITER)), last.mesh.status)
    failed = select(incomplete, 0.0 * last.mesh.status + last.t, last.mesh.failed)
    return FoundMesh(
        _in_arrays(last.mesh._replace(status=status, failed=failed), y), last.y, slope, last.watched, written
    )


def _in_arrays(mesh: Mesh, y: Array) -> Mesh:
    """Return the mesh with arrays in the places of Python numbers."""
    *arrays, taken, rejected, status, failed, iterations, linear, _ = mesh
    numbers = (taken, rejected, status, failed, iterations, linear)
    return Mesh(*arrays, *(full(y, x, shape=()) if isinstance(x, float) else x for x in numbers))


def _no_steps(method: Method, loops: Loops, room_for: tuple[int, int], y: Array, start: Array, *, cut: bool) -> Mesh:
    """Return a mesh with room for so many steps of so many stages. With `cut`, the room holds no numbers."""
    xp, (*batch, n), (count, stages) = array_namespace(y), y.shape, room_for

    none, zero = loops.number(full(start, 0.0)), loops.number(full(y[..., 0], 0.0))
    never = zero + float("inf")

    def room(*shape: int) -> Array:
        return (xp.empty if cut else xp.zeros)(shape, dtype=y.dtype, device=device(y))  # type: ignore[no-any-return]

    grid = xp.zeros((count, 2), dtype=y.dtype, device=device(y))
    buffers = grid, room(2 + method.bulges, *batch, count, n), room(stages, *batch, count, n)
    return Mesh(*buffers, none, none, zero, never, zero, zero)


def first_step(
    control: Control, method: Method, slope_after: Callable[[Array], Array], y: Array, slope: Array, span: Array
) -> Array:
    """Return a step whose error is about a hundredth of what is allowed (Hairer, Nørsett and Wanner 1993, II.4).

    `slope_after(h)` is the slope after a step of Euler's method. Norms are relative to the error allowed. The step is
    at most a hundred times as long as 0.01 |y| / |dy/dt|, and at most the span. A span of shape () asks for one step
    that all problems share, and a column, (*batch, 1), for a step of each.
    """
    xp = array_namespace(y)
    if control.first_step is not None:
        return control.limited(full(span, control.first_step))

    def over(sizes: Array) -> Array:
        return sizes[..., None] if span.ndim else xp.max(sizes)

    scale = control.allowed(xp.abs(y), xp.abs(y))
    size, speed = over(nonzero_max_abs(y / scale)[..., 0]), over(max_abs(slope / scale))
    h = 0.01 * size / nonzero_or_one(speed)
    moves = (size > 1e-5) & (speed > 1e-5) & xp.isfinite(h)
    h = xp.where(moves, h, 1e-6 * span)
    h = xp.where(h < span, h, span)
    # a slope that changes at the rate w belongs to an error of speed / w (w h)^k
    change = over(max_abs((slope_after(h) - slope) / scale))
    rate = change / nonzero_or_one(speed * h)
    assert method.error_order is not None
    longer = (0.01 * rate / nonzero_or_one(speed)) ** (1.0 / method.error_order) / nonzero_or_one(rate)
    longer = xp.where(rate > 0, longer, 100.0 * h)
    longer = xp.where(moves & xp.isfinite(longer) & xp.isfinite(rate), longer, h)
    return control.limited(xp.min(xp.stack([longer, 100.0 * h, span]), axis=0))


@dataclass(frozen=True)
class _Attempt:
    """An attempt at a step, as a function of the state of the search."""

    steps: StepMaker
    loops: Loops
    control: Control
    end: Array
    watch: Watch | None = None
    log: Log | ListLog | None = None

    def logged(self, log: Log | ListLog, method: Method, s: Search) -> tuple[Search, Arrays]:
        """Make attempts until the end. Return the last state of the search, and what the log wrote."""
        slot, memories = log.first(s.y, s.slope, s.memory, s.t)

        def attempt(s: Search) -> tuple[Search, Any]:
            new = self(method, s)
            slot, writes = new.slot
            return new._replace(slot=slot), writes

        if isinstance(log, ListLog):
            last: Search = self.loops.while_loop(lambda s: s.active, lambda s: attempt(s)[0], s._replace(slot=slot))
            return last, ()
        assert self.loops.recorded is not None
        return self.loops.recorded.fill(lambda s: s.active, attempt, s._replace(slot=slot), memories)

    def __call__(self, method: Method, s: Search) -> Search:
        xp, control, read, size = array_namespace(s.y), self.control, self.loops.number, array_namespace(s.y).abs(s.y)
        shortest = self._shortest(s)
        final = read(s.t + s.h >= self.end - shortest)
        h = select(final, self.end - s.t, s.h)
        steps = self.steps if self.watch is None else self.watch.going(self.steps, s.watched)
        stages = steps.stages(s.t, s.y, s.slope, control.allowed(size, s.largest), s.kept)
        new = method.advance(stages, (s.y,), (s.slope,) if method.continues else s.memory, s.t, h)
        assert new.error is not None
        (y,), slope = new.y, stages.end[0] if new.slope is None else new.slope[0]
        larger = xp.maximum(xp.abs(y), size)
        largest = xp.maximum(larger, s.largest)
        raw = new.error()[0] if method.estimates_all else stages.induced(new.error()[0], y, s.t + h)
        scaled = raw / control.allowed(larger, largest)
        error = sqrt(read(inner(scaled, scaled) / scaled.shape[-1]))
        outcome = tuple(x if isinstance(x, float) else read(x) for x in stages.outcome)
        judged = self._judge(s, h, error, (outcome[0], stages.may_try_again), tiny=read(h <= shortest))
        taken, mesh = judged.taken, s.mesh
        t = select(final, self.end, s.t + h)
        mesh = mesh._replace(
            rejected=mesh.rejected + indicator(logical_not(taken | judged.again), mesh.rejected),
            status=judged.status,
            failed=select(judged.fails, 0.0 * mesh.status + read(s.t), mesh.failed),
            iterations=mesh.iterations + outcome[1],
            linear=mesh.linear + outcome[2],
        )
        ends = (y, slope) if new.bulge is None else (y, slope, new.bulge()[0])
        slot = s.slot
        if self.log is None:
            mesh = self._append(mesh, taken, (s.t, h), ends, stages.solutions)
        else:
            segment = (s.y, y, s.slope, slope, *ends[2:])
            made = Attempted(taken, mesh.place, s.t, h, t, y, slope, new.memory, largest, segment, stages.solutions)
            mesh, slot = _counted(mesh, taken), self.log.entry(slot, made)
        mesh, watched = self._watched(s, mesh, taken, Segment(h, s.y, y, s.slope, slope, (*ends, None)[2]))
        t = select(taken, t, s.t)
        going = (mesh.status == 0) & logical_not(watched.ended)
        alive = self._any(going) & (mesh.taken < control.max_steps)
        return Search(
            t,
            control.limited(select(judged.again, h, h * self._factor(method, judged.error, s))),
            select(taken, y, s.y),
            select(taken, slope, s.slope),
            tuple(select(taken, a, b) for a, b in zip(new.memory, s.memory, strict=False)),
            mesh,
            select(taken, largest, s.largest),
            select(judged.again, s.was_taken, taken),
            select(taken, judged.error, s.error),
            select(taken, h, s.length),
            read(t < self.end) & alive,
            stages.after(taken),
            watched,
            slot,
        )

    def _watched(self, s: Search, mesh: Mesh, taken: Scalar, step: Segment) -> tuple[Mesh, Watched]:
        """Return the mesh with the failures of events in a new step, and what is known of the events."""
        if self.watch is None:
            return mesh, s.watched
        over = (mesh.status != 0) | s.watched.ended
        watched = self.watch.look(s.watched, s.t, step, taken, over, s.mesh.place)
        broken = watched.broken & (mesh.status == 0)
        status = select(broken, filled(mesh.status, float(Status.EVENT_NON_FINITE)), mesh.status)
        failed = select(broken, 0.0 * mesh.status + self.loops.number(s.t), mesh.failed)
        return mesh._replace(status=status, failed=failed), watched

    def _shortest(self, s: Search) -> Array:
        """Return the length of a step within rounding."""
        return 16 * eps(array_namespace(s.y), s.y.dtype) * (abs(s.t) + 1e-3 * abs(self.end - s.t))

    def _judge(self, s: Search, h: Array, error: Scalar, stages: tuple[Scalar, Scalar], *, tiny: Scalar) -> Judged:
        """Return what becomes of an attempt, from its error, and the status and `may_try_again` of its stages."""
        ended, (stage_status, may_try_again) = (s.mesh.status != 0) | s.watched.ended, stages
        solved = stage_status == 0
        allowed = solved & (error <= 1)  # False for NaN
        going = logical_not(ended)
        unsolved = going & logical_not(solved)
        again = may_try_again & self._any(unsolved)
        large = select(solved & is_finite(error), error, filled(error, 1e10))
        large = select(going, large, filled(error, 0.0))
        # near a pole the allowed steps may shrink without end: stop if t + h rounds to t
        stuck = self.loops.number(s.t + h == s.t) & (large == self._largest(large))
        fails = ((tiny & logical_not(allowed)) | stuck) & going & logical_not(again)
        if fails is False:
            code = stage_status
        else:
            # a state that would double within a few thousand of the shortest steps grows without bound
            speed, size = (self.loops.number(max_abs(x)) for x in (s.slope, s.y))
            pole = speed * self.loops.number(self._shortest(s)) >= LEAST_LIFE * size
            stuck_at, broken = filled(error, float(Status.STAGNATED)), filled(error, float(Status.NON_FINITE))
            code = select(solved, select(is_finite(error), stuck_at, broken), stage_status)
            code = select(pole & is_finite(speed), filled(error, float(Status.DIVERGED)), code)
        status = select(fails, code, s.mesh.status)
        done = (status != 0) | s.watched.ended
        taken = logical_not(self._any(logical_not(allowed | done)))
        return Judged(taken, again, fails, status, self._largest(select(done, filled(error, 0.0), large)))

    def _any(self, mask: Scalar) -> Scalar:
        """Return whether a mask holds for any problem."""
        return mask if isinstance(mask, bool) else self.loops.number(any_of(mask))

    def _largest(self, x: Scalar) -> Scalar:
        """Return the largest of the numbers of all problems."""
        return x if isinstance(x, float) else self.loops.number(array_namespace(x).max(x))

    def _factor(self, method: Method, error: Scalar, s: Search) -> Scalar:
        """Return the factor of the step size: PI (Söderlind 2003), or Gustafsson's (Hairer and Wanner 1996, IV.8.25).

        Two-step methods are stable only up to 2.4.
        """
        assert method.error_order is not None
        k, least = method.error_order, filled(error, 1e-6)
        now, before = greater(error, least), greater(s.error, least)
        alone = 0.9 * now ** (-1.0 / k)
        if method.predicts:
            # the error goes on to change as it did from the last step that was taken to this one
            both = smaller(alone, alone * self.loops.number(s.h / s.length) * (before / now) ** (1.0 / k))
            factor = select(error <= 1, both, alone)
        else:
            # 0.9 is the factor at which both settle
            both = 0.9 ** (PI[0] - PI[1]) * now ** (-PI[0] / k) * before ** (PI[1] / k)
            factor = select((error <= 1) & s.was_taken, both, alone)
        largest = select(s.was_taken, filled(error, 5.0 if method.starter is None else 2.0), filled(error, 1.0))
        factor = greater(smaller(factor, largest), filled(error, 0.2))
        return select((factor > 1) & (factor < method.steady), filled(error, 1.0), factor)

    def _append(
        self, mesh: Mesh, taken: Scalar, step: tuple[Array, Array], end: Arrays, solutions: list[Array]
    ) -> Mesh:
        """Return the mesh with one more step if it was taken."""
        xp, place = array_namespace(end[0]), mesh.place

        def with_row(memory: Array, values: Sequence[Array]) -> Array:
            new = xp.stack(list(values))
            if not isinstance(taken, bool):
                new = xp.where(taken, new, 0.0)
            return self.loops.set_row(memory, place, new)

        if taken is False:
            return mesh
        missing = mesh.stages.shape[0] - len(solutions)
        solutions = solutions + [solutions[-1]] * missing if solutions else []
        return _counted(mesh, taken)._replace(
            grid=with_row(mesh.grid, step),
            ends=with_row(mesh.ends, end),
            stages=with_row(mesh.stages, solutions) if solutions else mesh.stages,
        )


def _counted(mesh: Mesh, taken: Scalar) -> Mesh:
    """Return the mesh with one more step counted, if it was taken."""
    place = mesh.place
    more = int(taken) if isinstance(place, int) else array_namespace(taken).astype(taken, place.dtype)
    return mesh._replace(taken=mesh.taken + indicator(taken, mesh.taken), place=place + more)


class Judged(NamedTuple):
    """What becomes of an attempt. `fails` and `status` are scalars of each problem."""

    taken: Scalar
    again: Scalar
    """Whether it is made again with the same step."""
    fails: Scalar
    status: Scalar
    error: Scalar
    """The largest error of the problems that go on."""
