"""Distinct values. Each is an entry of the array, so the derivative is that of reading it."""

from __future__ import annotations

from dil._base.typing import Namespace
from dil_backends._tape.rules.indexing import read
from dil_backends._tape.rules.rule import Value


def unique_all(xp: Namespace, x: Value) -> Value:
    """Return the distinct values and three arrays of integers. Equal entries are read where they come first."""
    found = xp.unique_all(xp.unboxed(x, "unique_all"))
    return found._replace(values=read(xp, x, found.indices))


def unique_counts(xp: Namespace, x: Value) -> Value:
    found = xp.unique_counts(xp.unboxed(x, "unique_counts"))
    return found._replace(values=unique_values(xp, x))


def unique_inverse(xp: Namespace, x: Value) -> Value:
    found = xp.unique_inverse(xp.unboxed(x, "unique_inverse"))
    return found._replace(values=unique_values(xp, x))


def unique_values(xp: Namespace, x: Value) -> Value:
    """Return the distinct values in the order of `unique_all`, which the standard leaves open here."""
    return unique_all(xp, x).values
