"""The stages of a small state by simplified Newton iterations (Hairer and Wanner 1996, IV.8).

The Jacobian of f is kept over stages and steps until an iteration converges slowly. I - gh J is inverted once a step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, eye, full, inner, logical_not, max_abs, select
from dil._base.scalars import (
    Scalar,
    Scalars,
    any_of,
    as_column,
    filled,
    greater,
    is_finite,
    smaller,
    sqrt,
)
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil._diagnostics.stationarity import least_step
from dil._frameworks.iteration import frozen
from dil._frameworks.loops import runs_later
from dil.ode._field import Field
from dil.ode._in_turn import InTurn, Step, Tableau, solved_by_scan
from dil.ode._rate import rate_of
from dil.ode._row_groups import RowGroups
from dil.ode._state import slope_between
from dil.ode._user_jacobian import jacobian_of


class Accuracy(NamedTuple):
    """When a stage is solved."""

    share: float
    """The error of the stage, as a share of the error that its step may have."""
    iterations: float
    """The largest number of iterations."""


FOR_VALUE = Accuracy(1e-3, 10.0)
FOR_DERIVATIVE = Accuracy(1e-9, 30.0)
"""The theorem wants a solution, and measures at some cost what is not (see `is_near`)."""
SLOW = 0.01
"""A stage that converges at a larger rate asks for the Jacobian of the next step."""
LEAST_RATE = 0.02
"""The least rate that a first iteration is trusted to have."""
ROUNDED = 0.1
"""A second step this short, in units of the error of a stage, may no longer contract because of rounding."""
ROUNDING = 64.0
"""The error that rounding may leave in an algebraic unknown, in eps of the largest of all.

That of an unknown with a derivative is smaller by the factor gh.
"""
STEADY = 0.5
"""A slope changes slowly if it changes by at most this share from one stage to the next."""
LONGEST_EXTRAPOLATION = 2.0
"""In units of the time between the last two stages."""


class Kept(NamedTuple):
    """What one step keeps for the next."""

    jacobian: Array
    """df/dy at the start of this step or of an earlier one, (*batch, n, n)."""
    current: Array
    """Whether it is that of the start of this step, shape (), or (*batch, 1) with own steps."""
    slow: Array
    """Whether a stage converged slowly with it, or not at all; likewise."""
    rate: Array
    """The rate of convergence of the last stage, (*batch, 1)."""
    past: Array
    """The slope of the stage before the last one, (*batch, n), or the last coupled stages (see `CoupledStages`)."""
    time: Array
    """The time of that stage, or the length of that step."""


@dataclass(frozen=True)
class SimplifiedNewton:
    """Makes the stages of each step of a search."""

    field: Field
    arrays: Arrays
    accuracy: Accuracy
    jac: Any = None
    """The user's `jac(t, y, *args)`, or constant numbers."""
    row_groups: RowGroups = dataclasses.field(default_factory=RowGroups)

    def first(self, y: Array, t: Array, slope: Array) -> Arrays:
        """Return what the first step is given."""
        zero = full(y, 0.0, shape=(*y.shape, y.shape[-1])) + 0.0 * y[..., None]
        yes = t == t
        return Kept(zero, ~yes, yes, full(y[..., :1], 1.0), slope, t - 1.0)

    def stages(self, t: Array, y: Array, slope: Array, allowed: Array, kept: Arrays) -> SimplifiedStages:
        """Return the stages of a step from y at t. Its error may be `allowed`."""
        return SimplifiedStages(self, t, y, slope, allowed, Kept(*kept))


class SimplifiedStages(InTurn):
    """The stages of one step from y at t."""

    def __init__(self, maker: SimplifiedNewton, t: Array, y: Array, slope: Array, allowed: Array, kept: Kept) -> None:
        self.jac, self.row_groups = maker.jac, maker.row_groups
        self.field, self.kept, self.before = maker.field, kept, (kept.past, kept.time)
        self.last: Arrays = (slope,)
        self.end: Arrays = (slope,)
        self.arrays, (self.args, _) = maker.arrays, maker.field.arguments.call(maker.arrays)
        self.start, self.time, self.gh, self.most = (t, y), t, t, maker.accuracy.iterations
        self.rounding = ROUNDED * FOR_VALUE.share / maker.accuracy.share
        xp, loops = array_namespace(y), maker.field.backend.loops
        within = xp.maximum(maker.accuracy.share * allowed, least_step(y) * xp.abs(y))
        self.mass = maker.field.mass(self.args) if maker.field.mass_arrays else None
        if self.mass is not None:
            rounded = xp.maximum(within, ROUNDING * eps(xp, y.dtype) * max_abs(y)[..., None])
            within = xp.where(self.mass.undetermined, rounded, within)
        self.weight = 1.0 / xp.where(within > 0, within, 1.0)
        self.own_steps = t.ndim > 0
        self.scalars = Scalars(loops.number, loops.numbers, y.ndim == 1)
        self.solutions: list[Array] = []
        self.rate = self.scalars.read(kept.rate[..., 0])
        zero = 0.0 * self.rate
        self.slowest, self.counted = zero, (zero, zero)
        self.inverse: Any = None
        self.factor = self.gh

    @property
    def outcome(self) -> tuple[Scalar, Scalar, Scalar]:
        """The first failed status, the iterations and the linear iterations of all stages, shape batch."""
        status, iterations = (x if self.scalars.single else x[..., 0] for x in self.counted)
        return status, iterations, 0.0 * iterations

    @property
    def may_try_again(self) -> Scalar:
        """Whether J is not that of the start of the step, so that a failure with it says little."""
        return logical_not(self.scalars.number(self.kept.current))

    def slope(self, t: Array, y: Arrays) -> Arrays:
        """Return dy/dt at y."""
        if self.mass is not None:
            return (rate_of(self.field, t, y[0], self.arrays),)
        return (self.field(t, y[0], *self.args),)

    def induced(self, error: Array, y: Array, t: Array) -> Array:
        """Return the error of the state, the algebraic unknowns included, from an estimate that holds for M y alone.

        It is (M - gh J)^-1 M times the estimate (Hairer and Wanner 1996, IV.8.19), so the algebraic equations relate
        the errors as they relate the unknowns.
        """
        if self.mass is None:
            return error
        moved = array_namespace(error).where(self.mass.algebraic, 0.0 * error, self.mass.times(error))
        return (self.inverse @ moved[..., None])[..., 0]  # type: ignore[no-any-return]

    def solve(self, base: Arrays, t: Array, gh: Array) -> Arrays:
        """Return z = base + gh f(t, z)."""
        if self.inverse is None or self.gh is not gh:
            self._invert(gh)
        (z,), (slope,), kept = base, self.last, self.kept
        way = self.scalars.number((t - self.time) / (self.time - kept.time))
        way = smaller(greater(way, filled(way, -LONGEST_EXTRAPOLATION)), filled(way, LONGEST_EXTRAPOLATION))
        found = self._iterate(z, t, gh, self._guess(z, gh, slope, way * (slope - kept.past)))
        end = slope_between((found.z,), base, gh)
        # two stages may have one time
        apart = self.scalars.number(abs(t - self.time) > 0.01 * abs(gh))
        self.kept = kept._replace(past=select(apart, slope, kept.past), time=select(apart, self.time, kept.time))
        self.last, self.end, self.time = end, end, t
        self.solutions.append(found.z)
        self._count(found)
        return (found.z,)

    def solve_rows(self, tableau: Tableau, y: Arrays, first: Arrays, t: Array, h: Array) -> tuple[Arrays, list[Arrays]]:
        """Return the last stage of a tableau and all slopes, from the slope at the start."""
        backend = self.field.backend
        if not runs_later(backend.loops, y[0]):
            return super().solve_rows(tableau, y, first, t, h)
        gh = tableau.diagonal * h
        self._invert(gh)

        def solve(state: Arrays, base: Array, t: Array, _: Array) -> tuple[Arrays, Array, Array]:
            self._go_on(state)
            (z,) = self.solve((base,), t, gh)
            return self._so_far(), z, self.end[0]

        rows = full(y[0], 0.0, shape=(len(tableau.rows), 1))
        state, stages, slopes = solved_by_scan(
            tableau, backend, Step(y[0], first[0], t, h), solve, self._so_far(), rows
        )
        self._go_on(state)
        self.end = self.last
        self.solutions = [stages[i, ...] for i in range(len(tableau.rows))]
        return (stages[-1, ...],), slopes

    def _so_far(self) -> Arrays:
        """Return what a stage leaves to the next one, as arrays."""
        return (self.last[0], self.time, self.kept.past, self.kept.time, self.rate, self.slowest, *self.counted)

    def _go_on(self, state: Arrays) -> None:
        """Take over what the stage before left."""
        last, self.time, slope, time, self.rate, self.slowest, *counted = state
        self.last, self.counted = (last,), (counted[0], counted[1])
        self.kept = self.kept._replace(past=slope, time=time)

    def _guess(self, base: Array, gh: Array, slope: Array, change: Array) -> Array:
        """Return the first iterate: along the last slope and its change, or the base where the slope changes fast.

        At the end of a transient the slope leads across the solution. From there another solution may be found.
        """
        read = self.scalars.read
        scaled, moved = slope * self.weight, change * self.weight
        steady = read(inner(moved, moved)) <= STEADY**2 * read(inner(scaled, scaled))
        return select(steady, base + gh * (slope + change), base)  # type: ignore[no-any-return]

    def after(self, taken: Scalar) -> Arrays:
        """Return what the next attempt is given."""
        kept, slow = self.kept, self.slowest > SLOW
        if not self.own_steps:
            slow = any_of(slow)
        rate = as_column(self.rate, self.start[1]) if isinstance(self.rate, float) else self._column(self.rate)
        past, time = (select(taken, a, b) for a, b in zip((kept.past, kept.time), self.before, strict=True))
        current = kept.current & logical_not(taken)
        return kept._replace(slow=kept.slow | slow, current=current, rate=rate, past=past, time=time)

    def _column(self, x: Array) -> Array:
        return x[..., None] if self.scalars.single else x

    def _count(self, found: Iterate) -> None:
        """Add the outcome of a stage."""
        status, iterations = self.counted
        failed, nonfinite = filled(status, float(Status.MAX_ITER)), filled(status, float(Status.NON_FINITE))
        new = select(is_finite(found.size), failed, nonfinite)
        new = select(found.solved, filled(status, 0.0), new)
        self.counted = select(status == 0, new, status), iterations + found.steps
        rate = select(found.solved, found.rate, filled(found.rate, 1.0))
        # a rate that was expected and not seen says nothing
        self.slowest = greater(self.slowest, select(found.solved & (found.steps < 2), 0.0 * rate, rate))
        self.rate = greater(rate, filled(rate, LEAST_RATE))

    def _invert(self, gh: Array) -> None:
        """Compute the Jacobian, if a stage converged slowly with the last one, and the inverse of I - gh J."""
        jacobian = self._renewed_jacobian()
        identity, factor = eye(jacobian.shape[-1], jacobian), gh[..., None] if self.own_steps else gh
        if self.mass is None:
            matrix = identity - factor * jacobian
        else:
            matrix, self.factor = self.mass.stage_matrix(jacobian, factor), self.mass.factor(gh)
        right = identity if matrix.ndim == 2 else array_namespace(matrix).broadcast_to(identity, matrix.shape)
        self.inverse, self.gh = self.field.backend.dense.lu_solve(matrix, right), gh

    def _renewed_jacobian(self) -> Array:
        """Return the kept Jacobian, or that at the start of the step if a stage converged slowly with the kept one."""
        kept = self.kept
        stale = kept.slow & ~kept.current

        def renewed(before: Array) -> Array:
            # that of a problem does not depend on the others
            return select(stale[..., None], self._jacobian(), before) if self.own_steps else self._jacobian()

        jacobian: Array = self.field.backend.loops.run_if(any_of(stale), renewed, kept.jacobian)
        self.kept = kept._replace(jacobian=jacobian, current=kept.current | stale, slow=stale & ~stale)
        return jacobian

    def _jacobian(self) -> Array:
        """Return df/dy at the start of the step, (*batch, n, n), by the user's function or from n pullbacks."""
        (t, y), backend = self.start, self.field.backend
        xp, n = array_namespace(y), y.shape[-1]
        if self.jac is not None:
            return jacobian_of(self.field, self.jac, t, y, self.args)
        _, pull = backend.vjp(lambda w: (self.field(t, w, *self.args),), y)
        if y.ndim == 1:
            return self.row_groups.jacobian(lambda p: pull((p,))[0], y, backend)
        rows = xp.reshape(eye(n, y), (n, *(1,) * (y.ndim - 1), n))
        rows = xp.broadcast_to(rows, (n, *y.shape))
        return xp.moveaxis(backend.loops.map_rows(lambda p: pull((p,))[0], rows), 0, -2)  # type: ignore[no-any-return]

    def _residual(self, z: Array, base: Array, t: Array, gh: Array) -> Array:
        """Return z - base - gh f(t, z), with M for I if there is one."""
        slope = self.field(t, z, *self.args)
        return z - base - gh * slope if self.mass is None else self.mass.stage(z, base, self.factor, slope)

    def _iterate(self, base: Array, t: Array, gh: Array, guess: Array) -> Iterate:
        """Return the last iterate of z <- z - (I - gh J)^-1 (z - base - gh f(t, z))."""
        weight, scalars, inverse = self.weight, self.scalars, self.inverse
        assert inverse is not None
        single, n = scalars.single, guess.shape[-1]
        # an older Jacobian has to show its rate: that of a linearisation across a fold is no contraction
        expected = select(scalars.number(self.kept.current), self.rate, filled(self.rate, 1.0))

        def advance(s: Iterate) -> Iterate:
            F = self._residual(s.z, base, t, gh)
            d = inverse @ F if single else (inverse @ F[..., None])[..., 0]
            scaled = d * weight
            size = sqrt(scalars.read(inner(scaled, scaled) / n))
            first, steps = s.steps == 0, s.steps + 1.0
            rate = select(first, expected, size / s.size)
            falls = smaller(rate, filled(rate, 1.0))
            # the error that is left is at most rate / (1 - rate) times the step
            solved = (size == 0) | ((rate < 1) & (rate * size <= 1 - rate))
            solved = solved | (logical_not(first) & (size <= ROUNDED))
            can_be = first | ((rate < 1) & (size * falls ** (self.most - steps) <= 1 - rate))
            # the rounding of f may be above what the theorem wants, and below what the value needs
            solved = solved | (logical_not(can_be) & (size <= self.rounding))
            going = can_be & is_finite(size) & logical_not(solved)
            return Iterate(s.z - d, size, rate, steps, going, solved)

        one = filled(expected, 1.0)
        begun = Iterate(guess, one, one, 0.0 * one, one > 0, one < 0)
        step = frozen(advance, guess.ndim - 1)
        last: Iterate = self.field.backend.loops.while_loop(lambda s: any_of(s.going), step, begun)
        return last


class Iterate(NamedTuple):
    """One iteration. z: (*batch, n); the others are scalars of each problem."""

    z: Array
    size: Scalar
    """The last step, in units of the error that the stage may have."""
    rate: Scalar
    steps: Scalar
    going: Scalar
    solved: Scalar
