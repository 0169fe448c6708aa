"""A user's function as it is at one moment, for derivatives that are computed later than the value."""

from __future__ import annotations

import dis
from collections.abc import Callable
from functools import cache
from types import CellType, CodeType, FunctionType
from typing import Any


def with_variables_of_now(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the variables that fn captures now, such as that of a loop around it.

    Other callables, and functions that assign to the variables, are returned as they are.
    """
    if not isinstance(fn, FunctionType) or not fn.__closure__ or _assigns(fn.__code__):
        return fn
    try:
        cells = tuple([CellType(cell.cell_contents) for cell in fn.__closure__])
    except ValueError:  # a name that is not bound yet
        return fn
    copy = FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, cells)
    copy.__kwdefaults__, copy.__qualname__ = fn.__kwdefaults__, fn.__qualname__
    copy.identity = getattr(fn, "identity", fn)  # type: ignore[attr-defined]
    return copy


def identity_of(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the user's function, of which fn may be a version by `fixed` or `once` of a backend."""
    return getattr(fn, "identity", fn)


def called(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return fn: operations run at once, and no program holds it."""
    return fn


@cache
def _assigns(code: CodeType) -> bool:
    """Whether a function, or one within it, assigns to a variable that it captures."""
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    stores = ("STORE_DEREF", "DELETE_DEREF")
    own = any(i.opname in stores and i.argval in code.co_freevars for i in dis.get_instructions(code))
    return own or any(map(_assigns, inner))
