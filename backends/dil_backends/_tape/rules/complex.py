"""Complex numbers: parts, conjugates, angles and signs.

A complex array stands for its real and imaginary parts. These functions are not holomorphic, so each has a formula of
its own: the adjoint in the inner product Re <c, y>. `fit` takes the real part of the cotangent of a real array.
"""

from __future__ import annotations

import math

from dil._base.arrays import is_complex
from dil._base.typing import Namespace
from dil_backends._tape.rules.elementwise import ratio
from dil_backends._tape.rules.rule import Formula, Value

PARTS: dict[str, Formula] = {
    "conjugated": lambda xp, c, y, x: xp.conj(c),
    "real_part": lambda xp, c, y, x: c,
    "imaginary_part": lambda xp, c, y, x: c * 1j,
}
"""Functions of complex arrays alone."""


def real(xp: Namespace, x: Value) -> Value:
    """Return the real part. A real array is its own."""
    return xp.real_part(x) if is_complex(xp, x.dtype) else x


def imag(xp: Namespace, x: Value) -> Value:
    """Return the imaginary part. That of a real array is zero."""
    return xp.imaginary_part(x) if is_complex(xp, x.dtype) else xp.zeros_like(x)


def conj(xp: Namespace, x: Value) -> Value:
    """Return the conjugate. A real array is its own, without a copy."""
    return xp.conjugated(x) if is_complex(xp, x.dtype) else x


def angle(xp: Namespace, z: Value, deg: bool = False) -> Value:
    """Return the angle of each number. That of a real array is constant."""
    parts = imag(xp, z), z if is_complex(xp, z.dtype) else xp.unboxed(z, "angle")
    return xp.atan2(parts[0], real(xp, parts[1])) * (180.0 / math.pi if deg else 1.0)


def sign(xp: Namespace, x: Value) -> Value:
    """Return x / |x|, and 0 where x is 0. That of a real array is constant."""
    return ratio(xp, x, xp.abs(x)) if is_complex(xp, x.dtype) else xp.sign(xp.unboxed(x, "sign"))
