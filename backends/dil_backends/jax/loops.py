"""Control flow under JAX: loops that XLA compiles, and calls of host functions from compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dil._base.typing import Arrays, Step
from dil._frameworks.loops import Loops, RecordedLoops, call_now, masked
from dil_backends.jax.branch import run_if
from dil_backends.jax.counted_scan import counted_scan, summing_scan
from dil_backends.jax.filling_loop import filling_loop
from dil_backends.jax.linear_map import linear
from dil_backends.jax.one_core import warn_of_one_core
from dil_backends.jax.varying import axes_of, cast, checked, steady


def while_loop(cond: Callable[[Any], Any], body: Callable[[Any], Any], state: Any, /) -> Any:
    """Run `jax.lax.while_loop`."""
    return jax.lax.while_loop(cond, *steady(body, state))


def scan(step: Step, carry: Arrays, xs: Arrays, count: Any = None, /) -> tuple[Arrays, Arrays]:
    """Run `jax.lax.scan`, or a loop over the first `count` rows."""
    if count is not None:
        if not checked():
            return counted_scan(step, carry, xs, count)
        step, xs = masked(step), (*xs, jnp.arange(xs[0].shape[0]) < count)

    def with_row(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        after, out = step(carry, x)
        return cast(after, axes), out

    _, carry = steady(lambda carry: step(carry, tuple(x[0, ...] for x in xs))[0], carry)
    axes = axes_of(carry)
    return jax.lax.scan(with_row, carry, xs)


def fold(
    step: Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]],
    carry: Arrays,
    sums: Arrays,
    rows: Arrays,
    count: Any,
    known: Arrays,
    /,
) -> tuple[Arrays, Arrays]:
    """Run a scan of scans: the derivative keeps the carry before each scan, and runs it again."""
    size = rows[0].shape[0] // known[0].shape[0]
    count = jnp.asarray(count, jnp.int32)
    if checked():
        return _masked_fold(step, (carry, sums), rows, count)

    def one(carry: Arrays, sums: Arrays, i: Any) -> tuple[Arrays, Arrays]:
        return step(carry, sums, tuple(jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False) for x in rows))

    def many(carry: Arrays, sums: Arrays, first: Any) -> tuple[Arrays, Arrays]:
        numbers = first + jnp.arange(size, dtype=jnp.int32)
        return summing_scan(one, carry, sums, numbers, jnp.clip(count - first, 0, size))

    firsts = size * jnp.arange(known[0].shape[0], dtype=jnp.int32)
    return summing_scan(many, carry, sums, firsts, (count + size - 1) // size, known)


def _masked_fold(
    step: Callable[..., tuple[Arrays, Arrays]], state: tuple[Arrays, Arrays], rows: Arrays, count: Any
) -> tuple[Arrays, Arrays]:
    size = len(state[0])

    def one(state: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        carry, sums = step(state[:size], state[size:], row)
        return (*carry, *sums), ()

    found, _ = scan(one, (*state[0], *state[1]), rows, count)
    return found[:size], found[size:]


def add_row(memory: Any, i: Any, row: Any, /) -> Any:
    """Return the memory with a row added to its row i, or unchanged if there is no row i."""
    if memory.shape[0] == 1:
        return memory + jnp.where(i == 0, row, 0.0)[None]
    return memory.at[i].add(row, mode="drop")


def map_rows(fn: Callable[[Any], Any], rows: Any, at_once: int | None = None, /) -> Any:
    """Apply fn to many rows at once by vmap. If fn has no batching rule, apply it to one row after the other."""
    if at_once == 1:
        return jax.lax.map(fn, rows)
    try:
        if at_once is None or at_once >= rows.shape[0]:
            return jax.vmap(fn)(rows)
        return jax.lax.map(fn, rows, batch_size=at_once)
    except NotImplementedError:  # such as a pure_callback without a vmap_method
        return jax.lax.map(fn, rows)


def map_many(fn: Callable[..., Any], stacked: Arrays, /) -> Any:
    """Apply fn to the rows of several arrays at once by vmap, or to one row after the other as above."""
    try:
        return jax.vmap(fn)(*stacked)
    except NotImplementedError:
        return jax.lax.map(lambda row: fn(*row), stacked)


def set_row(memory: Any, i: Any, row: Any, /) -> Any:
    """Return the memory with another row. XLA writes it in place inside a loop."""
    # `.at` would check that i is not negative and within the memory
    return jax.lax.dynamic_update_index_in_dim(memory, row.astype(memory.dtype), i, memory.ndim - 2)


def set_rows(memory: Any, places: Any, rows: Any, /) -> Any:
    """Return a batch of memories with another row in each."""
    outer = memory.ndim - places.ndim - 2
    flat = memory.reshape((*memory.shape[:outer], places.size, *memory.shape[-2:]))
    given = rows.astype(memory.dtype).reshape((*memory.shape[:outer], places.size, memory.shape[-1]))
    at = jnp.arange(places.size)
    found = flat.at[..., at, places.reshape(-1), :].set(
        given, mode="promise_in_bounds", indices_are_sorted=True, unique_indices=True
    )
    return found.reshape(memory.shape)


def on_host(fn: Callable[..., Any], like: Any, *arrays: Any) -> Any:
    """Call fn on the host by `pure_callback`. If the arrays are concrete, call it directly.

    The callback itself computes in NumPy, since JAX may run it in a thread that its operations need.
    """
    if not any(isinstance(x, jax.core.Tracer) for x in arrays):
        return call_now(fn, like, *arrays)
    warn_of_one_core(arrays)
    shapes = jax.eval_shape(lambda: cast(like, axes_of(arrays)))

    def call(*xs: Any) -> Any:
        found = fn(*map(np.asarray, xs))
        return tuple([np.asarray(x, dtype=shape.dtype) for x, shape in zip(found, shapes, strict=True)])

    return jax.pure_callback(call, shapes, *arrays, vmap_method="sequential")


LOOPS = Loops(
    while_loop=while_loop,
    run_if=run_if,
    scan=scan,
    map_rows=map_rows,
    set_row=set_row,
    set_rows=set_rows,
    places=lambda mask: None,  # the shapes of a program do not depend on values
    on_host=on_host,
    linear=linear,
    number=lambda x: x,
    numbers=lambda x: x,
    steps_per_read=lambda x: 1,  # the loop runs on the device
    recorded=RecordedLoops(fill=filling_loop, fold=fold, add_row=add_row),
)
