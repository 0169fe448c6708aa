"""The extreme eigenvalues of a symmetric matrix, by Lanczos' method: products alone."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, device, eps, full, inner, norm
from dil._base.typing import Array, Loop, Matvec


class Extremes(NamedTuple):
    """The least and the largest eigenvalue met, shape batch; NaN where the start is zero or a product not finite."""

    lowest: Array
    highest: Array


class Iterate(NamedTuple):
    """A step of Lanczos' method; vectors (*batch, n), numbers batch, and the tridiagonal matrix so far, (*batch, m)."""

    v: Array
    before: Array
    beta: Array
    """What couples the two vectors."""
    diagonal: Array
    below: Array
    going: Array
    step: Array


def extremes(matvec: Matvec, b: Array, *, steps: int, loop: Loop) -> Extremes:
    """Return the extreme Ritz values of a symmetric A after at most `steps` products, from the start b: (*batch, n).

    They are those of the Krylov space of b, where conjugate gradients would look for A^-1 b, and lie within the
    spectrum but for rounding: the condition number that they give is an estimate from below. A may be indefinite, which
    the coefficients of conjugate gradients themselves do not survive. Nothing is orthogonalised again, as copies of
    eigenvalues already found do no harm.

    Sources: Saad 2003, Algorithm 6.15; Golub and Van Loan 2013, section 10.3.
    """
    xp, machine = array_namespace(b), eps(array_namespace(b), b.dtype)
    steps = min(steps, 2 * b.shape[-1])  # rounding delays what n steps would find
    size = norm(b)
    start = b / xp.where(size > 0, size, full(size, 1.0))
    column = xp.arange(steps, device=device(b))

    def advance(s: Iterate) -> Iterate:
        Av = matvec(s.v)
        alpha = inner(s.v, Av)
        w = Av - alpha[..., None] * s.v - s.beta[..., None] * s.before
        beta, reach = norm(w)[..., 0], norm(Av)[..., 0]
        sound = s.going & xp.isfinite(beta)
        more = sound & (beta > 4 * machine * reach) & (s.step + 1 < steps)
        keep, here = more[..., None], sound[..., None] & (column == s.step)
        return Iterate(
            xp.where(keep, w / xp.where(keep, beta[..., None], full(s.v[..., :1], 1.0)), s.v),
            xp.where(keep, s.v, s.before),
            xp.where(more, beta, s.beta),
            xp.where(here, alpha[..., None], s.diagonal),
            xp.where(here & keep, beta[..., None], s.below),
            more,
            s.step + 1,
        )

    none = full(b, 0.0, shape=(*b.shape[:-1], steps))
    some = (size[..., 0] > 0) & xp.isfinite(size[..., 0]) & (steps > 0)
    count = xp.zeros((), dtype=column.dtype, device=device(b))
    zero = full(size[..., 0], 0.0)
    first = Iterate(start, full(b, 0.0), zero, full(none, float("nan")), none, some, count)
    last = loop(lambda s: xp.any(s.going), advance, first)
    return _ends(last, steps)


def _ends(last: Iterate, steps: int) -> Extremes:
    xp = array_namespace(last.diagonal)
    if steps == 0:
        return Extremes(full(last.beta, float("nan")), full(last.beta, float("nan")))
    known = xp.isfinite(last.diagonal)
    # rows that were not reached hold an entry of T itself, which lies between its extreme eigenvalues, and no link
    first = xp.where(known[..., :1], last.diagonal[..., :1], full(last.diagonal[..., :1], 0.0))
    diagonal = xp.where(known, last.diagonal, first)
    link = xp.where(known[..., 1:], last.below[..., :-1], full(last.below[..., :-1], 0.0))
    index = xp.arange(steps, device=device(last.diagonal))
    row, column = index[:, None], index[None, :]
    T = xp.where(row == column, diagonal[..., None], full(diagonal[..., None], 0.0))
    padded = xp.concat([link, full(last.below[..., :1], 0.0)], axis=-1)
    T = T + xp.where(column == row + 1, padded[..., None], full(padded[..., None], 0.0))
    T = T + xp.where(row == column + 1, padded[..., None, :], full(padded[..., None, :], 0.0))
    values = xp.linalg.eigvalsh(T)
    met = known[..., 0]
    none = full(last.beta, float("nan"))
    return Extremes(xp.where(met, values[..., 0], none), xp.where(met, values[..., -1], none))
