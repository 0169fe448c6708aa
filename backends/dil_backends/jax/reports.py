"""Reports: calls that send values from compiled programs to listeners."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dil._frameworks.reports import Listener, Reports, users_line
from dil_backends.jax import foreign_call
from dil_backends.jax.guard import current_number, report

RECORDING = jax.make_user_context(False)  # type: ignore[no-untyped-call]
"""A part of JAX's key for compiled programs. Programs that record are compiled separately."""


def failures(listener: Listener, status: Any, value: Any) -> Any:
    """Report failed statuses to `listener` when the program runs, or now if they are concrete. Return `value`.

    The call has no effect, and `value` depends on it. A call with an effect would take every call of the program off
    JAX's fast path. A call at every run, not only after a failure, would cost about as much.
    """
    if not isinstance(status, jax.core.Tracer):
        listener(np.asarray(status))
        return value
    text, number = json.dumps([listener.text, *users_line("jax jaxlib")]), current_number()

    def tell(code: jax.Array, value: jax.Array) -> Any:
        zero = jax.lax.platform_dependent(
            number, _reportable(code), cpu=partial(foreign_call.call, text), default=partial(_host_callback, text)
        )
        return jnp.where(zero == 0, value, jnp.nan)  # keeps the call from being removed as dead code

    return jax.lax.cond(jnp.any(status != 0), tell, lambda code, value: value, status, value)


def _reportable(code: jax.Array) -> jax.Array:
    """Return numbers of a dtype that the foreign call takes."""
    return code.astype(jnp.float32) if code.dtype.itemsize < 4 else code


def _host_callback(text: str, number: jax.Array, code: jax.Array) -> Any:
    """Report through a callback of JAX. Other platforms than the CPU hold the numbers where Python cannot read them."""

    def tell(number: Any, code: Any) -> Any:
        _take(text, np.asarray(number), np.asarray(code))
        return np.zeros(np.shape(code)[: np.ndim(code) - ndim], np.int32)

    ndim, zero = code.ndim, jax.ShapeDtypeStruct((), np.int32)  # type: ignore[no-untyped-call]
    return jax.pure_callback(tell, zero, number, code, vmap_method="expand_dims")


def _take(text: str, number: Any, code: Any) -> None:
    """Take a report of a program, in one of XLA's threads: the numbers belong to the program."""
    listener, file, line = json.loads(text)
    report(int(number.flat[0]), Listener.from_text(listener), np.array(code), (file, line))


ALIVE = foreign_call.register(_take)
"""The foreign function, which programs call as long as the process lives."""


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


class OpenRecords(threading.local):
    """The records that are open in a thread. Tasks of asyncio may close them in any order."""

    count = 0
    compiling: AbstractContextManager[object]


HERE = OpenRecords()


class Recording:
    """A context in which jitted functions are compiled separately. Its end waits for their callbacks."""

    def __enter__(self) -> None:
        self._thread = threading.get_ident()
        if HERE.count == 0:
            HERE.compiling = RECORDING(True)
            HERE.compiling.__enter__()
        HERE.count += 1

    def __exit__(self, *error: object) -> None:
        try:
            jax.effects_barrier()  # type: ignore[no-untyped-call]
        finally:
            if self._thread == threading.get_ident():  # what another thread compiles, JAX lets nobody else set
                HERE.count -= 1
                if HERE.count == 0:
                    HERE.compiling.__exit__(None, None, None)


REPORTS = Reports(failures, values, Recording)
