"""The memory of one point: what was last evaluated there, for whoever needs the same next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dil._base.typing import Array, Arrays


@dataclass
class LastPoint:
    """What a solver found at the last point. It holds one point, and so the graph of one evaluation.

    A point is known by its arrays themselves, not by their values: another array may come from another computation.
    """

    u: Array | None = None
    arrays: Arrays = ()
    found: Any = None

    def get(self, u: Array, arrays: Arrays) -> Any:
        """Return what was found at u, or None if the last point was another one."""
        return self.found if self.u is u and self.arrays is arrays else None

    def put(self, u: Array, arrays: Arrays, found: Any) -> None:
        """Keep what was found at u."""
        self.u, self.arrays, self.found = u, arrays, found

    def forget(self) -> None:
        """Hold nothing."""
        self.u, self.arrays, self.found = None, (), None
