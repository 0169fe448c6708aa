"""Reverse mode. `vjp` records a function at boxes, and the pullback visits its nodes from the last to the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dil._base.errors import BackendError, DTypeError, ShapeError
from dil._base.typing import Array, Arrays
from dil_backends._tape.array_protocol import explain_item
from dil_backends._tape.box import Box, check_type
from dil_backends._tape.entries import explain_objects, joined
from dil_backends._tape.implicit import Implicit
from dil_backends._tape.left_out import with_entries_left_out
from dil_backends._tape.namespace import Tape, namespace
from dil_backends._tape.rules.rule import fit
from dil_backends._tape.scipy_advice import explain_scipy
from dil_backends._tape.scipy_functions import accept_boxes
from dil_backends._tape.trace import Node, close_trace, open_trace


def vjp(fn: Callable[..., Arrays], /, *primals: Array) -> tuple[Arrays, Pull]:
    """Return fn(*primals), a tuple of arrays, and the pullback."""
    accept_boxes()
    for p in primals:
        if isinstance(p, np.ndarray) and type(p) is not np.ndarray:
            check_type(type(p))
    tape = tape_of_primals(primals)
    roots = [Node(None, (), {}, p, [], False) for p in primals]
    trace = open_trace(tape)
    try:
        outputs: Any = joined(fn(*[Box(p, trace, root) for p, root in zip(primals, roots, strict=True)]))
    except Exception as e:
        explain_scipy(e)
        explain_item(e)
        explain_objects(e, trace.entries is not None)
        raise
    finally:
        close_trace(trace)
    if not isinstance(outputs, tuple):
        msg = f"a differentiated function must return a tuple of arrays; it returned {type(outputs).__name__}"
        raise ShapeError(msg)
    ours = [type(y) is Box and y._trace is trace for y in outputs]
    values = tuple(y.value if own else y for y, own in zip(outputs, ours, strict=True))
    sources = [(y.node, y.index) if own else None for y, own in zip(outputs, ours, strict=True)]
    return values, Pull(tape, primals, roots, values, sources)


def tape_of_primals(primals: Arrays) -> Tape | None:
    """Return the namespace of the primals. Raise unless they are floating arrays of one library."""
    tapes = dict.fromkeys(map(namespace, primals))
    if len(tapes) > 1:
        msg = f"arrays of one library were expected, and {', '.join(map(repr, tapes))} came together"
        raise BackendError(msg)
    for tape in tapes:
        for p in primals:
            if not tape.differentiable(p.dtype):
                msg = f"a derivative was asked for in an array of dtype {p.dtype}; make it floating, or a constant"
                raise DTypeError(msg)
    return next(iter(tapes), None)


class Program(NamedTuple):
    """The nodes between the outputs and the wanted primals, last node first. A slot sums the cotangents of a value.

    The first five lists have one entry per node. A list of tuples would burden Python's garbage collection.
    """

    nodes: list[Node]
    several: list[bool]
    """Whether a node has several outputs."""
    places: list[int]
    """The slot of a node, or the first of its slots if it has several outputs."""
    positions: list[tuple[int, ...]]
    """The positions of the wanted arguments."""
    targets: list[tuple[int, ...]]
    """The slots of the wanted arguments."""
    seeds: list[int | None]
    """The slot of each output."""
    results: list[int]
    """The slot of each wanted primal."""
    slots: int


class Pull:
    """The pullback of a function at a point. It may be called any number of times and differentiated."""

    def __init__(self, tape: Any, primals: Arrays, roots: list[Node], outputs: Arrays, sources: list[Any]) -> None:
        self._tape = tape
        self._primals = primals
        self._roots = roots
        self._outputs = outputs
        self._sources = sources  # (node, index of its output) for each output, or None for a constant output
        self._programs: dict[tuple[int, ...], Program] = {}

    def __call__(self, cotangents: Arrays, wrt: Sequence[int] | None = None) -> Arrays:
        """Return the cotangents of the primals in `wrt` (all primals if None), and compute no others."""
        wanted = tuple(range(len(self._primals)) if wrt is None else wrt)
        program = self._program(wanted)
        slots: list[Any] = [None] * program.slots
        self._seed_slots(slots, program.seeds, cotangents)
        for node, several, slot, positions, targets in zip(*program[:5], strict=True):
            c = self._parts(slots, node, slot) if several else slots[slot]
            if c is None:
                continue
            slots[slot] = None
            k = -1
            for g in node.primitive.pull(node, c, positions):
                k += 1  # faster than `zip`, and every operation comes here
                if g is not None:
                    total = slots[targets[k]]
                    slots[targets[k]] = g if total is None else plus(total, g)
        found = [slots[slot] for slot in program.results]
        return self._distinct(
            [self._tape.zeros_like(self._primals[i]) if g is None else g for i, g in zip(wanted, found, strict=True)],
            cotangents,
        )

    def many(self, cotangents: Arrays, wrt: Sequence[int] | None = None) -> Arrays:
        """Return the cotangents for each row of `cotangents`, (k, *shape), stacked, by one sweep.

        An operation takes the rows one by one. A function with a custom derivative may take them at once.
        """
        wanted = tuple(range(len(self._primals)) if wrt is None else wrt)
        program = self._program(wanted)
        rows: list[list[Any]] = [[None] * program.slots for _ in range(cotangents[0].shape[0])]
        for r, slots in enumerate(rows):
            self._seed_slots(slots, program.seeds, tuple([c[r, ...] for c in cotangents]))
        for node, several, slot, positions, targets in zip(*program[:5], strict=True):
            cs = [self._parts(slots, node, slot) if several else slots[slot] for slots in rows]
            live = [r for r, c in enumerate(cs) if c is not None]
            for r, found in zip(live, _pulled_rows(node, [cs[r] for r in live], positions), strict=True):
                slots = rows[r]
                slots[slot] = None
                for target, g in zip(targets, found, strict=True):
                    if g is not None:
                        slots[target] = g if slots[target] is None else plus(slots[target], g)
        zeros = {slot: self._tape.zeros_like(self._primals[i]) for i, slot in zip(wanted, program.results, strict=True)}
        return tuple(
            [
                self._tape.stack([zeros[slot] if slots[slot] is None else slots[slot] for slots in rows])
                for slot in program.results
            ]
        )

    def _distinct(self, gradients: list[Any], cotangents: Arrays) -> Arrays:
        """Return arrays that the user may write into: none is another one, a cotangent or a view."""
        kept = set(map(id, cotangents))
        for i, g in enumerate(gradients):
            if type(g) is not Box and (id(g) in kept or getattr(g, "base", None) is not None):
                gradients[i] = self._tape.plain.asarray(g, copy=True)
            kept.add(id(g))
        return tuple(gradients)

    def work(self) -> int:
        """Return how many numbers the values between the outputs and the first primal have."""
        nodes = self._program((0,)).nodes
        return sum(y.size for node in nodes for y in (node.y if isinstance(node.y, tuple) else (node.y,)))

    def _program(self, wanted: tuple[int, ...]) -> Program:
        """Return the program for the primals `wanted`, which is compiled once."""
        if wanted not in self._programs:
            self._programs[wanted] = self._compile(wanted)
        return self._programs[wanted]

    def _seed_slots(self, slots: list[Any], seeds: list[int | None], cotangents: Arrays) -> None:
        if len(cotangents) != len(self._outputs):
            msg = f"{len(cotangents)} cotangents were given for {len(self._outputs)} outputs"
            raise ShapeError(msg)
        for c, y, slot in zip(cotangents, self._outputs, seeds, strict=True):
            if getattr(c, "shape", None) != y.shape:
                msg = f"the cotangent of an output of shape {y.shape} has shape {getattr(c, 'shape', type(c))}"
                raise ShapeError(msg)
            if slot is not None:
                seed, total = fit(self._tape, c, y), slots[slot]
                slots[slot] = seed if total is None else plus(total, seed)

    def _parts(self, slots: list[Any], node: Node, slot: int) -> Any:
        """Return the cotangents of a node with several outputs, or None if they are all zero."""
        parts = slots[slot : slot + len(node.y)]
        if all(part is None for part in parts):
            return None
        return tuple(self._tape.zeros_like(y) if c is None else c for c, y in zip(parts, node.y, strict=True))

    def _compile(self, wanted: tuple[int, ...]) -> Program:
        """Return the program of the nodes between the outputs and the wanted primals. No other node is visited."""
        slot_of: dict[Node, int] = {}
        for i in wanted:
            slot_of.setdefault(self._roots[i], len(slot_of))
        slots = len(slot_of)
        nodes: list[Node] = []
        several: list[bool] = []
        places: list[int] = []
        positions: list[tuple[int, ...]] = []
        targets: list[tuple[int, ...]] = []
        hiding = False
        for node in self._nodes():
            arguments: tuple[int, ...] = ()
            goals: tuple[int, ...] = ()
            for i, parent, k in node.parents:
                goal = slot_of.get(parent)
                if goal is not None and i not in node.primitive.cut:
                    arguments += (i,)
                    goals += (goal + k,)
            if arguments:
                parted = isinstance(node.y, tuple)
                hiding = hiding or node.primitive.hides
                nodes.append(node)
                several.append(parted)
                places.append(slots)
                positions.append(arguments)
                targets.append(goals)
                slot_of[node] = slots
                slots += len(node.y) if parted else 1
        seeds = [slot_of[s[0]] + s[1] if s and s[0] in slot_of else None for s in self._sources]
        results = [slot_of[self._roots[i]] for i in wanted]
        columns = (nodes[::-1], several[::-1], places[::-1], positions[::-1], targets[::-1])
        program = Program(*columns, seeds, results, slots)
        return program._replace(nodes=with_entries_left_out(program)) if hiding else program

    def _nodes(self) -> list[Node]:
        """Return the nodes that the outputs depend on, in the order in which they were made."""
        todo = [source[0] for source in self._sources if source is not None]
        reached = {node.number: node for node in todo}
        for node in todo:  # it grows; without recursion, because a graph may be deeper than Python's stack
            for _, parent, _ in node.parents:
                number = parent.number
                if number not in reached:
                    reached[number] = parent
                    todo.append(parent)
        return [reached[number] for number in sorted(reached)]


def _pulled_rows(node: Node, rows: list[Any], wanted: Sequence[int]) -> list[list[Any]]:
    """Return the cotangents of the wanted arguments for each of many cotangents of a node."""
    if isinstance(node.primitive, Implicit):
        return node.primitive.pull_rows(node, rows, wanted)
    return [node.primitive.pull(node, c, wanted) for c in rows]


def plus(total: Any, g: Any) -> Any:
    """Return the sum of the cotangents. A box is the left operand, because not every raw array can add a box."""
    return g + total if type(g) is Box else total + g
