"""One call, ready to run: from the state at the first time to the states at all times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from dil._base.arrays import array_namespace, full, shared_namespace
from dil._base.typing import Array, Arrays
from dil._diagnostics.failure_policy import Policy
from dil._frameworks.constants import as_constant
from dil._frameworks.protocol import Backend
from dil.ode._adaptive import Mesh, find_mesh
from dil.ode._adjoint import AdjointRule
from dil.ode._dense import interpolate
from dil.ode._field import Field
from dil.ode._options import Options
from dil.ode._stage_layer import StageLayer, stage_layer
from dil.ode._step_stages import Solve, VectorStages
from dil.ode._sweep import SweepResult, grid_of, sweep
from dil.ode._unroll import UnrolledStage
from dil.ode._verdict import Verdict, first_failure


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

    @property
    def backend(self) -> Backend:
        """The backend of the state."""
        return self.field.backend

    def run(self, y0: Array, t: Array, arrays: Arrays) -> Run:
        """Solve the ODE. Only the rows of the result have derivatives."""
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
        """Find the mesh, step over it, and interpolate."""
        xp, mesh = array_namespace(y0), self._find_mesh(y0, t, arrays)
        count = self.backend.loops.number(mesh.taken)
        if isinstance(count, float):  # a compiled program does not know the count, and keeps steps of length zero
            mesh = mesh._replace(begins=mesh.begins[: int(count)], lengths=mesh.lengths[: int(count)])
        knots = xp.concat([t[:1], mesh.begins + mesh.lengths])
        solution = self._solve_on_grid(y0, knots, arrays, 1)
        rows = interpolate(self.backend, t, knots, solution.states, solution.slopes())
        status, iterations, linear = self._sum_counts(solution.outcome)
        failure = first_failure(status, mesh.begins, mesh.lengths)
        ended = mesh.status != 0
        verdict = Verdict(
            xp.where(ended, mesh.status, failure.status),
            xp.where(ended, mesh.taken + 0.0 * mesh.status, failure.step),
            xp.where(mesh.failed < failure.begin, mesh.failed, failure.begin),
            failure.length,
        )
        return Run(rows, verdict, mesh.taken, mesh.rejected, iterations + mesh.iterations, linear + mesh.linear)

    def _find_mesh(self, y0: Array, t: Array, arrays: Arrays) -> Mesh:
        def find(y: Array, t: Array, *arrays: Array) -> Arrays:
            layer = self._stage((y, t[0]), arrays)

            def stages(last: Arrays) -> VectorStages:
                return VectorStages(self.field, layer, arrays, last)

            ends = (t[0], t[-1])
            return find_mesh(self.options.scheme, stages, self.backend.loops.while_loop, self.options.control, y, ends)

        return Mesh(*as_constant(self.backend, find, y0, t, *arrays))

    def _solve_on_grid(self, y0: Array, t: Array, arrays: Arrays, steps: int) -> GridSolution:
        """Step over a grid, with the gradient that the options choose."""
        xp = array_namespace(y0)

        def solve(y0: Array, t: Array, *arrays: Array) -> Arrays:
            result = self._sweep(y0, t, arrays, steps)
            at_times = slice(steps - 1, None, steps)
            states = result.states[0][at_times, ...]
            # a derivative may be recorded of one of them alone
            states = shared_namespace(y0[None, ...], states).concat([y0[None, ...], states])
            return (states, result.slopes[0][at_times, ...], *result.outcome)

        def slopes_of(states: Array) -> Array:
            def at(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
                t, state = row
                return carry, (self.field.slope(t, state, arrays),)

            return self.backend.loops.scan(at, (), (t, states))[1][0]

        if self.options.gradient != "adjoint":
            states, slopes, *outcome = solve(y0, t, *arrays)
            return GridSolution(
                states, tuple(outcome), lambda: xp.concat([self.field.slope(t[0], y0, arrays)[None, ...], slopes])
            )
        layer = self._stage((y0, t[0]), arrays, applies_policy=True)
        rule = AdjointRule(self.field, self.options.scheme, layer, self.options.backward, self.policy, steps)
        states, _, *outcome = self.backend.implicit(solve, rule)(y0, t, *arrays)
        return GridSolution(states, tuple(outcome), lambda: slopes_of(states))

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
