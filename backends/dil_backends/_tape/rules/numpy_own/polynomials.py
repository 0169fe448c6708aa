"""Polynomials as NumPy's vectors of coefficients, that of the highest power first."""

from __future__ import annotations

from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.numpy_own.arrays import alike, as_array, flat
from dil_backends._tape.rules.rule import Value, refuse


def vander(xp: Namespace, x: Value, N: int | None = None, increasing: bool = False) -> Value:
    """Return the powers of x as columns."""
    x = flat(xp, x)
    x = xp.astype(x, xp.result_type(x.dtype, xp.int64))  # as NumPy, which multiplies it by integers
    columns = [x**k for k in range(x.size if N is None else N)]
    if not columns:
        return xp.zeros((x.size, 0), dtype=x.dtype)
    return xp.stack(columns if increasing else columns[::-1], axis=-1)


def poly(xp: Namespace, seq_of_zeros: Value) -> Value:
    """Return the polynomial with the given zeros, or the characteristic polynomial of a square matrix."""
    zeros = as_array(xp, seq_of_zeros)
    zeros = xp.linalg.eigvals(zeros) if zeros.ndim == 2 else flat(xp, zeros)
    product = xp.ones(1, dtype=zeros.dtype)
    for k in range(zeros.size):
        product = xp.concat([product, xp.zeros(1, dtype=zeros.dtype)]) - shifted(xp, product * zeros[k])
    return xp.real(product) if as_array(xp, seq_of_zeros).dtype.kind == "f" else product


def shifted(xp: Namespace, p: Value) -> Value:
    return xp.concat([xp.zeros(1, dtype=p.dtype), p])


def polyadd(xp: Namespace, a1: Value, a2: Value) -> Value:
    a, b = alike(xp, flat(xp, a1), flat(xp, a2))
    size = max(a.size, b.size)
    return padded(xp, a, size) + padded(xp, b, size)


def polysub(xp: Namespace, a1: Value, a2: Value) -> Value:
    return polyadd(xp, a1, -flat(xp, a2))


def padded(xp: Namespace, p: Value, size: int) -> Value:
    return xp.concat([xp.zeros(size - p.size, dtype=p.dtype), p])


def polymul(xp: Namespace, a1: Value, a2: Value) -> Value:
    return xp.convolve(flat(xp, a1), flat(xp, a2))


def polyder(xp: Namespace, p: Value, m: int = 1) -> Value:
    p = flat(xp, p)
    for _ in range(m):
        p = p[:-1] * xp.arange(p.size - 1, 0, -1)
    return p


def polyint(xp: Namespace, p: Value, m: int = 1, k: Value = None) -> Value:
    p = flat(xp, p)
    constants = [0.0] * m if k is None else [flat(xp, k)[min(i, flat(xp, k).size - 1)] for i in range(m)]
    for end in constants:
        p = xp.concat([p / xp.arange(p.size, 0, -1), flat(xp, end)])
    return p


def polyfit(xp: Namespace, x: Value, y: Value, deg: int, rcond: float | None = None, full: bool = False,
            w: Value = None, cov: Any = False) -> Value:  # fmt: skip
    """Return the coefficients of least squares. The columns are scaled to norm one first, as NumPy does."""
    if full or cov:
        refuse("polyfit(full=) and (cov=)", "write np.linalg.lstsq of np.vander(x, deg + 1)")
    x, y = flat(xp, x) * 1.0, as_array(xp, y) * 1.0
    powers = vander(xp, x, deg + 1)
    if w is not None:
        w = as_array(xp, w)
        powers, y = powers * w[:, None], y * (w if y.ndim == 1 else w[:, None])
    scale = xp.sqrt(xp.sum(powers * powers, axis=0))
    rcond = x.size * xp.finfo(x.dtype).eps if rcond is None else rcond
    found = xp.linalg.lstsq(powers / scale, y, rcond)[0]
    return found / (scale if y.ndim == 1 else scale[:, None])


def roots(xp: Namespace, p: Value) -> Value:
    """Return the zeros of a polynomial: the eigenvalues of its companion matrix, and zeros for those at zero."""
    p = flat(xp, p) * 1.0
    used = [k for k, c in enumerate(xp.unboxed(p, "roots").tolist()) if c != 0]
    if not used:
        return p[:0]
    zeros, p = p.size - 1 - used[-1], p[used[0] : used[-1] + 1]
    if p.size < 2:
        return xp.zeros(zeros, dtype=p.dtype)
    first = -p[1:] / p[0]
    below = xp.eye(first.size - 1, first.size, dtype=p.dtype)
    found = xp.linalg.eigvals(xp.concat([first[None, :], below], axis=0))
    return xp.concat([found, xp.zeros(zeros, dtype=found.dtype)])
