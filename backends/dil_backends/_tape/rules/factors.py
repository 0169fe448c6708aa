"""Rules of the triangular factors of a matrix: Cholesky and QR.

`linalg.cholesky` reads one triangle of its argument, as `eigh` does, and its derivative is that of what it reads.
"""

from __future__ import annotations

from typing import NamedTuple

from dil._base.errors import UnsupportedFunctionError
from dil._base.typing import Namespace
from dil_backends._tape.rules.clusters import noise, refuse_derivative
from dil_backends._tape.rules.conjugates import adjoint, hermitian_part, real
from dil_backends._tape.rules.eigen import hermitian
from dil_backends._tape.rules.matrices import on_diagonal
from dil_backends._tape.rules.rule import Value
from dil_backends._tape.rules.singular import DEFICIENT, folded


class QRResult(NamedTuple):
    Q: Value
    R: Value


def cholesky(xp: Namespace, x: Value, upper: bool = False) -> Value:
    """Return the factor of the Hermitian matrix of the lower triangle, which is the one that is read for both."""
    return xp.cholesky_factor(hermitian(xp, x), upper=bool(upper))


def cholesky_of_numpy(xp: Namespace, a: Value, upper: bool = False) -> Value:
    """Return the factor as NumPy does. It reads the upper triangle for the upper factor."""
    return xp.cholesky_factor(hermitian(xp, a, "U" if upper else "L"), upper=bool(upper))


def cholesky_factor(xp: Namespace, x: Value, *, upper: bool = False) -> Value:
    return xp.linalg.cholesky(x, upper=upper)


def pull_cholesky(xp: Namespace, c: Value, y: Value, x: Value, *, upper: bool = False) -> Value:
    """Return the Hermitian part of L^-H P L^-1.

    P is the lower triangle of L^H c with its diagonal halved (Murray 2016).
    """
    lower, c = (adjoint(xp, y), adjoint(xp, c)) if upper else (y, c)
    turned = adjoint(xp, lower)
    product = turned @ c
    half = 0.5 * (xp.tril(product) + xp.tril(product, k=-1))
    left = xp.linalg.solve(turned, half)
    return hermitian_part(xp, xp.linalg.solve(turned, adjoint(xp, left)))


def qr(xp: Namespace, x: Value, mode: str = "reduced") -> Value:
    """Return Q and R, or R alone for NumPy's mode 'r'."""
    if mode not in ("reduced", "complete", "r"):
        msg = f"qr(mode={mode!r}) of an array that is being differentiated; take 'reduced', 'complete' or 'r'"
        raise UnsupportedFunctionError(msg)
    q, r = xp.orthogonal_triangular(x, mode="complete" if mode == "complete" else "reduced")
    return r if mode == "r" else QRResult(q, r)


def orthogonal_triangular(xp: Namespace, x: Value, *, mode: str) -> tuple[Value, Value]:
    q, r = xp.linalg.qr(x, mode=mode)
    return q, r


def pull_qr(xp: Namespace, c: Value, y: Value, x: Value, *, mode: str) -> Value:
    """Return (cQ + Q H) R^-H, where H is the Hermitian matrix of the lower triangle of R cR^H - cQ^H Q.

    This is Roberts and Roberts 2020 (arXiv:2009.10071). Let A = [A1 A2] have more columns than rows. Then Q and R1 are
    those of A1, and R2 = Q^H A2.
    """
    (cq, cr), (q, r) = c, y
    if not x.size:
        return xp.zeros_like(x)
    k = min(x.shape[-2:])
    check_rank(xp, xp.constant(r)[..., :k, :k])
    first, square, c_square = q[..., :k], r[..., :k, :k], cr[..., :k, :k]
    m = adjoint(xp, first) @ cq[..., :k]
    c_first = first @ m + folded(xp, "qr", q, cq, m, k, y)
    if x.shape[-1] > k:
        c_first = c_first + x[..., k:] @ adjoint(xp, cr[..., k:])
    product = square @ adjoint(xp, c_square) - adjoint(xp, c_first) @ first
    strict = xp.tril(product, k=-1)
    h = strict + adjoint(xp, strict) + on_diagonal(xp, real(xp, xp.linalg.diagonal(product)))
    g = adjoint(xp, xp.linalg.solve(square, adjoint(xp, c_first + first @ h)))
    return g if x.shape[-1] == k else xp.concat([g, first @ cr[..., k:]], axis=-1)


def check_rank(xp: Namespace, r: Value) -> None:
    """Raise if the columns that Q is made of are dependent."""
    sizes = xp.abs(xp.linalg.diagonal(r))
    if bool(xp.any(xp.min(sizes, axis=-1) <= noise(xp, sizes) * xp.max(sizes, axis=-1))):
        refuse_derivative("qr", DEFICIENT)
