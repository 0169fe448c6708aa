"""Where a function of one number crosses zero between two points, by the method ITP (Oliveira and Takahashi 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from dil._base.arrays import select
from dil._base.scalars import Scalar, any_of, filled, greater, nonzero, sign, smaller
from dil._base.typing import Loop

PUSH = 0.2
"""How far a point of interpolation is moved to the middle, in units of the square of the bracket."""


class Bracket(NamedTuple):
    """The points on both sides of the crossing, and the values there: low <= 0 <= high."""

    a: Scalar
    b: Scalar
    low: Scalar
    high: Scalar
    steps: Scalar


def crossing(fn: Callable[[Scalar], Scalar], low: Scalar, high: Scalar, eps: float, loop: Loop) -> Scalar:
    """Return x in [0, 1] where fn crosses zero upwards, to a few eps. `low` and `high` are its values at 0 and 1.

    A value at an end whose sign is wrong, as of an event at the start, counts as zero. It takes at most two evaluations
    more than bisection. The problems of a batch are solved together.
    """
    tolerance = 2 * eps
    most = math.ceil(math.log2(0.5 / tolerance)) + 1
    zero, one = filled(low, 0.0), filled(low, 1.0)

    def narrowed(s: Bracket) -> Bracket:
        middle, width = 0.5 * (s.a + s.b), s.b - s.a
        secant = select(s.high > s.low, (s.high * s.a - s.low * s.b) / nonzero(s.high - s.low), middle)
        away = middle - secant
        # a shorter push would be lost in rounding, and would not reach the other side of the crossing
        push = greater(PUSH * width * width, filled(width, tolerance))
        x = select(push <= abs(away), secant + sign(away) * push, middle)
        radius = greater(tolerance * 2.0 ** (most - s.steps) - 0.5 * width, zero)
        x = select(abs(x - middle) <= radius, x, middle - sign(away) * radius)
        value = fn(x)
        below = value < 0
        return Bracket(
            select(below, x, s.a),
            select(below, s.b, x),
            select(below, value, s.low),
            select(below, s.high, value),
            s.steps + 1.0,
        )

    def wide(s: Bracket) -> Scalar:
        return any_of((s.b - s.a > 2 * tolerance) & (s.high != 0))

    first = Bracket(zero, one, smaller(low, zero), greater(high, zero), zero)
    last: Bracket = loop(wide, narrowed, first)
    return select(last.high <= -last.low, last.b, last.a)
