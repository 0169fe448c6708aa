"""The derivative dy/dt of a state, also where the mass matrix is singular."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, full
from dil._base.operator import Operator
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil._frameworks.constants import as_constant
from dil._frameworks.forward_mode import jvp_from_vjp
from dil._frameworks.protocol import LinearSystem
from dil._frameworks.random_vectors import standard_normal
from dil.linear._auto import Auto
from dil.linear._direct import Direct
from dil.linear._solver import LinearSolver
from dil.ode._field import Field


class RateSystem(NamedTuple):
    """The linear system of dy/dt: L M k = L f in the equations with a derivative, d/dt of the algebraic ones."""

    system: LinearSystem
    right: Array
    solver: LinearSolver


def rate_of(field: Field, t: Array, y: Array, arrays: Arrays) -> Array:
    """Return dy/dt at a consistent state, with its derivative in all arguments."""
    if not field.mass_arrays:
        return field.slope(t, y, arrays)
    system, right, _ = rate_system(field, t, y, arrays)
    return field.backend.linear_solve(system, right)


def rate_system(field: Field, t: Array, y: Array, arrays: Arrays) -> RateSystem:
    """Return the linear system of dy/dt at a consistent state y.

    The consistent states near y are stages of length zero (see `Mass.residual`), and dy/dt is the derivative of the
    stage in its length and its time, by the implicit function theorem. The matrix is singular if the index is above 1.
    """
    backend, arguments = field.backend, field.arguments
    others = [i for i in range(len(arrays)) if i not in arguments.floats]
    floats, fixed = arguments.only_floats(arrays), tuple(arrays[i] for i in others)

    def residual(z: Array, base: Array, t: Array, gh: Array, *rest: Array) -> Arrays:
        every = dict(zip((*arguments.floats, *others), rest, strict=True))
        args, _ = arguments.call([every[i] for i in range(len(every))])
        return (field.residual(z, base, t, gh, *args),)

    def build(u: Array, t: Array, *rest: Array) -> Operator:
        _, pull = backend.vjp(lambda w: residual(w, u, t, full(t, 0.0), *rest), u)
        _, push = backend.vjp(lambda w: pull((w,)), full(u, 0.0))
        return Operator(lambda p: push((p,))[0], lambda p: pull((p,))[0])

    def solve(A: Operator, b: Array) -> Array:
        return solver(A, b, loop=backend.loops.while_loop).value  # type: ignore[no-any-return]

    solver: LinearSolver = Direct() if y.shape[-1] <= backend.dense.crossover.general else Auto()
    one, params = full(t, 1.0), (y, t, *floats)
    _, (change,) = jvp_from_vjp(
        backend, lambda s, gh: residual(y, y, s, gh, *floats, *fixed), (t, full(t, 0.0)), (one, one)
    )
    system = LinearSystem(build, params, build(*params, *fixed), solve, fixed=fixed)
    return RateSystem(system, -change, solver)


def index_is_higher(field: Field, t: Array, y: Array, arrays: Arrays) -> Array:
    """Return whether the algebraic equations do not determine their unknowns at y, to working precision; shape batch.

    A large system is not examined.
    """
    backend = field.backend
    if y.shape[-1] > backend.dense.crossover.general:
        return full(y[..., 0], 0.0) != 0.0

    def examine(t: Array, y: Array, *arrays: Array) -> Arrays:
        system, _, solver = rate_system(field, t, y, arrays)
        drawn = standard_normal(backend, y[(0,) * (y.ndim - 1)], 1, 0)[0, ...]
        right = array_namespace(y).broadcast_to(drawn, y.shape)
        return (solver(system.A, right, loop=backend.loops.while_loop).status,)  # type: ignore[return-value]

    return as_constant(backend, examine, t, y, *arrays)[0] == int(Status.SINGULAR)
