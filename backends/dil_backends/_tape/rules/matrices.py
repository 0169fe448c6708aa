"""Small functions of vectors and matrices that the rules of linear algebra share."""

from __future__ import annotations

from array_api_compat import device as device_of

from dil._base.typing import Namespace
from dil_backends._tape.rules.rule import Value


def column(xp: Namespace, v: Value) -> Value:
    """Return vectors as matrices of one column."""
    return xp.expand_dims(v, axis=-1)


def row(xp: Namespace, v: Value) -> Value:
    """Return vectors as matrices of one row."""
    return xp.expand_dims(v, axis=-2)


def identity(xp: Namespace, n: int, like: Value) -> Value:
    """Return the identity matrix of n rows with the dtype and device of an array."""
    return xp.eye(n, dtype=like.dtype, device=device_of(like))


def on_diagonal(xp: Namespace, v: Value) -> Value:
    """Return the diagonal matrices of vectors."""
    return column(xp, v) * identity(xp, v.shape[-1], v)
