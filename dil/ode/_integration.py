"""One call, ready to run: from the state at the first time to the states at all times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, full
from dil._base.errors import OptionError
from dil._base.typing import Array, Arrays
from dil._diagnostics.failure_policy import Policy
from dil._diagnostics.record import add_entry, recording
from dil._frameworks.constants import as_constant
from dil._frameworks.loops import runs_later
from dil._frameworks.protocol import Backend
from dil._frameworks.replaced import with_derivative_of
from dil._layers.first_calls import is_readable
from dil.ode._adaptive import Control, FoundMesh, Mesh, StepMaker, find_mesh
from dil.ode._adjoint import AdjointRule
from dil.ode._alternation import Alternation, ExplicitWay, ImplicitWay, MeasuredSteps
from dil.ode._coupled_newton import CoupledNewton
from dil.ode._crossings import EventRows, Events, Stop, held, with_lost_events
from dil.ode._curve import Curve
from dil.ode._dense import interpolate
from dil.ode._events import EventFunction
from dil.ode._few_rule import FewRule
from dil.ode._few_steps import FewSteps, FewSweep, Log, Parts, Spacing, states_at
from dil.ode._field import Field
from dil.ode._found_steps import FoundRule, FoundSteps, steps_of
from dil.ode._list_log import ListLog
from dil.ode._options import Options
from dil.ode._own_steps import find_own_meshes
from dil.ode._rate import rate_of
from dil.ode._simplified_newton import FOR_DERIVATIVE, Accuracy, SimplifiedNewton
from dil.ode._stage_layer import StageLayer, stage_layer
from dil.ode._start import Start, consistent, start_of
from dil.ode._step_stages import EachSolved, KnownStages, NoneSolved, Solve, VectorStages
from dil.ode._sweep import SweepResult, grid_of, sweep, with_first
from dil.ode._times import Times
from dil.ode._unroll import UnrolledStage
from dil.ode._user_jacobian import with_wrong_jac
from dil.ode._verdict import Verdict, first_failure, from_start
from dil.ode._watch import Watch, going_in

REUSES = 4
"""A kept Jacobian pays up to this multiple of the size up to which a dense solve that is used once pays."""
DIFFICULT = 4
"""The same with a mass matrix: algebraic equations, which have no I - gh J, cost a Krylov solver more steps."""


class Run(NamedTuple):
    """The states at the times, (T, *batch, n), the first failures and the counts."""

    rows: Array
    verdict: Verdict
    steps: Array
    """Shape (), or batch with own steps, like `rejected`."""
    rejected: Array
    iterations: Array
    """Shape batch, like `linear`."""
    linear: Array
    events: tuple[EventRows, ...] = ()
    stop: Stop | None = None
    """Where events end the solve, if there are events."""
    curve: Curve | None = None
    """The dense output, if steps adapt."""
    implicit_steps: Array | None = None
    """Those of the steps that an implicit method took, and the times at which the method changed, if it may change."""
    changed_at: Array | None = None


class GridSolution(NamedTuple):
    """The states at the times of a grid, and the outcome of every step."""

    states: Array
    outcome: Arrays
    slopes: Callable[[], Array]
    """Returns dy/dt at the times. If the gradient goes through the stages, these are the slopes of the last stages."""


@dataclass(frozen=True)
class Integration:
    """An ODE and the options of its solution."""

    field: Field
    options: Options
    policy: Policy
    times: Times
    accuracy: Accuracy = FOR_DERIVATIVE
    """The accuracy of the stages of adaptive steps."""
    events: tuple[EventFunction, ...] = ()
    keeps_curve: bool = False
    """Whether the dense output is asked for."""

    @property
    def backend(self) -> Backend:
        """The backend of the state."""
        return self.field.backend

    def run_at(self, y0: Array, t: Array, arrays: Arrays) -> Run:
        """Solve the ODE at the times of the call. Only the rows of the result have derivatives."""
        s, (_, first, which) = t if self.times.sign > 0 else -t, self.times
        if not first:
            return self.run(y0, s, arrays)
        xp = array_namespace(s)
        known = xp.stack([s[i] for i in first])
        run = self._no_steps(y0, known, arrays) if len(first) == 1 else self.run(y0, known, arrays)
        rows = []
        for i, k in enumerate(which):
            row, at = run.rows[k, ...], s[first[k]]
            # of the same time: the state is the same, and depends on its own time
            rows.append(row if first[k] == i else row + (s[i] - at) * self._slope(run, at, row, arrays))
        return run._replace(rows=array_namespace(*rows).stack(rows))

    def _slope(self, run: Run, t: Array, y: Array, arrays: Arrays) -> Array:
        """Return dy/dt of a row of a run; zero where an event has ended it."""
        slope = rate_of(self.field, t, y, arrays)
        if run.stop is None:
            return slope
        after = self.backend.constant(t) > self.backend.constant(run.stop.t)
        return array_namespace(slope).where(after[..., None], full(slope, 0.0), slope)  # type: ignore[no-any-return]

    def _no_steps(self, y0: Array, t: Array, arrays: Arrays) -> Run:
        """Return the result at the first time alone."""
        zero = full(y0[..., 0], 0.0)
        none = full(y0, 0.0, shape=())
        verdict = Verdict(zero, zero, zero + float("inf"), zero)
        if self.field.mass_arrays:
            y0, status, residual = self._start(y0, t[0], arrays)
            verdict = from_start(verdict, status, residual, self.backend.constant(t[0]))
        run = Run(y0[None, ...], verdict, none, none, zero, zero, *self.watched.none(y0, t))
        return self._unchanged(run, t)

    def _unchanged(self, run: Run, t: Array) -> Run:
        """Return a run without adaptive steps, whose method has not changed if it may."""
        return run._replace(implicit_steps=0.0 * run.steps, changed_at=t[:0]) if self.options.alternates else run

    @property
    def watched(self) -> Events:
        """The events of the call."""
        return Events(self.backend, self.events, self.options.max_events, self.options.control.rtol, self.policy)

    def run(self, y0: Array, t: Array, arrays: Arrays) -> Run:
        """Solve the ODE at times that increase."""
        if not self.field.mass_arrays or 0 in y0.shape:
            return self._run(y0, t, arrays)
        start = self._start(y0, t[0], arrays)
        run, xp = self._run(start.y, t, arrays, start.status), array_namespace(y0)
        verdict = from_start(run.verdict, start.status, start.residual, self.backend.constant(t[0]))
        return run._replace(rows=xp.where((start.status == 0)[..., None], run.rows, start.y), verdict=verdict)

    def _start(self, y0: Array, t: Array, arrays: Arrays) -> Start:
        """Return the consistent state at the first time."""
        layer, options = self._stage((y0, t), arrays, single=True), self.options
        return start_of(self.field, layer, t, y0, arrays, self._control, find=options.consistent == "find")

    @property
    def _control(self) -> Control:
        """The error control. An algebraic equation leaves the rounding of its terms in its unknown."""
        control = self.options.control
        return replace(control, noise=1e3) if self.field.mass_arrays else control

    def _run(self, y0: Array, t: Array, arrays: Arrays, begun: Array | None = None) -> Run:
        """Solve the ODE from a consistent state, whose status is `begun`."""
        empty = 0 in y0.shape  # an empty batch has no error to adapt to
        if empty or not self.options.adapts:
            events, stop = self.watched.none(y0, t)
            run = self._run_equal_steps(y0, t, arrays)._replace(events=events, stop=stop)
            return self._unchanged(run, t)
        if self.options.alternates:
            self._refuse_to_alternate(y0)
        if self._keeps_few(y0):
            return self._run_few(y0, t, arrays, begun)
        return self._run_adaptive(y0, t, arrays, begun)

    def _keeps_few(self, y0: Array) -> bool:
        """Return whether few of the steps are kept: if it is asked for, or in a recorded program that needs no more."""
        options, loops = self.options, self.backend.loops
        if options.checkpoints is not None:
            return True
        needs_all = self.keeps_curve or self.events or self.field.own_times
        needs_all = needs_all or options.gradient not in ("implicit", "naive")
        return not needs_all and options.scheme.starter is None and loops.recorded is not None

    def _run_equal_steps(self, y0: Array, t: Array, arrays: Arrays) -> Run:
        """Take equal steps between two times."""
        solution = self._solve_on_grid(y0, t, arrays, self.options.steps)
        begins, lengths = grid_of(self.backend.constant(t), self.options.steps)
        status, iterations, linear = self._sum_counts(solution.outcome)
        taken = full(begins, float(begins.shape[0]), shape=())
        return Run(solution.states, first_failure(status, begins, lengths), taken, full(taken, 0.0), iterations, linear)

    def _run_adaptive(self, y0: Array, t: Array, arrays: Arrays, begun: Array | None = None) -> Run:
        """Find the steps, and interpolate between them."""
        xp, found = array_namespace(y0), self._find(y0, t, arrays, begun).shortened(self.backend)
        knots = found.knots(t[0], self.backend, stretches=self.options.scheme.starter is not None)
        if self.options.gradient in ("implicit", "naive"):
            states, slopes = with_first(y0, found.states), with_first(found.first_slope, found.slopes)
            bulges = found.bulges if self.options.scheme.bulges else None
        else:
            (states, slopes), bulges = self._with_other_gradient(y0, knots, arrays, found), None
        rows = interpolate(self.backend, t, knots, states, slopes, bulges)
        plain = FoundSteps(*(self.backend.constant(x) for x in found.arrays))
        if runs_later(self.backend.loops, plain.last):
            # a program that takes the last state alone then keeps no steps
            (last,) = with_derivative_of(self.backend, (plain.last,), (rows[-1, ...],))
            rows = array_namespace(rows, last).concat([rows[:-1, ...], last[None, ...]])
        zero = 0.0 * plain.status
        begins, lengths = plain.begins, plain.lengths
        if self.field.own_times:
            order = (*range(1, begins.ndim), 0)  # torch.func.vmap has no rule for `moveaxis`
            begins, lengths = (xp.permute_dims(x, order) for x in (begins, lengths))
        before = (begins < plain.failed[..., None]) & (lengths > 0)
        step = xp.sum(xp.astype(before, zero.dtype), axis=-1) + 1.0
        verdict = Verdict(plain.status, xp.where(plain.status != 0, step, zero), plain.failed, zero)
        if self.field.mass_arrays:
            rows, verdict = self._consistent_rows(t, rows, arrays, verdict)
        events, stop = self.watched.none(y0, t)
        curve = Curve(knots, states, slopes, 0.0 * found.bulges if bulges is None else bulges)
        if found.marks is not None:
            events, stop = self.watched(curve, found.marks, arrays)
            if self.field.mass_arrays:
                events, stop = self._consistent_events(events, stop, (t[0], y0), arrays)
            rows = held(stop, rows, t, self.backend)
            plain_events = [EventRows(*map(self.backend.constant, each)) for each in events]
            verdict = with_lost_events(verdict, plain_events, begins)
        run = Run(rows, verdict, plain.taken, plain.rejected, plain.iterations, plain.linear, events, stop, curve)
        if not self.options.alternates:
            return run
        runs = plain.runs
        taken = [full(plain.taken, float(part.begins.shape[0])) for part in runs[:-1]] + [runs[-1].taken]
        changed_at = xp.stack([part.begins[0] for part in runs])[1:]
        return run._replace(implicit_steps=sum(taken[1::2], start=0.0 * plain.taken), changed_at=changed_at)

    def _run_few(self, y0: Array, t: Array, arrays: Arrays, begun: Array | None) -> Run:
        """Find the steps, keep few of them, and interpolate where there are output times."""
        backend, xp = self.backend, array_namespace(y0)
        few = self._few_recorded if backend.loops.recorded is not None else self._few_at_once
        moving = few(y0, t, arrays, () if begun is None else (begun,))
        found = FewSteps.of(tuple(backend.constant(x) for x in moving.flat))
        rows = states_at(backend, t[1:], moving.segments, moving.bounds)
        xp = array_namespace(rows, y0)
        rows = xp.where(found.taken > 0, rows, y0)
        if runs_later(backend.loops, found.last):
            # a program that takes the last state alone, without a derivative, then keeps no steps
            (last,) = with_derivative_of(backend, (found.last,), (rows[-1, ...],))
            rows = array_namespace(rows, last).concat([rows[:-1, ...], last[None, ...]])
        rows = xp.concat([y0[None, ...], rows])
        verdict = Verdict(found.status, self._step_of(found), found.failed, 0.0 * found.status)
        if self.field.mass_arrays:
            rows, verdict = self._consistent_rows(t, rows, arrays, verdict)
        return Run(rows, verdict, found.taken, found.rejected, found.iterations, found.linear)

    def _few_recorded(self, y0: Array, t: Array, arrays: Arrays, given: Arrays) -> FewSteps:
        """Return the steps that a recorded program finds. The first three fields have derivatives."""
        options, parts = self.options, self._parts
        spacing = Spacing.of(options.max_steps, options.checkpoints)

        def search(y: Array, t: Array, *given: Array) -> Arrays:
            mesh, last, _, _, (ends, segments, bounds, *rest) = self._mesh(y, t, given, Log(t[1:], spacing, parts))
            return FewSteps(ends, segments, bounds, *mesh[3:-1], last, tuple(rest)).flat

        found = FewSteps.of(as_constant(self.backend, search, y0, t, *arrays, *given))
        images = self._few_sweep(arrays).recorded(self._few_begin(y0, t[0], arrays), found)
        segments, bounds = with_derivative_of(self.backend, (found.segments, found.bounds), images)
        return found._replace(segments=segments, bounds=bounds)

    def _few_at_once(self, y0: Array, t: Array, arrays: Arrays, given: Arrays) -> FewSteps:
        """Return the steps that are found by operations that run at once."""
        kept, parts = self.options.checkpoints, self._parts
        assert kept is not None
        if not is_readable(self.backend, y0):
            message = (
                f"checkpoints={kept} under a transform such as torch.func.grad, where the number of steps cannot "
                f"be read; drop it, or take dil.grad or backward(), and batch_ndim= in the place of vmap"
            )
            raise OptionError(message)

        def search(y: Array, t: Array, *given: Array) -> Arrays:
            log = ListLog(t[1:], kept, parts)
            mesh, last, *_ = self._mesh(y, t, given, log)
            return log.found(mesh[3:-1], last).flat

        rule = FewRule(self.backend, self._few_begin, self._few_sweep, len(arrays))
        return FewSteps.of(self.backend.implicit(search, rule)(y0, t, *arrays, *given))

    @property
    def _parts(self) -> Parts:
        return Parts(self.options.scheme, keeps_stages=self.options.checkpoints is None)

    def _few_begin(self, y0: Array, start: Array, arrays: Arrays) -> Arrays:
        """Return what the first step begins from, with its derivative."""
        first = rate_of(self.field, start, y0, arrays)
        stages = self._few_sweep(arrays).stages((first,), y0[None, ...])
        plain = self.backend.constant(y0)
        return self._parts(
            y0, first, self.options.scheme.begin(stages, (y0,), start), array_namespace(plain).abs(plain), start
        )

    def _few_sweep(self, arrays: Arrays) -> FewSweep:
        """Return what takes the steps again, with the derivative of the theorem at each stage."""
        backend, method = self.backend, self.options.scheme

        def stages(last: Arrays, solutions: Array) -> KnownStages:
            layer = self._stage((last[0], last[0][(0,) * last[0].ndim]), arrays)
            return KnownStages(self.field, layer, arrays, last, solutions)

        def solve(y: Array, slope: Array, largest: Array, t: Array, h: Array, *rest: Array) -> Arrays:
            memory, given = rest[: len(rest) - len(arrays)], rest[len(rest) - len(arrays) :]
            steps, xp = self._step_maker(y, t, given), array_namespace(y)
            allowed = self._control.of_estimate(method).allowed(xp.abs(y), largest)
            found = steps.stages(t, y, slope, allowed, steps.first(y, t, slope))
            method.advance(found, (y,), (slope,) if method.continues else memory, t, h)
            return (xp.stack(found.solutions),)

        def solved(y: Array, slope: Array, memory: Arrays, largest: Array, t: Array, h: Array) -> Array:
            return as_constant(backend, solve, y, slope, largest, t, h, *memory, *arrays)[0]

        return FewSweep(backend, self._parts, stages, solved)

    def _step_of(self, found: FewSteps) -> Array:
        """Return the number of the failed step of each problem, from 1; zero if none failed."""
        xp, failed = array_namespace(found.ends), found.status != 0
        number = xp.arange(found.ends.shape[0], dtype=found.taken.dtype, device=device(found.ends))
        before = (number < found.taken) & (found.ends <= found.failed[..., None])
        step = xp.sum(xp.astype(before, found.status.dtype), axis=-1) + 1.0
        return xp.where(failed, step, 0.0 * step)  # type: ignore[no-any-return]

    def _consistent_rows(self, t: Array, rows: Array, arrays: Arrays, verdict: Verdict) -> tuple[Array, Verdict]:
        """Return states that were interpolated, (T, *batch, n), with algebraic unknowns that satisfy their equations.

        A polynomial through stages is of a low order there (Hairer and Wanner 1996, VI.1), and so is the derivative of
        the last state in its time.
        """
        layer, xp = self._stage((rows[0, ...], t[0]), arrays, single=True), array_namespace(rows)

        def at(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
            time, y = row
            return carry, consistent(layer, time, y, arrays)

        _, (found, status) = self.backend.loops.scan(at, (), (t[1:], rows[1:, ...]))
        inner = self.backend.constant(t[1:])
        missed = first_failure(self.backend.constant(status), inner, 0.0 * inner)
        found = xp.where((inner[:, *(None,) * verdict.begin.ndim] <= verdict.begin)[..., None], found, rows[1:, ...])
        verdict = Verdict(*(xp.where(verdict.status == 0, a, b) for a, b in zip(missed[:4], verdict[:4], strict=True)))
        return xp.concat([rows[:1, ...], found]), verdict

    def _consistent_events(
        self, events: tuple[EventRows, ...], stop: Stop, start: tuple[Array, Array], arrays: Arrays
    ) -> tuple[tuple[EventRows, ...], Stop]:
        """Return the events of one problem with algebraic unknowns that satisfy their equations."""
        layer, plain, (t0, y0) = self._stage((start[1], start[0]), arrays, single=True), self.backend.constant, start

        def at(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
            time, y = row
            return carry, consistent(layer, time, y, arrays)

        def states(t: Array, y: Array) -> tuple[Array, Array]:
            """Return the consistent states of rows, and the statuses; those whose time is not finite stay."""
            xp, there = array_namespace(t, y), array_namespace(plain(t)).isfinite(plain(t))
            rows = xp.where(there, t, t0), xp.where(there[:, None], y, y0)
            found, status = self.backend.loops.scan(at, (), rows)[1]
            return xp.where(there[:, None], found, y), xp.where(there, status, 0.0 * status)

        def with_states(each: EventRows) -> EventRows:
            if each.t.shape[0] == 0:
                return each
            y, status = states(each.t, each.y)
            missed = array_namespace(each.status).astype(plain(status), each.status.dtype)
            return each._replace(y=y, status=array_namespace(missed).where(each.status == 0, missed, each.status))

        return tuple(map(with_states, events)), stop._replace(y=states(stop.t[None], stop.y[None, ...])[0][0, ...])

    def _find(self, y0: Array, t: Array, arrays: Arrays, begun: Array | None = None) -> FoundSteps:
        """Return the steps of the search.

        Where operations run at once, the derivative sweeps over the steps when it is asked for. A compiled program
        records the sweep, and its compiler leaves it out if nothing is differentiated.
        """
        backend, other = self.backend, self.options.gradient not in ("implicit", "naive")
        given = () if begun is None else (begun,)  # as an argument, since a rule must not capture it
        if not other and not runs_later(backend.loops, backend.constant(y0)):
            rule = FoundRule(backend, self._sweep_again)
            # a transform may map the search over rows, whose numbers of steps differ
            cut = all(is_readable(backend, x) for x in (y0, t, *arrays))
            return FoundSteps(*backend.implicit(partial(self._search, cut=cut), rule)(y0, t, *arrays, *given))
        found = FoundSteps(*as_constant(backend, self._search, y0, t, *arrays, *given))
        if other:
            return found
        steps = found.shortened(backend)
        images = self._sweep_again(y0, t[0], arrays, steps)
        return steps._replace(
            **dict(zip(FoundSteps._fields, with_derivative_of(backend, steps.moving, images), strict=False))
        )

    def _search(self, y: Array, t: Array, *given: Array, cut: bool = False) -> Arrays:
        """Return the steps that the error control chooses. The status of the start may follow the arguments.

        `cut`: the rows of steps that are not taken are left out, and hold no numbers before.
        """
        mesh, last, _, watched, written = self._mesh(y, t, given, cut=cut)
        arrays = given[: len(self.field.arguments.arrays)]
        first = rate_of(self.field, t[0], y, arrays) if self.field.mass_arrays else self.field.at(t[0], y, arrays)
        found = steps_of(mesh, first, t[-1], last, *written)
        found = found.shortened(self.backend) if cut else found
        return (*found.arrays, array_namespace(y).moveaxis(watched.marks, -2, 0)) if self.events else found.arrays

    def _step_maker(self, y: Array, t: Array, arrays: Arrays) -> StepMaker:
        """Return what makes the stages of the steps of a search, for states like y."""
        options, few = self.options, REUSES * self.backend.dense.crossover.general
        few = few * DIFFICULT if self.field.mass_arrays else few
        if not options.scheme.implicit:
            return NoneSolved(self.field, arrays)
        nodes = options.scheme.collocation
        if options.simplifies and (options.jac is not None or y.shape[-1] <= few):
            if nodes is None:
                return SimplifiedNewton(self.field, arrays, self.accuracy, options.jac)
            return CoupledNewton(self.field, arrays, self.accuracy, options.jac, nodes=nodes)
        single = None if nodes is None else self._stage((y, t), arrays, single=True)
        return EachSolved(self.field, self._stage((y, t), arrays), arrays, single)

    def _mesh(
        self, y: Array, t: Array, given: Arrays, log: Log | ListLog | None = None, *, cut: bool = False
    ) -> FoundMesh:
        """Return the mesh that the error control chooses."""
        count = len(self.field.arguments.arrays)
        arrays, begun = given[:count], given[count] if len(given) > count else None
        options, loops, steps = self.options, self.backend.loops, self._step_maker(y, t[0], arrays)
        watch = Watch(self.events, arrays, loops) if self.events else None
        control, span = self._control.of_estimate(options.scheme), (t[0], t[-1])
        if options.alternates:
            turns = self._turns(y, t[0], arrays)
            way, steps = turns.explicit, turns.implicit.steps
            found = find_mesh(way.method, way.steps, loops, way.control, y, span, watch, begun, turns=turns, cut=cut)
        elif self.field.own_times:
            found = find_own_meshes(options.scheme, steps, loops, control, y, span, watch, begun)
        else:
            found = find_mesh(options.scheme, steps, loops, control, y, span, watch, begun, log, cut=cut)
        if options.jac is not None:
            found = found._replace(mesh=self._with_wrong_jac(found, t, arrays))
        if recording() and isinstance(steps, SimplifiedNewton):  # a layer of a stage would record itself
            xp = array_namespace(y)
            counted = {"status": found.mesh.status, "iterations": found.mesh.iterations}
            told = {name: xp.astype(x, xp.int32) for name, x in counted.items()}
            add_entry(self.backend, self.policy, "forward", told)
        return found

    def _with_wrong_jac(self, found: FoundMesh, t: Array, arrays: Arrays) -> Mesh:
        """Return the mesh, whose status says if jac is wrong where a solve failed."""
        mesh, y = found.mesh, found.last
        xp = array_namespace(y)
        ends = xp.where(mesh.failed < float("inf"), mesh.failed, t[-1])
        at = ends[..., None] if self.field.own_times else xp.min(ends)
        return mesh._replace(status=with_wrong_jac(mesh.status, self.field, self.options.jac, (at, y), arrays))

    def _pair(self, y: Array) -> tuple[Integration, Integration]:
        """Return the explicit and the implicit steps of a method that changes, for states like y."""
        explicit, implicit = self.options.parts(y.shape[-1])
        return replace(self, options=explicit), replace(self, options=implicit)

    def _refuse_to_alternate(self, y: Array) -> None:
        """Refuse a method that changes where the steps cannot be read, or where events freeze a part of a batch."""
        if self.backend.loops.recorded is not None or not is_readable(self.backend, y):
            message = (
                "method='auto' reads the steps as they are taken, which JAX and transforms such as torch.func.grad do "
                "not allow; take 'tsit5', or 'radau' or 'kvaerno5' where the problem is stiff. On torch, dil.grad and "
                "backward() allow it, and batch_ndim= is there in the place of vmap"
            )
            raise OptionError(message)
        if self.field.freezes:
            message = "method='auto' with events= that end problems of a batch; take 'tsit5' or 'radau'"
            raise OptionError(message)

    def _turns(self, y: Array, t: Array, arrays: Arrays) -> Alternation:
        """Return what chooses the method of each step."""
        (explicit, implicit), control = self._pair(y), self._control
        schemes = explicit.options.scheme, implicit.options.scheme
        return Alternation(
            ExplicitWay(schemes[0], MeasuredSteps(self.field, arrays), control.of_estimate(schemes[0])),
            ImplicitWay(schemes[1], implicit._step_maker(y, t, arrays), control.of_estimate(schemes[1])),
            self.backend.loops,
        )

    def _sweep_by_turns(self, y0: Array, start: Array, arrays: Arrays, found: FoundSteps) -> Arrays:
        """Return the same for two methods: each run of steps of one of them starts where the last run ended."""
        rows, firsts = list[Arrays](), list[Array]()
        for i, steps in enumerate(found.runs):
            *moved, first = self._pair(y0)[i % 2]._sweep_again(y0, start, arrays, steps)
            rows.append(tuple(moved))
            firsts.append(first)
            y0, start = moved[0][-1, ...], (steps.begins + steps.lengths)[-1]
        xp = array_namespace(*rows[0])
        return (*(xp.concat(list(x)) for x in zip(*rows, strict=True)), firsts[0])

    def _sweep_again(self, y0: Array, start: Array, arrays: Arrays, found: FoundSteps) -> Arrays:
        """Return states, slopes, bulges and first slope of found steps, differentiable in y0, start and arrays."""
        if self.options.alternates:
            return self._sweep_by_turns(y0, start, arrays, found)
        arrays = arrays[: len(self.field.arguments.arrays)]
        layer, scheme = self._stage((y0, start), arrays), self.options.scheme
        knots = found.knots(start, self.backend, stretches=scheme.starter is not None)
        begins, lengths = knots[:-1, ...], knots[1:, ...] - knots[:-1, ...]
        # a row of no step, behind an event or a failure, begins at the last time and not where the steps end
        lengths = array_namespace(lengths).where(found.lengths > 0, lengths, 0.0 * lengths)
        if self.field.own_times:
            begins, lengths = begins[..., None], lengths[..., None]

        def stages(last: Arrays, solutions: Array, *going: Array) -> KnownStages:
            return KnownStages(self.field, layer, self.field.with_going(arrays, *going), last, solutions)

        grid: Arrays = (begins, lengths, found.stages)
        if self.field.freezes and found.marks is not None:
            grid = (*grid, going_in(found.marks, self.events))
        first = rate_of(self.field, start, y0, arrays)
        result = sweep(scheme, self.backend, stages, (y0,), (full(y0, 0.0),), grid, found.most_taken)
        bulges = result.bulges[0] if scheme.bulges else found.bulges
        return result.states[0], result.slopes[0], bulges, first

    def _with_other_gradient(self, y0: Array, knots: Array, arrays: Arrays, found: FoundSteps) -> Arrays:
        """Return the states and slopes at the knots with the derivative of the unrolled steps or the adjoint method."""
        if self.options.gradient == "unroll":
            solution = self._solve_on_grid(y0, knots, arrays, 1)
            return solution.states, solution.slopes()
        rule = self._adjoint_rule(y0, knots, arrays, 1)
        known = self.backend.constant(with_first(y0, found.states))
        (states,) = self.backend.implicit(lambda *every: every[-1:], rule)(y0, knots, *arrays, known)
        return states, self._slopes_of(knots, states, arrays)

    def _adjoint_rule(self, y0: Array, t: Array, arrays: Arrays, steps: int) -> AdjointRule:
        layer = self._stage((y0, t[0]), arrays, applies_policy=True)
        return AdjointRule(self.field, self.options.scheme, layer, self.options.backward, self.policy, steps)

    def _slopes_of(self, t: Array, states: Array, arrays: Arrays) -> Array:
        def at(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
            t, state = row
            return carry, (self.field.slope(t, state, arrays),)

        return self.backend.loops.scan(at, (), (t, states))[1][0]

    def _solve_on_grid(self, y0: Array, t: Array, arrays: Arrays, steps: int) -> GridSolution:
        """Step over a grid, with the gradient that the options choose."""
        xp = array_namespace(y0)

        def solve(y0: Array, t: Array, *arrays: Array) -> Arrays:
            result = self._sweep(y0, t, arrays, steps)
            at_times = slice(steps - 1, None, steps)
            states = with_first(y0, result.states[0][at_times, ...])
            return (states, result.slopes[0][at_times, ...], *result.outcome)

        if self.options.gradient != "adjoint":
            states, slopes, *outcome = solve(y0, t, *arrays)
            return GridSolution(
                states, tuple(outcome), lambda: xp.concat([rate_of(self.field, t[0], y0, arrays)[None, ...], slopes])
            )
        rule = self._adjoint_rule(y0, t, arrays, steps)
        states, _, *outcome = self.backend.implicit(solve, rule)(y0, t, *arrays)
        return GridSolution(states, tuple(outcome), lambda: self._slopes_of(t, states, arrays))

    def _sweep(self, y0: Array, t: Array, arrays: Arrays, steps: int) -> SweepResult:
        layer = self._stage((y0, t[0]), arrays)
        solve: Solve = UnrolledStage(layer, self.options.unroll) if self.options.gradient == "unroll" else layer

        def stages(last: Arrays) -> VectorStages:
            return VectorStages(self.field, solve, arrays, last)

        return sweep(self.options.scheme, self.backend, stages, (y0,), (full(y0, 0.0),), grid_of(t, steps))

    def _stage(
        self, like: tuple[Array, Array], arrays: Arrays, *, applies_policy: bool = False, single: bool = False
    ) -> StageLayer:
        """Return the layer of the stages of a step. A `single` stage, as of no length, may have a guess that is far."""
        options = self.options
        solvers = options.stage_solver(massive=bool(self.field.mass_arrays), far=single), options.backward
        coupled = None if single else options.scheme.collocation
        layer = stage_layer(self.field, like, arrays, *solvers, options.layer, self.policy, coupled)
        return replace(layer, applies_policy=applies_policy)

    def _sum_counts(self, outcome: Arrays) -> Arrays:
        """Return the statuses of all steps and the sums of the counts, as constants."""
        status, *counts = (self.backend.constant(x) for x in outcome)
        return (status, *(array_namespace(x).sum(x, axis=0) for x in counts))
