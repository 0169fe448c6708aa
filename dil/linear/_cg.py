"""Conjugate gradients for (H + damping I) x = b, H symmetric positive definite, by products with H alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from dil._arrays import array_namespace, eps, full, inner, opposite, peak, pick
from dil._errors import OptionError
from dil._operator import shifted
from dil._registry import common_owner
from dil._solution import Solution
from dil._status import Status
from dil._typing import Array, DType, Loop, Matvec
from dil.linear._flexible_cg import flexible_cg
from dil.linear.preconditioners._preconditioner import Preconditioner, check_preconditioner

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
        if not isinstance(self.damping, int | float) or not 0 <= self.damping < float("inf"):
            message = f"damping={self.damping!r}; expected a number >= 0, in the units of the Hessian"
            raise OptionError(message)
        if self.rtol is not None and (not isinstance(self.rtol, float) or not 0 < self.rtol < 1):
            message = f"rtol={self.rtol!r}; expected a number between 0 and 1, or None for the dtype's own"
            raise OptionError(message)
        if self.max_iter is not None and not (isinstance(self.max_iter, int) and self.max_iter >= 1):
            message = f"max_iter={self.max_iter!r}; expected at least 1, or None for max(100, 10 n)"
            raise OptionError(message)
        check_preconditioner(self.preconditioner)

    def __call__(self, A: Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None) -> Solution:
        """Solve for each problem of a batch; b, x0 and the value: (*batch, n), float."""
        return self.tried(A, b, loop=loop, x0=x0)

    def tried(
        self, A: Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None, trial: int | None = None
    ) -> Solution:
        """Solve as a call does, but give up a problem whose residual `trial` steps have not halved.

        Such a problem ends STAGNATED. With a preconditioner or a start there is no trial.
        """
        backend = common_owner([b], ["b"], "dil.linear.CG")
        xp = array_namespace(b)
        rtol = eps(xp, b.dtype) ** 0.75 if self.rtol is None else self.rtol
        max_iter = max(100, 10 * b.shape[-1]) if self.max_iter is None else self.max_iter
        loop = backend.while_loop if loop is None else loop
        if self.preconditioner is not None or x0 is not None:
            M, H = self.preconditioner, shifted(A, self.damping)
            return flexible_cg(H, b, preconditioner=M, x0=x0, rtol=rtol, max_iter=max_iter, loop=loop)
        damped = A if self.damping == 0 else lambda p: A(p) + self.damping * p
        return cg(damped, b, rtol=rtol, max_iter=max_iter, loop=loop, number=backend.number, trial=trial)


class Iterate(NamedTuple):
    """One step of the recurrence; vectors (*batch, n), scalars batch, or Python numbers where `number` made them."""

    x: Array
    """Not moved by a step that proves unsound."""
    r: Array
    p: Array
    rr: Scalar
    pp: Scalar
    bend: Scalar
    """<p, H p> / <p, p> of the last step, taken or refused."""
    curvature: Scalar
    """The sum of <p, H p> / <p, p> so far: of the order of the norm of H, or above it."""
    sound: Scalar
    steps: Scalar


class Pass(NamedTuple):
    """The problems after a pass of the recurrence, or after a look at their true residuals."""

    x: Array
    r: Array
    rr: Scalar
    """<r, r>: of the recurrence where there is no doubt, else of the true residual."""
    best: Scalar
    """<r, r> of the true residual when it was last looked at."""
    bend: Scalar
    """<p, H p> / <p, p> of the last step, taken or refused."""
    curvature: Scalar
    sound: Scalar
    going: Scalar
    doubtful: Scalar
    steps: Scalar


def cg(
    matvec: Matvec,
    b: Array,
    *,
    rtol: float,
    max_iter: int,
    loop: Loop,
    number: Callable[[Array], Scalar],
    trial: int | None = None,
) -> Solution:
    """Solve H x = b; b: (*batch, n). See `CG`, and `CG.tried` for the trial.

    The scalars of a single problem are Python's where `number` can read them at no cost: their arithmetic is the same,
    and an operation on an array of one number costs as much as one on a short vector.
    """
    xp, single = array_namespace(b), b.ndim == 1

    def dot(a: Array, c: Array) -> Scalar:
        return number(inner(a, c))

    def column(scalar: Scalar) -> Scalar:
        return scalar if single else scalar[..., None]

    def any_going(going: Scalar) -> Scalar:
        return going if single else xp.any(going)

    machine = eps(xp, b.dtype)
    top = number(peak(b)[..., 0])
    tame = isinstance(top, float) and machine < top < 1 / machine
    b = b if tame else b / column(top)  # squares of tiny and huge entries would under- and overflow
    bb = dot(b, b)
    # the recurrence aims a little below the tolerance, so that the true residual rarely misses it
    aim, accept = bb * (0.5 * rtol) ** 2, bb * rtol**2

    def going(s: Iterate) -> Scalar:
        on = s.sound & (s.rr > aim) & (s.steps < max_iter)
        return on if trial is None else on & ((s.steps != trial) | (4 * s.rr <= bb))

    def step(s: Iterate) -> Iterate:
        Hp = matvec(s.p)
        pHp = dot(s.p, Hp)
        bend = pHp / s.pp
        sound = bend > machine * s.curvature  # False for NaN, negative curvature and null directions
        alpha = s.rr / pick(sound, pHp, math.inf)
        x = s.x + column(alpha) * s.p
        r = s.r - column(alpha) * Hp
        rr = dot(r, r)
        beta = rr / s.rr
        p = r + column(beta) * s.p
        pp = rr + beta * beta * s.pp  # r is orthogonal to the old p
        new = Iterate(x, r, p, rr, pp, bend, s.curvature + abs(bend), sound, s.steps + 1)
        return new if single else _freeze(going(s), s, new)  # a single problem ends with the loop

    def advance(s: Pass) -> Pass:
        """Run the recurrence from the residuals of the problems that are going."""
        start = Iterate(s.x, s.r, s.r, s.rr, s.rr, s.bend, s.curvature, s.sound & s.going, s.steps)
        end = loop(lambda i: any_going(going(i)), step, start)
        # rounding moves the true residual off the recurrence by about eps ||H|| ||x|| (Greenbaum 1997)
        drift = 8 * machine * end.curvature
        doubtful = s.going & opposite(end.sound & (drift * drift * dot(end.x, end.x) < accept))
        sound = pick(s.going, end.sound, s.sound)
        return Pass(end.x, end.r, end.rr, s.best, end.bend, end.curvature, sound, s.going, doubtful, end.steps)

    def verify(s: Pass) -> Pass:
        """Look at the true residuals; go on from those that miss the tolerance but have come nearer to it."""
        r = b - matvec(s.x)
        rr = dot(r, r)
        again = s.doubtful & s.sound & (rr > accept) & (4 * rr < s.best) & (s.steps < max_iter)
        r, rr = pick(column(s.doubtful), r, s.r), pick(s.doubtful, rr, s.rr)
        return s._replace(r=r, rr=rr, best=rr, going=again)

    some = bb > 0  # False for NaN
    none = 0 if isinstance(some, bool) else xp.zeros_like(some, dtype=xp.int32)
    first = Pass(xp.zeros_like(b), b, bb, bb, bb, 0 * bb, some, some, some, none)
    last = loop(lambda s: any_going(s.doubtful), lambda s: advance(verify(s)), advance(first))
    failed = opposite(last.rr <= accept)

    def explain(s: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        return failed & opposite(failed), _reasons(last, failed, max_iter, machine)

    # a loop that runs once if a problem failed, and not at all otherwise
    _, status = loop(lambda s: any_going(s[0]), explain, (failed, none))
    residual = (last.rr / pick(bb == 0, 1.0, bb)) ** 0.5
    return Solution(
        last.x if tame else last.x * column(top),
        _array(status, b, xp.int32),
        _array(last.steps, b, xp.int32),
        _array(residual, b),
    )


def _array(scalar: Scalar, like: Array, dtype: DType | None = None) -> Array:
    """Return a number of Python as an array beside another; an array as it is."""
    if not isinstance(scalar, int | float):
        array: Array = scalar
        return array
    return full(like, scalar, shape=(), dtype=dtype)


def _freeze(going: Array, old: Iterate, new: Iterate) -> Iterate:
    """Keep the problems that were not going."""
    xp = array_namespace(new.x)
    column = going[..., None]
    vectors = (xp.where(column, a, b) for a, b in zip(new[:3], old[:3], strict=True))
    return Iterate(*vectors, *(xp.where(going, a, b) for a, b in zip(new[3:], old[3:], strict=True)))


def _reasons(last: Pass, failed: Scalar, max_iter: int, machine: float) -> Scalar:
    """Say why each problem that failed did; the first word that fits counts."""
    reasons = [
        (opposite(failed), Status.CONVERGED),
        (opposite(abs(last.bend) < math.inf), Status.NON_FINITE),
        (last.bend < -machine * last.curvature, Status.INDEFINITE),
        (opposite(last.sound), Status.SINGULAR),
        (last.steps >= max_iter, Status.MAX_ITER),
    ]
    code = int(Status.STAGNATED) if isinstance(failed, bool) else full(last.steps, int(Status.STAGNATED))
    for fits, status in reversed(reasons):
        code = pick(fits, int(status), code)
    return code
