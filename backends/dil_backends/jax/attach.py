"""A primitive that carries a custom derivative. JAX does not inline a primitive, so its derivative rule is kept.

Reverse mode through `jax.lax.scan` moves computations that all steps share out of the scan. For that it inlines
`custom_jvp` functions and drops their rules. A second derivative of a layer in a scan would then be wrong, without an
error. JAX leaves a primitive whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Jaxpr, Primitive
from jax.interpreters import ad, batching, mlir

from dil_backends.jax.leading_axis import moved_to_front
from dil_backends.jax.varying import axes_of, cast

Arrays = tuple[jax.Array, ...]
Pushforward = Callable[[Any, Any, Sequence[Any]], Any]
"""`push(args, y, tangents)` returns the tangents of y, like `dil._frameworks.protocol.Rule.pushforward`."""

ATTACH = Primitive("dil_attach")
"""Takes (*y, *args) and returns y, its first `count` arrays. The derivative with respect to args is given by `held`."""
ATTACH.multiple_results = True

EMPTY: Jaxpr = jax.make_jaxpr(lambda: ())().jaxpr


class Held:
    """A pushforward as a parameter of a primitive. Parameters must be hashable; this one is hashed by identity."""

    def __init__(self, push: Pushforward) -> None:
        self.push = push


def attach(y: Arrays, args: Arrays, push: Pushforward) -> Arrays:
    """Return y with `push` as its derivative with respect to args. If nothing is traced, return y unchanged."""
    if not any(isinstance(x, jax.core.Tracer) for x in (*y, *args)):
        return y
    return tuple(_bind(*map(jax.lax.stop_gradient, y), *args, held=Held(push), count=len(y)))


def is_zero(tangent: Any) -> bool:
    """Whether a tangent is known to be zero."""
    known = isinstance(tangent, ad.Zero | jax.custom_derivatives.SymbolicZero)
    return known or getattr(tangent, "dtype", None) == jax.dtypes.float0


def _bind(*arrays: Any, held: Held, count: int) -> list[Any]:
    # JAX keeps the parameters of 2048 equations. It forgets those of an equation whose programs have died, so that a
    # layer dies with the last program that holds it.
    life = EMPTY.replace()  # type: ignore[no-untyped-call]
    return ATTACH.bind(*arrays, held=held, count=count, life=life)  # type: ignore[no-any-return, no-untyped-call]


def _differentiated(
    primals: Sequence[Any], tangents: Sequence[Any], *, held: Held, count: int, life: Jaxpr
) -> tuple[Any, Any]:
    y = _bind(*primals, held=held, count=count)
    given = [None if is_zero(t) else t for t in tangents[count:]]
    return y, list(cast(held.push(tuple(primals[count:]), tuple(y), given), axes_of(y)))


def _batched(args: Sequence[Any], axes: Sequence[Any], *, held: Held, count: int, life: Jaxpr) -> tuple[Any, Any]:
    moved, places = moved_to_front(args, axes, slice(count))
    return _bind(*moved, held=Held(_mapped(held.push, tuple(places[count:]))), count=count), [0] * count


def _mapped(push: Pushforward, in_axes: tuple[int | None, ...]) -> Pushforward:
    """Return the pushforward mapped over a leading batch dimension."""

    def push_all(args: Any, y: Any, tangents: Sequence[Any]) -> Any:
        places = [i for i, t in enumerate(tangents) if t is not None]

        def push_one(args: Any, y: Any, given: Any) -> Any:
            here = dict(zip(places, given, strict=True))
            return push(args, y, [here.get(i) for i in range(len(tangents))])

        axes = (in_axes, 0, [in_axes[i] for i in places])
        return jax.vmap(push_one, in_axes=axes)(args, y, [tangents[i] for i in places])

    return push_all


def _kept(*args: Any, held: Held, count: int, life: Jaxpr) -> list[Any]:
    return list(args[:count])


ATTACH.def_impl(_kept)  # type: ignore[no-untyped-call]
ATTACH.def_abstract_eval(_kept)  # type: ignore[no-untyped-call]
ad.primitive_jvps[ATTACH] = _differentiated
batching.primitive_batchers[ATTACH] = _batched
mlir.register_lowering(ATTACH, lambda context, *args, held, count, life: args[:count])
