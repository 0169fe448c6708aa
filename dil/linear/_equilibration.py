"""Scales of the rows and columns of a dense matrix, so that its units have no effect on a solve."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, nonzero_max_abs, nonzero_or_one
from dil._base.typing import Array


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
