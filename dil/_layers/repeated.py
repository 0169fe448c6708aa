"""The pullbacks of a solution after the first: a framework may ask for many, one after the other, at one point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import NamedTuple

from dil._base.arrays import array_namespace, eye, size
from dil._base.operator import Operator
from dil._base.options import declares
from dil._base.typing import Array, Arrays
from dil._diagnostics.record import recording
from dil._frameworks.many import stacked
from dil._frameworks.protocol import Backend, LinearSystem, Pull
from dil._layers.following import FollowingAuto
from dil.linear._auto import Auto
from dil.linear._dense_cost import krylov_budget
from dil.linear._direct import Direct
from dil.linear._solver import LinearSolver

MOST_UNKNOWNS = 256
"""The most unknowns of a system whose inverse is made."""
MOST_NUMBERS = 2**20
"""The most numbers of the inverse matrices that are kept: 8 MiB in float64."""
FEW_NUMBERS = 2**16
"""The most numbers of a Jacobian of the solution with which a product costs less than a pullback."""


def has_inverse(linear_solver: LinearSolver, J: Operator, u: Array, backend: Backend) -> bool:
    """Return whether the systems at u, (*batch, n), are solved by a factorisation, so that an inverse costs little."""
    if size(u.shape) * u.shape[-1] > MOST_NUMBERS or size(u.shape) == 0 or not factorises(linear_solver):
        return False
    return isinstance(linear_solver, Direct) or krylov_budget(J, u, backend) == 0


def factorises(linear_solver: LinearSolver) -> bool:
    """Return whether a solver factorises the matrix itself, at least where an iteration would cost more."""
    if not declares(linear_solver, "_takes_many"):  # a subclass may have another call
        return False
    if isinstance(linear_solver, Direct):
        return linear_solver.damping == 0
    if isinstance(linear_solver, Auto):
        return linear_solver.damping == 0 and linear_solver.dense is None and linear_solver.max_iter is None
    return isinstance(linear_solver, FollowingAuto)


class Argument(NamedTuple):
    """A float argument of a layer."""

    place: int
    """Its place in the parameters of F."""
    shape: tuple[int, ...]


@dataclass
class RepeatedPullback:
    """The pullback v -> -F_args^T J^-T v. For few numbers it is a product with the Jacobian -J^-1 F_args."""

    inverse: Array
    """J^-T, (*batch, n, n), for row vectors."""
    pull: Pull
    """The pullback of F(u, *floats)."""
    arguments: dict[int, Argument]
    backend: Backend
    _jacobians: dict[tuple[int, ...], list[Array] | None] = field(default_factory=dict)
    """For the arguments of a pullback: the Jacobian in each of them, (n, size), or None if it is not made."""

    def __call__(self, v: Array, wrt: Sequence[int]) -> Arrays | None:
        """Return the cotangents of `args[i]` for i in `wrt`, or None if v is not finite or a record is open."""
        if recording():  # each solve is an entry of a record
            return None
        which = tuple(wrt)
        if which not in self._jacobians:
            self._jacobians[which] = self._made(which, v)
        if self._jacobians[which] is not None:
            return self.product(v, which)
        g = array_namespace(v).matmul(v[..., None, :], self.inverse)[..., 0, :]
        return self.pull((-g,), self._places(which)) if self._is_finite(g) else None

    def product(self, v: Array, wrt: Sequence[int]) -> Arrays | None:
        """Return the same by products with the Jacobian, or None if that is not at hand."""
        jacobians = self._jacobians.get(tuple(wrt))
        if jacobians is None or recording():
            return None
        products = [v @ J for J in jacobians]
        return tuple(map(self._shaped, products, wrt)) if all(map(self._is_finite, products)) else None

    def _made(self, which: tuple[int, ...], v: Array) -> list[Array] | None:
        """Return the Jacobian in these arguments if a product with it costs less than a pullback."""
        n = v.shape[-1]
        if v.ndim != 1 or n * sum(size(self.arguments[i].shape) for i in which) > FEW_NUMBERS:
            return None
        xp = array_namespace(v)
        return [xp.reshape(J, (n, size(J.shape[1:]))) for J in self.pull.many((-self.inverse,), self._places(which))]

    def _places(self, which: tuple[int, ...]) -> list[int]:
        return [self.arguments[i].place for i in which]

    def _shaped(self, x: Array, i: int) -> Array:
        """Return the cotangent of argument i in its shape."""
        shape = self.arguments[i].shape
        return x if x.shape == shape else array_namespace(x).reshape(x, shape)

    def _is_finite(self, x: Array) -> bool:
        return isfinite(self.backend.loops.number(array_namespace(x).sum(x)))


def repeated_pullback(
    system: LinearSystem, u: Array, pull: Pull, arguments: dict[int, Argument], backend: Backend
) -> RepeatedPullback | None:
    """Return the pullback by the inverse, or None if a system or the point needs a closer look.

    The systems with the columns of the identity are solved at once, with the checks of many right-hand sides.
    """
    xp, n = array_namespace(u), u.shape[-1]
    batch = u.shape[:-1]
    rows = xp.broadcast_to(xp.reshape(eye(n, u), (n, *(1 for _ in batch), n)), (n, *u.shape))
    A: Operator = stacked(system.A)
    found = None if system.many is None else system.many(A, rows, *system.constants)
    if found is None:
        return None
    return RepeatedPullback(xp.moveaxis(found, 0, -2), pull, arguments, backend)
