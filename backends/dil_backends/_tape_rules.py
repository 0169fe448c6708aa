"""The derivative of every function that the tape knows, as tables of formulas.

A formula is the transposed derivative of one function in one argument. It reads `(xp, c, y, *args, **options)`: the
namespace to compute in, the cotangent c of y, the value y = f(*args), and what f was called with; it returns the
cotangent of its argument. `fit` then sums that over the axes that were broadcast and casts it to the argument's dtype,
so a formula need not. Values may be boxes of enclosing traces: a formula uses nothing but `xp`, operators and indexing,
and is differentiated again by being run on boxes.

* `RULES`     the formulas of each differentiable function, one per array argument
* `COMPOSED`  functions written with other functions of the tape, which bring their derivatives along
* `CONSTANT`  functions whose derivative is zero wherever it exists
* `OWN`       the values of functions that the standard lacks and the rules need (`placed`, `scatter`, ...)
* `ALIASES`   other spellings: NumPy's names, and what `linalg` repeats from the main namespace

Conventions where a derivative does not exist. Ties of `max` and `min` share the cotangent equally, and so do
`maximum`, `minimum` and `clip` at their kinks (half and half); `abs` has slope 0 at 0. Norms, `hypot` and `std` are
given the subgradient 0 at 0, since a NaN there would spoil the other problems of a batch. `sqrt` at 0 keeps its
infinite slope. `linalg.cholesky` takes its argument as symmetric and returns a symmetric cotangent.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from array_api_compat import device as device_of

from dil._base.errors import UnsupportedFunctionError
from dil._base.typing import Namespace

Value: TypeAlias = Any
"""A raw array, a box, or, among the arguments of a function, a Python scalar."""

Formula: TypeAlias = Callable[..., Value]
Axis: TypeAlias = int | tuple[int, ...] | None


@dataclass(frozen=True)
class Rule:
    """The formulas of one function, None where an argument has no derivative."""

    formulas: tuple[Any, ...]
    prepare: Formula | None = None
    """Replaces c by what all the formulas share, so that it is computed once."""
    each: Formula | None = None
    """One formula for any number of array arguments; after y it is told the position of its own."""
    options: frozenset[str] = field(init=False)
    """Keywords that the formulas understand; the tape refuses others (`out=`, `where=`) by name."""
    positional: float = field(init=False)
    """How many positional arguments they understand: NumPy's order is the standard's as far as that, not further."""

    def __post_init__(self) -> None:
        formula = self.each or next(f for f in self.formulas if f is not None)
        parameters = inspect.signature(formula).parameters
        by_place = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
        object.__setattr__(self, "options", frozenset(list(parameters)[3 + len(self.formulas) :]))
        object.__setattr__(self, "positional", math.inf if self.each else len(by_place) - 3)


def refuse(name: str) -> NoReturn:
    """Raise the error that refuses a function by name."""
    msg = (
        f"the tape has no derivative rule for `{name}`; write the score without it, or give the layer its products "
        "with derivatives=, or use the torch or JAX backend"
    )
    raise UnsupportedFunctionError(msg)


def fit(xp: Namespace, g: Value, x: Value) -> Value:
    """Give a cotangent the shape and dtype of its primal: sum over broadcast axes, undo promotion."""
    if g.shape != x.shape:
        extra = g.ndim - x.ndim
        stretched = (i + extra for i, n in enumerate(x.shape) if n == 1)
        g = xp.reshape(xp.sum(g, axis=(*range(extra), *stretched)), x.shape)
    return g if g.dtype == x.dtype else xp.astype(g, x.dtype)


# --- elementwise -----------------------------------------------------------------------------------------------------


def ratio(xp: Namespace, a: Value, b: Value) -> Value:
    """Return a / b, and 0 where b is 0; the inner `where` keeps NaN out of the second derivative as well."""
    return xp.where(b == 0, 0.0, a / xp.where(b == 0, 1.0, b))


def won(xp: Namespace, c: Value, a: Value, b: Value) -> Value:
    """Return c where a is larger than b, and half of it at a tie."""
    return xp.where(a > b, c, xp.where(a == b, 0.5 * c, 0.0))


def pow_base(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return c b a^(b-1), and exactly zero for b = 0, where a^(b-1) may be infinite."""
    if type(b) in (int, float, bool):
        return c * (b * a ** (b - 1)) if b else xp.zeros_like(c)
    return c * xp.where(b == 0, 0.0, b * a ** xp.where(b == 0, 1, b - 1))


def pow_exponent(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return c a^b log a, and its limit 0 (for b > 0) where a = 0."""
    if type(a) in (int, float, bool):
        return c * (y * (math.log(a) if a > 0 else math.nan if a else 0.0))
    return c * xp.where(a == 0, 0.0, y * xp.log(xp.where(a == 0, 1.0, a)))


UNARY: dict[str, Formula] = {
    "negative": lambda xp, c, y, x: -c,
    "positive": lambda xp, c, y, x: c,
    "abs": lambda xp, c, y, x: c * xp.sign(x),
    "square": lambda xp, c, y, x: c * (2.0 * x),
    "sqrt": lambda xp, c, y, x: 0.5 * c / y,
    "reciprocal": lambda xp, c, y, x: -c * y * y,
    "exp": lambda xp, c, y, x: c * y,
    "expm1": lambda xp, c, y, x: c * xp.exp(x),  # y + 1 has lost its digits where y is near -1
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
    "tanh": lambda xp, c, y, x: c * ((1.0 - y) * (1.0 + y)),
    "asinh": lambda xp, c, y, x: c / xp.sqrt(1.0 + x * x),
    "acosh": lambda xp, c, y, x: c / xp.sqrt((x - 1.0) * (x + 1.0)),
    "atanh": lambda xp, c, y, x: c / ((1.0 - x) * (1.0 + x)),
}

SEVERAL: dict[str, tuple[Formula | None, ...]] = {
    "add": (lambda xp, c, y, a, b: c, lambda xp, c, y, a, b: c),
    "subtract": (lambda xp, c, y, a, b: c, lambda xp, c, y, a, b: -c),
    "multiply": (lambda xp, c, y, a, b: c * b, lambda xp, c, y, a, b: c * a),
    "divide": (lambda xp, c, y, a, b: c / b, lambda xp, c, y, a, b: -c * y / b),
    "pow": (pow_base, pow_exponent),
    # a = b floor(a/b) + remainder, and the floor is constant almost everywhere
    "remainder": (lambda xp, c, y, a, b: c, lambda xp, c, y, a, b: -c * xp.floor_divide(a, b)),
    "maximum": (lambda xp, c, y, a, b: won(xp, c, a, b), lambda xp, c, y, a, b: won(xp, c, b, a)),
    "minimum": (lambda xp, c, y, a, b: won(xp, c, b, a), lambda xp, c, y, a, b: won(xp, c, a, b)),
    "hypot": (lambda xp, c, y, a, b: c * ratio(xp, a, y), lambda xp, c, y, a, b: c * ratio(xp, b, y)),
    # divided twice by the hypotenuse, because its square overflows and underflows first
    "atan2": (
        lambda xp, c, y, a, b: c * (b / xp.hypot(a, b)) / xp.hypot(a, b),
        lambda xp, c, y, a, b: -c * (a / xp.hypot(a, b)) / xp.hypot(a, b),
    ),
    "logaddexp": (lambda xp, c, y, a, b: c * xp.exp(a - y), lambda xp, c, y, a, b: c * xp.exp(b - y)),
    # y = |a| times the sign of b, so y has the sign of b wherever a is not 0
    "copysign": (lambda xp, c, y, a, b: c * xp.sign(a) * xp.sign(y), None),
    "where": (
        None,
        lambda xp, c, y, mask, a, b: xp.where(mask, c, 0.0),
        lambda xp, c, y, mask, a, b: xp.where(mask, 0.0, c),
    ),
}


# --- reductions and scans --------------------------------------------------------------------------------------------


def axes_of(axis: Axis, ndim: int) -> tuple[int, ...]:
    """Return the axes that `axis` names, counted from the front."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(i % ndim for i in (axis if isinstance(axis, tuple) else (axis,)))


def restore(xp: Namespace, c: Value, x: Value, axis: Axis, keepdims: bool) -> Value:
    """Give a reduced array its reduced axes back, of length one, so that it broadcasts against x."""
    if keepdims or axis is None:
        return c
    reduced = axes_of(axis, x.ndim)
    return xp.reshape(c, tuple(1 if i in reduced else n for i, n in enumerate(x.shape)))


def centred(xp: Namespace, x: Value, y: Value, axis: Axis, correction: float) -> Value:
    """Return (x - mean x) / (n - correction)."""
    freedom = x.size / max(y.size, 1) - correction
    return (x - xp.mean(x, axis=axis, keepdims=True)) * (1.0 / freedom if freedom else math.nan)


def shared(xp: Namespace, c: Value, y: Value, x: Value, axis: Axis = None, keepdims: bool = False) -> Value:
    """Share c equally among the entries of x that attain the extremum y."""
    hit = x == restore(xp, y, x, axis, keepdims)
    ties = xp.sum(xp.astype(hit, c.dtype), axis=axis, keepdims=True)
    return xp.where(hit, ratio(xp, restore(xp, c, x, axis, keepdims), ties), 0.0)


def before(xp: Namespace, x: Value) -> Value:
    """Return the product of the entries before each entry, along the last axis."""
    return xp.cumulative_prod(x, axis=-1, include_initial=True)[..., :-1]


def others(xp: Namespace, x: Value, axis: Axis) -> Value:
    """Return the product of all the other entries along the axes: no division, so zeros do no harm."""
    reduced = axes_of(axis, x.ndim)
    order = (*(i for i in range(x.ndim) if i not in reduced), *reduced)
    turned = xp.permute_dims(x, order)
    kept = turned.shape[: x.ndim - len(reduced)]
    rows = xp.reshape(turned, (*kept, math.prod(turned.shape[len(kept) :])))
    product = before(xp, rows) * xp.flip(before(xp, xp.flip(rows, axis=-1)), axis=-1)
    return xp.permute_dims(xp.reshape(product, turned.shape), inverse(order))


def scan_sum(xp: Namespace, c: Value, y: Value, x: Value, axis: int | None = None, *, dtype: Any = None,
             include_initial: bool = False) -> Value:  # fmt: skip
    """Return the sums of c from each entry on."""
    axis = axis or 0
    c = c[along(axis, x.ndim, slice(1, None))] if include_initial else c
    return xp.flip(xp.cumulative_sum(xp.flip(c, axis=axis), axis=axis), axis=axis)


def scan_prod(xp: Namespace, c: Value, y: Value, x: Value, axis: int | None = None, *, dtype: Any = None,
              include_initial: bool = False) -> Value:  # fmt: skip
    """Return before(x)_k r_k, where r_k = c_k + x_{k+1} r_{k+1} adds up the products that x_k is a factor of.

    The recurrence is solved by doubling: after each pass, r_k = total_k + factor_k r_{k+step}. It costs log2(n) passes
    over x, and no division, so zeros do no harm.
    """
    axis = axis or 0
    c = c[along(axis, x.ndim, slice(1, None))] if include_initial else c
    total, x = xp.moveaxis(c, axis, -1), xp.moveaxis(x, axis, -1)
    factor, step = ahead(xp, x, 1), 1
    while step < x.shape[-1]:
        total = total + factor * ahead(xp, total, step)
        factor = factor * ahead(xp, factor, step)
        step *= 2
    return xp.moveaxis(before(xp, x) * total, -1, axis)


def ahead(xp: Namespace, x: Value, step: int) -> Value:
    """Return the entry `step` places ahead along the last axis, 0 past the end."""
    return xp.concat([x[..., step:], xp.zeros_like(x[..., :step])], axis=-1) if x.shape[-1] else x


def along(axis: int, ndim: int, part: int | slice) -> tuple[Any, ...]:
    """Return the key of a part of one axis."""
    return (*(slice(None),) * (axis % ndim), part, ...)


REDUCTIONS: dict[str, Formula] = {
    "sum": lambda xp, c, y, x, axis=None, *, dtype=None, keepdims=False: xp.broadcast_to(
        restore(xp, c, x, axis, keepdims), x.shape
    ),
    "mean": lambda xp, c, y, x, axis=None, *, keepdims=False: xp.broadcast_to(
        restore(xp, c, x, axis, keepdims) * (y.size / max(x.size, 1)), x.shape
    ),
    "prod": lambda xp, c, y, x, axis=None, *, dtype=None, keepdims=False: (
        restore(xp, c, x, axis, keepdims) * others(xp, x, axis)
    ),
    "var": lambda xp, c, y, x, axis=None, *, correction=0.0, keepdims=False: (
        restore(xp, 2.0 * c, x, axis, keepdims) * centred(xp, x, y, axis, correction)
    ),
    "std": lambda xp, c, y, x, axis=None, *, correction=0.0, keepdims=False: (
        restore(xp, ratio(xp, c, y), x, axis, keepdims) * centred(xp, x, y, axis, correction)
    ),
    "max": lambda xp, c, y, x, axis=None, *, keepdims=False: shared(xp, c, y, x, axis, keepdims),
    "min": lambda xp, c, y, x, axis=None, *, keepdims=False: shared(xp, c, y, x, axis, keepdims),
    # the Euclidean norm; OWN, because `linalg.vector_norm` has other orders too
    "norm": lambda xp, c, y, x, axis=None, *, keepdims=False: (
        restore(xp, c, x, axis, keepdims) * ratio(xp, x, restore(xp, y, x, axis, keepdims))
    ),
    "cumulative_sum": scan_sum,
    "cumulative_prod": scan_prod,
}


# --- shapes and indices ----------------------------------------------------------------------------------------------


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    """Return the inverse of a permutation."""
    return tuple(sorted(range(len(order)), key=lambda i: order[i] % len(order)))


def joined(xp: Namespace, c: Value, y: Value, i: int, *xs: Value, axis: int = 0) -> Value:
    """Return the part of c that came from the i-th of the joined arrays."""
    start = sum(x.shape[axis] for x in xs[:i])
    return c[along(axis, c.ndim, slice(start, start + xs[i].shape[axis]))]


def unsorted(xp: Namespace, c: Value, y: Value, x: Value, axis: int = -1, *, descending: bool = False,
             stable: bool = True) -> Value:  # fmt: skip
    """Send c back to where the entries came from; among equal entries, in their order of appearance."""
    order = xp.argsort(x, axis=axis, descending=descending, stable=True)
    return xp.take_along_axis(c, xp.argsort(order, axis=axis), axis=axis)


SHAPES: dict[str, Formula] = {
    "reshape": lambda xp, c, y, x, shape, *, copy=None: xp.reshape(c, x.shape),
    "expand_dims": lambda xp, c, y, x, axis=0: xp.reshape(c, x.shape),
    "squeeze": lambda xp, c, y, x, axis=None: xp.reshape(c, x.shape),
    "permute_dims": lambda xp, c, y, x, axes: xp.permute_dims(c, inverse(axes)),
    "matrix_transpose": lambda xp, c, y, x: xp.matrix_transpose(c),
    "moveaxis": lambda xp, c, y, x, source, destination: xp.moveaxis(c, destination, source),
    "flip": lambda xp, c, y, x, axis=None: xp.flip(c, axis=axis),
    "roll": lambda xp, c, y, x, shift, axis=None: xp.roll(
        c, tuple(-s for s in shift) if isinstance(shift, tuple) else -shift, axis=axis
    ),
    "tril": lambda xp, c, y, x, *, k=0: xp.tril(c, k=k),
    "triu": lambda xp, c, y, x, *, k=0: xp.triu(c, k=k),
    "unstack": lambda xp, c, y, x, axis=0: xp.stack(c, axis=axis),
    # `fit` does what these two leave
    "broadcast_to": lambda xp, c, y, x, shape: c,
    "astype": lambda xp, c, y, x, dtype, *, copy=True: c,
    "sort": unsorted,
    # each pair is its own transpose: read and write a basic index, read rows and add them up
    "indexed": lambda xp, c, y, x, key: xp.placed(c, x.shape, key),
    "placed": lambda xp, c, y, g, shape, key: xp.indexed(c, key),
    "gather": lambda xp, c, y, x, rows: xp.scatter(c, rows),
    "scatter": lambda xp, c, y, g, rows: xp.gather(c, rows),
}


def placed(xp: Namespace, g: Value, shape: tuple[int, ...], key: tuple[Any, ...]) -> Value:
    """Return zeros with g written at a basic index, the transpose of reading there."""
    whole = xp.zeros(shape, dtype=g.dtype, device=device_of(g))
    basic = tuple(k for k in key if k is not None)  # the standard allows no None on the left-hand side
    whole[basic] = g if len(basic) == len(key) else xp.reshape(g, whole[basic].shape)
    return whole


class Rows:
    """Which of `count` rows a gather reads, and the plan by which a scatter adds up what comes back to each.

    The standard has no scatter-add. The cotangents are sorted by the row they belong to (once, for the plan is kept),
    and equal neighbours are added by doubling: k of them take log2(m) passes of O(k), where m is the largest number
    that goes to one row (none if no row is read twice). Unlike a difference of running sums this mixes no two rows, so
    neither rounding nor NaN spreads; unlike a one-hot product it takes no O(k count) memory.
    """

    __slots__ = ("at", "count", "plan")

    def __init__(self, at: Value, count: int) -> None:
        self.at = at
        self.count = count
        self.plan: tuple[Value, Value, Value, Value, int] | None = None

    def sorted(self, xp: Namespace) -> tuple[Value, Value, Value, Value, int]:
        """Return the sorting order, the sorted rows, each row's last place there, whether it has one, and m."""
        if self.plan is None:
            order = xp.argsort(self.at, stable=True)
            rows = xp.take(self.at, order, axis=0)
            each = xp.arange(self.count, dtype=rows.dtype, device=device_of(rows))
            start, stop = xp.searchsorted(rows, each, side="left"), xp.searchsorted(rows, each, side="right")
            last = xp.where(stop > start, stop - 1, xp.zeros_like(stop))
            self.plan = order, rows, last, stop > start, int(xp.max(stop - start))
        return self.plan


def gather(xp: Namespace, x: Value, rows: Rows) -> Value:
    """Return the chosen rows of x: (count, ...) -> (k, ...)."""
    return xp.take(x, rows.at, axis=0)


def scatter(xp: Namespace, g: Value, rows: Rows) -> Value:
    """Add the rows of g up where a gather read them, the transpose of reading there: (k, ...) -> (count, ...)."""
    shape = (rows.count, *g.shape[1:])
    if 0 in (rows.count, g.size):
        return xp.zeros(shape, dtype=g.dtype, device=device_of(g))
    order, row, last, present, most = rows.sorted(xp)
    total = xp.take(xp.reshape(g, (g.shape[0], math.prod(g.shape[1:]))), order, axis=0)
    step = 1
    while step < most:
        same = xp.expand_dims(row[step:] == row[:-step], axis=1)
        total = xp.concat([total[:step, :], total[step:, :] + xp.where(same, total[:-step, :], 0.0)], axis=0)
        step *= 2
    return xp.reshape(xp.where(xp.expand_dims(present, axis=1), xp.take(total, last, axis=0), 0.0), shape)


def getitem(xp: Namespace, x: Value, key: Any) -> Value:
    """Return x[key]; arrays in the key are turned into positions by indexing the positions themselves."""
    key = key if isinstance(key, tuple) else (key,)
    if all(k is None or k is ... or isinstance(k, numbers.Integral | slice) for k in key):
        return xp.indexed(x, key)
    if len(key) == 1 and x.ndim > 1 and hasattr(key[0], "dtype") and xp.isdtype(key[0].dtype, "integral"):
        return read_rows(xp, x, key[0])
    return read(xp, x, xp.reshape(xp.arange(x.size, device=device_of(x)), x.shape)[key])


def read(xp: Namespace, x: Value, positions: Value) -> Value:
    """Return the entries of x at flat positions."""
    rows = Rows(xp.reshape(positions, (positions.size,)), x.size)
    return xp.reshape(xp.gather(xp.reshape(x, (x.size,)), rows), positions.shape)


def read_rows(xp: Namespace, x: Value, indices: Value) -> Value:
    """Return x[indices, ...]; indexing an arange makes negative indices positive."""
    at = xp.arange(x.shape[0], device=device_of(x))[xp.reshape(indices, (indices.size,))]
    return xp.reshape(xp.gather(x, Rows(at, x.shape[0])), (*indices.shape, *x.shape[1:]))


def take(xp: Namespace, x: Value, indices: Value, axis: int | None = None) -> Value:
    if axis is None and x.ndim != 1:
        msg = f"take: axis= is required for an array of {x.ndim} dimensions"
        raise ValueError(msg)
    axis = axis or 0
    return xp.moveaxis(read_rows(xp, xp.moveaxis(x, axis, 0), indices), 0, axis)


def take_along_axis(xp: Namespace, x: Value, indices: Value, axis: int = -1) -> Value:
    positions = xp.reshape(xp.arange(x.size, device=device_of(x)), x.shape)
    return read(xp, x, xp.take_along_axis(positions, indices, axis=axis))


def concat(xp: Namespace, arrays: Sequence[Value], axis: int | None = 0) -> Value:
    if axis is None:
        return xp.join(*(xp.reshape(x, (x.size,)) for x in arrays))
    return xp.join(*arrays, axis=axis)


def stack(xp: Namespace, arrays: Sequence[Value], axis: int = 0) -> Value:
    return xp.pile(*arrays, axis=axis)


def asarray(xp: Namespace, x: Value, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Value:
    """Return a box as it is; stack a list that holds boxes, which no raw `asarray` would differentiate."""
    if isinstance(x, list | tuple):
        like = first_box(xp, x)
        x = xp.stack([asarray(xp, part, dtype or like.dtype, like.device) for part in x])
    if not xp.boxed(x):
        return xp.asarray(x, dtype=dtype, device=device)
    if device is not None and device != device_of(x):
        refuse("asarray(device=) to another device")
    return x if dtype is None or dtype == x.dtype else xp.astype(x, dtype)


def first_box(xp: Namespace, x: Value) -> Value:
    """Return the first box in nested lists."""
    return next(first_box(xp, part) for part in x if xp.boxed(part)) if isinstance(x, list | tuple) else x


def full(xp: Namespace, shape: Any, fill_value: Value, dtype: Any = None, device: Any = None) -> Value:
    filled = asarray(xp, fill_value, dtype, device)
    return xp.broadcast_to(filled, shape if isinstance(shape, tuple) else (shape,))


def full_like(xp: Namespace, x: Value, fill_value: Value, dtype: Any = None, device: Any = None) -> Value:
    if not xp.boxed(fill_value):
        return xp.full(x.shape, fill_value, dtype=dtype or x.dtype, device=device or device_of(x))
    return full(xp, x.shape, fill_value, dtype or x.dtype, device)


def broadcast_arrays(xp: Namespace, *arrays: Value) -> tuple[Value, ...]:
    shape = xp.broadcast_arrays(*(xp.constant(x) for x in arrays))[0].shape
    return tuple(xp.broadcast_to(x, shape) for x in arrays)


def meshgrid(xp: Namespace, *arrays: Value, indexing: str = "xy") -> list[Value]:
    shape = xp.meshgrid(*(xp.constant(x) for x in arrays), indexing=indexing)[0].shape
    axes = [1, 0, *range(2, len(shape))] if indexing == "xy" and len(shape) > 1 else range(len(shape))
    lying = (xp.reshape(x, (x.size,) + (1,) * (len(shape) - 1 - axis)) for x, axis in zip(arrays, axes, strict=True))
    return [xp.broadcast_to(x, shape) for x in lying]


def repeat(xp: Namespace, x: Value, repeats: Value, axis: int | None = None) -> Value:
    x, axis = (xp.reshape(x, (x.size,)), 0) if axis is None else (x, axis % x.ndim)
    if not isinstance(repeats, int):
        return take(xp, x, xp.repeat(xp.arange(x.shape[axis], device=device_of(x)), repeats), axis)
    front, n, back = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    copies = xp.broadcast_to(xp.reshape(x, (*front, n, 1, *back)), (*front, n, repeats, *back))
    return xp.reshape(copies, (*front, n * repeats, *back))


def tile(xp: Namespace, x: Value, repetitions: int | tuple[int, ...]) -> Value:
    times = repetitions if isinstance(repetitions, tuple) else (repetitions,)
    times = (1,) * (x.ndim - len(times)) + times
    shape = (1,) * (len(times) - x.ndim) + x.shape
    apart = xp.reshape(x, tuple(m for n in shape for m in (1, n)))
    copies = xp.broadcast_to(apart, tuple(m for pair in zip(times, shape, strict=True) for m in pair))
    return xp.reshape(copies, tuple(t * n for t, n in zip(times, shape, strict=True)))


def diff(xp: Namespace, x: Value, *, axis: int = -1, n: int = 1, prepend: Value = None, append: Value = None) -> Value:
    x = xp.concat([part for part in (prepend, x, append) if part is not None], axis=axis)
    for _ in range(n):
        x = x[along(axis, x.ndim, slice(1, None))] - x[along(axis, x.ndim, slice(None, -1))]
    return x


def clip(xp: Namespace, x: Value, min: Value = None, max: Value = None) -> Value:
    low, high = (b if b is None or isinstance(b, int | float) else xp.astype(b, x.dtype) for b in (min, max))
    x = x if low is None else xp.maximum(x, low)
    return x if high is None else xp.minimum(x, high)


# --- products and linear algebra -------------------------------------------------------------------------------------


def column(xp: Namespace, v: Value) -> Value:
    """Return vectors as matrices of one column."""
    return xp.expand_dims(v, axis=-1)


def row(xp: Namespace, v: Value) -> Value:
    """Return vectors as matrices of one row."""
    return xp.expand_dims(v, axis=-2)


def matmul_left(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return c b^T."""
    if b.ndim == 1:
        return column(xp, c) * b
    if a.ndim == 1:
        return xp.squeeze(b @ column(xp, c), axis=-1)
    return c @ xp.matrix_transpose(b)


def matmul_right(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return a^T c."""
    if a.ndim == 1:
        return a * c if b.ndim == 1 else column(xp, a) * row(xp, c)
    if b.ndim == 1 and a.ndim > 2:
        return xp.squeeze(xp.matrix_transpose(a) @ column(xp, c), axis=-1)
    if b.ndim == 2 and a.ndim > 2 and c.size:  # one product instead of a batch of them to be summed
        a, c = (xp.reshape(z, (math.prod(z.shape[:-1]), z.shape[-1])) for z in (a, c))
    return xp.matrix_transpose(a) @ c


def solved(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return a^-T c, which is the cotangent of b and a factor of that of a."""
    at = xp.matrix_transpose(a)
    return xp.squeeze(xp.linalg.solve(at, column(xp, c)), axis=-1) if b.ndim == 1 else xp.linalg.solve(at, c)


def times_inverse(xp: Namespace, c: Value, x: Value) -> Value:
    """Return c x^-T for a number c per matrix: the derivative of log|det x|."""
    return xp.reshape(c, (*c.shape, 1, 1)) * xp.matrix_transpose(xp.linalg.inv(x))


def cholesky(xp: Namespace, c: Value, y: Value, x: Value, *, upper: bool = False) -> Value:
    """Return L^-T P L^-1 made symmetric, P the lower triangle of L^T c with its diagonal halved (Murray 2016)."""
    turn = xp.matrix_transpose
    lower, c = (turn(y), turn(c)) if upper else (y, c)
    product = turn(lower) @ c
    half = 0.5 * (xp.tril(product) + xp.tril(product, k=-1))
    left = xp.linalg.solve(turn(lower), half)
    both = xp.linalg.solve(turn(lower), turn(left))
    return 0.5 * (both + turn(both))


LINALG: dict[str, Rule] = {
    "matmul": Rule((matmul_left, matmul_right)),
    "vecdot": Rule(
        (
            lambda xp, c, y, a, b, *, axis=-1: xp.expand_dims(c, axis=axis) * b,
            lambda xp, c, y, a, b, *, axis=-1: xp.expand_dims(c, axis=axis) * a,
        )
    ),
    "linalg.solve": Rule(
        (
            lambda xp, s, y, a, b: -column(xp, s) * row(xp, y) if b.ndim == 1 else -s @ xp.matrix_transpose(y),
            lambda xp, s, y, a, b: s,
        ),
        prepare=solved,
    ),
    "linalg.inv": Rule((lambda xp, c, y, x: -xp.matrix_transpose(y) @ c @ xp.matrix_transpose(y),)),
    "linalg.det": Rule((lambda xp, c, y, x: times_inverse(xp, c * y, x),)),
    "linalg.slogdet": Rule((lambda xp, c, y, x: times_inverse(xp, c[1], x),)),  # the sign is constant
    "linalg.cholesky": Rule((cholesky,)),
    # a triple product c . (a x b) is (b x c) . a and (c x a) . b
    "linalg.cross": Rule(
        (
            lambda xp, c, y, a, b, *, axis=-1: xp.linalg.cross(b, c, axis=axis),
            lambda xp, c, y, a, b, *, axis=-1: xp.linalg.cross(c, a, axis=axis),
        )
    ),
}


def tensordot(xp: Namespace, a: Value, b: Value, axes: Any = 2) -> Value:
    if isinstance(axes, int):
        axes = range(a.ndim - axes, a.ndim), range(axes)
    over_a, over_b = (axes_of(tuple(ax), x.ndim) for ax, x in zip(axes, (a, b), strict=True))
    free_a, free_b = (tuple(i for i in range(x.ndim) if i not in ax) for x, ax in ((a, over_a), (b, over_b)))
    rows, columns = tuple(a.shape[i] for i in free_a), tuple(b.shape[i] for i in free_b)
    inner = math.prod(a.shape[i] for i in over_a)
    left = xp.reshape(xp.permute_dims(a, free_a + over_a), (math.prod(rows), inner))
    right = xp.reshape(xp.permute_dims(b, over_b + free_b), (inner, math.prod(columns)))
    return xp.reshape(xp.matmul(left, right), rows + columns)


def outer(xp: Namespace, a: Value, b: Value) -> Value:
    if a.ndim != 1 or b.ndim != 1:
        refuse("linalg.outer of anything but vectors")
    return xp.multiply(column(xp, a), row(xp, b))


def diagonal(xp: Namespace, x: Value, offset: int = 0) -> Value:
    """Return the diagonal as a slice of the flattened matrix: its entries are n + 1 apart."""
    *batch, m, n = x.shape
    length = max(0, min(m + min(offset, 0), n - max(offset, 0)))
    if not length:
        return xp.zeros((*batch, 0), dtype=x.dtype, device=device_of(x))
    start = offset if offset >= 0 else -offset * n
    return xp.reshape(x, (*batch, m * n))[..., start : start + (length - 1) * (n + 1) + 1 : n + 1]


def trace(xp: Namespace, x: Value, offset: int = 0, dtype: Any = None) -> Value:
    return xp.sum(diagonal(xp, x, offset), axis=-1, dtype=dtype)


def vector_norm(xp: Namespace, x: Value, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Value:
    size = xp.abs(x)
    match ord:
        case 2:
            return xp.norm(x, axis=axis, keepdims=keepdims)
        case 1:
            return xp.sum(size, axis=axis, keepdims=keepdims)
        case math.inf:
            return xp.max(size, axis=axis, keepdims=keepdims)
    refuse(f"linalg.vector_norm(ord={ord})")


def matrix_norm(xp: Namespace, x: Value, keepdims: bool = False, ord: Any = "fro") -> Value:
    if ord != "fro":
        refuse(f"linalg.matrix_norm(ord={ord!r})")
    return xp.norm(x, axis=(-2, -1), keepdims=keepdims)


def matrix_power(xp: Namespace, x: Value, n: int) -> Value:
    """Return x^n by squaring."""
    if n < 0:
        return matrix_power(xp, xp.linalg.inv(x), -n)
    if n == 0:
        return xp.broadcast_to(xp.eye(x.shape[-1], dtype=x.dtype, device=device_of(x)), x.shape)
    half = matrix_power(xp, x, n // 2) if n > 1 else x
    return half if n == 1 else half @ half @ x if n % 2 else half @ half


def dot(xp: Namespace, a: Value, b: Value) -> Value:
    if not {a.ndim, b.ndim} <= {1, 2}:
        refuse("dot of anything but vectors and matrices")
    return xp.matmul(a, b)


def transpose(xp: Namespace, x: Value, axes: Sequence[int] | None = None) -> Value:
    return xp.permute_dims(x, tuple(range(x.ndim))[::-1] if axes is None else tuple(axes))


def norm(xp: Namespace, x: Value, ord: Any = None, axis: Axis = None, keepdims: bool = False) -> Value:
    if ord is not None and x.ndim != 1:
        refuse(f"linalg.norm(ord={ord!r})")
    return vector_norm(xp, x, axis, keepdims, 2 if ord is None else ord)


def swapaxes(xp: Namespace, x: Value, axis1: int, axis2: int) -> Value:
    order = list(range(x.ndim))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return xp.permute_dims(x, tuple(order))


# --- the tables ------------------------------------------------------------------------------------------------------


RULES: dict[str, Rule] = {
    **{name: Rule((formula,)) for name, formula in (UNARY | REDUCTIONS | SHAPES).items()},
    **{name: Rule(formulas) for name, formulas in SEVERAL.items()},
    **LINALG,
    "join": Rule((), each=joined),
    "pile": Rule((), each=lambda xp, c, y, i, *xs, axis=0: c[along(axis, c.ndim, i)]),
}

COMPOSED: dict[str, Callable[..., Value]] = {
    "real": lambda xp, x: x,
    "conj": lambda xp, x: x,
    **{
        function.__name__: function
        for function in (
            *(getitem, take, take_along_axis, concat, stack, asarray, full, full_like, broadcast_arrays, meshgrid),
            *(repeat, tile, diff, clip, tensordot, dot, transpose, swapaxes),
        )
    },
    **{
        f"linalg.{function.__name__}": function
        for function in (outer, diagonal, trace, vector_norm, matrix_norm, matrix_power, norm)
    },
}

OWN: dict[str, Callable[..., Value]] = {
    "placed": placed,
    "scatter": scatter,
    "gather": gather,
    "indexed": lambda xp, x, key: x[key],
    "join": lambda xp, *xs, axis=0: xp.concat(xs, axis=axis),
    "pile": lambda xp, *xs, axis=0: xp.stack(xs, axis=axis),
    "norm": lambda xp, x, axis=None, keepdims=False: xp.linalg.vector_norm(x, axis=axis, keepdims=keepdims),
    "pow": lambda xp, a, b: a**b,  # the operator has a fast way for small integer powers
}

# Piecewise constant: the derivative is zero except on a set of measure zero, where there is none. So these act on the
# bare values, and what they return is no box.
CONSTANT = frozenset(
    {
        *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "isclose", "allclose", "array_equal"),
        *("logical_and", "logical_or", "logical_xor", "logical_not", "all", "any", "isfinite", "isnan", "isinf"),
        *("sign", "signbit", "floor", "ceil", "round", "trunc", "floor_divide", "linalg.matrix_rank"),
        *("argmax", "argmin", "argsort", "searchsorted", "nonzero", "count_nonzero", "shape", "ndim", "size"),
        *("zeros_like", "ones_like", "empty_like", "result_type", "can_cast", "isdtype", "finfo", "iinfo"),
    }
)

ALIASES: dict[str, str] = {
    **{f"linalg.{name}": name for name in ("matmul", "matrix_transpose", "tensordot", "vecdot")},
    **{f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "tan2", "sinh", "cosh", "tanh")},
    "absolute": "abs",
    "fabs": "abs",
    "power": "pow",
    "true_divide": "divide",
    "mod": "remainder",
    "conjugate": "conj",
    "concatenate": "concat",
    "amax": "max",
    "amin": "min",
    "cumsum": "cumulative_sum",
    "cumprod": "cumulative_prod",
    "outer": "linalg.outer",
    "rint": "round",
}
