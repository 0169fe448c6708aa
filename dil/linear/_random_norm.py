"""A second look at a solve that stagnated, with a better bound of the norm of the matrix."""

from __future__ import annotations

from dil._base.arrays import array_namespace, eps, full, norm
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Matvec
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import standard_normal
from dil.linear._backward_error import is_rounding


def with_rounding(found: Solution, A: Matvec, b: Array, backend: Backend) -> Solution:
    """Return the solution of A x = b with CONVERGED for STAGNATED where the residual is rounding.

    A good preconditioner needs few products, along smooth vectors, and they say little of the norm of A. One product
    with a random vector says more. It is made only where a problem stagnated.
    """
    xp, status = array_namespace(b), found.status
    assert status is not None
    assert found.residual is not None
    stagnated, residual = status == int(Status.STAGNATED), found.residual

    def look(status: Array) -> Array:
        z = standard_normal(backend, b, 1, 0)[0, ...]
        norm_A, norm_x, norm_b = (norm(A(z)) / norm(z))[..., 0], norm(found.value)[..., 0], norm(b)[..., 0]
        rounded = is_rounding(residual * norm_b, norm_A, norm_x, norm_b, eps(xp, b.dtype))
        return xp.where(stagnated & rounded, full(status, int(Status.CONVERGED)), status)  # type: ignore[no-any-return]

    return found._replace(status=backend.loops.run_if(xp.any(stagnated), look, status))
