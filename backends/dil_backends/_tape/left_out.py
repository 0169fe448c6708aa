"""Entries that a function leaves out, such as `np.nansum` those that are NaN: no derivative passes through them.

The cotangent of an entry that is left out is zero. The functions before get it: for `np.nansum((u - y) ** 2)` the
square multiplies it by 2 (u - y), which is NaN where y is, and 0 NaN is NaN. So a NaN counts as zero there, where the
cotangent is exactly zero, in all elementwise operations that such a function depends on. An entry that is used keeps
its NaN. Other operations mix entries, also where the shapes agree: of a square X with a NaN, a product X @ u keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.trace import Node


class BeforeLeftOut:
    """A node before a function that leaves entries out. It stands for the node in a program."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def primitive(self) -> BeforeLeftOut:
        return self

    @property
    def y(self) -> Any:
        return self.node.y

    def pull(self, stand_in: Any, c: Any, wanted: Sequence[int]) -> list[Any]:
        found: list[Any] = self.node.primitive.pull(self.node, c, wanted, left_out=True)
        return found


def with_entries_left_out(nodes: Sequence[Node]) -> list[Any]:
    """Return the nodes of a program, the last first, with stand-ins before functions that leave entries out."""
    before: set[Node] = set()
    found: list[Any] = []
    for node in nodes:
        affected = node in before
        if affected or node.primitive.hides:
            before.update(parent for _, parent, _ in node.parents)
        found.append(BeforeLeftOut(node) if affected and node.primitive.elementwise else node)
    return found


def zero_where_left_out(xp: Namespace, c: Any, g: Any) -> Any:
    """Return g with zeros for the NaN of entries whose cotangent c is zero."""
    return xp.masked(g, ~((c == 0) & xp.isnan(g)), 0.0)
