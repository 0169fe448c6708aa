"""The linear system of one problem of few unknowns: its inverse solves it and answers the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, eps, eye, full
from dil._base.operator import Operator, matrix_operator
from dil._base.small_inverse import KnownInverse, Numbers
from dil._base.typing import Array, Arrays
from dil._diagnostics.stationarity import least_step
from dil._frameworks.protocol import Backend, Pull
from dil._layers.repeated import factorises, has_inverse
from dil._problem.problem import Problem
from dil.linear._dense_cost import FEW_ROWS
from dil.linear._direct import MOST_INVERTED, dense, inverse_of_few, numbers_times_inverse
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


class FewPulled(NamedTuple):
    """What a pullback found without an operator."""

    matrix: Array | None = None
    """J^T, (n, n), if it was made."""
    cotangents: Arrays | None = None
    """Those of the arguments, if the solution passed every check."""


def pull_few(
    pull: Pull,
    v: Array,
    Fu: Array,
    y: tuple[Array, Array | None],
    places: Sequence[int],
    linear_solver: LinearSolver,
    problem: Problem,
) -> FewPulled:
    """Pull v back to the primals `places` of F(u, *floats), with J^T g = v solved in Python numbers; y = (u, start).

    This is what a pullback of one problem of few unknowns comes to where no derivative of it is recorded and no check
    needs a closer look. There the operator and the differentiable linear system cost more than the solve. Nothing is
    found for other problems.
    """
    backend, symmetric, n = problem.backend, problem.symmetric, v.shape[-1]
    if not (v.ndim == 1 and 0 < n <= FEW_ROWS and factorises(linear_solver)):
        return FewPulled()
    read = in_numbers(v, Fu, *y, backend)
    if read is None:  # a derivative is recorded, or there are no numbers yet
        return FewPulled()
    rest: Sequence[Array] = ()
    if n == 1:  # one pull gives all, for it is linear
        row, *rest = pull((full(v, 1.0),), (0, *places))
        matrix = row[None, :]
    else:
        matrix = backend.loops.map_rows(lambda p: pull((p,), (0,))[0], eye(n, v)).mT
    inverse = inverse_of_few(matrix, v, backend, symmetric=symmetric)
    g = None if inverse is None else checked_solution(inverse, read, v, step=symmetric)
    if g is None:
        return FewPulled(matrix)
    minus_g = [-x for x in g]
    if n == 1:
        return FewPulled(matrix, tuple([minus_g[0] * x for x in rest]))
    return FewPulled(matrix, pull((backend.asarray(minus_g, dtype=v.dtype, device=device(v)),), places))


class InNumbers(NamedTuple):
    """A linear system and the point, in Python numbers."""

    b: Numbers
    Fu: Numbers
    u: Numbers
    start: Numbers | None


def in_numbers(b: Array, Fu: Array, u: Array, start: Array | None, backend: Backend) -> InNumbers | None:
    """Return vectors in Python numbers, or None if they cannot be read, or a derivative of b or Fu is recorded."""
    numbers, constant = backend.loops.numbers, backend.constant
    read = numbers(b), numbers(Fu)
    if not all(isinstance(x, list) for x in read):
        return None
    return InNumbers(*read, numbers(constant(u)), None if start is None else numbers(constant(start)))


def checked_solution(inverse: KnownInverse, read: InNumbers, b: Array, *, step: bool) -> Numbers | None:
    """Return g with A g = b, (n,), where the inverse answers every check, and None where a check needs a closer look.

    Four things hold at once. A, which is J or J^T, is far from singular. It is positive definite if it is symmetric. g
    has a residual at the level of rounding. And the Newton step J^-1 F is short beside the scale of u (see `scale_of`),
    so u is a solution. `step` says whether A^-1 F is that step, as it is unless A is J^T and not symmetric.
    """
    g = numbers_times_inverse(inverse, read.b, b)
    if g is None:
        return None
    scale = scale_in_numbers(read.u, read.start, eps(array_namespace(b), b.dtype))
    if not inverse.step_is_short(read.Fu, scale, least_step(b), transposed=not step):
        return None
    return g[0]


def scale_in_numbers(u: list[float], start: list[float] | None, machine_eps: float) -> list[float]:
    """Return `scale_of` in Python numbers."""
    if start is None:
        return [abs(x) for x in u]
    way = machine_eps ** (1 / 3)
    return [max(abs(x), way * abs(x - y)) for x, y in zip(u, start, strict=True)]
