"""Traces: the calls of `vjp` under way, and the nodes that they record.

Each trace has a number larger than all before it. The innermost trace of some boxes is the one of the largest number.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

next_number = itertools.count(1).__next__  # numbers traces and nodes in the order of their making, over all threads

LEAKED = (
    "{}: an array of a differentiation that has ended is used again. It was kept from inside the differentiated "
    "function; return it from there, or keep `dil.constant(...)` of it"
)


CAPTURED = (
    "{}: the score, the solver or the start of a layer uses an array that is being differentiated but was captured by "
    "closure, so it would silently get no gradient. Pass it to the layer as an argument, or capture "
    "`dil.constant(...)` of it if it shall get none"
)


class Trace:
    """One call of `vjp`: its number, the namespace of its boxes, and why they may not be used, if they may not."""

    __slots__ = ("number", "refusal", "tape")

    def __init__(self, tape: Any) -> None:
        self.number = next_number()
        self.tape = tape
        self.refusal: str | None = None


class OpenTraces(threading.local):
    """The traces that this thread is inside of."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []


OPEN = OpenTraces()


@contextmanager
def open_trace(tape: Any) -> Iterator[Trace]:
    trace = Trace(tape)
    OPEN.traces.append(trace)
    try:
        yield trace
    finally:
        OPEN.traces.pop()
        trace.refusal = LEAKED


@contextmanager
def refuse_open_traces() -> Iterator[None]:
    """Refuse, for a while, the boxes of all traces that this thread is inside of."""
    raised = [trace for trace in OPEN.traces if trace.refusal is None]
    for trace in raised:
        trace.refusal = CAPTURED
    try:
        yield
    finally:
        for trace in raised:
            trace.refusal = None


class Node:
    """One application of a primitive: what its rule needs, and the nodes that its arguments came from."""

    __slots__ = ("args", "number", "options", "parents", "primitive", "seen", "y")

    def __init__(self, primitive: Any, args: Any, options: Any, y: Any, parents: list[Any], seen: bool) -> None:
        self.number = next_number()
        self.primitive = primitive
        self.args = args
        self.options = options
        self.y = y
        self.parents = parents  # (position among the arguments, node that made the argument, which of its outputs)
        self.seen = seen  # whether an enclosing trace looks on: there are boxes left among the arguments
