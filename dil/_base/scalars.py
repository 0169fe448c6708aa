"""Scalars of the problems of a batch: arrays (*batch, 1), or Python numbers where a single problem can be read.

An operation on an array of one number costs as much as one on a short vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from dil._base.arrays import array_namespace, full, select
from dil._base.typing import Array

Scalar: TypeAlias = Any
"""An array of shape (*batch, 1), or a Python number."""


def divided(a: Scalar, b: Scalar) -> Scalar:
    """Return a / b, and NaN or infinity where b is zero, as for arrays."""
    if isinstance(b, float) and b == 0.0:
        return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)
    return a / b


def sign(x: Scalar) -> Scalar:
    """Return the sign of x: zero for zero, NaN for NaN."""
    if isinstance(x, int | float):
        return x if x != x else float((x > 0) - (x < 0))
    xp = array_namespace(x)
    return xp.where(x > 0, 1.0, xp.where(x < 0, -1.0, x))  # `sign` of array_api_compat writes into shards on torch


def reader(number: Callable[[Array], Any], single: bool) -> Callable[[Array], Scalar]:
    """Return a function that turns a number for each problem, shape batch, into a scalar."""
    return number if single else lambda x: x[..., None]


def either(condition: Scalar, a: Callable[[], Scalar], b: Callable[[], Scalar]) -> Scalar:
    """Return a() where the condition holds, else b(). A Python bool calls one of them only."""
    if isinstance(condition, bool):
        return a() if condition else b()
    return select(condition, a(), b())


def as_column(x: Scalar, like: Array) -> Array:
    """Return a scalar as an array (*batch, 1) beside vectors (*batch, n): Python numbers belong to a single problem."""
    if not isinstance(x, bool | int | float):
        return x  # type: ignore[no-any-return]
    xp = array_namespace(like)
    dtype = {bool: xp.bool, int: xp.int32, float: like.dtype}[type(x)]
    return full(like, x, shape=(1,), dtype=dtype)
