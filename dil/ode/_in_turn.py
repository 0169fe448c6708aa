"""The stages of a step, one after the other: in Python, or as one loop of a program that is compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from dil._base.arrays import array_namespace, device, eye, full
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Backend
from dil.ode._state import slope_between, stepped

Rows = Sequence[Sequence[float]]


class Tableau(NamedTuple):
    """Stages z_i = y + h sum_j a_ij k_j + gh f(t + c_i h, z_i) with one gh = `diagonal` h.

    k_0 is the slope at the start. Row i of `rows` holds the a_ij with j <= i, and c_i is its sum plus the diagonal.
    """

    rows: Rows
    diagonal: float


class Solves(Protocol):
    """Stages that can be solved one by one."""

    def solve(self, base: Arrays, t: Array, gh: Array) -> Arrays:
        """Return z = base + gh f(t, z)."""
        ...


class InTurn:
    """Stages that are solved in Python, one after the other."""

    def solve_rows(
        self: Solves, tableau: Tableau, y: Arrays, first: Arrays, t: Array, h: Array
    ) -> tuple[Arrays, list[Arrays]]:
        """Return the last stage and all slopes, from the slope at the start."""
        slopes, z, gh = [first], y, tableau.diagonal * h
        for row in tableau.rows:
            base = stepped(y, h, row, slopes)
            z = self.solve(base, t + (sum(row) + tableau.diagonal) * h, gh)
            slopes.append(slope_between(z, base, gh))
        return z, slopes


class Step(NamedTuple):
    """A step of length h from y at t, with the slope there."""

    y: Array
    slope: Array
    t: Array
    """Shape (), like the length, or (*batch, 1) with own steps."""
    h: Array


Solve = Callable[[Arrays, Array, Array, Array], tuple[Arrays, Array, Array]]
"""`solve(state, base, t, known)` returns its new state, the stage and the slope there."""


def solved_by_scan(
    tableau: Tableau, backend: Backend, step: Step, solve: Solve, state: Arrays, known: Array
) -> tuple[Arrays, Array, list[Arrays]]:
    """Return the last state, the stages (rows, *batch, n) and all slopes, by one loop, which is compiled once.

    The loop is differentiable. `known` has a row for each stage.
    """
    y, first, t, h = step
    xp, count, (*batch, n) = array_namespace(first), len(tableau.rows), first.shape
    padded = [(*row, *(0.0,) * (count + 1 - len(row))) for row in tableau.rows]
    A = xp.asarray(padded, dtype=first.dtype, device=device(first))
    c = xp.sum(A, axis=1) + tableau.diagonal
    units = eye(count + 1, first)
    slopes = full(first, 0.0, shape=(*batch, count + 1, n)) + units[0, :, None] * first[..., None, :]

    def advance(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        (slopes, *before), (a, time, unit, z) = carry, row
        base = y + h * xp.sum(a[:, None] * slopes, axis=-2)
        after, z, slope = solve(tuple(before), base, time, z)
        # a sum, as a row that is written in place has no derivative
        return (slopes + unit[:, None] * slope[..., None, :], *after), (z,)

    at = xp.reshape(c, (count, *(1,) * h.ndim))
    rows = (A, t + at * h, units[1:, :], known)
    (slopes, *last), (stages,) = backend.loops.scan(advance, (slopes, *state), rows, full(c[0], float(count)))
    return tuple(last), stages, [(slopes[..., i, :],) for i in range(count + 1)]
