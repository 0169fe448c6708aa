"""Rules of the Fourier transforms.

The adjoint of a transform is the inverse one, without its factor 1/n. The factor goes with `norm`: "backward" and
"forward" change places, and "ortho" keeps its own. An array that is padded to n is cut in the adjoint, and one that is
cut is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from array_api_compat import device as device_of

from dil._base.typing import DType, Namespace
from dil_backends._tape.rules.axes import along
from dil_backends._tape.rules.rule import Formula, Value

OPPOSITE = {None: "forward", "backward": "forward", "forward": "backward", "ortho": "ortho"}
"""norm= of a transform -> that of its adjoint. NumPy takes None for "backward"."""

Axes = Sequence[int] | None


def resized(xp: Namespace, g: Value, n: int, axis: int) -> Value:
    """Return g with n entries along an axis: cut, or padded with zeros. This is the transpose of the same."""
    have = g.shape[axis]
    if n <= have:
        return g if n == have else g[along(axis, g.ndim, slice(0, n))]
    shape = list(g.shape)
    shape[axis] = n - have
    return xp.concat([g, xp.zeros(tuple(shape), dtype=g.dtype, device=device_of(g))], axis=axis)


def multiplicity(xp: Namespace, y: Value, n: int, axis: int, dtype: DType) -> Value:
    """Return how often each of the n//2 + 1 entries of half a spectrum occurs in the whole spectrum of n entries.

    All occur twice, except the first, and the last of an even n.
    """
    k = xp.arange(n // 2 + 1, device=device_of(y))
    twice = xp.astype((k > 0) & (2 * k < n), dtype)
    return xp.reshape(1.0 + twice, (-1, *(1,) * (y.ndim - 1 - axis % y.ndim)))


def fft(
    xp: Namespace, c: Value, y: Value, x: Value, n: int | None = None, axis: int = -1, norm: str | None = None
) -> Value:
    return resized(xp, xp.fft.ifft(c, axis=axis, norm=OPPOSITE[norm]), x.shape[axis], axis)


def ifft(
    xp: Namespace, c: Value, y: Value, x: Value, n: int | None = None, axis: int = -1, norm: str | None = None
) -> Value:
    return resized(xp, xp.fft.fft(c, axis=axis, norm=OPPOSITE[norm]), x.shape[axis], axis)


def rfft(
    xp: Namespace, c: Value, y: Value, x: Value, n: int | None = None, axis: int = -1, norm: str | None = None
) -> Value:
    """Return the real part of the adjoint of `fft`. `irfft` counts most entries twice, which the adjoint does not."""
    n = n or x.shape[axis]
    once = c / multiplicity(xp, y, n, axis, x.dtype)
    return resized(xp, xp.fft.irfft(once, n=n, axis=axis, norm=OPPOSITE[norm]), x.shape[axis], axis)


def irfft(
    xp: Namespace, c: Value, y: Value, x: Value, n: int | None = None, axis: int = -1, norm: str | None = None
) -> Value:
    half = xp.fft.rfft(c, axis=axis, norm=OPPOSITE[norm]) * multiplicity(xp, y, y.shape[axis], axis, y.dtype)
    return resized(xp, half, x.shape[axis], axis)


def axes_of_transform(x: Value, s: Axes, axes: Axes) -> tuple[int, ...]:
    """Return the axes of a transform over several axes: all, or as many of the last ones as s has lengths."""
    if axes is not None:
        return tuple(axes)
    return tuple(range(-x.ndim if s is None else -len(s), 0))


def inverse_over(name: str) -> Formula:
    """Return the formula of a transform over several axes, by the inverse transform `name`."""

    def formula(
        xp: Namespace, c: Value, y: Value, x: Value, s: Axes = None, axes: Axes = None, norm: str | None = None
    ) -> Value:
        over = axes_of_transform(x, s, axes)
        g = getattr(xp.fft, name)(c, axes=over, norm=OPPOSITE[norm])
        for axis in over:
            g = resized(xp, g, x.shape[axis], axis)
        return g

    return formula


TRANSFORMS: dict[str, Formula] = {
    "fft.fft": fft,
    "fft.ifft": ifft,
    "fft.fftn": inverse_over("ifftn"),
    "fft.ifftn": inverse_over("fftn"),
    "fft.rfft": rfft,
    "fft.irfft": irfft,
    "fft.fftshift": lambda xp, c, y, x, axes=None: xp.fft.ifftshift(c, axes=axes),
    "fft.ifftshift": lambda xp, c, y, x, axes=None: xp.fft.fftshift(c, axes=axes),
}


def hfft(xp: Namespace, x: Value, n: int | None = None, axis: int = -1, norm: str | None = None) -> Value:
    return xp.fft.irfft(xp.conj(x), n=n, axis=axis, norm=OPPOSITE[norm])


def ihfft(xp: Namespace, x: Value, n: int | None = None, axis: int = -1, norm: str | None = None) -> Value:
    return xp.conj(xp.fft.rfft(x, n=n, axis=axis, norm=OPPOSITE[norm]))


def rfftn(xp: Namespace, x: Value, s: Axes = None, axes: Axes = None, norm: str | None = None) -> Value:
    """Return the half of the last axis, and then the transform over the others."""
    *others, last = axes_of_transform(x, s, axes)
    *lengths, n = (None,) if s is None else s
    half = xp.fft.rfft(x, n=n, axis=last, norm=norm)
    return xp.fft.fftn(half, s=lengths or None, axes=others, norm=norm) if others else half


def irfftn(xp: Namespace, x: Value, s: Axes = None, axes: Axes = None, norm: str | None = None) -> Value:
    *others, last = axes_of_transform(x, s, axes)
    *lengths, n = (None,) if s is None else s
    inner = xp.fft.ifftn(x, s=lengths or None, axes=others, norm=norm) if others else x
    return xp.fft.irfft(inner, n=n, axis=last, norm=norm)


def over_two_axes(name: str) -> Any:
    """Return NumPy's transform over the last two axes, in terms of that over any."""

    def transform(xp: Namespace, x: Value, s: Axes = None, axes: Axes = (-2, -1), norm: str | None = None) -> Value:
        return getattr(xp.fft, f"{name}n")(x, s=s, axes=axes, norm=norm)

    return transform


COMPOSED_TRANSFORMS: dict[str, Any] = {
    "fft.hfft": hfft,
    "fft.ihfft": ihfft,
    "fft.rfftn": rfftn,
    "fft.irfftn": irfftn,
    **{f"fft.{name}2": over_two_axes(name) for name in ("fft", "ifft", "rfft", "irfft")},
}


def along_one(name: str) -> Any:
    """Return a raw transform that takes NumPy's positions and None too; that of array_api_compat does not."""

    def transform(raw: Namespace, x: Value, n: int | None = None, axis: int = -1, norm: str | None = None) -> Value:
        return getattr(raw, name)(x, n=n, axis=axis, norm=norm or "backward")

    return transform


def along_several(name: str) -> Any:
    def transform(raw: Namespace, x: Value, s: Axes = None, axes: Axes = None, norm: str | None = None) -> Value:
        over = axes_of_transform(x, s, axes)  # NumPy wants axes= wherever s= is given
        return getattr(raw, name)(x, s=s, axes=over, norm=norm or "backward")

    return transform


RAW_TRANSFORMS: dict[str, Any] = {
    **{f"fft.{name}": along_one(name) for name in ("fft", "ifft", "rfft", "irfft")},
    **{f"fft.{name}": along_several(name) for name in ("fftn", "ifftn")},
}
