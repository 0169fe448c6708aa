"""How exactly an inexact Newton step is solved: the forcing terms of Eisenstat and Walker 1996."""

from __future__ import annotations

from dil._base.arrays import select
from dil._base.operator import Operator
from dil._base.options import declares
from dil._base.scalars import Scalar, filled, greater, nonzero, smaller
from dil._base.typing import Array
from dil.linear._auto import Auto
from dil.linear._solver import LinearSolver

GOLDEN = (1 + 5**0.5) / 2
SHARE = 0.9
LOOSEST = 0.5
"""The loosest tolerance of a step."""
HELD = 0.1
"""A tolerance above this holds the next ones back."""


def is_inexact(solver: LinearSolver, J: Operator, F: Array) -> bool:
    """Return whether a step towards a root is solved to a tolerance of its own.

    It is solved to the full where the solver takes no tolerance, where J is known as a matrix of few unknowns, and
    where `Auto` takes a dense solve, which loses nothing by being exact.
    """
    if J.matrix is not None or J._given is not None or not declares(solver, "_takes_tolerance"):
        return False
    return not (isinstance(solver, Auto) and solver.takes_dense(J, F))


def finest_forcing(machine_eps: float) -> float:
    """Return the relative tolerance of a step that is solved to the full."""
    return float(machine_eps**0.75)


def forcing_of_score(size: Scalar, before: Scalar, near: Scalar, machine_eps: float) -> Scalar:
    """Return the relative tolerance of a truncated step: 0.9 (||F|| / ||F of the step before||)^1.618, 1/2 at most.

    Eisenstat and Walker 1996, eq. 2.6, without its safeguard: convergence is superlinear, of order 1.618. A truncated
    step can be short because it is rough: where one was short enough to be the last (`near`), the next is solved for to
    the full, and judged in its place.
    """
    finest = finest_forcing(machine_eps)
    wanted = _chosen(size, before)
    wanted = select(near | (wanted < finest), filled(size, finest), wanted)
    return smaller(wanted, filled(size, LOOSEST))


def forcing_of_root(size: Scalar, before: Scalar, last: Scalar, near: Scalar, machine_eps: float) -> Scalar:
    """Return the relative tolerance of an inexact step towards a root; `last` is that of the step before.

    As for a score, with the safeguard (Eisenstat and Walker 1996, section 2.1): a tolerance above 0.1 lets the next one
    fall to 0.9 last^1.618 at most, since ||F|| may fall by chance far from a root.

    Where a step was short enough to be the last, the next takes off what that one left, and is judged in its place.
    Both together solve the equations of the first as a solve to the full does, to eps ** (3/4) of the ||F|| of the
    first, and take hardly more products than it alone.
    """
    finest, held = finest_forcing(machine_eps), SHARE * last**GOLDEN
    wanted = _chosen(size, before)
    wanted = select((held > HELD) & (held > wanted), held, wanted)
    wanted = select(near, finest * (before / nonzero(size)), wanted)
    return smaller(greater(wanted, filled(size, finest)), filled(size, LOOSEST))


def _chosen(size: Scalar, before: Scalar) -> Scalar:
    """Return 0.9 (||F|| / ||F of the step before||)^1.618 (Eisenstat and Walker 1996, eq. 2.6)."""
    return SHARE * smaller(size / nonzero(before), filled(size, 1.0)) ** GOLDEN
