"""Diagonals of matrices, and matrices with a given diagonal."""

from __future__ import annotations

from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.numpy_own.arrays import as_array, flat
from dil_backends._tape.rules.rule import Value


def diagonal(xp: Namespace, a: Value, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Value:
    if (axis1 % a.ndim, axis2 % a.ndim) != (a.ndim - 2, a.ndim - 1):
        a = xp.moveaxis(a, (axis1, axis2), (-2, -1))
    return xp.linalg.diagonal(a, offset=offset)


def trace(xp: Namespace, a: Value, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None) -> Value:
    return xp.sum(diagonal(xp, a, offset, axis1, axis2), axis=-1, dtype=dtype)


def diag(xp: Namespace, v: Value, k: int = 0) -> Value:
    """Return the diagonal of a matrix, or the matrix with the diagonal v."""
    v = as_array(xp, v)
    if v.ndim == 2:
        return diagonal(xp, v, k)
    if v.ndim != 1:
        msg = f"diag: expected a vector or a matrix, got shape {tuple(v.shape)}"
        raise ValueError(msg)
    n = v.shape[0] + abs(k)
    start = k if k >= 0 else -k * n
    # the entries of a diagonal are n + 1 places apart in the flattened matrix
    key = (slice(start, start + max(v.shape[0] - 1, 0) * (n + 1) + min(v.shape[0], 1), n + 1),)
    return xp.reshape(xp.placed(v, (n * n,), key), (n, n))


def diagflat(xp: Namespace, v: Value, k: int = 0) -> Value:
    return diag(xp, flat(xp, v), k)


def tril(xp: Namespace, m: Value, k: int = 0) -> Value:
    return xp.tril(m, k=k)


def triu(xp: Namespace, m: Value, k: int = 0) -> Value:
    return xp.triu(m, k=k)
