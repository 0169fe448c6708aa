"""The adjoint method: gradients from an ODE that is solved backwards in time (Chen et al. 2018, Algorithm 2).

y is the state and a = dL/dy. The ODE is  dy/dt = f,  da/dt = -(df/dy)^T a,  dq/dt = -(df/dargs)^T a.  It is solved from
the last time to the first, where q = dL/dargs. With s = -t all signs change, and the method steps forward in s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from dil._base.arrays import array_namespace, full
from dil._base.operator import Operator
from dil._base.typing import Array, Arrays
from dil._diagnostics.failure_policy import Policy
from dil._diagnostics.record import Record, open_records, with_records_of_forward_call
from dil._frameworks.protocol import LinearSystem, ReverseRule
from dil.linear._solver import LinearSolver
from dil.ode._collocation import Collocation
from dil.ode._field import Field
from dil.ode._in_turn import InTurn
from dil.ode._methods import Method
from dil.ode._state import plus, slope_between
from dil.ode._step_stages import Solve, VectorStages, add_outcomes, initial_guess
from dil.ode._sweep import grid_of, sweep


@dataclass(frozen=True)
class AdjointRule(ReverseRule):
    """The pullback of the states at the times t, (T, *batch, n), as a function of (y0, t, *arrays)."""

    field: Field
    method: Method
    solve: Solve
    linear_solver: LinearSolver
    policy: Policy
    steps: int
    records: tuple[Record, ...] = dataclasses.field(default_factory=open_records, repr=False, compare=False)
    """The records that were open at the forward call."""

    @with_records_of_forward_call
    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> list[Array | None]:
        """Return dL/dy0, dL/dt and dL/darrays from the cotangent of the states, (T, *batch, n)."""
        (_, t, *rest), (v, *_), (states, *_) = args, cotangents, y
        arrays = rest[: len(self.field.arguments.arrays)]  # the states of found steps may follow
        xp, field = array_namespace(v), self.field
        floats = field.arguments.only_floats(arrays)

        def stages(last: Arrays) -> AdjointStages:
            return AdjointStages(self, tuple(arrays), last)

        def step_back(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
            (a, *q), (later, earlier, state, cotangent) = carry, row
            grid = grid_of(xp.stack([-later, -earlier]), self.steps)
            # restart from the state of the forward pass at every time, so that errors of the states do not add up
            start, slope = (state, a + cotangent, *q), (full(state, 0.0),)
            _, *new = sweep(self.method, field.backend, stages, start, slope, grid).last
            return tuple(new), ()

        rows = tuple(xp.flip(x, axis=0) for x in (t[1:], t[:-1], states[1:, ...], v[1:, ...]))
        first = (full(v[0, ...], 0.0), *(full(x, 0.0) for x in floats))
        (a, *q), _ = field.backend.loops.scan(step_back, first, rows)
        gradients: dict[int, Array] = dict(zip((2 + i for i in field.arguments.floats), q, strict=True))
        gradients[0] = a + v[0, ...]
        if 1 in wrt:
            gradients[1] = self._time_cotangent(t, states, v, a, tuple(arrays))
        return [gradients.get(i) for i in wrt]

    def _time_cotangent(self, t: Array, states: Array, v: Array, a: Array, arrays: Arrays) -> Array:
        """Return dL/dt, the products of slope and cotangent at each time. At the first time the cotangent is -a."""
        xp, weights = array_namespace(v), [-a, *(v[i, ...] for i in range(1, t.shape[0]))]
        slopes = (self.field.slope(t[i], states[i, ...], arrays) for i in range(t.shape[0]))
        return xp.stack([xp.sum(w * k) for w, k in zip(weights, slopes, strict=True)])  # type: ignore[no-any-return]


class AdjointStages(InTurn):
    """The stages of one step of (y, a, *q) in s = -t. Only y needs a nonlinear solve; a needs a linear one, q none."""

    def __init__(self, rule: AdjointRule, arrays: Arrays, last: Arrays) -> None:
        self.rule, self.arrays, self.last = rule, arrays, last
        self.end = last
        zero = full(last[0][..., 0], 0.0)
        self.outcome: Arrays = (zero, zero, zero)

    def solve(self, base: Arrays, t: Array, gh: Array) -> Arrays:
        """Return (y, a, *q) = base + gh (-f, (df/dy)^T a, (df/dargs)^T a), all at (-t, y)."""
        rule, (y, a, *q) = self.rule, base
        (ahead,) = plus((y,), (gh, self.last))
        guess = initial_guess(rule.field, y, -t, -gh, self.arrays, ahead)
        z, outcome = rule.solve(y, -t, -gh, self.arrays, guess)
        self.outcome = add_outcomes(self.outcome, outcome)
        self.last = self.end = tuple(rule.field.backend.constant(k) for k in slope_between((z,), (y,), gh))
        new_a = self._solve_transposed(z, t, gh, a)
        return (z, new_a, *plus(tuple(q), (gh, self._pullback(t, z, new_a)[1:])))

    def solve_collocation(
        self, nodes: Collocation, y: Arrays, first: Arrays, t: Array, h: Array
    ) -> tuple[Arrays, list[Arrays]]:
        """Return the last stage of a step of collocation and the slopes at its nodes."""
        rule, (start, a, *q) = self.rule, y
        stages = VectorStages(rule.field, rule.solve, self.arrays, (-first[0],))
        stages.solve_collocation(nodes, (start,), (-first[0],), -t, -h)
        self.outcome = add_outcomes(self.outcome, stages.outcome)
        known, xp = stages.solutions, array_namespace(a)
        z = xp.concat(known, axis=-1)
        new_a = self._solve_transposed(z, t, h, nodes.joined(nodes.weighted(nodes.tiled(a))), nodes)
        parts = nodes.parts(new_a)
        of_q = [self._pullback(t + c * h, known[i], parts[..., i, :])[1:] for i, c in enumerate(nodes.nodes)]
        of_state = zip(nodes.slopes(z, start, h), nodes.slopes(new_a, a, h), of_q, strict=True)
        slopes: list[Arrays] = [(*k, *m, *rest) for k, m, rest in of_state]
        self.last = self.end = tuple(map(rule.field.backend.constant, slopes[-1][:1]))
        new_q = plus(tuple(q), *((w * h, k) for w, k in zip(nodes.matrix[-1], of_q, strict=True)))
        return (known[-1], parts[..., -1, :], *new_q), slopes

    def slope(self, t: Array, y: Arrays) -> Arrays:
        """Return (-f, (df/dy)^T a, (df/dargs)^T a)."""
        return (-self.rule.field.slope(-t, y[0], self.arrays), *self._pullback(t, y[0], y[1]))

    def _function(self, t: Array, u: Array, *floats: Array) -> Arrays:
        arrays = self.rule.field.arguments.with_floats(self.arrays, floats)
        return (self.rule.field.at(-t, u, arrays),)

    def _pullback(self, t: Array, u: Array, a: Array) -> Arrays:
        """Return (df/dy)^T a and (df/dargs)^T a."""
        floats = self.rule.field.arguments.only_floats(self.arrays)
        _, pull = self.rule.field.backend.vjp(lambda *x: self._function(t, *x), u, *floats)
        return pull((a,))

    def _solve_transposed(self, u: Array, t: Array, gh: Array, b: Array, nodes: Collocation | None = None) -> Array:
        """Return the solution a of (I - gh (df/dy)^T) a = b, or that of all stages of a step of collocation."""
        rule, backend = self.rule, self.rule.field.backend
        floats = rule.field.arguments.only_floats(self.arrays)

        def function(t: Array, gh: Array, w: Array, *floats: Array) -> Arrays:
            if nodes is None:
                return self._function(t, w, *floats)
            args, _ = rule.field.arguments.call(rule.field.arguments.with_floats(self.arrays, floats))
            return (nodes.joined(nodes.rates(rule.field, w, -t, -gh, args)),)

        def weighted(p: Array, *, transposed: bool = False) -> Array:
            return p if nodes is None else nodes.joined(nodes.weighted(p, transposed=transposed))

        def build(u: Array, t: Array, gh: Array, *floats: Array) -> Operator:
            _, pull = backend.vjp(lambda w: function(t, gh, w, *floats), u)
            _, push = backend.vjp(lambda w: pull((w,)), full(u, 0.0))
            return Operator(
                lambda p: weighted(p) - gh * pull((p,))[0],
                lambda p: weighted(p, transposed=True) - gh * push((p,))[0],
            )

        def solve(A: Operator, b: Array) -> Array:
            solution = rule.linear_solver(A, b, loop=backend.loops.while_loop)
            status = array_namespace(b).zeros_like(solution.iterations) if solution.status is None else solution.status
            return rule.policy.apply(backend, "linear solve of the adjoint", status, solution.value)

        params = (u, t, gh, *floats)
        return backend.linear_solve(LinearSystem(build, params, build(*params), solve), b)
