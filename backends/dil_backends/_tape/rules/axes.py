"""Axes and permutations: small functions that the rules share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dil_backends._tape.rules.rule import Axis


def axes_of(axis: Axis, ndim: int) -> tuple[int, ...]:
    """Return the axes that `axis` names as non-negative numbers."""
    if axis is None or not ndim:  # NumPy takes axis 0 or -1 of a number, which has none
        return tuple(range(ndim))
    return tuple(i % ndim for i in (axis if isinstance(axis, tuple) else (axis,)))


def along(axis: int, ndim: int, part: int | slice) -> tuple[Any, ...]:
    """Return the index that selects `part` of one axis and all of the other axes."""
    return (*(slice(None),) * (axis % ndim), part, ...)


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    """Return the inverse of a permutation."""
    return tuple(sorted(range(len(order)), key=lambda i: order[i] % len(order)))
