"""New code for a function of another library that is written in Python: it takes boxes too.

The function object stays the same, because users hold it (`from scipy.special import logsumexp`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

from dil_backends._tape.box import Box, holds_box
from dil_backends._tape.entries import joined
from dil_backends._tape.trace import MADE, OPEN


def add_branch(function: FunctionType, of_box: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
    """Let a function call `of_box(tape, args, options)` if an argument holds a box, and its own code otherwise."""
    signature, name = inspect.signature(function), function.__name__
    original = FunctionType(function.__code__, function.__globals__, name, function.__defaults__)
    original.__kwdefaults__ = function.__kwdefaults__

    def call(args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not OPEN.traces:
            return original(*args, **options)
        if MADE:
            args, options = joined(args), joined(options)
        box = first_box((*args, *options.values()))
        return original(*args, **options) if box is None else of_box(box._trace.tape, args, options)

    function.__dict__["__signature__"] = signature
    function.__kwdefaults__ = {"_call": call}
    function.__code__ = template.__code__.replace(co_name=name, co_qualname=name)
    function.__defaults__ = None


def template(*args: Any, _call: Callable[..., Any], **options: Any) -> Any:
    return _call(args, options)


def first_box(values: Any) -> Box | None:
    """Return a box among the values, also inside lists and tuples."""
    for value in values:
        if type(value) is Box:
            return value
        if holds_box(value):
            return first_box(value)
    return None
