"""Conjugates and conjugate transposes. They cost nothing for real arrays."""

from __future__ import annotations

from dil._base.arrays import is_complex
from dil._base.typing import Namespace
from dil_backends._tape.rules.rule import Value


def conjugate(xp: Namespace, x: Value) -> Value:
    """Return the conjugate of x, and x itself if it is real."""
    return xp.conj(x) if is_complex(xp, x.dtype) else x


def real(xp: Namespace, x: Value) -> Value:
    """Return the real part of x, and x itself if it is real."""
    return xp.real(x) if is_complex(xp, x.dtype) else x


def imaginary(xp: Namespace, x: Value) -> Value:
    """Return the imaginary part of x, and zeros if x is real."""
    return xp.imag(x) if is_complex(xp, x.dtype) else xp.zeros_like(x)


def adjoint(xp: Namespace, x: Value) -> Value:
    """Return the conjugate transpose of matrices: (..., m, n) -> (..., n, m)."""
    return conjugate(xp, xp.matrix_transpose(x))


def hermitian_part(xp: Namespace, x: Value) -> Value:
    return 0.5 * (x + adjoint(xp, x))


def skew_part(xp: Namespace, x: Value) -> Value:
    return 0.5 * (x - adjoint(xp, x))
