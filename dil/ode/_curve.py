"""The dense output of a solve, and its steps by their numbers."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.typing import Array
from dil.ode._dense import Segment
from dil.ode._rows_of import rows_of, take


class Curve(NamedTuple):
    """States, slopes and times at M + 1 knots, and M bulges."""

    knots: Array
    """Shape (M + 1,), or (M + 1, *batch) with own steps."""
    states: Array
    slopes: Array
    bulges: Array

    def steps(self, i: Array) -> tuple[Array, Segment]:
        """Return the begins and the segments of the steps i, (K, *batch)."""
        begin = take(self.knots, i)
        ends = rows_of(self.states, i), rows_of(self.states, i + 1)
        slopes = rows_of(self.slopes, i), rows_of(self.slopes, i + 1)
        return begin, Segment(take(self.knots, i + 1) - begin, *ends, *slopes, rows_of(self.bulges, i))
