"""Scales of the rows and columns of a dense matrix, so that its units have no effect on a solve."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, eps, eye, nonzero_max_abs, nonzero_or_one
from dil._base.typing import Array
from dil._frameworks.protocol import Backend


class Equilibrated(NamedTuple):
    """A matrix diag(rows) A diag(columns) / unit whose largest entries are about one."""

    matrix: Array
    """Shape (*batch, n, n)."""
    rows: Array
    """Shape (*batch, n), like the columns."""
    columns: Array
    unit: Array
    """Shape (*batch, 1)."""


def equilibrate(matrix: Array, *, symmetric: bool) -> Equilibrated:
    """Scale rows and columns so that the largest entries are about one.

    A positive definite matrix gets a unit diagonal: its condition number is then within a factor n of the least that
    diagonal scales can reach (van der Sluis 1969). The scales of other symmetric matrices, whose diagonals may vanish,
    are divided by the roots of the largest entries that this leaves in their rows (one step of Ruiz 2001). A general
    matrix has its rows scaled first, then its columns. Zero rows keep the scale one.
    """
    xp = array_namespace(matrix)
    if matrix.shape[-1] == 0:
        none = xp.sum(matrix, axis=-1)
        return Equilibrated(matrix, none, none, nonzero_max_abs(none))
    if symmetric:
        diagonal = xp.linalg.diagonal(matrix)
        unit = _middle(xp.abs(diagonal))
        scale = 1.0 / xp.sqrt(nonzero_or_one(xp.abs(diagonal) / unit))
        scaled = _scale(matrix, scale / unit, scale)
        more = 1.0 / xp.sqrt(nonzero_or_one(xp.max(xp.abs(scaled), axis=-1)))
        return Equilibrated(_scale(scaled, more, more), more * scale, more * scale, unit)
    size = xp.max(xp.abs(matrix), axis=-1)
    unit = _middle(size)
    rows = 1.0 / nonzero_or_one(size / unit)
    scaled = matrix * (rows / unit)[..., None]
    columns = 1.0 / nonzero_or_one(xp.max(xp.abs(scaled), axis=-2))
    return Equilibrated(scaled * columns[..., None, :], rows, columns, unit)


def equilibrate_by_logarithms(matrix: Array, backend: Backend, *, symmetric: bool) -> Equilibrated:
    """Scale rows and columns as `equilibrate` does, after scales that do not depend on the units of A.

    The largest entry of a row stands where the unit of the column is large, and hides the others. These first scales
    bring all entries that are not zero nearest to one, in least squares of their logarithms (Curtis and Reid 1972), so
    that D A E gives the same matrix for any diagonal D and E. They are powers of two.
    """
    rows, columns = _logarithmic_scales(matrix, backend)
    if symmetric:
        rows = columns = 0.5 * (rows + columns)
    xp = array_namespace(matrix)
    rows, columns = (2.0 ** xp.round(x) for x in (rows, columns))
    found = equilibrate(_scale(matrix, rows, columns), symmetric=symmetric)
    return found._replace(rows=rows * found.rows, columns=columns * found.columns)


def _logarithmic_scales(matrix: Array, backend: Backend) -> tuple[Array, Array]:
    """Return the logarithms to base two of what to multiply the rows and the columns by, (*batch, n) each.

    They solve the normal equations without the rows. A constant of each block of the matrix is free, which the small
    number on the diagonal fixes.
    """
    xp, n = array_namespace(matrix), matrix.shape[-1]
    is_entry = (matrix != 0) & xp.isfinite(matrix)
    logs = xp.log2(xp.where(is_entry, xp.abs(matrix), 1.0 + 0.0 * xp.where(is_entry, matrix, 0.0)))
    P = xp.astype(is_entry, matrix.dtype)
    of_rows, of_columns = nonzero_or_one(xp.sum(P, axis=-1)), nonzero_or_one(xp.sum(P, axis=-2))
    row_means, column_sums = xp.sum(logs, axis=-1) / of_rows, xp.sum(logs, axis=-2)
    Q = P / of_rows[..., :, None]
    free = float(eps(xp, matrix.dtype)) ** 0.75 * of_columns[..., None, :] * eye(n, matrix)
    S = of_columns[..., None, :] * eye(n, matrix) - P.mT @ Q + free
    rhs = column_sums - (P.mT @ row_means[..., None])[..., 0]
    columns = backend.dense.cholesky_solve(S, rhs[..., None])[..., 0]
    return (Q @ columns[..., None])[..., 0] - row_means, -columns


def _middle(sizes: Array) -> Array:
    """Return the geometric mean of the largest and the least size that is not zero, (*batch, 1); one without any.

    Ratios to it need half of the exponents that ratios to the largest size need: float32 has few.
    """
    xp = array_namespace(sizes)
    largest = nonzero_max_abs(sizes)
    least = xp.min(xp.where(sizes == 0, largest, sizes), axis=-1, keepdims=True)
    return xp.sqrt(largest) * xp.sqrt(least)  # type: ignore[no-any-return]


def _scale(matrix: Array, rows: Array, columns: Array) -> Array:
    return matrix * rows[..., :, None] * columns[..., None, :]
