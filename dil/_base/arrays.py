"""Helpers for arrays that the array API standard does not have."""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType
from typing import Any

from array_api_compat import array_namespace as find_namespace
from array_api_compat import device

from dil._base.typing import Array, DType, Namespace

__all__ = [
    "array_namespace",
    "device",
    "dot",
    "eps",
    "eye",
    "full",
    "inner",
    "is_complex",
    "is_float",
    "logical_not",
    "max_abs",
    "nonzero_max_abs",
    "nonzero_or_one",
    "norm",
    "select",
    "shared_namespace",
    "size",
]


NAMESPACES: dict[type, ModuleType] = {}
"""Cache: array type -> namespace, for types whose namespace is a module."""


def array_namespace(*arrays: Any) -> Namespace:
    """Return the array API namespace of some arrays, as `array_api_compat` finds it.

    A namespace that is a module is found once for each type. One that depends on the array, as on a tape, is asked for.
    """
    if len(arrays) == 1 and (known := NAMESPACES.get(type(arrays[0]))) is not None:
        return known
    found = find_namespace(*arrays)
    if len(arrays) == 1 and isinstance(found, ModuleType):
        NAMESPACES[type(arrays[0])] = found
    return found


@lru_cache(maxsize=256)
def is_float(xp: Namespace, dtype: DType) -> bool:
    """Whether a dtype is real floating, so that arrays of it have derivatives."""
    return _is_dtype(xp, dtype, "real floating")


@lru_cache(maxsize=256)
def is_complex(xp: Namespace, dtype: DType) -> bool:
    """Whether a dtype is complex."""
    return _is_dtype(xp, dtype, "complex floating")


def _is_dtype(xp: Namespace, dtype: DType, kind: str) -> bool:
    try:
        return bool(xp.isdtype(dtype, kind))
    except (TypeError, ValueError):  # a dtype that the standard does not know, such as that of JAX's random keys
        return False


@lru_cache(maxsize=256)
def eps(xp: Namespace, dtype: DType) -> float:
    """Return the machine epsilon of a dtype."""
    return float(xp.finfo(dtype).eps)


def dot(a: Array, b: Array) -> Array:
    """Return the inner product of each problem: (*batch, n), (*batch, n) -> (*batch, 1)."""
    xp = array_namespace(a)
    total: Array = xp.sum(a * b, axis=-1, keepdims=True)
    return total


def inner(a: Array, b: Array) -> Array:
    """Return the inner product of each problem: (*batch, n), (*batch, n) -> batch."""
    if a.ndim == 1:
        return a @ b
    total: Array = array_namespace(a).sum(a * b, axis=-1)
    return total


def max_abs(a: Array) -> Array:
    """Return the largest entry of each problem by magnitude, (*batch, n) -> batch; zero for an empty problem."""
    xp = array_namespace(a)
    top: Array = xp.sum(a, axis=-1) if a.shape[-1] == 0 else xp.max(xp.abs(a), axis=-1)
    return top


def nonzero_max_abs(a: Array) -> Array:
    """Return the largest entry of each problem by magnitude, (*batch, n) -> (*batch, 1); one for a zero problem."""
    top = max_abs(a)
    return array_namespace(a).where(top == 0, 1.0, top)[..., None]  # type: ignore[no-any-return]


def norm(a: Array) -> Array:
    """Return the Euclidean norm of each problem, (*batch, n) -> (*batch, 1).

    Dividing by the largest entry first keeps the squares of tiny and huge entries from under- and overflowing.
    """
    top = nonzero_max_abs(a)
    return top * array_namespace(a).sqrt(dot(a / top, a / top))  # type: ignore[no-any-return]


def nonzero_or_one(x: Array) -> Array:
    """Return x with ones in the place of zeros, for use as a divisor."""
    return array_namespace(x).where(x == 0, full(x, 1.0), x)  # type: ignore[no-any-return]


def eye(n: int, like: Array) -> Array:
    """Return the identity, (n, n), on the device and with the dtype of `like`."""
    made: Array = array_namespace(like).eye(n, dtype=like.dtype, device=device(like))
    return made


def full(like: Array, value: Any, *, shape: tuple[int, ...] | None = None, dtype: DType | None = None) -> Array:
    """Return an array of one value, on the device of `like`, with its dtype and shape by default."""
    xp = array_namespace(like)
    made: Array = xp.full(
        like.shape if shape is None else shape,
        value,
        dtype=like.dtype if dtype is None else dtype,
        device=device(like),
    )
    return made


def size(shape: tuple[int, ...]) -> int:
    """Return the number of entries of a shape; one for a scalar."""
    return math.prod(shape)


def select(condition: Array | bool, a: Any, b: Any) -> Any:
    """Return a where the condition holds, else b. With a Python bool nothing is computed."""
    if isinstance(condition, bool):
        return a if condition else b
    return array_namespace(condition).where(condition, a, b)


def shared_namespace(a: Array, b: Array) -> Namespace:
    """Return the common namespace of two arrays of shapes (..., n) and (..., m).

    One of them may be differentiated and the other not, so both decide.
    """
    return array_namespace(a[..., :1] + b[..., :1])


def logical_not(condition: Array | bool) -> Any:
    """Return the negation of a mask, or of a bool of Python."""
    return not condition if isinstance(condition, bool) else ~condition
