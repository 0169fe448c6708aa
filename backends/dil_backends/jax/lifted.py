"""A user's function as a function of the tracers that it captures: of a closure, a module, a partial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

from dil._frameworks.lifted import Lifted
from dil._frameworks.registry import leaves_of
from dil_backends.jax.fixed import Trace, traced_tree

Tree = Any

with ThreadPoolExecutor(1) as thread:  # a thread of its own is in no transform, wherever this module is imported
    UNTRACED = thread.submit(get_opaque_trace_state).result()
"""The state of JAX where no transform is at work."""


def lifted(fn: Callable[..., Tree], /, *args: Tree) -> Lifted:
    """Return fn as a function of the tracers that it uses at these arguments. JAX differentiates no other arrays."""
    # where there are no tracers, a look for them would trace fn for nothing
    if get_opaque_trace_state() == UNTRACED:  # type: ignore[no-untyped-call]
        return Lifted(fn, ())
    arrays = [x for x in leaves_of(args)[0] if isinstance(x, jax.Array)]
    bits = {_bits(x) for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)}
    trace = traced_tree(fn, args)
    found = [] if trace is None else [x for x in trace.consts if _can_be_lifted(x, bits)]
    return Lifted(_LiftedFunction(fn, found), tuple(found))


def _can_be_lifted(x: Any, bits: set[int]) -> bool:
    """Return whether an array is a tracer of numbers. One of another precision stays captured, as JAX promotes it."""
    if not isinstance(x, jax.core.Tracer) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return False
    return not jnp.issubdtype(x.dtype, jnp.inexact) or _bits(x) in bits


def _bits(x: Any) -> int:
    """Return the bits of a float, or of each part of a complex number."""
    return int(jnp.finfo(x.dtype).bits)  # type: ignore[no-untyped-call]


class _LiftedFunction:
    """A function that is traced for each kind of arguments, with other arrays in the place of some that it captures."""

    def __init__(self, fn: Callable[..., Tree], captured: Sequence[Any]) -> None:
        self.fn, self.places = fn, {id(x): i for i, x in enumerate(captured)}
        self.captured = captured
        """They live as long as this object, so that no other one has the identity of one of them."""

    def __call__(self, arrays: Sequence[Any], *args: Tree) -> Tree:
        """Return fn(*args) with these arrays."""
        trace: Trace | None = traced_tree(self.fn, args)
        if trace is None:
            return self.fn(*args)
        consts = [arrays[self.places[id(x)]] if id(x) in self.places else x for x in trace.consts]
        given = [x for x in leaves_of(args)[0] if isinstance(x, jax.Array)]
        return trace.structure.unflatten(trace.run(consts, *given))
