"""Collocation: a polynomial whose slopes at some nodes of a step are those of the equation. All follows from the nodes.

The stages z_i = y + h sum_j a_ij f(t + c_j h, z_j) are coupled. They are one unknown, (*batch, s n), and their equation
is sum_j b_ij (z_j - y) = h f(t + c_i h, z_i), where b is the inverse of a (Hairer and Wanner 1996, IV.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from dil._base.arrays import array_namespace, device, full
from dil._base.typing import Array, Arrays, Tree
from dil.ode._field import Field

Matrix = tuple[tuple[float, ...], ...]


def lagrange(nodes: Sequence[float], x: float) -> tuple[float, ...]:
    """Return the values at x of the polynomials that are one at a node and zero at the others."""
    return tuple(prod((x - b) / (a - b) for b in nodes if b != a) for a in nodes)


def integrals(nodes: Sequence[float], x: float) -> tuple[float, ...]:
    """Return the integrals from 0 to x of those polynomials. They are at most cubic: Simpson's rule is exact."""
    values = (lagrange(nodes, s) for s in (0.0, 0.5 * x, x))
    return tuple(x / 6.0 * (a + 4.0 * b + c) for a, b, c in zip(*values, strict=True))


def _coefficients(factors: Sequence[tuple[float, float]]) -> list[float]:
    """Return the coefficients of the product of the factors a + b x, from their pairs."""
    found = [1.0]
    for value, slope in factors:
        found = [value * a + slope * b for a, b in zip((*found, 0.0), (0.0, *found), strict=True)]
    return found


def _times(a: Matrix, b: Matrix) -> Matrix:
    columns = tuple(zip(*b, strict=True))
    return tuple(tuple(sum(x * y for x, y in zip(row, column, strict=True)) for column in columns) for row in a)


def constant(matrix: Sequence[Sequence[float]], like: Array) -> Array:
    """Return a matrix of numbers as an array beside another one."""
    return array_namespace(like).asarray(matrix, dtype=like.dtype, device=device(like))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Collocation:
    """The method of three nodes c. The last one is 1, so the last stage is the new state."""

    nodes: tuple[float, ...]
    real: float
    """The real eigenvalue of b."""
    pair: complex
    """One of its two others."""

    @property
    def count(self) -> int:
        """The number of stages."""
        return len(self.nodes)

    @cached_property
    def matrix(self) -> Matrix:
        """The weights a of the slopes in the stages."""
        return tuple(integrals(self.nodes, c) for c in self.nodes)

    @cached_property
    def inverse(self) -> Matrix:
        """Its inverse b: the slopes at the nodes of the polynomials that are one at a node, and zero at the start."""
        every = (0.0, *self.nodes)

        def entry(x: float, a: float) -> float:
            others = [b for b in every if b != a]
            if x == a:
                return sum(1.0 / (a - b) for b in others)
            return prod(x - b for b in others if b != x) / prod(a - b for b in others)

        return tuple(tuple(entry(x, a) for a in self.nodes) for x in self.nodes)

    @cached_property
    def at_end(self) -> Matrix:
        """The Taylor coefficients, at the end of a step, of those polynomials: row k is that of the power k + 1."""
        every = (0.0, *self.nodes)
        columns = [_coefficients([((1.0 - b) / (a - b), 1.0 / (a - b)) for b in every if b != a]) for a in self.nodes]
        return tuple(zip(*columns, strict=True))[1:]

    @cached_property
    def projections(self) -> tuple[Matrix, Matrix, Matrix]:
        """The matrices P, Q, R with g(b) = g(real) P + Re g(pair) Q + Im g(pair) R for a function g of b."""
        b, real, pair = self.inverse, self.real, self.pair
        square = _times(b, b)
        identity = tuple(tuple(float(i == j) for j in range(3)) for i in range(3))

        def polynomial(first: complex, second: complex, scale: complex) -> tuple[tuple[complex, ...], ...]:
            """Return (b - first) (b - second) / scale."""
            return tuple(
                tuple((s - (first + second) * x + first * second * e) / scale for s, x, e in zip(*rows, strict=True))
                for rows in zip(square, b, identity, strict=True)
            )

        other = pair.conjugate()
        one = polynomial(pair, other, (real - pair) * (real - other))
        two = polynomial(real, other, (pair - real) * (pair - other))
        return (
            tuple(tuple(x.real for x in row) for row in one),
            tuple(tuple(2.0 * x.real for x in row) for row in two),
            tuple(tuple(-2.0 * x.imag for x in row) for row in two),
        )

    def tiled(self, y: Array) -> Array:
        """Return vectors, (*batch, n), as many times as there are stages, (*batch, s n)."""
        return array_namespace(y).concat([y] * self.count, axis=-1)  # type: ignore[no-any-return]

    def parts(self, z: Array) -> Array:
        """Return the stages, (*batch, s, n), of one vector, (*batch, s n)."""
        return array_namespace(z).reshape(z, (*z.shape[:-1], self.count, z.shape[-1] // self.count))  # type: ignore[no-any-return]

    def joined(self, parts: Array) -> Array:
        """Return one vector, (*batch, s n), of the stages, (*batch, s, n)."""
        *batch, count, n = parts.shape
        return array_namespace(parts).reshape(parts, (*batch, count * n))  # type: ignore[no-any-return]

    def weighted(self, z: Array, *, transposed: bool = False) -> Array:
        """Return sum_j b_ij z_j, (*batch, s, n)."""
        b = self.inverse if not transposed else tuple(zip(*self.inverse, strict=True))
        return constant(b, z) @ self.parts(z)

    def moved(self, z: Array, base: Array) -> Array:
        """Return sum_j b_ij (z_j - base), (*batch, s, n): h times the slopes at the nodes."""
        return constant(self.inverse, z) @ (self.parts(z) - base[..., None, :])

    def slopes(self, z: Array, base: Array, h: Array) -> list[Arrays]:
        """Return the slopes at the nodes. They are zero for a step of no length, which pads a grid."""
        found = self.moved(z, base) / array_namespace(h).where(h == 0, 1.0, h)
        return [(found[..., i, :],) for i in range(self.count)]

    def rates(self, field: Field, z: Array, t: Array, h: Array, args: tuple[Tree, ...]) -> Array:
        """Return f at the stages, (*batch, s, n)."""
        parts, xp = self.parts(z), array_namespace(z)
        return xp.stack(  # type: ignore[no-any-return]
            [field(t + c * h, parts[..., i, :], *args) for i, c in enumerate(self.nodes)], axis=-2
        )

    def residual(self, field: Field, z: Array, base: Array, t: Array, h: Array, *args: Tree) -> Array:
        """Return the residual of all stages, (*batch, s n), with the mass matrix of the field if it has one."""
        moved, slopes = self.moved(z, base), self.rates(field, z, t, h, args)
        if not field.mass_arrays:
            return self.joined(moved - h * slopes)
        return self.joined(field.mass(args).residual(moved, full(moved, 0.0), h, slopes))

    def image(self, field: Field, z: Array, base: Array, t: Array, h: Array, *args: Tree) -> Array:
        """Return base + h sum_j a_ij f_j, (*batch, s n), of which the stages are a fixed point."""
        slopes = constant(self.matrix, z) @ self.rates(field, z, t, h, args)
        return self.joined(base[..., None, :] + h * slopes)
