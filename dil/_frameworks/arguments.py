"""The arguments of one call, split into their arrays and a record that rebuilds the call from arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import is_
from typing import Any

from dil._base.arrays import array_namespace, is_complex, is_float, is_inexact
from dil._base.errors import ShapeError
from dil._base.in_words import in_words
from dil._base.tree import Structure, flatten
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import adopted, as_one_array, complex_parts_of, leaves_of, load, owner

BARE = r"\[(0|1)\]\[(?:'\w+'|\d+)\]"
"""The path of an argument that is one array."""
IN_A_LIST = re.compile(rf"^{BARE}\[\d+\]")
"""The start of the path of an entry of an argument that is a list or a tuple."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call, without their arrays: the structure of `(args, kwargs)` and its other leaves.

    It holds no array. Derivatives are taken of functions of the flat arrays, and an array that is stored here would
    keep memory or a tracer alive.
    """

    structure: Structure
    statics: tuple[Any, ...]
    """All leaves, with None in the place of each array."""
    arrays: tuple[int, ...]
    """The positions of the arrays among the leaves."""
    floats: tuple[int, ...]
    """The positions of the real and complex floating arrays among the arrays. Only these have a derivative."""
    plain: bool = False
    """Whether each argument is positional and one array. Then there is no tree to rebuild."""
    split: tuple[int, ...] = ()
    """The positions of the complex arrays that are given by their real and imaginary parts."""

    def call(self, arrays: Sequence[Any]) -> tuple[tuple[Tree, ...], dict[str, Tree]]:
        """Return the positional and keyword arguments that contain these arrays."""
        if self.split:
            arrays = [complex_parts_of(x).join(x) if i in self.split else x for i, x in enumerate(arrays)]
        if self.plain:
            return tuple(arrays), {}
        leaves = list(self.statics)
        for place, array in zip(self.arrays, arrays, strict=True):
            leaves[place] = array
        args, kwargs = self.structure.unflatten(leaves)
        return args, kwargs

    def only_floats(self, arrays: Sequence[Any]) -> Arrays:
        """Return the arrays that have a derivative."""
        return tuple(arrays[i] for i in self.floats)

    def with_floats(self, arrays: Sequence[Any], floats: Sequence[Any]) -> list[Any]:
        """Return the arrays, where `floats` replace the arrays that have a derivative."""
        merged = list(arrays)
        for i, value in zip(self.floats, floats, strict=True):
            merged[i] = value
        return merged

    def cotangents(self, parts: tuple[Tree, ...], arrays: Sequence[Array]) -> list[Array]:
        """Flatten the result of `derivatives.mixed` into one cotangent for each array. None stands for zero.

        Raises
        ------
        ShapeError
            If an entry is missing or has the wrong shape or dtype.
        """
        args, kwargs = self.call(arrays)
        if not isinstance(parts, tuple) or len(parts) != len(args) + bool(kwargs):
            message = (
                f"derivatives.mixed returned {in_words(parts)}; expected a tuple of {len(args)} entries, one per "
                f"positional argument{', and a dict for the keyword arguments' if kwargs else ''}"
            )
            raise ShapeError(message)
        given = [*parts, {}] if not kwargs else list(parts)
        leaves: list[Array] = []
        for entry, like in zip(given, [*args, kwargs], strict=True):
            leaves.extend(_cotangents_like(entry, like))
        return [
            complex_parts_of(x).split(complex_parts_of(x).cotangent(x)) if i in self.split else x
            for i, x in enumerate(leaves)
        ]

    def in_tree(self, array: int) -> bool:
        """Return whether one of the arrays is an entry of a tree, such as a module, and no argument by itself."""
        return not self.plain and re.fullmatch(BARE, self.structure.paths[self.arrays[array]]) is None

    def name(self, array: int) -> str:
        """Return the name of one of the arrays, in the words of the call."""
        return name_of(self.structure.paths[self.arrays[array]])

    def described(self, array: int, x: Array) -> str:
        """Return the name of an array with its dtype, which is that of its parts if it is complex."""
        return f"{self.name(array)} has {'complex numbers of ' if array in self.split else ''}dtype {x.dtype}"


NO_START = Arguments(flatten(((None,), {}), lambda _: None)[1], (None,), (), ())
"""The start of a call that has none."""


def split_arguments(
    args: Sequence[Tree], kwargs: Mapping[str, Tree], beside: Sequence[Any] = ()
) -> tuple[list[Any], Arguments]:
    """Return the arrays of a call, and a record of all its other parts.

    A framework among the arguments, or among the arrays `beside` them, may adopt the arrays of another one.
    """
    if not kwargs and len(owners := {owner(x) for x in (*args, *beside)}) == 1 and None not in owners:
        arrays = list(map(as_one_array, args))
        floats = tuple([i for i, x in enumerate(arrays) if is_inexact(array_namespace(x), x.dtype)])
        return arrays, _positional(len(args), floats)
    leaves, structure = leaves_of((tuple(args), dict(kwargs)))
    leaves = with_numbers_as_arrays(adopted(leaves, beside), structure, beside)
    places = tuple(i for i, leaf in enumerate(leaves) if owner(leaf) is not None)
    arrays = [leaves[i] for i in places]
    statics = list(leaves)
    for i in places:
        statics[i] = None
    floats = tuple(i for i, x in enumerate(arrays) if is_inexact(array_namespace(x), x.dtype))
    plain = not kwargs and len(args) == len(arrays) and all(map(is_, args, arrays))
    return arrays, Arguments(structure, tuple(statics), places, floats, plain)


def with_numbers_as_arrays(leaves: Sequence[Any], structure: Structure, beside: Sequence[Any] = ()) -> list[Any]:
    """Return the leaves, with Python's floats and complex numbers as arrays of NumPy if nothing says otherwise.

    An array among the leaves or `beside` them says otherwise: then a number is a constant. So does a list of numbers,
    which NumPy would take for an array and dil for a tree.
    """
    if any(owner(x) is not None for x in (*leaves, *beside)) or any(map(IN_A_LIST.search, structure.paths)):
        return list(leaves)
    return [load("numpy").asarray(x) if type(x) in (float, complex) else x for x in leaves]


def with_complex_split(arrays: list[Any], arguments: Arguments) -> tuple[list[Any], Arguments]:
    """Return the arrays of a call with the complex ones as real arrays of their parts, (*shape, 2), and its record."""
    split = tuple([i for i in arguments.floats if is_complex(array_namespace(arrays[i]), arrays[i].dtype)])
    if not split:
        return arrays, arguments
    return [complex_parts_of(x).split(x) if i in split else x for i, x in enumerate(arrays)], replace(
        arguments, split=split
    )


def with_promoted_trees(
    arrays: Sequence[Any], arguments: Arguments, starts: Sequence[Any], backend: Backend
) -> list[Any]:
    """Return the arrays of a call, those of trees in the dtype of the others if the framework promotes them.

    The parameters of a module are often narrower than the data. An argument that is one array keeps its dtype.
    """
    trees = [i for i in arguments.floats if arguments.in_tree(i)]
    if not trees:
        return list(arrays)
    others = [*(arrays[i] for i in arguments.floats if i not in trees), *starts]
    dtypes = {x.dtype for x in others if is_float(array_namespace(x), x.dtype)}
    if len(dtypes) != 1:
        return list(arrays)
    (dtype,) = dtypes
    return [backend.adopt(x, dtype) if i in trees and x.dtype != dtype else x for i, x in enumerate(arrays)]


@lru_cache(maxsize=1024)
def _positional(count: int, floats: tuple[int, ...]) -> Arguments:
    """Return the record of a call with `count` arrays of one framework as positional arguments."""
    structure = flatten(((0.0,) * count, {}), lambda _: None)[1]
    return Arguments(structure, (None,) * count, tuple(range(count)), floats, plain=True)


def _cotangents_like(entry: Tree, like: Tree) -> list[Array]:
    """Return one cotangent for each array of `like`. The entry has the structure of `like`, or is None for zero."""
    if isinstance(like, dict) and isinstance(entry, dict):
        if not set(entry) <= set(like):
            message = f"derivatives.mixed returned keys {sorted(entry)}; expected {sorted(like)}, those of the argument"
            raise ShapeError(message)
        return [leaf for key in sorted(like) for leaf in _cotangents_like(entry.get(key), like[key])]
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


@lru_cache(maxsize=1024)
def name_of(path: str) -> str:
    """Return the words for a path in `(args, kwargs)`.

    >>> name_of("[0][1]['w']")
    "argument 1['w']"
    >>> name_of("[1]['theta'][0]")
    'argument theta[0]'
    """
    match = re.match(r"\[(0|1)\]\[(?:'(\w+)'|(\d+))\](.*)", path, re.DOTALL)
    if match is None:
        return f"argument {path}"
    return f"argument {match[2] or match[3]}{match[4]}"
