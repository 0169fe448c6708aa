"""Flexible preconditioned conjugate gradients for A x = b with a symmetric positive definite A, from any start."""

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
    """The state of the recurrence. Vectors: (*batch, n); scalars: (*batch, 1)."""

    x: Array
    """The iterate. A refused step does not change it."""
    r: Array
    p: Array
    rr: Array
    rz: Array
    """<r, M r>."""
    curvature: Array
    """<p, A p> / <p, p> of the last direction p, also if its step was refused."""
    curvature_sum: Array
    """The sum of |<p, A p>| / <p, p> so far."""
    positive: Array
    steps: Array


class Pass(NamedTuple):
    """The state between two passes of the recurrence. Vectors: (*batch, n); scalars: (*batch, 1)."""

    x: Array
    r: Array
    """The true residual."""
    rr: Array
    rz: Array
    curvature: Array
    curvature_sum: Array
    positive: Array
    active: Array
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

    The rules are those of `dil.linear.CG`: b is scaled, the test is relative and on the true residual, a pass restarts
    from the true residual while the residual falls, and each problem has a status. The coefficient of the last
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
    xp, unit = array_namespace(b), nonzero_max_abs(b)
    finite = xp.isfinite(unit)
    unit = xp.where(finite, unit, full(unit, 1.0))
    scaled = xp.where(finite, b, full(b, 0.0)) / unit  # squares of tiny and huge entries would underflow or overflow
    M = prepared(preconditioner, A, scaled, loops.while_loop)
    bb = dot(scaled, scaled)
    system = System(A, M, scaled, bb * (0.5 * rtol) ** 2, bb * rtol**2, max_iter, loops)
    first = system.start() if x0 is None else system.start_from(x0 / unit)
    last = iterate(system.advance, lambda s: s.active, first, batch_ndim=b.ndim - 1, loops=loops)
    status = _status(last, system, finite)
    residual = xp.sqrt(last.rr / xp.where(bb == 0, full(bb, 1.0), bb))
    residual = xp.where(finite, residual, full(residual, float("nan")))
    products = last.steps + last.checks + M.products
    status = status[..., 0]
    extra = {"products": products[..., 0], "indefinite": status == int(Status.INDEFINITE)}
    return Solution(last.x * unit, status, last.steps[..., 0], residual[..., 0], extra)


@dataclass(frozen=True)
class System:
    """The systems of a batch, their preconditioner and their tolerances."""

    A: Matvec
    M: Matvec
    b: Array
    target_rr: Array
    """<r, r> at which the recurrence stops. It is below the tolerance, so that the true residual rarely misses that."""
    accepted_rr: Array
    """<r, r> of the true residual that is accepted, (*batch, 1)."""
    max_iter: int
    loops: Loops

    def start(self) -> Pass:
        """Return the state at x = 0."""
        xp, b, bb = array_namespace(self.b), self.b, dot(self.b, self.b)
        zero, nonzero = full(bb, 0.0), bb > 0
        no_steps = full(bb, 0, dtype=xp.int32)
        return Pass(full(b, 0.0), b, bb, full(bb, 1.0), zero, zero, xp.ones_like(nonzero), nonzero, no_steps, no_steps)

    def start_from(self, x0: Array) -> Pass:
        """Return the state at x0, or at zero where the residual at zero is smaller."""
        xp, zero = array_namespace(self.b), self.start()

        def at_guess(s: Pass) -> Pass:
            r = self.b - self.A(x0)
            rr = dot(r, r)
            use_guess = s.active & (rr <= s.rr)  # False for NaN
            return s._replace(
                x=xp.where(use_guess, x0, s.x),
                r=xp.where(use_guess, r, s.r),
                rr=xp.where(use_guess, rr, s.rr),
                active=s.active & ~(use_guess & (rr <= self.accepted_rr)),
                checks=s.checks + 1,
            )

        # a loop that runs once, because overflow inside a loop causes no warning
        return self.loops.while_loop(lambda s: xp.all(s.checks < 1), at_guess, zero)  # type: ignore[no-any-return]

    def advance(self, s: Pass) -> Pass:
        """Run the recurrence from the true residuals. A problem restarts if its residual halves but misses rtol."""
        xp = array_namespace(self.b)
        z = self.M(s.r)
        # M is scaled by one factor for the whole pass: this leaves x unchanged, and <p, p> cannot underflow or overflow
        size = nonzero_max_abs(z)
        size = xp.where(xp.isfinite(size), size, full(size, 1.0))
        z = z / size
        first = Iterate(s.x, s.r, z, s.rr, dot(s.r, z), s.curvature, s.curvature_sum, s.positive, s.steps)

        def active(i: Iterate) -> Array:
            return s.active & i.positive & (i.rz > 0) & (i.rr > self.target_rr) & (i.steps < self.max_iter)

        def step(i: Iterate) -> Iterate:
            return self._step(i, size)

        steps_per_read = self.loops.steps_per_read(self.b)
        last = iterate(step, active, first, batch_ndim=self.b.ndim - 1, loops=self.loops, steps_per_read=steps_per_read)
        r = self.b - self.A(last.x)
        rr = dot(r, r)
        restarts = (
            last.positive & (last.rz > 0) & (rr > self.accepted_rr) & (4 * rr < s.rr) & (last.steps < self.max_iter)
        )
        return Pass(
            last.x,
            r,
            rr,
            last.rz,
            last.curvature,
            last.curvature_sum,
            last.positive,
            restarts,
            last.steps,
            s.checks + 1,
        )

    def _step(self, s: Iterate, size: Array) -> Iterate:
        xp = array_namespace(self.b)
        Ap = self.A(s.p)
        pAp = dot(s.p, Ap)
        curvature = pAp / dot(s.p, s.p)
        # False for NaN, negative curvature and null directions
        positive = curvature > eps(xp, self.b.dtype) * s.curvature_sum
        alpha = xp.where(positive, s.rz / pAp, full(pAp, 0.0))
        r = s.r - alpha * Ap
        z = self.M(r) / size
        rr, rz = dot(r, r), dot(r, z)
        p = z + (rz - dot(s.r, z)) / s.rz * s.p
        rz = xp.where(rr == 0, full(rz, 1.0), rz)  # solved exactly: <r, z> = 0 is then no failure of M
        x = xp.where(positive, s.x + alpha * s.p, s.x)
        return Iterate(x, r, p, rr, rz, curvature, s.curvature_sum + xp.abs(curvature), positive, s.steps + 1)


def _status(last: Pass, system: System, finite: Array) -> Array:
    """Return the status of each problem, (*batch, 1). The first condition that holds decides."""
    xp = array_namespace(last.x)
    machine_eps = eps(xp, last.x.dtype)
    computable = xp.isfinite(last.curvature) & xp.isfinite(last.rr) & xp.isfinite(last.rz) & finite
    reasons = [
        (finite & (last.rr <= system.accepted_rr), Status.CONVERGED),
        (~computable, Status.NON_FINITE),
        (last.curvature < -machine_eps * last.curvature_sum, Status.INDEFINITE),
        (~last.positive, Status.SINGULAR),
        (last.rz <= 0, Status.PRECONDITIONER),
        (last.steps >= system.max_iter, Status.MAX_ITER),
    ]
    return first_of(reasons, Status.STAGNATED)  # type: ignore[no-any-return]
