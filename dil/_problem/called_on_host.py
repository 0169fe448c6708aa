"""A function of NumPy trees, called with trees of any backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dil._base.errors import ShapeError
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.arguments import split_arguments
from dil._frameworks.registry import common_owner, leaves_of


def called_on_host(fn: Callable[..., Tree], u: Tree, args: tuple[Tree, ...], kwargs: Mapping[str, Tree]) -> Tree:
    """Return fn(u, *args, **kwargs), a tree like u, of which no derivative is taken. It is computed with NumPy arrays.

    A solver calls the function of a layer in this way.
    """
    arrays, arguments = split_arguments((u, *args), kwargs)
    leaves, structure = leaves_of(u)
    backend = common_owner(arrays, [arguments.name(i) for i in range(len(arrays))], "a function on the host")

    def run(*arrays: Array) -> Arrays:
        positional, keywords = arguments.call([backend.to_numpy(x) for x in arrays])
        found, _ = leaves_of(fn(*positional, **keywords))
        shapes, expected = ([tuple(getattr(x, "shape", ())) for x in xs] for xs in (found, leaves))
        if shapes != expected:
            message = f"the function returned shapes {shapes}; expected {expected}, like u"
            raise ShapeError(message)
        return tuple(found)

    constants = [backend.constant(x) for x in arrays]
    return structure.unflatten(list(backend.loops.on_host(run, tuple(map(backend.constant, leaves)), *constants)))
