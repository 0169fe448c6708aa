"""Consistent states of M dy/dt = f(t, y): those that satisfy the algebraic equations."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, full, inner, max_abs
from dil._base.status import Status, first_of
from dil._base.typing import Array, Arrays
from dil.ode._adaptive import Control
from dil.ode._field import Field
from dil.ode._rate import index_is_higher
from dil.ode._stage_layer import StageLayer


class Start(NamedTuple):
    """The state from which the steps start."""

    y: Array
    """Shape (*batch, n)."""
    status: Array
    """Shape batch, with the dtype of the state, like the residual."""
    residual: Array
    """The largest |residual| of an algebraic equation at the given values."""


def consistent(layer: StageLayer, t: Array, y: Array, arrays: Arrays) -> tuple[Array, Array]:
    """Return the state z with M z = M y that satisfies the algebraic equations, and the status of its solve.

    It is a stage of length zero (see `Mass.residual`), so it has the derivative of the theorem.
    """
    z, (status, *_) = layer(y, t, full(t, 0.0), arrays, y)
    return z, status


def start_of(
    field: Field, layer: StageLayer, t: Array, y: Array, arrays: Arrays, control: Control, *, find: bool
) -> Start:
    """Return the consistent state of the given values, or the values themselves with a status if `find` is false.

    Given values are consistent if the nearest consistent state is within the error of a step.
    """
    plain, backend = field.backend.constant, field.backend
    z, status = consistent(layer, t, y, arrays)
    now, given, fixed = plain(z), plain(y), tuple(plain(x) for x in arrays)
    xp, mass = array_namespace(now), field.mass(field.arguments.call(fixed)[0])
    slope = mass.combined(field.at(plain(t), given, fixed))
    residual = max_abs(xp.where(mass.algebraic, slope, full(slope, 0.0)))
    # a search for a state that does not exist may end where the index is higher
    examined = xp.where((status == 0)[..., None], now, given)
    higher = index_is_higher(field, t, examined, fixed)
    scaled = (now - given) / control.allowed(xp.abs(now), xp.maximum(xp.abs(now), xp.abs(given)))
    moved = inner(scaled, scaled) > scaled.shape[-1]
    reasons = [(higher, Status.HIGHER_INDEX), (moved & (status == 0), Status.INCONSISTENT)]
    code = first_of(reasons[:1] if find else reasons, Status.CONVERGED)
    status = xp.where(code == 0, status, xp.astype(code, now.dtype))
    return Start(z if find else y, backend.constant(status), backend.constant(residual))
