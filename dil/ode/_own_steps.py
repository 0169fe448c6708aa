"""Adaptive steps of a batch in which each problem has its own: its own times, lengths, rejections and end.

Times and lengths are columns, (*batch, 1). All problems make an attempt at once. One that has ended makes it with a
length of zero, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, eps, full, inner, max_abs
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil._frameworks.loops import Loops
from dil.ode._adaptive import LEAST_LIFE, PI, Control, FoundMesh, Mesh, StepMaker, first_step
from dil.ode._dense import Segment
from dil.ode._methods import Method
from dil.ode._watch import Watch, Watched


class OwnSearch(NamedTuple):
    """The state of the search after an attempt. Masks, times, lengths and errors are columns, (*batch, 1)."""

    t: Array
    h: Array
    y: Array
    slope: Array
    memory: Arrays
    mesh: Mesh
    """With own steps, `grid` is (*batch, max_steps, 2), and all counts have shape batch."""
    largest: Array
    was_taken: Array
    error: Array
    going: Array
    """Which problems go on."""
    kept: Arrays
    watched: Watched = Watched()


def find_own_meshes(
    method: Method,
    steps: StepMaker,
    loops: Loops,
    control: Control,
    y: Array,
    t: tuple[Array, Array],
    watch: Watch | None = None,
    begun: Array | None = None,
) -> FoundMesh:
    """Return what `find_mesh` returns, where each problem has its own steps."""
    xp, zero = array_namespace(y), full(y[..., :1], 0.0)
    start, zero_slope, first = zero + t[0], full(y, 0.0), method.starter or method
    before = steps.stages(start, y, zero_slope, zero_slope, steps.first(y, start, zero_slope))
    slope = before.slope(start, (y,))[0]
    h = first_step(control, first, lambda h: before.slope(start + h, (y + h * slope,))[0], y, slope, t[1] - start)
    memory = () if first.continues else first.begin(before, (y,), start)
    mesh, going = _no_steps(method, control, y), start < t[1]
    if begun is not None:
        failed = xp.where(begun != 0, start[..., 0], mesh.failed)
        mesh, going = mesh._replace(status=begun, failed=failed), going & (begun == 0)[..., None]
    watched = Watched() if watch is None else watch.first(start, y, slope, h, control.max_steps)
    kept = steps.first(y, start, slope)
    state = OwnSearch(start, h, y, slope, memory, mesh, xp.abs(y), zero == 0, zero + 1.0, going, kept, watched)
    attempt = _OwnAttempt(steps, loops, control, t[1], watch)
    if method.starter is not None:
        state = _started(attempt, method.starter, state, start)
    last: OwnSearch = loops.while_loop(lambda s: xp.any(s.going), lambda s: attempt(method, s), state)
    mesh = last.mesh
    left = (last.t[..., 0] < t[1]) & (mesh.status == 0)
    if watch is not None:
        left = left & ~last.watched.ended
    status = xp.where(left, full(mesh.status, float(Status.MAX_ITER)), mesh.status)
    mesh = mesh._replace(status=status, failed=xp.where(left, last.t[..., 0], mesh.failed))
    return FoundMesh(mesh, last.y, slope, last.watched, ())


def _started(attempt: _OwnAttempt, starter: Method, first: OwnSearch, start: Array) -> OwnSearch:
    """Return the state after the first step of each problem, with the memory of a method of two steps."""
    xp, control = array_namespace(first.y), attempt.control

    def unfinished(s: OwnSearch) -> Array:
        return s.going & (s.mesh.taken[..., None] < 1)  # type: ignore[no-any-return]

    def advance(s: OwnSearch) -> OwnSearch:
        waiting = unfinished(s)
        after = attempt(starter, s._replace(going=waiting))
        # those that wait for the others go on later
        more = (s.going & ~waiting) | after.going
        return after._replace(going=more & (after.mesh.taken[..., None] < control.max_steps))

    last: OwnSearch = attempt.loops.while_loop(lambda s: xp.any(unfinished(s)), advance, first)
    return last._replace(memory=(first.y, last.t - start))


def _no_steps(method: Method, control: Control, y: Array) -> Mesh:
    """Return a mesh with room for all steps, and no step yet."""
    xp, count, (*batch, n) = array_namespace(y), control.max_steps, y.shape
    stages = max(method.stages, 0 if method.starter is None else method.starter.stages)

    def room(*shape: int) -> Array:
        return xp.zeros(shape, dtype=y.dtype, device=device(y))  # type: ignore[no-any-return]

    buffers = room(*batch, count, 2), room(2 + method.bulges, *batch, count, n), room(stages, *batch, count, n)
    zero = full(y[..., 0], 0.0)
    place = full(y[..., 0], 0, dtype=xp.int32)
    return Mesh(*buffers, zero, zero, zero, zero + float("inf"), zero, zero, place)


@dataclass(frozen=True)
class _OwnAttempt:
    """An attempt at a step of each problem, as a function of the state of the search."""

    steps: StepMaker
    loops: Loops
    control: Control
    end: Array
    watch: Watch | None = None

    def __call__(self, method: Method, s: OwnSearch) -> OwnSearch:
        xp, control, size = array_namespace(s.y), self.control, array_namespace(s.y).abs(s.y)
        shortest = 16 * eps(xp, s.y.dtype) * (xp.abs(s.t) + 1e-3 * xp.abs(self.end - s.t))
        final = s.t + s.h >= self.end - shortest
        h = xp.where(s.going, xp.where(final, self.end - s.t, s.h), 0.0 * s.h)
        steps = self.steps if self.watch is None else self.watch.going(self.steps, s.watched)
        stages = steps.stages(s.t, s.y, s.slope, control.allowed(size, s.largest), s.kept)
        new = method.advance(stages, (s.y,), (s.slope,) if method.continues else s.memory, s.t, h)
        assert new.error is not None
        (y,), slope = new.y, stages.end[0] if new.slope is None else new.slope[0]
        larger = xp.maximum(xp.abs(y), size)
        largest = xp.maximum(larger, s.largest)
        raw = new.error()[0] if method.estimates_all else stages.induced(new.error()[0], y, s.t + h)
        scaled = raw / control.allowed(larger, largest)
        error = xp.sqrt(inner(scaled, scaled) / scaled.shape[-1])[..., None]
        unsolved, *counts = (x[..., None] for x in stages.outcome)
        judged = _judge(s, h, shortest, error, unsolved, stages.may_try_again)
        taken = judged.taken
        mesh = self._counted(s, judged, counts)
        ends = (y, slope) if new.bulge is None else (y, slope, new.bulge()[0])
        mesh = self._append(mesh, taken, (s.t, h), ends, stages.solutions)
        t = xp.where(taken, xp.where(final, self.end, s.t + h), s.t)
        watched, mesh = self._watched(s, mesh, taken, Segment(h, s.y, y, s.slope, slope, (*ends, None)[2]))
        going = s.going & (mesh.status == 0)[..., None] & (t < self.end)
        going = going & (mesh.taken[..., None] < control.max_steps)
        if self.watch is not None:
            going = going & ~watched.ended[..., None]
        next_h = control.limited(xp.where(judged.again, h, h * _factor(method, judged.error, s)))
        return OwnSearch(
            t,
            xp.where(s.going, next_h, s.h),
            xp.where(taken, y, s.y),
            xp.where(taken, slope, s.slope),
            tuple(xp.where(taken, a, b) for a, b in zip(new.memory, s.memory, strict=False)),
            mesh,
            xp.where(taken, largest, s.largest),
            xp.where(judged.again | ~s.going, s.was_taken, taken),
            xp.where(taken, judged.error, s.error),
            going,
            stages.after(taken),
            watched,
        )

    def _counted(self, s: OwnSearch, judged: _Judged, counts: Sequence[Array]) -> Mesh:
        """Return the mesh with the statuses and the counts after an attempt, before its steps are written."""
        xp, mesh = array_namespace(s.y), s.mesh
        iterations, linear = (xp.where(s.going, x, 0.0 * x)[..., 0] for x in counts)
        rejected = s.going & ~(judged.taken | judged.again | judged.fails)
        return mesh._replace(
            rejected=mesh.rejected + xp.astype(rejected, s.y.dtype)[..., 0],
            status=xp.where(judged.fails, judged.code, mesh.status[..., None])[..., 0],
            failed=xp.where(judged.fails, s.t, mesh.failed[..., None])[..., 0],
            iterations=mesh.iterations + iterations,
            linear=mesh.linear + linear,
        )

    def _append(
        self, mesh: Mesh, taken: Array, step: tuple[Array, Array], ends: Arrays, solutions: list[Array]
    ) -> Mesh:
        """Return the mesh with one more step of the problems that have taken it."""
        xp = array_namespace(taken)

        def written(memory: Array, values: Sequence[Array]) -> Array:
            new = xp.stack(list(values))
            return self.loops.set_rows(memory, mesh.place, xp.where(taken, new, 0.0 * new))

        missing = mesh.stages.shape[0] - len(solutions)
        solutions = solutions + [solutions[-1]] * missing if solutions else []
        row = xp.where(taken, xp.concat(step, axis=-1), 0.0)
        return mesh._replace(
            grid=self.loops.set_rows(mesh.grid, mesh.place, row),
            ends=written(mesh.ends, ends),
            stages=written(mesh.stages, solutions) if solutions else mesh.stages,
            taken=mesh.taken + xp.astype(taken, mesh.grid.dtype)[..., 0],
            place=mesh.place + xp.astype(taken, mesh.place.dtype)[..., 0],
        )

    def _watched(self, s: OwnSearch, mesh: Mesh, taken: Array, step: Segment) -> tuple[Watched, Mesh]:
        """Return what is known of the events, and the mesh with the failures of events in a new step."""
        if self.watch is None:
            return s.watched, mesh
        xp = array_namespace(s.y)
        over = (mesh.status != 0) | s.watched.ended
        watched = self.watch.look(s.watched, s.t, step, taken[..., 0], over, s.mesh.place)
        broken = watched.broken & (mesh.status == 0)
        status = xp.where(broken, full(mesh.status, float(Status.EVENT_NON_FINITE)), mesh.status)
        return watched, mesh._replace(status=status, failed=xp.where(broken, s.t[..., 0], mesh.failed))


class _Judged(NamedTuple):
    """What becomes of an attempt of each problem: masks, and the error by which the step size changes."""

    taken: Array
    again: Array
    fails: Array
    code: Array
    """The status of those that fail."""
    error: Array


def _judge(s: OwnSearch, h: Array, shortest: Array, error: Array, status: Array, may_try_again: Array) -> _Judged:
    """Return what becomes of an attempt, from its error, and the status and `may_try_again` of its stages."""
    xp = array_namespace(error)
    solved = status == 0
    allowed = solved & (error <= 1)  # False for NaN
    again = s.going & ~solved & may_try_again
    # near a pole the allowed steps may shrink without end: stop if t + h rounds to t
    fails = (((h <= shortest) & ~allowed) | (s.t + h == s.t)) & s.going & ~again
    speed, size = (max_abs(x)[..., None] for x in (s.slope, s.y))
    pole = (speed * shortest >= LEAST_LIFE * size) & xp.isfinite(speed)
    stuck = xp.where(xp.isfinite(error), full(error, float(Status.STAGNATED)), float(Status.NON_FINITE))
    code = xp.where(solved, stuck, status)
    code = xp.where(pole, full(error, float(Status.DIVERGED)), code)
    large = xp.where(solved & xp.isfinite(error), error, full(error, 1e10))
    return _Judged(allowed & s.going & ~fails, again, fails, code, large)


def _factor(method: Method, error: Array, s: OwnSearch) -> Array:
    """Return the factor of each step size (Söderlind 2003, PI). Two-step methods are stable only up to 2.4."""
    assert method.error_order is not None
    xp, k, least = array_namespace(error), method.error_order, full(error, 1e-6)
    now, before = xp.maximum(error, least), xp.maximum(s.error, least)
    # 0.9 is the factor at which both settle
    both = 0.9 ** (PI[0] - PI[1]) * now ** (-PI[0] / k) * before ** (PI[1] / k)
    factor = xp.where((error <= 1) & s.was_taken, both, 0.9 * now ** (-1.0 / k))
    largest = xp.where(s.was_taken, full(error, 5.0 if method.starter is None else 2.0), full(error, 1.0))
    return xp.maximum(xp.minimum(factor, largest), full(error, 0.2))  # type: ignore[no-any-return]
