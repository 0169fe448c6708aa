"""The implicit stage z = base + gh f(t, z, *args) as a layer in base, t, gh and the arguments.

The coupled stages of a step of collocation are one such layer, too, with one longer unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from dil._base.arrays import array_namespace, full
from dil._base.typing import Array, Arrays, Tree
from dil._diagnostics.failure_policy import Policy
from dil._diagnostics.record import add_entry, recording
from dil._frameworks.arguments import split_arguments, with_complex_split
from dil._frameworks.protocol import Rule
from dil._layers.call import Call, Solver
from dil._layers.independence import check_independence
from dil._layers.theorem import ImplicitRule
from dil._problem.equation import Equation
from dil._problem.score import Score
from dil._problem.space import space_of
from dil.linear._solver import LinearSolver
from dil.ode._collocation import Collocation
from dil.ode._field import Field
from dil.solvers._anderson import Anderson
from dil.solvers._fixed_point import FixedPoint


def condition_of(field: Field, layer: str, solver: Solver, collocation: Collocation | None = None) -> Score | Equation:
    """Return the condition of a stage: an equation, or the least squares of Look et al. 2020, eq. 4, squared.

    A fixed-point solver gets z -> base + gh f(t, z); other solvers get the residual.
    """
    batch_ndim = len(field.space.batch)

    def step(z: Array, base: Array, t: Array, gh: Array, *args: Tree) -> Array:
        if collocation is not None:
            return collocation.image(field, z, base, t, gh, *args)
        return base + gh * field(t, z, *args)

    residual = field.residual if collocation is None else partial(collocation.residual, field)

    def score(z: Array, *rest: Tree) -> Array:
        r = residual(z, *rest)
        return 0.5 * array_namespace(r).sum(r * r, axis=-1)  # type: ignore[no-any-return]

    if layer == "argmin":
        return Score(StageFunction(score, field.func), batch_ndim)
    if isinstance(solver, FixedPoint | Anderson):
        return Equation(StageFunction(step, field.func), batch_ndim, "step")
    return Equation(StageFunction(residual, field.func), batch_ndim, "residual")


@dataclass(frozen=True, eq=False)
class StageFunction:
    """A function of a stage, made anew for each integration."""

    fn: Callable[..., Array]
    identity: Callable[..., Tree]
    """The user's function, by which the checks of first calls remember this one."""

    @property
    def __name__(self) -> str:
        """The name of the user's function in messages."""
        return getattr(self.identity, "__name__", type(self.identity).__name__)

    def __call__(self, *args: Tree) -> Array:
        return self.fn(*args)


@dataclass(frozen=True)
class StageLayer:
    """The layer, ready for many calls of one structure.

    Codes and counts have the dtype of the state, since every output of a layer has a derivative. Theirs is zero.
    """

    call: Call
    rule: Rule
    applies_policy: bool = False
    """Whether each call applies the policy. The forward pass applies it once, at its end, so its layers do not."""

    def __call__(self, base: Array, t: Array, gh: Array, arrays: Arrays, guess: Array) -> tuple[Array, Arrays]:
        """Return z, differentiable in all but the guess, and the status and the counts of the solver."""
        backend = self.call.backend
        given = (base, t, gh, *arrays)
        z, *outcome = backend.implicit(self._forward, self.rule)(*given, backend.constant(guess))
        check_independence(self.call, z, list(given))
        return z, tuple(backend.constant(x) for x in outcome)

    def known(self, base: Array, t: Array, gh: Array, arrays: Arrays, z: Array) -> Array:
        """Return z, which solves the stage already. It is differentiable as the result of a call."""
        backend, given = self.call.backend, (base, t, gh, *arrays)
        z = backend.constant(z)
        self.call.space = space_of(z, self.call.condition.batch_ndim, "the state")[1]
        (found,) = backend.implicit(lambda *every: every[-1:], self.rule)(*given, z)
        check_independence(self.call, z, list(given))
        return found

    def _forward(self, *arrays: Array) -> Arrays:
        z, solution, _ = self.call.run(arrays)
        assert solution.status is not None
        if recording():
            details = {"iterations": solution.iterations, "residual": solution.residual}
            add_entry(self.call.backend, self.call.policy, "forward", {"status": solution.status, **details})
        if self.applies_policy:
            z = self.call.policy.apply(self.call.backend, "step back in time", solution.status, z)
        zero = full(z[..., 0], 0.0)
        counts = (solution.status, solution.iterations, (solution.extra or {}).get("linear"))
        xp = array_namespace(z)
        return (z, *(zero if x is None else xp.astype(x, z.dtype) + zero for x in counts))


@dataclass(frozen=True)
class StageRule:
    """The theorem for z. The other outputs are constants."""

    theorem: ImplicitRule

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return the theorem's pullback of z."""
        return self.theorem.pullback(args, y[:1], cotangents[:1], wrt)

    def pullbacks(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return the theorem's pullbacks of z, for many cotangents."""
        return self.theorem.pullbacks(args, y[:1], cotangents[:1], wrt)

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return the theorem's pushforward of z."""
        (dz,) = self.theorem.pushforward(args, y[:1], tangents)
        return (dz, *(full(x, 0.0) for x in y[1:]))


def stage_layer(
    field: Field,
    like: tuple[Array, Array],
    arrays: Arrays,
    solver: Solver,
    linear_solver: LinearSolver,
    layer: str,
    policy: Policy,
    collocation: Collocation | None = None,
) -> StageLayer:
    """Return the layer for states and times like the pair `like`: one stage, or the stages of a step of collocation."""
    u, t = like
    args, _ = field.arguments.call(arrays)
    _, arguments = with_complex_split(*split_arguments((u, t, t, *args), {}))
    _, start = split_arguments((u if collocation is None else collocation.tiled(u),), {})
    condition = condition_of(field, layer, solver, collocation)
    call = Call(condition, solver, linear_solver, policy, 0, field.backend, arguments, start)
    return StageLayer(call, StageRule(ImplicitRule(call.problem, linear_solver, policy, "first")))
