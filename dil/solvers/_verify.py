"""The last look at an iterate: whether F is within rounding there, and whether a Newton step would still move it."""

from __future__ import annotations

from collections.abc import Callable
from operator import mul
from typing import NamedTuple, TypeVar

from dil._base.arrays import (
    array_namespace,
    dot,
    eps,
    factor_dtype,
    full,
    inner,
    max_abs,
    nonzero_max_abs,
    nonzero_or_one,
)
from dil._base.errors import SecondDerivativeError
from dil._base.operator import Operator
from dil._base.scale import nonzero_scale
from dil._base.typing import Array
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import standard_normal
from dil._problem.terms import within_rounding_of_terms, within_rounding_of_unknowns
from dil.linear._cg import CG
from dil.linear._direct import dense, inverse_of_few
from dil.solvers._linearised import linearised
from dil.solvers._start import Start

V = TypeVar("V")

MOST_VERIFIED = 64
"""The most unknowns for which a solution of a method without second derivatives is verified."""
SHORT = 1e-2
"""The longest Newton step that is left at a solution, relative to u, in 16 bits."""
PRODUCTS = 8
"""The most products with the Hessian where no dense matrix is made."""


class Verdict(NamedTuple):
    """The problems that are solved, and those that only seemed so; (*batch, 1)."""

    solved: Array
    far: Array


class Most(NamedTuple):
    """What may be left at a solution: the Newton step, relative to u, and twice its promise, relative to the energy."""

    step: float
    promise: float


def solved_or_rounded(started: Start, u: Array, solved: Array, ended: Array, unverified: Array | None = None) -> Array:
    """Return the solved problems and those, among the others that ended without a failure, with F within rounding.

    Its terms are J u and those that the arguments make, so a solution that is zero within rounding is one too.
    `unverified`, by default `solved`, is the answer for a function that lacks the derivative for it.
    """
    backend, xp = started.problem.backend, array_namespace(u)
    open_ = ended & ~solved

    def look(solved: Array) -> Array:
        F, J = linearised(started, u)
        condition, floats = started.problem.optimality(started.arrays)
        return solved | (open_ & within_rounding_of_unknowns(condition, J, F, u, floats)[..., None])

    otherwise = solved if unverified is None else unverified
    return if_differentiable(lambda: backend.loops.run_if(xp.any(open_), look, solved), otherwise)


def verified(
    started: Start, u: Array, solved: Array, ended: Array, rtol: float, unverified: Array | None = None
) -> Verdict:
    """Return the verdict on a minimum that was found with gradients alone.

    A method without second derivatives can miss a direction of small curvature, which hides a large error behind a
    small gradient. For up to 64 unknowns the Newton step d is computed, or, where dense solves are slow, a lower bound
    of it (8 steps of conjugate gradients on H d = F, in units of u). One of three must hold. Each entry of d is within
    eps ** (1/3) |u|, or within eps ** (1/2) of the way from the start. The decrease that d promises, <F, d> / 2, is
    within 4 eps or rtol ** 2 of the energy <u, H u>, whichever is more, and H is definite. F is within its rounding. A
    problem that is not solved becomes so if F is within its rounding, or if the promise is within rtol ** 2 of the
    energy. A score without a second derivative is not verified: `unverified`, by default `solved`, are its solutions.
    """
    backend, xp = started.problem.backend, array_namespace(u)
    none = solved & ~solved
    if u.shape[-1] > MOST_VERIFIED:
        return Verdict(solved_or_rounded(started, u, solved, ended, unverified), none)

    def look(now: Verdict) -> Verdict:
        F, H = linearised(started, u)
        machine, few = eps(xp, u.dtype), u.shape[-1] <= max(PRODUCTS, backend.dense.crossover.symmetric)
        way = machine ** (1 / 6) * xp.abs(u - started.u)
        scale = nonzero_scale(xp.maximum(xp.abs(u), way))
        # in 16 bits, the rounding of the score hides large errors
        most = Most(min(machine ** (1 / 3), SHORT), max(min(8 * machine, SHORT**2), 2 * rtol**2))
        if few:
            matrix = dense(H, u, backend)
            all_solved = backend.loops.number(xp.all(now.solved)) is True
            if all_solved and passes_by_inverse(matrix, F, u, scale, most, backend):
                return now
            H = Operator(lambda p: (matrix @ p[..., None])[..., 0], symmetric=True)
            step, definite = _dense_step(scale[..., :, None] * matrix * scale[..., None, :], scale * F, backend)
        else:
            scaled = Operator(lambda p: scale * H(scale * p), symmetric=True)
            found = CG(max_iter=PRODUCTS)(scaled, scale * F, loop=backend.loops.while_loop)
            step, definite = found.value, ~(found.extra or {})["indefinite"][..., None]
        promise, energy = xp.abs(dot(scale * F, step)), xp.abs(dot(u, H(u)))
        condition, floats = started.problem.optimality(started.arrays)
        rounded = within_rounding_of_terms(condition, H, F, u, floats)[..., None]
        unknown = ~xp.all(xp.isfinite(step), axis=-1, keepdims=True)
        short = max_abs(step)[..., None] <= most.step
        passed = short | (definite & (promise <= most.promise * energy)) | rounded | unknown
        now_solved = rounded | (definite & (promise <= 2 * rtol**2 * energy))
        return Verdict((now.solved & passed) | (ended & now_solved), now.solved & ~passed)

    unseen = Verdict(solved, none)
    otherwise = unseen if unverified is None else Verdict(unverified, none)
    return if_differentiable(lambda: backend.loops.run_if(xp.any(ended), look, unseen), otherwise)


def passes_by_inverse(H: Array, F: Array, u: Array, scale: Array, most: Most, backend: Backend) -> bool:
    """Return whether H of one problem is known to be positive definite, and its Newton step or its promise is small.

    Few unknowns are inverted in numbers, at a part of the cost of arrays.
    """
    inverse, read = inverse_of_few(H, F, backend, symmetric=True), backend.loops.numbers(F)
    if inverse is None or not isinstance(read, list):
        return False
    if inverse.step_is_short(read, backend.loops.numbers(scale), most.step, transposed=False):
        return True
    found = inverse.solve(read, eps(array_namespace(u), u.dtype))
    if found is None:
        return False
    energy, promise = inner(u, (H @ u[..., None])[..., 0]), sum(map(mul, read, found[0]))
    return bool(abs(promise) <= most.promise * abs(float(energy)))


def if_differentiable(look: Callable[[], V], otherwise: V) -> V:
    """Return look(), or `otherwise` if the score has no second derivative: the solver itself needs none."""
    try:
        return look()
    except SecondDerivativeError:
        return otherwise


def _dense_step(H: Array, F: Array, backend: Backend) -> tuple[Array, Array]:
    """Return H^-1 F, and whether H has no negative eigenvalue and none that is zero along F, (*batch, 1).

    H gets a diagonal of one first: a curvature that is small only because of its unit counts like any other. Cholesky's
    factor tells it of all but the worst conditioned matrices, at a small part of the cost of their eigenvalues.
    """
    xp = array_namespace(F)
    finite = xp.all(xp.isfinite(H), axis=(-2, -1), keepdims=True)
    H = xp.where(finite, H, full(H, 0.0))  # libraries refuse others
    unit = 1.0 / xp.sqrt(nonzero_or_one(xp.abs(xp.linalg.diagonal(H))))
    H, F = unit[..., :, None] * H * unit[..., None, :], unit * F
    probe = xp.broadcast_to(standard_normal(backend, full(F, 0.0, shape=F.shape[-1:]), 1, 0)[0, ...], F.shape)
    size = nonzero_max_abs(F)
    x = backend.dense.cholesky_solve(H, xp.stack([F / size, probe], axis=-1))
    clear = xp.all(xp.abs(x) <= eps(xp, F.dtype) ** -0.5, axis=(-2, -1))[..., None] & finite[..., 0]  # False for NaN

    def by_eigenvalues(found: tuple[Array, Array]) -> tuple[Array, Array]:
        step, definite = _step_by_eigenvalues(H, F)
        return xp.where(clear, found[0], step), clear | (definite & finite[..., 0])

    step, definite = backend.loops.run_if(xp.any(~clear), by_eigenvalues, (size * x[..., 0], clear))
    return unit * step, definite


def _step_by_eigenvalues(H: Array, F: Array) -> tuple[Array, Array]:
    xp, dtype = array_namespace(F), factor_dtype(F)
    values, vectors = xp.linalg.eigh(xp.astype(H, dtype))
    components = (vectors.mT @ xp.astype(F, dtype)[..., None])[..., 0]
    rounding = 16 * F.shape[-1] * eps(xp, F.dtype)
    zero = xp.abs(values) <= rounding
    along = xp.abs(components) > rounding * max_abs(components)[..., None]
    definite = xp.all((values >= -rounding) & ~(zero & along), axis=-1, keepdims=True)
    inverse = xp.where(zero, full(values, 0.0), 1.0 / xp.where(zero, full(values, 1.0), values))
    step = (vectors @ (inverse * components)[..., None])[..., 0]
    return xp.astype(step, F.dtype), definite
