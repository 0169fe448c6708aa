"""The Jacobian of a larger state by few pullbacks: rows that share no column are pulled back together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, eps, eye
from dil._base.typing import Array
from dil._frameworks.protocol import Backend
from dil.linear._colouring import coloured
from dil.linear._found_pattern import is_concrete
from dil.linear._pattern import Pattern, pattern_of_entries, union

FEWEST = 32
"""Up to this number of unknowns each row is pulled back by itself."""
WORTH = 2
"""The groups have to be fewer than the rows by this factor."""


class Groups(NamedTuple):
    """How the entries are read from the pullbacks of the groups."""

    seeds: Array
    """The sum of the unit vectors of each group, (groups, n), and a row of numbers that check the others."""
    places: Array
    """For each entry of J in C order, its place among the pullbacks and the zero that follows them, (n * n,)."""


class RowGroups:
    """Computes the Jacobians of one search. The first one shows which entries are zero.

    The idea is that of Curtis, Powell and Reid 1974. A pullback more checks that no other entry has come.
    """

    def __init__(self) -> None:
        self.pattern: Pattern | None = None
        self.groups: Groups | None = None

    def jacobian(self, pull: Callable[[Array], Array], y: Array, backend: Backend) -> Array:
        """Return the matrix whose row i is the pullback of the unit vector i, (n, n). y: (n,)."""
        map_rows = backend.loops.map_rows
        if y.shape[0] <= FEWEST or not is_concrete(backend, y):
            return map_rows(pull, eye(y.shape[0], y))
        if self.groups is not None:
            J, is_right = _decoded(self.groups, map_rows(pull, self.groups.seeds))
            if is_right:
                return J
        J = map_rows(pull, eye(y.shape[0], y))
        self._learn(J, backend)
        return J

    def _learn(self, J: Array, backend: Backend) -> None:
        """Find the groups of the rows, from the entries of J and those of the Jacobians before."""
        import numpy as np

        found, n = backend.to_numpy(J), J.shape[0]
        rows, columns = np.nonzero(found)
        pattern = pattern_of_entries(columns, rows, n)  # that of the transpose: its columns are the rows of J
        self.pattern = pattern if self.pattern is None else union(self.pattern, pattern)
        colouring, self.groups = coloured(self.pattern), None
        if WORTH * (colouring.count + 1) > n:
            return
        seeds = np.zeros((colouring.count + 1, n))
        seeds[colouring.colours, np.arange(n)] = 1.0
        seeds[-1] = np.cos(np.arange(n) ** 2)
        places = np.full(n * n, colouring.count * n)
        places[self.pattern.columns.astype(np.int64) * n + self.pattern.rows] = colouring.places
        self.groups = Groups(
            backend.asarray(seeds, dtype=J.dtype, device=device(J)),
            array_namespace(J).asarray(places, device=device(J)),
        )


def _decoded(groups: Groups, pulled: Array) -> tuple[Array, Any]:
    """Return J, and whether it gives the pullback of the row that checks it."""
    xp, n = array_namespace(pulled), pulled.shape[-1]
    flat = xp.concat([xp.reshape(pulled[:-1, :], (-1,)), 0.0 * pulled[-1, :1]])
    J, v = xp.reshape(xp.take(flat, groups.places), (n, n)), groups.seeds[-1, :]
    terms = xp.abs(v) @ xp.abs(J)
    apart = xp.abs(v @ J - pulled[-1, :])
    return J, bool(xp.all(apart <= eps(xp, J.dtype) ** 0.5 * terms))
