"""Failures that callbacks report while a program runs: the call of dil that waits for the program tells of them."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any

import jax

from dil._base.errors import ConvergenceError


@dataclass(eq=False)
class Collector:
    """The failures that callbacks reported within one call of dil."""

    open: bool = True
    """Whether the call still runs."""
    used: bool = False
    """Whether a callback was traced, so that the call must wait for its results."""
    reports: list[Callable[[], None]] = field(default_factory=list)

    @property
    def running(self) -> Collector | None:
        """The collector itself, while its call runs."""
        return self if self.open else None

    def tell(self) -> None:
        """Raise or warn, in the thread and at the line of the call."""
        for report in self.reports:
            report()


@dataclass(eq=False)
class Kept:
    """A compiled program, which many calls run, one after the other."""

    lock: Lock = field(default_factory=Lock)
    call: Collector | None = None
    """The collector of the call that runs the program, or of the call around it."""
    used: bool = False

    @property
    def running(self) -> Collector | None:
        """The collector that takes reports now."""
        return self.call if self.call is not None and self.call.open else None


CURRENT: ContextVar[Collector | Kept | None] = ContextVar("dil_current_call", default=None)
RAISED: list[ConvergenceError] = []
"""The last exception that went through JAX, from a program that no call of dil waited for."""


def current_collector() -> Collector | Kept | None:
    """Return what collects the reports of the program that is being traced, and mark it as used."""
    collector = CURRENT.get()
    if collector is not None:
        collector.used = True
    return collector


def report(collector: Collector | Kept | None, listener: Callable[[], None]) -> None:
    """Leave the report of a callback to the call that waits for it. Without one, raise or warn now, within JAX."""
    running = None if collector is None else collector.running
    if running is not None:
        running.reports.append(listener)
        return
    try:
        listener()
    except ConvergenceError as error:
        RAISED[:] = [copy(error)]  # without the traceback, whose frames hold the arrays of the program
        raise


def guard(fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
    """Return fn, which raises the `ConvergenceError` of a callback in the place of JAX's own error.

    A call in which a callback was traced waits for its results. `exact` changes nothing on JAX.
    """
    # no nested function: a warning of dil points to the first frame that is not dil's own
    return partial(_guarded, fn)


def compiled(fn: Callable[..., Any], /) -> Callable[..., Any]:
    """Return fn, compiled at its first call. A call waits for its results if it can report a failure."""
    kept = Kept()

    def traced(*arrays: Any) -> Any:
        token = CURRENT.set(kept)
        try:
            return fn(*arrays)
        finally:
            CURRENT.reset(token)

    return partial(_run, jax.jit(traced), kept)


def _guarded(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    collector = Collector()
    token = CURRENT.set(collector)
    try:
        out = fn(*args, **kwargs)
        _wait(collector, out)
    except jax.errors.JaxRuntimeError as error:
        _take(collector, error)
    finally:
        collector.open = False
        CURRENT.reset(token)
    collector.tell()
    return out


def _run(program: Callable[..., Any], kept: Kept, *arrays: Any) -> Any:
    around, collector = CURRENT.get(), Collector()
    with kept.lock:
        kept.call = collector
        try:
            out = program(*arrays)
            collector.used = kept.used
            _wait(collector, out)
        except jax.errors.JaxRuntimeError as error:
            _take(collector, error)
        finally:
            # what else the program computes later, such as a gradient, is reported to the call around this one
            kept.call = around if isinstance(around, Collector) else None
            if kept.call is not None:
                kept.call.used = kept.call.used or kept.used
    collector.tell()
    return out


def _wait(collector: Collector, out: Any) -> None:
    if collector.used:
        # under `jax.grad` the values are known, though the results are traced
        known = [jax.lax.stop_gradient(x) for x in jax.tree.leaves(out) if isinstance(x, jax.Array)]
        jax.block_until_ready([x for x in known if not isinstance(x, jax.core.Tracer)])  # type: ignore[no-untyped-call]


def _take(collector: Collector, error: Exception) -> None:
    """Keep dil's own exception, which JAX has wrapped. Raise any other one again."""
    # the last one may be of a program of the user's own, which has failed with it long ago
    if not RAISED or str(RAISED[0]) not in str(error):
        raise error
    collector.reports.append(partial(_raise, RAISED.pop()))


def _raise(error: ConvergenceError) -> None:
    raise error
