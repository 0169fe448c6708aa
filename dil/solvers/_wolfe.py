"""A line search for the strong Wolfe conditions, each problem of a batch with a bracket of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from dil._base.arrays import array_namespace, dot, eps, full
from dil._base.scale import is_short
from dil._base.typing import Array, Loop

DECREASE, CURVATURE = 1e-4, 0.9
"""The constants c1 and c2 of the conditions, as Nocedal and Wright recommend for quasi-Newton steps."""
PROBES = 30
"""The largest number of evaluations."""


class Bracket(NamedTuple):
    """The state of the search on the line u + length * direction; (*batch, 1), gradients: (*batch, n)."""

    low: Array
    """The best length so far: zero, or one that lowers the score enough. The slope there points into the bracket."""
    low_value: Array
    low_slope: Array
    low_gradient: Array
    high: Array
    """The other end of the bracket; infinite until one is found."""
    high_value: Array
    high_slope: Array
    length: Array
    """The length to try next."""
    probes: Array
    going: Array


def wolfe_search(
    evaluate: Callable[[Array], tuple[Array, Array]],
    u: Array,
    start: Array,
    value: Array,
    gradient: Array,
    direction: Array,
    length: Array,
    going: Array,
    loop: Loop,
) -> Bracket:
    """Search along a direction of descent, from `length`, for the problems that are going; the solver began at `start`.

    `low` of the result is the step length, zero if none was found. `low_value` and `low_gradient` belong to it.

    Source: Nocedal and Wright 2006, Algorithms 3.5 and 3.6, in one loop: the first extends an interval that has no
    upper end, the second shrinks one that has. Where the change of the score is below its rounding, the slope alone
    decides (after Hager and Zhang 2005, section 4.3).
    """
    xp = array_namespace(u)
    machine = eps(xp, u.dtype)
    slope = dot(gradient, direction)

    def probe(s: Bracket) -> Bracket:
        value_, gradient_ = evaluate(u + s.length * direction)
        slope_ = dot(gradient_, direction)
        noise = 8 * machine * (xp.abs(value) + xp.abs(value_))
        dull = (xp.abs(value_ - value) <= noise) & (-DECREASE * s.length * slope <= noise)
        dull = dull | is_short(s.length * direction, u, start, 16 * machine**0.5)
        finite = xp.isfinite(value_) & xp.all(xp.isfinite(gradient_), axis=-1, keepdims=True)
        rough = (value_ > value + DECREASE * s.length * slope) | (value_ >= s.low_value)
        beyond = ~finite | xp.where(dull, slope_ > 0, rough)
        flat = finite & (dull | ~rough) & (xp.abs(slope_) <= -CURVATURE * slope)
        turned = ~beyond & (slope_ * xp.sign(s.high - s.low) >= 0)

        lower = flat | ~beyond
        new = s._replace(
            low=xp.where(lower, s.length, s.low),
            low_value=xp.where(lower, value_, s.low_value),
            low_slope=xp.where(lower, slope_, s.low_slope),
            low_gradient=xp.where(lower, gradient_, s.low_gradient),
            high=xp.where(lower, xp.where(turned, s.low, s.high), s.length),
            high_value=xp.where(lower, xp.where(turned, s.low_value, s.high_value), value_),
            high_slope=xp.where(lower, xp.where(turned, s.low_slope, s.high_slope), slope_),
        )
        width = xp.where(new.high == math.inf, full(new.high, 1.0), new.high - new.low)
        spent = (new.high != math.inf) & is_short(width * direction, u, start, machine)
        probes = s.probes + xp.astype(s.going, s.probes.dtype)
        new = new._replace(
            length=xp.where(new.high == math.inf, stretch(s, new), interpolate(s, new, dull)),
            going=s.going & ~flat & ~spent & (probes < PROBES),
        )
        return Bracket(*(xp.where(s.going, a, b) for a, b in zip(new, s, strict=True)))._replace(probes=probes)

    infinite = full(value, math.inf)
    none = full(value, 0, dtype=xp.int32)
    first = Bracket(0.0 * length, value, slope, gradient, infinite, value, slope, length, none, going)
    return loop(lambda s: xp.any(s.going), probe, first)  # type: ignore[no-any-return]


def stretch(old: Bracket, new: Bracket) -> Array:
    """Return a longer length, from twice to ten times as long: the zero of the line through the last two slopes."""
    xp = array_namespace(old.length)
    bend = new.low_slope - old.low_slope
    guess = new.low - new.low_slope * (new.low - old.low) / xp.where(bend > 0, bend, full(bend, 1.0))
    guess = xp.where(guess > 2.0 * new.low, guess, 2.0 * new.low)
    return xp.where((bend > 0) & (guess < 10.0 * new.low), guess, 10.0 * new.low)  # type: ignore[no-any-return]


def interpolate(old: Bracket, new: Bracket, dull: Array) -> Array:
    """Return a length inside the bracket: the minimum of a cubic (Nocedal and Wright 2006, eq. 3.59), or the middle.

    The middle is taken if the cubic has no minimum, or if the last probe left more than two thirds of the bracket.
    Where rounding hides the change of the score (`dull`), the cubic uses the slopes alone.
    """
    xp = array_namespace(new.low)
    width = new.high - new.low
    rise = xp.where(dull, 0.5 * width * (new.low_slope + new.high_slope), new.high_value - new.low_value)
    theta = new.low_slope + new.high_slope - 3.0 * rise / width
    square = theta**2 - new.low_slope * new.high_slope
    gamma = xp.sign(width) * xp.sqrt(xp.where(square > 0, square, 0.0 * square))
    share = 1.0 - (new.high_slope + gamma - theta) / (new.high_slope - new.low_slope + 2.0 * gamma)
    slow = xp.abs(width) > 0.67 * xp.abs(old.high - old.low)
    share = xp.where(xp.isfinite(share) & (square > 0) & ~slow, share, full(share, 0.5))
    share = xp.where(share < 0.1, full(share, 0.1), xp.where(share > 0.9, full(share, 0.9), share))
    return new.low + share * width  # type: ignore[no-any-return]
