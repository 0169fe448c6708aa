"""The loop of eager arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dil._typing import Array


def python_loop(cond: Callable[[Any], Array], body: Callable[[Any], Any], state: Any, /) -> Any:
    """Run `while cond(state): state = body(state)`; the condition is all that is read from the device."""
    while bool(cond(state)):
        state = body(state)
    return state
