"""Array functions that the array API standard does not have."""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType
from typing import Any

from array_api_compat import array_namespace as find_namespace
from array_api_compat import device as find_device

from dil._base.typing import Array, Device, DType, Namespace

__all__ = [
    "all_finite",
    "array_namespace",
    "device",
    "dot",
    "eps",
    "eye",
    "factor_dtype",
    "finite_max",
    "full",
    "inner",
    "is_complex",
    "is_float",
    "is_inexact",
    "is_sparse",
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
"""Cache: array type -> namespace. Only namespaces that are modules are cached."""


def array_namespace(*arrays: Any) -> Namespace:
    """Return the array API namespace of some arrays, as `array_api_compat` finds it.

    A module serves all arrays of a type, so it is cached. A namespace made for one array, such as the tape's, is not.
    """
    if len(arrays) == 1 and (known := NAMESPACES.get(type(arrays[0]))) is not None:
        return known
    found = find_namespace(*arrays)
    if len(arrays) == 1 and isinstance(found, ModuleType):
        NAMESPACES[type(arrays[0])] = found
    return found


HAVE_DEVICE: set[type] = set()
"""Cache: the types of arrays whose attribute `device` is what `array_api_compat` finds."""


def device(x: Array) -> Device:
    """Return the device of an array, as `array_api_compat` finds it."""
    if type(x) in HAVE_DEVICE:
        return getattr(x, "device", None)  # a traced array of JAX may have none
    found = find_device(x)
    if type(x) in NAMESPACES and found is not None and getattr(x, "device", None) == found:
        HAVE_DEVICE.add(type(x))
    return found


@lru_cache(maxsize=256)
def is_float(xp: Namespace, dtype: DType) -> bool:
    """Return whether a dtype is real floating."""
    return _is_dtype(xp, dtype, "real floating")


@lru_cache(maxsize=256)
def is_complex(xp: Namespace, dtype: DType) -> bool:
    """Return whether a dtype is complex."""
    return _is_dtype(xp, dtype, "complex floating")


def is_inexact(xp: Namespace, dtype: DType) -> bool:
    """Return whether a dtype is real or complex floating. Only such arrays have a derivative."""
    return is_float(xp, dtype) or is_complex(xp, dtype)


def is_sparse(x: object) -> bool:
    """Return whether x is a sparse tensor, whose zeros are not stored. Its layout says so in all libraries."""
    return "sparse" in str(getattr(x, "layout", ""))


def _is_dtype(xp: Namespace, dtype: DType, kind: str) -> bool:
    try:
        return bool(xp.isdtype(dtype, kind))
    except (TypeError, ValueError):  # a dtype outside the standard, such as that of JAX's random keys
        return False


@lru_cache(maxsize=256)
def eps(xp: Namespace, dtype: DType) -> float:
    """Return the machine epsilon of a dtype."""
    return float(xp.finfo(dtype).eps)


@lru_cache(maxsize=256)
def finite_max(xp: Namespace, dtype: DType) -> float:
    """Return the largest finite number of a dtype."""
    return float(xp.finfo(dtype).max)


def factor_dtype(x: Array) -> DType:
    """Return the dtype in which to factor a matrix like x: its own, or float32, since libraries factor no 16 bits."""
    xp = array_namespace(x)
    return xp.float32 if eps(xp, x.dtype) > 1e-4 else x.dtype


def dot(a: Array, b: Array) -> Array:
    """Return the inner product of each problem: (*batch, n), (*batch, n) -> (*batch, 1)."""
    if a.shape[-1] == b.shape[-1] == 1:
        return a * b
    total: Array = array_namespace(a).sum(a * b, axis=-1, keepdims=True)
    return total


def inner(a: Array, b: Array) -> Array:
    """Return the inner product of each problem: (*batch, n), (*batch, n) -> batch."""
    if a.ndim == 1:
        return a @ b
    total: Array = array_namespace(a).sum(a * b, axis=-1)
    return total


def max_abs(a: Array) -> Array:
    """Return the largest |entry| of each problem, (*batch, n) -> batch; zero for an empty problem."""
    xp, n = array_namespace(a), a.shape[-1]
    if n == 1:
        return xp.abs(a[..., 0])  # type: ignore[no-any-return]
    largest: Array = xp.sum(a, axis=-1) if n == 0 else xp.max(xp.abs(a), axis=-1)
    return largest


def all_finite(a: Array) -> Array:
    """Return whether all entries of each problem are finite, (*batch, n) -> (*batch, 1)."""
    return max_abs(a)[..., None] < math.inf  # `isfinite` takes a library several passes


def nonzero_max_abs(a: Array) -> Array:
    """Return the largest |entry| of each problem, (*batch, n) -> (*batch, 1); one if all entries are zero."""
    largest = max_abs(a)
    return array_namespace(a).where(largest == 0, 1.0, largest)[..., None]  # type: ignore[no-any-return]


def norm(a: Array) -> Array:
    """Return the Euclidean norm of each problem, (*batch, n) -> (*batch, 1).

    The entries are first divided by the largest one, so that their squares neither underflow nor overflow.
    """
    if a.shape[-1] == 1:
        return array_namespace(a).abs(a)  # type: ignore[no-any-return]
    largest = nonzero_max_abs(a)
    scaled = a / largest
    return largest * array_namespace(a).sqrt(dot(scaled, scaled))  # type: ignore[no-any-return]


def nonzero_or_one(x: Array) -> Array:
    """Return x with zeros replaced by one, so that x can be a divisor."""
    return array_namespace(x).where(x == 0, full(x, 1.0), x)  # type: ignore[no-any-return]


def eye(n: int, like: Array) -> Array:
    """Return the (n, n) identity matrix with the dtype and on the device of another array."""
    identity: Array = array_namespace(like).eye(n, dtype=like.dtype, device=device(like))
    return identity


def full(like: Array, value: Any, *, shape: tuple[int, ...] | None = None, dtype: DType | None = None) -> Array:
    """Return an array filled with one value, on the device of `like`. Shape and dtype default to those of `like`."""
    xp, dtype = array_namespace(like), like.dtype if dtype is None else dtype
    if shape is None:  # which is shared out among devices as `like` is
        return xp.full_like(like, value, dtype=dtype)  # type: ignore[no-any-return]
    return xp.full(shape, value, dtype=dtype, device=device(like))  # type: ignore[no-any-return]


def size(shape: tuple[int, ...]) -> int:
    """Return the number of entries of a shape; one for a scalar."""
    return math.prod(shape)


def select(condition: Array | bool, a: Any, b: Any) -> Any:
    """Return a where the condition holds, else b. A Python bool picks a or b without a computation."""
    if isinstance(condition, bool):
        return a if condition else b
    return array_namespace(condition).where(condition, a, b)


def shared_namespace(a: Array, b: Array) -> Namespace:
    """Return the common namespace of two arrays, (..., n) and (..., m), whose other dimensions broadcast.

    Only one of the arrays may be differentiated. The namespace must accept both, so it is that of their sum.
    """
    return array_namespace(a[..., :1] + b[..., :1])


def logical_not(condition: Array | bool) -> Any:
    """Return the negation of a mask or of a Python bool."""
    return not condition if isinstance(condition, bool) else ~condition
