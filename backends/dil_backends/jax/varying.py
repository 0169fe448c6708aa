"""Types within `jax.shard_map`: an array varies over a mesh axis if its devices may hold different numbers.

`jax.shard_map` checks these types by default. The state of a loop, the two sides of a branch and a cotangent must vary
over the same axes before and after. A cast adds axes. Where nothing is mapped by shard, every function here returns
its arrays unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

Axes = frozenset[str]
NONE: Axes = frozenset()


def checked() -> bool:
    """Return whether the program that is traced runs on each shard by itself."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def axes_of(tree: Any) -> Axes:
    """Return the mesh axes over which any array of the tree varies."""
    found = NONE
    for x in jax.tree.leaves(tree):
        aval = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
        kind = getattr(aval, "manual_axis_type", None)
        found |= kind.varying if kind is not None else getattr(aval, "vma", None) or NONE
    return found


def cast(tree: Any, axes: Axes) -> Any:
    """Return the tree with arrays that vary over these axes, too."""

    def one(x: Any) -> Any:
        missing = axes - axes_of(x)
        return jax.lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x

    return jax.tree.map(one, tree) if axes else tree


def steady(step: Callable[[Any], Any], state: Any) -> tuple[Callable[[Any], Any], Any]:
    """Return a step from state to state, and its state, so that both vary over the same axes."""
    if not checked():
        return step, state
    axes = axes_of(state)
    while (wider := axes | axes_of(jax.eval_shape(step, cast(state, axes)))) != axes:
        axes = wider
    return lambda state: cast(step(state), axes), cast(state, axes)
