"""Norms of every order, for vectors and for matrices.

At zero, norms have the subgradient 0. So has an entry that is zero in a norm of order p < 2, also where the slope of
|x|^p is infinite. At a tie, the largest and smallest entry share the cotangent. A zero singular value, or two that
coincide, have no derivative, and the norms of order 2, -2 and 'nuc' raise there.
"""

from __future__ import annotations

import math
from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.axes import axes_of
from dil_backends._tape.rules.elementwise import ratio
from dil_backends._tape.rules.reductions import exact, restore, scale_of
from dil_backends._tape.rules.rule import Axis, Value
from dil_backends._tape.rules.singular import svdvals


def vector_norm(xp: Namespace, x: Value, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Value:
    if ord == 2:
        return xp.norm(x, axis=axis, keepdims=keepdims)
    if ord == 0:  # the number of entries that are not zero
        return xp.linalg.vector_norm(xp.constant(x), axis=axis, keepdims=keepdims, ord=0)
    if ord == 1:
        return xp.sum(xp.abs(x), axis=axis, keepdims=keepdims)
    if math.isinf(ord):
        return (xp.max if ord > 0 else xp.min)(xp.abs(x), axis=axis, keepdims=keepdims)
    return xp.power_norm(x, ord, axis=axis, keepdims=keepdims)


def power_norm(xp: Namespace, x: Value, p: float, *, axis: Axis = None, keepdims: bool = False) -> Value:
    """Return (sum |x|^p)^(1/p)."""
    return xp.linalg.vector_norm(x, axis=axis, keepdims=keepdims, ord=p)


def pull_power_norm(xp: Namespace, c: Value, y: Value, x: Value, p: float, *, axis: Axis = None,
                    keepdims: bool = False) -> Value:  # fmt: skip
    """Return c (|x| / y)^(p-1) sign x, also where powers underflow, and NaN where y has overflowed."""
    size = xp.abs(x)
    zero = xp.constant(size) == 0.0
    good = exact(xp, y, p)
    y = restore(xp, y, x, axis, keepdims)
    if good is not True:
        size = size / scale_of(xp, x, axis, restore(xp, good, x, axis, keepdims), smallest=p < 0)
        y = xp.power_norm(size, p, axis=axis, keepdims=True) + 0.0 * xp.constant(y)
    share = ratio(xp, xp.where(zero, 1.0, size), y)
    slope = xp.where(
        zero | (xp.constant(share) == 0.0), 0.0, xp.where(xp.constant(share) == 0.0, 1.0, share) ** (p - 1)
    )
    return restore(xp, c, x, axis, keepdims) * slope * xp.sign(x)


def matrix_norm(xp: Namespace, x: Value, keepdims: bool = False, ord: Any = "fro") -> Value:
    if ord == "fro" or ord is None:
        return xp.norm(x, axis=(-2, -1), keepdims=keepdims)
    if ord in (1, -1, math.inf, -math.inf):
        sums = xp.sum(xp.abs(x), axis=-2 if abs(ord) == 1 else -1)
        found = (xp.max if ord > 0 else xp.min)(sums, axis=-1)
    elif ord in (2, -2):
        found = svdvals(xp, x)[..., 0 if ord > 0 else -1]
    elif ord == "nuc":
        found = xp.nuclear(x)
    else:
        msg = f"matrix_norm has no ord={ord!r}; it takes 'fro', 'nuc', 1, -1, 2, -2, inf and -inf"
        raise ValueError(msg)
    return xp.reshape(found, (*found.shape, 1, 1)) if keepdims else found


def norm(xp: Namespace, x: Value, ord: Any = None, axis: Axis = None, keepdims: bool = False) -> Value:
    """Return NumPy's norm: of a matrix if two axes are named, or none and x has two and an order is given."""
    x = xp.asarray(x)
    if ord is None and (axis is None or isinstance(axis, int)):
        return vector_norm(xp, x, axis, keepdims)
    axes = axes_of(axis, x.ndim)
    if len(axes) == 1:
        return vector_norm(xp, x, axes[0], keepdims, 2 if ord is None else ord)
    if len(axes) != 2:
        msg = f"norm takes one axis or two, and got axis={axis} for an array of {x.ndim} dimensions"
        raise ValueError(msg)
    found = matrix_norm(xp, xp.moveaxis(x, axes, (-2, -1)), False, ord)
    return xp.reshape(found, tuple(1 if i in axes else n for i, n in enumerate(x.shape))) if keepdims else found
