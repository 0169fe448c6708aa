"""The pullbacks of a solution after the first: a framework may ask for many, one after the other, at one point."""

from __future__ import annotations

from collections.abc import Sequence

from dil._base.arrays import array_namespace, eye, size
from dil._base.operator import Operator
from dil._base.typing import Array, Arrays
from dil._diagnostics.record import recording
from dil._frameworks.many import stacked
from dil._frameworks.protocol import Backend, LinearSystem, RepeatedPull
from dil._layers.following import FollowingAuto
from dil.linear._auto import Auto
from dil.linear._dense_cost import krylov_budget
from dil.linear._direct import Direct
from dil.linear._solver import LinearSolver

MOST_UNKNOWNS = 256
"""The most unknowns of a system whose inverse is made."""
MOST_NUMBERS = 2**20
"""The most numbers of the inverse matrices that are kept: 8 MiB in float64."""


def has_inverse(linear_solver: LinearSolver, J: Operator, u: Array, backend: Backend) -> bool:
    """Return whether the systems at u, (*batch, n), are solved by a factorisation, so that an inverse costs little."""
    if size(u.shape) * u.shape[-1] > MOST_NUMBERS or size(u.shape) == 0 or not factorises(linear_solver):
        return False
    return isinstance(linear_solver, Direct) or krylov_budget(J, u, backend) == 0


def factorises(linear_solver: LinearSolver) -> bool:
    """Return whether a solver factorises the matrix itself, at least where an iteration would cost more."""
    if isinstance(linear_solver, Direct):
        return linear_solver.damping == 0
    if isinstance(linear_solver, Auto):
        return linear_solver.damping == 0 and linear_solver.dense is None and linear_solver.max_iter is None
    return isinstance(linear_solver, FollowingAuto)


def repeated_pull(system: LinearSystem, u: Array, pull: RepeatedPull, backend: Backend) -> RepeatedPull | None:
    """Return the pullback v -> pull(-J^-T v), or None if a system or the point needs a closer look.

    The systems with the columns of the identity are solved at once, with the checks of many right-hand sides. A
    vector that is not finite gives None.
    """
    xp, n = array_namespace(u), u.shape[-1]
    batch = u.shape[:-1]
    rows = xp.broadcast_to(xp.reshape(eye(n, u), (n, *(1 for _ in batch), n)), (n, *u.shape))
    A: Operator = stacked(system.A)
    found = None if system.many is None else system.many(A, rows, *system.constants)
    if found is None:
        return None
    inverse = xp.moveaxis(found, 0, -2)

    def again(v: Array, wrt: Sequence[int]) -> Arrays | None:
        if recording():  # each solve is an entry of a record
            return None
        g = xp.matmul(v[..., None, :], inverse)[..., 0, :]
        # NaN for what is not finite
        return pull(-g, wrt) if backend.loops.number(xp.sum(0.0 * g)) == 0.0 else None

    return again
