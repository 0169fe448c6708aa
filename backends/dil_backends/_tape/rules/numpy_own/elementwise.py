"""Elementwise functions of NumPy that the standard lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dil._base.arrays import is_complex
from dil._base.typing import Namespace
from dil_backends._tape.rules.numpy_own.arrays import alike, as_array, cast, common_dtype
from dil_backends._tape.rules.numpy_own.missing import kept, present
from dil_backends._tape.rules.rule import Formula, Value, refuse

SINC_TERMS = 12
"""Terms of the series at which the next one is below rounding for |pi x| <= 1, also in the derivatives."""


def sinc_slope(xp: Namespace, x: Value, y: Value) -> Value:
    """Return the derivative (cos(pi x) - y) / x of y = sin(pi x) / (pi x), by its series where the difference cancels.

    sinc x = sum_k (-1)^k (pi x)^2k / (2k+1)!, so the derivative is pi^2 x sum_k (-1)^k 2k (pi x)^(2k-2) / (2k+1)!.
    """
    small = abs(x) * math.pi <= 1.0
    square = xp.where(small, math.pi**2 * x * x, 0.0)
    series: Value = 0.0
    for k in range(SINC_TERMS, 0, -1):
        series = series * square + (-1) ** k * 2 * k / math.factorial(2 * k + 1)
    apart = xp.where(small, 1.0, x)
    # not y: its own derivative, which cancels where x is small, would be taken there too
    away = (xp.cos(math.pi * apart) - xp.sin(math.pi * apart) / (math.pi * apart)) / apart
    return xp.where(small, math.pi**2 * x * series, away)


UNARY: dict[str, Formula] = {
    "exp2": lambda xp, c, y, x: c * (y * math.log(2.0)),
    "cbrt": lambda xp, c, y, x: c / (3.0 * y * y),
    "deg2rad": lambda xp, c, y, x: c * (math.pi / 180.0),
    "rad2deg": lambda xp, c, y, x: c * (180.0 / math.pi),
    "sinc": lambda xp, c, y, x: c * sinc_slope(xp, x, y),
}

BINARY: dict[str, tuple[Formula | None, ...]] = {
    "logaddexp2": (lambda xp, c, y, a, b: c * xp.exp2(a - y), lambda xp, c, y, a, b: c * xp.exp2(b - y)),
    # the remainder with the sign of a: a - b trunc(a/b)
    "fmod": (lambda xp, c, y, a, b: c, lambda xp, c, y, a, b: -c * xp.trunc(a / b)),
}


def fmax(xp: Namespace, x1: Value, x2: Value) -> Value:
    """Return the larger number; the other one where one is NaN."""
    return without_nan(xp, x1, x2, xp.maximum)


def fmin(xp: Namespace, x1: Value, x2: Value) -> Value:
    """Return the smaller number; the other one where one is NaN."""
    return without_nan(xp, x1, x2, xp.minimum)


def without_nan(xp: Namespace, a: Value, b: Value, extremum: Any) -> Value:
    a, b = alike(xp, a, b)
    no_a, no_b = xp.isnan(a), xp.isnan(b)
    a, b = kept(xp, a, ~no_a | no_b, 0.0), kept(xp, b, ~no_b | no_a, 0.0)  # NaN where both are
    return xp.where(no_a, b, xp.where(no_b, a, extremum(a, b)))


def nan_to_num(xp: Namespace, x: Value, copy: bool = True, nan: Value = 0.0, posinf: Value = None,
               neginf: Value = None) -> Value:  # fmt: skip
    x = as_array(xp, x)
    if is_complex(xp, x.dtype):
        if any(number is not None and not math.isfinite(number) for number in (nan, posinf, neginf)):
            refuse("nan_to_num of complex numbers by numbers that are not finite")  # 1j * inf has a real part, NaN
        real, imag = (nan_to_num(xp, part, copy, nan, posinf, neginf) for part in (xp.real(x), xp.imag(x)))
        return real + 1j * imag
    limits = xp.finfo(x.dtype)
    high, low = (limits.max if posinf is None else posinf), (limits.min if neginf is None else neginf)
    x = present(xp, x, nan)
    return xp.where(x == math.inf, high, xp.where(x == -math.inf, low, x))


def select(xp: Namespace, condlist: Sequence[Value], choicelist: Sequence[Value], default: Value = 0) -> Value:
    """Return the choice of the first condition that holds."""
    if len(condlist) != len(choicelist):
        msg = f"select: {len(condlist)} conditions were given for {len(choicelist)} choices"
        raise ValueError(msg)
    *choices, chosen = alike(xp, *choicelist, default)
    for condition, choice in zip(condlist[::-1], choices[::-1], strict=True):
        chosen = xp.where(condition, choice, chosen)
    return chosen


def where(xp: Namespace, condition: Value, *choices: Value) -> Value:
    """Return the choices by the condition; the positions where it holds if there are no choices."""
    return xp.where(as_array(xp, condition), *choices) if choices else xp.nonzero(condition)


def clip(xp: Namespace, a: Value, a_min: Value = None, a_max: Value = None, *, min: Value = None,
         max: Value = None) -> Value:  # fmt: skip
    low, high = (min if a_min is None else a_min), (max if a_max is None else a_max)
    low, high = (b if b is None or isinstance(b, int | float) else as_array(xp, b) for b in (low, high))
    a = as_array(xp, a)
    return xp.clip(cast(xp, a, common_dtype(xp, a, *(b for b in (low, high) if b is not None))), low, high)


def polyval(xp: Namespace, p: Value, x: Value) -> Value:
    """Return the polynomial with the coefficients p, that of the highest power first."""
    x, p = as_array(xp, x), as_array(xp, p)
    total: Value = 0.0
    for k in range(p.shape[0]):
        total = total * x + p[k]
    return total


def float_power(xp: Namespace, x1: Value, x2: Value) -> Value:
    a, b = as_array(xp, x1), as_array(xp, x2)
    dtype = xp.complex128 if is_complex(xp, a.dtype) or is_complex(xp, b.dtype) else xp.float64
    return xp.pow(xp.astype(a, dtype), xp.astype(b, dtype))


def real_if_close(xp: Namespace, a: Value, tol: float = 100) -> Value:
    """Return the real part if no imaginary part is larger than `tol`, which counts units of rounding if above one."""
    if a.dtype.kind != "c":
        return a
    bound = tol * xp.finfo(a.dtype).eps if tol > 1 else tol
    return xp.real(a) if bool(xp.all(abs(xp.imag(a)) < bound)) else a
