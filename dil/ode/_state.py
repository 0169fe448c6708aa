"""States: tuples of arrays that a method combines linearly."""

from __future__ import annotations

from collections.abc import Sequence

from dil._base.arrays import array_namespace
from dil._base.typing import Array, Arrays


def plus(y: Arrays, *terms: tuple[Array | float, Arrays]) -> Arrays:
    """Return y plus the sum of c v over the terms (c, v); c is a number or a 0-D array."""
    out = []
    for i, total in enumerate(y):
        for c, v in terms:
            total = total + c * v[i]
        out.append(total)
    return tuple(out)


def stepped(y: Arrays, h: Array, weights: Sequence[float], slopes: Sequence[Arrays]) -> Arrays:
    """Return y + h times the sum of c k over the weights c and the slopes k. Weights of zero are left out."""
    terms = [(c, k) for c, k in zip(weights, slopes, strict=True) if c]
    return tuple(a + b for a, b in zip(y, scaled(h, *terms), strict=True)) if terms else y


def scaled(h: Array | float, *terms: tuple[Array | float, Arrays]) -> Arrays:
    """Return h times the sum of c v over the terms (c, v)."""
    (c, first), *rest = terms
    return tuple(h * x for x in plus(tuple(c * v for v in first), *rest))


def slope_between(z: Arrays, base: Arrays, h: Array) -> Arrays:
    """Return (z - base) / h. It is zero for a step of length zero, which pads a grid."""
    h = array_namespace(h).where(h == 0, 1.0, h)
    return tuple((a - b) / h for a, b in zip(z, base, strict=True))
