"""A line search for the strong Wolfe conditions, each problem of a batch with a bracket of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, inner, logical_not, select
from dil._base.scalars import Scalar, divided, either, reader, sign
from dil._base.scale import longest_short
from dil._base.typing import Array
from dil._frameworks.loops import Loops

DECREASE, CURVATURE = 1e-4, 0.9
"""The constants c1 and c2 of the conditions, as Nocedal and Wright recommend for quasi-Newton steps."""
PROBES = 30
"""The largest number of evaluations."""


class Bracket(NamedTuple):
    """The state of the search on the line u + length * direction. Gradients have shape (*batch, n)."""

    low: Scalar
    """The best length so far: zero, or one that lowers the score enough. The slope there points into the bracket."""
    low_value: Scalar
    low_slope: Scalar
    low_gradient: Array
    high: Scalar
    """The other end of the bracket; infinite until one is found."""
    high_value: Scalar
    high_slope: Scalar
    length: Scalar
    """The length to try next."""
    probes: Scalar
    going: Scalar


def wolfe_search(
    evaluate: Callable[[Array], tuple[Scalar, Array]],
    u: Array,
    start: Array,
    value: Scalar,
    gradient: Array,
    direction: Array,
    length: Scalar,
    going: Scalar,
    loops: Loops,
    surely_long: float = math.inf,
) -> Bracket:
    """Search along a direction of descent, from `length`, for the problems that are going; the solver began at `start`.

    `low` of the result is the step length, zero if none was found. `low_value` and `low_gradient` belong to it. The
    scalars of a single problem are Python numbers, if `value` is one. No step longer than `surely_long` is within
    16 eps ** (1/2) of u.

    Source: Nocedal and Wright 2006, Algorithms 3.5 and 3.6, in one loop: the first extends an interval that has no
    upper end, the second shrinks one that has. Where the change of the score is below its rounding, the slope alone
    decides (after Hager and Zhang 2005, section 4.3).
    """
    xp, read = array_namespace(u), reader(loops.number, isinstance(value, float))
    machine, single = eps(xp, u.dtype), isinstance(value, float)
    slope = read(inner(gradient, direction))

    @cache
    def dull_length() -> Scalar:
        return read(longest_short(direction, u, start, 16 * machine**0.5))

    if not single:
        dull_length()  # outside of the loop, which may be a traced one
    least_width = math.nan if single else read(longest_short(direction, u, start, machine))

    def is_narrow(width: Scalar) -> Scalar:
        # few searches of a single problem come here
        least = read(longest_short(direction, u, start, machine)) if single else least_width
        return abs(width) <= least

    def probe(s: Bracket) -> Bracket:
        value_, gradient_ = evaluate(u + s.length * direction)
        slope_ = read(inner(gradient_, direction))
        noise = 8 * machine * (abs(value) + abs(value_))
        hidden = (abs(value_ - value) <= noise) & (-DECREASE * s.length * slope <= noise)
        decided = single and (hidden or s.length > surely_long)
        dull = hidden if decided else hidden | (s.length <= dull_length())
        finite = (abs(value_) < math.inf) & (abs(slope_) < math.inf)  # False for NaN, in the gradient too
        rough = (value_ > value + DECREASE * s.length * slope) | (value_ >= s.low_value)
        beyond = logical_not(finite) | select(dull, slope_ > 0, rough)
        flat = finite & (dull | logical_not(rough)) & (abs(slope_) <= -CURVATURE * slope)
        turned = logical_not(beyond) & (slope_ * sign(s.high - s.low) >= 0)

        lower = flat | logical_not(beyond)
        new = s._replace(
            low=select(lower, s.length, s.low),
            low_value=select(lower, value_, s.low_value),
            low_slope=select(lower, slope_, s.low_slope),
            low_gradient=select(lower, gradient_, s.low_gradient),
            high=select(lower, select(turned, s.low, s.high), s.length),
            high_value=select(lower, select(turned, s.low_value, s.high_value), value_),
            high_slope=select(lower, select(turned, s.low_slope, s.high_slope), slope_),
            probes=s.probes + 1,
        )
        closed = new.high < math.inf
        open_ = closed is False or flat is True
        spent = False if open_ else closed & is_narrow(new.high - new.low)
        new = new._replace(
            length=either(closed, lambda: interpolate(s, new, dull), lambda: stretch(s, new)),
            going=s.going & logical_not(flat | spent) & (new.probes < PROBES),
        )
        return new if single else Bracket(*(select(s.going, a, b) for a, b in zip(new, s, strict=True)))

    none, infinite, zero = (0, math.inf, 0.0) if single else _like(value)
    first = Bracket(zero, value, slope, gradient, infinite, value, slope, length, none, going)
    found: Bracket = loops.while_loop(lambda s: s.going if single else xp.any(s.going), probe, first)
    return found


def _like(value: Any) -> tuple[Array, Array, Array]:
    """Return a count of zero, infinity and zero for each problem."""
    xp = array_namespace(value)
    zero = xp.zeros_like(value)
    return xp.zeros_like(value, dtype=xp.int32), zero + math.inf, zero


def stretch(old: Bracket, new: Bracket) -> Scalar:
    """Return a longer length, from twice to ten times as long: the zero of the line through the last two slopes."""
    bend = new.low_slope - old.low_slope
    guess = new.low - divided(new.low_slope * (new.low - old.low), select(bend > 0, bend, 1.0))
    guess = select(guess > 2.0 * new.low, guess, 2.0 * new.low)
    return select((bend > 0) & (guess < 10.0 * new.low), guess, 10.0 * new.low)


def interpolate(old: Bracket, new: Bracket, dull: Scalar) -> Scalar:
    """Return a length inside the bracket: the minimum of a cubic (Nocedal and Wright 2006, eq. 3.59), or the middle.

    The middle is taken if the cubic has no minimum, or if the last probe left more than two thirds of the bracket.
    Where rounding hides the change of the score (`dull`), the cubic uses the slopes alone.
    """
    width = new.high - new.low
    rise = select(dull, 0.5 * width * (new.low_slope + new.high_slope), new.high_value - new.low_value)
    theta = new.low_slope + new.high_slope - 3.0 * divided(rise, width)
    square = theta * theta - new.low_slope * new.high_slope
    gamma = sign(width) * select(square > 0, square, 0.0) ** 0.5
    share = 1.0 - divided(new.high_slope + gamma - theta, new.high_slope - new.low_slope + 2.0 * gamma)
    slow = abs(width) > 0.67 * abs(old.high - old.low)
    usable = (abs(share) < math.inf) & (square > 0) & logical_not(slow)
    share = select(usable, share, 0.5)
    share = select(share < 0.1, 0.1, select(share > 0.9, 0.9, share))
    return new.low + share * width
