"""Functions of NumPy that leave entries out: those that are NaN, or those of a mask (`where=`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.axes import axes_of
from dil_backends._tape.rules.numpy_own.arrays import as_array, by_axis, is_number
from dil_backends._tape.rules.rule import Axis, Rule, Value, refuse

MASKED_RULES: dict[str, Rule] = {
    "masked": Rule(
        (
            lambda xp, c, y, x, mask, fill: xp.where(mask, c, 0.0),
            None,
            lambda xp, c, y, x, mask, fill: xp.where(mask, 0.0, c),
        ),
        hides=True,
    )
}
MASKED_OWN: dict[str, Callable[..., Any]] = {"masked": lambda xp, x, mask, fill: xp.where(mask, x, fill)}


def kept(xp: Namespace, x: Value, mask: Value, fill: Value) -> Value:
    """Return the entries of x where the mask holds, and `fill` elsewhere. No NaN comes back from there."""
    return xp.masked(x, as_array(xp, xp.constant(mask)), fill)


def present(xp: Namespace, a: Value, fill: Value) -> Value:
    """Return the entries of a, and `fill` for those that are NaN."""
    a = as_array(xp, a)
    return kept(xp, a, ~xp.isnan(a), fill)


def nancumsum(xp: Namespace, a: Value, axis: int | None = None, dtype: Any = None, out: None = None) -> Value:
    a, axis = by_axis(xp, a, axis)
    return xp.cumulative_sum(present(xp, a, 0.0), axis=axis, dtype=dtype)


def nancumprod(xp: Namespace, a: Value, axis: int | None = None, dtype: Any = None, out: None = None) -> Value:
    a, axis = by_axis(xp, a, axis)
    return xp.cumulative_prod(present(xp, a, 1.0), axis=axis, dtype=dtype)


def nanmedian(xp: Namespace, a: Value, axis: Axis = None, out: None = None, overwrite_input: bool = False,
              keepdims: bool = False) -> Value:  # fmt: skip
    return nanquantile(xp, a, 0.5, axis, keepdims=keepdims)


def nanpercentile(xp: Namespace, a: Value, q: Value, axis: Axis = None, out: None = None,
                  overwrite_input: bool = False, method: str = "linear", keepdims: bool = False) -> Value:  # fmt: skip
    return nanquantile(xp, a, (q if is_number(q) else as_array(xp, q)) / 100.0, axis, method=method, keepdims=keepdims)


def nanquantile(xp: Namespace, a: Value, q: Value, axis: Axis = None, out: None = None, overwrite_input: bool = False,
                method: str = "linear", keepdims: bool = False) -> Value:  # fmt: skip
    """Return the quantiles of the entries that are no NaN, linear between neighbours in the order."""
    if method != "linear":
        refuse(f"nanquantile(method={method!r})")
    a = as_array(xp, a)
    q = xp.asarray(q, dtype=a.dtype) if is_number(q) else as_array(xp, q)
    reduced = axes_of(axis, a.ndim)
    rest = tuple(k for k in range(a.ndim) if k not in reduced)
    rows = xp.permute_dims(a, (*reduced, *rest))
    rows = xp.reshape(rows, (-1, *rows.shape[len(reduced) :]))
    count = xp.sum(xp.astype(~xp.isnan(rows), xp.int64), axis=0)
    rows = xp.sort(present(xp, rows, math.inf), axis=0)
    last = xp.where(count > 0, count - 1, 0)
    place = xp.reshape(q, (q.size, *(1,) * len(rest))) * xp.astype(last, q.dtype)
    below = xp.astype(xp.floor(place), xp.int64)
    above = xp.where(below < last, below + 1, last)
    low, high = (xp.take_along_axis(rows, at, axis=0) for at in (below, above))
    found = xp.where(count > 0, low + (high - low) * (place - xp.floor(place)), math.nan)
    left = tuple(1 if k in reduced else n for k, n in enumerate(a.shape) if keepdims or k not in reduced)
    return xp.reshape(found, (*q.shape, *left))
