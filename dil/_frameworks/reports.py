"""Functions that pass values out of a program, which may be traced now and run later."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

from dil._base.typing import Array


@dataclass(frozen=True)
class Listener:
    """A function of dil that takes a report, and its first arguments. A program carries it as a text.

    So the program may be kept on disk, and run in another process.
    """

    function: str
    """`module:name` of a function `report(*details, array)`."""
    details: tuple[str, ...]

    def __call__(self, array: Any) -> None:
        """Take one report, a NumPy array."""
        module, _, name = self.function.partition(":")
        getattr(importlib.import_module(module), name)(*self.details, array)

    @property
    def text(self) -> str:
        """The listener as a text."""
        return json.dumps([self.function, *self.details])

    @classmethod
    def from_text(cls, text: str) -> Listener:
        """Return the listener of a text.

        Raises
        ------
        ValueError
            If its function is not one of dil's.
        """
        function, *details = json.loads(text)
        if not function.startswith("dil."):
            message = f"{function} is no function of dil"
            raise ValueError(message)
        return cls(function, tuple(details))


WARN_AT: ContextVar[tuple[str, int] | None] = ContextVar("dil_warn_at", default=None)
"""The file and the line that a warning points to, in the place of the caller."""


def users_frame(frameworks: str) -> tuple[int, FrameType]:
    """Return the stack level, as the caller counts it for `warnings.warn`, and the frame of the user's own line.

    That is the first one outside dil and the frameworks, whose packages are named, with spaces between them. Frameworks
    call through Python's contextlib and functools.
    """
    ours = {"dil", "dil_backends", "contextlib", "functools", *frameworks.split()}
    level, frame = 0, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ours:
        level, frame = level + 1, frame.f_back
    return level + 1, frame


def users_line(frameworks: str) -> tuple[str, int]:
    """Return the file and the line of the user's own code, to which a warning points."""
    frame = users_frame(frameworks)[1]
    return WARN_AT.get() or (frame.f_code.co_filename, frame.f_lineno)


@contextmanager
def warnings_at(place: tuple[str, int]) -> Iterator[None]:
    """Let the warnings of a report point to a file and a line."""
    token = WARN_AT.set(place)
    try:
        yield
    finally:
        WARN_AT.reset(token)


@dataclass(frozen=True)
class Reports:
    """Functions that call a listener when the program runs. A listener is a function of NumPy arrays."""

    failures: Callable[[Listener, Array, Array], Array]
    """`failures(listener, status, value)`: call the listener with the statuses if one is not zero; return the value.

    status: batch; value: (*batch, n). Code that uses the returned value runs after the listener.
    """
    values: Callable[..., None]
    """`values(listener, *arrays)`: call the listener with the arrays, each time that the program reaches this point."""
    recording: Callable[[], AbstractContextManager[object]]
    """`recording()`: return a context in which programs are compiled again. Its end waits for all reports."""


def eager_reports(to_numpy: Callable[[Array], Any]) -> Reports:
    """Return the reports of eager arrays, which call each listener at once."""

    def failures(listener: Listener, status: Array, value: Array) -> Array:
        listener(to_numpy(status))
        return value

    def values(listener: Callable[..., None], *arrays: Array) -> None:
        listener(*(to_numpy(x) for x in arrays))

    return Reports(failures, values, nullcontext)
