"""Products of a few stored vectors of each problem with one vector."""

from __future__ import annotations

from dil._base.typing import Array

# a row times a matrix takes libraries half the time of a matrix times a column, where there is a batch of them


def along(rows: Array, v: Array) -> Array:
    """Return the inner products of rows, (*batch, m, n), with v, (*batch, n): (*batch, m)."""
    return combined(v, rows.mT)


def combined(t: Array, rows: Array) -> Array:
    """Return the sum of rows, (*batch, m, n), times the numbers t, (*batch, m): (*batch, n)."""
    total: Array = t @ rows if t.ndim == 1 else (t[..., None, :] @ rows)[..., 0, :]
    return total
