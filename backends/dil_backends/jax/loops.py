"""The control flow of JAX: loops that XLA compiles, and calls of the host from compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dil._frameworks.loops import Loops

Arrays = tuple[jax.Array, ...]


def run_if(condition: Any, fn: Callable[[Any], Any], state: Any, /) -> Any:
    """Run a loop of one step or none around a branch.

    A branch alone would be taken under `jax.vmap` whether a problem needs it or not. Out of a loop alone, XLA takes
    what does not depend on its state, such as the identity of a dense solve, and computes it though no step is made.
    """

    def once(s: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        return s[0] & ~s[0], jax.lax.cond(s[0], fn, lambda state: state, s[1])

    return jax.lax.while_loop(lambda s: s[0], once, (condition, state))[1]


def map_rows(fn: Callable[[Any], Any], rows: Any, /) -> Any:
    """Apply fn to all rows at once, or to one after the other where it holds what has no batching rule."""
    try:
        return jax.vmap(fn)(rows)
    except NotImplementedError:  # such as a pure_callback without a vmap_method
        return jax.lax.map(fn, rows)


def on_host(fn: Callable[..., Any], like: Any, *arrays: Any) -> Any:
    """Call fn behind a `pure_callback`; at once if the arrays are concrete."""
    if not any(isinstance(x, jax.core.Tracer) for x in arrays):
        return fn(*arrays)
    shapes = jax.eval_shape(lambda: like)
    return jax.pure_callback(
        lambda *xs: tuple(map(np.asarray, fn(*map(jnp.asarray, xs)))), shapes, *arrays, vmap_method="sequential"
    )


LOOPS = Loops(
    while_loop=jax.lax.while_loop,
    run_if=run_if,
    scan=jax.lax.scan,
    map_rows=map_rows,
    on_host=on_host,
    number=lambda x: x,
    steps_per_read=lambda x: 1,  # the loop runs on the device
)
