"""A sparse matrix of an unknown pattern on the host, in a program that cannot choose its products by what it meets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps
from dil._base.operator import Operator
from dil._base.status import Status
from dil._base.typing import Array
from dil._frameworks.protocol import Backend
from dil.linear._found_pattern import cheapest_direction, sums_of_columns
from dil.linear._pattern import pattern_of_entries
from dil.linear._peeling import Peeling, powers_for
from dil.linear._sparse_factor import Answer, Matrix, Recovery, no_answer, unit_of

ALL_COUNTS = (7, 11, 13, 17)
"""The numbers of groups of columns. They separate about 10 entries in each row, those of a grid more."""


class Plan(NamedTuple):
    """The products that tell the entries of D."""

    D: Operator
    counts: tuple[int, ...]
    powers: int

    def vectors(self, like: Array, backend: Backend) -> Array:
        """Return the vectors of the products, (k, n)."""
        each = [sums_of_columns(like, backend, count, self.powers) for count in self.counts]
        return array_namespace(like).concat(each, axis=0)  # type: ignore[no-any-return]


def plan_of_sums(A: Operator, like: Array) -> Plan | None:
    """Return the plan, or None if it would take as many products as there are unknowns."""
    powers = powers_for(eps(array_namespace(like), like.dtype))
    return None if like.shape[-1] <= powers * sum(ALL_COUNTS) else Plan(cheapest_direction(A), ALL_COUNTS, powers)


@dataclass(frozen=True)
class Decoding:
    """How a matrix D, which is A or its transpose, follows from its products with sums of columns; see `Peeling`."""

    counts: tuple[int, ...]
    n: int
    of: Matrix

    def solve(self, products: Any, v: Any, rhs: Any, count: int) -> Answer:
        """Return the solutions by the products with sums of columns and with v; see `HostSolve`."""
        import numpy as np

        unit = unit_of(products)
        if unit is None:
            return no_answer(rhs, count, Status.NON_FINITE)
        products, found, start = products / unit, Peeling(self.n, self.of.machine_eps), 0
        for groups in self.counts:
            end = start + powers_for(self.of.machine_eps) * groups
            found.add(groups, products[start:end])
            start = end
        if found.open_rows().size:
            return no_answer(rhs, count, Status.WRONG_PATTERN)
        places, values = found.entries()
        rows, columns = np.divmod(places, self.n)
        pattern = pattern_of_entries(rows, columns, self.n)
        data, known = np.zeros(pattern.rows.size), pattern.columns.astype(np.int64) * self.n + pattern.rows
        data[np.searchsorted(known, columns * self.n + rows)] = values
        return Recovery(pattern, None, self.of).solve_entries(data, products[-1], unit, v, rhs, count)
