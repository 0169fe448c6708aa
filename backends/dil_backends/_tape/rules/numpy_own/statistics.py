"""Sums, means and order statistics with NumPy's arguments."""

from __future__ import annotations

import math
from typing import Any

from dil._base.arrays import is_complex
from dil._base.typing import Namespace
from dil_backends._tape.rules.axes import axes_of
from dil_backends._tape.rules.numpy_own.arrays import as_array, by_axis, flat, is_number
from dil_backends._tape.rules.numpy_own.missing import kept, present
from dil_backends._tape.rules.rule import Axis, Value, refuse


def sum(xp: Namespace, a: Value, axis: Axis = None, dtype: Any = None, out: None = None, keepdims: bool = False,
        initial: Value = None, where: Value = None) -> Value:  # fmt: skip
    a = as_array(xp, a)
    total = xp.sum(a if where is None else kept(xp, a, where, 0.0), axis=axis, dtype=dtype, keepdims=keepdims)
    return total if initial is None else total + initial


def prod(xp: Namespace, a: Value, axis: Axis = None, dtype: Any = None, out: None = None, keepdims: bool = False,
         initial: Value = None, where: Value = None) -> Value:  # fmt: skip
    a = as_array(xp, a)
    product = xp.prod(a if where is None else kept(xp, a, where, 1.0), axis=axis, dtype=dtype, keepdims=keepdims)
    return product if initial is None else product * initial


def max(xp: Namespace, a: Value, axis: Axis = None, out: None = None, keepdims: bool = False, initial: Value = None,
        where: Value = None) -> Value:  # fmt: skip
    a = masked(xp, a, where, initial, -math.inf)
    if initial is not None and not a.size:
        return xp.sum(a, axis=axis, keepdims=keepdims) + initial
    found = xp.max(a, axis=axis, keepdims=keepdims)
    return found if initial is None else xp.maximum(found, initial)


def min(xp: Namespace, a: Value, axis: Axis = None, out: None = None, keepdims: bool = False, initial: Value = None,
        where: Value = None) -> Value:  # fmt: skip
    a = masked(xp, a, where, initial, math.inf)
    if initial is not None and not a.size:
        return xp.sum(a, axis=axis, keepdims=keepdims) + initial
    found = xp.min(a, axis=axis, keepdims=keepdims)
    return found if initial is None else xp.minimum(found, initial)


def masked(xp: Namespace, a: Value, where: Value, initial: Value, fill: float) -> Value:
    if where is None:
        return as_array(xp, a)
    if initial is None:
        msg = "max and min with where= need initial=, as in NumPy"
        raise ValueError(msg)
    return kept(xp, as_array(xp, a), where, fill)


def ptp(xp: Namespace, a: Value, axis: Axis = None, out: None = None, keepdims: bool = False) -> Value:
    return xp.max(a, axis=axis, keepdims=keepdims) - xp.min(a, axis=axis, keepdims=keepdims)


def mean(xp: Namespace, a: Value, axis: Axis = None, dtype: Any = None, out: None = None, keepdims: bool = False,
         *, where: Value = None) -> Value:  # fmt: skip
    a = cast(xp, a, dtype)
    if where is None:
        return xp.mean(a, axis=axis, keepdims=keepdims)
    return sum(xp, a, axis, keepdims=keepdims, where=where) / counted(xp, a, where, axis, keepdims)


def cast(xp: Namespace, a: Value, dtype: Any) -> Value:
    return as_array(xp, a) if dtype is None else xp.astype(as_array(xp, a), xp.empty(0, dtype=dtype).dtype)


def counted(xp: Namespace, a: Value, where: Value, axis: Axis, keepdims: bool) -> Value:
    """Return how many entries of a the mask has along the axis."""
    mask = as_array(xp, xp.constant(where))
    return xp.sum(xp.astype(xp.broadcast_to(mask, a.shape), a.dtype), axis=axis, keepdims=keepdims)


def var(xp: Namespace, a: Value, axis: Axis = None, dtype: Any = None, out: None = None, ddof: float = 0,
        keepdims: bool = False, *, where: Value = None, correction: float | None = None) -> Value:  # fmt: skip
    a, correction = cast(xp, a, dtype), ddof if correction is None else correction
    if where is None:
        return xp.var(a, axis=axis, correction=correction, keepdims=keepdims)
    a = kept(xp, a, where, 0.0)  # a NaN that is left out would come back as 0 NaN in the derivative of the square
    deviation = a - mean(xp, a, axis, keepdims=True, where=where)
    square = xp.real(xp.conj(deviation) * deviation)
    total = sum(xp, square, axis, keepdims=keepdims, where=where)
    freedom = counted(xp, square, where, axis, keepdims) - correction
    return total / xp.where(freedom > 0, freedom, 0.0)


def std(xp: Namespace, a: Value, axis: Axis = None, dtype: Any = None, out: None = None, ddof: float = 0,
        keepdims: bool = False, *, where: Value = None, correction: float | None = None) -> Value:  # fmt: skip
    if where is None:
        correction = ddof if correction is None else correction
        return xp.std(cast(xp, a, dtype), axis=axis, correction=correction, keepdims=keepdims)
    a, correction = kept(xp, cast(xp, a, dtype), where, 0.0), ddof if correction is None else correction
    deviation = kept(xp, a - mean(xp, a, axis, keepdims=True, where=where), where, 0.0)
    freedom = counted(xp, xp.abs(xp.constant(a)), where, axis, keepdims) - correction
    # not the root of the variance: the norm has the subgradient 0 at 0, and its squares may overflow
    return xp.norm(deviation, axis=axis, keepdims=keepdims) / xp.sqrt(xp.where(freedom > 0, freedom, 0.0))


def average(xp: Namespace, a: Value, axis: Axis = None, weights: Value = None, returned: bool = False, *,
            keepdims: bool = False) -> Value:  # fmt: skip
    a = as_array(xp, a)
    weights = xp.ones(a.shape, dtype=a.dtype) if weights is None else as_array(xp, weights)
    if weights.shape != a.shape:
        along = axes_of(axis, a.ndim)
        if weights.shape != tuple(a.shape[k] for k in along):
            msg = f"average: weights of shape {weights.shape} do not fit the axes {along} of shape {a.shape}"
            raise ValueError(msg)
        weights = xp.permute_dims(weights, tuple(sorted(range(len(along)), key=along.__getitem__)))
        weights = xp.reshape(weights, tuple(n if k in along else 1 for k, n in enumerate(a.shape)))
    weights = xp.astype(weights, xp.result_type(a.dtype, weights.dtype, *([] if a.dtype.kind in "fc" else [float])))
    scale = xp.sum(xp.broadcast_to(weights, a.shape), axis=axis, keepdims=keepdims)
    found = xp.sum(a * weights, axis=axis, keepdims=keepdims) / scale
    return (found, scale) if returned else found


def nansum(xp: Namespace, a: Value, axis: Axis = None, dtype: Any = None, out: None = None,
           keepdims: bool = False) -> Value:  # fmt: skip
    return sum(xp, a, axis, dtype, None, keepdims, where=~xp.isnan(a))


def nanprod(xp: Namespace, a: Value, axis: Axis = None, dtype: Any = None, out: None = None,
            keepdims: bool = False) -> Value:  # fmt: skip
    return prod(xp, a, axis, dtype, None, keepdims, where=~xp.isnan(a))


def nanmean(xp: Namespace, a: Value, axis: Axis = None, dtype: Any = None, out: None = None,
            keepdims: bool = False) -> Value:  # fmt: skip
    return mean(xp, a, axis, dtype, None, keepdims, where=~xp.isnan(a))


def nanvar(xp: Namespace, a: Value, axis: Axis = None, dtype: Any = None, out: None = None, ddof: float = 0,
           keepdims: bool = False) -> Value:  # fmt: skip
    found = var(xp, a, axis, dtype, None, ddof, keepdims, where=~xp.isnan(a))
    return where_free(xp, a, axis, ddof, keepdims, found)


def nanstd(xp: Namespace, a: Value, axis: Axis = None, dtype: Any = None, out: None = None, ddof: float = 0,
           keepdims: bool = False) -> Value:  # fmt: skip
    found = std(xp, a, axis, dtype, None, ddof, keepdims, where=~xp.isnan(a))
    return where_free(xp, a, axis, ddof, keepdims, found)


def where_free(xp: Namespace, a: Value, axis: Axis, ddof: float, keepdims: bool, found: Value) -> Value:
    """Return `found`, and NaN where the entries of a that are no NaN leave no degree of freedom."""
    count = xp.sum(xp.astype(~xp.isnan(a), xp.float64), axis=axis, keepdims=keepdims)
    return xp.where(count > ddof, found, math.nan)


def nanmax(xp: Namespace, a: Value, axis: Axis = None, out: None = None, keepdims: bool = False) -> Value:
    return with_nan(xp, a, axis, keepdims, xp.max(present(xp, a, -math.inf), axis=axis, keepdims=keepdims))


def nanmin(xp: Namespace, a: Value, axis: Axis = None, out: None = None, keepdims: bool = False) -> Value:
    return with_nan(xp, a, axis, keepdims, xp.min(present(xp, a, math.inf), axis=axis, keepdims=keepdims))


def with_nan(xp: Namespace, a: Value, axis: Axis, keepdims: bool, found: Value) -> Value:
    """Return `found`, and NaN where all entries of a are NaN."""
    return xp.where(xp.all(xp.isnan(a), axis=axis, keepdims=keepdims), math.nan, found)


def cumsum(xp: Namespace, a: Value, axis: int | None = None, dtype: Any = None, out: None = None) -> Value:
    a, axis = by_axis(xp, a, axis)
    return xp.cumulative_sum(a, axis=axis, dtype=dtype)


def cumprod(xp: Namespace, a: Value, axis: int | None = None, dtype: Any = None, out: None = None) -> Value:
    a, axis = by_axis(xp, a, axis)
    return xp.cumulative_prod(a, axis=axis, dtype=dtype)


def sort(xp: Namespace, a: Value, axis: int | None = -1, kind: str | None = None, order: None = None, *,
         stable: bool | None = None) -> Value:  # fmt: skip
    a, axis = by_axis(xp, a, axis)
    return xp.sort(a, axis=axis)


def partition(xp: Namespace, a: Value, kth: Any, axis: int | None = -1, kind: str = "introselect",
              order: None = None) -> Value:  # fmt: skip
    a, axis = by_axis(xp, a, axis)
    return xp.take_along_axis(a, xp.argpartition(a, kth, axis=axis), axis=axis)


def median(xp: Namespace, a: Value, axis: Axis = None, out: None = None, overwrite_input: bool = False,
           keepdims: bool = False) -> Value:  # fmt: skip
    return quantile(xp, a, 0.5, axis, keepdims=keepdims)


def percentile(xp: Namespace, a: Value, q: Value, axis: Axis = None, out: None = None, overwrite_input: bool = False,
               method: str = "linear", keepdims: bool = False) -> Value:  # fmt: skip
    return quantile(xp, a, (q if is_number(q) else as_array(xp, q)) / 100.0, axis, method=method, keepdims=keepdims)


def quantile(xp: Namespace, a: Value, q: Value, axis: Axis = None, out: None = None, overwrite_input: bool = False,
             method: str = "linear", keepdims: bool = False) -> Value:  # fmt: skip
    """Return the quantiles, linear between neighbours in the order. The axes of q come first."""
    if method != "linear":
        refuse(f"quantile(method={method!r})")
    a = as_array(xp, a)
    if is_complex(xp, a.dtype):
        msg = "quantile, percentile and median need real numbers, as complex ones have no order"
        raise TypeError(msg)
    q = xp.astype(xp.asarray(q), a.dtype) if is_number(q) and a.dtype.kind == "f" else as_array(xp, q)
    reduced = axes_of(axis, a.ndim)
    kept = tuple(k for k in range(a.ndim) if k not in reduced)
    rows = xp.permute_dims(a, (*reduced, *kept))
    rows = xp.sort(xp.reshape(rows, (-1, *rows.shape[len(reduced) :])), axis=0)
    place = q * float(rows.shape[0] - 1)
    floor = xp.floor(place)
    below = xp.astype(floor, xp.int64)
    above = xp.minimum(below + 1, xp.asarray(rows.shape[0] - 1))
    weight = xp.reshape(place - floor, (*q.shape, *(1,) * len(kept)))
    low, high = rows[below, ...], rows[above, ...]
    found = low + (high - low) * weight
    found = xp.where(xp.any(xp.isnan(rows), axis=0), math.nan, found)  # sorting puts them last
    if keepdims:
        return xp.reshape(found, (*q.shape, *(1 if k in reduced else n for k, n in enumerate(a.shape))))
    return found


def cov(xp: Namespace, m: Value, y: Value = None, rowvar: bool = True, bias: bool = False,
        ddof: float | None = None) -> Value:  # fmt: skip
    """Return the covariances of variables, which are the rows, in double precision as NumPy does."""
    x = observations(xp, m, rowvar)
    if y is not None:
        x = xp.concat([x, observations(xp, y, rowvar)], axis=0)
    x = xp.astype(x, xp.complex128 if is_complex(xp, x.dtype) else xp.float64)
    x = x - xp.mean(x, axis=1, keepdims=True)
    freedom = x.shape[1] - ((0 if bias else 1) if ddof is None else ddof)
    return xp.squeeze(x @ xp.conj(xp.transpose(x))) / float(freedom)


def observations(xp: Namespace, m: Value, rowvar: bool) -> Value:
    m = as_array(xp, m)
    if m.ndim < 2:
        return xp.reshape(m, (1, m.size))
    return m if rowvar or m.shape[0] == 1 else xp.transpose(m)


def corrcoef(xp: Namespace, x: Value, y: Value = None, rowvar: bool = True) -> Value:
    covariance = cov(xp, x, y, rowvar)
    if covariance.ndim == 0:
        return covariance / covariance
    scale = xp.sqrt(xp.linalg.diagonal(covariance))
    return covariance / xp.expand_dims(scale, axis=1) / scale


def compress(xp: Namespace, condition: Value, a: Value, axis: int | None = None) -> Value:
    a, axis = by_axis(xp, a, axis)
    return xp.take(a, xp.nonzero(flat(xp, condition))[0], axis=axis)
