"""The terms of the Riccati equation and of its recursion."""

from __future__ import annotations

from dil._base.arrays import shared_namespace
from dil._base.typing import Array


def symmetric(X: Array) -> Array:
    """Return the symmetric part of X, (..., n, n). A quadratic cost depends only on it."""
    return 0.5 * (X + X.mT)


def sandwich(A: Array, X: Array) -> Array:
    """Return A^T X A."""
    return A.mT @ X @ A


def feedback(S: Array, A: Array, B: Array, R: Array) -> Array:
    """Return K = (R + B^T S B)^-1 B^T S A, (*batch, m, n), for the cost to go S (Look et al. 2020, eq. 8)."""
    matrix, rhs = symmetric(R) + sandwich(B, S), B.mT @ S @ A
    return shared_namespace(matrix, rhs).linalg.solve(matrix, rhs)  # type: ignore[no-any-return]
