"""The optimal value of a score, v = min_u f(u, *args): by the envelope theorem its gradient needs no linear solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dil._argmin import argmin
from dil._arrays import array_namespace
from dil._call import Solver
from dil._differentiate import jvp
from dil._layer import Layer
from dil._problem import Problem
from dil._registry import shielded
from dil._solution import Solution
from dil._typing import Array, Arrays, OnFailure, Tree
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
        For second derivatives alone, which depend on dy/dargs; `dil.linear.Auto()` by default.

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
    dv/dargs = df/dargs at the solution (envelope theorem: Milgrom and Segal 2002, Theorem 1). At an inexact y the error
    of v is of second order in the error of y, that of its gradient of first order.

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

    def __call__(self, *args: Tree, init: Tree | None = None, **kwargs: Tree) -> Array:
        """Return v, one number per problem, differentiable in every float array of the arguments."""
        return shielded(self._least, args, kwargs, init)  # type: ignore[no-any-return]

    def _least(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], init: Tree | None) -> Array:
        call, arrays, y = self.layer.vector(args, kwargs, init)
        problem, own = call.problem(), arrays[: len(call.arguments.arrays)]
        (v,) = call.backend.implicit(lambda u, *xs: (problem.value(u, *xs),), EnvelopeRule(problem))(y, *own)
        return v

    def solve(self, *args: Tree, init: Tree | None = None, **kwargs: Tree) -> Solution:
        """Return the solver's whole answer, the minimiser as its value."""
        return self.layer.solve(*args, init=init, **kwargs)


@dataclass(frozen=True)
class EnvelopeRule:
    """The derivative of f(y, args) at a minimiser y: none in y; that in args differentiates again in y."""

    problem: Problem

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Sequence[Array | None]:
        """Return v df/dargs for the arguments, and nothing for y."""
        chosen = [self.problem.arguments.floats.index(i - 1) for i in wrt if i > 0]
        found: dict[int, Array] = {}
        if chosen:
            _, pull = self.problem.backend.vjp(self._of_floats(args), *self._floats(args))
            found = dict(zip((i for i in wrt if i > 0), pull(cotangents, chosen), strict=True))
        return tuple(found.get(i) for i in wrt)

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return df/dargs t."""
        t = [tangents[1 + i] for i in self.problem.arguments.floats]
        if all(tangent is None for tangent in t):
            return (array_namespace(y[0]).zeros_like(y[0]),)
        return jvp(self.problem.backend, self._of_floats(args), self._floats(args), t)[1]

    def _floats(self, args: Arrays) -> Arrays:
        return self.problem.arguments.only_floats(args[1:])

    def _of_floats(self, args: Arrays) -> Callable[..., Arrays]:
        u, arrays = args[0], args[1:]
        arguments = self.problem.arguments
        return lambda *floats: (self.problem.value(u, *arguments.with_floats(arrays, floats)),)
