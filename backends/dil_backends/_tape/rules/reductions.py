"""Rules of reductions and cumulative functions.

At a tie, `max` and `min` share the cotangent equally. Norms and `std` have the subgradient 0 at 0, because a NaN there
would spoil the other problems of a batch.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from dil._base.typing import DType, Namespace
from dil_backends._tape.rules.axes import along, axes_of, inverse
from dil_backends._tape.rules.elementwise import ratio
from dil_backends._tape.rules.rule import Axis, Formula, Value


def restore(xp: Namespace, c: Value, x: Value, axis: Axis, keepdims: bool) -> Value:
    """Return a reduced array with its reduced axes restored at length one, so that it broadcasts against x."""
    if keepdims or axis is None:
        return c
    reduced = axes_of(axis, x.ndim)
    return xp.reshape(c, tuple(1 if i in reduced else n for i, n in enumerate(x.shape)))


def centred(xp: Namespace, x: Value, y: Value, axis: Axis, correction: float) -> Value:
    """Return (x - mean x) / (n - correction)."""
    freedom = x.size / max(y.size, 1) - correction
    return (x - xp.mean(x, axis=axis, keepdims=True)) * (1.0 / freedom if freedom else math.nan)


def exact(xp: Namespace, y: Value, power: float) -> Value:
    """Return where y ** power, of which y >= 0 is a root, has not overflowed or lost digits; True for everywhere."""
    low, high = bounds(xp, y.dtype, power)
    y = xp.constant(y)
    if y.ndim == 0 and low < float(y) < high:
        return True
    found = (y > low) & (y < high)
    return True if bool(xp.all(found)) else found


@lru_cache
def bounds(xp: Namespace, dtype: DType, power: float) -> tuple[float, float]:
    """Return between which numbers y ** power is exact to rounding."""
    limits = xp.finfo(dtype)
    roots = [math.log(x) / power for x in (limits.smallest_normal / limits.eps, limits.max)]
    low, high = sorted(math.exp(max(-700.0, min(root, 700.0))) for root in roots)
    return low, high


def scale_of(xp: Namespace, x: Value, axis: Axis, exact: Value, smallest: bool = False) -> Value:
    """Return by what to divide x before powers of it: the largest |x| along the axes, or the smallest.

    It has no derivative. It is 1 where powers are exact, and in the place of 0 and infinity.
    """
    size = xp.abs(xp.constant(x))
    if not x.size:
        return size
    found = (xp.min if smallest else xp.max)(size, axis=axis, keepdims=True)
    return xp.where((found == 0.0) | xp.isinf(found) | exact, 1.0, found)


def unit(xp: Namespace, x: Value, y: Value, axis: Axis, keepdims: bool) -> Value:
    """Return x / y for the Euclidean norm y along the axes, 0 where x is 0, and NaN where y has overflowed.

    It is right where squares underflow. An infinite y is no length: beside it a finite number would mislead.
    """
    good = exact(xp, y, 2.0)
    y = restore(xp, y, x, axis, keepdims)
    if good is True:
        return x / y
    x = x / scale_of(xp, x, axis, restore(xp, good, x, axis, keepdims))
    return ratio(xp, x, xp.norm(x, axis=axis, keepdims=True)) + 0.0 * xp.constant(y)


def pull_std(xp: Namespace, c: Value, y: Value, x: Value, axis: Axis = None, *, correction: float = 0.0,
             keepdims: bool = False) -> Value:  # fmt: skip
    """Return c (x - mean x) / ((n - correction) y)."""
    good = exact(xp, y, 2.0)
    freedom = x.size / max(y.size, 1) - correction
    c, y = (restore(xp, z, x, axis, keepdims) for z in (c, y))
    deviation = x - xp.mean(x, axis=axis, keepdims=True)
    # of equal numbers, the mean is rounded, and y is not zero
    deviation = deviation - xp.mean(deviation, axis=axis, keepdims=True)
    if good is not True:
        good = restore(xp, good, x, axis, keepdims)
        size = xp.max(xp.abs(xp.constant(deviation)), axis=axis, keepdims=True)
        # where no square has underflown, y is zero by itself
        c = xp.where((xp.constant(y) == 0.0) & (size * size > 0.0), 0.0, c) + 0.0 * xp.constant(y)
        deviation = deviation / scale_of(xp, deviation, axis, good)
        norm = xp.norm(deviation, axis=axis, keepdims=True)
        y = xp.where(good, y, norm * (freedom**-0.5 if freedom > 0 else math.nan))
    return ratio(xp, c, y) * (deviation * (1.0 / freedom if freedom else math.nan))


def shared(xp: Namespace, c: Value, y: Value, x: Value, axis: Axis = None, keepdims: bool = False) -> Value:
    """Share c equally among the entries of x that attain the extremum y."""
    hit = x == restore(xp, y, x, axis, keepdims)
    ties = xp.sum(xp.astype(hit, c.dtype), axis=axis, keepdims=True)
    return xp.where(hit, ratio(xp, restore(xp, c, x, axis, keepdims), ties), 0.0)


def before(xp: Namespace, x: Value) -> Value:
    """Return the product of the entries before each entry, along the last axis."""
    return xp.cumulative_prod(x, axis=-1, include_initial=True)[..., :-1]


def others(xp: Namespace, x: Value, axis: Axis) -> Value:
    """Return the product of all other entries along the axes, for each entry. It does not divide, so zeros are safe."""
    reduced = axes_of(axis, x.ndim)
    order = (*(i for i in range(x.ndim) if i not in reduced), *reduced)
    turned = xp.permute_dims(x, order)
    kept = turned.shape[: x.ndim - len(reduced)]
    rows = xp.reshape(turned, (*kept, math.prod(turned.shape[len(kept) :])))
    product = before(xp, rows) * xp.flip(before(xp, xp.flip(rows, axis=-1)), axis=-1)
    return xp.permute_dims(xp.reshape(product, turned.shape), inverse(order))


def scan_sum(xp: Namespace, c: Value, y: Value, x: Value, axis: int | None = None, *, dtype: Any = None,
             include_initial: bool = False) -> Value:  # fmt: skip
    """Return, for each entry, the sum of c from that entry to the end."""
    axis = axis or 0
    c = c[along(axis, x.ndim, slice(1, None))] if include_initial else c
    return xp.flip(xp.cumulative_sum(xp.flip(c, axis=axis), axis=axis), axis=axis)


def scan_prod(xp: Namespace, c: Value, y: Value, x: Value, axis: int | None = None, *, dtype: Any = None,
              include_initial: bool = False) -> Value:  # fmt: skip
    """Return before(x)_k r_k, where r_k = c_k + x_{k+1} r_{k+1} sums the products that contain x_k.

    The recurrence is solved by doubling. After each pass, r_k = total_k + factor_k r_{k+step}. It takes log2(n) passes
    over x. It does not divide, so zeros are safe.
    """
    axis = axis or 0
    c = c[along(axis, x.ndim, slice(1, None))] if include_initial else c
    total, x = xp.moveaxis(c, axis, -1), xp.moveaxis(x, axis, -1)
    factor, step = ahead(xp, x, 1), 1
    while step < x.shape[-1]:
        total = total + factor * ahead(xp, total, step)
        factor = factor * ahead(xp, factor, step)
        step *= 2
    return xp.moveaxis(before(xp, x) * total, -1, axis)


def ahead(xp: Namespace, x: Value, step: int) -> Value:
    """Return the entry `step` places ahead along the last axis, 0 past the end."""
    return xp.concat([x[..., step:], xp.zeros_like(x[..., :step])], axis=-1) if x.shape[-1] else x


REDUCTIONS: dict[str, Formula] = {
    "sum": lambda xp, c, y, x, axis=None, *, dtype=None, keepdims=False: xp.broadcast_to(
        restore(xp, c, x, axis, keepdims), x.shape
    ),
    "mean": lambda xp, c, y, x, axis=None, *, keepdims=False: xp.broadcast_to(
        restore(xp, c, x, axis, keepdims) * (y.size / max(x.size, 1)), x.shape
    ),
    "prod": lambda xp, c, y, x, axis=None, *, dtype=None, keepdims=False: (
        restore(xp, c, x, axis, keepdims) * others(xp, x, axis)
    ),
    "var": lambda xp, c, y, x, axis=None, *, correction=0.0, keepdims=False: (
        restore(xp, 2.0 * c, x, axis, keepdims) * centred(xp, x, y, axis, correction)
    ),
    "std": pull_std,
    "max": lambda xp, c, y, x, axis=None, *, keepdims=False: shared(xp, c, y, x, axis, keepdims),
    "min": lambda xp, c, y, x, axis=None, *, keepdims=False: shared(xp, c, y, x, axis, keepdims),
    # the Euclidean norm; it is in OWN because `linalg.vector_norm` has other orders too
    "norm": lambda xp, c, y, x, axis=None, *, keepdims=False: (
        restore(xp, c, x, axis, keepdims) * unit(xp, x, y, axis, keepdims)
    ),
    "cumulative_sum": scan_sum,
    "cumulative_prod": scan_prod,
}
