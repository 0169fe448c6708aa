"""Rules of eigenvalues and eigenvectors, of Hermitian and of general matrices.

`eigh` reads one triangle of its argument, and its derivative is that of what it reads. Where eigenvalues coincide, see
`clusters.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import is_complex
from dil._base.typing import Namespace
from dil_backends._tape.rules.clusters import (
    COINCIDE,
    COINCIDE_AGAIN,
    PHASE,
    Pairs,
    alike,
    largest,
    noise,
    refuse_derivative,
)
from dil_backends._tape.rules.conjugates import adjoint, conjugate, imaginary, real, skew_part
from dil_backends._tape.rules.matrices import column, identity, on_diagonal, row
from dil_backends._tape.rules.rule import Value


class EighResult(NamedTuple):
    eigenvalues: Value
    eigenvectors: Value


class EigResult(NamedTuple):
    eigenvalues: Value
    eigenvectors: Value


def hermitian(xp: Namespace, x: Value, UPLO: str = "L") -> Value:
    """Return the Hermitian matrix of which x has one triangle. Imaginary parts of the diagonal are not read."""
    if UPLO.upper() not in ("L", "U"):
        msg = f"UPLO is 'L' or 'U', not {UPLO!r}"
        raise ValueError(msg)
    strict = xp.tril(x, k=-1) if UPLO.upper() == "L" else xp.triu(x, k=1)
    return strict + adjoint(xp, strict) + on_diagonal(xp, real(xp, xp.linalg.diagonal(x)))


def eigh(xp: Namespace, x: Value, UPLO: str = "L") -> EighResult:
    return EighResult(*xp.spectrum(hermitian(xp, x, UPLO), upper=UPLO.upper() == "U"))


def eigvalsh(xp: Namespace, x: Value, UPLO: str = "L") -> Value:
    return eigh(xp, x, UPLO)[0]


def spectrum(xp: Namespace, x: Value, *, upper: bool = False) -> tuple[Value, Value]:
    """Return the eigenvalues and eigenvectors of Hermitian matrices. Signs of vectors depend on the triangle read."""
    w, v = xp.linalg.eigh(x, UPLO="U") if upper else xp.linalg.eigh(x)
    return w, v


def pull_spectrum(xp: Namespace, c: Value, y: Value, x: Value, *, upper: bool = False) -> Value:
    """Return V (diag(cw) + K / (w_j - w_i)) V^H, where K is the skew part of V^H cV (Giles 2008, section 3.1)."""
    (cw, cv), (w, v) = c, y
    if not x.size:
        return xp.zeros_like(x)
    m = adjoint(xp, v) @ cv
    pairs = Pairs(xp, "eigh", "eigenvalues", w)
    rotating = pairs.quotient(skew_part(xp, m), m, cw, y)
    return v @ (rotating + pairs.spread(cw, y, x, v, v)) @ adjoint(xp, v)


def eig(xp: Namespace, x: Value) -> EigResult:
    return EigResult(*xp.general_spectrum(x))


def eigvals(xp: Namespace, x: Value) -> Value:
    return xp.general_spectrum(x)[0]


def general_spectrum(xp: Namespace, x: Value) -> tuple[Value, Value]:
    """Return eigenvalues and eigenvectors. As in NumPy, they are real if x is real and all eigenvalues are."""
    w, v = xp.linalg.eig(x)
    if not is_complex(xp, x.dtype) and bool(xp.all(imaginary(xp, w) == 0.0)):
        w, v = real(xp, w), real(xp, v)
    return w, v


def pull_general_spectrum(xp: Namespace, c: Value, y: Value, x: Value) -> Value:
    """Return V^-H (diag(cw) + (M - V^H V Re diag M) / conj(w_j - w_i)) V^H with M = V^H cV, for columns of length 1.

    This is the rule of Giles 2008, section 3.1, with the derivative of the normalisation.
    """
    (cw, cv), (w, v) = c, y
    if not x.size:
        return xp.zeros_like(x)
    vh = adjoint(xp, v)
    m = vh @ cv
    mixing = m - (vh @ v) * row(xp, real(xp, xp.linalg.diagonal(m)))
    tied = without_mixing(xp, *map(xp.constant, (w, v, cw, m, mixing)))
    if bool(xp.any(tied & ~unit(xp, w))) and (xp.boxed(c) or xp.boxed(x)):
        refuse_derivative("eig", COINCIDE_AGAIN.format("eigenvalues"))
    gap = conjugate(xp, row(xp, w) - column(xp, w))
    core = xp.where(tied, 0.0, mixing / xp.where(tied, 1.0, gap)) + on_diagonal(xp, cw)
    g = xp.linalg.solve(vh, core @ vh)
    return g if is_complex(xp, x.dtype) else real(xp, g)


def unit(xp: Namespace, w: Value) -> Value:
    """Return the Boolean identity matrix."""
    return identity(xp, w.shape[-1], real(xp, xp.constant(w))) > 0.5


def without_mixing(xp: Namespace, w: Value, v: Value, cw: Value, m: Value, mixing: Value) -> Value:
    """Return the pairs of coinciding eigenvalues, and the diagonal. All arguments are raw arrays.

    Raises UnsupportedFunctionError if the function tells coinciding eigenvalues apart, if it depends on the phases of
    the eigenvectors, or if the matrix is defective to rounding.
    """
    rounding = noise(xp, real(xp, w))
    sizes = xp.linalg.svdvals(v)
    if bool(xp.any(sizes[..., -1] <= 100.0 * rounding * sizes[..., 0])):
        refuse_derivative("eig", "the matrix has no basis of eigenvectors, to rounding")
    scale = largest(xp, row(xp, w))
    size = rounding * (largest(xp, m) + scale * largest(xp, row(xp, cw)))
    if bool(xp.any(xp.abs(imaginary(xp, xp.linalg.diagonal(m))) > size[..., 0])):
        refuse_derivative("eig", PHASE)
    one = unit(xp, w)
    tied = xp.abs(row(xp, w) - column(xp, w)) <= rounding * scale
    uneven = ~alike(xp, xp.abs(row(xp, cw) - column(xp, cw)), cw, scale, rounding, size)
    if bool(xp.any(tied & ~one & (uneven | (xp.abs(mixing) > size)))):
        refuse_derivative("eig", COINCIDE.format("eigenvalues"))
    return tied | one
