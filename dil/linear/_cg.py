"""Conjugate gradients for (H + damping I) x = b with a symmetric positive definite H, by products with H alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, logical_not, select
from dil._base.errors import OptionError
from dil._base.operator import Operator, as_operator, shifted
from dil._base.options import check_linear_options
from dil._base.rows import Rows
from dil._base.scalars import Scalar, Scalars, count_from_zero, greater, sqrt, times
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Loop, Matvec
from dil._frameworks.leaving import LEAVING, Part, Run, repeat_leaving
from dil._frameworks.loops import Loops, with_loop
from dil.linear._backward_error import is_rounding
from dil.linear._curvature_status import curvature_status
from dil.linear._flexible_cg import flexible_cg
from dil.linear._one_reduction_cg import one_reduction_cg
from dil.linear._part import matrix_of_part
from dil.linear._random_norm import with_rounding
from dil.linear._restarts import TRIAL_SHARE
from dil.linear._right_hand_side import backend_of_system
from dil.linear._tolerance import Tolerance, tolerance_of_call
from dil.linear.preconditioners._preconditioner import Preconditioner, check_preconditioner


@dataclass(frozen=True)
class CG:
    """Conjugate gradients: the `VJP_CG` of Look et al. 2020 (Algorithm 1), made safe for batches and for rounding.

    Parameters
    ----------
    damping : float
        The shift in (H + damping I) x = b, in the units of H: the paper's eps.
    rtol : float, optional
        A problem is solved when ||b - H x|| <= rtol ||b||. By default eps ** 0.75 of the dtype: 1.8e-12 in float64,
        6.4e-6 in float32.
    max_iter : int, optional
        The largest number of iterations for each problem. The default is max(100, 10 n).
    preconditioner : callable or Preconditioner, optional
        A callable r -> z, where z is near (H + damping I)^-1 r and r and z have shape (*batch, n). It must be positive
        definite and may change from step to step. Those of `dil.linear.preconditioners` are prepared for each system.
    one_reduction : bool, optional
        Whether the inner products of a step are one reduction, and not two that wait for each other. Arrays that many
        processes or devices share then send one message for them. It takes no preconditioner and no start x0.

    Notes
    -----
    Algorithm 1 leaves these points open:

    1. The solver scales the b of each problem, so tiny and huge right-hand sides lose no digits.
    2. The stopping test is relative. A zero right-hand side costs no iteration and gives an exact zero.
    3. A direction of zero or negative curvature ends its problem at the previous iterate. The other problems continue.
    4. The recurrence for the residual drifts by rounding. The solver computes the true residual at the end. If the
       true residual misses the tolerance, the iteration restarts from the true residual. It does so only if this
       residual is at most half of the one that the previous check found. A residual that is left and is the rounding
       of a product, at most 4 eps (||H|| ||x|| + ||b||), is CONVERGED.

    At max_iter, the last iterate is the nearest one to the solution in the norm of H. Its residual may be larger than
    that of an earlier iterate. If H is not symmetric, the status is MAX_ITER, STAGNATED or INDEFINITE. `layer.report`
    tests the symmetry.

    With a preconditioner or a start x0, the solver uses the flexible method. Every time its recurrence stops, it
    computes the true residual and tests that. From a residual that is rounding, it stops when 32 steps do not halve the
    residual, and keeps the better of the two iterates.

    With `one_reduction`, the solver computes <r, r> and <r, H r> together, and finds <p, H p> and H p by recurrences.
    It keeps one vector more. Each solve takes two products more: one before it stops, and one for the true residual,
    which it always computes. The recurrences drift more by rounding. On random matrices of 40 and 200 unknowns in
    float64, it took on average up to 5 % more iterations at condition numbers from 1e2 to 1e4, and up to 11 % at 1e5.
    In one process its steps take 1.2 to 2.5 times as long, so it is for vectors that are shared out.

    Sources: Look et al. 2020, Algorithm 1; Saad 2003, Algorithm 6.18; Shewchuk 1994, B.2 (restarts from the residual);
    Golub and Ye 1999 (with a preconditioner); Chronopoulos and Gear 1989 (with one reduction).

    Raises
    ------
    OptionError
        If an option is out of range, or `one_reduction` meets a preconditioner or a start x0.

    Examples
    --------
    >>> import numpy as np, dil
    >>> H = np.asarray([[4.0, 1.0], [1.0, 3.0]])
    >>> x = dil.linear.CG()(lambda p: p @ H, np.asarray([1.0, 2.0]))
    >>> np.allclose(H @ x.value, [1.0, 2.0]), int(x.iterations)
    (True, 2)
    """

    damping: float = 0.0
    rtol: float | None = None
    max_iter: int | None = None
    preconditioner: Preconditioner | Matvec | None = None
    one_reduction: bool = field(default=False, kw_only=True)

    _takes_tolerance = True
    """Whether its call takes a tolerance `rtol`, for each problem or for all, in the place of its option."""

    def __post_init__(self) -> None:
        check_linear_options(self, "the Hessian")
        check_preconditioner(self.preconditioner)
        if not isinstance(self.one_reduction, bool):
            message = f"one_reduction={self.one_reduction!r}; expected True or False"
            raise OptionError(message)
        if self.one_reduction and self.preconditioner is not None:
            message = (
                "CG(one_reduction=True) takes no preconditioner=; take CG(preconditioner=...), whose steps need more "
                "reductions but may be fewer"
            )
            raise OptionError(message)

    @property
    def _takes_many(self) -> bool:
        """Whether it solves for many right-hand sides, (k, *batch, n), of an operator with `one`."""
        return self.preconditioner is None

    @property
    def _takes_start(self) -> bool:
        """Whether its call takes a start x0, which saves steps."""
        return not self.one_reduction

    @property
    def uses_pairs(self) -> bool:
        """Whether the layer must keep the pairs of its forward solver for the preconditioner."""
        return getattr(self.preconditioner, "uses_pairs", False)

    def __call__(
        self,
        A: Matvec,
        b: Array,
        /,
        *,
        loop: Loop | None = None,
        x0: Array | None = None,
        rtol: Tolerance = None,
    ) -> Solution:
        """Solve each problem of a batch; b, x0 and the value: (*batch, n), float; status: batch.

        `rtol` stands for the option in this call: a number, or one for each problem, (*batch, 1).
        """
        return self.tried(A, b, loop=loop, x0=x0, rtol=rtol)

    def tried(
        self,
        A: Matvec,
        b: Array,
        /,
        *,
        loop: Loop | None = None,
        x0: Array | None = None,
        rtol: Tolerance = None,
        trial: int | None = None,
    ) -> Solution:
        """Solve like a call, but give up a problem that is slow after `trial` steps.

        A problem is slow if its relative residual after `trial` steps is above rtol ** (2 / 7). At this rate it would
        need 3.5 * trial steps in total. It ends STAGNATED. With a preconditioner or a start x0, `trial` is ignored.
        """
        backend = backend_of_system(b, "dil.linear.CG", x0)
        rtol = tolerance_of_call(rtol, self.rtol, b, backend)
        max_iter = max(100, 10 * b.shape[-1]) if self.max_iter is None else self.max_iter
        loops = with_loop(backend.loops, loop)
        H = shifted(A, self.damping)
        if self.one_reduction and x0 is not None:
            message = "CG(one_reduction=True) takes no start x0=; take CG(), which does"
            raise OptionError(message)
        if self.one_reduction:
            return one_reduction_cg(H, b, rtol=rtol, max_iter=max_iter, loops=loops, trial=trial)
        if self.preconditioner is not None or x0 is not None:
            found = flexible_cg(
                H, b, preconditioner=self.preconditioner, x0=x0, rtol=rtol, max_iter=max_iter, loops=loops
            )
            return with_rounding(found, H, b, backend)
        return cg(H, b, rtol=rtol, max_iter=max_iter, loops=loops, trial=trial)


class State(NamedTuple):
    """The state of the iteration. Vectors: (*batch, n)."""

    x: Array
    r: Array
    v: Array
    """The next vector that H multiplies: the direction p, or x to check the true residual."""
    rr: Scalar
    """<r, r> of the recurrence, or of the true residual after a check. It is positive while the problem is active."""
    vv: Scalar
    """<p, p> of the last p. It is positive."""
    true_rr: Scalar
    """<r, r> of the true residual at the last check."""
    curvature: Scalar
    """<p, H p> / <p, p> of the last direction p, also if its step was refused."""
    curvature_sum: Scalar
    """The sum of |<p, H p>| / <p, p> so far. It is at least of the order of the norm of H."""
    largest_curvature: Scalar
    """The largest <p, H p> / <p, p> so far: a lower bound of the norm of H."""
    path_length: Scalar
    """The sum of the lengths of the steps from zero to x: a bound on the norm of x."""
    active: Scalar
    checking: Scalar
    """Whether v is x."""
    steps: Scalar
    products: Scalar
    """The steps and the checks."""


class Trial(NamedTuple):
    """A problem ends after `steps` if its relative residual is above rtol ** share."""

    steps: int
    share: float


@dataclass(frozen=True)
class System:
    """The systems of a batch, and when to stop."""

    H: Operator
    b: Array
    """The right-hand sides in `unit`."""
    unit: Scalar
    """A unit in which squares neither underflow nor overflow, or the number 1.0."""
    bb: Scalar
    """<b, b>."""
    target_rr: Scalar
    """<r, r> at which the recurrence stops. It is below the tolerance, so that the true residual rarely misses that."""
    accepted_rr: Scalar
    """<r, r> of the true residual that is accepted."""
    rtol: Scalar
    max_iter: int
    scalars: Scalars
    trial: Trial | None

    def part(self, rows: Rows) -> System | None:
        """Return some systems of the batch, or None if they cannot be solved alone."""
        H = matrix_of_part(self.H, rows, self.b)
        if H is None:
            return None
        b, unit, bb = map(rows.take, (self.b, self.unit, self.bb))
        target_rr, accepted_rr, rtol = map(rows.take, (self.target_rr, self.accepted_rr, self.rtol))
        return replace(self, H=H, b=b, unit=unit, bb=bb, target_rr=target_rr, accepted_rr=accepted_rr, rtol=rtol)


def cg(
    matvec: Matvec,
    b: Array,
    *,
    rtol: Scalar,
    max_iter: int,
    loops: Loops,
    trial: int | None = None,
) -> Solution:
    """Solve H x = b; b: (*batch, n). See `CG`, and `CG.tried` for the trial."""
    known = None if trial is None else Trial(trial, TRIAL_SHARE)
    return told(*iterated(matvec, b, rtol=rtol, max_iter=max_iter, loops=loops, trial=known))


def iterated(
    matvec: Matvec, b: Array, *, rtol: Scalar, max_iter: int, loops: Loops, trial: Trial | None = None
) -> tuple[System, State]:
    """Iterate from x = 0 until each problem has ended; b: (*batch, n). Return the systems and the last state.

    The check of the true residual and the recurrence share one loop with one product, because each loop takes time to
    compile.
    """
    xp, scalars = array_namespace(b), Scalars(loops.number, loops.numbers, b.ndim == 1)
    machine_eps, scale = eps(xp, b.dtype), scalars.largest(b)
    in_range = isinstance(scale, float) and machine_eps < scale < 1 / machine_eps
    if not in_range:  # squares of tiny and huge entries would underflow or overflow
        b = b / scale
    bb = scalars.dot(b, b)
    unit, target, accepted = 1.0 if in_range else scale, bb * (0.5 * rtol) ** 2, bb * rtol**2
    system = System(as_operator(matvec), b, unit, bb, target, accepted, rtol, max_iter, scalars, trial)
    nonzero = bb > 0  # False for NaN
    zero, no, none = 0.0 * bb, nonzero & False, count_from_zero(bb)
    first = State(xp.zeros_like(b), b, b, bb, bb, bb, zero, zero, zero, zero, nonzero, no, none, none)
    run = Run(tuple(b.shape[:-1]), b.shape[-1], loops, loops.steps_per_read(b), LEAVING)
    last = repeat_leaving(system, step, lambda s: s.active, first, run=run, part=part_of)
    return system, last


def part_of(system: System, rows: Rows, _: Any) -> Part[System, Any] | None:
    """Return some systems of a batch, or None if they cannot be solved alone."""
    alone = system.part(rows)
    return None if alone is None else Part(alone, lambda _: True)


def told(system: System, last: State) -> Solution:
    """Return the solution with the status of each problem."""
    xp, b, bb, scalars = array_namespace(system.b), system.b, system.bb, system.scalars
    machine_eps = eps(xp, b.dtype)
    failed = logical_not(last.rr <= system.accepted_rr)
    norms = last.largest_curvature, scalars.norm(last.x), sqrt(bb)
    rounded = is_rounding(sqrt(last.rr), *norms, machine_eps)
    found = curvature_status(last, failed, rounded, system.max_iter, machine_eps)
    status, steps, products = (scalars.array(k, b, xp.int32) for k in (found, last.steps, last.products))
    residual = scalars.array(sqrt(last.rr / select(bb == 0, 1.0, bb)), b, b.dtype)
    extra = {"indefinite": status == int(Status.INDEFINITE), "products": products}
    return Solution(times(system.unit, last.x), status, steps, residual, extra)


def step(system: System, s: State) -> State:
    """Minimise the quadratic along p, or check the true residual: a step of length one along x, from r = b.

    A problem that has ended, or that checks, takes a step of zero along a finite vector, so its x does not change.
    """
    b, bb, max_iter, dot = system.b, system.bb, system.max_iter, system.scalars.dot
    machine_eps = eps(array_namespace(b), b.dtype)
    Hv = system.H(s.v)
    vHv = dot(s.v, Hv)
    moving = s.active & logical_not(s.checking)
    curvature = select(moving, vHv / s.vv, s.curvature)
    curvature_sum = s.curvature_sum + select(moving, abs(curvature), 0.0)
    largest = greater(curvature, s.largest_curvature)
    positive = curvature > machine_eps * curvature_sum  # False for NaN, negative curvature and null directions
    alpha = s.rr / select(moving & positive, vHv, math.inf)
    path_length = s.path_length + alpha * sqrt(s.vv)
    steps, products = select(moving, s.steps + 1, s.steps), select(s.active, s.products + 1, s.products)
    x = s.x + alpha * s.v
    r = select(s.checking, b, s.r) - select(s.checking, 1.0, alpha) * Hv
    rr = dot(r, r)
    may_continue = positive & (steps < max_iter)
    unsolved = proceed = may_continue & (rr > system.target_rr)
    if system.trial is not None:
        proceed = proceed & ((steps != system.trial.steps) | (rr <= bb * system.rtol ** (2 * system.trial.share)))
    # rounding separates the true residual from the recurrence by about eps ||H|| ||x|| (Greenbaum 1997)
    drift = 8 * machine_eps * curvature_sum * path_length
    checking = moving & logical_not(proceed | (positive & (drift * drift < system.accepted_rr)))
    # after a check, restart from a true residual that misses the tolerance but at least halved since the last check
    restarts = may_continue & (rr > system.accepted_rr) & (4 * rr < s.true_rr)
    iterating = s.active & select(s.checking, restarts, proceed)
    beta = select(s.checking, 0.0, rr / s.rr)
    turns = iterating
    if system.trial is not None:  # a problem that its trial ends has its next direction, so that it can go on
        turns = iterating | (moving & unsolved & logical_not(checking) & (rr < math.inf))
    v = select(turns, r + beta * s.v, select(checking, x, s.v))
    vv = select(turns, rr + beta * beta * s.vv, s.vv)  # r is orthogonal to the old p
    true_rr = select(s.checking, rr, s.true_rr)
    rr = select(s.active & logical_not(checking), rr, s.rr)
    active = iterating | checking
    curvatures = curvature, curvature_sum, largest
    return State(x, r, v, rr, vv, true_rr, *curvatures, path_length, active, checking, steps, products)
