"""Coinciding eigenvalues or singular values: which derivatives exist, and the error for those that do not.

Let w_i = w_j. Their eigenvectors may be any orthonormal basis of a plane, so a function of them has a derivative only
if it treats all of these bases alike. The quotient (m_ij - conj(m_ji)) / (w_j - w_i) of a rule is then 0 / 0, where
m = V^H c and c is the cotangent of V. The cotangent shows what the function is:

* Its part that rotates the plane, m_ij - conj(m_ji), is zero, and the two cotangents of w are equal, for a function
  of the sum of the two eigenvalues and of the projector onto the plane. The rule takes 0 for the quotient.
* The rotating part is not zero for a function that tells one eigenvector from the other.
* The cotangents of w differ for the smaller eigenvalue alone, and for a matrix function V g(w) V^H: its derivative
  exists, but it needs g'(w), which the cotangents do not contain.
* If m_ij is not zero and m_ii = m_jj, or m_ij is zero and m_ii and m_jj differ, the basis in hand is a special one: a
  matrix function or a single entry of a vector may look like a projector in it.

All but the first raise an error. Sizes are compared with the rounding of the decomposition: `noise` times the largest
eigenvalue, or times the largest cotangent.
"""

from __future__ import annotations

import math
from typing import NoReturn

from array_api_compat import device as device_of

from dil._base.errors import UnsupportedFunctionError
from dil._base.typing import Namespace
from dil_backends._tape.rules.conjugates import adjoint, hermitian_part, real, skew_part
from dil_backends._tape.rules.matrices import column, identity, on_diagonal, row
from dil_backends._tape.rules.rule import Value

UNDEFINED = (
    "{} has no derivative here: {}. A function has one where it treats all vectors of a cluster alike, such as a sum "
    "over its values or the projector onto its vectors; or give the layer its derivatives with derivatives=, or cut "
    "the array with dil's `constant`"
)

COINCIDE = "{} coincide to rounding, and the function tells their values or vectors apart"
COINCIDE_AGAIN = "{} coincide to rounding, and the derivative of this derivative depends on how they part"
PHASE = "the function depends on the phases of the vectors, which are arbitrary"


def refuse_derivative(name: str, reason: str) -> NoReturn:
    """Raise the error for a derivative that does not exist."""
    raise UnsupportedFunctionError(UNDEFINED.format(name, reason))


def noise(xp: Namespace, w: Value) -> float:
    """Return the rounding of a decomposition with values w, relative to the largest of them."""
    return float(64.0 * math.sqrt(w.shape[-1]) * xp.finfo(w.dtype).eps)


def largest(xp: Namespace, x: Value) -> Value:
    """Return the largest modulus in each matrix: (..., m, n) -> (..., 1, 1). It is 0 for an empty matrix."""
    if 0 in x.shape[-2:]:
        return xp.zeros((*x.shape[:-2], 1, 1), dtype=real(xp, x).dtype, device=device_of(x))
    return xp.max(xp.abs(x), axis=(-2, -1), keepdims=True)


def alike(xp: Namespace, difference: Value, cw: Value, scale: Value, noise: float, rounding: Value) -> Value:
    """Return whether the cotangents cw of two values differ by rounding alone.

    `rounding` is that of their products with the scale of the values. A matrix of zeros has no scale.
    """
    of_zeros = difference <= noise * largest(xp, row(xp, cw))
    return xp.where(scale > 0.0, scale * difference <= rounding, of_zeros)


class Pairs:
    """The pairs of values of one decomposition, and which of them have a gap that is rounding.

    gap: (..., n, n), the divisor of each pair. sign is -1 if the gap is the sum of two singular values: a singular
    value s and its negative are both eigenvalues of [[0, A], [A^H, 0]].
    """

    def __init__(self, xp: Namespace, name: str, values: str, w: Value, sign: float = 1.0) -> None:
        self.xp = xp
        self.name = name
        self.values = values
        self.sign = sign
        self.gap = row(xp, w) - sign * column(xp, w)
        self.w = xp.constant(w)
        self.noise = noise(xp, self.w)
        self.scale = largest(xp, row(xp, self.w))
        self.diagonal = identity(xp, self.w.shape[-1], self.w) > 0.5
        self.tied = xp.abs(xp.constant(self.gap)) <= self.noise * self.scale

    def coincide(self) -> bool:
        """Return whether any two values coincide."""
        pairs = self.tied & ~self.diagonal if self.sign > 0.0 else self.tied
        return bool(self.xp.any(pairs))

    def quotient(self, skew: Value, m: Value, cw: Value, y: tuple[Value, ...]) -> Value:
        """Return skew / gap, and 0 for the pairs whose vectors the function does not tell apart.

        skew: the part of the cotangent that rotates the pair; m: the whole cotangent; cw: that of the values; y: the
        results of the decomposition.
        Raises UnsupportedFunctionError where the quotient is 0 / 0 and the cotangents do not show its limit.
        """
        xp = self.xp
        drop = self.without_effect(*map(xp.constant, (skew, m, cw)))
        if xp.boxed((m, cw)) and self.coincide():
            if self.sign < 0.0:
                refuse_derivative(self.name, COINCIDE_AGAIN.format(self.values))
            Response(self, y).check_vectors(m)
        return xp.where(drop, 0.0, skew / xp.where(drop, 1.0, self.gap))

    def without_effect(self, skew: Value, m: Value, cw: Value) -> Value:
        """Return the pairs whose quotient is taken as 0. All arguments are raw arrays."""
        xp = self.xp
        rounding = self.noise * (largest(xp, m) + self.scale * largest(xp, row(xp, cw)))
        still = xp.abs(skew) <= rounding
        even = alike(xp, xp.abs(row(xp, cw) - self.sign * column(xp, cw)), cw, self.scale, self.noise, rounding)
        shown = still & even & (self.diagonal | self.unambiguous(m, rounding))
        if self.sign > 0.0 and bool(xp.any(self.diagonal & ~still)):
            refuse_derivative(self.name, PHASE)
        if bool(xp.any(self.tied & ~shown)):
            refuse_derivative(self.name, COINCIDE.format(self.values))
        near = xp.abs(xp.constant(self.gap)) <= math.sqrt(xp.finfo(self.w.dtype).eps) * self.scale
        return self.tied | (near & shown)

    def unambiguous(self, m: Value, rounding: Value) -> Value:
        """Return whether the basis of a pair shows what the function is, as explained at the top of this file."""
        xp = self.xp
        entries = real(xp, xp.linalg.diagonal(m))
        coupled = xp.abs(hermitian_part(xp, m)) > rounding
        unequal = xp.abs(row(xp, entries) - column(xp, entries)) > rounding
        return xp.logical_not(xp.logical_xor(coupled, unequal))

    def spread(self, cw: Value, y: tuple[Value, ...], x: Value, left: Value, right: Value) -> Value:
        """Return diag(cw), with the derivative of a function of the whole cluster where values coincide.

        left and right: the vectors, left^H x right = diag(w). As A moves, a cluster of equal values w becomes a
        Hermitian block, and cw = h(w) the block h'(w) (block of left^H dA right) + ..., which no vector of numbers
        cw_i holds. `response` measures h'(w), or raises.
        """
        xp = self.xp
        if not self.coincide() or not xp.boxed(cw):
            return on_diagonal(xp, cw)
        response = Response(self, y)
        slope = response.slope(cw)
        left, right = map(xp.constant, (left, right))
        block = hermitian_part(xp, adjoint(xp, left) @ x @ right) * response.tied
        moved = block - xp.constant(block)  # zero, but its derivative is not
        traceless = moved - on_diagonal(xp, response.mean(real(xp, xp.linalg.diagonal(moved))))
        return on_diagonal(xp, response.mean(cw)) + slope * traceless


class Response:
    """How the cotangents of a decomposition depend on its values and on everything else, inside of each cluster.

    A derivative of the pullback sees how a cluster parts. It exists if the cotangents treat the cluster alike not only
    at this point. Let v be any numbers with mean zero in each cluster. Then the derivative of sum v_i cw_i must be
    zero, except that by w, which must be h'(w) v. The same must hold for m. Generic v stand for all of them.
    """

    def __init__(self, pairs: Pairs, y: tuple[Value, ...]) -> None:
        xp, w = pairs.xp, pairs.w
        self.xp = xp
        self.pairs = pairs
        self.y = y
        self.tied = xp.astype(pairs.tied, w.dtype)
        self.apart = xp.astype(pairs.tied & ~pairs.diagonal, w.dtype)
        random = xp.broadcast_to(
            xp.cos(1.0 + 2.3 * xp.arange(w.shape[-1], dtype=w.dtype, device=device_of(w))), w.shape
        )
        self.random = random
        self.v = random - self.mean(random)

    def mean(self, v: Value) -> Value:
        """Return the mean over the cluster of each number."""
        xp = self.xp
        return xp.squeeze(self.tied @ column(xp, v), axis=-1) / xp.sum(self.tied, axis=-1)

    def slope(self, cw: Value) -> Value:
        """Return h'(w) for each value as (..., n, 1). Raises UnsupportedFunctionError if there is none."""
        xp, v = self.xp, self.v
        by_w, *others = self.by(cw, v)
        reference, *sizes = self.by(cw, self.random)
        if by_w is None:
            by_w = reference = xp.zeros_like(v)
        single = xp.abs(v) == 0.0
        ratio = self.mean(xp.where(single, 0.0, by_w / xp.where(single, 1.0, v)))
        if self.differ([by_w - ratio * v, *others], [reference, *sizes]):
            self.refuse()
        return column(xp, ratio)

    def check_vectors(self, m: Value) -> None:
        """Raise UnsupportedFunctionError unless m treats the vectors of each cluster alike."""
        xp, v = self.xp, self.v
        random = xp.sin(column(xp, 3.0 + v) * row(xp, 1.0 - v) + column(xp, v)) * self.tied
        random = random + 0.0 * xp.constant(m)
        reference = self.by(m, random)
        if self.differ(self.by(m, self.apart * skew_part(xp, random)), reference):
            self.refuse()
        coupled = self.differ(self.by(m, self.apart * hermitian_part(xp, random)), reference)
        unequal = self.differ(self.by(m, on_diagonal(xp, v) + 0.0 * random), reference)
        if coupled != unequal:
            self.refuse()

    def by(self, x: Value, c: Value) -> list[Value]:
        found = self.xp.influence(x, c, self.y)
        if found is None:
            self.refuse()
        return list(found)

    def differ(self, found: list[Value], reference: list[Value]) -> bool:
        """Return whether any derivative is more than the rounding of the derivatives of reference."""
        xp = self.xp
        return any(
            bool(xp.max(xp.abs(g)) > 100.0 * self.pairs.noise * xp.max(xp.abs(size)))
            for g, size in zip(found, reference, strict=True)
            if g is not None and g.size
        )

    def refuse(self) -> NoReturn:
        refuse_derivative(self.pairs.name, COINCIDE_AGAIN.format(self.pairs.values))


def check_complement(xp: Namespace, name: str, basis: Value, c: Value, y: tuple[Value, ...]) -> None:
    """Raise unless a function treats all orthonormal bases of a space alike. c is the cotangent of the basis.

    The basis is (..., m, k). For k = 1 it is unique up to its sign.
    """
    m = adjoint(xp, basis) @ c
    pairs = Pairs(xp, name, "the vectors of a complement", xp.zeros_like(real(xp, xp.linalg.diagonal(m))))
    pairs.quotient(skew_part(xp, m), m, xp.zeros_like(pairs.w), y)
