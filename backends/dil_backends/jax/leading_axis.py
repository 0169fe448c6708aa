"""The arrays of a batched primitive, with the batch axis as the first one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

Axis = int | None
"""The batch axis of an array, or None if all problems share it."""


def moved_to_front(arrays: Sequence[Any], axes: Sequence[Axis], spread: slice) -> tuple[list[Any], list[Axis]]:
    """Return the arrays, their batch axis first, and the new axes. Those at `spread` get an axis if they have none."""
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    moved = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True)]
    places: list[Axis] = [None if axis is None else 0 for axis in axes]
    for i in range(len(moved))[spread]:
        if axes[i] is None:
            moved[i], places[i] = jnp.broadcast_to(moved[i], (size, *jnp.shape(moved[i]))), 0
    return moved, places
