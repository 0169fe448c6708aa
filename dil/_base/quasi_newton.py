"""The memory of a quasi-Newton method: pairs of a step and the change of the gradient along the step."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, full, inner, norm
from dil._base.typing import Array


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
    zeros = full(u, 0.0, shape=(count, *u.shape))
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


def inverse_product(pairs: Pairs, r: Array, inverse: Array | None = None) -> Array:
    """Return the product of r, (*batch, n), with the L-BFGS approximation of A^-1.

    The approximation is symmetric positive definite (Nocedal and Wright 2006, Algorithm 7.4). It starts from a positive
    diagonal `inverse`, (*batch, n). The default is `inverse_scale` times the identity: r itself without pairs.
    """
    q, alphas = r, []
    for i in reversed(range(pairs.rho.shape[0])):
        alpha = pairs.rho[i, ...] * inner(pairs.s[i, ...], q)
        q = q - alpha[..., None] * pairs.y[i, ...]
        alphas.append(alpha)
    z: Array = q * (inverse_scale(pairs)[..., None] if inverse is None else inverse)
    for i, alpha in enumerate(reversed(alphas)):
        beta = pairs.rho[i, ...] * inner(pairs.y[i, ...], z)
        z = z + (alpha - beta)[..., None] * pairs.s[i, ...]
    return z
