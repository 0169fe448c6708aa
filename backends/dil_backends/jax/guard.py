"""Exceptions that callbacks raise while a program runs: a call of dil raises them itself, and not JAX's own error."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax

from dil._base.errors import ConvergenceError


@dataclass(eq=False)
class Collector:
    """The exceptions of the callbacks that were traced within one call of dil."""

    open: bool = True
    """Whether the call still runs."""
    used: bool = False
    """Whether a callback was traced, so that the call must wait for its results."""
    errors: list[ConvergenceError] = field(default_factory=list)


CURRENT: ContextVar[Collector | None] = ContextVar("dil_current_call", default=None)
RAISED: list[ConvergenceError] = []
"""The last exception that went through JAX, from a program that was traced in an earlier call."""


def current_collector() -> Collector | None:
    """Return the collector of the call of dil that is running, and mark it as used."""
    collector = CURRENT.get()
    if collector is not None:
        collector.used = True
    return collector


def keep_or_raise(error: ConvergenceError, collector: Collector | None) -> None:
    """Keep the exception of a callback for the call that waits for it. Without one, raise it into JAX."""
    if collector is not None and collector.open:
        collector.errors.append(error)
    else:
        RAISED[:] = [copy(error)]  # without the traceback, whose frames hold the arrays of the program
        raise error


def guard(fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
    """Return fn, which raises the `ConvergenceError` of a callback in the place of JAX's own error.

    A call in which a callback was traced waits for its results.
    """
    # no nested function: a warning of dil points to the first frame that is not dil's own
    return partial(_guarded, fn)


def _guarded(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    collector = Collector()
    token = CURRENT.set(collector)
    try:
        out = fn(*args, **kwargs)
        if collector.used:
            concrete = [x for x in jax.tree.leaves(out) if _is_concrete(x)]
            jax.block_until_ready(concrete)  # type: ignore[no-untyped-call]
    except jax.errors.JaxRuntimeError as error:
        # the last one may be of a program of the user's own, which has failed with it long ago
        if not RAISED or str(RAISED[0]) not in str(error):
            raise
        collector.errors.append(RAISED.pop())
    finally:
        collector.open = False
        CURRENT.reset(token)
    if collector.errors:
        raise collector.errors[0]
    return out


def _is_concrete(x: object) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
