"""Progress of a solver: the history of its residual, and a progress bar for long runs."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from threading import RLock
from typing import Any, Protocol, TypeVar

from dil._base.arrays import array_namespace, device, full
from dil._base.errors import OptionError
from dil._base.progress_bar import rich_progress
from dil._base.typing import Array
from dil._frameworks.iteration import repeat
from dil._frameworks.protocol import Backend

DELAY = 1.0
"""Seconds before a bar appears."""
REFRESH = 0.1
"""Seconds between two drawings of a bar."""


class State(Protocol):
    """The fields that the state of every solver has; both (*batch, 1)."""

    @property
    def steps(self) -> Array: ...
    @property
    def going(self) -> Array: ...


class Watched(Protocol):
    """A solver with the options `history` and `progress`."""

    @property
    def history(self) -> bool: ...
    @property
    def progress(self) -> bool: ...


S = TypeVar("S", bound=State)


def check_watched(solver: Watched) -> None:
    """Refuse options that are not booleans, and a progress bar that cannot be drawn."""
    for name, value in (("history", solver.history), ("progress", solver.progress)):
        if not isinstance(value, bool):
            message = f"{name}={value!r}; expected True or False"
            raise OptionError(message)
    if solver.progress:
        rich_progress()


def iterate_watched(
    solver: Watched,
    backend: Backend,
    step: Callable[[S], S],
    first: S,
    *,
    max_iter: int,
    residual: Callable[[S], Array],
) -> tuple[S, dict[str, Array]]:
    """Run `step` while a problem is going. Return the last state, and entries for the `extra` of the solution.

    The history, (max_iter, *batch), holds `residual(state)`, (*batch, 1): row k is that after step k + 1, NaN for a
    problem that took no such step.
    """
    if not solver.history and not solver.progress:
        return repeat(step, lambda s: s.going, first, loops=backend.loops), {}
    xp = array_namespace(first.steps)
    rows, batch = max_iter if solver.history else 0, first.steps.shape[:-1]
    numbers = xp.arange(1, rows + 1, dtype=first.steps.dtype, device=device(first.steps))
    numbers = xp.reshape(numbers, (rows, *(1 for _ in batch)))
    bar = Bar(type(solver).__name__, max_iter) if solver.progress else None

    def watched(s: tuple[S, Array]) -> tuple[S, Array]:
        old, history = s
        new = step(old)
        size = residual(new)[..., 0]
        here = (new.steps > old.steps)[..., 0] & (numbers == new.steps[..., 0])
        if bar is not None:
            backend.reports.values(bar.tick, new.steps, size, new.going)
        return new, xp.where(here, size, history)

    none = full(residual(first), float("nan"), shape=(rows, *batch))
    with bar or nullcontext():
        last, history = repeat(watched, lambda s: s[0].going, (first, none), loops=backend.loops)
    return last, {"history": history} if solver.history else {}


class Bar:
    """A progress bar that appears after a delay, and disappears with the last step or with an exception.

    A compiled program calls it from other threads, each time it runs, after the `with` block in which it was traced.
    It draws on stderr, only when `tick` is called: no thread can outlive the run.
    """

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._lock = RLock()
        self._since: float | None = None
        self._drawn = 0.0
        self._shown: Any = None

    def __enter__(self) -> Bar:
        self._since = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def tick(self, steps: Any, residual: Any, going: Any) -> None:
        """Record one step of every problem; NumPy arrays, shape (*batch, 1) or batch."""
        with self._lock:
            now, count = time.monotonic(), int(going.sum())
            self._since = now if self._since is None else self._since
            if self._shown is None and now - self._since >= DELAY:
                self._open()
            if self._shown is not None and (now - self._drawn >= REFRESH or not count):
                self._drawn = now
                worst = residual[residual == residual].max(initial=0.0)  # a NaN differs from itself
                note = f"residual {worst:.1e}" + (f", {count} going" if going.size > 1 else "")
                progress, task = self._shown
                progress.update(task, completed=int(steps.max(initial=0)), note=note, refresh=True)
            if not count:
                self.close()

    def _open(self) -> None:
        rich = rich_progress()
        from rich.console import Console

        columns = ("{task.description}", rich.BarColumn(), rich.MofNCompleteColumn(), "{task.fields[note]}")
        progress = rich.Progress(*columns, console=Console(stderr=True), auto_refresh=False)
        task = progress.add_task(self._name, total=self._total, note="")
        progress.start()
        # a program that dies between two ticks must not leave the terminal without a cursor
        self._finalizer = weakref.finalize(self, progress.stop)
        self._shown = progress, task

    def close(self) -> None:
        """Remove the bar, if there is one."""
        with self._lock:
            if self._shown is not None:
                self._finalizer()
            self._shown = self._since = None
