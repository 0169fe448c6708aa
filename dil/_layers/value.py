"""The optimal value of a score, v = min_u f(u, *args), whose gradient needs no linear solve (envelope theorem)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from dil._base.arrays import array_namespace, eps, full
from dil._base.errors import SecondDerivativeError
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Arrays, OnFailure, Tree
from dil._diagnostics.envelope import check_envelope
from dil._diagnostics.failure_policy import frameworks_of
from dil._diagnostics.record import Record, add_entry, recording, with_records_of_forward_call
from dil._frameworks.adoption import run_in_its_framework
from dil._frameworks.forward_mode import jvp_from_vjp
from dil._frameworks.protocol import Vectorise
from dil._frameworks.registry import guarded
from dil._layers.argmin import argmin
from dil._layers.batched_call import batched_call
from dil._layers.call import Call, Solver, solved
from dil._layers.first_calls import is_readable
from dil._layers.independence import check_independence
from dil._layers.layer import Layer, value_at_start
from dil._layers.programs import Programs
from dil._layers.score_check import check_score
from dil._layers.theorem import ImplicitRule
from dil._problem.problem import Optimality
from dil.linear._solver import LinearSolver


def value(
    score: Callable[..., Any],
    solver: Solver,
    *,
    linear_solver: LinearSolver | None = None,
    batch_ndim: int = 0,
    init: Tree | Callable[..., Tree] | None = None,
    on_failure: OnFailure = "warn",
    refine: int = 0,
) -> Value:
    """Return the function v(*args, **kwargs) = min_u score(u, *args, **kwargs).

    Parameters
    ----------
    score, solver, batch_ndim, init, on_failure, refine
        As in `dil.argmin`.
    linear_solver : callable, optional
        Used only for second derivatives, which depend on dy/dargs; `dil.linear.Auto()` by default.

    Returns
    -------
    Value
        Called as `v(*args, init=None, **kwargs)`: one number per problem, shape batch, differentiable in every float
        array of every argument.

    Raises
    ------
    OptionError
        If an option is out of range.

    Notes
    -----
    dv/dargs = df/dargs at the solution (envelope theorem: Milgrom and Segal 2002, Theorem 1). If y has a small error e,
    the error of v is O(e^2). The error of the gradient of v is O(e).

    Computing the derivative also checks that y is a minimum, and applies the policy. The check takes one product with
    the Hessian along df/du, and about 8 others; twice as many if df/du is not small. on_failure="ignore" skips it.

    Examples
    --------
    >>> import numpy as np, dil
    >>> v = dil.value(lambda u, t: (u - t) ** 2 + t**3, dil.solvers.Newton(), init=lambda t: t)
    >>> dil.grad(v)(np.asarray(2.0))
    np.float64(12.0)
    """
    layer = argmin(
        score,
        solver,
        linear_solver=linear_solver,
        batch_ndim=batch_ndim,
        init=init,
        on_failure=on_failure,
        refine=refine,
    )
    return Value(layer)


@dataclass(frozen=True, eq=False)
class Value:
    """The least value of a score as a function of its arguments; made by `dil.value`."""

    layer: Layer
    """The layer whose solution the value belongs to."""
    programs: Programs = field(default_factory=Programs, init=False, repr=False)

    def __repr__(self) -> str:
        return repr(self.layer).replace("dil.argmin", "dil.value", 1)

    def __call__(self, *args: Tree, init: Tree | None = None, **kwargs: Tree) -> Array:
        """Return v, one number per problem, differentiable in every float array of the arguments."""
        return guarded(run_in_its_framework, self._least, partial(value_at_start, self.layer), args, kwargs, init)  # type: ignore[no-any-return]

    def _least(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], init: Tree | None) -> Array:
        call, arrays = self.layer.begin(args, kwargs, init)
        if self.programs.need_the_solution(call, arrays):
            call, arrays = solved(call, arrays)
        program = self.programs.find(call, arrays, lambda call: partial(_least_of, call, self.rule(call)))
        if program is None:
            v, y = _least_of(call, self.rule(call), *arrays)
        else:
            call = program.call
            v, y = program.run(*arrays)
        check_independence(call, y, arrays)
        return check_score(call, y, arrays, self.layer.check_smoothness, v)

    def rule(self, call: Call) -> EnvelopeRule:
        """Return the rule that differentiates the value of one call with respect to its arrays."""
        return EnvelopeRule(call, self.layer.rule(call))

    def solve(self, *args: Tree, init: Tree | None = None, **kwargs: Tree) -> Solution:
        """Return the solver's whole answer, the minimiser as its value."""
        return self.layer.solve(*args, init=init, **kwargs)


def _least_of(call: Call, rule: EnvelopeRule, *arrays: Array) -> Arrays:
    """Return the value of one call and its minimiser as a vector, the value differentiable in the arrays."""
    v, y, *_ = call.differentiable(rule.solve, rule, list(arrays))
    call.refuse_captured(y, list(arrays))
    return (v, call.backend.constant(y))


@dataclass(frozen=True)
class EnvelopeRule:
    """The derivative of v = f(y, args) at a minimiser y: the partial derivative in args. y follows v in the outputs.

    A second derivative solves a linear system, since y depends on the arguments.
    """

    call: Call
    theorem: ImplicitRule
    """The derivative of y."""

    @property
    def records(self) -> tuple[Record, ...]:
        """The records that were open at the forward call."""
        return self.theorem.records

    def solve(self, *arrays: Array) -> Arrays:
        """Return the value, and what the call returns."""
        y, *remembered = self.call.forward(*arrays)
        return (self.call.problem().value(y, *arrays[: len(self.call.arguments.arrays)]), y, *remembered)

    def batched(
        self, axes: Sequence[bool], size: int, vectorise: Vectorise
    ) -> tuple[Callable[..., Arrays], EnvelopeRule] | None:
        """Return the solve and the rule of `size` calls at once, or None if they are made one after the other."""
        call = batched_call(self.call, axes, size, vectorise)
        if call is None:
            return None
        rule = EnvelopeRule(call, replace(self.theorem, find=call.problem, call=call))
        return rule.solve, rule

    @with_records_of_forward_call
    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return v df/dargs for the arguments in `wrt`."""
        problem = self.call.problem()
        score, at = self._score(args, y)
        _, pull = self.call.backend.vjp(score, *at)
        return pull(cotangents[:1], [1 + problem.arguments.floats.index(i) for i in wrt])

    @with_records_of_forward_call
    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return df/dargs t, and zero for the other outputs."""
        still = tuple(full(x, 0.0) for x in y[1:])
        t = [tangents[i] for i in self.call.problem().arguments.floats]
        if all(tangent is None for tangent in t):
            return (full(y[0], 0.0), *still)
        score, at = self._score(args, y)
        return (*jvp_from_vjp(self.call.backend, score, at, (None, *t))[1], *still)

    def _score(self, args: Arrays, y: Arrays) -> tuple[Callable[..., Arrays], Arrays]:
        """Return f(u, *floats) and its point: u too is differentiated, since f may use its namespace on the others."""
        F, floats = self.call.problem().optimality(args)
        return self._values(F), (self._minimiser(args, y), *floats)

    def _values(self, F: Optimality) -> Callable[..., Arrays]:
        """Return f(u, *floats), in a tuple."""
        problem = F.problem

        def score(u: Array, *floats: Array) -> Arrays:
            return (problem.value(u, *problem.arguments.with_floats(F.others, floats)),)

        return score

    def _minimiser(self, args: Arrays, y: Arrays) -> Array:
        """Return the minimiser, checked, with its derivative in the arguments."""
        backend, rule = self.call.backend, MinimiserRule(self)
        u, *_ = backend.implicit(rule.solve, rule)(*args, *(backend.constant(x) for x in y[1:]))
        return u

    def checked(self, args: Arrays, u: Array) -> Array:
        """Apply the policy where u is not a minimum, so that the envelope theorem does not hold."""
        policy, problem = self.theorem.policy, self.call.problem()
        if policy.on_failure == "ignore" and not recording():
            return u
        F, floats = problem.optimality(args)
        try:
            check = check_envelope(F, self._values(F), u, floats)
            seen = self.theorem.smooth(check.status, F, check.H, check.Fu, check.here)
        except SecondDerivativeError as error:
            return self._unchecked(u, error)
        # at a kink the value has a derivative all the same, since u is still a minimiser
        xp = array_namespace(u)
        status = xp.where(seen == int(Status.KINK), check.status, seen)
        if is_readable(problem.backend, u):
            (v,), (again,) = (self._values(F)(u, *floats) for _ in range(2))
            random = xp.abs(v - again) > 64 * eps(xp, u.dtype) * xp.abs(v)
            status = xp.where(random, full(status, int(Status.RANDOM)), status)
        if recording():
            add_entry(problem.backend, policy, "backward", {"status": status, "stationarity": check.stationarity})
        return policy.apply(problem.backend, "derivative of the value", status, u)

    def _unchecked(self, u: Array, error: SecondDerivativeError) -> Array:
        """Say that u was not checked. The derivative of the value needs no second derivative of the score."""
        policy, backend = self.theorem.policy, self.call.backend
        if policy.on_failure in ("warn", "raise"):
            message = (
                f"{policy.layer}: derivative of the value: whether the solution is a minimum was not checked, since "
                f"that needs a second derivative; the gradient is right if it is; on_failure='ignore' "
                f"skips the check ({error})"
            )
            replace(policy, on_failure="warn").warn_or_raise(frameworks_of(backend), message)
        return u


@dataclass(frozen=True)
class MinimiserRule:
    """The derivative of a minimiser that is known: after the arrays of the call come its outputs."""

    envelope: EnvelopeRule

    @property
    def _count(self) -> int:
        return len(self.envelope.call.arguments.arrays) + len(self.envelope.call.start.arrays)

    def solve(self, *arrays: Array) -> Arrays:
        """Return the outputs, the minimiser checked."""
        u, *remembered = arrays[self._count :]
        return (self.envelope.checked(arrays[: self._count], u), *remembered)

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return the cotangents of the theorem."""
        return self.envelope.theorem.pullback(args, y, cotangents, wrt)

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return the tangents of the theorem."""
        return self.envelope.theorem.pushforward(args, y, tangents)

    def batched(
        self, axes: Sequence[bool], size: int, vectorise: Vectorise
    ) -> tuple[Callable[..., Arrays], MinimiserRule] | None:
        """Return the check and the rule of `size` calls at once, or None if they are made one after the other."""
        many = self.envelope.batched(axes[: self._count], size, vectorise) if all(axes[self._count :]) else None
        if many is None:
            return None
        call = many[1].call
        call.space, call.has_start = self.envelope.call.problem().space.many(size), self.envelope.call.has_start
        rule = MinimiserRule(many[1])
        return rule.solve, rule
