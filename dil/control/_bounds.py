"""Bounds on controls by a smooth map, which makes the plan a problem without constraints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dil._base.arrays import array_namespace, device
from dil._base.errors import OptionError
from dil._base.options import is_number
from dil._base.typing import Array
from dil.control._box import Box, Limit

INSIDE = 0.999
"""The largest |tanh(v)| of a start. Nearer to a bound the map is so flat that solvers do not move."""


@dataclass(frozen=True)
class Bounds:
    """The map u = middle + half tanh(v) onto (low, high), and its inverse."""

    low: Limit
    high: Limit

    def squash(self, v: Array) -> Array:
        """Return the controls u, (..., n_u), from the free controls v."""
        middle, half = self._middle_and_half(v)
        return middle + half * array_namespace(v).tanh(v)  # type: ignore[no-any-return]

    def free(self, u: Array) -> Array:
        """Return v with squash(v) = u. First, (u - middle) / half is clipped to +-0.999."""
        middle, half = self._middle_and_half(u)
        return array_namespace(u).atanh(array_namespace(u).clip((u - middle) / half, -INSIDE, INSIDE))  # type: ignore[no-any-return]

    def middle(self, like: Array) -> Array:
        """Return the middle of the bounds, with the shape of `like`."""
        middle, _ = self._middle_and_half(like)
        return array_namespace(like).zeros_like(like) + middle  # type: ignore[no-any-return]

    def slopes(self, v: Array) -> tuple[Array, Array]:
        """Return the first and second derivatives of squash at v."""
        t, (_, half) = array_namespace(v).tanh(v), self._middle_and_half(v)
        first = half * ((1.0 - t) * (1.0 + t))
        return first, -2.0 * t * first

    def barrier(self, v: Array) -> Array:
        """Return -log(1 - tanh(v)^2) summed over time and controls: (..., horizon, n_u) -> (...)."""
        xp = array_namespace(v)
        # 2 log cosh v in a form that is accurate for large v and has the right second derivative at zero
        return xp.sum(2.0 * (xp.logaddexp(v, -v) - math.log(2.0)), axis=(-2, -1))  # type: ignore[no-any-return]

    def _middle_and_half(self, v: Array) -> tuple[Array, Array]:
        xp = array_namespace(v)
        low, high = (xp.asarray(x, dtype=v.dtype, device=device(v)) for x in (self.low, self.high))
        return 0.5 * (low + high), 0.5 * (high - low)


def check_bounds(bounds: Any, controls: int) -> Bounds | Box | None:
    """Return the bounds for this number of controls, from a box, or a pair of numbers or of sequences of numbers.

    Raises
    ------
    OptionError
        If `bounds` is not such a pair, or a lower bound is not below its upper bound.
    """
    if bounds is None:
        return None
    if isinstance(bounds, Box):
        return bounds.check(controls)
    try:
        low, high = (_numbers(limit, controls) for limit in bounds)
    except (TypeError, ValueError) as error:
        message = f"bounds={bounds!r}; expected a pair (low, high) of numbers, or of {controls} numbers each"
        raise OptionError(message) from error
    if not all(a < b for a, b in zip(low, high, strict=True)):
        message = f"bounds={bounds!r}; each lower bound must be below its upper one"
        raise OptionError(message)
    return Bounds(low, high)


def _numbers(limit: Any, controls: int) -> tuple[float, ...]:
    values = (limit,) * controls if is_number(limit) else tuple(float(x) for x in limit)
    if len(values) != controls or not all(map(math.isfinite, values)):
        message = "not one finite number for each control"
        raise ValueError(message)
    return tuple(float(x) for x in values)
