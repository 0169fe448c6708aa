"""Functions that pass values out of a program, which may be traced now and run later."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from dil._base.typing import Array


@dataclass(frozen=True)
class Reports:
    """Functions that call a listener when the program runs. A listener is a function of NumPy arrays."""

    failures: Callable[[Callable[[Any], None], Array, Array], Array]
    """`failures(listener, status, value)`: call the listener with the statuses if one is not zero; return the value.

    status: batch; value: (*batch, n). Code that uses the returned value runs after the listener.
    """
    values: Callable[..., None]
    """`values(listener, *arrays)`: call the listener with the arrays, each time that the program reaches this point."""
    recording: Callable[[], AbstractContextManager[object]]
    """`recording()`: return a context in which programs are compiled again. Its end waits for all reports."""


def eager_reports(to_numpy: Callable[[Array], Any]) -> Reports:
    """Return the reports of eager arrays, which call each listener at once."""

    def failures(listener: Callable[[Any], None], status: Array, value: Array) -> Array:
        listener(to_numpy(status))
        return value

    def values(listener: Callable[..., None], *arrays: Array) -> None:
        listener(*(to_numpy(x) for x in arrays))

    return Reports(failures, values, nullcontext)
