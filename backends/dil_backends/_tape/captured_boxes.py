"""The boxes that a function captured, found from its value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dil_backends._tape.box import NOWHERE, Box
from dil_backends._tape.exchange import Source
from dil_backends._tape.trace import OPEN, Node, next_number


def captured_boxes(evaluate: Callable[[], Sequence[Any]]) -> dict[Source, Box]:
    """Return the boxes, by their sources, that the arrays of evaluate() depend on and that were there before it ran."""
    if not OPEN.traces:
        return {}
    start = next_number()
    found: dict[Source, Box] = {}
    todo: list[Any] = list(evaluate())
    seen: set[Source] = set()
    while todo:
        box = todo.pop()
        if type(box) is not Box:
            continue
        todo.append(box.value)  # that of an enclosing trace
        source = box.node, box.index
        if box.node is NOWHERE or source in seen:
            continue
        seen.add(source)
        if box.node.number < start:
            found[source] = box
            continue
        todo += box.node.args
        todo += [_output(parent, index, box) for _, parent, index in box.node.parents]
    return found


def _output(node: Node, index: int, of: Box) -> Box:
    """Return an output of a node of the trace of another box."""
    return Box(node.y[index] if isinstance(node.y, tuple) else node.y, of._trace, node, index)
