"""Trees of arrays: `flatten` splits a tree into leaves and a structure, and the structure rebuilds the tree."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dil._base.typing import Tree

Children = Callable[[object], tuple[Sequence[Tree], Callable[[Sequence[Tree]], Tree]] | None]


BUILTIN = (tuple, list, dict)


class Structure:
    """The structure of a tree. It rebuilds the tree from leaves, and has the path of each leaf for messages.

    It holds no leaf. A structure lives as long as the graph of the call, so a leaf in it would be in a reference cycle.
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
        """Rebuild the tree from its leaves."""
        return self.build(iter(leaves))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self.signature == other.signature

    def __hash__(self) -> int:
        return hash(self.signature)

    def __repr__(self) -> str:
        return f"Structure({', '.join(self.paths)})"


LEAF = Structure(next, ("",), ("*",))
"""The structure of a tree that is one leaf."""


def flatten(tree: Tree, children: Children) -> tuple[list[Any], Structure]:
    """Return the leaves of a tree in a fixed order, and its structure.

    Dicts, lists, tuples, namedtuples and dataclasses are split, and so are the nodes that `children` splits. Only plain
    dicts, lists and tuples are split without asking `children`: a framework's own pytrees take precedence over
    namedtuples, dataclasses and subclasses. All other objects are leaves.
    """
    walk = Walk(children, [], [], [])
    build = walk.visit(tree, "")
    return walk.leaves, Structure(build, tuple(walk.paths), tuple(walk.signature))


@dataclasses.dataclass(frozen=True)
class Walk:
    """The leaves, paths and signature of a tree, collected node by node.

    The recursion is a method. A closure that calls itself would be a reference cycle and keep the leaves alive.
    """

    children: Children
    leaves: list[Any]
    paths: list[str]
    signature: list[object]

    def visit(self, node: Tree, path: str) -> Callable[[Iterator[Any]], Tree]:
        """Collect the leaves below a node. Return a function that rebuilds the node from an iterator over leaves."""
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
        empty = _replace(node, names, [None] * len(names))
        return [getattr(node, name) for name in names], lambda parts: _replace(empty, names, parts)
    return None


def _ordered(node: dict[Any, Tree]) -> list[Any]:
    try:
        return sorted(node)  # dicts with the same keys are the same tree, in any order of insertion
    except TypeError:
        return list(node)


def _refill(node: dict[Any, Tree], keys: Sequence[Any], parts: Sequence[Tree]) -> Tree:
    new = copy.copy(node)  # keeps the order of an OrderedDict and the factory of a defaultdict
    new.update(zip(keys, parts, strict=True))
    return new


def _replace(node: Any, names: Sequence[str], parts: Sequence[Tree]) -> Tree:
    new = copy.copy(node)
    for name, part in zip(names, parts, strict=True):
        object.__setattr__(new, name, part)  # also if frozen; __init__ may check or convert, so it is not run
    return new


def _names(node: Tree, count: int) -> list[str]:
    if isinstance(node, dict):
        return [f"[{key!r}]" for key in _ordered(node)]
    if hasattr(node, "_fields"):
        return [f".{name}" for name in node._fields]
    if dataclasses.is_dataclass(node) and len(dataclasses.fields(node)) == count:
        return [f".{field.name}" for field in dataclasses.fields(node)]
    return [f"[{index}]" for index in range(count)]
