"""A user's function as it is at one moment: JAX traces it once, and derivatives run the trace."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr

from dil._frameworks.registry import leaves_of

Tree = Any


class Trace(NamedTuple):
    """A function of arrays that was traced, and the structure of its result."""

    run: Callable[..., list[Any]]
    """The function of what it captured, and of its arguments. A program holds it once, and so its derivatives."""
    consts: list[Any]
    structure: Any


class Fixed:
    """A function that is traced at its first call with arguments of a kind. Later calls see what it captured then.

    JAX computes a derivative of a layer later than its value: after the whole program is traced, or even after it has
    run. What the function captures may have changed in between, such as the variable of a loop.
    """

    def __init__(self, fn: Callable[..., Tree]) -> None:
        self.fn, self.identity = fn, getattr(fn, "identity", fn)
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)
        self._traces: dict[Hashable, Trace | None] = {}
        self._held: dict[int, Any] = {}

    def __call__(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Return fn(*args, **kwargs)."""
        leaves, structure = leaves_of((args, kwargs))
        places = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]
        others = {i: x for i, x in enumerate(leaves) if not isinstance(x, jax.Array)}
        arrays = [leaves[i] for i in places]

        def flat(*arrays: Any) -> Tree:
            given = others | dict(zip(places, arrays, strict=True))
            args, kwargs = structure.unflatten([given[i] for i in range(len(leaves))])
            return self.fn(*args, **kwargs)

        key = structure, tuple(map(jax.typeof, arrays)), tuple((i, self._key(x)) for i, x in others.items())
        trace = self._traces[key] if key in self._traces else _traced(flat, arrays)
        # a tracer is of no use to a later trace
        if trace is None or not any(isinstance(x, jax.core.Tracer) for x in trace.consts):
            self._traces[key] = trace
        if trace is None:
            return flat(*arrays)
        return trace.structure.unflatten(trace.run(trace.consts, *arrays))

    def _key(self, x: Any) -> Hashable:
        """Return the key of an argument that is no array: an object without a hash is known by its identity."""
        try:
            hash(x)
        except TypeError:
            self._held[id(x)] = x
            return type(x), id(x)
        return type(x), x


def fixed(fn: Callable[..., Tree], /) -> Fixed:
    """Return a function that is traced at its first call. One that is so already is returned unchanged."""
    return fn if isinstance(fn, Fixed) else Fixed(fn)


def traced_tree(fn: Callable[..., Tree], args: tuple[Tree, ...]) -> Trace | None:
    """Return the trace of fn(*args) as a function of the arrays among the arguments."""
    leaves, structure = leaves_of(args)
    places = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]

    def flat(*arrays: Any) -> Tree:
        given = list(leaves)
        for i, x in zip(places, arrays, strict=True):
            given[i] = x
        return fn(*structure.unflatten(given))

    return _traced(flat, [leaves[i] for i in places])


def _traced(flat: Callable[..., Tree], arrays: list[Any]) -> Trace | None:
    """Return the trace, or None if the function returns what is not an array: a caller says so."""
    structure, plain = None, True

    def run(*arrays: Any) -> list[Any]:
        nonlocal structure, plain
        found, structure = leaves_of(flat(*arrays))
        plain = all(isinstance(x, jax.Array) for x in found)
        return found if plain else []

    program = jax.make_jaxpr(run)(*arrays)
    # a copy of each NumPy array, which may be written into
    consts = [x.copy() if isinstance(x, np.ndarray) else x for x in program.consts]
    return Trace(_function(program.jaxpr), consts, structure) if plain else None


def _function(program: Jaxpr) -> Callable[..., list[Any]]:
    """Return a program as a function, which JAX traces, differentiates and lowers once for all its calls.

    `jax.jit` keeps all three by the program. XLA writes the function into every call again, so that it runs as fast.
    """
    evaluate = partial(jax.core.eval_jaxpr, program)
    called = jax.jit(evaluate)

    def run(consts: list[Any], *arrays: Any) -> list[Any]:
        traced = any(isinstance(x, jax.core.Tracer) for x in arrays)
        return (called if traced else evaluate)(consts, *arrays)

    return run
