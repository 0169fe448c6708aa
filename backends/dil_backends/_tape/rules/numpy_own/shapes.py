"""Shapes in NumPy's ways: flattening, axes of length one, turning and mirroring."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.numpy_own.arrays import as_array, flat
from dil_backends._tape.rules.rule import Value, refuse


def reshape(xp: Namespace, a: Value, shape: Any, order: str = "C", *, copy: bool | None = None) -> Value:
    if order == "C":
        return xp.reshape(a, shape)
    if order != "F":
        refuse(f"reshape(order={order!r})")
    shape = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    return xp.transpose(xp.reshape(xp.transpose(a), shape[::-1]))


def ravel(xp: Namespace, a: Value, order: str = "C") -> Value:
    if order in ("K", "A"):
        if a.ndim > 1:  # the order of the memory, which a box does not promise
            refuse(f"ravel(order={order!r})", 'write order="C" or "F"')
        order = "C"
    return reshape(xp, a, (-1,) if a.size else (0,), order)


def copy(xp: Namespace, a: Value, order: str = "K", subok: bool = False) -> Value:
    """Return a. Nothing is written into it, so that it need not be copied."""
    return a


def astype(xp: Namespace, x: Value, dtype: Any, order: str = "K", casting: str = "unsafe", subok: bool = True,
           copy: bool = True, device: Any = None) -> Value:  # fmt: skip
    return xp.astype(x, xp.empty(0, dtype=dtype).dtype)  # NumPy takes `float` and "f4" for a dtype


def rollaxis(xp: Namespace, a: Value, axis: int, start: int = 0) -> Value:
    axis, start = axis % a.ndim, start + a.ndim if start < 0 else start
    return xp.moveaxis(a, axis, start - 1 if axis < start else start)


def atleast_1d(xp: Namespace, *arys: Value) -> Any:
    return each(xp, arys, lambda x: xp.reshape(x, (1,)) if x.ndim == 0 else x)


def atleast_2d(xp: Namespace, *arys: Value) -> Any:
    return each(xp, arys, lambda x: xp.reshape(x, (1, -1)) if x.ndim < 2 else x)


def atleast_3d(xp: Namespace, *arys: Value) -> Any:
    """Return arrays of three axes. NumPy puts the axis of a vector in the middle, and those of a matrix first."""
    before = (1, 1, 0)  # axes of length one in front, by the number of axes that there are

    def padded(x: Value) -> Value:
        n = x.ndim
        return x if n > 2 else xp.reshape(x, (*(1,) * before[n], *x.shape, *(1,) * (3 - n - before[n])))

    return each(xp, arys, padded)


def each(xp: Namespace, arrays: Sequence[Value], change: Any) -> Any:
    """Return one array, or the tuple of several."""
    changed = tuple(change(as_array(xp, x)) for x in arrays)
    return changed[0] if len(changed) == 1 else changed


def flipud(xp: Namespace, m: Value) -> Value:
    return xp.flip(m, axis=0)


def fliplr(xp: Namespace, m: Value) -> Value:
    return xp.flip(m, axis=1)


def rot90(xp: Namespace, m: Value, k: int = 1, axes: Sequence[int] = (0, 1)) -> Value:
    """Return m turned k times from the first axis towards the second."""
    first, second = axes
    if k % 4 == 0:
        return m
    if k % 4 == 2:
        return xp.flip(m, axis=(first, second))
    turned = xp.flip(m, axis=second) if k % 4 == 1 else m
    turned = xp.swapaxes(turned, first, second)
    return turned if k % 4 == 1 else xp.flip(turned, axis=second)


def roll(xp: Namespace, a: Value, shift: Any, axis: Any = None) -> Value:
    shift, axis = (tuple(s) if isinstance(s, list) else s for s in (shift, axis))
    return xp.roll(a, shift, axis=axis)


def tile(xp: Namespace, A: Value, reps: Any) -> Value:
    reps = (reps,) if isinstance(reps, Integral) else tuple(reps)
    return xp.tile(as_array(xp, A), reps)


def repeat(xp: Namespace, a: Value, repeats: Any, axis: int | None = None) -> Value:
    repeats = xp.asarray(repeats) if isinstance(repeats, Sequence) else repeats
    return xp.repeat(a, repeats, axis=axis)


def broadcast_to(xp: Namespace, array: Value, shape: Any, subok: bool = False) -> Value:
    return xp.broadcast_to(as_array(xp, array), (shape,) if isinstance(shape, Integral) else tuple(shape))


def broadcast_arrays(xp: Namespace, *args: Value, subok: bool = False) -> tuple[Value, ...]:
    return tuple(xp.broadcast_arrays(*(as_array(xp, x) for x in args)))


def swapaxes(xp: Namespace, a: Value, axis1: int, axis2: int) -> Value:
    order = list(range(a.ndim))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return xp.permute_dims(a, tuple(order))


def meshgrid(xp: Namespace, *xi: Value, copy: bool = True, sparse: bool = False, indexing: str = "xy") -> Any:
    """Return the coordinates of a grid. With `sparse`, each has length one along the axes of the others."""
    vectors = [flat(xp, x) for x in xi]
    if not sparse:
        return tuple(xp.meshgrid(*vectors, indexing=indexing))
    n = len(vectors)
    axes = [1, 0, *range(2, n)] if indexing == "xy" and n > 1 else range(n)
    return tuple(
        xp.reshape(x, tuple(x.size if k == axis else 1 for k in range(n)))
        for x, axis in zip(vectors, axes, strict=True)
    )
