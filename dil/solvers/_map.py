"""A function from the unknown to something like it, a residual or a step, as a function of flat arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._arguments import Arguments, take_apart
from dil._errors import ShapeError
from dil._protocol import Backend
from dil._registry import common_owner
from dil._space import Space, space_of
from dil._typing import Array, Arrays, Tree
from dil.solvers._start import refuse_no_start


@dataclass(frozen=True)
class Map:
    """`fn(u, *args, **kwargs)`, a tree like u, between vectors (*batch, n)."""

    fn: Callable[..., Tree]
    backend: Backend
    space: Space
    arguments: Arguments

    def __call__(self, u: Array, *arrays: Array) -> Array:
        args, kwargs = self.arguments.call(arrays)
        name = getattr(self.fn, "__name__", type(self.fn).__name__)
        vector, space = space_of(self.fn(self.space.unravel(u), *args, **kwargs), len(self.space.batch), f"{name!r}")
        if space != self.space:
            message = f"{name!r} returned {space.describe()}; expected {self.space.describe()}, like the unknown"
            raise ShapeError(message)
        return vector


class MapStart(NamedTuple):
    """A map, its arguments, and the vector (*batch, n) that the solver starts from."""

    problem: Map
    u: Array
    arrays: Arrays


def start_map(
    solver: object, fun: Callable[..., Tree], init: Tree | None, args: tuple[Tree, ...], kwargs: Mapping[str, Tree]
) -> MapStart:
    """Return the map of one call of a solver; a `batch_ndim` of fun's says how many dimensions count problems.

    Raises
    ------
    OptionError
        If there is no start.
    """
    refuse_no_start(solver, init)
    arrays, arguments = take_apart(args, kwargs)
    u, space = space_of(init, getattr(fun, "batch_ndim", 0), "init")
    names = ["init", *(arguments.name(i) for i in range(len(arrays)))]
    backend = common_owner([u, *arrays], names, f"{type(solver).__name__}()")
    constants: Any = tuple(backend.constant(x) for x in arrays)
    return MapStart(Map(fun, backend, space, arguments), backend.constant(u), constants)
