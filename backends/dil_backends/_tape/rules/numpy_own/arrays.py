"""Arguments of NumPy's functions as arrays: NumPy takes numbers and lists where it takes arrays."""

from __future__ import annotations

from dil._base.typing import Namespace
from dil_backends._tape.rules.rule import Value


def as_array(xp: Namespace, x: Value) -> Value:
    """Return a number or a list as an array. A list may hold boxes."""
    return x if hasattr(x, "dtype") else xp.asarray(x)


def flat(xp: Namespace, x: Value) -> Value:
    """Return x as a vector."""
    x = as_array(xp, x)
    return x if x.ndim == 1 else xp.reshape(x, (x.size,))


def by_axis(xp: Namespace, x: Value, axis: int | None) -> tuple[Value, int]:
    """Return x and a non-negative axis of it; the vector of its entries for None."""
    x = as_array(xp, x)
    return (flat(xp, x), 0) if axis is None else (x, axis % max(x.ndim, 1))
