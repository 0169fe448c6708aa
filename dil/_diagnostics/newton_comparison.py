"""The derivative of a solution at y, compared with the derivative one Newton step further."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from dil._base.arrays import array_namespace, eps, full, inner, nonzero_max_abs, nonzero_or_one, norm
from dil._base.operator import Operator
from dil._base.options import declares
from dil._base.scale import nonzero_scale
from dil._base.solution import Solution
from dil._base.typing import Array, Arrays
from dil._frameworks.loops import runs_later
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import standard_normal
from dil._problem.jacobian import operator
from dil._problem.problem import Optimality, Problem
from dil.linear._solver import LinearSolver

PROBES = 16
"""The number of random directions along which the gradients of the problems of a batch are compared."""
HARMLESS_CHANGE = 1e-3
"""A relative change of the gradient that is accepted without a look at the Newton step."""
ACCEPTED_CHANGE = 1e-2
"""The largest relative change that is accepted if the Newton step lowers F."""
ACCEPTED_STEP = 1e-2
"""The largest Newton step that is accepted, relative to u."""


Function = Callable[..., Arrays]
"""F(u, *floats), an array in a tuple."""
Gradients: TypeAlias = Callable[..., Arrays] | None
"""A pullback of F, if it is at hand."""


class Point(NamedTuple):
    """A candidate for the solution, (*batch, n), the vector g that the linear system gave there, and the arguments."""

    u: Array
    g: Array
    floats: Arrays
    scale: Array
    """The size of each entry of u; see `scale_of`."""
    wrt: tuple[int, ...] | None = None
    """The places in (u, *floats) of the arguments whose gradient is wanted; None: of all."""

    @property
    def wanted(self) -> tuple[int, ...]:
        """The places of the arguments whose gradient is compared."""
        return tuple(range(1, 1 + len(self.floats))) if self.wrt is None else self.wrt


def derivative_holds(
    F: Optimality, A: Operator, b: Array, Fu: Array, here: Point, linear_solver: LinearSolver
) -> Array:
    """Return whether the derivative at u is that of the solution near u, shape batch.

    A is J^T (pullback) or J (pushforward) at u, and A g = b. The Newton step gives u' = u - J^-1 F(u), where the linear
    system of the pullback gives g'. There are two measures. One is the change of g^T F_args from u to u', relative to
    its size, each argument in its own units: at most 1 percent. The other is the step itself, since the loss is
    differentiated at u, too: at most 1 percent of u, each entry weighted by its cotangent. Of 16 bits, 4 eps take the
    place of 1 percent. Neither measure depends on the units of u, F and the arguments. In a pushforward the cotangent
    is a random one: b changes with u there.
    """
    loop, backend, xp = F.problem.backend.loops.while_loop, F.problem.backend, array_namespace(b)
    J, scale = A.T if A.transposed else A, nonzero_scale(here.scale)
    step = linear_solver(J, Fu, loop=loop).value
    u = here.u - step
    (Fu1,), pull = backend.vjp(F, u, *here.floats)
    J1 = replace(operator(F.problem, pull, u, here.floats), pairs=A.pairs)
    if not A.transposed:
        b = standard_normal(backend, b, 1, 0)[0, ...] / scale
        here = here._replace(g=linear_solver(J.T, b, loop=loop).value)
    there = here._replace(u=u, g=_solved_from(here.g, linear_solver, J1.T, b, F.problem.backend))
    change = relative_change(F, F.problem, here, there, A._pull, pull)
    # in the energy of the step the unknowns of a score need no common unit
    weight = step if F.problem.symmetric else Fu
    weight = weight / nonzero_max_abs(weight)
    contracts = xp.sum(xp.abs(weight * Fu1), axis=-1) <= 0.5 * xp.sum(xp.abs(weight * Fu), axis=-1)
    weight = xp.abs(b) if A.transposed else 1.0 / scale
    resolved = 4 * float(eps(xp, b.dtype))  # 16 bits resolve no smaller change
    accepted = max(ACCEPTED_STEP, resolved)
    short = xp.sum(weight * xp.abs(step), axis=-1) <= accepted * xp.sum(weight * scale, axis=-1)
    small = (change <= max(HARMLESS_CHANGE, resolved)) | (contracts & (change <= max(ACCEPTED_CHANGE, resolved)))
    return short & small  # type: ignore[no-any-return]


def _solved_from(g: Array, linear_solver: LinearSolver, A: Operator, b: Array, backend: Backend) -> Array:
    """Return the solution of A x = b. An iteration starts from g, which nearly solves it.

    A compiled program is not given this second kind of iteration.
    """
    solver: Callable[..., Solution] = linear_solver
    starts = declares(linear_solver, "_takes_start") and not runs_later(backend.loops, b)
    return solver(A, b, loop=backend.loops.while_loop, **({"x0": g} if starts else {})).value  # type: ignore[no-any-return]


def relative_change(
    F: Function, problem: Problem, here: Point, there: Point, pull_here: Gradients = None, pull: Gradients = None
) -> Array:
    """Return the change of g^T F_args between two points, relative to that `there`, shape batch.

    The pullbacks of F at the two points are made if they are not given.

    A gradient that is zero up to a share eps ** (1/2) of its terms, as by a symmetry, has the size of that share.
    """
    pull = problem.backend.vjp(F, there.u, *there.floats)[1] if pull is None else pull
    leaves, terms = gradients(pull, there), gradients(pull, _with_random_signs(problem, there))
    share = float(eps(array_namespace(there.g), there.g.dtype) ** 0.5)
    units = [unit_of(x, share * norm(flat(term))[0, ...]) for x, term in zip(leaves, terms, strict=True)]
    if there.g.ndim == 1:
        pull_here = problem.backend.vjp(F, here.u, *here.floats)[1] if pull_here is None else pull_here
        before = gradients(pull_here, here)
        changes = [norm(flat(x - y) / unit) for x, y, unit in zip(leaves, before, units, strict=True)]
        return sum(changes[1:], start=changes[0])[0, ...]
    right = sensitivities(F, problem, there, units)
    return length(sensitivities(F, problem, here, units) - right) / nonzero_or_one(length(right))


def sensitivities(F: Function, problem: Problem, at: Point, units: Sequence[Array] | None = None) -> Array:
    """Return numbers, (k, *batch), whose norm is that of each problem's gradient in the arguments, -g^T F_args.

    The gradient of a batch in each argument is divided by its entry of `units`, shape ().
    """
    backend, xp = problem.backend, array_namespace(at.g)

    # u is differentiated too, as in the pullback, so that all arrays of the function share one namespace
    _, pull = backend.vjp(F, at.u, *at.floats)
    wrt = at.wanted
    if at.g.ndim == 1:
        return xp.concat([flat(x) for x in pull((at.g,), wrt)])  # type: ignore[no-any-return]
    _, push = backend.vjp(lambda w: pull((w,), wrt), xp.zeros_like(at.g))
    probes = [standard_normal(backend, at.floats[i - 1], PROBES, i - 1) for i in wrt]
    if units is not None:
        probes = [x / unit for x, unit in zip(probes, units, strict=True)]
    along = [push(tuple(t[k, ...] for t in probes))[0] for k in range(PROBES)]
    return xp.stack([inner(at.g, Ft) for Ft in along])  # type: ignore[no-any-return]


def gradients(pull: Callable[..., Arrays], at: Point) -> Arrays:
    """Return g^T F_args for each wanted argument. Problems of a batch are summed where they share an argument."""
    return pull((at.g,), at.wanted)


def _with_random_signs(problem: Problem, at: Point) -> Point:
    xp = array_namespace(at.g)
    return at._replace(g=at.g * xp.sign(standard_normal(problem.backend, at.g, 1, 0)[0, ...]))


def unit_of(x: Array, least: Array) -> Array:
    """Return the norm of all entries or `least`, the larger one, shape (); one where it is zero or not finite."""
    xp = array_namespace(x)
    size = xp.maximum(norm(flat(x))[0, ...], least)
    return xp.where((size > 0) & xp.isfinite(size), size, full(size, 1.0))  # type: ignore[no-any-return]


def flat(x: Array) -> Array:
    """Return the entries of an array as a vector."""
    return array_namespace(x).reshape(x, (-1,))  # type: ignore[no-any-return]


def length(rows: Array) -> Array:
    """Return the norm over the first axis, safe for tiny and huge entries."""
    xp = array_namespace(rows)
    return norm(xp.moveaxis(rows, 0, -1))[..., 0]
