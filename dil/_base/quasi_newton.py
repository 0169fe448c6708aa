"""The memory of a quasi-Newton method: pairs of a step and the change of the gradient along the step."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from dil._base.arrays import array_namespace, eye, factor_dtype, full, inner, norm
from dil._base.typing import Array, Matvec


class TriangularSolve(Protocol):
    """Solve T x = b for a triangular T, (*batch, n, n), and b, (*batch, n, k)."""

    def __call__(self, T: Array, b: Array, /, *, upper: bool) -> Array: ...


class Pairs(NamedTuple):
    """The pairs (s, y) of the last m steps, oldest first, with y = A s for a symmetric A.

    Attributes
    ----------
    s, y : float arrays, shape (m, *batch, n)
        Steps and changes of gradient.
    rho : float array, shape (m, *batch)
        1 / <s, y>; zero where a problem has no pair.
    """

    s: Array
    y: Array
    rho: Array


def no_pairs(u: Array, count: int) -> Pairs:
    """Return an empty memory for `count` pairs of vectors like u, (*batch, n)."""
    zeros = array_namespace(u).stack([full(u, 0.0)] * count)
    return Pairs(zeros, zeros, full(u, 0.0, shape=(count, *u.shape[:-1])))


def remember(pairs: Pairs, s: Array, y: Array, keep: Array) -> Pairs:
    """Add one pair to the problems where `keep`, shape batch, is true. Their oldest pair is dropped."""
    xp = array_namespace(s)
    sy = inner(s, y)
    rho = 1.0 / xp.where(keep, sy, full(sy, 1.0))

    def push(old: Array, new: Array, kept: Array) -> Array:
        return xp.where(kept, xp.concat([old[1:, ...], new[None, ...]], axis=0), old)  # type: ignore[no-any-return]

    column = keep[..., None]
    return Pairs(push(pairs.s, s, column), push(pairs.y, y, column), push(pairs.rho, rho, keep))


def forget(pairs: Pairs, which: Array) -> Pairs:
    """Delete all pairs of the problems where `which`, shape batch, is true."""
    return pairs._replace(rho=array_namespace(pairs.rho).where(which, 0.0 * pairs.rho, pairs.rho))


def shifted(pairs: Pairs, shift: float) -> Pairs:
    """Return the pairs of A + shift I."""
    xp = array_namespace(pairs.s)
    held = pairs.rho > 0
    sy = 1.0 / xp.where(held, pairs.rho, full(pairs.rho, 1.0)) + shift * xp.sum(pairs.s * pairs.s, axis=-1)
    return Pairs(pairs.s, pairs.y + shift * pairs.s, xp.where(held, 1.0 / sy, pairs.rho))


def inverse_scale(pairs: Pairs) -> Array:
    """Return <s, y> / <y, y> of the newest pair, shape batch; one without pairs. Nocedal and Wright 2006, eq. 7.20."""
    xp, newest = array_namespace(pairs.s), pairs.rho[-1, ...]
    used, one = newest > 0, full(newest, 1.0)
    size = xp.where(used, norm(pairs.y[-1, ...])[..., 0], one)
    return 1.0 / (xp.where(used, newest, one) * size) / size  # type: ignore[no-any-return]  # size * size may overflow


def inverse_product(pairs: Pairs, solve: TriangularSolve, inverse: Any = None) -> Matvec:
    """Return the product with the L-BFGS approximation of A^-1 as a function of r, (*batch, n).

    The approximation is symmetric positive definite (Nocedal and Wright 2006, Algorithm 7.4). It starts from a positive
    diagonal `inverse`, (*batch, n) or (*batch, 1), or a number. The default is `inverse_scale` times the identity: r
    itself without pairs. The two loops over the pairs are two solves with the triangle R of <s_i, y_j>, i <= j (Byrd,
    Nocedal and Schnabel 1994). `solve` is that of the backend.
    """
    xp, dtype = array_namespace(pairs.s), factor_dtype(pairs.s)
    s, y = (xp.astype(xp.moveaxis(x, 0, -2), dtype) for x in pairs[:2])
    rho = xp.astype(xp.moveaxis(pairs.rho, 0, -1), dtype)
    held = rho > 0
    sy = (1.0 / xp.where(held, rho, full(rho, 1.0)))[..., None]
    both = held[..., :, None] & held[..., None, :]
    products = s @ y.mT
    R = xp.where(both, xp.triu(products, k=1), full(products, 0.0)) + sy * eye(rho.shape[-1], rho)
    held = held[..., None]
    diagonal = inverse_scale(pairs)[..., None] if inverse is None else inverse
    diagonal = diagonal if isinstance(diagonal, float) else diagonal[..., None]

    def product(r: Array) -> Array:
        column = xp.astype(r, dtype)[..., None]
        image = s @ column
        a = solve(R, xp.where(held, image, full(image, 0.0)), upper=True)
        z = diagonal * (column - y.mT @ a)
        image = sy * a - y @ z
        c = solve(R.mT, xp.where(held, image, full(image, 0.0)), upper=False)
        return xp.astype((z + s.mT @ c)[..., 0], r.dtype)  # type: ignore[no-any-return]

    return product
