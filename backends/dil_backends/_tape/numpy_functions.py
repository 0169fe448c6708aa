"""Functions that NumPy has nearer to its core than the standard's spelling, which costs as much as a small operation.

`Plain` takes them in the place of those of array_api_compat, by the name of the namespace. Their arguments are those of
the standard, as far as the rules use them, and so are their values, to the last digit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from dil_backends._tape.rules import elementwise
from dil_backends._tape.rules.rule import Axis

add_reduce: Any = np.add.reduce  # its types know no flag `keepdims` that is a variable


def sum(x: Any, axis: Axis = None, *, dtype: Any = None, keepdims: bool = False) -> Any:
    return add_reduce(x, axis, dtype, None, keepdims)


def mean(x: Any, axis: Axis = None, *, keepdims: bool = False) -> Any:
    if not x.size or x.dtype.char not in "fd":  # np.mean warns of no entries, and sums 16 bits in 32
        return np.mean(x, axis, keepdims=keepdims)
    total = add_reduce(x, axis, None, None, keepdims)
    return total / (x.size // total.size)


def broadcast_to(x: Any, shape: tuple[int, ...]) -> Any:
    if x.ndim:
        return np.broadcast_to(x, shape)
    number = x[()]  # the memory of a scalar is read-only, as that of NumPy's `broadcast_to`
    return np.ndarray(shape, number.dtype, number, 0, (0,) * len(shape))


def reshape(x: Any, shape: Any, *, copy: bool | None = None) -> Any:
    return x.reshape(shape) if copy is None else np.reshape(x, shape, copy=copy)


def expand_dims(x: Any, axis: Any = 0) -> Any:
    if axis == -1:
        return x[..., None]
    return x[..., None, :] if axis == -2 and x.ndim else np.expand_dims(x, axis)


def astype(x: Any, dtype: Any, *, copy: bool = True) -> Any:
    return x.astype(dtype, copy=copy)


def squeeze(x: Any, axis: Axis = None) -> Any:
    return x.squeeze(axis)


def permute_dims(x: Any, axes: Any) -> Any:
    return x.transpose(axes)


def matrix_transpose(x: Any) -> Any:
    return x.swapaxes(-1, -2)


def placed(g: Any, shape: tuple[int, ...], key: tuple[Any, ...]) -> Any:
    """Return zeros with g written at a basic index."""
    whole = np.zeros(shape, g.dtype)
    whole[key] = g
    return whole


def sech_squared(x: Any) -> Any:
    if not x.ndim or x.dtype.char not in "fd":
        return elementwise.sech_squared(np, x)
    e = np.abs(x)  # two new arrays, not seven: of many numbers, they would cost as much as the exponential
    e *= -2.0
    np.exp(e, out=e)
    root = 1.0 + e
    root *= root
    e *= 4.0
    e /= root
    return e


DIRECT: dict[str, dict[str, Callable[..., Any]]] = {
    "array_api_compat.numpy": {
        **{
            function.__name__: function
            for function in (
                *(sum, mean, broadcast_to, reshape, expand_dims, astype, squeeze),
                *(permute_dims, matrix_transpose, placed, sech_squared),
            )
        },
        "matmul": np.matmul,
        "indexed": operator.getitem,
        "pow": operator.pow,
    }
}
"""By the name of a raw namespace: the functions that `Plain` has in the place of those of the namespace."""
