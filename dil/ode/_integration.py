"""One call, ready to run: from the state at the first time to those at all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from dil._base.arrays import array_namespace, full
from dil._base.typing import Array, Arrays
from dil._diagnostics.failure_policy import Policy
from dil._frameworks.protocol import Backend
from dil.ode._adaptive import Mesh, find_mesh
from dil.ode._adjoint import AdjointRule
from dil.ode._dense import between
from dil.ode._field import Field
from dil.ode._options import Options
from dil.ode._stage_layer import StageLayer, stage_layer
from dil.ode._step_stages import Solve, VectorStages
from dil.ode._sweep import Swept, grid_of, sweep
from dil.ode._unroll import UnrolledStage
from dil.ode._verdict import Verdict, as_constant, first_failure


class Run(NamedTuple):
    """The states at the times, (T, *batch, n), and how they were found."""

    rows: Array
    verdict: Verdict
    steps: Array
    """Shape (), as the next."""
    rejected: Array
    iterations: Array
    """Shape batch, as the next."""
    linear: Array


class Known(NamedTuple):
    """The states at the times of a grid, and what was said of every step."""

    states: Array
    told: Arrays
    slopes: Callable[[], Array]
    """dy/dt at those times: of the stages that end there, where the gradient goes through the stages."""


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
        """Solve; the rows alone carry derivatives."""
        nothing = 0 in y0.shape  # a batch of no problems, to which no step is too long
        return self._even(y0, t, arrays) if nothing or not self.options.adapts else self._adapted(y0, t, arrays)

    def _even(self, y0: Array, t: Array, arrays: Arrays) -> Run:
        """Take steps of one size between two times."""
        known = self._known(y0, t, arrays, self.options.steps)
        begins, lengths = grid_of(self.backend.constant(t), self.options.steps)
        status, iterations, linear = self._summed(known.told)
        taken = full(begins, float(begins.shape[0]), shape=())
        return Run(known.states, first_failure(status, begins, lengths), taken, full(taken, 0.0), iterations, linear)

    def _adapted(self, y0: Array, t: Array, arrays: Arrays) -> Run:
        """Find the mesh, step over it, and interpolate."""
        xp, mesh = array_namespace(y0), self._mesh(y0, t, arrays)
        count = self.backend.loops.number(mesh.taken)
        if isinstance(count, float):  # where a program cannot know it, the steps that are not needed have no length
            mesh = mesh._replace(begins=mesh.begins[: int(count)], lengths=mesh.lengths[: int(count)])
        knots = xp.concat([t[:1], mesh.begins + mesh.lengths])
        known = self._known(y0, knots, arrays, 1)
        rows = between(self.backend, t, knots, known.states, known.slopes())
        status, iterations, linear = self._summed(known.told)
        found = first_failure(status, mesh.begins, mesh.lengths)
        ended = mesh.status != 0
        verdict = Verdict(
            xp.where(ended, mesh.status, found.status),
            xp.where(ended, mesh.taken + 0.0 * mesh.status, found.step),
            xp.where(mesh.failed < found.begin, mesh.failed, found.begin),
            found.length,
        )
        return Run(rows, verdict, mesh.taken, mesh.rejected, iterations + mesh.iterations, linear + mesh.linear)

    def _mesh(self, y0: Array, t: Array, arrays: Arrays) -> Mesh:
        def find(y: Array, t: Array, *arrays: Array) -> Arrays:
            layer = self._stage((y, t[0]), arrays)

            def stages(last: Arrays) -> VectorStages:
                return VectorStages(self.field, layer, arrays, last)

            ends = (t[0], t[-1])
            return find_mesh(self.options.scheme, stages, self.backend.loops.while_loop, self.options.control, y, ends)

        return Mesh(*as_constant(self.backend, find, y0, t, *arrays))

    def _known(self, y0: Array, t: Array, arrays: Arrays, steps: int) -> Known:
        """Step over a grid, with the gradient asked for."""
        xp = array_namespace(y0)

        def solve(y0: Array, t: Array, *arrays: Array) -> Arrays:
            swept = self._swept(y0, t, arrays, steps)
            every = slice(steps - 1, None, steps)
            states = xp.concat([y0[None, ...], swept.states[0][every, ...]])
            return (states, swept.slopes[0][every, ...], *swept.told)

        def slopes_of(states: Array) -> Array:
            def at(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
                t, state = row
                return carry, (self.field.slope(t, state, arrays),)

            return self.backend.loops.scan(at, (), (t, states))[1][0]

        if self.options.gradient != "adjoint":
            states, slopes, *told = solve(y0, t, *arrays)
            return Known(
                states, tuple(told), lambda: xp.concat([self.field.slope(t[0], y0, arrays)[None, ...], slopes])
            )
        back = self._stage((y0, t[0]), arrays, settles=True)
        rule = AdjointRule(self.field, self.options.scheme, back, self.options.backward, self.policy, steps)
        states, _, *told = self.backend.implicit(solve, rule)(y0, t, *arrays)
        return Known(states, tuple(told), lambda: slopes_of(states))

    def _swept(self, y0: Array, t: Array, arrays: Arrays, steps: int) -> Swept:
        layer = self._stage((y0, t[0]), arrays)
        solve: Solve = UnrolledStage(layer, self.options.unroll) if self.options.gradient == "unroll" else layer

        def stages(last: Arrays) -> VectorStages:
            return VectorStages(self.field, solve, arrays, last)

        return sweep(self.options.scheme, self.backend, stages, (y0,), (full(y0, 0.0),), grid_of(t, steps))

    def _stage(self, like: tuple[Array, Array], arrays: Arrays, *, settles: bool = False) -> StageLayer:
        options = self.options
        solvers = options.forward, options.backward
        made = stage_layer(self.field, like, arrays, *solvers, options.layer, self.policy)
        return replace(made, settles=settles)

    def _summed(self, told: Arrays) -> Arrays:
        """Return the statuses of all steps, and the sums of the counts; constants."""
        status, *counts = (self.backend.constant(x) for x in told)
        return (status, *(array_namespace(x).sum(x, axis=0) for x in counts))
