"""Conjugate gradients with one reduction a step for H x = b with a symmetric positive definite H, by products alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, logical_not, select
from dil._base.operator import as_operator
from dil._base.rows import Rows
from dil._base.scalars import Scalar, Scalars, count, count_from_zero, divided, either, greater, in_unit, sqrt
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Matvec
from dil._frameworks.leaving import LEAVING, Part, Run, iterate
from dil._frameworks.loops import Loops
from dil.linear._backward_error import is_rounding
from dil.linear._curvature_status import curvature_status
from dil.linear._part import matrix_of_part
from dil.linear._restarts import TRIAL_SHARE


class Iterate(NamedTuple):
    """The state of the recurrence. Vectors: (*batch, n)."""

    x: Array
    """The iterate. A refused step does not change it."""
    r: Array
    p: Array
    """The last direction, or zero at the start of a pass."""
    Hp: Array
    rr: Scalar
    """<r, r> of the residual before the last step, or infinity at the start of a pass."""
    pHp: Scalar
    pp: Scalar
    curvature: Scalar
    """<p, H p> / <p, p> of the last direction p, also if its step was refused."""
    curvature_sum: Scalar
    """The sum of |<p, H p>| / <p, p> so far. It is at least of the order of the norm of H."""
    largest_curvature: Scalar
    """The largest <p, H p> / <p, p> so far: a lower bound of the norm of H."""
    moved: Scalar
    """Whether the last step was taken."""
    steps: Scalar
    products: Scalar


class Pass(NamedTuple):
    """The state between two passes of the recurrence. Vectors: (*batch, n)."""

    x: Array
    r: Array
    """The true residual."""
    rr: Scalar
    curvature: Scalar
    curvature_sum: Scalar
    largest_curvature: Scalar
    active: Scalar
    steps: Scalar
    products: Scalar


def one_reduction_cg(
    H: Matvec, b: Array, *, rtol: Scalar, max_iter: int, loops: Loops, trial: int | None = None
) -> Solution:
    """Solve H x = b; b: (*batch, n). The rules are those of `dil.linear.CG`, and the trial that of `CG.tried`.

    Source: Chronopoulos and Gear 1989, the s-step method with s = 1.
    """
    xp, scalars = array_namespace(b), Scalars(loops.number, loops.numbers, b.ndim == 1)
    unit = scalars.unit(b)  # squares of tiny and huge entries would underflow or overflow
    scaled = in_unit(b, unit)
    bb = scalars.dot(scaled, scaled)
    system = System(H, scaled, bb, rtol, max_iter, loops, scalars, trial)
    zero, nonzero, none = 0.0 * bb, bb > 0, count_from_zero(bb)  # nonzero is False for NaN
    first = Pass(xp.zeros_like(b), scaled, bb, bb, zero, zero, nonzero, none, none)
    last = iterate(system, System.advance, lambda _, s: s.active, first, run=system.run(), part=System.part)
    failed = logical_not(last.rr <= system.accepted_rr)
    norms = last.largest_curvature, scalars.norm(last.x), sqrt(bb)
    rounded = is_rounding(sqrt(last.rr), *norms, system.eps)
    status = scalars.array(curvature_status(last, failed, rounded, max_iter, system.eps), b, xp.int32)
    steps, products = (scalars.array(k, b, xp.int32) for k in (last.steps, last.products))
    residual = scalars.array(sqrt(last.rr / select(bb == 0, 1.0, bb)), b, b.dtype)
    extra = {"products": products, "indefinite": status == int(Status.INDEFINITE)}
    return Solution(last.x * unit, status, steps, residual, extra)


@dataclass(frozen=True)
class System:
    """The systems of a batch, and when to stop."""

    H: Matvec
    b: Array
    bb: Scalar
    """<b, b>."""
    rtol: Scalar
    max_iter: int
    loops: Loops
    scalars: Scalars
    trial: int | None

    @property
    def eps(self) -> float:
        """The machine epsilon of the dtype."""
        return eps(array_namespace(self.b), self.b.dtype)

    @property
    def accepted_rr(self) -> Scalar:
        """<r, r> of the true residual that is accepted."""
        return self.bb * self.rtol**2

    def run(self, steps_per_read: int = 1, price: float = 0.0) -> Run:
        """Return how a loop over the systems runs."""
        return Run(tuple(self.b.shape[:-1]), self.b.shape[-1], self.loops, steps_per_read, price)

    def part(self, rows: Rows, _: Any) -> Part[System, Any] | None:
        """Return some systems of the batch, or None if they cannot be solved alone."""
        H = matrix_of_part(as_operator(self.H), rows, self.b)
        if H is None:
            return None
        b, bb, rtol = map(rows.take, (self.b, self.bb, self.rtol))
        return Part(replace(self, H=H, b=b, bb=bb, rtol=rtol), lambda _: True)

    def active(self, i: Iterate) -> Scalar:
        """Return whether a pass goes on."""
        return i.moved & (i.steps < self.max_iter)

    def advance(self, s: Pass) -> Pass:
        """Run the recurrence from the true residuals. A problem restarts if its residual halves but misses rtol."""
        run = self.run(self.loops.steps_per_read(self.b), LEAVING)
        last = iterate(self, System.step, System.active, self._started(s), run=run, part=System.part)
        r = self.b - self.H(last.x)
        rr = self.scalars.dot(r, r)
        # a curvature that is not positive may be drift of the scalars: the inner products of p and H p decide
        pp, pHp = self.scalars.dots(last.p, (last.p, last.Hp))
        positive = self._positive(last.curvature, last.curvature_sum)
        curvature = select(positive, last.curvature, divided(pHp, pp))
        restarts = self._positive(curvature, last.curvature_sum) & (last.steps < self.max_iter)
        restarts = restarts & (rr > self.accepted_rr) & (4 * rr < s.rr)
        curvatures = curvature, last.curvature_sum, last.largest_curvature
        return Pass(last.x, r, rr, *curvatures, restarts, last.steps, last.products + 1)

    def _started(self, s: Pass) -> Iterate:
        """Return the state before the first step of a pass, which makes beta zero."""
        no_vector, zero = array_namespace(s.x).zeros_like(s.x), 0.0 * self.bb
        vectors, scalars = (s.x, s.r, no_vector, no_vector), (zero + math.inf, zero, zero)
        curvatures = s.curvature, s.curvature_sum, s.largest_curvature
        return Iterate(*vectors, *scalars, *curvatures, s.active, s.steps, s.products)

    def step(self, s: Iterate) -> Iterate:
        """Take one step, unless the residual is small enough or the curvature of its direction is not positive."""
        w = self.H(s.r)
        rr, rw = self.scalars.dots(s.r, (s.r, w))
        beta = rr / s.rr
        p, Hp = s.r + beta * s.p, w + beta * s.Hp
        pp, pHp = rr + beta * beta * s.pp, rw - beta * beta * s.pHp  # r is orthogonal to the old p, p conjugate to it
        needed = self._needed(rr, s.steps)
        curvature = select(needed, divided(pHp, pp), s.curvature)
        curvature_sum = s.curvature_sum + select(needed, abs(curvature), 0.0)
        moved = needed & self._positive(curvature, curvature_sum)
        alpha = rr / select(moved, pHp, math.inf)
        x = either(moved, lambda: s.x + alpha * p, lambda: s.x)
        r, steps = s.r - alpha * Hp, s.steps + count(needed)
        curvatures = curvature, curvature_sum, greater(curvature, s.largest_curvature)
        return Iterate(x, r, p, Hp, rr, pHp, pp, *curvatures, moved, steps, s.products + 1)

    def _needed(self, rr: Scalar, steps: Scalar) -> Scalar:
        """Return whether a problem needs a step more: its residual is too large, and its trial has not failed."""
        # the target of the recurrence is below the tolerance, so that the true residual rarely misses the tolerance
        needed = rr > self.bb * (0.5 * self.rtol) ** 2
        if self.trial is None:
            return needed
        return needed & ((steps != self.trial) | (rr <= self.bb * self.rtol ** (2 * TRIAL_SHARE)))

    def _positive(self, curvature: Scalar, curvature_sum: Scalar) -> Scalar:
        """Return whether a curvature is positive: False for NaN, negative curvature and null directions."""
        return curvature > self.eps * curvature_sum
