"""Steps over a grid that is given: as many between two times as asked for."""

from __future__ import annotations

from collections.abc import Callable

from dil._arrays import array_namespace, full
from dil._typing import Array, Arrays
from dil.ode._field import Field
from dil.ode._methods import Method
from dil.ode._state import plus, slope_between

Solve = Callable[[Array, Array, Array, Arrays, Array], tuple[Array, Arrays]]
"""`solve(base, t, gh, arrays, guess)` returns z = base + gh f(t, z), and what its solver said."""


class VectorStages:
    """The stages of one step, each started from its base and the slope of the stage before."""

    def __init__(self, field: Field, solve: Solve, arrays: Arrays, slope: Array) -> None:
        self.field, self.solve_one, self.arrays, self.last = field, solve, arrays, slope
        none = full(slope[..., 0], 0.0)
        self.told: Arrays = (none, none, none)

    def solve(self, base: Arrays, t: Array, gh: Array) -> Arrays:
        """Return z = base + gh f(t, z)."""
        guess = plus(base, (gh, (self.last,)))[0]
        z, (status, *counts) = self.solve_one(base[0], t, gh, self.arrays, guess)
        xp = array_namespace(status)
        first, *sums = self.told
        self.told = (xp.where(first == 0, status, first), *(a + b for a, b in zip(sums, counts, strict=True)))
        self.last = self.field.backend.constant(slope_between((z,), base, gh)[0])
        return (z,)

    def slope(self, t: Array, y: Arrays) -> Arrays:
        """Return f(t, y)."""
        return (self.field.at(t, y[0], self.arrays),)


def grid_of(t: Array, steps: int) -> tuple[Array, Array]:
    """Return where the steps begin and how long they are, both ((T - 1) * steps,)."""
    xp = array_namespace(t)
    h = (t[1:] - t[:-1]) / steps
    if steps == 1:
        return t[:-1], h
    part = xp.astype(xp.arange(steps), t.dtype)
    begins = t[:-1][:, None] + h[:, None] * part[None, :]
    return xp.reshape(begins, (-1,)), xp.reshape(xp.broadcast_to(h[:, None], begins.shape), (-1,))


def integrate(
    method: Method, field: Field, solve: Solve, y0: Array, t: Array, arrays: Arrays, steps: int
) -> tuple[Array, Arrays]:
    """Return the states at the times t, (T, *batch, n), and what was said of each step: (steps, *batch) each."""
    xp, backend = array_namespace(y0), field.backend
    begins, lengths = grid_of(t, steps)

    def stages(slope: Array) -> VectorStages:
        return VectorStages(field, solve, arrays, slope)

    def take(method: Method, carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        y, slope, *memory = carry
        here = stages(slope)
        new = method.advance(here, (y,), tuple(memory), *row)
        return (*new.y, here.last, *new.memory), (*new.y, *here.told)

    first = method.starter or method
    slope = full(y0, 0.0)
    carry: Arrays = (y0, slope, *first.begin(stages(slope), (y0,), t[0]))
    rows: Arrays = (begins, lengths)
    outs: list[Arrays] = []
    if method.starter is not None:
        assert method.resume is not None
        (y, slope, *memory), out = take(method.starter, carry, (begins[0], lengths[0]))
        carry = (y, slope, *method.resume((y0,), tuple(memory), lengths[0]))
        outs.append(tuple(x[None, ...] for x in out))
        rows = (begins[1:], lengths[1:])
    if rows[0].shape[0]:
        outs.append(backend.scan(lambda c, row: take(method, c, row), carry, rows)[1])
    states, *told = outs[0] if len(outs) == 1 else (xp.concat(parts) for parts in zip(*outs, strict=True))
    return xp.concat([y0[None, ...], states[steps - 1 :: steps, ...]]), tuple(told)
