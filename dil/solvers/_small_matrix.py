"""The matrix of a few unknowns, which is made once and serves all products at a point."""

from __future__ import annotations

from dil._base.operator import Operator, matrix_operator
from dil._base.typing import Array
from dil._frameworks.protocol import Backend
from dil.linear._direct import dense

MOST_UNKNOWNS = 8
"""The most unknowns for which the matrix is always made."""


def with_small_matrix(J: Operator, u: Array, backend: Backend) -> Operator:
    """Return the Jacobian J at u, (*batch, n), with its matrix if it has up to 8 unknowns.

    The rows come from pullbacks, and products with the matrix need no graph.
    """
    if u.shape[-1] > MOST_UNKNOWNS:
        return J
    return matrix_operator(dense(J.T, u, backend).mT, symmetric=J.symmetric)
