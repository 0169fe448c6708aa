"""Rules of special functions, under the names of `scipy.special` and `cupyx.scipy.special`.

The formulas hold in the tails, where a textbook formula would divide 0 by 0 or subtract equal numbers. Equations are
those of the Digital Library of Mathematical Functions (DLMF, https://dlmf.nist.gov).

* `i0e`, `i1e` and `ive` take sign(0) = 0. Scaled Bessel functions of x lose about 2 |x| times the rounding error.
* Orders of Bessel functions and the parameters of incomplete gamma and beta functions have no derivative here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import NoReturn

from dil._base.errors import UnsupportedFunctionError
from dil._base.typing import Namespace
from dil_backends._tape.rules.reductions import restore
from dil_backends._tape.rules.rule import Axis, Formula, Rule, Value

ROOT_PI = math.sqrt(math.pi)
ROOT_2PI = math.sqrt(2.0 * math.pi)
DEGREE = math.pi / 180.0


def in_last_only(name: str, others: str, formula: Formula) -> tuple[Formula, ...]:
    """Return the formulas of a function with a derivative in its last argument, which refuse those in the others."""
    return (*(without(name, argument, formula) for argument in others.split()), formula)


def without(name: str, argument: str, formula: Formula) -> Formula:
    """Return a formula with the signature of `formula` that refuses the derivative in one argument by name."""

    @wraps(formula)
    def refuse(*args: Value, **options: Value) -> NoReturn:
        msg = (
            f"the tape has no derivative of `{name}` in its argument `{argument}`; keep `{argument}` constant with "
            "dil's `constant`, or give the layer its products with derivatives="
        )
        raise UnsupportedFunctionError(msg)

    return refuse


def polynomial(coefficients: Sequence[float], x: Value) -> Value:
    """Return the sum of coefficients[k] x^k by Horner's scheme."""
    total: Value = coefficients[-1]
    for a in coefficients[-2::-1]:
        total = a + x * total
    return total


# gamma functions


def rgamma_slope(xp: Namespace, y: Value, x: Value) -> Value:
    """Return the derivative of 1 / gamma(x), which is -psi(x) / gamma(x).

    Left of 1 it is that of the reflection gamma(1 - x) sin(pi x) / pi (DLMF 5.5.3), finite at the poles of gamma.
    """
    left = x < 1.0
    z, x = xp.where(left, x, 0.5), xp.where(left, 1.5, x)
    pi_z = math.pi * (z % 2.0)  # the remainder is exact, so the sine of a large argument is too
    reflected = xp.special.gamma(1.0 - z) * (xp.cos(pi_z) - xp.special.psi(1.0 - z) * xp.sin(pi_z) / math.pi)
    return xp.where(left, reflected, -xp.special.psi(x) / xp.special.gamma(x))


def multigammaln(xp: Namespace, a: Value, d: int) -> Value:
    """Return the log of the multivariate gamma function (DLMF 35.3.4). Raises ValueError unless 2 a > d - 1."""
    if int(d) != d or d < 1:
        msg = f"the dimension d must be a positive integer; it is {d!r}"
        raise ValueError(msg)
    if xp.any(a <= 0.5 * (d - 1)):
        msg = f"a must be larger than (d - 1) / 2 = {0.5 * (d - 1)}"
        raise ValueError(msg)
    total = 0.25 * d * (d - 1) * math.log(math.pi)
    for j in range(int(d)):
        total = total + xp.special.gammaln(a - 0.5 * j)
    return total


def gamma_density(xp: Namespace, a: Value, x: Value) -> Value:
    """Return x^(a-1) e^-x / gamma(a), the slope of `gammainc` in x (DLMF 8.8.13)."""
    return xp.exp(xp.special.xlogy(a - 1.0, x) - x - xp.special.gammaln(a))


def beta_density(xp: Namespace, a: Value, b: Value, x: Value) -> Value:
    """Return x^(a-1) (1-x)^(b-1) / beta(a, b), the slope of `betainc` in x (DLMF 8.17.20)."""
    return xp.exp(xp.special.xlogy(a - 1.0, x) + xp.special.xlog1py(b - 1.0, -x) - xp.special.betaln(a, b))


def student_density(xp: Namespace, df: Value, t: Value) -> Value:
    """Return the density of Student's t distribution, the slope of `stdtr` in t."""
    logarithm = -xp.special.betaln(0.5 * df, 0.5) - xp.special.xlog1py(0.5 * (df + 1.0), t * t / df)
    return xp.exp(logarithm) / df**0.5


# error functions and the normal distribution

FAR = 10.0
TAIL = tuple(math.prod(range(1, 2 * n + 2, 2)) / 2.0**n for n in range(16))
"""The numbers (2n + 1)!! / 2^n. The series below is exact to rounding from `FAR` on."""


def far_slope(x: Value, sign: float) -> Value:
    """Return the derivative of x^-1 (1 + sign / (2x^2) + 3 / (4x^4) + ...), whose terms are (2n - 1)!! / (2x^2)^n.

    It is the asymptotic series of sqrt(pi) `erfcx` (sign = -1, DLMF 7.12.1) and of 2 `dawsn` (sign = 1).
    """
    t = (1.0 / x) ** 2
    return -t * polynomial([a * sign**n for n, a in enumerate(TAIL)], t)


def erfcx_slope(xp: Namespace, y: Value, x: Value) -> Value:
    """Return 2 x erfcx(x) - 2 / sqrt(pi). The difference cancels for a large x."""
    far = x > FAR
    direct = 2.0 * xp.where(far, 0.0, x) * y - 2.0 / ROOT_PI
    return xp.where(far, far_slope(xp.where(far, x, FAR), -1.0) / ROOT_PI, direct)


def dawsn_slope(xp: Namespace, y: Value, x: Value) -> Value:
    """Return 1 - 2 x dawsn(x). The difference cancels for a large |x|."""
    far = abs(x) > FAR
    direct = 1.0 - 2.0 * xp.where(far, 0.0, x) * y
    return xp.where(far, 0.5 * far_slope(xp.where(far, x, FAR), 1.0), direct)


def normal_density(xp: Namespace, x: Value) -> Value:
    return xp.exp(-0.5 * x * x) / ROOT_2PI


def log_ndtr_slope(xp: Namespace, y: Value, x: Value) -> Value:
    """Return the density over the distribution of the normal law. For x < 0 both underflow, and `erfcx` does not."""
    low = x < 0.0
    z, w = xp.where(low, x, 0.0), xp.where(low, 0.0, x)
    tail = math.sqrt(2.0 / math.pi) / xp.special.erfcx(-z / math.sqrt(2.0))
    return xp.where(low, tail, normal_density(xp, w) * xp.exp(-xp.where(low, 0.0, y)))


# Bessel functions


SMALL = 1.0


def series_over_x(x: Value, sign: float) -> Value:
    """Return I1(x) / x (sign = 1, DLMF 10.25.2) or J1(x) / x (sign = -1, DLMF 10.2.2) for |x| < `SMALL`."""
    return polynomial([0.5 * sign**k / (math.factorial(k) * math.factorial(k + 1)) for k in range(9)], 0.25 * x * x)


def over_x(xp: Namespace, y: Value, x: Value, sign: float) -> Value:
    """Return y / x for y = I1(x) or J1(x). It is smooth at 0."""
    near = abs(x) < SMALL
    return xp.where(near, series_over_x(xp.where(near, x, 0.0), sign), y / xp.where(near, 1.0, x))


def i1e_slope(xp: Namespace, c: Value, y: Value, x: Value) -> Value:
    near = abs(x) < SMALL
    z = xp.where(near, x, 0.0)
    quotient = xp.where(near, series_over_x(z, 1.0) * xp.exp(-abs(z)), y / xp.where(near, 1.0, x))
    return c * (xp.special.i0e(x) - quotient - xp.sign(x) * y)


def whole(xp: Namespace, n: Value) -> Value:
    """Return an order as an integer. SciPy cuts it to one, with a warning."""
    n = xp.asarray(n)
    return n if xp.isdtype(n.dtype, "integral") else xp.trunc(n)


def pull_expn(xp: Namespace, c: Value, y: Value, n: Value, x: Value) -> Value:
    """Return -c E_(n-1)(x), by E_(-1) = E_0 (1 + 1 / x), which SciPy does not have."""
    n = whole(xp, n)
    lowest = n == 0
    below = xp.special.expn(xp.where(lowest, 1, n) - 1, x)
    return -c * xp.where(lowest, y * (1.0 + 1.0 / xp.where(lowest, x, 1.0)), below)


def of_whole_order(formula: Formula) -> Formula:
    """Return the formula of a function whose order v SciPy cuts to an integer."""
    return lambda xp, c, y, v, x: formula(xp, c, y, whole(xp, v), x)


def steps(name: str, below: float, above: float) -> Formula:
    """Return half of `below` times the function of order v - 1 plus `above` times that of order v + 1."""

    def formula(xp: Namespace, c: Value, y: Value, v: Value, x: Value) -> Value:
        f = getattr(xp.special, name)
        return c * (0.5 * below * f(v - 1, x) + 0.5 * above * f(v + 1, x))

    return formula


# logarithms, entropies and losses


def xlogy_right(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return c a / b, and 0 where both are 0, as the function is."""
    return c * a / xp.where((a == 0) & (b == 0), 1.0, b)


def xlog1py_right(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return c a / (1 + b), and 0 where both are 0, as the function is."""
    return c * a / xp.where((a == 0) & (b == -1.0), 1.0, 1.0 + b)


def log_ratio(xp: Namespace, a: Value, b: Value) -> Value:
    """Return log(a / b), whose quotient may overflow."""
    return xp.log(a) - xp.log(b)


EXPREL = tuple(1.0 / (math.factorial(k) * (k + 2)) for k in range(18))
"""The power series of the derivative of (e^x - 1) / x."""


def exprel_slope(xp: Namespace, y: Value, x: Value) -> Value:
    """Return (e^x - y) / x, and its power series for |x| < 1, where the difference cancels."""
    near = abs(x) < 1.0
    z, x = xp.where(near, x, 0.0), xp.where(near, 1.0, x)
    return xp.where(near, polynomial(EXPREL, z), (xp.exp(x) - y) / x)


def boxcox_exponent(xp: Namespace, c: Value, log_x: Value, power: Value) -> Value:
    """Return the derivative of log(x) exprel(power log(x)) in the power. It is smooth at 0."""
    z = power * log_x
    return c * log_x * log_x * exprel_slope(xp, xp.special.exprel(z), z)


def pseudo_huber_width(xp: Namespace, c: Value, y: Value, delta: Value, r: Value) -> Value:
    """Return d/d delta of delta^2 (s - 1) = delta (s - 1)^2 / s, for s = sqrt(1 + (r / delta)^2)."""
    q = r / delta
    s = xp.hypot(1.0, q)
    excess = q * (q / (s + 1.0))  # s - 1, without the difference
    return c * delta * excess * (excess / s)


# exponential sums


def logsumexp(xp: Namespace, a: Value, axis: Axis = None, b: Value = None, keepdims: bool = False,
              return_sign: bool = False) -> Value:  # fmt: skip
    """Return log(sum(b exp(a))), and with `return_sign` the log of its absolute value and its sign."""
    a, b = xp.asarray(a), None if b is None else xp.asarray(b)
    if return_sign:
        constants = (xp.constant(a), axis, None if b is None else xp.constant(b))
        sign = xp.special.logsumexp(*constants, keepdims=True, return_sign=True)[1]
        y = logsumexp(xp, a, axis, sign if b is None else b * sign, keepdims)
        return y, xp.reshape(sign, y.shape)
    if b is None:
        return xp.special.log_sum(a, axis=axis, keepdims=keepdims)
    if a.shape != b.shape:
        a, b = xp.broadcast_arrays(a, b)
    return xp.special.log_weighted_sum(a, b, axis=axis, keepdims=keepdims)


def shares(xp: Namespace, a: Value, y: Value, axis: Axis, keepdims: bool) -> Value:
    """Return exp(a - y), and 0 where y is -inf: the sum has no terms, and no finite change of a adds one."""
    y = restore(xp, y, a, axis, keepdims)
    return xp.exp(a - xp.where(y == -math.inf, math.inf, y))


def log_sum(xp: Namespace, c: Value, y: Value, a: Value, *, axis: Axis = None, keepdims: bool = False) -> Value:
    return restore(xp, c, a, axis, keepdims) * shares(xp, a, y, axis, keepdims)


def weighted_left(xp: Namespace, c: Value, y: Value, a: Value, b: Value, *, axis: Axis = None,
                  keepdims: bool = False) -> Value:  # fmt: skip
    # a term of weight 0 counts for nothing, also where exp(a - y) overflows
    limit = math.log(float(xp.finfo(c.dtype).max))
    unseen = (b == 0) & (a - restore(xp, y, a, axis, keepdims) > limit)
    a = xp.where(unseen, -math.inf, a)
    return restore(xp, c, a, axis, keepdims) * b * shares(xp, a, y, axis, keepdims)


def weighted_right(xp: Namespace, c: Value, y: Value, a: Value, b: Value, *, axis: Axis = None,
                   keepdims: bool = False) -> Value:  # fmt: skip
    return restore(xp, c, a, axis, keepdims) * xp.exp(a - restore(xp, y, a, axis, keepdims))


def softmax(xp: Namespace, c: Value, y: Value, x: Value, axis: Axis = None) -> Value:
    return y * (c - xp.sum(c * y, axis=axis, keepdims=True))


def log_softmax(xp: Namespace, c: Value, y: Value, x: Value, axis: Axis = None) -> Value:
    return c - xp.exp(y) * xp.sum(c, axis=axis, keepdims=True)


UNARY: dict[str, Formula] = {
    "expit": lambda xp, c, y, x: c * (0.25 * xp.sech_squared(0.5 * x)),  # y (1 - y) is 0 for a large x
    "logit": lambda xp, c, y, x: c / (x * (1.0 - x)),
    "log_expit": lambda xp, c, y, x: c * xp.special.expit(-x),
    "softplus": lambda xp, c, y, x: c * xp.special.expit(x),
    "gamma": lambda xp, c, y, x: c * y * xp.special.psi(x),
    "rgamma": lambda xp, c, y, x: c * rgamma_slope(xp, y, x),
    "gammaln": lambda xp, c, y, x: c * xp.special.psi(x),
    "loggamma": lambda xp, c, y, x: c * xp.special.psi(x),
    "psi": lambda xp, c, y, x: c * xp.special.zeta(2.0, x),
    "erf": lambda xp, c, y, x: c * (2.0 / ROOT_PI) * xp.exp(-x * x),
    "erfc": lambda xp, c, y, x: c * (-2.0 / ROOT_PI) * xp.exp(-x * x),
    "erfi": lambda xp, c, y, x: c * (2.0 / ROOT_PI) * xp.exp(x * x),
    "erfcx": lambda xp, c, y, x: c * erfcx_slope(xp, y, x),
    "dawsn": lambda xp, c, y, x: c * dawsn_slope(xp, y, x),
    "erfinv": lambda xp, c, y, x: c * (0.5 * ROOT_PI) * xp.exp(y * y),
    "erfcinv": lambda xp, c, y, x: c * (-0.5 * ROOT_PI) * xp.exp(y * y),
    "ndtr": lambda xp, c, y, x: c * normal_density(xp, x),
    "log_ndtr": lambda xp, c, y, x: c * log_ndtr_slope(xp, y, x),
    "ndtri": lambda xp, c, y, x: c * ROOT_2PI * xp.exp(0.5 * y * y),
    "ndtri_exp": lambda xp, c, y, x: c / log_ndtr_slope(xp, x, y),
    "entr": lambda xp, c, y, x: -c * (xp.log(x) + 1.0),
    "exprel": lambda xp, c, y, x: c * exprel_slope(xp, y, x),
    "exp10": lambda xp, c, y, x: c * y * math.log(10.0),
    "cosm1": lambda xp, c, y, x: -c * xp.sin(x),
    "sindg": lambda xp, c, y, x: c * DEGREE * xp.special.cosdg(x),
    "cosdg": lambda xp, c, y, x: -c * DEGREE * xp.special.sindg(x),
    "tandg": lambda xp, c, y, x: c * DEGREE * (1.0 + y * y),
    "cotdg": lambda xp, c, y, x: -c * DEGREE * (1.0 + y * y),
    "expi": lambda xp, c, y, x: c * xp.exp(x) / x,
    "exp1": lambda xp, c, y, x: -c * xp.exp(-x) / x,
    "j0": lambda xp, c, y, x: -c * xp.special.j1(x),
    "j1": lambda xp, c, y, x: c * (xp.special.j0(x) - over_x(xp, y, x, -1.0)),
    "y0": lambda xp, c, y, x: -c * xp.special.y1(x),
    "y1": lambda xp, c, y, x: c * (xp.special.y0(x) - y / x),
    "i0": lambda xp, c, y, x: c * xp.special.i1(x),
    "i1": lambda xp, c, y, x: c * (xp.special.i0(x) - over_x(xp, y, x, 1.0)),
    "i0e": lambda xp, c, y, x: c * (xp.special.i1e(x) - xp.sign(x) * y),
    "i1e": i1e_slope,
    "k0": lambda xp, c, y, x: -c * xp.special.k1(x),
    "k1": lambda xp, c, y, x: -c * (xp.special.k0(x) + y / x),
    "k0e": lambda xp, c, y, x: c * (y - xp.special.k1e(x)),
    "k1e": lambda xp, c, y, x: c * (y - y / x - xp.special.k0e(x)),
    "softmax": softmax,
    "log_softmax": log_softmax,
}

SEVERAL: dict[str, tuple[Formula | None, ...]] = {
    "zeta": in_last_only("zeta", "x", lambda xp, c, y, s, q: -c * s * xp.special.zeta(s + 1.0, q)),
    "polygamma": in_last_only("polygamma", "n", lambda xp, c, y, n, x: c * xp.special.polygamma(n + 1, x)),
    "poch": (
        lambda xp, c, y, z, m: c * y * (xp.special.psi(z + m) - xp.special.psi(z)),
        lambda xp, c, y, z, m: c * y * xp.special.psi(z + m),
    ),
    "beta": (
        lambda xp, c, y, a, b: c * y * (xp.special.psi(a) - xp.special.psi(a + b)),
        lambda xp, c, y, a, b: c * y * (xp.special.psi(b) - xp.special.psi(a + b)),
    ),
    "betaln": (
        lambda xp, c, y, a, b: c * (xp.special.psi(a) - xp.special.psi(a + b)),
        lambda xp, c, y, a, b: c * (xp.special.psi(b) - xp.special.psi(a + b)),
    ),
    "betainc": in_last_only("betainc", "a b", lambda xp, c, y, a, b, x: c * beta_density(xp, a, b, x)),
    "betaincc": in_last_only("betaincc", "a b", lambda xp, c, y, a, b, x: -c * beta_density(xp, a, b, x)),
    "betaincinv": in_last_only("betaincinv", "a b", lambda xp, c, y, a, b, p: c / beta_density(xp, a, b, y)),
    "gammainc": in_last_only("gammainc", "a", lambda xp, c, y, a, x: c * gamma_density(xp, a, x)),
    "gammaincc": in_last_only("gammaincc", "a", lambda xp, c, y, a, x: -c * gamma_density(xp, a, x)),
    "gammaincinv": in_last_only("gammaincinv", "a", lambda xp, c, y, a, p: c / gamma_density(xp, a, y)),
    "gammainccinv": in_last_only("gammainccinv", "a", lambda xp, c, y, a, p: -c / gamma_density(xp, a, y)),
    "chdtr": in_last_only("chdtr", "v", lambda xp, c, y, v, x: 0.5 * c * gamma_density(xp, 0.5 * v, 0.5 * x)),
    "chdtrc": in_last_only("chdtrc", "v", lambda xp, c, y, v, x: -0.5 * c * gamma_density(xp, 0.5 * v, 0.5 * x)),
    "stdtr": in_last_only("stdtr", "df", lambda xp, c, y, df, t: c * student_density(xp, df, t)),
    "xlogy": (lambda xp, c, y, a, b: xp.special.xlogy(c, b), xlogy_right),
    "xlog1py": (lambda xp, c, y, a, b: xp.special.xlog1py(c, b), xlog1py_right),
    "rel_entr": (
        lambda xp, c, y, a, b: c * (log_ratio(xp, a, b) + 1.0),
        lambda xp, c, y, a, b: -xlogy_right(xp, c, y, a, b),
    ),
    "kl_div": (
        lambda xp, c, y, a, b: c * log_ratio(xp, a, b),
        lambda xp, c, y, a, b: c - xlogy_right(xp, c, y, a, b),
    ),
    "huber": (
        lambda xp, c, y, delta, r: c * xp.maximum(abs(r) - delta, 0.0),
        lambda xp, c, y, delta, r: c * xp.where(abs(r) <= delta, r, delta * xp.sign(r)),
    ),
    "pseudo_huber": (
        pseudo_huber_width,
        lambda xp, c, y, delta, r: c * r / xp.hypot(1.0, r / delta),
    ),
    "boxcox": (
        lambda xp, c, y, x, power: c * x ** (power - 1.0),
        lambda xp, c, y, x, power: boxcox_exponent(xp, c, xp.log(x), power),
    ),
    "boxcox1p": (
        lambda xp, c, y, x, power: c * (1.0 + x) ** (power - 1.0),
        lambda xp, c, y, x, power: boxcox_exponent(xp, c, xp.log1p(x), power),
    ),
    "expn": in_last_only("expn", "n", pull_expn),
    "jv": in_last_only("jv", "v", steps("jv", 1.0, -1.0)),
    "yv": in_last_only("yv", "v", steps("yv", 1.0, -1.0)),
    "yn": in_last_only("yn", "n", of_whole_order(steps("yn", 1.0, -1.0))),
    "iv": in_last_only("iv", "v", steps("iv", 1.0, 1.0)),
    "kv": in_last_only("kv", "v", steps("kv", -1.0, -1.0)),
    "kn": in_last_only("kn", "n", of_whole_order(steps("kn", -1.0, -1.0))),
    "ive": in_last_only("ive", "v", lambda xp, c, y, v, x: steps("ive", 1.0, 1.0)(xp, c, y, v, x) - c * xp.sign(x) * y),
    "kve": in_last_only("kve", "v", lambda xp, c, y, v, x: steps("kve", -1.0, -1.0)(xp, c, y, v, x) + c * y),
    "hyp0f1": in_last_only("hyp0f1", "v", lambda xp, c, y, v, z: c * xp.special.hyp0f1(v + 1.0, z) / v),
    "hyp1f1": in_last_only(
        "hyp1f1", "a b", lambda xp, c, y, a, b, z: c * xp.special.hyp1f1(a + 1.0, b + 1.0, z) * (a / b)
    ),
    "hyp2f1": in_last_only(
        "hyp2f1",
        "a b c",
        lambda xp, c, y, p, q, r, z: c * xp.special.hyp2f1(p + 1.0, q + 1.0, r + 1.0, z) * (p * q / r),
    ),
    "log_weighted_sum": (weighted_left, weighted_right),
}

# The functions whose derivatives hold for complex arguments. Complex arguments of the others are refused.
HOLOMORPHIC = frozenset(
    {
        *("erf", "erfc", "erfcx", "erfi", "dawsn", "ndtr", "log_ndtr", "exp1", "expi", "gamma", "loggamma"),
        *("jv", "yv", "iv", "kv", "kve", "xlogy", "xlog1py", "hyp0f1", "hyp1f1", "hyp2f1"),
        *("softmax", "log_softmax", "log_sum", "log_weighted_sum"),
    }
)


def of_complex(name: str) -> bool | None:
    return True if name in HOLOMORPHIC else None


ALONG_AXES = frozenset({"softmax", "log_softmax", "log_weighted_sum"})
"""The functions that are not elementwise."""


def rule_of(name: str, formulas: tuple[Formula | None, ...]) -> Rule:
    return Rule(formulas, holomorphic=of_complex(name), elementwise=name not in ALONG_AXES)


SPECIAL: dict[str, Rule] = {
    **{f"special.{name}": rule_of(name, (formula,)) for name, formula in UNARY.items()},
    **{f"special.{name}": rule_of(name, formulas) for name, formulas in SEVERAL.items()},
    "special.log_sum": Rule((log_sum,), holomorphic=of_complex("log_sum")),
}
SPECIAL_OWN: dict[str, Callable[..., Value]] = {
    "special.log_sum": lambda special, a, **where: special.logsumexp(a, **where),
    "special.log_weighted_sum": lambda special, a, b, **where: special.logsumexp(a, b=b, **where),
}
SPECIAL_ALIASES = {
    "digamma": "psi",
    "jn": "jv",
    "_zeta": "zeta",  # the ufunc behind SciPy's `zeta`
}
