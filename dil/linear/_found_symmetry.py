"""Symmetry that products show."""

from __future__ import annotations

from dataclasses import replace

from dil._base.arrays import array_namespace, dot, eps, full, norm
from dil._base.operator import Operator
from dil._base.rows import Rows
from dil._base.typing import Array
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import standard_normal
from dil.linear._kept_by_source import KeptBySource

PRODUCTS = 2
"""The products that a look takes: one with A, and one with its transpose."""
SAME = 256
"""The difference of both products, in units of the rounding of the larger one, that a sum in another order may make."""
SHARE = 1 / 4
"""The largest such difference as a share of the tolerance of a solve, eps ** 0.75."""


KNOWN_SYMMETRIC = KeptBySource[bool]()
"""The functions whose dF/du was symmetric, for the number of unknowns. A solve looks again, before its first step."""


def signs(A: Operator, b: Array, backend: Backend) -> Array:
    """Return 1 or -1 where A is symmetric to rounding, and 0 where it is not, (*batch, 1); b: (*batch, n).

    A v and A^T v are compared for a random v. They differ for a matrix that is not symmetric, but for a set of v of
    measure zero. The sign is that of <v, A v>: a matrix whose eigenvalues are all negative has the sign -1.
    """
    xp, machine = array_namespace(b), eps(array_namespace(b), b.dtype)
    v = standard_normal(backend, b, 1, 4)[0, ...]
    Av, ATv = A(v), A.T(v)
    allowed = min(SAME * machine, SHARE * machine**0.75)
    size = norm(Av)
    symmetric = norm(Av - ATv) <= allowed * size  # False for NaN
    sign = xp.where(dot(v, Av) < 0, full(size, -1.0), full(size, 1.0))
    return xp.where(symmetric, sign, full(size, 0.0))  # type: ignore[no-any-return]


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
        matrix=None if A.matrix is None else sign[..., None] * A.matrix,
        _pull=None,
        _inverse=None,
        _rows=None if rows is None else part,
    )
