"""The stages of a step of the ODE itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dil._base.arrays import array_namespace, full, norm
from dil._base.scalars import Scalar
from dil._base.typing import Array, Arrays
from dil._frameworks.loops import runs_later
from dil.ode._collocation import Collocation
from dil.ode._field import Field
from dil.ode._in_turn import InTurn, Step, Tableau, solved_by_scan
from dil.ode._rate import rate_of
from dil.ode._stage_layer import StageLayer
from dil.ode._state import plus, slope_between

Solve = Callable[[Array, Array, Array, Arrays, Array], tuple[Array, Arrays]]
"""`solve(base, t, gh, arrays, guess)` returns z = base + gh f(t, z) and its outcome (see `VectorStages.outcome`)."""


class VectorStages(InTurn):
    """The stages of one step. Each starts from its base and the slope of the stage before."""

    def __init__(self, field: Field, solve: Solve, arrays: Arrays, last: Arrays, single: Solve | None = None) -> None:
        self.field, self.solve_one, self.arrays, self.last = field, solve, arrays, last
        self.single, self.gh = single or solve, full(last[0], 0.0, shape=())
        self.end = last
        """The slope of the last stage, with its derivative. `last` is the same slope as a constant."""
        zero = full(last[0][..., 0], 0.0)
        self.outcome: Arrays = (zero, zero, zero)
        """The first failed status, the iterations and the linear iterations of all stages; shape batch."""
        self.solutions: list[Array] = []

    def solve(self, base: Arrays, t: Array, gh: Array) -> Arrays:
        """Return z = base + gh f(t, z)."""
        (ahead,) = plus(base, (gh, self.last))
        guess = initial_guess(self.field, base[0], t, gh, self.arrays, ahead)
        z, outcome = self.solve_one(base[0], t, gh, self.arrays, guess)
        self.solutions.append(z)
        self.outcome = add_outcomes(self.outcome, outcome)
        self.end = slope_between((z,), base, gh)
        self.last = tuple(self.field.backend.constant(k) for k in self.end)
        return (z,)

    def solve_collocation(
        self, nodes: Collocation, y: Arrays, first: Arrays, t: Array, h: Array
    ) -> tuple[Arrays, list[Arrays]]:
        """Return the last stage of a step of collocation and the slopes at its nodes, from the slope at the start."""
        plain = self.field.backend.constant
        base, length, slope = plain(y[0]), plain(h), plain(first[0])
        xp = array_namespace(base)
        ahead = xp.concat([base + (c * length) * slope for c in nodes.nodes], axis=-1)
        residual = partial(nodes.residual, self.field)
        guess = better_guess(self.field, residual, nodes.tiled(base), (base, plain(t), length), self.arrays, ahead)
        z, outcome = self.solve_one(y[0], t, h, self.arrays, guess)
        parts, slopes = nodes.parts(z), nodes.slopes(z, y[0], h)
        self.solutions += [parts[..., i, :] for i in range(nodes.count)]
        self.outcome = add_outcomes(self.outcome, outcome)
        self.end, self.gh = slopes[-1], h / nodes.real
        self.last = tuple(map(plain, self.end))
        return (parts[..., -1, :],), slopes

    def slope(self, t: Array, y: Arrays) -> Arrays:
        """Return dy/dt at y."""
        return (rate_of(self.field, t, y[0], self.arrays),)

    def induced(self, error: Array, y: Array, t: Array) -> Array:
        """Return the error of the state, the algebraic unknowns included, from an estimate that holds for M y alone.

        It is (M - gh J)^-1 M times the estimate. A stage of length gh gives it, and one of length zero the consistent
        state beside y.
        """
        if self.single is self.solve_one and not self.field.mass_arrays:
            return error
        z, _ = self.single(y - error - self.gh * self.last[0], t, self.gh, self.arrays, y)
        return y - z

    @property
    def may_try_again(self) -> bool:
        """Return False: a solve that failed would fail again."""
        return False

    def after(self, taken: Scalar) -> Arrays:
        """Return nothing: the steps keep nothing."""
        return ()


@dataclass(frozen=True)
class EachSolved:
    """Makes the stages of each step of a search, which a solver solves one by one to its own tolerance."""

    field: Field
    solve: Solve
    arrays: Arrays
    single: Solve | None = None
    """Solves a stage by itself, if `solve` solves coupled stages."""

    def first(self, y: Array, t: Array, slope: Array) -> Arrays:
        """Return nothing: the steps keep nothing."""
        return ()

    def stages(self, t: Array, y: Array, slope: Array, allowed: Array, kept: Arrays) -> VectorStages:
        """Return the stages of a step from y at t."""
        return VectorStages(self.field, self.solve, self.arrays, (slope,), self.single)


@dataclass(frozen=True)
class NoneSolved:
    """Makes the stages of each step of a search by an explicit method."""

    field: Field
    arrays: Arrays

    def first(self, y: Array, t: Array, slope: Array) -> Arrays:
        """Return nothing: the steps keep nothing."""
        return ()

    def stages(self, t: Array, y: Array, slope: Array, allowed: Array, kept: Arrays) -> ExplicitStages:
        """Return the stages of a step from y at t."""
        return ExplicitStages(self.field, no_solve, self.arrays, (slope,))


class ExplicitStages(VectorStages):
    """The stages of a step of an explicit method, without a derivative."""

    def slope(self, t: Array, y: Arrays) -> Arrays:
        """Return f(t, y)."""
        return (self.field.at(t, y[0], self.arrays),)


def no_solve(base: Array, t: Array, gh: Array, arrays: Arrays, guess: Array) -> tuple[Array, Arrays]:
    """Raise an error: an explicit method solves nothing.

    Raises
    ------
    AssertionError
        Always.
    """
    message = "an explicit method has no stage to solve"
    raise AssertionError(message)


class KnownStages(InTurn):
    """The stages of a step whose solutions are known. They have the derivative of the theorem there."""

    def __init__(self, field: Field, layer: StageLayer, arrays: Arrays, last: Arrays, solutions: Array) -> None:
        self.field, self.layer, self.arrays = field, layer, arrays
        self.last = self.end = last
        self.solutions = solutions
        self.place = 0
        zero = full(last[0][..., 0], 0.0)
        self.outcome: Arrays = (zero, zero, zero)

    def solve(self, base: Arrays, t: Array, gh: Array) -> Arrays:
        """Return z = base + gh f(t, z)."""
        z = self._known(base[0], t, gh, self.solutions[self.place, ...])
        self.place += 1
        self.end = slope_between((z,), base, gh)
        self.last = tuple(self.field.backend.constant(k) for k in self.end)
        return (z,)

    def _known(self, base: Array, t: Array, gh: Array, z: Array) -> Array:
        """Return z with the derivative of z = base + gh f(t, z)."""
        start, length = (self.field.backend.constant(x) for x in (base, gh))
        # a step of no length, which pads a batch of searches, ends where it begins
        z = array_namespace(start).where(length == 0, start, z)
        return self.layer.known(base, t, self._length(gh), self.arrays, z)

    def _length(self, gh: Array) -> Array:
        """Return the length of a stage. One that pads a batch, with a mass matrix, is told from a consistent state."""
        if not self.field.mass_arrays:
            return gh
        length = self.field.backend.constant(gh)
        return array_namespace(length).where(length == 0, full(length, -1.0), gh)  # type: ignore[no-any-return]

    def solve_rows(self, tableau: Tableau, y: Arrays, first: Arrays, t: Array, h: Array) -> tuple[Arrays, list[Arrays]]:
        """Return the last stage of a tableau and all slopes, from the slope at the start."""
        backend = self.field.backend
        if not runs_later(backend.loops, backend.constant(y[0])):
            return super().solve_rows(tableau, y, first, t, h)
        gh = tableau.diagonal * h

        def solve(state: Arrays, base: Array, t: Array, z: Array) -> tuple[Arrays, Array, Array]:
            z = self._known(base, t, gh, z)
            return (), z, slope_between((z,), (base,), gh)[0]

        _, stages, slopes = solved_by_scan(tableau, backend, Step(y[0], first[0], t, h), solve, (), self.solutions)
        self.end = slopes[-1]
        self.last = tuple(backend.constant(k) for k in self.end)
        return (stages[-1, ...],), slopes

    def solve_collocation(
        self, nodes: Collocation, y: Arrays, first: Arrays, t: Array, h: Array
    ) -> tuple[Arrays, list[Arrays]]:
        """Return the last stage of a step of collocation and the slopes at its nodes."""
        parts = array_namespace(self.solutions).moveaxis(self.solutions, 0, -2)
        base, length = (self.field.backend.constant(x) for x in (y[0], h))
        z = array_namespace(base).where(length == 0, nodes.tiled(base), nodes.joined(parts))
        z = self.layer.known(y[0], t, self._length(h), self.arrays, z)
        slopes = nodes.slopes(z, y[0], h)
        self.end = slopes[-1]
        self.last = tuple(self.field.backend.constant(k) for k in self.end)
        return (nodes.parts(z)[..., -1, :],), slopes

    def slope(self, t: Array, y: Arrays) -> Arrays:
        """Return dy/dt at y."""
        return (rate_of(self.field, t, y[0], self.arrays),)


def initial_guess(field: Field, base: Array, t: Array, gh: Array, arrays: Arrays, ahead: Array) -> Array:
    """Return the initial guess of a stage: `ahead`, along the last slope, if its residual is much smaller, else base.

    At the end of a transient the slope leads across the solution. From there Newton's method may find another solution,
    even if the residual is a little smaller.
    """
    base, t, gh, ahead = (field.backend.constant(x) for x in (base, t, gh, ahead))
    return better_guess(field, field.residual, base, (base, t, gh), arrays, ahead)


def better_guess(
    field: Field, residual: Callable[..., Array], near: Array, of: Arrays, arrays: Arrays, ahead: Array
) -> Array:
    """Return `ahead` if its residual is much smaller than that of `near`, else `near`. `of` is base, t and gh."""
    args, _ = field.arguments.call([field.backend.constant(x) for x in arrays])
    near_norm, ahead_norm = (norm(residual(z, *of, *args)) for z in (near, ahead))
    return array_namespace(near).where(ahead_norm < 0.1 * near_norm, ahead, near)  # type: ignore[no-any-return]


def add_outcomes(total: Arrays, new: Arrays) -> Arrays:
    """Return the outcome of two solves: the status of the first failure, and the sums of the iterations."""
    (status, *counts), (new_status, *new_counts) = total, new
    first = array_namespace(status).where(status == 0, new_status, status)
    return (first, *(a + b for a, b in zip(counts, new_counts, strict=True)))
