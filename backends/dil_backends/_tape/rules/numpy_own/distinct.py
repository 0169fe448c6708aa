"""Distinct values and operations of sets. Each value is an entry of an array, so the derivative is that of reading."""

from __future__ import annotations

from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.indexing import read
from dil_backends._tape.rules.numpy_own.arrays import as_array, flat
from dil_backends._tape.rules.rule import Value


def unique(xp: Namespace, ar: Value, return_index: bool = False, return_inverse: bool = False,
           return_counts: bool = False, axis: int | None = None, *, equal_nan: bool = True,
           sorted: bool = True) -> Any:  # fmt: skip
    """Return the distinct values in order. Equal entries are read where they come first."""
    ar = as_array(xp, ar)
    raw = xp.unboxed(ar, "unique")
    _, index, inverse, counts = xp.plain.unique(raw, True, True, True, axis=axis, equal_nan=equal_nan)
    values = read(xp, ar, index) if axis is None else xp.take(ar, index, axis=axis)
    chosen = [x for x, wanted in ((index, return_index), (inverse, return_inverse), (counts, return_counts)) if wanted]
    return (values, *chosen) if chosen else values


def union1d(xp: Namespace, ar1: Value, ar2: Value) -> Value:
    return unique(xp, xp.concat([flat(xp, ar1), flat(xp, ar2)]))


def setdiff1d(xp: Namespace, ar1: Value, ar2: Value, assume_unique: bool = False) -> Value:
    return selected(xp, ar1, ar2, assume_unique, invert=True)


def intersect1d(xp: Namespace, ar1: Value, ar2: Value, assume_unique: bool = False) -> Value:
    return xp.sort(selected(xp, ar1, ar2, assume_unique, invert=False))


def setxor1d(xp: Namespace, ar1: Value, ar2: Value, assume_unique: bool = False) -> Value:
    return xp.sort(xp.concat([setdiff1d(xp, ar1, ar2, assume_unique), setdiff1d(xp, ar2, ar1, assume_unique)]))


def selected(xp: Namespace, ar1: Value, ar2: Value, assume_unique: bool, *, invert: bool) -> Value:
    """Return the distinct values of one array that are, or are not, in the other."""
    values, others = flat(xp, ar1) if assume_unique else unique(xp, ar1), flat(xp, ar2)
    found = xp.plain.isin(xp.unboxed(values, "isin"), xp.unboxed(others, "isin"), invert=invert)
    return values[found]
