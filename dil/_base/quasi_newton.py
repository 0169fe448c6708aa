"""The memory of a quasi-Newton method: pairs of steps and of the changes of the gradient along them."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, full, inner, norm
from dil._base.typing import Array


class Pairs(NamedTuple):
    """Pairs (s, y) with y = A s, A symmetric, of the last m steps, oldest first.

    Attributes
    ----------
    s, y : float arrays, shape (m, *batch, n)
        Steps and changes of gradient.
    rho : float array, shape (m, *batch)
        1 / <s, y>; zero where a problem holds no pair.
    """

    s: Array
    y: Array
    rho: Array


def no_pairs(u: Array, count: int) -> Pairs:
    """Return room for pairs of vectors like u, (*batch, n)."""
    none = full(u, 0.0, shape=(count, *u.shape))
    return Pairs(none, none, full(u, 0.0, shape=(count, *u.shape[:-1])))


def remember(pairs: Pairs, s: Array, y: Array, keep: Array) -> Pairs:
    """Add one pair to the problems that keep it, shape batch. The oldest pair is dropped."""
    xp = array_namespace(s)
    sy = inner(s, y)
    rho = 1.0 / xp.where(keep, sy, full(sy, 1.0))

    def push(old: Array, new: Array, kept: Array) -> Array:
        return xp.where(kept, xp.concat([old[1:, ...], new[None, ...]], axis=0), old)  # type: ignore[no-any-return]

    column = keep[..., None]
    return Pairs(push(pairs.s, s, column), push(pairs.y, y, column), push(pairs.rho, rho, keep))


def forget(pairs: Pairs, which: Array) -> Pairs:
    """Clear the pairs of some problems, shape batch."""
    return pairs._replace(rho=array_namespace(pairs.rho).where(which, 0.0 * pairs.rho, pairs.rho))


def shifted(pairs: Pairs, shift: float) -> Pairs:
    """Return the pairs of A + shift I."""
    xp = array_namespace(pairs.s)
    held = pairs.rho > 0
    sy = 1.0 / xp.where(held, pairs.rho, full(pairs.rho, 1.0)) + shift * xp.sum(pairs.s * pairs.s, axis=-1)
    return Pairs(pairs.s, pairs.y + shift * pairs.s, xp.where(held, 1.0 / sy, pairs.rho))


def inverse_scale(pairs: Pairs) -> Array:
    """Return <s, y> / <y, y> of the newest pair, shape batch: Nocedal and Wright 2006, eq. 7.20; one without pairs."""
    xp, newest = array_namespace(pairs.s), pairs.rho[-1, ...]
    used, one = newest > 0, full(newest, 1.0)
    size = xp.where(used, norm(pairs.y[-1, ...])[..., 0], one)
    return 1.0 / (xp.where(used, newest, one) * size) / size  # type: ignore[no-any-return]  # size * size may overflow


def inverse_product(pairs: Pairs, r: Array, inverse: Array | None = None) -> Array:
    """Return the product of r, (*batch, n), with the L-BFGS approximation of A^-1: symmetric positive definite.

    Nocedal and Wright 2006, Algorithm 7.4, from a positive diagonal `inverse`, (*batch, n); by default the multiple of
    the identity of `inverse_scale`, so that problems without pairs get r itself.
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
