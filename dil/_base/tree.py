"""Trees of arrays: `flatten` splits one into leaves and a structure, which puts it together again."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dil._base.typing import Tree

Children = Callable[[object], tuple[Sequence[Tree], Callable[[Sequence[Tree]], Tree]] | None]


BUILTIN = (tuple, list, dict)


class Structure:
    """The shape of a tree: how to put its leaves together again, and the path of each leaf for messages.

    It keeps no leaf. A structure lives as long as the graph of the call, so a leaf in it would form a cycle.
    """

    __slots__ = ("build", "paths", "signature", "size")

    def __init__(
        self, build: Callable[[Iterator[Any]], Tree], paths: tuple[str, ...], signature: tuple[object, ...]
    ) -> None:
        self.build = build
        self.paths = paths
        self.size = len(paths)
        self.signature = signature

    def unflatten(self, leaves: Sequence[Any]) -> Tree:
        """Put the tree together from its leaves."""
        return self.build(iter(leaves))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self.signature == other.signature

    def __hash__(self) -> int:
        return hash(self.signature)

    def __repr__(self) -> str:
        return f"Structure({', '.join(self.paths)})"


def flatten(tree: Tree, children: Children) -> tuple[list[Any], Structure]:
    """Return the leaves of a tree in a fixed order, and its structure.

    Dicts, lists, tuples, namedtuples and dataclasses are split, and so is every node that `children` splits. It is
    asked first for all but the plain containers, so a framework's own pytrees win. Everything else is a leaf.
    """
    walk = Walk(children, [], [], [])
    build = walk.visit(tree, "")
    return walk.leaves, Structure(build, tuple(walk.paths), tuple(walk.signature))


@dataclasses.dataclass(frozen=True)
class Walk:
    """The leaves and paths collected on the way through a tree.

    The recursion is a method: a closure that calls itself is a cycle and would keep the leaves alive.
    """

    children: Children
    leaves: list[Any]
    paths: list[str]
    signature: list[object]

    def visit(self, node: Tree, path: str) -> Callable[[Iterator[Any]], Tree]:
        """Gather the leaves below a node, and return how to build it from an iterator over them."""
        parts = _standard_children(node) if type(node) in BUILTIN else self.children(node) or _standard_children(node)
        if parts is None:
            self.leaves.append(node)
            self.paths.append(path)
            self.signature.append("*")
            return next
        nodes, rebuild = parts
        names = _names(node, len(nodes))
        self.signature.extend((type(node), *names))
        builders = [self.visit(child, path + name) for child, name in zip(nodes, names, strict=True)]
        return lambda leaf: rebuild([build(leaf) for build in builders])


def _standard_children(node: Tree) -> tuple[Sequence[Tree], Callable[[Sequence[Tree]], Tree]] | None:
    kind = type(node)
    if kind is list or kind is tuple:
        return node, kind
    if isinstance(node, dict):
        keys = _ordered(node)
        empty = _refill(node, keys, [None] * len(keys))
        return [node[key] for key in keys], lambda parts: _refill(empty, keys, parts)
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return node, lambda parts: kind(*parts)
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        names = [field.name for field in dataclasses.fields(node)]
        hollow = _replace(node, names, [None] * len(names))
        return [getattr(node, name) for name in names], lambda parts: _replace(hollow, names, parts)
    return None


def _ordered(node: dict[Any, Tree]) -> list[Any]:
    try:
        return sorted(node)  # two dicts with the same keys are the same tree, whatever their history
    except TypeError:
        return list(node)


def _refill(node: dict[Any, Tree], keys: Sequence[Any], parts: Sequence[Tree]) -> Tree:
    new = copy.copy(node)  # keeps an OrderedDict ordered and a defaultdict its factory
    new.update(zip(keys, parts, strict=True))
    return new


def _replace(node: Any, names: Sequence[str], parts: Sequence[Tree]) -> Tree:
    new = copy.copy(node)
    for name, part in zip(names, parts, strict=True):
        object.__setattr__(new, name, part)  # a frozen dataclass too; __init__ may check or convert, so it is not run
    return new


def _names(node: Tree, count: int) -> list[str]:
    if isinstance(node, dict):
        return [f"[{key!r}]" for key in _ordered(node)]
    if hasattr(node, "_fields"):
        return [f".{name}" for name in node._fields]
    if dataclasses.is_dataclass(node) and len(dataclasses.fields(node)) == count:
        return [f".{field.name}" for field in dataclasses.fields(node)]
    return [f"[{index}]" for index in range(count)]
