"""Conjugate gradients with a diagonal scaling and orthogonal residuals, which can pause and go on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, logical_not, select
from dil._base.rows import Rows
from dil._base.scalars import Scalar, any_of, count, count_from_zero, either, greater, in_unit, smaller, sqrt, times
from dil._base.typing import Array
from dil._frameworks.leaving import LEAVING, Part, Run, repeat_leaving
from dil._frameworks.loops import Loops
from dil.linear._cg import State, System, Trial
from dil.linear._window import Window, most_rows

MOST_REPAIRS = 64
"""How often a residual is made orthogonal. Each time costs as much as some steps, and in a long solve it may come at
nearly every step. A few eigenvalues that are far from the others are found before."""
NOISE = 400
"""The component of a residual along those of the window, in units of its rounding, up to which it is noise.

It grows beyond where the window has found an eigenvalue (Paige 1971). If it has not while the window filled, as with
the equations of a fine grid, the window has nothing to protect, and no residual is made orthogonal."""


class Method(NamedTuple):
    """Conjugate gradients for R A R y = R b with a diagonal R; x = R y. Vectors: (*batch, n)."""

    R: Any
    """R, or the number 1.0."""
    y: Array
    r: Array
    """R (b - A x)."""
    p: Array
    rr: Scalar
    """<r, r>: of the recurrence, or of the true residual after a check. It is positive while the problem is going."""
    pp: Scalar
    tt: Scalar
    """<b - A x, b - A x>: of the recurrence, or of the true residual after a check."""
    checked: Scalar
    """The true one at the last check."""
    rounded: Scalar
    """Whether the true residual at the last check is rounding."""
    won: Scalar
    """The decrease of 1/2 <x, A x> - <b, x> since the start. It does not depend on R."""
    won_before: Scalar
    """The decrease up to three quarters of the turn."""
    curvature: Scalar
    """<p, R A R p> / <p, p> of the last direction p, also if its step was refused."""
    curvature_sum: Scalar
    """The sum of |<p, R A R p>| / <p, p> so far."""
    largest_curvature: Scalar
    """The largest <p, R A R p> / <p, p> so far: a lower bound of the norm of R A R."""
    steps: Scalar
    repairs: Scalar
    """How often its residual was made orthogonal to those of the window."""
    lost: Scalar
    """The largest component of a residual along those of the window while that filled, as a share of its norm."""
    in_race: Scalar
    """Whether the method may still be the one that is chosen."""
    going: Scalar

    @property
    def x(self) -> Array:
        """The iterate in the unknowns of A."""
        return times(self.R, self.y)

    @staticmethod
    def start(system: System, plain: State, R: Any, in_race: Scalar) -> Method:
        """Return the method before its first step, at the x of a state of plain CG."""
        r = times(R, plain.r)
        rr = system.scalars.dot(r, r)
        y, tt, zero, none = in_unit(plain.x, R), plain.rr, 0.0 * rr, count_from_zero(rr)
        no = in_race & False
        return Method(R, y, r, r, rr, rr, tt, tt, no, zero, zero, zero, zero, zero, none, none, zero, in_race, in_race)

    def along(self, plain: State, some: Scalar) -> Method:
        """Return the method before a first step along the next direction of plain CG, for some of the problems.

        Their x is then that of plain CG in exact arithmetic. A start along the residual would delay it.
        """
        return self._replace(p=select(some, plain.v, self.p), pp=select(some, plain.vv, self.pp))


class Residual(NamedTuple):
    """A residual that is orthogonal to those of the window."""

    r: Array
    repaired: Scalar
    """Whether it had to be made so."""
    lost: Scalar
    """See `Method.lost`."""


class Progress(NamedTuple):
    """A method within its turn."""

    method: Method
    window: Window
    """The residuals of the method, or of the other one."""


@dataclass(frozen=True)
class Turn:
    """The systems of a batch, and where a turn ends."""

    system: System
    loops: Loops
    trial: Trial | None
    """Its steps are those of both methods, and those before."""
    limit: Scalar
    """The steps of the method at which the turn ends."""
    before: Scalar
    """The steps of the other method, and those before both."""
    orthogonal: Any
    """Whether the residuals of the method are kept orthogonal: a bool, or an array of shape () in a trace."""

    def part(self, rows: Rows, _: Progress) -> Part[Turn, Progress] | None:
        """Return some systems of the batch, or None if they cannot be solved alone."""
        alone = self.system.part(rows)
        if alone is None:
            return None
        limit, before = map(rows.take, (self.limit, self.before))
        return Part(replace(self, system=alone, limit=limit, before=before), lambda _: True)


def take_turn(turn: Turn, method: Method, window: Window) -> Progress:
    """Run the method until the turn is over, or each of its problems has ended."""
    b, loops = turn.system.b, turn.loops
    run = Run(tuple(b.shape[:-1]), b.shape[-1], loops, loops.steps_per_read(b), LEAVING)
    first = Progress(method, window)
    return repeat_leaving(turn, _step, lambda now: now.method.going, first, run=run, part=Turn.part)


def _step(turn: Turn, now: Progress) -> Progress:
    """Minimise the quadratic along p. A problem that has ended takes a step of zero, and keeps its r and p."""
    m, system, dot = now.method, turn.system, turn.system.scalars.dot
    machine_eps = eps(array_namespace(system.b), system.b.dtype)
    Ap = times(m.R, system.H(times(m.R, m.p)))
    pAp = dot(m.p, Ap)
    curvature = select(m.going, pAp / select(m.going, m.pp, 1.0), m.curvature)
    curvature_sum = m.curvature_sum + select(m.going, abs(curvature), 0.0)
    # False for NaN, negative curvature and null directions
    moving = m.going & (curvature > machine_eps * curvature_sum)
    alpha = m.rr / select(moving, pAp, math.inf)
    r, repaired, lost = _orthogonal(turn, now, m.r - alpha * Ap, moving)
    rr = dot(r, r)
    t = in_unit(r, m.R)
    tt = rr if t is r else dot(t, t)
    steps, won = select(moving, m.steps + 1, m.steps), m.won + 0.5 * alpha * m.rr
    # residuals that rounding has made nearly parallel are no orthogonal basis, and r may grow until it overflows
    bounded = machine_eps * tt <= system.bb
    repairs = m.repairs + count(repaired)
    is_last = repaired & (repairs == MOST_REPAIRS)
    going = moving & (tt > system.target_rr) & (steps < turn.limit) & bounded & logical_not(is_last)
    if turn.trial is not None:
        enough = tt <= system.bb * system.rtol ** (2 * turn.trial.share)
        going = going & ((steps + turn.before != turn.trial.steps) | enough)
    beta = rr / select(moving, m.rr, 1.0)
    after = m._replace(
        y=m.y + alpha * m.p,
        r=r,
        p=either(moving, lambda: r + beta * m.p, lambda: m.p),
        rr=select(moving, rr, m.rr),
        pp=select(moving, rr + beta * beta * m.pp, m.pp),  # r is orthogonal to the old p
        tt=select(moving, tt, m.tt),
        won=won,
        won_before=select(4 * steps <= 3 * turn.limit, won, m.won_before),
        curvature=curvature,
        curvature_sum=curvature_sum,
        largest_curvature=greater(curvature, m.largest_curvature),
        steps=steps,
        repairs=repairs,
        lost=lost,
        going=going,
    )
    return Progress(after, _kept(turn, now.window, after, moving))


def _kept(turn: Turn, window: Window, method: Method, moving: Scalar) -> Window:
    """Return the window with the residual of the method, if it is one whose residuals are kept."""
    if turn.orthogonal is False or window.full:
        return window
    unit = select(moving, sqrt(select(method.rr > 0, method.rr, 1.0)), math.inf)
    return window.with_row(method.r / unit, turn.loops, turn.orthogonal)


def _orthogonal(turn: Turn, now: Progress, r: Array, moving: Scalar) -> Residual:
    """Return r, without its components along the residuals of the window if they are more than rounding.

    What is taken away is lost for x, so it must be small beside the tolerance.
    """
    system, m, machine_eps = turn.system, now.method, eps(array_namespace(r), r.dtype)
    none = Residual(r, moving & False, m.lost)
    if turn.orthogonal is False or not now.window.used:
        return none
    fills = m.steps < most_rows(r)
    wanted = turn.orthogonal & moving & (m.repairs < MOST_REPAIRS) & (fills | (m.lost > NOISE * machine_eps))
    if system.scalars.none(wanted):
        return none
    size, component = sqrt(m.rr), now.window.component(r, system.scalars)
    harmless = 0.01 * system.rtol * sqrt(system.bb) * size / sqrt(select(m.tt > 0, m.tt, 1.0))
    allowed = greater(smaller(harmless, machine_eps**0.5 * size), 4 * machine_eps * size)
    lost = select(wanted & fills, greater(component / select(moving, size, 1.0), m.lost), m.lost)
    repaired = wanted & (component > allowed) & (lost > NOISE * machine_eps)
    if turn.loops.steps_per_read(r) > 1:  # to ask would make the host wait for the device
        return Residual(select(repaired, now.window.orthogonal(r), r), repaired, lost)
    found = turn.loops.run_if(
        any_of(repaired), lambda r: either(repaired, lambda: now.window.orthogonal(r), lambda: r), r
    )
    return Residual(found, repaired, lost)
