"""Flexible preconditioned conjugate gradients for A x = b, A symmetric positive definite, from any start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, dot, eps, full, nonzero_max_abs
from dil._base.operator import Operator
from dil._base.solution import Solution
from dil._base.status import Status, first_of
from dil._base.typing import Array, Matvec
from dil._frameworks.iteration import iterate
from dil._frameworks.loops import Loops
from dil.linear.preconditioners._preconditioner import Preconditioner, prepared


class Iterate(NamedTuple):
    """One step of the recurrence; vectors (*batch, n), the rest (*batch, 1)."""

    x: Array
    """Not moved by a step that proves unsound."""
    r: Array
    p: Array
    rr: Array
    rz: Array
    """<r, M r>."""
    bend: Array
    """<p, A p> / <p, p> of the last step, taken or refused."""
    curvature: Array
    """The sum of <p, A p> / <p, p> so far."""
    sound: Array
    steps: Array


class Pass(NamedTuple):
    """The problems between passes of the recurrence; vectors (*batch, n), the rest (*batch, 1)."""

    x: Array
    r: Array
    """The true residual."""
    rr: Array
    rz: Array
    bend: Array
    curvature: Array
    sound: Array
    going: Array
    steps: Array
    checks: Array
    """Products spent on true residuals."""


def flexible_cg(
    A: Operator,
    b: Array,
    *,
    preconditioner: Preconditioner | Matvec | None,
    x0: Array | None,
    rtol: float,
    max_iter: int,
    loops: Loops,
) -> Solution:
    """Solve A x = b; b, x0 and x: (*batch, n).

    It keeps the rules of `dil.linear.CG`: b scaled to one, a relative test on the true residual, restarts from it while
    it falls, a status for each problem. The coefficient of the last direction is <z_new, r_new - r> / <z, r>, so that
    the preconditioner z = M r may change from step to step.

    A start x0 is used by the problems whose residual there is no larger than b; the tolerance stays relative to b.

    Sources: Golub and Ye 1999 (the inexact preconditioned CG); Notay 2000 (FCG(1)).

    Raises
    ------
    ShapeError
        If what the preconditioner returns is not like b.
    """
    xp, top = array_namespace(b), nonzero_max_abs(b)
    finite = xp.isfinite(top)
    top = xp.where(finite, top, full(top, 1.0))
    scaled = xp.where(finite, b, full(b, 0.0)) / top  # squares of tiny and huge entries would under- and overflow
    M = prepared(preconditioner, A, scaled, loops.while_loop)
    bb = dot(scaled, scaled)
    system = System(A, M, scaled, bb * (0.5 * rtol) ** 2, bb * rtol**2, max_iter, loops)
    first = system.start() if x0 is None else system.start_from(x0 / top)
    last = iterate(system.advance, lambda s: s.going, first, batch_ndim=b.ndim - 1, loops=loops)
    status = _status(last, system, finite)
    residual = xp.sqrt(last.rr / xp.where(bb == 0, full(bb, 1.0), bb))
    residual = xp.where(finite, residual, full(residual, float("nan")))
    products = last.steps + last.checks + M.products
    return Solution(last.x * top, status[..., 0], last.steps[..., 0], residual[..., 0], {"products": products[..., 0]})


@dataclass(frozen=True)
class System:
    """The systems of a batch, their preconditioner and their tolerances."""

    A: Matvec
    M: Matvec
    b: Array
    aim: Array
    """What the recurrence aims at: a little below the tolerance, so that the true residual rarely misses it."""
    accept: Array
    """The square of the residual that is accepted, (*batch, 1)."""
    max_iter: int
    loops: Loops

    def start(self) -> Pass:
        """Return the problems at x = 0."""
        xp, b, bb = array_namespace(self.b), self.b, dot(self.b, self.b)
        zero, some = full(bb, 0.0), bb > 0
        none = full(bb, 0, dtype=xp.int32)
        return Pass(full(b, 0.0), b, bb, full(bb, 1.0), zero, zero, xp.ones_like(some), some, none, none)

    def start_from(self, x0: Array) -> Pass:
        """Return the problems at x0, or at zero where the residual is smaller there."""
        xp, zero = array_namespace(self.b), self.start()

        def at_guess(s: Pass) -> Pass:
            r = self.b - self.A(x0)
            rr = dot(r, r)
            nearer = s.going & (rr <= s.rr)  # False for NaN
            return s._replace(
                x=xp.where(nearer, x0, s.x),
                r=xp.where(nearer, r, s.r),
                rr=xp.where(nearer, rr, s.rr),
                going=s.going & ~(nearer & (rr <= self.accept)),
                checks=s.checks + 1,
            )

        # once, but in the loop, where what overflows is no cause for a warning
        return self.loops.while_loop(lambda s: xp.all(s.checks < 1), at_guess, zero)  # type: ignore[no-any-return]

    def advance(self, s: Pass) -> Pass:
        """Run the recurrence from the true residuals; go on where that has at least halved them, but not enough."""
        xp = array_namespace(self.b)
        z = self.M(s.r)
        # M by one factor for the whole pass: the iteration does not see it, and <p, p> cannot under- or overflow
        size = nonzero_max_abs(z)
        size = xp.where(xp.isfinite(size), size, full(size, 1.0))
        z = z / size
        first = Iterate(s.x, s.r, z, s.rr, dot(s.r, z), s.bend, s.curvature, s.sound, s.steps)

        def going(i: Iterate) -> Array:
            return s.going & i.sound & (i.rz > 0) & (i.rr > self.aim) & (i.steps < self.max_iter)

        def step(i: Iterate) -> Iterate:
            return self._step(i, size)

        every = self.loops.steps_per_read(self.b)
        last = iterate(step, going, first, batch_ndim=self.b.ndim - 1, loops=self.loops, steps_per_read=every)
        r = self.b - self.A(last.x)
        rr = dot(r, r)
        again = last.sound & (last.rz > 0) & (rr > self.accept) & (4 * rr < s.rr) & (last.steps < self.max_iter)
        return Pass(last.x, r, rr, last.rz, last.bend, last.curvature, last.sound, again, last.steps, s.checks + 1)

    def _step(self, s: Iterate, size: Array) -> Iterate:
        xp = array_namespace(self.b)
        Ap = self.A(s.p)
        pAp = dot(s.p, Ap)
        bend = pAp / dot(s.p, s.p)
        sound = bend > eps(xp, self.b.dtype) * s.curvature  # False for NaN, negative curvature and null directions
        alpha = xp.where(sound, s.rz / pAp, full(pAp, 0.0))
        r = s.r - alpha * Ap
        z = self.M(r) / size
        rr, rz = dot(r, r), dot(r, z)
        p = z + (rz - dot(s.r, z)) / s.rz * s.p
        rz = xp.where(rr == 0, full(rz, 1.0), rz)  # solved exactly: that is no fault of M
        x = xp.where(sound, s.x + alpha * s.p, s.x)
        return Iterate(x, r, p, rr, rz, bend, s.curvature + xp.abs(bend), sound, s.steps + 1)


def _status(last: Pass, system: System, finite: Array) -> Array:
    """Say how each problem ended; the first word that fits counts. (*batch, 1)."""
    xp = array_namespace(last.x)
    machine = eps(xp, last.x.dtype)
    readable = xp.isfinite(last.bend) & xp.isfinite(last.rr) & xp.isfinite(last.rz) & finite
    reasons = [
        (finite & (last.rr <= system.accept), Status.CONVERGED),
        (~readable, Status.NON_FINITE),
        (last.bend < -machine * last.curvature, Status.INDEFINITE),
        (~last.sound, Status.SINGULAR),
        (last.rz <= 0, Status.PRECONDITIONER),
        (last.steps >= system.max_iter, Status.MAX_ITER),
    ]
    return first_of(reasons, Status.STAGNATED)  # type: ignore[no-any-return]
