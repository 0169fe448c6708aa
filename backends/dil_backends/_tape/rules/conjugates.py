"""Conjugates and conjugate transposes. They cost nothing for real arrays."""

from __future__ import annotations

from dil._base.typing import DType, Namespace
from dil_backends._tape.rules.rule import Value

KNOWN: dict[tuple[type, DType], bool] = {}  # array_api_strict warns if its dtypes are compared with NumPy's


def is_complex(xp: Namespace, x: Value) -> bool:
    """Return whether x is complex. The answer for a dtype is kept, because rules ask for it at each call."""
    key = type(x.dtype), x.dtype
    known = KNOWN.get(key)
    if known is None:
        known = KNOWN[key] = bool(xp.isdtype(x.dtype, "complex floating"))
    return known


def conjugate(xp: Namespace, x: Value) -> Value:
    """Return the conjugate of x, and x itself if it is real."""
    return xp.conj(x) if is_complex(xp, x) else x


def real(xp: Namespace, x: Value) -> Value:
    """Return the real part of x, and x itself if it is real."""
    return xp.real(x) if is_complex(xp, x) else x


def imaginary(xp: Namespace, x: Value) -> Value:
    """Return the imaginary part of x, and zeros if x is real."""
    return xp.imag(x) if is_complex(xp, x) else xp.zeros_like(x)


def adjoint(xp: Namespace, x: Value) -> Value:
    """Return the conjugate transpose of matrices: (..., m, n) -> (..., n, m)."""
    return conjugate(xp, xp.matrix_transpose(x))


def hermitian_part(xp: Namespace, x: Value) -> Value:
    return 0.5 * (x + adjoint(xp, x))


def skew_part(xp: Namespace, x: Value) -> Value:
    return 0.5 * (x - adjoint(xp, x))
