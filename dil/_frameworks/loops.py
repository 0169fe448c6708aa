"""The control flow of a framework, and that of eager arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dil._base.arrays import array_namespace
from dil._base.typing import Array, Arrays, Loop, Step


@dataclass(frozen=True)
class Loops:
    """The control flow of a framework. A numerical routine takes it from here and never imports the framework."""

    while_loop: Loop
    """`while_loop(cond, body, state)`: run `while cond(state): state = body(state)`.

    Only the condition is read from the device.
    """

    run_if: Callable[[Array, Callable[[Any], Any], Any], Any]
    """`run_if(condition, fn, state)`: return fn(state) if the condition, shape (), holds, else the state.

    fn costs nothing where the condition does not hold.
    """

    scan: Callable[[Step, Arrays, Arrays], tuple[Arrays, Arrays]]
    """`scan(step, carry, xs)`: run `carry, out = step(carry, x)` for the rows x of `xs`, one or more.

    Returns the last carry and the outs, stacked. It differentiates through its steps, in both modes.
    """

    map_rows: Callable[[Callable[[Array], Array], Array], Array]
    """`map_rows(fn, rows)`: return fn of each row of `rows`, (k, ...), stacked; all at once where the framework can."""

    on_host: Callable[..., Arrays]
    """`on_host(fn, like, *arrays)`: call fn with concrete arrays, outside any trace. The arrays must be constants.

    The results of fn have the shapes and dtypes of `like`.
    """

    number: Callable[[Array], Any]
    """`number(x)`: return a 0-D array as a Python number where reading it costs nothing, else x itself."""

    steps_per_read: Callable[[Array], int]
    """`steps_per_read(x)`: return how many steps a loop over arrays like x takes for each read of its condition.

    A read makes the host wait for a device, so on devices it is more than one.
    """


def with_loop(loops: Loops, while_loop: Loop | None) -> Loops:
    """Return the loops with another while loop; as they are if it is None."""
    return loops if while_loop is None or while_loop is loops.while_loop else replace(loops, while_loop=while_loop)


def python_while(cond: Callable[[Any], Array], body: Callable[[Any], Any], state: Any, /) -> Any:
    """Run a while loop in Python."""
    while bool(cond(state)):
        state = body(state)
    return state


def python_if(condition: Array, fn: Callable[[Any], Any], state: Any, /) -> Any:
    """Branch in Python."""
    return fn(state) if bool(condition) else state


def python_scan(step: Step, carry: Arrays, xs: Arrays, /) -> tuple[Arrays, Arrays]:
    """Run a scan in Python."""
    outs = []
    for i in range(xs[0].shape[0]):
        x = tuple(every[i, ...] for every in xs)  # torch.vmap has no rule for `unstack`
        carry, out = step(carry, x)
        outs.append(out)
    return carry, tuple(array_namespace(*every).stack(list(every)) for every in zip(*outs, strict=True))


def python_map(fn: Callable[[Array], Array], rows: Array, /) -> Array:
    """Apply fn to one row after the other."""
    xp = array_namespace(rows)
    return xp.stack([fn(rows[i, ...]) for i in range(rows.shape[0])])  # type: ignore[no-any-return]


def call_now(fn: Callable[..., Arrays], like: Arrays, *arrays: Array) -> Arrays:
    """Call fn: eager arrays are concrete."""
    return fn(*arrays)


EAGER = Loops(
    while_loop=python_while,
    run_if=python_if,
    scan=python_scan,
    map_rows=python_map,
    on_host=call_now,
    number=lambda x: x,
    steps_per_read=lambda x: 8,
)
"""The loops of arrays that compute at once, on a device. `dataclasses.replace` changes what a framework does better."""
