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
FIRST_PROBES = 4
"""How many of them come first, and are enough where the change along them is small."""
FIRST_SHARE = 0.25
"""The share of an accepted change that is small along the first ones. One problem in a hundred whose change is the
accepted one, and one in 1,400 whose change is twice as large, has so little along four of them (an F distribution)."""
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

    A linear solver that names another one for such steps, as that of a loose fixed-point layer does, leaves a residual
    in the step. The exact step along b is <g, F>, and it must be short, too.
    """
    loop, backend, xp = F.problem.backend.loops.while_loop, F.problem.backend, array_namespace(b)
    J, scale = A.T if A.transposed else A, nonzero_scale(here.scale)
    step = getattr(linear_solver, "_of_steps", linear_solver)(J, Fu, loop=loop).value
    along = abs(inner(here.g, Fu)) if A.transposed else None
    u = here.u - step
    (Fu1,), pull = backend.vjp(F, u, *here.floats)
    J1 = replace(operator(F.problem, pull, u, F.arrays(here.floats)), pairs=A.pairs)
    if not A.transposed:
        b = standard_normal(backend, b, 1, 0)[0, ...] / scale
        here = here._replace(g=linear_solver(J.T, b, loop=loop).value)
    there = here._replace(u=u, g=_solved_from(here.g, linear_solver, J1.T, b, F.problem.backend))
    # in the energy of the step the unknowns of a score need no common unit
    weight = step if F.problem.symmetric else Fu
    weight = weight / nonzero_max_abs(weight)
    contracts = xp.sum(xp.abs(weight * Fu1), axis=-1) <= 0.5 * xp.sum(xp.abs(weight * Fu), axis=-1)
    weight = xp.abs(b) if A.transposed else 1.0 / scale
    resolved = 4 * float(eps(xp, b.dtype))  # 16 bits resolve no smaller change
    accepted = max(ACCEPTED_STEP, resolved)
    moved = xp.sum(weight * xp.abs(step), axis=-1)
    moved = moved if along is None else xp.maximum(moved, along)
    short = moved <= accepted * xp.sum(weight * scale, axis=-1)
    most = xp.where(contracts, full(moved, max(ACCEPTED_CHANGE, resolved)), full(moved, max(HARMLESS_CHANGE, resolved)))
    return short & (relative_change(F, F.problem, here, there, A._pull, pull, most) <= most)  # type: ignore[no-any-return]


def _solved_from(g: Array, linear_solver: LinearSolver, A: Operator, b: Array, backend: Backend) -> Array:
    """Return the solution of A x = b. An iteration starts from g, which nearly solves it.

    A compiled program is not given this second kind of iteration.
    """
    solver: Callable[..., Solution] = linear_solver
    starts = declares(linear_solver, "_takes_start") and not runs_later(backend.loops, b)
    return solver(A, b, loop=backend.loops.while_loop, **({"x0": g} if starts else {})).value  # type: ignore[no-any-return]


def relative_change(
    F: Function,
    problem: Problem,
    here: Point,
    there: Point,
    pull_here: Gradients = None,
    pull: Gradients = None,
    most: Array | None = None,
) -> Array:
    """Return the change of g^T F_args between two points, relative to that `there`, shape batch.

    The pullbacks of F at the two points are made if they are not given. A change far below `most` need not be exact.

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
    return _change_along_probes(Sensitivities(F, problem, here, units), Sensitivities(F, problem, there, units), most)


def _change_along_probes(here: Sensitivities, there: Sensitivities, most: Array | None) -> Array:
    """Return the relative change of each problem's gradient along random directions.

    The first ones are all where each change along them is a small share of `most`. A compiled program takes all.
    """
    loops, rows = here.problem.backend.loops, []
    if most is not None and not runs_later(loops, here.at.g):
        rows = [(here.along(k), there.along(k)) for k in range(FIRST_PROBES)]
        change = _relative(rows)
        if loops.number(array_namespace(change).all(change <= FIRST_SHARE * most)) is True:
            return change
    return _relative([*rows, *((here.along(k), there.along(k)) for k in range(len(rows), PROBES))])


def _relative(rows: Sequence[tuple[Array, Array]]) -> Array:
    """Return the norm of the differences of pairs of numbers, relative to that of the second ones, shape batch."""
    xp = array_namespace(rows[0][0])
    before, after = (xp.stack(x) for x in zip(*rows, strict=True))
    return length(before - after) / nonzero_or_one(length(after))


class Sensitivities:
    """Numbers whose norm is that of each problem's gradient in the arguments, -g^T F_args, along random directions.

    The gradient of a batch in each argument is divided by its entry of `units`, shape ().
    """

    def __init__(self, F: Function, problem: Problem, at: Point, units: Sequence[Array] | None = None) -> None:
        backend, wrt = problem.backend, at.wanted
        self.problem, self.at = problem, at
        # u is differentiated too, as in the pullback, so that all arrays of the function share one namespace
        _, pull = backend.vjp(F, at.u, *at.floats)
        _, self.push = backend.vjp(lambda w: pull((w,), wrt), array_namespace(at.g).zeros_like(at.g))
        probes = [standard_normal(backend, at.floats[i - 1], PROBES, i - 1) for i in wrt]
        self.probes = probes if units is None else [x / unit for x, unit in zip(probes, units, strict=True)]

    def along(self, k: int) -> Array:
        """Return the derivative of <g, F> along direction k, shape batch."""
        return inner(self.at.g, self.push(tuple(t[k, ...] for t in self.probes))[0])


def sensitivities(F: Function, problem: Problem, at: Point) -> Array:
    """Return numbers, (k, *batch), whose norm is that of each problem's gradient in the arguments, -g^T F_args."""
    xp = array_namespace(at.g)
    if at.g.ndim == 1:
        # u is differentiated too: see `Sensitivities`
        _, pull = problem.backend.vjp(F, at.u, *at.floats)
        return xp.concat([flat(x) for x in pull((at.g,), at.wanted)])  # type: ignore[no-any-return]
    along = Sensitivities(F, problem, at).along
    return xp.stack([along(k) for k in range(PROBES)])  # type: ignore[no-any-return]


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
