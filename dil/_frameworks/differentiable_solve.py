"""A linear solve with a differentiable solution, for frameworks that record operations as they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from dil._base.typing import Array, Arrays
from dil._frameworks.forward_mode import jvp_from_vjp
from dil._frameworks.many import with_many
from dil._frameworks.no_systems import NoSystems
from dil._frameworks.protocol import Autodiff, LinearSystem, Pull, Vectorise

T = TypeVar("T")


def differentiable_solve(backend: Autodiff, system: LinearSystem, b: Array) -> Array:
    """Solve A(params) x = b, with `LinearRule` as the derivative of x.

    The rule calls `backend.linear_solve` and products with A only, so x has derivatives of every order.
    """
    rule = LinearRule(backend, system)
    (x,) = backend.implicit(rule.solution, rule)(b, *system.params, *system.fixed, *system.constants)
    return x


@dataclass(frozen=True)
class LinearRule:
    """The derivative of x = A(params)^-1 b: A dx = db - dA x."""

    backend: Autodiff
    system: LinearSystem

    def solution(self, b: Array, *arrays: Array) -> Arrays:
        """Return x. The parameters, the fixed arrays and the constants follow b."""
        count = len(self.system.params) + len(self.system.fixed)
        return (self.system.solve(self.system.operator(*arrays[:count]), b, *arrays[count:]),)

    def batched(
        self, axes: Sequence[bool], size: int, vectorise: Vectorise
    ) -> tuple[Callable[..., Arrays], LinearRule | NoSystems] | None:
        """Return the solve and the rule for many right-hand sides of one matrix, or for many systems."""
        if size == 0:
            none = NoSystems(axes[0])
            return none.solution, none
        if axes[0] and not any(axes[1:]):
            rule = replace(self, system=with_many(self.system))
            return rule.solution, rule
        system = self.system
        params, fixed, _ = self._split(axes)
        if not axes[0] or system.batched is None:
            return None
        many = system.batched(system, params, fixed, size, vectorise)
        if many is None:
            return None
        rule = replace(self, system=many)
        return rule.solution, rule

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return w = A^-T v for b, and the gradient of -<w, A(params) x> at fixed x for the parameters."""
        return self._pulled(self.system.T, args, y, cotangents, wrt, lambda pull: pull)

    def pullbacks(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return the same for many v, (k, *batch, n), by one solve with many right-hand sides."""
        return self._pulled(with_many(self.system.T), args, y, cotangents, wrt, lambda pull: pull.many)

    def _pulled(
        self,
        system: LinearSystem,
        args: Arrays,
        y: Arrays,
        cotangents: Arrays,
        wrt: Sequence[int],
        pulls: Callable[[Pull], Callable[[Arrays], Arrays]],
    ) -> Arrays:
        (x,), (params, _, _) = y, self._split(args)
        w = self._solve(system, args, cotangents[0])
        chosen = [i - 1 for i in wrt if i > 0]
        found: dict[int, Array] = {0: w}
        if chosen:
            _, pull = self.backend.vjp(
                lambda *values: self._product(args, chosen, values, x), *(params[i] for i in chosen)
            )
            found.update(zip((i + 1 for i in chosen), pulls(pull)((-w,)), strict=True))
        return tuple(found[i] for i in wrt)

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return A^-1 (db - dA x)."""
        (x,), (params, _, _), db = y, self._split(args), tangents[0]
        rhs, dparams = db, tangents[1 : 1 + len(params)]
        if any(tangent is not None for tangent in dparams):
            every = range(len(params))
            _, (dAx,) = jvp_from_vjp(
                self.backend, lambda *values: self._product(args, every, values, x), params, dparams
            )
            rhs = -dAx if db is None else db - dAx
        assert rhs is not None
        return (self._solve(self.system, args, rhs),)

    def _split(self, args: Sequence[T]) -> tuple[tuple[T, ...], tuple[T, ...], tuple[T, ...]]:
        """Return the parameters, the fixed arrays and the constants, which follow b."""
        first = 1 + len(self.system.params)
        second = first + len(self.system.fixed)
        return tuple(args[1:first]), tuple(args[first:second]), tuple(args[second:])

    def _product(self, args: Arrays, chosen: Sequence[int], values: Sequence[Array], x: Array) -> Arrays:
        params, fixed, _ = self._split(args)
        merged = dict(zip(chosen, values, strict=True))
        return (self.system.operator(*(merged.get(i, p) for i, p in enumerate(params)), *fixed)(x),)

    def _solve(self, system: LinearSystem, args: Arrays, b: Array) -> Array:
        params, fixed, constants = self._split(args)
        A = system.operator(*params, *fixed)
        known = replace(system, params=params, fixed=fixed, A=A, constants=constants)
        return self.backend.linear_solve(known, b)
