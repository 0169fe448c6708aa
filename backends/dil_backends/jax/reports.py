"""How values leave a compiled program: by callbacks, which are compiled in where somebody listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dil._frameworks.reports import Reports

RECORDING = jax.make_user_context(False)  # type: ignore[no-untyped-call]
"""A part of the key under which JAX keeps what it has compiled."""


def failures(listener: Callable[[Any], None], status: Any, value: Any) -> Any:
    """Call the listener when the program runs, if a status is not zero; at once if it is concrete.

    It is a pure callback that the value waits for: a callback with an effect would take every call of the program off
    JAX's fast path, and one that is made each time would cost as much again.
    """
    if not isinstance(status, jax.core.Tracer):
        listener(np.asarray(status))
        return value

    def call(code: jax.Array, value: jax.Array) -> Any:
        def report(code: Any) -> Any:
            listener(np.asarray(code))
            return np.asarray(code)

        called = jax.pure_callback(report, jax.eval_shape(lambda: code), code, vmap_method="expand_dims")
        return jnp.where((called >= 0)[..., None], value, jnp.nan)  # so that the call is no dead code

    return jax.lax.cond(jnp.any(status != 0), call, lambda code, value: value, status, value)


def values(listener: Callable[..., None], *arrays: jax.Array) -> None:
    """Call the listener by a callback with an effect, which is made as often as the program gets here; or at once."""

    def call(*arrays: Any) -> None:
        listener(*map(np.asarray, arrays))

    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        jax.debug.callback(call, *arrays)
    else:
        call(*arrays)


@contextmanager
def recording() -> Iterator[None]:
    """Have jitted functions compiled apart from those that do not record; wait for their callbacks at the end."""
    with RECORDING(True):
        yield
        jax.effects_barrier()  # type: ignore[no-untyped-call]


REPORTS = Reports(failures, values, recording)
