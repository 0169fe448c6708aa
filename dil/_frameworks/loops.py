"""The control flow of a framework, and the Python loops of eager arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Protocol

from dil._base.arrays import array_namespace, device, size
from dil._base.typing import Array, Arrays, Loop, Step


class MapRows(Protocol):
    """A map over the rows of an array."""

    def __call__(self, fn: Callable[[Array], Array], rows: Array, at_once: int | None = None, /) -> Array:
        """Return fn of each row, stacked."""
        ...


class LinearMap(Protocol):
    """A linear map, with its transpose, whose operations a framework does not look into."""

    def __call__(
        self,
        forward: Callable[..., Arrays],
        backward: Callable[..., Arrays],
        like: Arrays,
        fixed: Arrays,
        x: Arrays,
        /,
    ) -> Arrays:
        """Return forward(*fixed, *x)."""
        ...


class Scan(Protocol):
    """A loop over the rows of arrays."""

    def __call__(self, step: Step, carry: Arrays, xs: Arrays, count: Array | None = None, /) -> tuple[Arrays, Arrays]:
        """Return the last carry and the stacked outs of the first `count` rows."""
        ...


class Fill(Protocol):
    """A while loop that writes rows into memories."""

    def __call__(
        self,
        cond: Callable[[Any], Array],
        body: Callable[[Any], tuple[Any, Sequence[tuple[Array, Array]]]],
        state: Any,
        memories: Arrays,
        /,
    ) -> tuple[Any, Arrays]:
        """Return the last state and the memories."""
        ...


class Fold(Protocol):
    """A scan without outs, whose derivative keeps few of its carries."""

    def __call__(
        self,
        step: Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]],
        carry: Arrays,
        sums: Arrays,
        rows: Arrays,
        count: Array,
        known: Arrays,
        /,
    ) -> tuple[Arrays, Arrays]:
        """Return the last carry and the sums."""
        ...


@dataclass(frozen=True)
class RecordedLoops:
    """Loops of a framework that records programs, for many steps of which few are kept."""

    fill: Fill
    """`fill(cond, body, state, memories)`: run `while cond(state): state, writes = body(state)`.

    Each write is a pair (place, row) for one memory, (m, ...): its row at the place is overwritten. It has no
    derivative. Mapped over a batch, it takes as many steps as the longest.
    """

    fold: Fold
    """`fold(step, carry, sums, rows, count, known)`: run `carry, sums = step(carry, sums, row)` for `count` rows.

    A step only adds to the sums; nothing else depends on them, and a row that is zero adds nothing. `known` are the
    carries before the rows 0, k, 2k, ..., where k times their number is the number of rows. The derivative, in both
    modes, takes them as they are, and computes those between again.
    """

    add_row: Callable[[Array, Array, Array], Array]
    """`add_row(memory, i, row)`: return memory, (m, ...), with a row added to its row i; unchanged where i is m."""


@dataclass(frozen=True)
class Loops:
    """The control flow of a framework. Numerical routines use it and never import the framework."""

    while_loop: Loop
    """`while_loop(cond, body, state)`: run `while cond(state): state = body(state)`.

    The host reads only the condition from the device.
    """

    run_if: Callable[[Array, Callable[[Any], Any], Any], Any]
    """`run_if(condition, fn, state)`: return fn(state) if the condition, shape (), holds, else the state.

    fn costs nothing if the condition does not hold.
    """

    scan: Scan
    """`scan(step, carry, xs, count)`: run `carry, out = step(carry, x)` for each row x of `xs`.

    There is at least one row. Returns the last carry and the stacked outs. The scan can be differentiated through its
    steps, in forward and reverse mode. With a `count`, an array of shape (), only that many rows are taken, at least
    one, and the other outs are zero.
    """

    map_rows: MapRows
    """`map_rows(fn, rows, at_once)`: return fn of each row of `rows`, (k, ...), stacked.

    `at_once` bounds the number of rows that may run at once. By default all may.
    """

    set_row: Callable[[Array, Any, Array], Array]
    """`set_row(memory, i, row)`: return memory, (..., m, n), with the row i replaced by `row`, (..., n).

    The memory itself may be written into, so nothing else may hold it. i is a Python int, or an array of shape () where
    the framework traces.
    """

    set_rows: Callable[[Array, Array, Array], Array]
    """`set_rows(memory, places, rows)`: the same for a batch of memories, (..., *batch, m, n), each at its own place.

    `places` are integers of shape batch, and `rows` is (..., *batch, n).
    """

    places: Callable[[Array], Array | None]
    """`places(mask)`: return the places of the true entries of a mask (n,), or None if a program cannot know them."""

    on_host: Callable[..., Arrays]
    """`on_host(fn, like, *arrays)`: call fn with concrete arrays, outside any trace. The arrays must be constants.

    fn gets arrays of the framework, or of NumPy where a compiled program calls it: there an operation of the framework
    could wait for this very program. It returns arrays of either kind, with the shapes of `like`. They are given its
    dtypes and its kind.
    """

    linear: LinearMap | None
    """`linear(forward, backward, like, fixed, x)`: return forward(*fixed, *x), which is linear in x, like `like`.

    `backward(*fixed, *c)` is the transpose. A framework that transposes whole programs has this operation, since it
    cannot look into a call of the host. None elsewhere.
    """

    number: Callable[[Array], Any]
    """`number(x)`: return a 0-D array as a Python number if that costs nothing, else x itself."""

    numbers: Callable[[Array], Any]
    """`numbers(x)`: return an array as a (nested) list of Python numbers if that costs nothing, else x itself."""

    steps_per_read: Callable[[Array], int]
    """`steps_per_read(x)`: return how many steps a loop over arrays like x takes for each read of its condition.

    A read makes the host wait for a device, so the number is more than one on devices.
    """

    recorded: RecordedLoops | None = None
    """Loops for programs that are recorded. None where operations run at once."""


def with_loop(loops: Loops, while_loop: Loop | None) -> Loops:
    """Return the loops with another while loop, or unchanged if `while_loop` is None."""
    return loops if while_loop is None or while_loop is loops.while_loop else replace(loops, while_loop=while_loop)


def python_while(cond: Callable[[Any], Array], body: Callable[[Any], Any], state: Any, /) -> Any:
    """Run a while loop in Python."""
    while bool(cond(state)):
        state = body(state)
    return state


def python_if(condition: Array, fn: Callable[[Any], Any], state: Any, /) -> Any:
    """Return fn(state) if the condition holds, else the state, with a Python branch."""
    return fn(state) if bool(condition) else state


def python_scan(step: Step, carry: Arrays, xs: Arrays, count: Array | None = None, /) -> tuple[Arrays, Arrays]:
    """Run a scan in Python."""
    outs, rows = [], xs[0].shape[0]
    for i in range(rows if count is None else max(1, min(int(count), rows))):
        x = tuple(every[i, ...] for every in xs)  # torch.vmap has no rule for `unstack`
        carry, out = step(carry, x)
        outs.append(out)
    while outs and len(outs) < rows:
        outs.append(tuple(0.0 * x for x in outs[-1]))
    return carry, tuple(array_namespace(*every).stack(list(every)) for every in zip(*outs, strict=True))


def masked(step: Step) -> Step:
    """Return a step for rows with one more entry. It changes nothing, and its outs are zero, where that is false."""

    def taken(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        *row, mask = x
        new, outs = step(carry, tuple(row))

        def chosen(a: Array, b: Array) -> Array:
            return array_namespace(mask).where(mask, a, b)  # type: ignore[no-any-return]

        return tuple(map(chosen, new, carry)), tuple(chosen(a, array_namespace(a).zeros_like(a)) for a in outs)

    return taken


def python_map(fn: Callable[[Array], Array], rows: Array, at_once: int | None = None, /) -> Array:
    """Apply fn to one row after the other."""
    xp = array_namespace(rows)
    return xp.stack([fn(rows[i, ...]) for i in range(rows.shape[0])])  # type: ignore[no-any-return]


def write_row(memory: Array, i: int, row: Array) -> Array:
    """Write a row into a memory."""
    memory[..., i, :] = row  # type: ignore[index]
    return memory


def write_rows(memory: Array, places: Array, rows: Array) -> Array:
    """Write a row into each memory of a batch, one after the other."""
    for problem in product(*map(range, places.shape)):
        memory[(..., *problem, int(places[problem]), slice(None))] = rows[(..., *problem, slice(None))]  # type: ignore[index]
    return memory


def write_rows_at_once(memory: Array, places: Array, rows: Array) -> Array:
    """Write a row into each memory of a batch, where arrays of integers may be indices."""
    *outer, m, n = memory.shape
    outer, count = outer[: len(outer) - places.ndim], size(places.shape)
    xp = array_namespace(memory)
    flat = xp.reshape(memory, (*outer, count * m, n))  # a view
    at = xp.arange(count, dtype=places.dtype, device=device(places)) * m + xp.reshape(places, (-1,))
    flat[..., at, :] = xp.reshape(rows, (*outer, count, n))
    return xp.reshape(flat, memory.shape)  # type: ignore[no-any-return]


def places_now(mask: Array) -> Array:
    """Return the places of the true entries of a mask. Eager arrays are always known."""
    xp = array_namespace(mask)
    order: Array = xp.argsort(xp.astype(~mask, xp.int8), stable=True)
    return order[: int(xp.count_nonzero(mask))]  # `nonzero` is optional in the array API standard


def call_now(fn: Callable[..., Arrays], like: Arrays, *arrays: Array) -> Arrays:
    """Call fn now. Eager arrays are always concrete."""
    return tuple([made_like(x, y) for x, y in zip(fn(*arrays), like, strict=True)])


def made_like(x: Any, like: Array) -> Array:
    """Return x, an array of any kind, as an array of the kind and dtype of another."""
    if type(x) is type(like) and x.dtype == like.dtype:
        return x
    return array_namespace(like).asarray(x, dtype=like.dtype, device=device(like))  # type: ignore[no-any-return]


def runs_later(loops: Loops, x: Array) -> bool:
    """Return whether operations on x, (*batch, n), are recorded for a program that is compiled."""
    entry = x[(0,) * x.ndim]
    return not isinstance(loops.number(entry), int | float) and loops.steps_per_read(entry) == 1


EAGER = Loops(
    while_loop=python_while,
    run_if=python_if,
    scan=python_scan,
    map_rows=python_map,
    set_row=write_row,
    set_rows=write_rows,
    places=places_now,
    on_host=call_now,
    linear=None,
    number=lambda x: x,
    numbers=lambda x: x,
    steps_per_read=lambda x: 8,
)
"""The loops of eager arrays on a device. A framework replaces some of them by `dataclasses.replace`."""
