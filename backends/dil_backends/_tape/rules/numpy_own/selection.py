"""Entries that are chosen by a condition, by number or by their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.indexing import Rows
from dil_backends._tape.rules.numpy_own.arrays import alike, as_array, by_axis, flat
from dil_backends._tape.rules.rule import Value, refuse


def take(xp: Namespace, a: Value, indices: Any, axis: int | None = None, out: None = None,
         mode: str = "raise") -> Value:  # fmt: skip
    a, axis = by_axis(xp, a, axis)
    indices = within(xp, "take", as_array(xp, indices), a.shape[axis], mode)
    if indices.ndim == 1:
        return xp.take(a, indices, axis=axis)
    taken = xp.take(a, flat(xp, indices), axis=axis)
    return xp.reshape(taken, (*a.shape[:axis], *indices.shape, *a.shape[axis + 1 :]))


def within(xp: Namespace, name: str, indices: Value, n: int, mode: str) -> Value:
    """Return indices below n, by NumPy's modes for those that are not."""
    if mode == "wrap":
        return xp.remainder(indices, n)
    if mode == "clip":
        return xp.clip(indices, 0, n - 1)
    if mode != "raise":
        msg = f"{name}: mode={mode!r}; expected 'raise', 'wrap' or 'clip'"
        raise ValueError(msg)
    return indices


def choose(xp: Namespace, a: Value, choices: Sequence[Value], out: None = None, mode: str = "raise") -> Value:
    """Return the entries of the choices by their numbers."""
    at = within(xp, "choose", as_array(xp, xp.constant(a)), len(choices), mode)
    *given, at = xp.broadcast_arrays(*alike(xp, *choices), at)
    return xp.take_along_axis(xp.stack(given), at[None, ...], axis=0)[0, ...]


def extract(xp: Namespace, condition: Value, arr: Value) -> Value:
    return xp.take(flat(xp, arr), xp.nonzero(flat(xp, xp.constant(condition)))[0], axis=0)


def trim_zeros(xp: Namespace, filt: Value, trim: str = "fb") -> Value:
    """Return a vector without the zeros at its ends."""
    if filt.ndim != 1:
        refuse("trim_zeros of anything but a vector", "index the array")
    used = [k for k, x in enumerate(xp.unboxed(filt, "trim_zeros").tolist()) if x != 0]
    if not used:
        return filt[:0]
    trim = trim.lower()
    return filt[used[0] if "f" in trim else 0 : used[-1] + 1 if "b" in trim else filt.size]


def resize(xp: Namespace, a: Value, new_shape: Any) -> Value:
    """Return an array of a new shape, which repeats the entries of a."""
    a, shape = flat(xp, a), xp.zeros(new_shape).shape
    if not a.size:
        return xp.zeros(shape, dtype=a.dtype)
    places = xp.reshape(xp.remainder(xp.arange(xp.zeros(shape).size), a.size), shape)
    return a[places]


def bincount(xp: Namespace, x: Value, /, weights: Value = None, minlength: int = 0) -> Value:
    """Return the sums of the weights by number."""
    if weights is None:
        return xp.plain.bincount(xp.unboxed(x, "bincount"), minlength=minlength)
    at = as_array(xp, xp.constant(x))
    count = max(minlength, int(xp.max(at)) + 1 if at.size else 0)
    return xp.scatter(xp.astype(as_array(xp, weights), xp.float64), Rows(at, count))
