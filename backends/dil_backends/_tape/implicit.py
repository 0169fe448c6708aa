"""The custom derivative: a function that is recorded as one node. Its caller gives the derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from dil._base.errors import ShapeError
from dil._base.typing import Array, Arrays
from dil_backends._tape.box import NOWHERE, lifted, opened
from dil_backends._tape.exchange import ACTIVE, HERE, call_exchanged
from dil_backends._tape.namespace import namespace
from dil_backends._tape.rules.rule import fit
from dil_backends._tape.trace import Node, refuse_open_traces


def implicit(solve: Callable[..., Arrays], rule: PullbackRule) -> Callable[..., Arrays]:
    """Return `solve` with the derivative that `rule` gives, instead of the derivative of its operations.

    Raises CapturedError if `solve` uses an array that is being differentiated and is not among its arguments.
    """
    return Implicit(solve, rule)


class PullbackRule(Protocol):
    """The derivative of y = solve(*args). It is written in array code and `vjp`, so it can be differentiated again."""

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Sequence[Array | None]:
        """Return the cotangents of `args[i]` for i in `wrt`; None stands for the zero cotangent."""
        ...


@runtime_checkable
class StackedPullbackRule(PullbackRule, Protocol):
    """A rule that knows how to do many pullbacks at one point at once."""

    def pullbacks(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Sequence[Array | None]:
        """Return the pullback of each row of the cotangents, (k, *shape), stacked; None stands for zeros."""
        ...


class Implicit:
    """A function whose derivative the caller gave. A node refers to it as to a `Primitive`."""

    __slots__ = ("rule", "solve")
    cut: frozenset[int] = frozenset()
    hides = False
    elementwise = False
    multiplies = False
    uses = None

    def __init__(self, solve: Callable[..., Arrays], rule: PullbackRule) -> None:
        self.solve = solve
        self.rule = rule

    def __call__(self, *args: Array) -> Arrays:
        if ACTIVE and HERE.table:
            return call_exchanged(self, args, {})  # type: ignore[no-any-return]
        trace, values, parents, seen = opened(args, "implicit")
        if trace is None:
            with refuse_open_traces():
                return tuple(self.solve(*args))
        y = self(*values)  # enclosing traces record this call; outside of all traces, captured boxes are refused
        boxes: Arrays = trace.tape.box(trace, y, Node(self, values, {}, y, parents, seen) if parents else NOWHERE)
        return boxes

    def pull(self, node: Node, c: Arrays, wanted: Sequence[int]) -> list[Any]:
        args, y, c = lifted(node.args, node.y, c)
        found = self.rule.pullback(args, y, c, tuple(wanted))
        for i, g in zip(wanted, found, strict=True):
            if g is not None and g.shape != args[i].shape:
                msg = f"a pullback returned shape {g.shape} for an argument of shape {args[i].shape}"
                raise ShapeError(msg)
        return [None if g is None else fit(namespace(g), g, args[i]) for i, g in zip(wanted, found, strict=True)]

    def pull_rows(self, node: Node, rows: list[Arrays], wanted: Sequence[int]) -> list[list[Any]]:
        """Return the cotangents of the wanted arguments for each of many cotangents."""
        if not isinstance(self.rule, StackedPullbackRule) or len(rows) < 2:
            return [self.pull(node, c, wanted) for c in rows]
        stacked = tuple([namespace(parts[0]).stack(list(parts)) for parts in zip(*rows, strict=True)])
        args, y, c = lifted(node.args, node.y, stacked)
        found = self.rule.pullbacks(args, y, c, tuple(wanted))
        for i, g in zip(wanted, found, strict=True):
            if g is not None and g.shape != (len(rows), *args[i].shape):
                msg = f"{len(rows)} pullbacks returned shape {g.shape} for an argument of shape {args[i].shape}"
                raise ShapeError(msg)
        return [
            [None if g is None else fit(namespace(g), g[r, ...], args[i]) for i, g in zip(wanted, found, strict=True)]
            for r in range(len(rows))
        ]
