"""The linear system of one problem of few unknowns: its matrix, and its inverse in Python numbers."""

from __future__ import annotations

from dataclasses import replace

from dil._base.arrays import array_namespace, eps
from dil._base.operator import Operator, matrix_operator
from dil._base.small_inverse import small_inverse
from dil._base.typing import Array
from dil._frameworks.protocol import Backend
from dil._layers.repeated import has_inverse
from dil.linear._direct import dense
from dil.linear._solver import LinearSolver

MOST = 8
"""The most unknowns for which Python numbers are faster."""


def with_small_inverse(A: Operator, b: Array, linear_solver: LinearSolver, backend: Backend) -> Operator:
    """Return A with its matrix and its inverse; unchanged if `linear_solver` makes no matrix, or no number can be read.

    One inverse then serves the solve, its condition number and the Newton step, which shows whether u is a solution.
    """
    n, loops = b.shape[-1], backend.loops
    if b.ndim != 1 or not 0 < n <= MOST or not isinstance(loops.number(b[0]), float):
        return A
    if not has_inverse(linear_solver, A, b, backend):
        return A
    xp, matrix = array_namespace(b), dense(A, b, backend)
    entries = loops.numbers(xp.reshape(matrix, (-1,)))
    if not isinstance(entries, list):
        return A
    rows = [entries[i : i + n] for i in range(0, n * n, n)]
    inverse = small_inverse(rows, eps(xp, b.dtype), symmetric=A.symmetric)
    known = matrix_operator(matrix, symmetric=A.symmetric)
    return replace(A, matvec=known.matvec, rmatvec=known.rmatvec, matrix=matrix, _inverse=inverse)
