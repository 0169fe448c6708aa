"""What an object is, in one line: functions by name, solvers with the options that are not their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

LONGEST = 60
"""The most characters of one part."""


def one_line(thing: object) -> str:
    """Describe an object in one line. Arrays are described by type and shape, since their numbers take space."""
    if is_dataclass(thing) and not isinstance(thing, type):
        return f"{type(thing).__name__}({', '.join(_options(thing))})"
    if hasattr(thing, "shape") and hasattr(thing, "dtype"):
        return f"{type(thing).__name__} of shape {tuple(thing.shape)}"
    if isinstance(thing, list | tuple):
        text = f"({', '.join(map(one_line, thing))}{',' if len(thing) == 1 else ''})"
    elif isinstance(thing, Mapping):
        text = f"{{{', '.join(f'{key!r}: {one_line(x)}' for key, x in thing.items())}}}"
    elif callable(thing):
        text = getattr(thing, "__name__", type(thing).__name__)
    else:
        text = " ".join(repr(thing).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def made_by(function: str, *things: object, **options: object) -> str:
    """Return the call that makes an object; options that are None are left out."""
    named = (f"{name}={one_line(x)}" for name, x in options.items() if x is not None)
    return f"{function}({', '.join([*map(one_line, things), *named])})"


def _options(thing: Any) -> list[str]:
    shown = [part for part in fields(thing) if part.init and part.repr]
    return [f"{part.name}={one_line(x)}" for part in shown if not _is_default(part, x := getattr(thing, part.name))]


def _is_default(part: Field[Any], value: object) -> bool:
    default = part.default if part.default_factory is MISSING else part.default_factory()
    # two arrays have no single truth value, so a type that differs decides first
    return value is default or (type(value) is type(default) and not hasattr(value, "shape") and value == default)
