"""Arguments of NumPy's functions as arrays: NumPy takes numbers and lists where it takes arrays."""

from __future__ import annotations

from dil._base.typing import DType, Namespace
from dil_backends._tape.rules.rule import Value, refuse


def as_array(xp: Namespace, x: Value) -> Value:
    """Return a number or a list as an array. A list may hold boxes."""
    return x if hasattr(x, "dtype") else xp.asarray(x)


def flat(xp: Namespace, x: Value) -> Value:
    """Return x as a vector."""
    x = as_array(xp, x)
    return x if x.ndim == 1 else xp.reshape(x, (x.size,))


def by_axis(xp: Namespace, x: Value, axis: int | None) -> tuple[Value, int]:
    """Return x and a non-negative axis of it; the vector of its entries for None, and for a number."""
    x = as_array(xp, x)
    return (flat(xp, x), 0) if axis is None or not x.ndim else (x, axis % x.ndim)


def is_number(x: Value) -> bool:
    """Whether x is a number of Python, which takes the dtype of the arrays beside it."""
    return type(x) in (int, float, complex)


def common_dtype(xp: Namespace, *xs: Value) -> DType:
    """Return the dtype that NumPy gives arrays, and numbers of Python, which give way to arrays."""
    return xp.result_type(*(x if is_number(x) else x.dtype for x in xs))


def alike(xp: Namespace, *xs: Value) -> list[Value]:
    """Return arrays of one dtype. Numbers of Python give way to arrays."""
    xs = tuple(x if is_number(x) else as_array(xp, x) for x in xs)
    dtype = common_dtype(xp, *xs)
    return [xp.asarray(x, dtype=dtype) if is_number(x) else cast(xp, x, dtype) for x in xs]


def cast(xp: Namespace, x: Value, dtype: DType) -> Value:
    return x if x.dtype == dtype else xp.astype(x, dtype)


def placed_among(xp: Namespace, name: str, x: Value, dtype: DType) -> Value:
    """Return x in the dtype of the array that NumPy writes it into. Refuse a cast that loses the derivative."""
    x = as_array(xp, x)
    kinds = "buifc"
    if kinds.index(x.dtype.kind) > kinds.index(dtype.kind) and x.dtype.kind in "fc":
        refuse(f"{name} of an array of {dtype} with values of {x.dtype}", f"write `astype({x.dtype})` of the array")
    return cast(xp, x, dtype)
