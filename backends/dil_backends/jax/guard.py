"""Failures that a program reports while it runs: the call of dil that waits for the program tells of them."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from threading import Event
from typing import Any

import jax
import numpy as np

from dil._base.errors import ConvergenceError
from dil._frameworks.reports import Listener, warnings_at


@dataclass(eq=False)
class Collector:
    """The failures that programs reported within one call of dil."""

    used: bool = False
    """Whether a program can report, so that the call must wait for its results."""
    reports: list[Callable[[], None]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """The numbers of the runs whose reports the call takes."""

    def tell(self) -> None:
        """Raise or warn, in the thread and at the line of the call."""
        for report in self.reports:
            report()

    def close(self) -> None:
        """Take no more reports."""
        for number in self.numbers:
            WAITING.pop(number, None)


@dataclass(eq=False)
class Traced:
    """A program that dil compiles. It gets the number of each run as an argument."""

    number: Any
    used: bool = False


CURRENT: ContextVar[Collector | Traced | None] = ContextVar("dil_current_call", default=None)
"""The innermost call of dil, or the program that it traces."""
WAITING: dict[int, Collector] = {}
"""The calls that wait for a run, by its number."""
NUMBERS = count()
NOBODY = 0
"""The number of every run of a program that the user compiles."""
PROGRAMS_REPORT = Event()
"""Whether any program that can report was traced."""
RAISED: list[ConvergenceError] = []
"""The last exception that went through JAX, from a program that no call of dil waited for."""


def current_number() -> Any:
    """Return the number of the run, for the program that is being traced, and mark that it can report."""
    current = CURRENT.get()
    PROGRAMS_REPORT.set()
    if current is not None:
        current.used = True
    return current.number if isinstance(current, Traced) else np.int32(NOBODY)


def may_run_programs() -> None:
    """Mark that the current call runs code of the user, in which may be a program that was traced before."""
    current = CURRENT.get()
    if isinstance(current, Collector) and PROGRAMS_REPORT.is_set():
        current.used = True


def report(number: int, listener: Listener, array: Any, place: tuple[str, int]) -> None:
    """Leave a report to the call that waits for the run. Without one, raise or warn now, within JAX."""
    collector = WAITING.get(number)
    if collector is not None:
        collector.reports.append(partial(listener, array))
        return
    try:
        with warnings_at(place):
            listener(array)
    except ConvergenceError as error:
        RAISED[:] = [copy(error)]  # without the traceback, whose frames hold the arrays of the program
        raise


def guard(fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
    """Return fn, which raises the `ConvergenceError` of a program in the place of JAX's own error.

    A call waits for its results if a program that reports was traced in it, or may have run in it. `exact` changes
    nothing on JAX.
    """
    # no nested function: a warning of dil points to the first frame that is not dil's own
    return partial(_guarded, fn)


def compiled(fn: Callable[..., Any], /) -> Callable[..., Any]:
    """Return fn, compiled at its first call. A call waits for its results if it can report a failure.

    Arrays of a weak type, such as `jnp.asarray(0.5)`, take the program of their dtype: JAX would compile another one.
    """
    reports: list[bool] = []

    def traced(number: Any, *arrays: Any) -> Any:
        current = Traced(number)
        token = CURRENT.set(current)
        try:
            return fn(*arrays)
        finally:
            CURRENT.reset(token)
            if current.used:
                reports.append(True)

    return partial(_run, jax.jit(traced), reports)


def _guarded(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    collector = Collector()
    token = CURRENT.set(collector)
    try:
        out = fn(*args, **kwargs)
        if collector.used:
            _wait(out)
    except jax.errors.JaxRuntimeError as error:
        _take(collector, error)
    finally:
        collector.close()
        CURRENT.reset(token)
    collector.tell()
    return out


def _run(program: Callable[..., Any], reports: list[bool], *arrays: Any) -> Any:
    around, collector, number = CURRENT.get(), Collector(), 1 + next(NUMBERS) % (2**31 - 1)
    WAITING[number] = collector
    try:
        out = program(np.int32(number), *(x.astype(x.dtype) if getattr(x, "weak_type", False) else x for x in arrays))
        if reports:
            _wait(out)
    except jax.errors.JaxRuntimeError as error:
        _take(collector, error)
    finally:
        # what else the program computes later, such as a gradient, is reported to the call around this one
        if isinstance(around, Collector):
            WAITING[number] = around
            around.numbers.append(number)
            around.used = around.used or bool(reports)
        else:
            del WAITING[number]
    collector.tell()
    return out


def _wait(out: Any) -> None:
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
