"""A linear map whose transpose is given, as a primitive: JAX cannot transpose a call of the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dil._base.errors import SecondDerivativeError
from dil._problem.linear_map import SECOND
from dil_backends.jax.leading_axis import Axis, moved_to_front

Arrays = tuple[Any, ...]
Map = Callable[..., Arrays]

LINEAR_MAP = Primitive("dil_linear_map")
"""Takes (*fixed, *x) and returns forward(*fixed, *x). `ways` holds both maps, and `count` is that of the fixed."""
LINEAR_MAP.multiple_results = True

Shapes = tuple[jax.ShapeDtypeStruct, ...]


class Ways:
    """A map and its transpose, with the shapes of what they return. A parameter, hashed by identity."""

    def __init__(self, forward: Map, backward: Map, of_forward: Shapes, of_backward: Shapes) -> None:
        self.forward, self.backward = forward, backward
        self.of_forward, self.of_backward = of_forward, of_backward

    @property
    def T(self) -> Ways:
        """The transpose and the map."""
        return Ways(self.backward, self.forward, self.of_backward, self.of_forward)


def linear(forward: Map, backward: Map, like: Arrays, fixed: Arrays, x: Arrays, /) -> Arrays:
    """Return forward(*fixed, *x), which is like `like`."""
    ways = Ways(forward, backward, _shapes(like), _shapes(x))
    return tuple(_bind(*fixed, *x, ways=ways, count=len(fixed)))


def _shapes(arrays: Arrays) -> Shapes:
    return tuple([_shape(jnp.shape(x), jnp.result_type(x)) for x in arrays])


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _bind(*arrays: Any, ways: Ways, count: int) -> list[Any]:
    return LINEAR_MAP.bind(*arrays, ways=ways, count=count)  # type: ignore[no-any-return, no-untyped-call]


def _run(*arrays: Any, ways: Ways, count: int) -> list[Any]:
    return list(ways.forward(*arrays))


def _abstract(*arrays: Any, ways: Ways, count: int) -> list[Any]:
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in ways.of_forward]


def _differentiated(primals: Sequence[Any], tangents: Sequence[Any], *, ways: Ways, count: int) -> tuple[Any, Any]:
    if not all(isinstance(t, ad.Zero) for t in tangents[:count]):
        raise SecondDerivativeError(SECOND)
    y = _bind(*primals, ways=ways, count=count)
    moves = [ad.instantiate_zeros(t) for t in tangents[count:]]  # type: ignore[no-untyped-call]
    return y, _bind(*primals[:count], *moves, ways=ways, count=count)


def _transposed(cotangents: Sequence[Any], *arrays: Any, ways: Ways, count: int) -> list[Any]:
    given = [ad.instantiate_zeros(c) for c in cotangents]  # type: ignore[no-untyped-call]
    return [None] * count + _bind(*arrays[:count], *given, ways=ways.T, count=count)


def _batched(args: Sequence[Any], axes: Sequence[Axis], *, ways: Ways, count: int) -> tuple[Any, Any]:
    moved, places = moved_to_front(args, axes, slice(count, None))
    size = moved[-1].shape[0]

    def many(one: Map) -> Map:
        def mapped(*arrays: Any) -> Arrays:
            return jax.vmap(one, (*places[:count], *(0 for _ in arrays[count:])))(*arrays)

        return mapped

    stacked = [
        tuple([_shape((size, *x.shape), x.dtype) for x in shapes]) for shapes in (ways.of_forward, ways.of_backward)
    ]
    both = Ways(many(ways.forward), many(ways.backward), *stacked)
    found = _bind(*moved, ways=both, count=count)
    return found, [0] * len(found)


LINEAR_MAP.def_impl(_run)  # type: ignore[no-untyped-call]
LINEAR_MAP.def_abstract_eval(_abstract)  # type: ignore[no-untyped-call]
ad.primitive_jvps[LINEAR_MAP] = _differentiated
ad.primitive_transposes[LINEAR_MAP] = _transposed
batching.primitive_batchers[LINEAR_MAP] = _batched
mlir.register_lowering(LINEAR_MAP, mlir.lower_fun(_run, multiple_results=True))
