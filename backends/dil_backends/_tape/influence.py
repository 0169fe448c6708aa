"""The derivative of an intermediate value by other intermediate values, inside of a trace that is still recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dil_backends._tape.box import NOWHERE, Box


def influence(x: Any, c: Any, stops: Sequence[Any]) -> list[Any] | None:
    """Return the derivatives of <c, x> by the boxes `stops`, then by each root, with the stops held fixed.

    x is a box of the innermost trace, or a constant, which depends on nothing. None stands for the derivative zero.
    Returns None in the place of the list if an enclosing trace records too.
    """
    found: list[Any] = [None] * len(stops)
    if type(x) is not Box or x.node is NOWHERE:
        return found
    if type(x.value) is Box:
        return None
    place = {(s.node.number, s.index): k for k, s in enumerate(stops) if type(s) is Box and s.node is not NOWHERE}
    held = {number for number, _ in place}
    todo, parts = {x.node.number: x.node}, {(x.node.number, x.index): c}
    while todo:
        node = todo.pop(max(todo))  # a node has a larger number than its parents
        if node.number in held:
            for (number, index), k in place.items():
                found[k] = parts.get((number, index)) if number == node.number else found[k]
        elif node.primitive is None:
            found.append(parts[node.number, 0])
        else:
            parents = [p for p in node.parents if p[0] not in node.primitive.cut]
            gradients = node.primitive.pull(node, cotangent(node, parts), [position for position, *_ in parents])
            for (_, parent, index), g in zip(parents, gradients, strict=True):
                if g is None:
                    continue
                todo[parent.number] = parent
                before = parts.get((parent.number, index))
                parts[parent.number, index] = g if before is None else before + g
    return found


def cotangent(node: Any, parts: dict[tuple[int, int], Any]) -> Any:
    """Return the collected cotangents of a node's outputs."""
    if not isinstance(node.y, tuple):
        return parts[node.number, 0]
    return tuple(parts.get((node.number, k), 0.0 * y) for k, y in enumerate(node.y))
