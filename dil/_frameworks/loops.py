"""The loops of eager arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dil._base.arrays import array_namespace
from dil._base.typing import Array, Arrays


def python_loop(cond: Callable[[Any], Array], body: Callable[[Any], Any], state: Any, /) -> Any:
    """Run `while cond(state): state = body(state)`; the condition is all that is read from the device."""
    while bool(cond(state)):
        state = body(state)
    return state


def python_run_if(condition: Array, fn: Callable[[Any], Any], state: Any, /) -> Any:
    """Return fn of the state if the condition holds, else the state."""
    return fn(state) if bool(condition) else state


def python_scan(
    step: Callable[[Arrays, Arrays], tuple[Arrays, Arrays]], carry: Arrays, xs: Arrays, /
) -> tuple[Arrays, Arrays]:
    """Run `carry, out = step(carry, x)` for the rows x of `xs` in turn; return the last carry and the outs, stacked."""
    outs = []
    for i in range(xs[0].shape[0]):
        x = tuple(every[i, ...] for every in xs)  # torch.vmap has no rule for `unstack`
        carry, out = step(carry, x)
        outs.append(out)
    return carry, tuple(array_namespace(*every).stack(list(every)) for every in zip(*outs, strict=True))
