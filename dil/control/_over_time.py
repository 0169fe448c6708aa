"""Parameters that differ from time to time: arrays with a leading axis of times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device
from dil._base.errors import OptionError, ShapeError
from dil._base.in_words import in_words
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.loops import Scan
from dil._frameworks.registry import leaves_of, owner


class Rows(NamedTuple):
    """The arrays of a parameter that differ from time to time."""

    arrays: Arrays
    """Each has a leading axis of times."""
    at: Callable[[Sequence[Array]], Tree]
    """Return the parameter with these arrays in their place."""


@dataclass(frozen=True)
class OverTime:
    """Which arrays of a parameter have a leading axis of times."""

    name: str
    axis: Tree
    """None, 0, or a tree of these that begins like the parameter."""

    def __post_init__(self) -> None:
        if not _is_axis(self.axis):
            message = (
                f"{self.name}_axis={self.axis!r}; expected None, 0, or a tree of these, as in in_axes of jax.vmap: 0 "
                f"where an array of {self.name} has a leading axis of times"
            )
            raise OptionError(message)

    def rows(self, theta: Tree, times: int) -> Rows:
        """Return the arrays over time of a parameter, and how to put others in their place.

        Raises
        ------
        ShapeError
            If an array has no leading axis of `times` entries.
        """
        if self.axis is None:
            return Rows((), lambda _: theta)
        leaves, structure = leaves_of(theta)
        flags = leaves_of(self._flags(self.axis, theta))[0]
        places = [i for i, (x, flag) in enumerate(zip(leaves, flags, strict=True)) if flag and owner(x) is not None]
        for i in places:
            if leaves[i].ndim < 1 or leaves[i].shape[0] != times:
                message = (
                    f"an array of {self.name} has shape {tuple(leaves[i].shape)}; {self.name}_axis=0 expects a leading "
                    f"axis of {times} times"
                )
                raise ShapeError(message)

        def at(rows: Sequence[Array]) -> Tree:
            found = list(leaves)
            for i, row in zip(places, rows, strict=True):
                found[i] = row
            return structure.unflatten(found)

        return Rows(tuple(leaves[i] for i in places), at)

    def windows(self, theta: Tree, steps: int, times: int) -> Rows:
        """Return the `times` rows from each of some steps on, (steps, times, ...)."""
        arrays, at = self.rows(theta, steps - 1 + times)

        def window(x: Array) -> Array:
            xp = array_namespace(x)
            first, next_ones = xp.arange(steps, device=device(x)), xp.arange(times, device=device(x))
            rows = xp.reshape(first[:, None] + next_ones[None, :], (-1,))
            return xp.reshape(xp.take(x, rows, axis=0), (steps, times, *x.shape[1:]))  # type: ignore[no-any-return]

        return Rows(tuple(map(window, arrays)), at)

    def _flags(self, axis: Any, theta: Any) -> Tree:
        """Return theta with True in the place of each array that has an axis of times, and False elsewhere."""
        if axis is None or isinstance(axis, int):
            leaves, structure = leaves_of(theta)
            return structure.unflatten([axis is not None] * len(leaves))
        if isinstance(axis, dict) and isinstance(theta, dict) and axis.keys() == theta.keys():
            return {name: self._flags(axis[name], x) for name, x in theta.items()}
        if isinstance(axis, tuple | list) and isinstance(theta, tuple | list) and len(axis) == len(theta):
            return [self._flags(a, x) for a, x in zip(axis, theta, strict=True)]
        message = (
            f"{self.name}_axis={self.axis!r} has the part {axis!r} where {self.name} has {in_words(theta)}; expected "
            "None, 0, or a tree of these with the structure of the parameter"
        )
        raise OptionError(message)


def _is_axis(axis: Any) -> bool:
    if isinstance(axis, dict):
        return all(map(_is_axis, axis.values()))
    if isinstance(axis, tuple | list):
        return all(map(_is_axis, axis))
    return axis is None or (isinstance(axis, int) and not isinstance(axis, bool) and axis == 0)


def each_time(fn: Callable[..., Array], scan: Scan, rows: Arrays) -> Array:
    """Return fn of the rows of each time, stacked."""

    def step(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        return carry, (fn(*row),)

    found: Array
    _, (found,) = scan(step, (), rows)
    return found
