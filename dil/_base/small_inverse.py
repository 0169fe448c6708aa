"""The inverse of one small matrix in Python numbers: one operation on a tiny array costs as much as many of them."""

from __future__ import annotations

import math
from operator import mul
from typing import NamedTuple, Protocol

SAFE = 1e60
"""Magnitudes between 1 / SAFE and SAFE have products that neither underflow nor overflow."""

Numbers = list[float]
Rows = list[Numbers]


def condition_limit(machine_eps: float) -> float:
    """Return the condition number from which on a dense matrix counts as singular."""
    return float(max(5e-5 / machine_eps, machine_eps ** (-2 / 3)))


def residual_slack(machine_eps: float, n: int) -> float:
    """Return the largest residual of a dense solve, relative to its terms, that rounding explains."""
    return 16 * machine_eps * math.sqrt(max(n, 1))


class KnownInverse(Protocol):
    """The inverse of a matrix A, and what it tells."""

    @property
    def condition(self) -> float:
        """The condition number of A with scaled rows and columns, in the maximum norm."""
        ...

    def solve(self, b: Numbers, machine_eps: float) -> tuple[Numbers, float] | None:
        """Return x with A x = b, refined once, and its residual relative to b in the scaled system.

        None if b is zero, not finite or of an extreme size, or if the residual is more than rounding explains.
        """
        ...

    def step_is_short(self, F: Numbers, scale: Numbers, rtol: float, *, transposed: bool) -> bool:
        """Return whether each entry of A^-1 F, or of A^-T F, is within rtol of its scale. NaN is not."""
        ...


class SmallInverse(NamedTuple):
    """A matrix A with its inverse, and the scales of the system diag(left) A diag(right)."""

    matrix: Rows
    inverse: Rows
    left: Numbers
    right: Numbers
    norm: float
    """That of the scaled matrix, like the condition number. Norms are maximum norms."""
    condition: float

    def solve(self, b: Numbers, machine_eps: float) -> tuple[Numbers, float] | None:
        """Return x with A x = b and its relative residual. See `KnownInverse`."""
        size = max([s * abs(v) for s, v in zip(self.left, b, strict=True)])
        if not (math.isfinite(sum(b)) and 1 / SAFE < size < SAFE):
            return None
        x, r = [0.0] * len(b), b
        for _ in range(2):
            x = [v + w for v, w in zip(x, product(self.inverse, r), strict=True)]
            r = [v - w for v, w in zip(b, product(self.matrix, x), strict=True)]
        residual = max([s * abs(v) for s, v in zip(self.left, r, strict=True)])
        length = max([abs(v) / s for v, s in zip(x, self.right, strict=True)])
        explained = residual_slack(machine_eps, len(b)) * (self.norm * length + size)
        return (x, residual / size) if residual <= explained else None

    def step_is_short(self, F: Numbers, scale: Numbers, rtol: float, *, transposed: bool) -> bool:
        """Return whether each entry of A^-1 F, or of A^-T F, is within rtol of its scale."""
        step = product(transpose(self.inverse) if transposed else self.inverse, F)
        return all(abs(s) <= rtol * size for s, size in zip(step, scale, strict=True))


def small_inverse(A: Rows, machine_eps: float, *, symmetric: bool) -> SmallInverse | None:
    """Return the inverse of A, or None if A needs a closer look.

    Such a matrix is badly conditioned, has entries that are extreme or not finite, or is symmetric and not positive
    definite. The elimination is that of Gauss and Jordan (Higham 2002, section 14.4). Its pivots are the largest
    entries of the columns, or those of the diagonal if A is symmetric.
    """
    entries = [abs(a) for row in A for a in row if a]
    if not entries or not math.isfinite(sum(entries)) or not 1 / SAFE < min(entries) <= max(entries) < SAFE:
        return None
    scales = _diagonal_scales(A) if symmetric else _scales(A)
    if scales is None:
        return None
    left, right = scales
    scaled = [[s * a * t for a, t in zip(row, right, strict=True)] for s, row in zip(left, A, strict=True)]
    found = _inverted(scaled, by_diagonal=symmetric)
    if found is None:
        return None
    norm = _norm(scaled)
    condition = norm * _norm(found)
    if not condition < condition_limit(machine_eps):
        return None
    inverse = [[s * a * t for a, t in zip(row, left, strict=True)] for s, row in zip(right, found, strict=True)]
    return SmallInverse(A, inverse, left, right, norm, condition)


def product(A: Rows, x: Numbers) -> Numbers:
    """Return A x."""
    return [sum(map(mul, row, x)) for row in A]


def transpose(A: Rows) -> Rows:
    """Return A^T."""
    return [list(column) for column in zip(*A, strict=True)]


def _scales(A: Rows) -> tuple[Numbers, Numbers] | None:
    """Return scales with which the largest entries of rows and columns are one; None for a row or column of zeros."""
    sizes = [max(map(abs, row)) for row in A]
    if not all(sizes):
        return None
    left = [1.0 / size for size in sizes]
    sizes = [max([s * abs(a) for s, a in zip(left, column, strict=True)]) for column in zip(*A, strict=True)]
    return (left, [1.0 / size for size in sizes]) if all(sizes) else None


def _diagonal_scales(A: Rows) -> tuple[Numbers, Numbers] | None:
    """Return the scales that make the diagonal one; None if an entry of it is not positive."""
    diagonal = [A[i][i] for i in range(len(A))]
    if not all(a > 0 for a in diagonal):
        return None
    scale = [a**-0.5 for a in diagonal]
    return scale, scale


def _inverted(A: Rows, *, by_diagonal: bool) -> Rows | None:
    """Return the inverse; None if a pivot is zero, or not positive on the diagonal of a symmetric matrix."""
    n = len(A)
    work = [[*row, *[1.0 if i == j else 0.0 for j in range(n)]] for i, row in enumerate(A)]
    for k in range(n):
        if not by_diagonal:
            best = max(range(k, n), key=lambda i: abs(work[i][k]))
            work[k], work[best] = work[best], work[k]
        pivot = work[k][k]
        if pivot == 0 or (by_diagonal and pivot < 0):
            return None
        row = work[k] = [a / pivot for a in work[k]]
        for i in range(n):
            factor = work[i][k]
            if i != k and factor:
                work[i] = [a - factor * p for a, p in zip(work[i], row, strict=True)]
    return [row[n:] for row in work]


def _norm(A: Rows) -> float:
    return max([sum(map(abs, row)) for row in A])
