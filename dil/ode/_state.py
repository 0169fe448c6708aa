"""States: tuples of arrays that a method combines linearly, whatever they hold."""

from __future__ import annotations

from dil._typing import Array, Arrays


def plus(y: Arrays, *terms: tuple[Array | float, Arrays]) -> Arrays:
    """Return y + sum of c v over the terms (c, v); c is a number or a 0-D array."""
    out = []
    for i, total in enumerate(y):
        for c, v in terms:
            total = total + c * v[i]
        out.append(total)
    return tuple(out)


def slope_between(z: Arrays, base: Arrays, h: Array) -> Arrays:
    """Return (z - base) / h."""
    return tuple((a - b) / h for a, b in zip(z, base, strict=True))
