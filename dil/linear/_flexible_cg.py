"""Flexible preconditioned conjugate gradients for A x = b with a symmetric positive definite A, from any start."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, full, logical_not, select
from dil._base.operator import Operator, as_operator
from dil._base.rows import Rows
from dil._base.scalars import Scalar, Scalars, count_from_zero, divided, either, greater, is_finite, sqrt
from dil._base.solution import Solution
from dil._base.status import Status, first_of
from dil._base.typing import Array, Matvec
from dil._frameworks.iteration import repeat
from dil._frameworks.leaving import LEAVING, Part, Run, iterate
from dil._frameworks.loops import Loops
from dil.linear._backward_error import is_rounding
from dil.linear._part import matrix_of_part
from dil.linear.preconditioners._preconditioner import Preconditioner, prepared

PATIENCE = 32
"""The steps without a halved <r, r> after which a pass ends, if the true residual that it started from is rounding."""


class Iterate(NamedTuple):
    """The state of the recurrence. Vectors: (*batch, n)."""

    x: Array
    """The iterate. A refused step does not change it."""
    r: Array
    p: Array
    rr: Scalar
    rz: Scalar
    """<r, M r>."""
    curvature: Scalar
    """<p, A p> / <p, p> of the last direction p, also if its step was refused."""
    curvature_sum: Scalar
    """The sum of |<p, A p>| / <p, p> so far."""
    largest_curvature: Scalar
    """The largest <p, A p> / <p, p> so far: a lower bound of the norm of A."""
    positive: Scalar
    steps: Scalar
    halved_rr: Scalar
    """<r, r> when it was last halved."""
    halved_at: Scalar
    """The steps then."""


class Pass(NamedTuple):
    """The state between two passes of the recurrence. Vectors: (*batch, n)."""

    x: Array
    r: Array
    """The true residual."""
    rr: Scalar
    rz: Scalar
    curvature: Scalar
    curvature_sum: Scalar
    largest_curvature: Scalar
    positive: Scalar
    active: Scalar
    steps: Scalar
    checks: Scalar
    """Products spent on true residuals."""


def flexible_cg(
    A: Operator,
    b: Array,
    *,
    preconditioner: Preconditioner | Matvec | None,
    x0: Array | None,
    rtol: Scalar,
    max_iter: int,
    loops: Loops,
) -> Solution:
    """Solve A x = b; b, x0 and x: (*batch, n).

    The rules are those of `dil.linear.CG`: b is scaled, the test is relative and on the true residual, a pass restarts
    from the true residual while the residual falls, and each problem has a status. A pass that starts from a residual
    that is rounding may gain nothing: it ends when <r, r> is not halved in 32 steps, and an x with a larger residual is
    dropped. The coefficient of the last
    direction is <z_new, r_new - r> / <z, r>, so the preconditioner z = M r may change from step to step.

    A problem uses its start x0 if the residual at x0 is at most ||b||. The tolerance remains relative to b.

    Sources: Golub and Ye 1999 (the inexact preconditioned CG); Notay 2000 (FCG(1)).

    Raises
    ------
    ShapeError
        If the preconditioner returns another shape than that of b.
    DTypeError
        If the preconditioner returns another dtype than that of b.
    """
    xp, scalars = array_namespace(b), Scalars(loops.number, loops.numbers, b.ndim == 1)
    unit = scalars.largest(b)
    finite = is_finite(unit)
    unit = select(finite, unit, 1.0)
    # squares of tiny and huge entries would underflow or overflow
    scaled = either(finite, lambda: b, lambda: full(b, 0.0)) / unit
    M = prepared(preconditioner, A, scaled, loops.while_loop)
    bb = scalars.dot(scaled, scaled)
    plain = preconditioner is None
    system = System(A, M, plain, scaled, bb, bb * (0.5 * rtol) ** 2, bb * rtol**2, max_iter, loops, scalars)
    first = system.start() if x0 is None else system.start_from(x0 / unit)
    last = iterate(system, System.advance, lambda _, s: s.active, first, run=system.run(), part=System.part)
    residual = select(finite, sqrt(last.rr / select(bb == 0, 1.0, bb)), math.nan)
    products = last.steps + last.checks + M.products
    status, steps, products = (
        scalars.array(k, b, xp.int32) for k in (_status(last, system, finite), last.steps, products)
    )
    extra = {"products": products, "indefinite": status == int(Status.INDEFINITE)}
    return Solution(last.x * unit, status, steps, scalars.array(residual, b, b.dtype), extra)


@dataclass(frozen=True)
class System:
    """The systems of a batch, their preconditioner and their tolerances."""

    A: Matvec
    M: Matvec
    plain: bool
    """Whether M is the identity."""
    b: Array
    bb: Scalar
    """<b, b>."""
    target_rr: Scalar
    """<r, r> at which the recurrence stops. It is below the tolerance, so that the true residual rarely misses that."""
    accepted_rr: Scalar
    """<r, r> of the true residual that is accepted."""
    max_iter: int
    loops: Loops
    scalars: Scalars

    def run(self, steps_per_read: int = 1, price: float = 0.0) -> Run:
        """Return how a loop over the systems runs."""
        return Run(tuple(self.b.shape[:-1]), self.b.shape[-1], self.loops, steps_per_read, price)

    def part(self, rows: Rows, _: Any) -> Part[System, Any] | None:
        """Return some systems of the batch, or None if they cannot be solved alone, as with a preconditioner."""
        A = matrix_of_part(as_operator(self.A), rows, self.b) if self.plain else None
        if A is None:
            return None
        b, bb, target_rr, accepted_rr = map(rows.take, (self.b, self.bb, self.target_rr, self.accepted_rr))
        alone = replace(self, A=A, b=b, bb=bb, target_rr=target_rr, accepted_rr=accepted_rr)
        return Part(alone, lambda _: True)

    def start(self) -> Pass:
        """Return the state at x = 0."""
        b, bb, no_steps = self.b, self.bb, count_from_zero(self.bb)
        zero, nonzero = 0.0 * bb, bb > 0
        return Pass(full(b, 0.0), b, bb, bb, zero, zero, zero, nonzero, nonzero, no_steps, no_steps)

    def start_from(self, x0: Array) -> Pass:
        """Return the state at x0, or at zero where the residual at zero is smaller."""
        zero = self.start()

        def at_guess(s: Pass) -> Pass:
            r = self.b - self.A(x0)
            rr = self.scalars.dot(r, r)
            use_guess = s.active & (rr <= s.rr)  # False for NaN
            return s._replace(
                x=select(use_guess, x0, s.x),
                r=select(use_guess, r, s.r),
                rr=select(use_guess, rr, s.rr),
                active=s.active & logical_not(use_guess & (rr <= self.accepted_rr)),
                checks=s.checks + 1,
            )

        # a loop that runs once, because overflow inside a loop causes no warning
        return repeat(at_guess, lambda s: s.checks < 1, zero, loops=self.loops)

    def advance(self, s: Pass) -> Pass:
        """Run the recurrence from the true residuals. A problem restarts if its residual halves but misses rtol."""
        dot, z = self.scalars.dot, self.M(s.r)
        # M is scaled by one factor for the whole pass: this leaves x unchanged, and <p, p> cannot underflow or overflow
        size = self.scalars.largest(z)
        size = select(is_finite(size), size, 1.0)
        z = z / size
        curvatures = s.curvature, s.curvature_sum, s.largest_curvature
        first = Iterate(s.x, s.r, z, s.rr, dot(s.r, z), *curvatures, s.positive, s.steps, s.rr, s.steps)

        given = Given(self, s.active, size, s.rr, self.scalars.norm(s.x))
        run = self.run(self.loops.steps_per_read(self.b), LEAVING)
        last = iterate(given, _step, _active, first, run=run, part=_part)
        r = self.b - self.A(last.x)
        rr = dot(r, r)
        lost = given.starts_from_rounding(last) & (rr > s.rr)
        rr = select(lost, s.rr, rr)
        restarts = (
            last.positive & (last.rz > 0) & (rr > self.accepted_rr) & (4 * rr < s.rr) & (last.steps < self.max_iter)
        )
        return Pass(
            either(lost, lambda: s.x, lambda: last.x),
            either(lost, lambda: s.r, lambda: r),
            rr,
            last.rz,
            last.curvature,
            last.curvature_sum,
            last.largest_curvature,
            last.positive,
            restarts,
            last.steps,
            s.checks + 1,
        )


class Given(NamedTuple):
    """What a pass holds fixed."""

    system: System
    active: Scalar
    size: Scalar
    """The size of the first M r."""
    start_rr: Scalar
    """<r, r> of the true residual that the pass started from."""
    start_norm: Scalar
    """The norm of the x that it started from."""

    def starts_from_rounding(self, i: Iterate) -> Scalar:
        """Return whether the true residual at the start is rounding, by what is known of the norm of A by now."""
        system, machine_eps = self.system, eps(array_namespace(self.system.b), self.system.b.dtype)
        norms = i.largest_curvature, self.start_norm, sqrt(system.bb)
        return is_rounding(sqrt(self.start_rr), *norms, machine_eps)


def _active(given: Given, i: Iterate) -> Scalar:
    """Return whether a pass goes on."""
    system = given.system
    goes_on = given.active & i.positive & (i.rz > 0) & (i.rr > system.target_rr) & (i.steps < system.max_iter)
    return goes_on & logical_not(given.starts_from_rounding(i) & (i.steps >= i.halved_at + PATIENCE))


def _part(given: Given, rows: Rows, i: Iterate) -> Part[Given, Iterate] | None:
    """Return some systems of a pass."""
    alone = given.system.part(rows, i)
    if alone is None:
        return None
    active, size, rr, norm = map(rows.take, given[1:])
    return Part(Given(alone.given, active, size, rr, norm), alone.holds)


def _step(given: Given, s: Iterate) -> Iterate:
    system, size = given.system, given.size
    dot = system.scalars.dot
    Ap = system.A(s.p)
    pAp = dot(s.p, Ap)
    curvature = divided(pAp, dot(s.p, s.p))
    # False for NaN, negative curvature and null directions
    positive = curvature > eps(array_namespace(system.b), system.b.dtype) * s.curvature_sum
    alpha = either(positive, lambda: divided(s.rz, pAp), lambda: 0.0 * pAp)
    r = s.r - alpha * Ap
    z = system.M(r) / size
    rr, rz = dot(r, r), dot(r, z)
    p = z + divided(rz - dot(s.r, z), s.rz) * s.p
    rz = select(rr == 0, 1.0, rz)  # solved exactly: <r, z> = 0 is then no failure of M
    x = either(positive, lambda: s.x + alpha * s.p, lambda: s.x)
    curvatures = curvature, s.curvature_sum + abs(curvature), greater(curvature, s.largest_curvature)
    steps, halves = s.steps + 1, rr <= 0.5 * s.halved_rr
    halved = select(halves, rr, s.halved_rr), select(halves, steps, s.halved_at)
    return Iterate(x, r, p, rr, rz, *curvatures, positive, steps, *halved)


def _status(last: Pass, system: System, finite: Scalar) -> Scalar:
    """Return the status of each problem. The first condition that holds decides."""
    machine_eps = eps(array_namespace(last.x), last.x.dtype)
    norms = last.largest_curvature, system.scalars.norm(last.x), sqrt(system.bb)
    computable = is_finite(last.curvature) & is_finite(last.rr) & is_finite(last.rz) & finite
    reasons = [
        (finite & (last.rr <= system.accepted_rr), Status.CONVERGED),
        (logical_not(computable), Status.NON_FINITE),
        (last.curvature < -machine_eps * last.curvature_sum, Status.INDEFINITE),
        (logical_not(last.positive), Status.SINGULAR),
        (last.rz <= 0, Status.PRECONDITIONER),
        (is_rounding(sqrt(last.rr), *norms, machine_eps), Status.CONVERGED),
        (last.steps >= system.max_iter, Status.MAX_ITER),
    ]
    return first_of(reasons, Status.STAGNATED)
