"""Conjugate gradients for (H + damping I) x = b, H symmetric positive definite, by products with H alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from dil._base.arrays import array_namespace, device, eps, inner, logical_not, max_abs, select
from dil._base.operator import shifted
from dil._base.options import check_linear_options
from dil._base.solution import Solution
from dil._base.status import Status, first_of
from dil._base.typing import Array, Loop, Matvec
from dil._frameworks.iteration import repeat
from dil._frameworks.loops import Loops, with_loop
from dil.linear._flexible_cg import flexible_cg
from dil.linear._right_hand_side import backend_of_system
from dil.linear.preconditioners._preconditioner import Preconditioner, check_preconditioner

PACE = 2 / 7
"""The share of the digits that a trial must have won; on the systems of benchmarks/linear.py, those that won less took
more products than a dense solve."""

Scalar: TypeAlias = Any
"""An array, shape batch, or a number of Python."""


@dataclass(frozen=True)
class CG:
    """Conjugate gradients: the `VJP_CG` of Look et al. 2020 (Algorithm 1), made safe for batches and for rounding.

    Parameters
    ----------
    damping : float
        The paper's eps: solves (H + damping I) x = b. It is absolute, in the units of H.
    rtol : float, optional
        A problem is solved when ||b - H x|| <= rtol ||b||. By default eps ** 0.75 of the dtype: 1.8e-12 in float64,
        6.4e-6 in float32.
    max_iter : int, optional
        Products with H at most, for each problem; by default max(100, 10 n).
    preconditioner : callable or Preconditioner, optional
        A callable r -> z with z near (H + damping I)^-1 r, r and z: (*batch, n), positive definite, which may change
        from step to step; or one of `dil.linear.preconditioners`, prepared anew for each system.

    Notes
    -----
    It differs from Algorithm 1 in what the paper leaves open:

    1. b is scaled to norm one, each problem by itself, so tiny and huge right-hand sides lose nothing.
    2. The stopping test is relative. A zero right-hand side costs no iteration and gives an exact zero.
    3. A direction of no or negative curvature ends its problem at the iterate before it; the others go on.
    4. The recurrence for the residual drifts by rounding. The true residual is computed at the end: where it misses
       the tolerance, the iteration starts again from it, as long as that halves it at least.

    Where the steps run out, the last iterate is the one nearest to the solution in the norm of H; its residual may be
    larger than that of an earlier one. An H that is not symmetric shows itself by MAX_ITER or STAGNATED alone;
    `layer.report` probes for it.

    With a preconditioner, or a start x0, it is the flexible method, whose every answer is judged by its true residual.

    Sources: Look et al. 2020, Algorithm 1; Saad 2003, Algorithm 6.18; Shewchuk 1994, B.2 (restarts from the residual);
    Golub and Ye 1999 (with a preconditioner).

    Raises
    ------
    OptionError
        If an option is out of range.

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

    def __post_init__(self) -> None:
        check_linear_options(self, "the Hessian")
        check_preconditioner(self.preconditioner)

    @property
    def uses_pairs(self) -> bool:
        """Whether the layer has to keep the pairs of its forward solver for the preconditioner."""
        return getattr(self.preconditioner, "uses_pairs", False)

    def __call__(self, A: Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None) -> Solution:
        """Solve for each problem of a batch; b, x0 and the value: (*batch, n), float."""
        return self.tried(A, b, loop=loop, x0=x0)

    def tried(
        self, A: Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None, trial: int | None = None
    ) -> Solution:
        """Solve as a call does, but give up a problem that is slow after `trial` steps.

        Slow is a residual above rtol ** PACE: at its pace so far, it would take 1 / PACE as many steps in all. Such a
        problem ends STAGNATED. With a preconditioner or a start there is no trial.
        """
        backend = backend_of_system(b, "dil.linear.CG", x0)
        xp = array_namespace(b)
        rtol = eps(xp, b.dtype) ** 0.75 if self.rtol is None else self.rtol
        max_iter = max(100, 10 * b.shape[-1]) if self.max_iter is None else self.max_iter
        loops = with_loop(backend.loops, loop)
        H = shifted(A, self.damping)
        if self.preconditioner is not None or x0 is not None:
            return flexible_cg(
                H, b, preconditioner=self.preconditioner, x0=x0, rtol=rtol, max_iter=max_iter, loops=loops
            )
        return cg(H, b, rtol=rtol, max_iter=max_iter, loops=loops, trial=trial)


class State(NamedTuple):
    """One step: vectors (*batch, n), scalars batch, or Python numbers where `number` made them."""

    x: Array
    r: Array
    v: Array
    """What H is multiplied with next: the direction p, or x itself to look at the true residual."""
    rr: Scalar
    """<r, r>: of the recurrence, or of the true residual after a look; above zero while the problem goes on."""
    vv: Scalar
    """<p, p> of the last p; above zero."""
    best: Scalar
    """<r, r> of the true residual when it was last looked at."""
    bend: Scalar
    """<p, H p> / <p, p> of the last step, taken or refused."""
    curvature: Scalar
    """The sum of |<p, H p>| / <p, p> so far: of the order of the norm of H, or above it."""
    reach: Scalar
    """The length of the way from zero to x: a bound on its norm."""
    going: Scalar
    looking: Scalar
    """Whether v is x."""
    steps: Scalar


def cg(
    matvec: Matvec,
    b: Array,
    *,
    rtol: float,
    max_iter: int,
    loops: Loops,
    trial: int | None = None,
) -> Solution:
    """Solve H x = b; b: (*batch, n). See `CG`, and `CG.tried` for the trial.

    The scalars of a single problem are Python's where `number` can read them at no cost: their arithmetic is the same,
    and an operation on an array of one number costs as much as one on a short vector. There is one loop with one
    product, which a look at the true residual shares with the recurrence: a compiler pays for every loop it meets.
    """
    xp, single, number = array_namespace(b), b.ndim == 1, loops.number

    def dot(a: Array, c: Array) -> Scalar:
        return number(inner(a, c))

    def column(scalar: Scalar) -> Scalar:
        return scalar if single else scalar[..., None]

    machine = eps(xp, b.dtype)
    top = number(max_abs(b))
    tame = isinstance(top, float) and machine < top < 1 / machine
    if not tame:  # squares of tiny and huge entries would under- and overflow
        top = select(top == 0, 1.0, top)
        b = b / column(top)
    bb = dot(b, b)
    # the recurrence aims a little below the tolerance, so that the true residual rarely misses it
    aim, accept = bb * (0.5 * rtol) ** 2, bb * rtol**2

    def step(s: State) -> State:
        """Go along p to the least of the quadratic, or look at the true residual: a step of one along x, from r = b.

        A problem that has ended, or looks, moves by zero along a vector that is finite: it stays where it is.
        """
        Hv = matvec(s.v)
        vHv = dot(s.v, Hv)
        moving = s.going & logical_not(s.looking)
        bend = select(moving, vHv / s.vv, s.bend)
        curvature = s.curvature + select(moving, abs(bend), 0.0)
        sound = bend > machine * curvature  # not for NaN, negative curvature and null directions
        alpha = s.rr / select(moving & sound, vHv, math.inf)
        reach = s.reach + alpha * s.vv**0.5
        steps = select(moving, s.steps + 1, s.steps)
        x = s.x + column(alpha) * s.v
        r = select(column(s.looking), b, s.r) - column(select(s.looking, 1.0, alpha)) * Hv
        rr = dot(r, r)
        able = sound & (steps < max_iter)
        more = able & (rr > aim)
        more = more if trial is None else more & ((steps != trial) | (rr <= bb * rtol ** (2 * PACE)))
        # rounding moves the true residual off the recurrence by about eps ||H|| ||x|| (Greenbaum 1997)
        drift = 8 * machine * curvature * reach
        looking = moving & logical_not(more | (sound & (drift * drift < accept)))
        # after a look, go on from a true residual that misses the tolerance, if it has come nearer to it
        again = able & (rr > accept) & (4 * rr < s.best)
        on = s.going & select(s.looking, again, more)
        beta = select(s.looking, 0.0, rr / s.rr)
        p = r + column(beta) * s.v
        v = select(column(on), p, select(column(looking), x, s.v))
        vv = select(on, rr + beta * beta * s.vv, s.vv)  # r is orthogonal to the old p
        best = select(s.looking, rr, s.best)
        rr = select(s.going & logical_not(looking), rr, s.rr)
        return State(x, r, v, rr, vv, best, bend, curvature, reach, on | looking, looking, steps)

    some = bb > 0  # False for NaN
    none = 0 if isinstance(some, bool) else xp.zeros_like(some, dtype=xp.int32)
    zero = 0 * bb
    first = State(xp.zeros_like(b), b, b, bb, bb, bb, zero, zero, zero, some, some & False, none)
    last = repeat(step, lambda s: s.going, first, loops=loops, steps_per_read=loops.steps_per_read(b))
    failed = logical_not(last.rr <= accept)
    status = _reasons(last, failed, max_iter, machine)
    residual = (last.rr / select(bb == 0, 1.0, bb)) ** 0.5
    x = last.x if tame else last.x * column(top)
    if isinstance(failed, bool):
        place = {"shape": (), "device": device(b)}
        status, steps = (xp.full(fill_value=k, dtype=xp.int32, **place) for k in (status, last.steps))
        return Solution(x, status, steps, xp.full(fill_value=residual, dtype=b.dtype, **place))
    return Solution(x, status, last.steps, residual)


def _reasons(last: State, failed: Scalar, max_iter: int, machine: float) -> Scalar:
    """Say why each problem that failed did; the first word that fits counts."""
    if failed is False:
        return int(Status.CONVERGED)
    reasons = [
        (logical_not(failed), Status.CONVERGED),
        (logical_not(abs(last.bend) < math.inf), Status.NON_FINITE),
        (last.bend < -machine * last.curvature, Status.INDEFINITE),
        (logical_not(last.bend > machine * last.curvature), Status.SINGULAR),
        (last.steps >= max_iter, Status.MAX_ITER),
    ]
    return first_of(reasons, Status.STAGNATED)
