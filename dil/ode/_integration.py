"""One call, ready to run: from the state at the first time to the states at all times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from dil._base.arrays import array_namespace, full
from dil._base.typing import Array, Arrays
from dil._diagnostics.failure_policy import Policy
from dil._diagnostics.record import add_entry, recording
from dil._frameworks.constants import as_constant
from dil._frameworks.loops import runs_later
from dil._frameworks.protocol import Backend
from dil._frameworks.replaced import with_derivative_of
from dil.ode._adaptive import StepMaker, find_mesh
from dil.ode._adjoint import AdjointRule
from dil.ode._dense import interpolate
from dil.ode._field import Field
from dil.ode._found_steps import MOVING, FoundRule, FoundSteps, steps_of
from dil.ode._options import Options
from dil.ode._simplified_newton import FOR_DERIVATIVE, Accuracy, SimplifiedNewton
from dil.ode._stage_layer import StageLayer, stage_layer
from dil.ode._step_stages import EachSolved, KnownStages, NoneSolved, Solve, VectorStages
from dil.ode._sweep import SweepResult, grid_of, sweep, with_first
from dil.ode._times import Times
from dil.ode._unroll import UnrolledStage
from dil.ode._verdict import Verdict, first_failure

REUSES = 4
"""A kept Jacobian pays up to this multiple of the size up to which a dense solve that is used once pays."""


class Run(NamedTuple):
    """The states at the times, (T, *batch, n), the first failures and the counts."""

    rows: Array
    verdict: Verdict
    steps: Array
    """Shape (), like `rejected`."""
    rejected: Array
    iterations: Array
    """Shape batch, like `linear`."""
    linear: Array


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
        run = self._no_steps(y0) if len(first) == 1 else self.run(y0, xp.stack([s[i] for i in first]), arrays)
        rows = []
        for i, k in enumerate(which):
            row, at = run.rows[k, ...], s[first[k]]
            # of the same time: the state is the same, and depends on its own time
            rows.append(row if first[k] == i else row + (s[i] - at) * self.field.slope(at, row, arrays))
        return run._replace(rows=array_namespace(*rows).stack(rows))

    def _no_steps(self, y0: Array) -> Run:
        """Return the result at the first time alone."""
        zero = full(y0[..., 0], 0.0)
        none = full(y0, 0.0, shape=())
        return Run(y0[None, ...], Verdict(zero, zero, zero + float("inf"), zero), none, none, zero, zero)

    def run(self, y0: Array, t: Array, arrays: Arrays) -> Run:
        """Solve the ODE at times that increase."""
        empty = 0 in y0.shape  # an empty batch has no error to adapt to
        run = self._run_equal_steps if empty or not self.options.adapts else self._run_adaptive
        return run(y0, t, arrays)

    def _run_equal_steps(self, y0: Array, t: Array, arrays: Arrays) -> Run:
        """Take equal steps between two times."""
        solution = self._solve_on_grid(y0, t, arrays, self.options.steps)
        begins, lengths = grid_of(self.backend.constant(t), self.options.steps)
        status, iterations, linear = self._sum_counts(solution.outcome)
        taken = full(begins, float(begins.shape[0]), shape=())
        return Run(solution.states, first_failure(status, begins, lengths), taken, full(taken, 0.0), iterations, linear)

    def _run_adaptive(self, y0: Array, t: Array, arrays: Arrays) -> Run:
        """Find the steps, and interpolate between them."""
        xp, found = array_namespace(y0), self._find(y0, t, arrays).shortened(self.backend)
        knots = xp.concat([t[:1], found.begins + found.lengths])
        if self.options.gradient in ("implicit", "naive"):
            states, slopes = with_first(y0, found.states), with_first(found.first_slope, found.slopes)
            bulges = found.bulges if self.options.scheme.bulges else None
        else:
            (states, slopes), bulges = self._with_other_gradient(y0, knots, arrays, found), None
        rows = interpolate(self.backend, t, knots, states, slopes, bulges)
        plain = FoundSteps(*(self.backend.constant(x) for x in found))
        if runs_later(self.backend.loops, plain.last):
            # a program that takes the last state alone then keeps no steps
            (last,) = with_derivative_of(self.backend, (plain.last,), (rows[-1, ...],))
            rows = xp.concat([rows[:-1, ...], last[None, ...]])
        zero = 0.0 * plain.status
        begun = (plain.begins < plain.failed[..., None]) & (plain.lengths > 0)
        step = xp.sum(xp.astype(begun, zero.dtype), axis=-1) + 1.0
        verdict = Verdict(plain.status, xp.where(plain.status != 0, step, zero), plain.failed, zero)
        return Run(rows, verdict, plain.taken, plain.rejected, plain.iterations, plain.linear)

    def _find(self, y0: Array, t: Array, arrays: Arrays) -> FoundSteps:
        """Return the steps of the search.

        Where operations run at once, the derivative sweeps over the steps when it is asked for. A compiled program
        records the sweep, and its compiler leaves it out if nothing is differentiated.
        """
        backend, other = self.backend, self.options.gradient not in ("implicit", "naive")
        if not other and not runs_later(backend.loops, backend.constant(y0)):
            rule = FoundRule(backend, self._sweep_again)
            return FoundSteps(*backend.implicit(self._search, rule)(y0, t, *arrays))
        found = FoundSteps(*as_constant(backend, self._search, y0, t, *arrays))
        if other:
            return found
        steps = found.shortened(backend)
        images = self._sweep_again(y0, t[0], arrays, steps)
        return steps._replace(
            **dict(zip(FoundSteps._fields, with_derivative_of(backend, steps[:MOVING], images), strict=False))
        )

    def _search(self, y: Array, t: Array, *arrays: Array) -> Arrays:
        """Return the steps that the error control chooses."""
        options, loops, few = self.options, self.backend.loops, REUSES * self.backend.dense.crossover.general
        steps: StepMaker = EachSolved(self.field, self._stage((y, t[0]), arrays), arrays)
        if not options.scheme.implicit:
            steps = NoneSolved(self.field, arrays)
        elif options.simplifies and (options.jac is not None or y.shape[-1] <= few):
            steps = SimplifiedNewton(self.field, arrays, self.accuracy, options.jac)
        mesh, last = find_mesh(options.scheme, steps, loops, options.control, y, (t[0], t[-1]))
        if recording() and isinstance(steps, SimplifiedNewton):  # a layer of a stage would record itself
            xp = array_namespace(y)
            counted = {"status": mesh.status, "iterations": mesh.iterations}
            told = {name: xp.astype(x, xp.int32) for name, x in counted.items()}
            add_entry(self.backend, self.policy, "forward", told)
        return steps_of(mesh, self.field.at(t[0], y, arrays), t[-1], last)

    def _sweep_again(self, y0: Array, start: Array, arrays: Arrays, found: FoundSteps) -> Arrays:
        """Return states, slopes, bulges and first slope of found steps, differentiable in y0, start and arrays."""
        layer, scheme = self._stage((y0, start), arrays), self.options.scheme
        ends = found.begins + found.lengths
        begins = with_first(start, ends[:-1])

        def stages(last: Arrays, solutions: Array) -> KnownStages:
            return KnownStages(self.field, layer, arrays, last, solutions)

        grid = (begins, ends - begins, found.stages)
        first = self.field.slope(start, y0, arrays)
        result = sweep(scheme, self.backend, stages, (y0,), (full(y0, 0.0),), grid, found.taken)
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
                states, tuple(outcome), lambda: xp.concat([self.field.slope(t[0], y0, arrays)[None, ...], slopes])
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

    def _stage(self, like: tuple[Array, Array], arrays: Arrays, *, applies_policy: bool = False) -> StageLayer:
        options = self.options
        solvers = options.forward, options.backward
        layer = stage_layer(self.field, like, arrays, *solvers, options.layer, self.policy)
        return replace(layer, applies_policy=applies_policy)

    def _sum_counts(self, outcome: Arrays) -> Arrays:
        """Return the statuses of all steps and the sums of the counts, as constants."""
        status, *counts = (self.backend.constant(x) for x in outcome)
        return (status, *(array_namespace(x).sum(x, axis=0) for x in counts))
