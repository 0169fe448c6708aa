"""The arguments of one call: the arrays among their leaves, and how to put the call together again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

from dil._base.arrays import array_namespace, is_float
from dil._base.errors import ShapeError
from dil._base.tree import Structure
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.registry import leaves_of, owner


@dataclass(frozen=True)
class Arguments:
    """The structure of `(args, kwargs)`, the leaves that are not arrays, and the positions of arrays and floats.

    It holds no array, which would keep memory or a tracer alive.
    """

    structure: Structure
    statics: tuple[Any, ...]
    """Every leaf, None in the place of an array."""
    arrays: tuple[int, ...]
    """Which leaves are arrays."""
    floats: tuple[int, ...]
    """Which of the arrays have a derivative."""
    plain: bool = False
    """Whether every argument is positional and one array, so that no tree has to be built."""

    def call(self, arrays: Sequence[Any]) -> tuple[tuple[Tree, ...], dict[str, Tree]]:
        """Return the positional and keyword arguments with these arrays in place."""
        if self.plain:
            return tuple(arrays), {}
        leaves = list(self.statics)
        for place, array in zip(self.arrays, arrays, strict=True):
            leaves[place] = array
        args, kwargs = self.structure.unflatten(leaves)
        return args, kwargs

    def only_floats(self, arrays: Sequence[Any]) -> Arrays:
        """Pick the arrays that have a derivative."""
        return tuple(arrays[i] for i in self.floats)

    def with_floats(self, arrays: Sequence[Any], floats: Sequence[Any]) -> list[Any]:
        """Return the arrays with `floats` in the place of those that have a derivative."""
        merged = list(arrays)
        for i, value in zip(self.floats, floats, strict=True):
            merged[i] = value
        return merged

    def cotangents(self, parts: tuple[Tree, ...], arrays: Sequence[Array]) -> list[Array]:
        """Flatten cotangents given like the arguments (None for zero) into one for each array.

        Raises
        ------
        ShapeError
            If an entry is missing or has the wrong shape or dtype.
        """
        args, kwargs = self.call(arrays)
        if not isinstance(parts, tuple) or len(parts) != len(args) + bool(kwargs):
            message = (
                f"derivatives.mixed returned {parts!r}; expected a tuple of {len(args)} entries, one per positional "
                f"argument{', and a dict of those of the keyword arguments' if kwargs else ''}"
            )
            raise ShapeError(message)
        given = [*parts, {}] if not kwargs else list(parts)
        leaves: list[Array] = []
        for entry, like in zip(given, [*args, kwargs], strict=True):
            leaves.extend(_like(entry, like))
        return leaves

    def name(self, array: int) -> str:
        """Name one of the arrays as the caller knows it."""
        return name_of(self.structure.paths[self.arrays[array]])


def split_arguments(args: Sequence[Tree], kwargs: Mapping[str, Tree]) -> tuple[list[Any], Arguments]:
    """Split a call into its arrays and the structure around them."""
    leaves, structure = leaves_of((tuple(args), dict(kwargs)))
    places = tuple(i for i, leaf in enumerate(leaves) if owner(leaf) is not None)
    arrays = [leaves[i] for i in places]
    statics = list(leaves)
    for i in places:
        statics[i] = None
    floats = tuple(i for i, x in enumerate(arrays) if is_float(array_namespace(x), x.dtype))
    plain = not kwargs and len(args) == len(arrays) and all(map(is_, args, arrays))
    return arrays, Arguments(structure, tuple(statics), places, floats, plain)


def _like(entry: Tree, like: Tree) -> list[Array]:
    """Return one cotangent for each array of `like`, from an entry of its structure or None."""
    if isinstance(like, dict) and isinstance(entry, dict):
        if not set(entry) <= set(like):
            message = f"derivatives.mixed returned keys {sorted(entry)}; expected {sorted(like)}, those of the argument"
            raise ShapeError(message)
        return [leaf for key in sorted(like) for leaf in _like(entry.get(key), like[key])]
    arrays = [x for x in leaves_of(like)[0] if owner(x) is not None]
    if entry is None:
        return [array_namespace(x).zeros_like(x) for x in arrays]
    found = [x for x in leaves_of(entry)[0] if owner(x) is not None]
    if [(x.shape, x.dtype) for x in found] != [(x.shape, x.dtype) for x in arrays]:
        message = (
            f"derivatives.mixed returned arrays of shapes {[(tuple(x.shape), str(x.dtype)) for x in found]} for an "
            f"argument of shapes {[(tuple(x.shape), str(x.dtype)) for x in arrays]}; each entry must be like its "
            f"argument, or None"
        )
        raise ShapeError(message)
    return found


def name_of(path: str) -> str:
    """Turn a path in `(args, kwargs)` into words.

    >>> name_of("[0][1]['w']")
    "argument 1['w']"
    >>> name_of("[1]['theta'][0]")
    'argument theta[0]'
    """
    match = re.match(r"\[(0|1)\]\[(?:'(\w+)'|(\d+))\](.*)", path, re.DOTALL)
    if match is None:
        return f"argument {path}"
    return f"argument {match[2] or match[3]}{match[4]}"
