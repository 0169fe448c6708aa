"""The linear system of one problem of few unknowns: its inverse solves it and answers the checks."""

from __future__ import annotations

from dataclasses import replace

from dil._base.arrays import array_namespace, device, eps
from dil._base.operator import Operator, matrix_operator
from dil._base.small_inverse import KnownInverse
from dil._base.typing import Array
from dil._diagnostics.stationarity import gives_step, least_step
from dil._frameworks.protocol import Backend
from dil._layers.repeated import has_inverse
from dil.linear._direct import MOST_INVERTED, dense, times_inverse
from dil.linear._solver import LinearSolver


def matrix_of_few(A: Operator, b: Array, linear_solver: LinearSolver, backend: Backend) -> Array | None:
    """Return the matrix A, (n, n), of one problem of few unknowns; None if `linear_solver` would make none.

    None, too, if no number can be read.
    """
    few = b.ndim == 1 and 0 < b.shape[0] <= MOST_INVERTED and isinstance(backend.loops.number(b[0]), float)
    return dense(A, b, backend) if few and has_inverse(linear_solver, A, b, backend) else None


def with_inverse(A: Operator, matrix: Array, inverse: KnownInverse | None) -> Operator:
    """Return A with its matrix, whose products need no graph, and its inverse."""
    known = matrix_operator(matrix, symmetric=A.symmetric)
    return replace(A, matvec=known.matvec, rmatvec=known.rmatvec, matrix=matrix, _inverse=inverse)


def checked_solution(
    inverse: KnownInverse, A: Operator, b: Array, Fu: Array, u: Array, start: Array | None, backend: Backend
) -> Array | None:
    """Return g with A g = b where the inverse answers every check, and None where a check needs a closer look.

    Four things hold at once. A, which is J or J^T, is far from singular. It is positive definite if it is symmetric. g
    has a residual at the level of rounding. And the Newton step J^-1 F is short beside the scale of u (see `scale_of`),
    so u is a solution.
    """
    numbers, machine_eps = backend.loops.numbers, eps(array_namespace(b), b.dtype)
    g, scale = times_inverse(inverse, b, backend), numbers(u)
    if g is None:
        return None
    scale = scale_in_numbers(scale, None if start is None else numbers(start), machine_eps)
    if not inverse.step_is_short(numbers(Fu), scale, least_step(b), transposed=not gives_step(A)):
        return None
    return backend.asarray(g[0], dtype=b.dtype, device=device(b))


def scale_in_numbers(u: list[float], start: list[float] | None, machine_eps: float) -> list[float]:
    """Return `scale_of` in Python numbers."""
    if start is None:
        return [abs(x) for x in u]
    way = machine_eps ** (1 / 3)
    return [max(abs(x), way * abs(x - y)) for x, y in zip(u, start, strict=True)]
