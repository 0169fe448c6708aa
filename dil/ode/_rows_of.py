"""Rows of arrays by their numbers, which may differ from problem to problem."""

from __future__ import annotations

from dil._base.arrays import array_namespace, device, size
from dil._base.typing import Array


def take(x: Array, i: Array) -> Array:
    """Return the entries i, of any shape, of a vector x; or the entries i of each problem, (K, *batch), of x."""
    xp = array_namespace(x)
    if x.ndim > 1:
        return rows_of(x[..., None], i)[..., 0]
    return xp.reshape(xp.take(x, xp.reshape(i, (-1,)), axis=0), i.shape)  # type: ignore[no-any-return]


def rows_of(x: Array, i: Array) -> Array:
    """Return the rows i, (K, *batch), of x, (M, *batch, n): row i of each problem, (K, *batch, n)."""
    xp, (rows, *batch, n) = array_namespace(x), x.shape
    if not batch:
        return xp.take(x, i, axis=0)  # type: ignore[no-any-return]
    count = size(tuple(batch))
    flat = xp.reshape(x, (rows * count, n))
    problem = xp.reshape(xp.arange(count, dtype=i.dtype, device=device(i)), tuple(batch))
    found = xp.take(flat, xp.reshape(i * count + problem, (-1,)), axis=0)
    return xp.reshape(found, (*i.shape, n))  # type: ignore[no-any-return]
