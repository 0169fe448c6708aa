"""Products of arrays of any shapes, and convolutions of vectors."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.matrices import column, row
from dil_backends._tape.rules.numpy_own.arrays import as_array, flat
from dil_backends._tape.rules.rule import Formula, Value, refuse


def dot(xp: Namespace, a: Value, b: Value) -> Value:
    """Sum over the last axis of a and the last but one of b, or the only one."""
    a, b = as_array(xp, a), as_array(xp, b)
    if 0 in (a.ndim, b.ndim):
        return xp.multiply(a, b)
    if b.ndim <= 2 and (a.ndim <= 2 or b.ndim == 1):
        return xp.matmul(a, b)
    return xp.tensordot(a, b, axes=((a.ndim - 1,), (max(b.ndim - 2, 0),)))


def inner(xp: Namespace, a: Value, b: Value) -> Value:
    """Sum over the last axes of a and of b."""
    a, b = as_array(xp, a), as_array(xp, b)
    if 0 in (a.ndim, b.ndim):
        return xp.multiply(a, b)
    if b.ndim == 1:
        return xp.matmul(a, b)
    return xp.tensordot(a, b, axes=((a.ndim - 1,), (b.ndim - 1,)))


def vdot(xp: Namespace, a: Value, b: Value) -> Value:
    return xp.matmul(xp.conj(flat(xp, a)), flat(xp, b))


def outer(xp: Namespace, a: Value, b: Value) -> Value:
    return xp.multiply(column(xp, flat(xp, a)), row(xp, flat(xp, b)))


def tensordot(xp: Namespace, a: Value, b: Value, axes: Any = 2) -> Value:
    """Sum over axes. NumPy takes a number for a list of one axis."""
    if not isinstance(axes, Integral):
        axes = tuple((ax,) if isinstance(ax, Integral) else tuple(ax) for ax in axes)
    return xp.tensordot(as_array(xp, a), as_array(xp, b), axes=axes)


def kron(xp: Namespace, a: Value, b: Value) -> Value:
    """Return all products of an entry of a and one of b, in blocks like b."""
    a, b = as_array(xp, a), as_array(xp, b)
    ndim = max(a.ndim, b.ndim)
    m, n = ((1,) * (ndim - x.ndim) + tuple(x.shape) for x in (a, b))
    left = xp.reshape(a, tuple(k for length in m for k in (length, 1)))
    right = xp.reshape(b, tuple(k for length in n for k in (1, length)))
    return xp.reshape(xp.multiply(left, right), tuple(i * j for i, j in zip(m, n, strict=True)))


def cross(xp: Namespace, a: Value, b: Value, axisa: int = -1, axisb: int = -1, axisc: int = -1,
          axis: int | None = None) -> Value:  # fmt: skip
    axisa, axisb, axisc = (axis,) * 3 if axis is not None else (axisa, axisb, axisc)
    a, b = xp.moveaxis(as_array(xp, a), axisa, -1), xp.moveaxis(as_array(xp, b), axisb, -1)
    if a.shape[-1] != 3 or b.shape[-1] != 3:
        refuse("cross of anything but vectors of three entries")
    return xp.moveaxis(xp.linalg.cross(*xp.broadcast_arrays(a, b)), -1, axisc)


CONVOLUTION: tuple[Formula, Formula] = (
    lambda xp, c, y, a, v: xp.convolution(c, xp.conj(xp.flip(v)))[v.size - 1 : v.size - 1 + a.size],
    lambda xp, c, y, a, v: xp.convolution(c, xp.conj(xp.flip(a)))[a.size - 1 : a.size - 1 + v.size],
)
"""The whole convolution is linear in each vector. The transpose of either map is a part of a convolution."""


def convolve(xp: Namespace, a: Value, v: Value, mode: str = "full") -> Value:
    a, v = vectors(xp, a, v)
    shorter, longer = sorted((a.size, v.size))
    return part(xp.convolution(a, v), mode, shorter, longer, (shorter - 1) // 2)


def correlate(xp: Namespace, a: Value, v: Value, mode: str = "valid") -> Value:
    a, v = vectors(xp, a, v)
    shorter, longer = sorted((a.size, v.size))
    # NumPy exchanges the vectors if v is the longer one, and turns the result round
    middle = (shorter - 1) // 2 if a.size >= v.size else shorter // 2
    return part(xp.convolution(a, xp.conj(xp.flip(v))), mode, shorter, longer, middle)


def vectors(xp: Namespace, a: Value, v: Value) -> tuple[Value, Value]:
    a, v = as_array(xp, a), as_array(xp, v)
    if (a.ndim, v.ndim) != (1, 1) or 0 in (a.size, v.size):
        msg = f"expected two vectors with entries, got shapes {tuple(a.shape)} and {tuple(v.shape)}"
        raise ValueError(msg)
    return a, v


def part(whole: Value, mode: str, shorter: int, longer: int, middle: int) -> Value:
    """Return the part of a whole convolution that the mode names."""
    if mode not in ("full", "same", "valid"):
        msg = f"mode={mode!r}; expected 'full', 'same' or 'valid'"
        raise ValueError(msg)
    parts = {"full": (0, shorter + longer - 1), "same": (middle, longer), "valid": (shorter - 1, longer - shorter + 1)}
    start, length = parts[mode]
    return whole[start : start + length]
