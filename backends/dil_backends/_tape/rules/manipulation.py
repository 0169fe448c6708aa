"""Rules of functions that move, join, repeat and create entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from array_api_compat import device as device_of

from dil._base.typing import Namespace
from dil_backends._tape.rules.axes import along, inverse
from dil_backends._tape.rules.indexing import take
from dil_backends._tape.rules.rule import Formula, Value, refuse


def joined(xp: Namespace, c: Value, y: Value, i: int, *xs: Value, axis: int = 0) -> Value:
    """Return the part of c that belongs to the i-th joined array."""
    start = sum(x.shape[axis] for x in xs[:i])
    return c[along(axis, c.ndim, slice(start, start + xs[i].shape[axis]))]


def unsorted(xp: Namespace, c: Value, y: Value, x: Value, axis: int = -1, *, descending: bool = False,
             stable: bool = True) -> Value:  # fmt: skip
    """Return c in the order of the unsorted entries. Equal entries keep their order of appearance."""
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
    # `fit` sums over broadcast axes and casts, so these two rules do nothing
    "broadcast_to": lambda xp, c, y, x, shape: c,
    "astype": lambda xp, c, y, x, dtype, *, copy=True: c,
    "sort": unsorted,
    # the functions of each pair are transposes of each other: read and write at an index, gather and scatter
    "indexed": lambda xp, c, y, x, key: xp.placed(c, x.shape, key),
    "placed": lambda xp, c, y, g, shape, key: xp.indexed(c, key),
    "gather": lambda xp, c, y, x, rows: xp.scatter(c, rows),
    "scatter": lambda xp, c, y, g, rows: xp.gather(c, rows),
}


def concat(xp: Namespace, arrays: Sequence[Value], axis: int | None = 0) -> Value:
    if axis is None:
        return xp.join(*(xp.reshape(x, (x.size,)) for x in arrays))
    return xp.join(*arrays, axis=axis)


def stack(xp: Namespace, arrays: Sequence[Value], axis: int = 0) -> Value:
    return xp.pile(*arrays, axis=axis)


def asarray(xp: Namespace, x: Value, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Value:
    """Return a box unchanged. Stack a list that holds boxes, because a raw `asarray` would lose their derivative."""
    if isinstance(x, list | tuple):
        dtype = xp.result_type(*leaves(x)) if dtype is None else dtype
        like = first_box(xp, x)
        x = xp.stack([asarray(xp, part, dtype, like.device) for part in x])
    if not xp.boxed(x):
        return xp.asarray(x, dtype=dtype, device=device)
    if device is not None and device != device_of(x):
        refuse("asarray(device=) to another device")
    return x if dtype is None or dtype == x.dtype else xp.astype(x, dtype)


def leaves(x: Value) -> list[Value]:
    """Return the numbers and arrays in nested lists or tuples."""
    return [leaf for part in x for leaf in leaves(part)] if isinstance(x, list | tuple) else [x]


def first_box(xp: Namespace, x: Value) -> Value:
    """Return the first box in nested lists or tuples."""
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
    x, axis = (xp.reshape(x, (x.size,)), 0) if axis is None or not x.ndim else (x, axis % x.ndim)
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


def transpose(xp: Namespace, x: Value, axes: Sequence[int] | None = None) -> Value:
    return xp.permute_dims(x, tuple(range(x.ndim))[::-1] if axes is None else tuple(axes))
