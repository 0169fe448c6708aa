"""The derivative of a value inside of a program by other values of it: while a trace records, or in a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dil_backends._tape.box import NOWHERE, Box, constant


def influence(x: Any, c: Any, stops: Sequence[Any]) -> list[Any] | None:
    """Return the derivatives of <c, x> by the boxes `stops`, then by each root, with the stops held fixed.

    x is a box of the innermost trace, or a constant, which depends on nothing. None stands for the derivative zero.
    Returns None in the place of the list if an enclosing trace records too.
    """
    if type(x) is not Box or x.node is NOWHERE:
        return [None] * len(stops)
    if type(x.value) is Box:
        return None
    recorded = [type(s) is Box and s.node is not NOWHERE for s in stops]
    held = {s.node.number for s, own in zip(stops, recorded, strict=True) if own}
    parts, roots = swept(x, c, held)
    return [
        parts.get((s.node.number, s.index)) if own else None for s, own in zip(stops, recorded, strict=True)
    ] + roots


def by_roots(x: Any, c: Any) -> list[Any]:
    """Return the derivatives of <c, x> by the roots of all traces that x depends on, as raw arrays.

    A trace inside of one that has ended is left out: its values are boxes of that one, and its own pullback has asked.
    """
    found: list[Any] = []
    while type(x) is Box:
        ended = type(x.value) is Box and x.value._trace.refusal is not None
        if x.node is not NOWHERE and not ended:
            found += map(constant, swept(x, c, set())[1])
        x = x.value
    return found


def swept(x: Box, c: Any, held: set[int]) -> tuple[dict[tuple[int, int], Any], list[Any]]:
    """Return the cotangents of the values that x is made of, by node and index, and those of the roots.

    The nodes whose numbers are `held` count as constants.
    """
    roots: list[Any] = []
    todo, parts = {x.node.number: x.node}, {(x.node.number, x.index): c}
    while todo:
        node = todo.pop(max(todo))  # a node has a larger number than its parents
        if node.number in held:
            continue
        if node.primitive is None:
            roots.append(parts[node.number, 0])
            continue
        parents = [p for p in node.parents if p[0] not in node.primitive.cut]
        gradients = node.primitive.pull(node, cotangent(node, parts), [position for position, *_ in parents])
        for (_, parent, index), g in zip(parents, gradients, strict=True):
            if g is None:
                continue
            todo[parent.number] = parent
            before = parts.get((parent.number, index))
            parts[parent.number, index] = g if before is None else before + g
    return parts, roots


def cotangent(node: Any, parts: dict[tuple[int, int], Any]) -> Any:
    """Return the collected cotangents of a node's outputs."""
    if not isinstance(node.y, tuple):
        return parts[node.number, 0]
    return tuple(parts.get((node.number, k), 0.0 * y) for k, y in enumerate(node.y))
