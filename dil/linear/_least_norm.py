"""The shortest solution of a system whose dense matrix is singular."""

from __future__ import annotations

from dataclasses import dataclass

from dil._base.arrays import array_namespace, eps, eye, full, max_abs, nonzero_or_one, norm
from dil._base.operator import Operator
from dil._base.solution import Solution
from dil._base.status import Status, first_of
from dil._base.typing import Array, Loop
from dil.linear._direct import dense
from dil.linear._right_hand_side import backend_of_system

WORST = 2 / 3
"""Singular values below eps ** WORST of the largest count as zero, as in the judgement of `Direct`."""


@dataclass(frozen=True)
class LeastNorm:
    """Solve (A + damping I) x = b by the eigenvalues of a symmetric A, or else by its singular values.

    x is the shortest of the vectors that leave the least residual. A problem ends CONVERGED where b lies in the range
    of A to within rtol, SINGULAR elsewhere. The matrix costs n products with A.

    Source: Golub and Van Loan 2013, section 5.5.
    """

    damping: float = 0.0
    rtol: float | None = None

    def __call__(self, A: Operator, b: Array, /, *, loop: Loop) -> Solution:
        """Solve A x = b for b: (*batch, n); status: batch."""
        xp, wide, machine = array_namespace(b), _wide(b), eps(array_namespace(b), b.dtype)
        rtol = machine**0.75 if self.rtol is None else self.rtol
        identity = eye(b.shape[-1], b)
        matrix = xp.astype(dense(A, b, backend_of_system(b, "dil.linear.Auto")) + self.damping * identity, wide)
        finite = xp.all(xp.isfinite(matrix), axis=(-2, -1)) & xp.all(xp.isfinite(b), axis=-1)
        matrix = xp.where(finite[..., None, None], matrix, xp.astype(identity, wide))
        size = norm(xp.where(finite[..., None], b, full(b, 0.0)))
        right = xp.astype(b / nonzero_or_one(size), wide)
        left, values, rows = _taken_apart(matrix, symmetric=A.symmetric)
        cut = machine**WORST * max_abs(values)[..., None]
        kept = xp.abs(values) > cut
        along = (left.mT @ right[..., None])[..., 0]
        x = (rows.mT @ xp.where(kept, along / xp.where(kept, values, 1.0), 0.0)[..., None])[..., 0]
        residual = norm(right - (matrix @ x[..., None])[..., 0])[..., 0]
        zero = size[..., 0] == 0
        count = xp.where(zero, 0, full(zero, b.shape[-1], dtype=xp.int32))
        status = first_of([(~finite, Status.NON_FINITE), (residual <= rtol, Status.CONVERGED)], Status.SINGULAR)
        negative = xp.any(values < -cut, axis=-1) & finite & ~zero
        extra = {"indefinite": negative, "products": count}
        return Solution(xp.astype(x, b.dtype) * size, status, count, xp.astype(residual, b.dtype), extra)


def _taken_apart(matrix: Array, *, symmetric: bool) -> tuple[Array, Array, Array]:
    """Return U, s and V^T with A = U diag(s) V^T."""
    linalg = array_namespace(matrix).linalg
    if not symmetric:
        left, values, rows = linalg.svd(matrix, full_matrices=False)
        return left, values, rows
    values, vectors = linalg.eigh(matrix)
    return vectors, values, vectors.mT


def _wide(b: Array) -> object:
    """Return the dtype to factor in: that of b, or float32, since libraries take no matrix of 16 bits apart."""
    xp = array_namespace(b)
    return xp.float32 if eps(xp, b.dtype) > 1e-4 else b.dtype
