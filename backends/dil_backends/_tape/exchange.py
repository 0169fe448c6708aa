"""Boxes that a function captures, and other arrays in their place while the function runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from dil_backends._tape.trace import Node

Source: TypeAlias = "tuple[Node, int]"
"""The node that made a box, and the index of the output."""


class Exchange(threading.local):
    """What stands in the place of the boxes from some sources, in this thread."""

    table: dict[Source, Any] | None = None


HERE = Exchange()
ACTIVE: list[None] = []
"""Not empty while a thread exchanges boxes. Otherwise no operation looks for a box to exchange."""


@contextmanager
def exchanging(table: dict[Source, Any] | None) -> Iterator[None]:
    """Let operations take these arrays for the boxes from these sources."""
    before, HERE.table = HERE.table, table
    ACTIVE.append(None)
    try:
        yield
    finally:
        ACTIVE.pop()
        HERE.table = before


def exchanged(x: Any) -> Any:
    """Return what stands in the place of an argument: x itself, if it is no box that is exchanged."""
    node = getattr(x, "node", None) if HERE.table else None
    return x if type(node) is not Node else HERE.table.get((node, x.index), x)  # type: ignore[union-attr]


def call_exchanged(fn: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
    """Call an operation with the arrays that stand in the place of its arguments.

    Nothing is exchanged within it: an array may be a box of the very box in whose place it stands.
    """
    given = [exchanged(x) for x in args]
    with exchanging(None):
        return fn(*given, **options)
