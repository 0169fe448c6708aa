"""Rules of elementwise functions.

Where a derivative does not exist:

* `maximum`, `minimum` and `clip` give half of the cotangent to each argument at a tie;
* `abs` has slope 0 at 0, also at the 0 of a complex array;
* `hypot` has the subgradient 0 at 0, because a NaN there would spoil the other problems of a batch;
* `sqrt` keeps its infinite slope at 0.
"""

from __future__ import annotations

import cmath
import math

from dil._base.arrays import is_complex
from dil._base.typing import Namespace
from dil_backends._tape.rules.rule import Formula, Value

SCALARS = (int, float, complex, bool)


def ratio(xp: Namespace, a: Value, b: Value) -> Value:
    """Return a / b, and 0 where b is 0. The inner `where` keeps NaN out of the second derivative too."""
    return xp.where(b == 0, 0.0, a / xp.where(b == 0, 1.0, b))


def half_at_tie(xp: Namespace, c: Value, a: Value, b: Value) -> Value:
    """Return c where a is larger than b, and half of it at a tie."""
    return xp.where(a > b, c, xp.where(a == b, 0.5 * c, 0.0))


def pow_base(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return c b a^(b-1), and exactly zero for b = 0, where a^(b-1) may be infinite."""
    if type(b) in SCALARS:
        return c * (b * a ** (b - 1)) if b else xp.zeros_like(c)
    return c * xp.where(b == 0, 0.0, b * a ** xp.where(b == 0, 1, b - 1))


def pow_exponent(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return c a^b log a, and its limit 0 (for b > 0) where a = 0."""
    if type(a) is complex or (type(a) in SCALARS and is_complex(xp, y.dtype)):
        return c * (y * cmath.log(a)) if a else xp.zeros_like(c)
    if type(a) in SCALARS:
        return c * (y * (math.log(a) if a > 0 else math.nan if a else 0.0))
    a = a if a.dtype == y.dtype else xp.astype(a, y.dtype)  # the logarithm of a negative base may be complex
    return c * xp.where(a == 0, 0.0, y * xp.log(xp.where(a == 0, 1.0, a)))


def sech_squared(xp: Namespace, x: Value) -> Value:
    """Return 1 / cosh(x)^2, the derivative of tanh, without overflow. It has a rule of its own.

    The tape would differentiate this way of computing it term by term, and lose the digits of the second one near 0.
    """
    away = xp.where(xp.real(x) < 0.0, -x, x) if is_complex(xp, x.dtype) else xp.abs(x)
    e = xp.exp(-2.0 * away)
    root = 1.0 + e
    return 4.0 * e / (root * root)


UNARY: dict[str, Formula] = {
    "negative": lambda xp, c, y, x: -c,
    "positive": lambda xp, c, y, x: c,
    "abs": lambda xp, c, y, x: c * xp.sign(x),
    "square": lambda xp, c, y, x: c * (2.0 * x),
    "sqrt": lambda xp, c, y, x: 0.5 * c / y,
    "reciprocal": lambda xp, c, y, x: -c * y * y,
    "exp": lambda xp, c, y, x: c * y,
    "expm1": lambda xp, c, y, x: c * xp.exp(x),  # y + 1 loses digits where y is near -1
    "log": lambda xp, c, y, x: c / x,
    "log1p": lambda xp, c, y, x: c / (1.0 + x),
    "log2": lambda xp, c, y, x: c / (x * math.log(2.0)),
    "log10": lambda xp, c, y, x: c / (x * math.log(10.0)),
    "sin": lambda xp, c, y, x: c * xp.cos(x),
    "cos": lambda xp, c, y, x: -c * xp.sin(x),
    "tan": lambda xp, c, y, x: c * (1.0 + y * y),
    "asin": lambda xp, c, y, x: c / xp.sqrt((1.0 - x) * (1.0 + x)),
    "acos": lambda xp, c, y, x: -c / xp.sqrt((1.0 - x) * (1.0 + x)),
    "atan": lambda xp, c, y, x: c / (1.0 + x * x),
    "sinh": lambda xp, c, y, x: c * xp.cosh(x),
    "cosh": lambda xp, c, y, x: c * xp.sinh(x),
    "tanh": lambda xp, c, y, x: c * xp.sech_squared(x),  # 1 - y^2 loses its digits where |y| is near 1
    "sech_squared": lambda xp, c, y, x: c * (-2.0 * y * xp.tanh(x)),
    "asinh": lambda xp, c, y, x: c / xp.sqrt(1.0 + x * x),
    "acosh": lambda xp, c, y, x: c / (xp.sqrt(x - 1.0) * xp.sqrt(x + 1.0)),  # one root has the wrong sign for Re x < 0
    "atanh": lambda xp, c, y, x: c / ((1.0 - x) * (1.0 + x)),
}


SEVERAL: dict[str, tuple[Formula | None, ...]] = {
    "add": (lambda xp, c, y, a, b: c, lambda xp, c, y, a, b: c),
    "subtract": (lambda xp, c, y, a, b: c, lambda xp, c, y, a, b: -c),
    "multiply": (lambda xp, c, y, a, b: c * b, lambda xp, c, y, a, b: c * a),
    "divide": (lambda xp, c, y, a, b: c / b, lambda xp, c, y, a, b: -c * y / b),
    "pow": (pow_base, pow_exponent),
    # remainder = a - b floor(a/b), and the floor is constant almost everywhere
    "remainder": (lambda xp, c, y, a, b: c, lambda xp, c, y, a, b: -c * xp.floor_divide(a, b)),
    "maximum": (lambda xp, c, y, a, b: half_at_tie(xp, c, a, b), lambda xp, c, y, a, b: half_at_tie(xp, c, b, a)),
    "minimum": (lambda xp, c, y, a, b: half_at_tie(xp, c, b, a), lambda xp, c, y, a, b: half_at_tie(xp, c, a, b)),
    "hypot": (lambda xp, c, y, a, b: c * ratio(xp, a, y), lambda xp, c, y, a, b: c * ratio(xp, b, y)),
    # divide twice by the hypotenuse, because its square overflows or underflows earlier
    "atan2": (
        lambda xp, c, y, a, b: c * (b / xp.hypot(a, b)) / xp.hypot(a, b),
        lambda xp, c, y, a, b: -c * (a / xp.hypot(a, b)) / xp.hypot(a, b),
    ),
    "logaddexp": (lambda xp, c, y, a, b: c * xp.exp(a - y), lambda xp, c, y, a, b: c * xp.exp(b - y)),
    # y = |a| times the sign of b, so y has the sign of b wherever a is not 0
    "copysign": (lambda xp, c, y, a, b: c * xp.sign(a) * xp.sign(y), None),
    "nextafter": (lambda xp, c, y, a, b: c, None),  # y is a, but for one rounding
    "where": (
        None,
        lambda xp, c, y, mask, a, b: xp.where(mask, c, 0.0),
        lambda xp, c, y, mask, a, b: xp.where(mask, 0.0, c),
    ),
}


def clip(xp: Namespace, x: Value, min: Value = None, max: Value = None) -> Value:
    low, high = (b if b is None or isinstance(b, int | float) else xp.astype(b, x.dtype) for b in (min, max))
    x = x if low is None else xp.maximum(x, low)
    return x if high is None else xp.minimum(x, high)
