"""Check that the Hessian at a solution of a score is positive definite."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, eps, full, nonzero_max_abs
from dil._base.operator import Operator
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import standard_normal
from dil.linear._extremes import extremes

PRODUCTS = 8
"""The number of products with the Hessian that a check by Lanczos' method takes."""


def check_curvature(status: Array, A: Operator, b: Array, solution: Solution, backend: Backend) -> Array:
    """Return the statuses, with NOT_MINIMUM where the system was solved but its Hessian is not positive definite.

    `extra["indefinite"]` of the linear solver decides. Without it, Lanczos' method does. An approximation that the user
    asked for is not checked.
    """
    extra = solution.extra or {}
    indefinite = extra.get("indefinite")
    if indefinite is None:
        if not A.symmetric or extra.get("approximate", False):
            return status
        indefinite = has_negative_curvature(A, b, backend)
    if backend.loops.number(indefinite) is False:
        return status
    marked: Array = array_namespace(status).where(
        indefinite & (status == int(Status.CONVERGED)), full(status, int(Status.NOT_MINIMUM)), status
    )
    return marked


def check_degenerate(status: Array, A: Operator, b: Array, backend: Backend) -> Array:
    """Return the statuses of a pushforward, with SINGULAR where the right-hand side and the matrix are both zero.

    The score (u - t)^4 is an example: its Hessian and its mixed derivative vanish at u = t, where dy/dt is one. In a
    pullback the right-hand side is the cotangent, so a singular matrix shows itself.
    """
    if A.transposed:
        return status
    xp = array_namespace(b)
    empty = (status == int(Status.CONVERGED)) & xp.all(b == 0, axis=-1)

    def look(status: Array) -> Array:
        vanishes = xp.all(A(standard_normal(backend, b, 1, 0)[0, ...]) == 0, axis=-1)
        return xp.where(empty & vanishes, full(status, int(Status.SINGULAR)), status)  # type: ignore[no-any-return]

    found: Array = backend.loops.run_if(xp.any(empty), look, status) if b.shape[-1] else status
    return found


class Curvature(NamedTuple):
    """What products with a symmetric matrix say of its eigenvalues, shape batch."""

    negative: Array
    """Whether one is negative."""
    least: Array
    """The smallest one: exact up to 8 unknowns, else an upper bound of it."""
    is_singular: Array
    """Whether the smallest one is zero within rounding of the largest."""


def has_negative_curvature(H: Operator, like: Array, backend: Backend) -> Array:
    """Return whether a symmetric H has a negative eigenvalue that 8 steps of Lanczos' method find, shape batch."""
    return curvature(H, like, backend).negative


def curvature(H: Operator, like: Array, backend: Backend) -> Curvature:
    """Return what 8 steps of Lanczos' method find of a symmetric H.

    The start is a random vector. Up to 8 unknowns this finds every sign, and for more unknowns a negative eigenvalue
    of large magnitude.
    """
    xp = array_namespace(like)
    start = standard_normal(backend, like, 1, 0)[0, ...]
    size = nonzero_max_abs(H(start))
    found = extremes(lambda p: H(p) / size, start, steps=PRODUCTS, loop=backend.loops.while_loop)
    largest = xp.where(found.highest > -found.lowest, found.highest, -found.lowest)
    rounding = eps(xp, like.dtype) ** 0.75 * largest
    return Curvature(found.lowest < -rounding, found.lowest * size[..., 0], found.lowest <= rounding)
