"""Callbacks that send values from compiled programs to listeners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dil._frameworks.reports import Reports
from dil_backends.jax.guard import current_collector, report

RECORDING = jax.make_user_context(False)  # type: ignore[no-untyped-call]
"""A part of JAX's key for compiled programs. Programs that record are compiled separately."""


def failures(listener: Callable[[Any], None], status: Any, value: Any) -> Any:
    """Report failed statuses to `listener` when the program runs, or now if they are concrete. Return `value`.

    The callback is pure, and `value` depends on it. A callback with an effect would take every call of the program off
    JAX's fast path. A callback that runs at every call, not only after a failure, would cost about as much.
    """
    if not isinstance(status, jax.core.Tracer):
        listener(np.asarray(status))
        return value
    collector = current_collector()

    def call(code: jax.Array, value: jax.Array) -> Any:
        def tell(code: Any) -> Any:
            report(collector, partial(listener, np.asarray(code)))
            return np.asarray(code)

        called = jax.pure_callback(tell, jax.eval_shape(lambda: code), code, vmap_method="expand_dims")
        return jnp.where((called >= 0)[..., None], value, jnp.nan)  # keeps the callback from being removed as dead code

    return jax.lax.cond(jnp.any(status != 0), call, lambda code, value: value, status, value)


def values(listener: Callable[..., None], *arrays: jax.Array) -> None:
    """Call the listener each time that the program reaches this point, or now if the arrays are concrete.

    The callback has an effect.
    """

    def call(*arrays: Any) -> None:
        listener(*map(np.asarray, arrays))

    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        jax.debug.callback(call, *arrays)
    else:
        call(*arrays)


@contextmanager
def recording() -> Iterator[None]:
    """Compile jitted functions separately while recording. Wait for their callbacks at the end."""
    with RECORDING(True):
        yield
        jax.effects_barrier()  # type: ignore[no-untyped-call]


REPORTS = Reports(failures, values, recording)
