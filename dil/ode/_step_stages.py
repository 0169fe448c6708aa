"""The stages of a step of the ODE itself."""

from __future__ import annotations

from collections.abc import Callable

from dil._base.arrays import array_namespace, full, norm
from dil._base.typing import Array, Arrays
from dil.ode._field import Field
from dil.ode._state import plus, slope_between

Solve = Callable[[Array, Array, Array, Arrays, Array], tuple[Array, Arrays]]
"""`solve(base, t, gh, arrays, guess)` returns z = base + gh f(t, z), and what its solver said."""


class VectorStages:
    """The stages of one step, each started from its base and the slope of the stage before."""

    def __init__(self, field: Field, solve: Solve, arrays: Arrays, last: Arrays) -> None:
        self.field, self.solve_one, self.arrays, self.last = field, solve, arrays, last
        self.end = last
        """The slope of the last stage, with its derivative; `last` is the same without."""
        none = full(last[0][..., 0], 0.0)
        self.told: Arrays = (none, none, none)
        """The first status that is no success, and how many iterations were made, linear ones too; shape batch."""

    def solve(self, base: Arrays, t: Array, gh: Array) -> Arrays:
        """Return z = base + gh f(t, z)."""
        (ahead,) = plus(base, (gh, self.last))
        guess = nearer(self.field, base[0], t, gh, self.arrays, ahead)
        z, said = self.solve_one(base[0], t, gh, self.arrays, guess)
        self.told = both(self.told, said)
        self.end = slope_between((z,), base, gh)
        self.last = tuple(self.field.backend.constant(k) for k in self.end)
        return (z,)

    def slope(self, t: Array, y: Arrays) -> Arrays:
        """Return f(t, y)."""
        return (self.field.slope(t, y[0], self.arrays),)


def nearer(field: Field, base: Array, t: Array, gh: Array, arrays: Arrays, ahead: Array) -> Array:
    """Return the start of a stage: `ahead`, along the slope before it, if that is much nearer by the residual, or base.

    Where a transient ends the slope leads across the solution, and Newton's method from there to another one: a
    residual that is only a little smaller does not tell the sides apart.
    """
    base, t, gh, ahead, *rest = (field.backend.constant(x) for x in (base, t, gh, ahead, *arrays))
    near, far = (norm(z - base - gh * field.at(t, z, rest)) for z in (base, ahead))
    return array_namespace(base).where(far < 0.1 * near, ahead, base)  # type: ignore[no-any-return]


def both(told: Arrays, said: Arrays) -> Arrays:
    """Add what one more solve said: the first failure counts, and iterations add up."""
    (status, *counts), (new, *more) = told, said
    first = array_namespace(status).where(status == 0, new, status)
    return (first, *(a + b for a, b in zip(counts, more, strict=True)))
