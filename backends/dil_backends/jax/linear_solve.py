"""A differentiable linear solve as a primitive, which traces the transposed solve only when it is transposed.

`jax.lax.custom_linear_solve` traces the solve in both directions at once, and `jax.shard_map` refuses its constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive
from jax.interpreters import ad, batching, mlir

from dil._base.operator import Operator
from dil._frameworks.protocol import LinearSystem
from dil._frameworks.reports import users_line, warnings_at
from dil_backends.jax.leading_axis import Axis, moved_to_front
from dil_backends.jax.varying import axes_of, cast, checked

Arrays = tuple[Any, ...]
Operands = tuple[Arrays, Arrays, Arrays]
"""Arrays that were captured, parameters of A, and constants of the solve."""

LINEAR_SOLVE = Primitive("dil_linear_solve")
"""Takes (*captured, *params, *constants, b) and returns x, which `jaxpr` computes. `maps` gives its derivatives."""


class Maps(Protocol):
    """The solve and the product of a linear system as functions of all their arrays."""

    @property
    def T(self) -> Maps:
        """The maps of the transposed system."""
        ...

    def solve(self, operands: Operands, b: Any, /) -> Any:
        """Return x with A x = b."""
        ...

    def product(self, operands: Operands, x: Any, /) -> Any:
        """Return A x."""
        ...


class Traceable:
    """Maps that are traced when they are needed. Hashed by identity, as a parameter of a primitive must be.

    They hold no array: JAX keeps the parameters of a primitive. Warnings of a later trace point to the same line.
    """

    def __init__(
        self,
        build: Callable[..., Operator],
        solver: Callable[..., Any],
        line: tuple[str, int],
        fixed: int,
        transposed: bool = False,
    ) -> None:
        self.build, self.solver, self.line, self.transposed = build, solver, line, transposed
        self.fixed = fixed
        """How many of the constants A takes."""

    @property
    def T(self) -> Traceable:
        """The maps of the transposed system."""
        return Traceable(self.build, self.solver, self.line, self.fixed, not self.transposed)

    def operator(self, operands: Operands) -> Operator:
        """Return A."""
        _, params, constants = operands
        A = self.build(*params, *constants[: self.fixed])
        return A.T if self.transposed else A

    def solve(self, operands: Operands, b: Any, /) -> Any:
        """Return x with A x = b."""
        constants = operands[2][self.fixed :]
        with warnings_at(self.line):
            return cast(self.solver(self.operator(operands), b, *constants), axes_of(b))

    def product(self, operands: Operands, x: Any, /) -> Any:
        """Return A x."""
        return self.operator(operands)(x)


class Traced:
    """Maps that were traced in both directions, since no later trace can read the arrays that they capture.

    They hold no array either: what the programs capture are operands.
    """

    def __init__(self, programs: tuple[Jaxpr, ...], transposed: bool = False) -> None:
        self.programs, self.transposed = programs, transposed
        """The solve and the product, then those of the transposed system."""

    @property
    def T(self) -> Traced:
        """The maps of the transposed system."""
        return Traced(self.programs, not self.transposed)

    def solve(self, operands: Operands, b: Any, /) -> Any:
        """Return x with A x = b."""
        return self._run(2 if self.transposed else 0, operands, b)

    def product(self, operands: Operands, x: Any, /) -> Any:
        """Return A x."""
        return self._run(3 if self.transposed else 1, operands, x)

    def _run(self, place: int, operands: Operands, b: Any) -> Any:
        (captured, params, constants), program = operands, self.programs[place]
        first = sum(len(earlier.constvars) for earlier in self.programs[:place])
        consts = captured[first : first + len(program.constvars)]
        (x,) = jax.core.eval_jaxpr(program, consts, *params, *constants, b)
        return x


class Batched:
    """The maps of a batch of systems, each array with its own batch axis or none. The axis of b and x is the first."""

    def __init__(self, one: Maps, axes: Operands) -> None:
        self.one, self.axes = one, axes

    @property
    def T(self) -> Batched:
        """The maps of the transposed systems."""
        return Batched(self.one.T, self.axes)

    def solve(self, operands: Operands, b: Any, /) -> Any:
        """Return x with A x = b, for each system."""
        return jax.vmap(self.one.solve, (self.axes, 0))(operands, b)

    def product(self, operands: Operands, x: Any, /) -> Any:
        """Return A x, for each system."""
        return jax.vmap(self.one.product, (self.axes, 0))(operands, x)


def linear_solve(system: LinearSystem, b: Any, /) -> Any:
    """Solve a linear system. The solution is differentiable to any order and can be transposed."""
    if checked():
        everything = (b, system.params, system.fixed, system.constants, jax.eval_shape(system.A.matvec, b))
        b = cast(b, axes_of(everything))
    maps = Traceable(system.operator, system.solve, users_line("jax jaxlib"), len(system.fixed))
    operands: Operands = ((), tuple(system.params), (*system.fixed, *system.constants))
    program = jax.make_jaxpr(maps.solve)(operands, b)
    if not any(isinstance(x, jax.core.Tracer) for x in program.consts):
        return _bind(program, maps, operands, b)
    rest = (jax.make_jaxpr(fn)(operands, b) for fn in (maps.product, maps.T.solve, maps.T.product))
    programs = (program, *rest)
    traced = Traced(tuple(p.jaxpr for p in programs))
    operands = (tuple(x for p in programs for x in p.consts), *operands[1:])
    return _bind(jax.make_jaxpr(traced.solve)(operands, b), traced, operands, b)


def _bind(program: ClosedJaxpr, maps: Maps, operands: Operands, b: Any) -> Any:
    arrays = [x for some in operands for x in some]
    return LINEAR_SOLVE.bind(  # type: ignore[no-untyped-call]
        *program.consts, *arrays, b, jaxpr=program.jaxpr, maps=maps, counts=tuple(map(len, operands))
    )


def _split(arrays: Sequence[Any], jaxpr: Jaxpr, counts: tuple[int, ...]) -> tuple[Arrays, Operands, Any]:
    """Split into the constants of the program, the operands and b."""
    *rest, b = arrays
    parts = []
    for count in (len(jaxpr.constvars), *counts):
        parts.append(tuple(rest[:count]))
        rest = rest[count:]
    consts, captured, params, constants = parts
    return consts, (captured, params, constants), b


def _run(*arrays: Any, jaxpr: Jaxpr, maps: Maps, counts: tuple[int, ...]) -> Any:
    consts = len(jaxpr.constvars)
    (x,) = jax.core.eval_jaxpr(jaxpr, arrays[:consts], *arrays[consts:])
    return x


def _abstract(*arrays: Any, jaxpr: Jaxpr, maps: Maps, counts: tuple[int, ...]) -> Any:
    return arrays[-1].update(weak_type=False), jaxpr.effects


def _differentiated(
    primals: Sequence[Any], tangents: Sequence[Any], *, jaxpr: Jaxpr, maps: Maps, counts: tuple[int, ...]
) -> tuple[Any, Any]:
    """From A x = b follows A dx = db - dA x."""
    known = {"jaxpr": jaxpr, "maps": maps, "counts": counts}
    x = LINEAR_SOLVE.bind(*primals, **known)  # type: ignore[no-untyped-call]
    _, operands, _ = _split(primals, jaxpr, counts)
    _, (dcaptured, dparams, _), db = _split(tangents, jaxpr, counts)
    moving = [*dcaptured, *dparams]
    if not all(isinstance(t, ad.Zero) for t in moving):
        captured, params, constants = operands

        def product(*arrays: Any) -> Any:
            return maps.product((arrays[: len(captured)], arrays[len(captured) :], constants), x)

        given = [ad.instantiate_zeros(t) for t in moving]  # type: ignore[no-untyped-call]
        _, dAx = jax.jvp(product, (*captured, *params), tuple(given))
        db = ad.instantiate_zeros(db) - dAx  # type: ignore[no-untyped-call]
    if isinstance(db, ad.Zero):
        return x, db
    return x, LINEAR_SOLVE.bind(*primals[:-1], cast(db, axes_of(x)), **known)  # type: ignore[no-untyped-call]


def _transposed(cotangent: Any, *arrays: Any, jaxpr: Jaxpr, maps: Maps, counts: tuple[int, ...]) -> list[Any]:
    _, operands, _ = _split(arrays, jaxpr, counts)
    found = cotangent
    if not isinstance(cotangent, ad.Zero):
        found = _bind(jax.make_jaxpr(maps.T.solve)(operands, cotangent), maps.T, operands, cotangent)
    return [*[None] * (len(arrays) - 1), found]


def _batched(
    args: Sequence[Any], axes: Sequence[Axis], *, jaxpr: Jaxpr, maps: Maps, counts: tuple[int, ...]
) -> tuple[Any, Axis]:
    moved, first = moved_to_front(args, axes, slice(-1, None))
    consts, operands, b = _split(moved, jaxpr, counts)
    _, places, _ = _split(first, jaxpr, counts)
    run: Callable[..., Any] = jax.vmap(lambda *arrays: _run(*arrays, jaxpr=jaxpr, maps=maps, counts=counts), first)
    program = jax.make_jaxpr(lambda operands, b: run(*consts, *(x for some in operands for x in some), b))(operands, b)
    return _bind(program, Batched(maps, places), operands, b), 0


LINEAR_SOLVE.def_impl(_run)  # type: ignore[no-untyped-call]
LINEAR_SOLVE.def_effectful_abstract_eval(_abstract)  # type: ignore[no-untyped-call]
ad.primitive_jvps[LINEAR_SOLVE] = _differentiated
ad.primitive_transposes[LINEAR_SOLVE] = _transposed
batching.primitive_batchers[LINEAR_SOLVE] = _batched
mlir.register_lowering(LINEAR_SOLVE, mlir.lower_fun(_run, multiple_results=False))
