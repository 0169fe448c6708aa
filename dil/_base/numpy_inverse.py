"""The inverse of one small matrix in NumPy, where Python numbers take longer: from about five unknowns on."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from dil._base.small_inverse import SAFE, Numbers, Rows, condition_limit, residual_slack

Vector: TypeAlias = Any
"""A NumPy array (n,) of float64."""
Matrix: TypeAlias = Any
"""A NumPy array (n, n) of float64."""


class NumPyInverse(NamedTuple):
    """A matrix A with its inverse, and the scales of the system diag(left) A diag(right)."""

    matrix: Matrix
    inverse: Matrix
    left: Vector
    right: Vector
    norm: float
    """That of the scaled matrix, like the condition number. Norms are maximum norms."""
    condition: float

    def solve(self, b: Numbers, machine_eps: float) -> tuple[Numbers, float] | None:
        """Return x with A x = b and its relative residual. See `KnownInverse`."""
        import numpy as np

        with np.errstate(all="ignore"):
            v = np.asarray(b, dtype=np.float64)
            size = abs(self.left * v).max()
            if not 1 / SAFE < size < SAFE:  # False for NaN
                return None
            x = self.inverse @ v
            x = x + self.inverse @ (v - self.matrix @ x)
            residual = abs(self.left * (v - self.matrix @ x)).max()
            explained = residual_slack(machine_eps, len(v)) * (self.norm * abs(x / self.right).max() + size)
            return (x.tolist(), float(residual / size)) if residual <= explained else None

    def step_is_short(self, F: Numbers, scale: Numbers, rtol: float, *, transposed: bool) -> bool:
        """Return whether each entry of A^-1 F, or of A^-T F, is within rtol of its scale."""
        import numpy as np

        inverse = self.inverse.T if transposed else self.inverse
        with np.errstate(all="ignore"):
            return bool((abs(inverse @ np.asarray(F)) <= rtol * np.asarray(scale)).all())  # False for NaN


def numpy_inverse(rows: Rows, machine_eps: float, *, symmetric: bool) -> NumPyInverse | None:
    """Return the inverse of a matrix A, or None if A needs a closer look.

    The same matrices are in doubt as in `small_inverse`.
    """
    import numpy as np

    with np.errstate(all="ignore"):
        A = np.asarray(rows, dtype=np.float64)
        scales = _diagonal_scales(A) if symmetric else _scales(A)
        if scales is None:
            return None
        left, right = scales
        scaled = left[:, None] * A * right
        found = _inverted(scaled, symmetric=symmetric)
        if found is None:
            return None
        norm = _norm(scaled)
        condition = norm * _norm(found)
        if not condition < condition_limit(machine_eps):
            return None
        return NumPyInverse(A, right[:, None] * found * left, left, right, norm, condition)


def _scales(A: Matrix) -> tuple[Vector, Vector] | None:
    """Return scales with which the largest entries of rows and columns are one; None if one of them is extreme."""
    size = abs(A)
    rows = size.max(1)
    if not (rows.min() > 1 / SAFE and rows.max() < SAFE):  # False for NaN
        return None
    left = 1.0 / rows
    columns = (left[:, None] * size).max(0)
    return (left, 1.0 / columns) if columns.min() > 1 / SAFE else None


def _diagonal_scales(A: Matrix) -> tuple[Vector, Vector] | None:
    """Return the scales that make the diagonal one; None if an entry of it is not positive, or an entry is extreme."""
    diagonal = A.diagonal()
    if not (diagonal.min() > 1 / SAFE and abs(A).max() < SAFE):
        return None
    scale = diagonal**-0.5
    return scale, scale


def _inverted(A: Matrix, *, symmetric: bool) -> Matrix | None:
    """Return the inverse; None if A is singular, or symmetric and not positive definite."""
    import numpy as np

    try:
        if symmetric:
            np.linalg.cholesky(A)
        return np.linalg.inv(A)
    except np.linalg.LinAlgError:
        return None


def _norm(A: Matrix) -> float:
    return float(abs(A).sum(1).max())
