"""A branch that is rarely taken, as a primitive. It stays a branch under `jax.vmap`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Primitive
from jax.interpreters import ad, batching, mlir

from dil_backends.jax.leading_axis import moved_to_front
from dil_backends.jax.varying import steady

RUN_IF = Primitive("dil_run_if")
"""Takes (condition, *constants, *state) and returns the state, or what `jaxpr` makes of it if the condition holds."""
RUN_IF.multiple_results = True


def run_if(condition: Any, fn: Callable[[Any], Any], state: Any, /) -> Any:
    """Return fn(state) if the condition, shape (), holds, else the state.

    Under `jax.vmap`, `jax.lax.cond` runs both sides for every problem. This branch is taken only if a problem needs it.
    """
    fn, state = steady(fn, state)
    if not isinstance(condition, jax.core.Tracer):  # nothing to compile
        return fn(state) if condition else state
    leaves, structure = jax.tree.flatten(state)
    leaves = [jnp.asarray(x) for x in leaves]

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(fn(jax.tree.unflatten(structure, leaves)))

    program = jax.make_jaxpr(flat)(*leaves)
    same = [x.shape for x in leaves] == [x.shape for x in program.out_avals]
    same = same and [x.dtype for x in leaves] == [x.dtype for x in program.out_avals]
    if program.effects or not same:
        return jax.lax.cond(condition, fn, lambda state: state, state)
    found = RUN_IF.bind(condition, *program.consts, *leaves, jaxpr=program.jaxpr, count=len(program.consts))  # type: ignore[no-untyped-call]
    return jax.tree.unflatten(structure, found)


def _cond(condition: Any, *arrays: Any, jaxpr: Jaxpr, count: int) -> list[Any]:
    consts, state = arrays[:count], list(arrays[count:])

    def taken(state: list[Any]) -> list[Any]:
        out: list[Any] = jax.core.eval_jaxpr(jaxpr, consts, *state)
        return [x.astype(old.dtype) for x, old in zip(out, state, strict=True)]  # drops a weak type, which cond refuses

    return jax.lax.cond(condition, taken, lambda state: state, state)  # type: ignore[no-any-return]


def _abstract(condition: Any, *arrays: Any, jaxpr: Jaxpr, count: int) -> list[Any]:
    return [x.update(weak_type=False) for x in arrays[count:]]


def _differentiated(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[Any, Any]:
    given = [ad.instantiate_zeros(t) for t in tangents]  # type: ignore[no-untyped-call]
    return jax.jvp(lambda *arrays: _cond(*arrays, **params), tuple(primals), tuple(given))


def _batched(args: Sequence[Any], axes: Sequence[Any], *, jaxpr: Jaxpr, count: int) -> tuple[Any, Any]:
    (condition, *arrays), places = moved_to_front(args, axes, slice(1 + count, None))
    consts, state = arrays[:count], arrays[count:]
    const_axes = places[1 : 1 + count]
    own = axes[0] is not None

    def each(condition: Any, consts: list[Any], state: list[Any]) -> list[Any]:
        out: list[Any] = jax.core.eval_jaxpr(jaxpr, consts, *state)
        return [jnp.where(condition, new, old) for new, old in zip(out, state, strict=True)] if own else out

    def every(state: list[Any]) -> list[Any]:
        return jax.vmap(each, in_axes=(0 if own else None, const_axes, 0))(condition, consts, state)

    return run_if(jnp.any(condition), every, state), [0] * len(state)


RUN_IF.def_impl(jax.jit(_cond, static_argnames=("jaxpr", "count")))  # type: ignore[no-untyped-call]
RUN_IF.def_abstract_eval(_abstract)  # type: ignore[no-untyped-call]
ad.primitive_jvps[RUN_IF] = _differentiated
batching.primitive_batchers[RUN_IF] = _batched
mlir.register_lowering(RUN_IF, mlir.lower_fun(_cond, multiple_results=True))
