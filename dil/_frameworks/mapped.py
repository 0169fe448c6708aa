"""A function of trees, mapped over a new first axis of some of their arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dil._base.arrays import array_namespace
from dil._base.typing import Array, Tree
from dil._frameworks.arguments import split_arguments
from dil._frameworks.protocol import Vectorise
from dil._frameworks.registry import leaves_of, owner


def mapped(fn: Callable[..., Tree], axes: Sequence[bool], size: int, vectorise: Vectorise) -> Callable[..., Tree]:
    """Return fn for many calls at once. The arrays of its arguments, in their order, have the new axis where `axes` is.

    If there are more arrays than axes, those that come first, such as the unknown, all have it. So has the result.
    """

    def run(*args: Tree, **kwargs: Tree) -> Tree:
        arrays, arguments = split_arguments(args, kwargs)
        structures = []

        def one(*arrays: Array) -> tuple[Any, ...]:
            args, kwargs = arguments.call(arrays)
            leaves, structure = leaves_of(fn(*args, **kwargs))
            structures.append(structure)
            return tuple(leaves)

        every = (*(True,) * (len(arrays) - len(axes)), *axes)
        found = vectorise(one, every)(*arrays) if any(every) else tuple(repeated(x, size) for x in one(*arrays))
        return structures[-1].unflatten(list(found))

    run.__name__ = getattr(fn, "__name__", type(fn).__name__)
    run.identity = getattr(fn, "identity", fn)  # type: ignore[attr-defined]
    run.modes = getattr(fn, "modes", None)  # type: ignore[attr-defined]
    return run


def repeated(x: Any, size: int) -> Any:
    """Return an array with a new first axis along which it is the same, and anything else as it is."""
    if owner(x) is None:
        return x
    return array_namespace(x).broadcast_to(x[None, ...], (size, *x.shape))
