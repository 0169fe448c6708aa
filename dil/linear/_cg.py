"""Conjugate gradients for (H + damping I) x = b, H symmetric positive definite, by products with H alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._arrays import array_namespace, eps, full, inner, peak
from dil._errors import OptionError
from dil._registry import common_owner
from dil._solution import Solution
from dil._status import Status
from dil._typing import Array, Loop, Matvec


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

    Notes
    -----
    It differs from Algorithm 1 in what the paper leaves open:

    1. b is scaled to norm one, each problem by itself, so tiny and huge right-hand sides lose nothing.
    2. The stopping test is relative. A zero right-hand side costs no iteration and gives an exact zero.
    3. A direction of no or negative curvature ends its problem at the iterate before it; the others go on.
    4. The recurrence for the residual drifts by rounding. The true residual is computed at the end: where it misses
       the tolerance, the iteration starts again from it, as long as that halves it at least.

    Sources: Look et al. 2020, Algorithm 1; Saad 2003, Algorithm 6.18; Shewchuk 1994, B.2 (restarts from the residual).

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

    def __post_init__(self) -> None:
        if not isinstance(self.damping, int | float) or not 0 <= self.damping < float("inf"):
            message = f"damping={self.damping!r}; expected a number >= 0, in the units of the Hessian"
            raise OptionError(message)
        if self.rtol is not None and (not isinstance(self.rtol, float) or not 0 < self.rtol < 1):
            message = f"rtol={self.rtol!r}; expected a number between 0 and 1, or None for the dtype's own"
            raise OptionError(message)
        if self.max_iter is not None and not (isinstance(self.max_iter, int) and self.max_iter >= 1):
            message = f"max_iter={self.max_iter!r}; expected at least 1, or None for max(100, 10 n)"
            raise OptionError(message)

    def __call__(self, matvec: Matvec, b: Array, /, *, loop: Loop | None = None) -> Solution:
        """Solve for each problem of a batch; b and the value: (*batch, n), float."""
        loop = common_owner([b], ["b"], "dil.linear.CG").while_loop if loop is None else loop
        xp = array_namespace(b)
        rtol = eps(xp, b.dtype) ** 0.75 if self.rtol is None else self.rtol
        max_iter = max(100, 10 * b.shape[-1]) if self.max_iter is None else self.max_iter
        damped = matvec if self.damping == 0 else lambda p: matvec(p) + self.damping * p
        return cg(damped, b, rtol=rtol, max_iter=max_iter, loop=loop)


class Iterate(NamedTuple):
    """One step of the recurrence; vectors (*batch, n), scalars batch."""

    x: Array
    before: Array
    """x before the step, to go back to where the step proves unsound."""
    r: Array
    p: Array
    rr: Array
    alpha: Array
    curvature: Array
    """The sum of <p, H p> / <p, p> so far: of the order of the norm of H, or above it."""
    sound: Array
    going: Array
    steps: Array


class Pass(NamedTuple):
    """The problems after a pass of the recurrence, or after a look at their true residuals."""

    x: Array
    r: Array
    rr: Array
    """<r, r>: of the recurrence where there is no doubt, else of the true residual."""
    best: Array
    """<r, r> of the true residual when it was last looked at."""
    alpha: Array
    curvature: Array
    sound: Array
    going: Array
    doubtful: Array
    steps: Array


def cg(matvec: Matvec, b: Array, *, rtol: float, max_iter: int, loop: Loop) -> Solution:
    """Solve H x = b; b: (*batch, n). See `CG`."""
    xp, single = array_namespace(b), b.ndim == 1
    top = peak(b)
    b = b / top  # squares of tiny and huge entries would under- and overflow
    bb, machine = inner(b, b), eps(xp, b.dtype)
    # the recurrence aims a little below the tolerance, so that the true residual rarely misses it
    aim, accept = bb * (0.5 * rtol) ** 2, bb * rtol**2

    def column(scalar: Array) -> Array:
        return scalar if single else scalar[..., None]

    def any_going(going: Array) -> Array:
        return going if single else xp.any(going)

    def step(s: Iterate) -> Iterate:
        Hp = matvec(s.p)
        pHp = inner(s.p, Hp)
        alpha = s.rr / pHp
        x = s.x + column(alpha) * s.p
        r = s.r - column(alpha) * Hp
        rr = inner(r, r)
        p = r + column(rr / s.rr) * s.p
        bend = pHp / inner(s.p, s.p)
        sound = bend > machine * s.curvature  # False for NaN, negative curvature and null directions
        curvature, steps = s.curvature + bend, s.steps + 1
        going = sound & (rr > aim) & (steps < max_iter)
        new = Iterate(x, s.x, r, p, rr, alpha, curvature, sound, going, steps)
        return new if single else _freeze(s, new)  # a single problem ends with the loop

    def advance(s: Pass) -> Pass:
        """Run the recurrence from the residuals of the problems that are going."""
        start = Iterate(s.x, s.x, s.r, s.r, s.rr, s.alpha, s.curvature, s.sound, s.going, s.steps)
        end = loop(lambda i: any_going(i.going), step, start)
        x = xp.where(column(end.sound), end.x, end.before)
        # rounding moves the true residual off the recurrence by about eps ||H|| ||x|| (Greenbaum 1997)
        drift = (8 * machine * end.curvature) ** 2 * inner(x, x)
        doubtful = s.going & ~(end.sound & (drift < accept))
        return Pass(x, end.r, end.rr, s.best, end.alpha, end.curvature, end.sound, s.going, doubtful, end.steps)

    def verify(s: Pass) -> Pass:
        """Look at the true residuals; go on from those that miss the tolerance but have come nearer to it."""
        r = b - matvec(s.x)
        rr = inner(r, r)
        again = s.doubtful & s.sound & (rr > accept) & (4 * rr < s.best) & (s.steps < max_iter)
        r, rr = xp.where(column(s.doubtful), r, s.r), xp.where(s.doubtful, rr, s.rr)
        return s._replace(r=r, rr=rr, best=rr, going=again)

    going = bb > 0  # False for NaN
    none = xp.zeros_like(going, dtype=xp.int32)
    first = Pass(xp.zeros_like(b), b, bb, bb, bb, 0 * bb, going, going, going, none)
    last = loop(lambda s: any_going(s.doubtful), lambda s: advance(verify(s)), advance(first))
    failed = ~(last.rr <= accept)

    def explain(s: tuple[Array, Array]) -> tuple[Array, Array]:
        return xp.zeros_like(failed), _reasons(last, failed, max_iter)

    # a loop that runs once if a problem failed, and not at all otherwise
    _, status = loop(lambda s: any_going(s[0]), explain, (failed, none))
    residual = xp.sqrt(last.rr / xp.where(bb == 0, 1.0, bb))
    return Solution(last.x * top, status, last.steps, residual)


def _freeze(old: Iterate, new: Iterate) -> Iterate:
    """Keep the problems that were not going, and take back the unsound steps of those that were."""
    xp = array_namespace(new.x)
    taken = old.going & new.sound
    column = taken[..., None]
    return Iterate(
        xp.where(column, new.x, old.x),
        old.x,
        xp.where(column, new.r, old.r),
        xp.where(column, new.p, old.p),
        xp.where(taken, new.rr, old.rr),
        xp.where(old.going, new.alpha, old.alpha),
        xp.where(taken, new.curvature, old.curvature),
        xp.where(old.going, new.sound, old.sound),
        old.going & new.going,
        xp.where(old.going, new.steps, old.steps),
    )


def _reasons(last: Pass, failed: Array, max_iter: int) -> Array:
    """Say why each problem that failed did; the first word that fits counts."""
    xp = array_namespace(last.x)
    reasons = [
        (~failed, Status.CONVERGED),
        (xp.isnan(last.alpha) | (last.alpha == 0), Status.NON_FINITE),
        (last.alpha < 0, Status.INDEFINITE),
        (~last.sound, Status.SINGULAR),
        (last.steps >= max_iter, Status.MAX_ITER),
    ]
    code = full(last.steps, int(Status.STAGNATED))
    for fits, status in reversed(reasons):
        code = xp.where(fits, int(status), code)
    return code
