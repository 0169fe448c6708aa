"""Estimate the extreme eigenvalues of a symmetric matrix by Lanczos' method, from products alone."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, device, eps, factor_dtype, full, inner, norm
from dil._base.typing import Array, Loop, Matvec


class Extremes(NamedTuple):
    """The smallest and the largest Ritz value, shape batch. NaN where b is zero or a product is not finite."""

    lowest: Array
    highest: Array


class Iterate(NamedTuple):
    """The state of Lanczos' method. Vectors: (*batch, n); scalars: batch; the tridiagonal matrix: two (*batch, m)."""

    v: Array
    v_old: Array
    beta: Array
    """The off-diagonal entry that couples v and v_old."""
    diagonal: Array
    off_diagonal: Array
    active: Array
    step: Array


def extremes(matvec: Matvec, b: Array, *, steps: int, loop: Loop) -> Extremes:
    """Return the extreme Ritz values of a symmetric A after at most `steps` products, from the start b: (*batch, n).

    The Ritz values belong to the Krylov space of b, in which conjugate gradients seek A^-1 b. They lie within the
    spectrum, except for rounding, so the condition number that they give is a lower bound. A may be indefinite. The
    coefficients of conjugate gradients would not allow that. Nothing is orthogonalised again, because repeated copies
    of an eigenvalue do no harm.

    Sources: Saad 2003, Algorithm 6.15; Golub and Van Loan 2013, section 10.3.
    """
    xp, machine_eps = array_namespace(b), eps(array_namespace(b), b.dtype)
    steps = min(steps, 2 * b.shape[-1])  # in exact arithmetic n steps suffice, but rounding delays convergence
    size = norm(b)
    start = b / xp.where(size > 0, size, full(size, 1.0))
    column = xp.arange(steps, device=device(b))

    def advance(s: Iterate) -> Iterate:
        Av = matvec(s.v)
        alpha = inner(s.v, Av)
        w = Av - alpha[..., None] * s.v - s.beta[..., None] * s.v_old
        beta, norm_Av = norm(w)[..., 0], norm(Av)[..., 0]
        finite = s.active & xp.isfinite(beta)
        continues = finite & (beta > 4 * machine_eps * norm_Av) & (s.step + 1 < steps)
        updated, at_step = continues[..., None], finite[..., None] & (column == s.step)
        return Iterate(
            xp.where(updated, w / xp.where(updated, beta[..., None], full(s.v[..., :1], 1.0)), s.v),
            xp.where(updated, s.v, s.v_old),
            xp.where(continues, beta, s.beta),
            xp.where(at_step, alpha[..., None], s.diagonal),
            xp.where(at_step & updated, beta[..., None], s.off_diagonal),
            continues,
            s.step + 1,
        )

    empty = full(b, 0.0, shape=(*b.shape[:-1], steps))
    nonzero = (size[..., 0] > 0) & xp.isfinite(size[..., 0]) & (steps > 0)
    count = xp.zeros((), dtype=column.dtype, device=device(b))
    zero = full(size[..., 0], 0.0)
    first = Iterate(start, full(b, 0.0), zero, full(empty, float("nan")), empty, nonzero, count)
    last = loop(lambda s: xp.any(s.active), advance, first)
    return _extreme_ritz_values(last, steps)


def _extreme_ritz_values(last: Iterate, steps: int) -> Extremes:
    xp = array_namespace(last.diagonal)
    if steps == 0:
        return Extremes(full(last.beta, float("nan")), full(last.beta, float("nan")))
    known = xp.isfinite(last.diagonal)
    # rows that were not reached hold an entry of T, which lies between its extreme eigenvalues, and no coupling
    filler = xp.where(known[..., :1], last.diagonal[..., :1], full(last.diagonal[..., :1], 0.0))
    coupling = xp.where(known[..., 1:], last.off_diagonal[..., :-1], full(last.off_diagonal[..., :-1], 0.0))
    T = tridiagonal(xp.where(known, last.diagonal, filler), coupling)
    values = xp.astype(xp.linalg.eigvalsh(xp.astype(T, factor_dtype(T))), T.dtype)
    has_values = known[..., 0]
    nan = full(last.beta, float("nan"))
    return Extremes(xp.where(has_values, values[..., 0], nan), xp.where(has_values, values[..., -1], nan))


def tridiagonal(diagonal: Array, coupling: Array) -> Array:
    """Return symmetric matrices with this diagonal, (*batch, m), and these entries beside it, (*batch, m - 1)."""
    xp = array_namespace(diagonal)
    index = xp.arange(diagonal.shape[-1], device=device(diagonal))
    row, column = index[:, None], index[None, :]
    T = xp.where(row == column, diagonal[..., None], full(diagonal[..., None], 0.0))
    padded = xp.concat([coupling, full(diagonal[..., :1], 0.0)], axis=-1)
    T = T + xp.where(column == row + 1, padded[..., None], full(padded[..., None], 0.0))
    return T + xp.where(row == column + 1, padded[..., None, :], full(padded[..., None, :], 0.0))  # type: ignore[no-any-return]
