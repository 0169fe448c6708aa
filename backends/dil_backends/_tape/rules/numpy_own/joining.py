"""Joining arrays, and splitting them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.axes import along
from dil_backends._tape.rules.numpy_own.arrays import as_array, by_axis, flat, placed_among
from dil_backends._tape.rules.numpy_own.shapes import atleast_1d, atleast_2d, atleast_3d
from dil_backends._tape.rules.rule import Value


def concatenate(xp: Namespace, arrays: Sequence[Value], axis: int | None = 0, dtype: Any = None,
                casting: str = "same_kind") -> Value:  # fmt: skip
    joined = xp.concat([as_array(xp, x) for x in arrays], axis=axis)
    return joined if dtype is None else xp.astype(joined, dtype)


def stack(xp: Namespace, arrays: Sequence[Value], axis: int = 0, dtype: Any = None,
          casting: str = "same_kind") -> Value:  # fmt: skip
    piled = xp.stack([as_array(xp, x) for x in arrays], axis=axis)
    return piled if dtype is None else xp.astype(piled, dtype)


def hstack(xp: Namespace, tup: Sequence[Value], dtype: Any = None,
           casting: str = "same_kind") -> Value:  # fmt: skip
    arrays = [atleast_1d(xp, x) for x in tup]
    return concatenate(xp, arrays, 0 if arrays[0].ndim == 1 else 1, dtype)


def vstack(xp: Namespace, tup: Sequence[Value], dtype: Any = None,
           casting: str = "same_kind") -> Value:  # fmt: skip
    return concatenate(xp, [atleast_2d(xp, x) for x in tup], 0, dtype)


def dstack(xp: Namespace, tup: Sequence[Value]) -> Value:
    return concatenate(xp, [atleast_3d(xp, x) for x in tup], 2)


def column_stack(xp: Namespace, tup: Sequence[Value]) -> Value:
    arrays = [as_array(xp, x) for x in tup]
    return concatenate(xp, [x if x.ndim > 1 else xp.reshape(x, (x.size, 1)) for x in arrays], 1)


def append(xp: Namespace, arr: Value, values: Value, axis: int | None = None) -> Value:
    if axis is None:
        return concatenate(xp, [flat(xp, arr), flat(xp, values)])
    return concatenate(xp, [arr, values], axis)


def insert(xp: Namespace, arr: Value, obj: Any, values: Value, axis: int | None = None) -> Value:
    """Return arr with the values before the positions `obj`, in the dtype of arr."""
    arr, axis = by_axis(xp, arr, axis)
    values = placed_among(xp, "insert", values, arr.dtype)
    count = xp.insert(xp.arange(arr.shape[axis]), obj, 0).shape[0] - arr.shape[axis]
    if values.ndim < arr.ndim:  # NumPy: a number of positions takes values without the axis
        values = xp.expand_dims(values, axis=axis) if values.ndim == arr.ndim - 1 > 0 else values
    values = xp.broadcast_to(values, (*arr.shape[:axis], count, *arr.shape[axis + 1 :]))
    n = arr.shape[axis]
    order = xp.insert(xp.arange(n), obj, xp.arange(n, n + count))
    return xp.take(xp.concat([arr, values], axis=axis), order, axis=axis)


def delete(xp: Namespace, arr: Value, obj: Any, axis: int | None = None) -> Value:
    arr, axis = by_axis(xp, arr, axis)
    return xp.take(arr, xp.delete(xp.arange(arr.shape[axis]), obj), axis=axis)


def block(xp: Namespace, arrays: Any) -> Value:
    """Return nested lists of blocks as one array. The innermost lists are joined along the last axis."""
    depth = nesting(arrays)
    return blocks(xp, arrays, depth, max(depth, most_axes(xp, arrays)))


def blocks(xp: Namespace, arrays: Any, depth: int, ndim: int) -> Value:
    if not isinstance(arrays, list):
        x = as_array(xp, arrays)
        return xp.reshape(x, (1,) * (ndim - x.ndim) + tuple(x.shape))
    return xp.concat([blocks(xp, part, depth - 1, ndim) for part in arrays], axis=-depth)


def nesting(arrays: Any) -> int:
    return 1 + nesting(arrays[0]) if isinstance(arrays, list) else 0


def most_axes(xp: Namespace, arrays: Any) -> int:
    if isinstance(arrays, list):
        return max(most_axes(xp, part) for part in arrays)
    return int(as_array(xp, arrays).ndim)


def array_split(xp: Namespace, ary: Value, indices_or_sections: Any, axis: int = 0) -> list[Value]:
    """Return the parts between the indices, or as many parts as equal as can be."""
    n = ary.shape[axis]
    if isinstance(indices_or_sections, Integral):
        count = int(indices_or_sections)
        each, more = divmod(n, count)
        ends = [k * each + min(k, more) for k in range(count + 1)]
    else:
        ends = [0, *(int(k) for k in indices_or_sections), n]
    return [ary[along(axis, ary.ndim, slice(start, stop))] for start, stop in pairwise(ends)]


def split(xp: Namespace, ary: Value, indices_or_sections: Any, axis: int = 0) -> list[Value]:
    if isinstance(indices_or_sections, Integral) and ary.shape[axis] % indices_or_sections:
        msg = f"split: {ary.shape[axis]} entries do not make {indices_or_sections} equal parts; `array_split` does"
        raise ValueError(msg)
    return array_split(xp, ary, indices_or_sections, axis)


def hsplit(xp: Namespace, ary: Value, indices_or_sections: Any) -> list[Value]:
    return split(xp, ary, indices_or_sections, 0 if ary.ndim == 1 else 1)


def vsplit(xp: Namespace, ary: Value, indices_or_sections: Any) -> list[Value]:
    return split(xp, ary, indices_or_sections, 0)


def dsplit(xp: Namespace, ary: Value, indices_or_sections: Any) -> list[Value]:
    return split(xp, ary, indices_or_sections, 2)
