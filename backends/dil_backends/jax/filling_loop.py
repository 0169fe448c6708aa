"""A while loop that writes rows into memories. Under `jax.vmap`, a step costs nothing for the rows not written.

`jax.lax.while_loop` of a batch selects, after each step, between the old and the new state of each problem. Memories in
its state would be read and written as a whole by each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Primitive
from jax.interpreters import batching, mlir

from dil_backends.jax.leading_axis import Axis, moved_to_front
from dil_backends.jax.varying import checked, steady

Arrays = tuple[Any, ...]
Writes = Sequence[tuple[Any, Any]]

FILLING_LOOP = Primitive("dil_filling_loop")
"""Takes (*consts, *state, *memories) and returns the last state and the memories."""
FILLING_LOOP.multiple_results = True
NOWHERE = 2**31 - 1
"""A place behind all rows, where nothing is written."""


class Program(NamedTuple):
    """The condition and the body as programs of (*consts, *state), with the numbers of each.

    The body returns the state, the places and the rows. All of a batch have `batch_ndim` leading dimensions.
    """

    cond: Jaxpr
    body: Jaxpr
    of_cond: int
    """The number of constants of the condition, which come first."""
    consts: int
    memories: int
    batch_ndim: int

    def goes_on(self, consts: Sequence[Any], state: Sequence[Any]) -> Any:
        """Return the condition."""
        return _evaluated(self.cond, consts[: self.of_cond], state)[0]

    def step(self, consts: Sequence[Any], state: Sequence[Any]) -> tuple[Arrays, Arrays, Arrays]:
        """Return the new state, the places and the rows."""
        found = _evaluated(self.body, consts[self.of_cond :], state)
        last = len(state) + self.memories
        new = tuple(a.astype(old.dtype) for a, old in zip(found[: len(state)], state, strict=True))
        return new, tuple(found[len(state) : last]), tuple(found[last:])

    def split(self, arrays: Sequence[Any]) -> tuple[Arrays, Arrays, Arrays]:
        """Return the constants, the state and the memories."""
        last = len(arrays) - self.memories
        return tuple(arrays[: self.consts]), tuple(arrays[self.consts : last]), tuple(arrays[last:])


def _evaluated(jaxpr: Jaxpr, consts: Sequence[Any], state: Sequence[Any]) -> Any:
    own = len(jaxpr.constvars)
    return jax.core.eval_jaxpr(jaxpr, consts[:own], *consts[own:], *state)


def filling_loop(
    cond: Callable[[Any], Any], body: Callable[[Any], tuple[Any, Writes]], state: Any, memories: Arrays, /
) -> tuple[Any, Arrays]:
    """Run `while cond(state): state, writes = body(state)`. Each write is a place and a row for one of the memories."""
    if checked():
        return _plain(cond, body, state, memories)
    leaves, structure = jax.tree.flatten(state)
    leaves = [jnp.asarray(x) for x in leaves]

    def flat_cond(*leaves: Any) -> Any:
        return cond(jax.tree.unflatten(structure, leaves))

    def flat(*leaves: Any) -> list[Any]:
        new, writes = body(jax.tree.unflatten(structure, leaves))
        places, rows = zip(*writes, strict=True)
        made = zip(rows, memories, strict=True)
        return [*jax.tree.leaves(new), *map(jnp.asarray, places), *(row.astype(m.dtype) for row, m in made)]

    goes_on, step = jax.make_jaxpr(flat_cond)(*leaves), jax.make_jaxpr(flat)(*leaves)
    if goes_on.effects or step.effects:
        return _plain(cond, body, state, memories)
    consts = (*goes_on.consts, *step.consts)
    program = Program(goes_on.jaxpr, step.jaxpr, len(goes_on.consts), len(consts), len(memories), 0)
    found = FILLING_LOOP.bind(*consts, *leaves, *memories, program=program)  # type: ignore[no-untyped-call]
    return jax.tree.unflatten(structure, found[: len(leaves)]), tuple(found[len(leaves) :])


def _plain(cond: Callable[[Any], Any], body: Callable[[Any], Any], state: Any, memories: Arrays) -> tuple[Any, Arrays]:
    """Run `jax.lax.while_loop`."""

    def advance(s: tuple[Any, Arrays]) -> tuple[Any, Arrays]:
        new, writes = body(s[0])
        written = (_write(0, m, *write) for m, write in zip(s[1], writes, strict=True))
        return new, tuple(written)

    found: tuple[Any, Arrays] = jax.lax.while_loop(lambda s: cond(s[0]), *steady(advance, (state, memories)))
    return found


def _write(batch_ndim: int, memory: Any, place: Any, row: Any) -> Any:
    """Return the memory, (*batch, rows, ...), with a row written in each problem's place."""
    if batch_ndim == 0:
        return jax.lax.dynamic_update_index_in_dim(memory, row.astype(memory.dtype), place, 0)

    def write(memory: Any, place: Any, row: Any) -> Any:
        return memory.at[place].set(row, mode="drop")

    for _ in range(batch_ndim):
        write = jax.vmap(write)
    return write(memory, place, row)


def _run(*arrays: Any, program: Program) -> list[Any]:
    consts, state, memories = program.split(arrays)

    def advance(s: tuple[Arrays, Arrays]) -> tuple[Arrays, Arrays]:
        new, places, rows = program.step(consts, s[0])
        return new, tuple(map(_writer(program), s[1], places, rows))

    state, memories = jax.lax.while_loop(lambda s: program.goes_on(consts, s[0]), advance, (state, memories))
    return [*state, *memories]


def _writer(program: Program) -> Callable[..., Any]:
    return lambda memory, place, row: _write(program.batch_ndim, memory, place, row)


def _abstract(*arrays: Any, program: Program) -> list[Any]:
    _, state, memories = program.split(arrays)
    return [x.update(weak_type=False) for x in (*state, *memories)]


def _batched(args: Sequence[Any], axes: Sequence[Axis], *, program: Program) -> tuple[Any, Any]:
    """Run the loops of a batch together, until all are done. Those that are done stay as they are."""
    arrays, places = moved_to_front(args, axes, slice(program.consts, None))
    consts, state, memories = program.split(arrays)
    of_consts = tuple(places[: program.consts])
    goes_on = jax.vmap(program.goes_on, in_axes=(of_consts, 0))
    step = jax.vmap(program.step, in_axes=(of_consts, 0))

    def any_goes_on(*arrays: Any) -> Any:
        return jnp.any(goes_on(arrays[: program.consts], arrays[program.consts :]))

    def together(*arrays: Any) -> list[Any]:
        consts, state = arrays[: program.consts], arrays[program.consts :]
        active = goes_on(consts, state)
        new, where, rows = step(consts, state)
        chosen = [_where(active, a, b) for a, b in zip(new, state, strict=True)]
        return [*chosen, *(_where(active, place, jnp.full_like(place, NOWHERE)) for place in where), *rows]

    cond, body = (jax.make_jaxpr(fn)(*consts, *state) for fn in (any_goes_on, together))
    every = (*cond.consts, *consts, *body.consts, *consts)
    sizes = len(cond.consts) + len(consts), len(every), program.memories, program.batch_ndim + 1
    found = FILLING_LOOP.bind(*every, *state, *memories, program=Program(cond.jaxpr, body.jaxpr, *sizes))  # type: ignore[no-untyped-call]
    return found, [0] * len(found)


def _where(mask: Any, a: Any, b: Any) -> Any:
    return jnp.where(jnp.reshape(mask, (*mask.shape, *(1,) * (a.ndim - mask.ndim))), a, b)


FILLING_LOOP.def_impl(jax.jit(_run, static_argnames=("program",)))  # type: ignore[no-untyped-call]
FILLING_LOOP.def_abstract_eval(_abstract)  # type: ignore[no-untyped-call]
batching.primitive_batchers[FILLING_LOOP] = _batched
mlir.register_lowering(FILLING_LOOP, mlir.lower_fun(_run, multiple_results=True))
