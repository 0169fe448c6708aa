"""Traces, one for each active call of `vjp`, and the nodes that they record.

Each trace has a larger number than all earlier traces. The innermost of several traces has the largest number.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

next_number = itertools.count(1).__next__  # numbers traces and nodes in the order of creation, over all threads

LEAKED = (
    "{}: an array of a differentiation that has ended is used again. It was kept from inside the differentiated "
    "function; return it from there, or keep `dil.constant(...)` of it"
)


CAPTURED = (
    "the score, the solver or the start of a layer uses an array that is being differentiated but was captured by "
    "closure, so it would silently get no gradient (it met it in `{}`). Pass it to the layer as an argument, or "
    "capture `dil.constant(...)` of it if it shall get none"
)


class Trace:
    """One call of `vjp`: its number, the namespace of its boxes, and the reason why its boxes may not be used.

    The reason `refusal` is None while its boxes may be used.
    """

    __slots__ = ("entries", "number", "refusal", "tape")

    def __init__(self, tape: Any) -> None:
        self.number = next_number()
        self.tape = tape
        self.refusal: str | None = None
        self.entries: Any = None  # counts the operations with single numbers, if NumPy makes object arrays of its boxes


class OpenTraces(threading.local):
    """The active traces of this thread."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []


OPEN = OpenTraces()
MADE: set[Trace] = set()
"""The active traces with object arrays of their boxes. While there is none, no operation looks for one."""


def open_trace(tape: Any) -> Trace:
    """Return a new trace, the innermost of this thread."""
    trace = Trace(tape)
    OPEN.traces.append(trace)
    return trace


def close_trace(trace: Trace) -> None:
    """End the innermost trace of this thread. Its boxes are refused from now on."""
    OPEN.traces.pop()
    MADE.discard(trace)
    trace.refusal = LEAKED


@contextmanager
def refuse_open_traces() -> Iterator[None]:
    """Refuse the boxes of all active traces of this thread, inside the context."""
    raised = [trace for trace in OPEN.traces if trace.refusal is None]
    for trace in raised:
        trace.refusal = CAPTURED
    try:
        yield
    finally:
        for trace in raised:
            trace.refusal = None


Parent: TypeAlias = "tuple[int, Node, int]"
"""The position of an argument, the node that made it, and the index of that node's output."""


class Node:
    """One call of a primitive: what its rule needs, and the nodes that made its arguments."""

    __slots__ = ("args", "number", "options", "parents", "primitive", "seen", "y")

    def __init__(self, primitive: Any, args: Any, options: Any, y: Any, parents: list[Parent], seen: bool) -> None:
        self.number = next_number()
        self.primitive = primitive
        self.args = args
        self.options = options
        self.y = y
        self.parents = parents
        self.seen = seen  # whether an enclosing trace records: some arguments are boxes of other traces
