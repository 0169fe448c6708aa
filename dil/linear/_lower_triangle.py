"""The small triangle of IDR(s): the components of s images along s shadow vectors, image after image.

An image has no components along the shadow vectors before its own. So a few sums make other vectors orthogonal to the
first shadow vectors: those of a forward substitution.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from dil._base.arrays import array_namespace, device, eye, factor_dtype
from dil._base.scalars import Scalar, Scalars, divided
from dil._base.typing import Array

Components: TypeAlias = Any
"""The components of a vector along the shadow vectors: a tuple of s numbers, or an array (*batch, s)."""


class NumberTriangle(NamedTuple):
    """The triangle in Python numbers."""

    columns: tuple[tuple[Scalar, ...], ...]
    """The components of each image."""

    def eliminated(self, h: Components, count: int) -> tuple[Components, Components]:
        """Return a, where the components of h minus those of a times the images are zero for j < count, and the rest.

        a is zero for the other images.
        """
        a, rest = [0.0] * len(h), list(h)
        for j in range(count):
            a[j] = divided(rest[j], self.columns[j][j])
            rest[j] = 0.0
            for i in range(j + 1, len(h)):
                rest[i] = rest[i] - a[j] * self.columns[j][i]
        return tuple(a), tuple(rest)

    def with_image(self, k: int, h: Components, accepted: bool) -> NumberTriangle:
        """Return the triangle with another image k, if it is accepted."""
        if not accepted:
            return self
        return NumberTriangle((*self.columns[:k], h, *self.columns[k + 1 :]))


class ArrayTriangle(NamedTuple):
    """The triangles of a batch, or of a trace."""

    L: Array
    """(*batch, s, s); an image is a column."""

    def eliminated(self, h: Components, count: Any) -> tuple[Components, Components]:
        """Return the same as for numbers."""
        xp, dtype = array_namespace(h), factor_dtype(h)
        before = xp.arange(h.shape[-1], device=device(h)) < count
        known = xp.astype(xp.where(before, h, 0.0 * h), dtype)[..., None]
        a = xp.astype(xp.linalg.solve(xp.astype(self.L, dtype), known)[..., 0], h.dtype)
        a = xp.where(before, a, 0.0 * a)
        return a, xp.where(before, 0.0 * h, h - xp.matmul(self.L, a[..., None])[..., 0])

    def with_image(self, k: Any, h: Components, accepted: Scalar) -> ArrayTriangle:
        """Return the triangle with another image k for the problems that accept it."""
        xp = array_namespace(h)
        place = (xp.arange(h.shape[-1], device=device(h)) == k) & (accepted[..., None] if accepted.ndim else accepted)
        return ArrayTriangle(xp.where(place, h[..., None], self.L))


Triangle: TypeAlias = NumberTriangle | ArrayTriangle


def first_triangle(h: Components, like: Array) -> Triangle:
    """Return the identity, for components like h, beside vectors like `like`, (*batch, n)."""
    if isinstance(h, tuple):
        return NumberTriangle(tuple(tuple(float(i == j) for i in range(len(h))) for j in range(len(h))))
    return ArrayTriangle(eye(h.shape[-1], like) + 0.0 * like[..., :1, None])


def components(scalars: Scalars, a: Array, P: Array, like: Components | None = None) -> Components:
    """Return the components <a, p> of a, (*batch, n), along the rows p of P, (s, n), in the form of others."""
    found = a @ P.mT
    numbers = scalars.numbers(found) if scalars.single else found
    if not isinstance(numbers if like is None else like, list | tuple):
        return found
    return tuple(numbers[j] for j in range(P.shape[0]))  # arrays of shape () where they carry a gradient


def entry(scalars: Scalars, h: Components, k: Any) -> Scalar:
    """Return the component k as a scalar, or any number if there is none."""
    if isinstance(h, tuple):
        return h[min(k, len(h) - 1)]
    xp = array_namespace(h)
    return scalars.read(xp.sum(xp.where(xp.arange(h.shape[-1], device=device(h)) == k, h, 0.0 * h), axis=-1))


def moved(f: Components, h: Components, length: Scalar, k: Any) -> Components:
    """Return f - length h, and zero for the components up to k."""
    if isinstance(f, tuple):
        return tuple(0.0 if j <= k else x - length * y for j, (x, y) in enumerate(zip(f, h, strict=True)))
    xp = array_namespace(f)
    return xp.where(xp.arange(f.shape[-1], device=device(f)) <= k, 0.0 * f, f - length * h)


def combined(c: Components, V: Array) -> Array:
    """Return the sum of the first rows of V, (*batch, s + 1, n), each times its entry of c."""
    xp = array_namespace(V)
    if isinstance(c, tuple) and not all(isinstance(x, float) for x in c):  # they carry a gradient
        return xp.sum(xp.stack([x * V[j, :] for j, x in enumerate(c)]), axis=0)  # type: ignore[no-any-return]
    if isinstance(c, tuple):
        return xp.asarray(c, dtype=V.dtype, device=device(V)) @ V[: len(c), :]  # type: ignore[no-any-return]
    c = xp.concat([c, 0.0 * c[..., :1]], axis=-1)  # a row that is cut off would be copied in a compiled loop
    return c @ V if c.ndim == 1 else xp.matmul(c[..., None, :], V)[..., 0, :]  # type: ignore[no-any-return]
