"""The extreme eigenvalues of a symmetric matrix, from the coefficients that conjugate gradients compute anyway."""

from __future__ import annotations

from typing import NamedTuple

from dil._arrays import array_namespace, device, eps, full, inner, norm
from dil._typing import Array, Loop, Matvec


class Extremes(NamedTuple):
    """The least and the largest eigenvalue met, shape batch; NaN for a start of zero."""

    lowest: Array
    highest: Array


class Iterate(NamedTuple):
    """A step of CG; vectors (*batch, n), numbers batch, and the tridiagonal matrix so far, (*batch, m)."""

    r: Array
    p: Array
    rr: Array
    carried: Array
    """beta / alpha of the step before."""
    diagonal: Array
    above: Array
    going: Array
    step: Array


def extremes(matvec: Matvec, b: Array, *, steps: int, loop: Loop) -> Extremes:
    """Return the extreme Ritz values of a symmetric A after at most `steps` products, from the start b: (*batch, n).

    The matrix T of Lanczos' method has 1/alpha_k + beta_(k-1)/alpha_(k-1) on its diagonal and sqrt(beta_k)/alpha_k
    beside it (Golub and Van Loan 2013, section 11.3.5; Saad 2003, eq. 6.81 and 6.82), also where A is indefinite. The
    values lie within the spectrum: the condition number that they give is an estimate from below.
    """
    xp, machine = array_namespace(b), eps(array_namespace(b), b.dtype)
    steps = min(steps, 2 * b.shape[-1])  # rounding delays what n steps would find
    size = norm(b)
    start = b / xp.where(size > 0, size, full(size, 1.0))
    column = xp.arange(steps, device=device(b))
    one = inner(start, start)

    def advance(s: Iterate) -> Iterate:
        Ap = matvec(s.p)
        pAp, pp = inner(s.p, Ap), inner(s.p, s.p)
        scale = xp.where(s.step > 0, xp.abs(s.diagonal[..., 0]), full(pAp, 0.0))
        sound = s.going & (xp.abs(pAp) > machine * pp * scale) & xp.isfinite(pAp)
        alpha = s.rr / xp.where(sound, pAp, full(pAp, 1.0))
        r = s.r - alpha[..., None] * Ap
        rr = inner(r, r)
        beta = rr / s.rr
        here = sound[..., None] & (column == s.step)
        diagonal = xp.where(here, (1.0 / alpha + s.carried)[..., None], s.diagonal)
        above = xp.where(here, (xp.sqrt(beta) / alpha)[..., None], s.above)
        going = sound & (rr > machine * machine) & (s.step + 1 < steps)
        keep = sound[..., None]
        return Iterate(
            xp.where(keep, r, s.r),
            xp.where(keep, r + beta[..., None] * s.p, s.p),
            xp.where(sound, rr, s.rr),
            beta / alpha,
            diagonal,
            above,
            going,
            s.step + 1,
        )

    none = full(b, 0.0, shape=(*b.shape[:-1], steps))
    some = (size[..., 0] > 0) & xp.isfinite(size[..., 0]) & (steps > 0)
    count = xp.zeros((), dtype=column.dtype, device=device(b))
    first = Iterate(start, start, one, 0.0 * one, full(none, float("nan")), none, some, count)
    last = loop(lambda s: xp.any(s.going), advance, first)
    return _ends(last, steps)


def _ends(last: Iterate, steps: int) -> Extremes:
    xp = array_namespace(last.diagonal)
    if steps == 0:
        return Extremes(full(last.rr, float("nan")), full(last.rr, float("nan")))
    known = xp.isfinite(last.diagonal)
    # rows that were not reached hold an entry of T itself, which lies between its extreme eigenvalues, and no link
    first = xp.where(known[..., :1], last.diagonal[..., :1], full(last.diagonal[..., :1], 0.0))
    diagonal = xp.where(known, last.diagonal, first)
    above = xp.where(known[..., 1:], last.above[..., :-1], full(last.above[..., :-1], 0.0))
    index = xp.arange(steps, device=device(last.diagonal))
    row, column = index[:, None], index[None, :]
    T = xp.where(row == column, diagonal[..., None], full(diagonal[..., None], 0.0))
    padded = xp.concat([above, full(last.above[..., :1], 0.0)], axis=-1)
    T = T + xp.where(column == row + 1, padded[..., None], full(padded[..., None], 0.0))
    T = T + xp.where(row == column + 1, padded[..., None, :], full(padded[..., None, :], 0.0))
    values = xp.linalg.eigvalsh(T)
    met = known[..., 0]
    none = full(last.rr, float("nan"))
    return Extremes(xp.where(met, values[..., 0], none), xp.where(met, values[..., -1], none))
