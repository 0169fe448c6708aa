"""Scalars of the problems of a batch: arrays (*batch, 1), or Python numbers where a single problem can be read.

An operation on an array of one number costs as much as one on a short vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dil._base.arrays import array_namespace, dot, eps, full, inner, max_abs, select
from dil._base.typing import Array, DType

Scalar: TypeAlias = Any
"""An array of shape (*batch, 1), or a Python number. The linear solvers also have arrays of shape ()."""


@dataclass(frozen=True)
class Scalars:
    """How the scalars of some problems are made from their vectors, (*batch, n).

    Those of a batch are arrays (*batch, 1). Those of a single problem are Python numbers where `number` can read them
    at no cost, and arrays of shape () elsewhere, such as on a device, in a trace, or where they have a gradient.
    """

    number: Callable[[Array], Any]
    """`Loops.number`."""
    numbers: Callable[[Array], Any]
    """`Loops.numbers`."""
    single: bool
    """Whether there is one problem, without a batch dimension."""

    def read(self, x: Array) -> Scalar:
        """Return a number for each problem, shape batch, as a scalar."""
        return self.number(x) if self.single else x[..., None]

    def dot(self, a: Array, b: Array) -> Scalar:
        """Return <a, b>."""
        return self.number(inner(a, b)) if self.single else dot(a, b)

    def holds(self, mask: Array) -> Scalar:
        """Return a mask (*batch, 1) as a scalar."""
        return self.number(mask[0]) if self.single else mask

    def none(self, mask: Scalar) -> bool:
        """Return whether a mask holds for no problem, as far as that can be read at no cost."""
        return not mask if isinstance(mask, bool) else self.number(array_namespace(mask).any(mask)) is False

    def finite(self, a: Array) -> Scalar:
        """Return whether all entries of a are finite."""
        return is_finite(self.read(max_abs(a)))

    def dots(self, a: Array, others: Sequence[Array]) -> list[Scalar]:
        """Return <a, b> for each of the others, by one reduction: arrays on many devices send one message."""
        xp = array_namespace(a)
        found = xp.sum(xp.stack([a * b for b in others], axis=-2), axis=-1)
        if not self.single:
            return [found[..., i, None] for i in range(len(others))]
        numbers = self.numbers(found)
        return [numbers[i] for i in range(len(others))]

    def largest(self, a: Array) -> Scalar:
        """Return the largest |entry| of a, or one if all entries are zero: a unit in which squares are safe."""
        largest = self.read(max_abs(a))
        return select(largest == 0, 1.0, largest)

    def unit(self, a: Array) -> Scalar:
        """Return a unit in which squares are safe: `largest`, or the number 1.0 where they are safe as they are."""
        largest, machine_eps = self.largest(a), eps(array_namespace(a), a.dtype)
        return 1.0 if isinstance(largest, float) and machine_eps < largest < 1 / machine_eps else largest

    def norm(self, a: Array) -> Scalar:
        """Return the Euclidean norm of a. The squares of its entries may underflow or overflow."""
        if a.shape[-1] == 1:
            return self.read(max_abs(a))
        unit = self.unit(a)
        a = in_unit(a, unit)
        return unit * sqrt(self.dot(a, a))

    def array(self, x: Scalar, like: Array, dtype: DType) -> Array:
        """Return a scalar as an array of shape batch, beside vectors (*batch, n)."""
        if isinstance(x, bool | int | float):
            return full(like, x, shape=(), dtype=dtype)
        x = x if self.single else x[..., 0]
        return x if x.dtype == dtype else array_namespace(x).astype(x, dtype)  # type: ignore[no-any-return]


def in_unit(a: Array, unit: Scalar) -> Array:
    """Return a / unit. The number 1.0 costs no operation."""
    return a if isinstance(unit, float) and unit == 1.0 else a / unit


def times(unit: Scalar, a: Array) -> Array:
    """Return unit * a. The number 1.0 costs no operation."""
    return a if isinstance(unit, float) and unit == 1.0 else unit * a


def filled(like: Scalar, value: float) -> Scalar:
    """Return a scalar with one value for each problem."""
    return value if isinstance(like, float) else full(like, value)


def nonzero(x: Scalar) -> Scalar:
    """Return x with zeros replaced by one, so that x can be a divisor."""
    return select(x == 0, filled(x, 1.0), x)


def is_finite(x: Scalar) -> Scalar:
    """Return whether x is neither infinite nor NaN."""
    if isinstance(x, int | float):
        return math.isfinite(x)
    return abs(x) < math.inf  # `isfinite` takes a library several passes


def sqrt(x: Scalar) -> Scalar:
    """Return the square root of x >= 0."""
    return x**0.5 if isinstance(x, float) else array_namespace(x).sqrt(x)


def count(condition: Scalar) -> Scalar:
    """Return one where the condition holds, else zero."""
    if isinstance(condition, bool):
        return int(condition)
    xp = array_namespace(condition)
    return xp.astype(condition, xp.int32)


def indicator(condition: Scalar, like: Scalar) -> Scalar:
    """Return one where the condition holds, else zero, as a float like another scalar."""
    return float(condition) if isinstance(condition, bool) else array_namespace(like).astype(condition, like.dtype)


def count_from_zero(like: Scalar) -> Scalar:
    """Return a count of zero for each problem."""
    return 0 if isinstance(like, bool | int | float) else full(like, 0, dtype=array_namespace(like).int32)


def greater(a: Scalar, b: Scalar) -> Scalar:
    """Return the greater one of a and b, and b where one of them is NaN."""
    return select(a > b, a, b)


def smaller(a: Scalar, b: Scalar) -> Scalar:
    """Return the smaller one of a and b, and b where one of them is NaN."""
    return select(a < b, a, b)


def any_of(mask: Scalar) -> Any:
    """Return whether a mask holds for any problem: a bool, or an array of shape ()."""
    return mask if isinstance(mask, bool) else array_namespace(mask).any(mask)


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
