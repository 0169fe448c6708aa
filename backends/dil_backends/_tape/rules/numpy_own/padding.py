"""`pad`: zeros or another constant around an array, or entries of it."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.numpy_own.arrays import as_array
from dil_backends._tape.rules.rule import Value, refuse

BY_INDEX = ("edge", "reflect", "symmetric", "wrap")
"""Modes whose new entries are entries of the array."""


def pad(xp: Namespace, array: Value, pad_width: Any, mode: Any = "constant", constant_values: Any = 0,
        reflect_type: str = "even") -> Value:  # fmt: skip
    array = as_array(xp, array)
    widths = pairs(pad_width, array.ndim)
    if mode == "constant":
        return bordered(xp, array, widths, constant_values)
    if mode not in BY_INDEX or reflect_type != "even":
        refuse(f"pad(mode={mode!r}{', reflect_type=' + repr(reflect_type) if reflect_type != 'even' else ''})")
    for axis, width in enumerate(widths):
        if any(width):
            array = xp.take(array, xp.pad(xp.arange(array.shape[axis]), width, mode=mode), axis=axis)
    return array


def bordered(xp: Namespace, array: Value, widths: list[tuple[int, int]], constant: Any) -> Value:
    """Return the array with a constant around it, which is a number, or one for each side as the widths."""
    shape = tuple(before + n + after for n, (before, after) in zip(array.shape, widths, strict=True))
    within = tuple(slice(before, before + n) for n, (before, _) in zip(array.shape, widths, strict=True))
    padded = xp.placed(array, shape, within)
    if xp.boxed(constant):
        border = xp.pad(xp.zeros(array.shape, dtype=array.dtype), widths, constant_values=1)
        return padded + border * as_array(xp, constant)
    if isinstance(constant, int | float) and constant == 0:
        return padded
    return padded + xp.pad(xp.zeros(array.shape, dtype=array.dtype), widths, constant_values=constant)


def pairs(pad_width: Any, ndim: int) -> list[tuple[int, int]]:
    """Return the widths before and after each axis, from any of NumPy's spellings."""
    if isinstance(pad_width, dict):
        given = {axis % ndim: both(width) for axis, width in pad_width.items()}
        return [given.get(axis, (0, 0)) for axis in range(ndim)]
    listed = pad_width.tolist() if hasattr(pad_width, "tolist") else pad_width
    if isinstance(listed, Integral) or not any(isinstance(width, list | tuple) for width in listed):
        return [both(listed)] * ndim
    each = [both(width) for width in listed]
    return each * ndim if len(each) == 1 else each


def both(width: Any) -> tuple[int, int]:
    """Return the widths before and after one axis."""
    if isinstance(width, Integral):
        return int(width), int(width)
    before, after = width if len(width) == 2 else (width[0], width[0])
    return int(before), int(after)
