"""F and its Jacobian at an iterate, with the matrix where there are few unknowns."""

from __future__ import annotations

from dil._base.operator import Operator, matrix_operator
from dil._base.typing import Array
from dil._problem.jacobian import transposed_operator
from dil.linear._direct import dense
from dil.solvers._start import Start

MOST_UNKNOWNS = 8
"""The most unknowns for which the matrix is made."""


def linearised(started: Start, u: Array) -> tuple[Array, Operator]:
    """Return F, (*batch, n), and J at u. The rows of a matrix come from pullbacks, and its products need no graph."""
    problem, _, arrays = started
    (F,), pull = problem.backend.vjp(lambda w: (problem.residual(w, *arrays),), u)
    transposed = transposed_operator(problem, pull, u, arrays)
    if u.shape[-1] > MOST_UNKNOWNS:
        return F, transposed.T
    return F, matrix_operator(dense(transposed, u, problem.backend).mT, symmetric=problem.symmetric)
