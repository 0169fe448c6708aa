"""Symmetry that products show, and the solution of a system by a solver for symmetric matrices where they do."""

from __future__ import annotations

from dataclasses import replace

from dil._base.arrays import array_namespace, device, dot, eps, full, norm
from dil._base.operator import Operator
from dil._base.rows import Rows
from dil._base.solution import Solution
from dil._base.typing import Array, Loop
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import standard_normal
from dil.linear._choice import ToldChoice
from dil.linear._choice_in_words import FIELDS, SYMMETRIC
from dil.linear._solver import LinearSolver

PRODUCTS = 2
"""The products that a look takes: one with A, and one with its transpose."""
SAME = 256
"""The difference of both products, in units of the rounding of the larger one, that a sum in another order may make."""
SHARE = 1 / 4
"""The largest such difference as a share of the tolerance of a solve, eps ** 0.75."""


def signs(A: Operator, b: Array, backend: Backend) -> Array:
    """Return 1 or -1 where A is symmetric to rounding, and 0 where it is not, (*batch, 1); b: (*batch, n).

    A v and A^T v are compared for a random v. They differ for a matrix that is not symmetric, but for a set of v of
    measure zero. The sign is that of <v, A v>: a matrix whose eigenvalues are all negative has the sign -1.
    """
    one, matrix = (b, A) if A.one is None else (b[0, ...], A.one)
    xp, machine = array_namespace(b), eps(array_namespace(b), b.dtype)
    v = standard_normal(backend, one, 1, 4)[0, ...]
    Av, ATv = matrix(v), matrix.T(v)
    allowed = min(SAME * machine, SHARE * machine**0.75)
    symmetric = norm(Av - ATv) <= allowed * norm(Av)  # False for NaN
    sign = xp.where(dot(v, Av) < 0, full(norm(v), -1.0), full(norm(v), 1.0))
    return xp.where(symmetric, sign, 0.0 * sign)  # type: ignore[no-any-return]


def times_sign(A: Operator, sign: Array) -> Operator:
    """Return the operator of sign A, which is symmetric; sign: (*batch, 1)."""
    rows = A._rows

    def part(some: Rows) -> Operator:
        assert rows is not None
        return times_sign(rows(some), some.take(sign))

    return replace(
        A,
        matvec=lambda p: sign * A(p),
        rmatvec=None,
        symmetric=True,
        one=None if A.one is None else times_sign(A.one, sign),
        matrix=None if A.matrix is None else sign[..., None] * A.matrix,
        _pull=None,
        _inverse=None,
        _rows=None if rows is None else part,
    )


def solved_by_symmetry(
    A: Operator, b: Array, symmetric: LinearSolver, general: LinearSolver, *, backend: Backend, loop: Loop
) -> Solution:
    """Solve A x = b by `symmetric` if A of all problems is symmetric, and by `general` if not; b: (*batch, n).

    Both solvers are members of `Auto`, whose choice is told with what the products showed. A matrix that is negative
    definite is solved as -A x = -b.
    """
    xp, batch = array_namespace(b), tuple(b.shape[:-1])
    sign = signs(A, b, backend)
    holds = xp.all(sign != 0)
    if A.rmatvec is not None:
        A.T  # noqa: B018  (the product with the transpose must not be made within a branch)
    zero, no = full(b, 0, shape=batch, dtype=xp.int32), full(b, False, shape=batch, dtype=xp.bool)
    table = full(b, 0, shape=(*batch, FIELDS), dtype=xp.int32)
    start = (full(b, 0.0), zero, zero, full(b, 1.0, shape=batch), zero, no, table)

    def by(solver: LinearSolver, A: Operator, b: Array) -> tuple[Array, ...]:
        found = solver(A, b, loop=loop)
        assert found.extra is not None
        products = found.extra["products"] + PRODUCTS
        indefinite = no & (products < 0)
        assert found.status is not None
        assert found.iterations is not None
        assert found.residual is not None
        return (found.value, found.status, found.iterations, found.residual, products, indefinite, _table(found))

    def by_symmetric(_: tuple[Array, ...]) -> tuple[Array, ...]:
        *rest, told = by(symmetric, times_sign(A, sign), sign * b)
        place = xp.arange(FIELDS, device=device(b)) == SYMMETRIC
        return (*rest, xp.where(place, told + PRODUCTS, told))

    found = backend.loops.run_if(holds, by_symmetric, start)
    found = backend.loops.run_if(~holds, lambda _: by(general, A, b), found)
    value, status, steps, residual, products, indefinite, told = found
    extra = {"products": products, "indefinite": indefinite, "choice": ToldChoice(told)}
    return Solution(value, status, steps, residual, extra)


def _table(found: Solution) -> Array:
    assert found.extra is not None
    numbers: Array = found.extra["choice"].numbers()
    return numbers
