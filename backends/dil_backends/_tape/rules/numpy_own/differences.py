"""Differences, slopes and integrals of sampled functions, and the samples themselves."""

from __future__ import annotations

from typing import Any

from dil._base.arrays import is_complex
from dil._base.typing import Namespace
from dil_backends._tape.rules.axes import along, axes_of
from dil_backends._tape.rules.numpy_own.arrays import alike, as_array, flat, is_number, placed_among
from dil_backends._tape.rules.rule import Axis, Value


def diff(xp: Namespace, a: Value, n: int = 1, axis: int = -1, prepend: Value = None, append: Value = None) -> Value:
    a = as_array(xp, a)
    ends = [None if end is None else beside(xp, end, a, axis) for end in (prepend, append)]
    return xp.diff(a, n=n, axis=axis, prepend=ends[0], append=ends[1])


def beside(xp: Namespace, end: Value, a: Value, axis: int) -> Value:
    """Return what is joined to a; a number stands for an array of length one along the axis."""
    end = as_array(xp, end)
    axis %= a.ndim
    return end if end.ndim else xp.broadcast_to(end, (*a.shape[:axis], 1, *a.shape[axis + 1 :]))


def ediff1d(xp: Namespace, ary: Value, to_end: Value = None, to_begin: Value = None) -> Value:
    ary = flat(xp, ary)
    begin, end = (
        [] if x is None else [placed_among(xp, "ediff1d", flat(xp, x), ary.dtype)] for x in (to_begin, to_end)
    )
    return xp.concat([*begin, ary[1:] - ary[:-1], *end])


def gradient(xp: Namespace, f: Value, *varargs: Value, axis: Axis = None, edge_order: int = 1) -> Any:
    """Return the slopes along each axis, by second-order differences inside and of `edge_order` at the ends."""
    f = as_array(xp, f)
    axes = axes_of(axis, f.ndim)
    spacings = [h if is_number(h) else as_array(xp, h) for h in (varargs or (1.0,))]
    spacings = spacings * len(axes) if len(spacings) == 1 else spacings
    if len(spacings) != len(axes):
        msg = f"gradient: {len(spacings)} spacings were given for {len(axes)} axes"
        raise TypeError(msg)
    found = [slopes(xp, f, h, ax, edge_order) for h, ax in zip(spacings, axes, strict=True)]
    if f.dtype.kind in "fc":  # NumPy writes the slopes into an array like f
        found = [placed_among(xp, "gradient", x, f.dtype) for x in found]
    return found[0] if len(found) == 1 else tuple(found)


def slopes(xp: Namespace, f: Value, h: Value, axis: int, edge_order: int) -> Value:
    """Return the slopes along one axis. `h` is a spacing, or the coordinates of the samples.

    With steps a before and b after a sample, the slope is the derivative of the parabola through three samples:
    (-b/(a (a+b))) f_- + ((b-a)/(a b)) f_0 + (a/(b (a+b))) f_+.
    """
    n = f.shape[axis]
    if n < edge_order + 1:
        msg = f"gradient: {n} samples along an axis are too few for edge_order={edge_order}"
        raise ValueError(msg)

    def at(part: slice) -> Value:
        return f[along(axis, f.ndim, part)]

    first, last = at(slice(1, 2)) - at(slice(0, 1)), at(slice(-1, None)) - at(slice(-2, -1))
    if is_number(h) or h.ndim == 0:
        inside = (at(slice(2, None)) - at(slice(None, -2))) / (2.0 * h)
        first, last = first / h, last / h
        if edge_order == 2:
            second_first, second_last = (
                at(slice(2, 3)) - 2.0 * at(slice(1, 2)) + at(slice(0, 1)),
                at(slice(-1, None)) - 2.0 * at(slice(-2, -1)) + at(slice(-3, -2)),
            )
            first, last = first - 0.5 * second_first / h, last + 0.5 * second_last / h
        return xp.concat([first, inside, last], axis=axis)
    steps = xp.reshape(h[1:] - h[:-1], tuple(n - 1 if k == axis else 1 for k in range(f.ndim)))
    rises = (at(slice(1, None)) - at(slice(None, -1))) / steps

    def neighbours(x: Value) -> tuple[Value, Value]:
        return x[along(axis, f.ndim, slice(None, -1))], x[along(axis, f.ndim, slice(1, None))]

    (a, b), (before, after) = neighbours(steps), neighbours(rises)
    inside = (b * before + a * after) / (a + b)
    first, last = rises[along(axis, f.ndim, slice(0, 1))], rises[along(axis, f.ndim, slice(-1, None))]
    if edge_order == 2:
        bend = (after - before) / (a + b)
        first = first - a[along(axis, f.ndim, slice(0, 1))] * bend[along(axis, f.ndim, slice(0, 1))]
        last = last + b[along(axis, f.ndim, slice(-1, None))] * bend[along(axis, f.ndim, slice(-1, None))]
    return xp.concat([first, inside, last], axis=axis)


def trapezoid(xp: Namespace, y: Value, x: Value = None, dx: Value = 1.0, axis: int = -1) -> Value:
    y = as_array(xp, y)
    if x is not None:
        x = as_array(xp, x)
        dx = xp.diff(x, axis=axis) if x.ndim > 1 else x[1:] - x[:-1]
        if x.ndim == 1:
            dx = xp.reshape(dx, tuple(x.size - 1 if k == axis % y.ndim else 1 for k in range(y.ndim)))
    pairs = y[along(axis, y.ndim, slice(1, None))] + y[along(axis, y.ndim, slice(None, -1))]
    return xp.sum(pairs * (0.5 * dx), axis=axis)


def interp(space: Namespace, x: Value, xp: Value, fp: Value, left: Value = None, right: Value = None,
           period: float | None = None) -> Value:  # fmt: skip
    """Return the piecewise linear function through (xp, fp) at x. At a node, the slope is that after it."""
    nodes, xp = xp, space  # NumPy's name of the nodes is the tape's of the namespace
    # NumPy's result is double precision, whatever it gets, and so are its differences
    x, nodes = (xp.astype(as_array(xp, a), xp.float64) for a in (x, nodes))
    values = as_array(xp, fp)
    values = xp.astype(values, xp.complex128 if is_complex(xp, values.dtype) else xp.float64)
    if period is not None:
        x, nodes, values, left, right = (*periodic(xp, x, nodes, values, abs(period)), None, None)
    n = nodes.shape[0]
    if n == 1:
        inside = xp.broadcast_to(values[0], x.shape)
    else:
        at = xp.clip(xp.searchsorted(nodes, x, side="right") - 1, 0, n - 2)
        start, stop, low, high = nodes[at], nodes[at + 1], values[at], values[at + 1]
        inside = low + (high - low) / (stop - start) * (x - start)
    below, above = values[0] if left is None else left, values[-1] if right is None else right
    found = xp.where(x < nodes[0], below, xp.where(x > nodes[-1], above, inside))
    return xp.where(xp.isnan(x), x, found)


def periodic(xp: Namespace, x: Value, nodes: Value, values: Value, period: float) -> tuple[Value, ...]:
    """Return the points of one period in order, with one more on either side, and x within the period."""
    nodes = xp.remainder(nodes, period)
    order = xp.argsort(nodes)
    nodes, values = nodes[order], values[order]
    return (
        xp.remainder(x, period),
        xp.concat([nodes[-1:] - period, nodes, nodes[:1] + period]),
        xp.concat([values[-1:], values, values[:1]]),
    )


def linspace(xp: Namespace, start: Value, stop: Value, num: int = 50, endpoint: bool = True, retstep: bool = False,
             dtype: Any = None, axis: int = 0) -> Any:  # fmt: skip
    """Return evenly spaced samples. start and stop are broadcast; the axis of the samples is new."""
    start, stop = xp.broadcast_arrays(
        *alike(xp, *(x * 1.0 if is_number(x) else as_array(xp, x) * 1.0 for x in (start, stop)))
    )
    intervals = num - 1 if endpoint else num
    step = (stop - start) / float(intervals) if intervals > 0 else stop - start
    count = xp.reshape(xp.arange(num, dtype=xp.finfo(step.dtype).dtype), (num, *(1,) * start.ndim))
    samples = start + count * step
    if endpoint and num > 1:
        samples = xp.concat([samples[:-1], xp.expand_dims(stop, axis=0)], axis=0)
    samples = xp.moveaxis(samples, 0, axis)
    samples = samples if dtype is None else xp.astype(samples, xp.empty(0, dtype=dtype).dtype)
    return (samples, step if intervals > 0 else float("nan")) if retstep else samples  # as NumPy's


def geomspace(xp: Namespace, start: Value, stop: Value, num: int = 50, endpoint: bool = True, dtype: Any = None,
              axis: int = 0) -> Value:  # fmt: skip
    """Return samples with a constant ratio, for start and stop of one sign."""
    start, stop = xp.broadcast_arrays(*alike(xp, start, stop))
    dtype = xp.complex128 if dtype is None and is_complex(xp, start.dtype) else dtype or float
    steps = linspace(xp, xp.zeros_like(start), xp.ones_like(start), num, endpoint)
    samples = xp.moveaxis(start * xp.pow(stop / start, steps), 0, axis)
    return xp.astype(samples, xp.empty(0, dtype=dtype).dtype)


def logspace(xp: Namespace, start: Value, stop: Value, num: int = 50, endpoint: bool = True, base: Value = 10.0,
             dtype: Any = None, axis: int = 0) -> Value:  # fmt: skip
    powers = xp.pow(
        base if is_number(base) else as_array(xp, base), linspace(xp, start, stop, num, endpoint, axis=axis)
    )
    return powers if dtype is None else xp.astype(powers, xp.empty(0, dtype=dtype).dtype)
