"""The size of each unknown, with which steps are compared: no unit of the problem matters."""

from __future__ import annotations

import math

from dil._base.arrays import array_namespace, eps, full, nonzero_max_abs
from dil._base.typing import Array


def scale_of(u: Array, start: Array | None) -> Array:
    """Return the size of each entry of u: |u|, but at least eps ** (1/3) times its distance from the start."""
    xp = array_namespace(u)
    size: Array = xp.abs(u)
    return size if start is None else xp.maximum(size, eps(xp, u.dtype) ** (1 / 3) * xp.abs(u - start))


def nonzero_scale(scale: Array) -> Array:
    """Return the scale, with the largest one where it is zero, as for an entry that did not move, or one."""
    return array_namespace(scale).where(scale == 0, nonzero_max_abs(scale), scale)  # type: ignore[no-any-return]


def longest_short(direction: Array, u: Array, start: Array, rtol: float) -> Array:
    """Return the largest t for which t times the direction is short in the sense of `is_short`, shape batch."""
    xp = array_namespace(u)
    if u.shape[-1] == 0:
        return xp.sum(u, axis=-1) + math.inf  # type: ignore[no-any-return]
    limit = xp.maximum(rtol * xp.abs(u), 4 * eps(xp, u.dtype) * xp.abs(u - start))
    size = xp.abs(direction)
    infinite = full(u, math.inf)
    most: Array = xp.min(xp.where(size > 0, limit / xp.where(size > 0, size, infinite), infinite), axis=-1)
    return most


def shortest_long(size: float, extent: float, rtol: float) -> float:
    """Return a t such that no longer multiple of a direction of norm `size` is short in the sense of `is_short`.

    `extent` is at least ||u|| + ||u - start||. rtol is at least 4 eps. A number that tells nothing gives infinity.
    """
    return rtol * extent / size if 0 < size < math.inf else math.inf


def is_short(step: Array, u: Array, start: Array, rtol: float) -> Array:
    """Return whether each entry of a step is within rtol |u|, or within the rounding of the way from the start.

    Shape (*batch, 1). An entry of u that is zero has the way as its scale.
    """
    xp, size = array_namespace(u), array_namespace(u).abs(step)
    of_u, of_way = rtol * xp.abs(u), 4 * eps(xp, u.dtype) * xp.abs(u - start)
    if u.shape[-1] == 1:
        return (size <= of_u) | (size <= of_way)  # type: ignore[no-any-return]
    limit = xp.maximum(of_u, of_way)
    if u.shape[-1] == 0:
        return xp.all(limit <= 0, axis=-1, keepdims=True)  # type: ignore[no-any-return]
    # masks of whole vectors cost a library several times as much as numbers
    short: Array = xp.max(size - limit, axis=-1, keepdims=True) <= 0
    return short
