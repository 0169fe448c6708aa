"""Find the least-squares solution of least norm for a dense matrix, which may be singular."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from dil._base.arrays import array_namespace, eps, eye, factor_dtype, full, max_abs, nonzero_or_one, norm
from dil._base.operator import Operator
from dil._base.solution import Solution
from dil._base.status import Status, first_of
from dil._base.typing import Array, Loop
from dil.linear._direct import dense
from dil.linear._right_hand_side import backend_of_system
from dil.linear._tolerance import Tolerance, tolerance_of_call

ZERO_POWER, DOUBTFUL_POWER = 3 / 4, 2 / 3
"""A singular value counts as zero below eps ** ZERO_POWER of the largest, and perhaps below the second limit."""


@dataclass(frozen=True)
class LeastNorm:
    """Solve (A + damping I) x = b by the eigenvalues of A if A is symmetric, and by the singular values otherwise.

    x is the vector of least norm among those of least residual. The matrix costs n products
    with A. A singular value counts as zero below eps ** (3/4) of the largest, where rounding takes three quarters of
    the digits. It also counts as zero below eps ** (2/3), if b has only rounding along its vector.

    A problem ends CONVERGED if the residual is within rtol and b has only rounding along the vectors whose singular
    values count as zero. It ends SINGULAR otherwise.

    Source: Golub and Van Loan 2013, section 5.5.
    """

    damping: float = 0.0
    rtol: float | None = None

    def __call__(self, A: Operator, b: Array, /, *, loop: Loop, rtol: Tolerance = None) -> Solution:
        """Solve A x = b for b: (*batch, n); status: batch."""
        xp, dtype, machine_eps = array_namespace(b), factor_dtype(b), eps(array_namespace(b), b.dtype)
        backend = backend_of_system(b, "dil.linear.Auto")
        limit = tolerance_of_call(rtol, self.rtol, b, backend)
        limit = limit if b.ndim == 1 or isinstance(limit, Real) else limit[..., 0]
        identity = eye(b.shape[-1], b)
        matrix = xp.astype(dense(A, b, backend) + self.damping * identity, dtype)
        finite = xp.all(xp.isfinite(matrix), axis=(-2, -1)) & xp.all(xp.isfinite(b), axis=-1)
        matrix = xp.where(finite[..., None, None], matrix, xp.astype(identity, dtype))
        size = norm(xp.where(finite[..., None], b, full(b, 0.0)))
        unit_b = xp.astype(b / nonzero_or_one(size), dtype)
        U, values, Vt = _decompose(matrix, symmetric=A.symmetric)
        coefficients, magnitude = (U.mT @ unit_b[..., None])[..., 0], xp.abs(values)
        largest, rounding = max_abs(values)[..., None], 16 * machine_eps * math.sqrt(max(b.shape[-1], 1))
        certain = magnitude > machine_eps**DOUBTFUL_POWER * largest
        kept = (magnitude > machine_eps**ZERO_POWER * largest) & (certain | (xp.abs(coefficients) > rounding))
        x = (Vt.mT @ xp.where(kept, coefficients / xp.where(kept, values, 1.0), 0.0)[..., None])[..., 0]
        residual = norm(unit_b - (matrix @ x[..., None])[..., 0])[..., 0]
        dropped = norm(xp.where(kept, full(coefficients, 0.0), coefficients))[..., 0]
        solved = (residual <= limit) & (dropped <= rounding)
        zero = size[..., 0] == 0
        count = xp.where(zero, 0, full(zero, b.shape[-1], dtype=xp.int32))
        status = first_of([(~finite, Status.NON_FINITE), (solved, Status.CONVERGED)], Status.SINGULAR)
        negative = xp.any((values < 0) & certain, axis=-1) & finite & ~zero
        extra = {"indefinite": negative, "products": count}
        return Solution(xp.astype(x, b.dtype) * size, status, count, xp.astype(residual, b.dtype), extra)


def _decompose(matrix: Array, *, symmetric: bool) -> tuple[Array, Array, Array]:
    """Return U, s and V^T with A = U diag(s) V^T."""
    linalg = array_namespace(matrix).linalg
    if not symmetric:
        U, values, Vt = linalg.svd(matrix, full_matrices=False)
        return U, values, Vt
    values, vectors = linalg.eigh(matrix)
    return vectors, values, vectors.mT
