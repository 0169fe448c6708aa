"""Rules of indexing: reading at basic indices, gathering rows, and the transposes of both."""

from __future__ import annotations

import math
import numbers
from typing import Any

from array_api_compat import device as device_of

from dil._base.typing import Namespace
from dil_backends._tape.rules.rule import Value


def placed(xp: Namespace, g: Value, shape: tuple[int, ...], key: tuple[Any, ...]) -> Value:
    """Return zeros with g written at a basic index. This is the transpose of reading at the index."""
    whole = xp.zeros(shape, dtype=g.dtype, device=device_of(g))
    basic = tuple(k for k in key if k is not None)  # the standard allows no None on the left-hand side
    whole[basic] = g if len(basic) == len(key) else xp.reshape(g, whole[basic].shape)
    return whole


class Rows:
    """The rows that a gather reads out of `count` rows, and the plan of the scatter that sums their cotangents.

    The standard has no scatter-add. Instead, the cotangents are sorted by row. The sorting order is kept in the plan.
    Then equal neighbours are added by doubling. k cotangents take log2(m) passes of O(k), where m is the largest number
    of cotangents of one row. If no row is read twice, there is no pass. A difference of running sums would mix rows, so
    rounding and NaN would spread from one row to another. A one-hot product would take O(k count) memory.
    """

    __slots__ = ("at", "count", "plan")

    def __init__(self, at: Value, count: int) -> None:
        self.at = at
        self.count = count
        self.plan: tuple[Value, Value, Value, Value, int] | None = None

    def sorted(self, xp: Namespace) -> tuple[Value, Value, Value, Value, int]:
        """Return the sorting order, the sorted rows, the last place of each row there, whether it occurs, and m."""
        if self.plan is None:
            order = xp.argsort(self.at, stable=True)
            rows = xp.take(self.at, order, axis=0)
            each = xp.arange(self.count, dtype=rows.dtype, device=device_of(rows))
            start, stop = xp.searchsorted(rows, each, side="left"), xp.searchsorted(rows, each, side="right")
            last = xp.where(stop > start, stop - 1, xp.zeros_like(stop))
            self.plan = order, rows, last, stop > start, int(xp.max(stop - start))
        return self.plan


def gather(xp: Namespace, x: Value, rows: Rows) -> Value:
    """Return the rows of x that `rows` selects: (count, ...) -> (k, ...)."""
    return xp.take(x, rows.at, axis=0)


def scatter(xp: Namespace, g: Value, rows: Rows) -> Value:
    """Sum the rows of g that a gather read from the same row of x: (k, ...) -> (count, ...).

    This is the transpose of `gather`.
    """
    shape = (rows.count, *g.shape[1:])
    if 0 in (rows.count, g.size):
        return xp.zeros(shape, dtype=g.dtype, device=device_of(g))
    order, row, last, present, most = rows.sorted(xp)
    total = xp.take(xp.reshape(g, (g.shape[0], math.prod(g.shape[1:]))), order, axis=0)
    step = 1
    while step < most:
        same = xp.expand_dims(row[step:] == row[:-step], axis=1)
        total = xp.concat([total[:step, :], total[step:, :] + xp.where(same, total[:-step, :], 0.0)], axis=0)
        step *= 2
    return xp.reshape(xp.where(xp.expand_dims(present, axis=1), xp.take(total, last, axis=0), 0.0), shape)


def getitem(xp: Namespace, x: Value, key: Any) -> Value:
    """Return x[key]. A key with arrays is applied to an array of flat positions first."""
    key = key if isinstance(key, tuple) else (key,)
    if all(k is None or k is ... or isinstance(k, numbers.Integral | slice) for k in key):
        return xp.indexed(x, key)
    if len(key) == 1 and x.ndim > 1 and hasattr(key[0], "dtype") and xp.isdtype(key[0].dtype, "integral"):
        return read_rows(xp, x, key[0])
    return read(xp, x, xp.reshape(xp.arange(x.size, device=device_of(x)), x.shape)[key])


def read(xp: Namespace, x: Value, positions: Value) -> Value:
    """Return the entries of x at flat positions."""
    rows = Rows(xp.reshape(positions, (positions.size,)), x.size)
    return xp.reshape(xp.gather(xp.reshape(x, (x.size,)), rows), positions.shape)


def read_rows(xp: Namespace, x: Value, indices: Value) -> Value:
    """Return x[indices, ...]. Indexing an arange makes negative indices positive."""
    at = xp.arange(x.shape[0], device=device_of(x))[xp.reshape(indices, (indices.size,))]
    return xp.reshape(xp.gather(x, Rows(at, x.shape[0])), (*indices.shape, *x.shape[1:]))


def take(xp: Namespace, x: Value, indices: Value, axis: int | None = None) -> Value:
    if axis is None and x.ndim != 1:
        msg = f"take: axis= is required for an array of {x.ndim} dimensions"
        raise ValueError(msg)
    axis = axis or 0
    return xp.moveaxis(read_rows(xp, xp.moveaxis(x, axis, 0), indices), 0, axis)


def take_along_axis(xp: Namespace, x: Value, indices: Value, axis: int = -1) -> Value:
    positions = xp.reshape(xp.arange(x.size, device=device_of(x)), x.shape)
    return read(xp, x, xp.take_along_axis(positions, indices, axis=axis))
