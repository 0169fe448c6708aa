"""Conjugate gradients for (H + damping I) x = b, H symmetric positive definite, by products with H alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._arrays import array_namespace, dot, eps, full, scale
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
        if not self.damping >= 0:
            message = f"damping={self.damping!r}; expected a number >= 0, in the units of the Hessian"
            raise OptionError(message)
        if self.rtol is not None and not 0 < self.rtol < 1:
            message = f"rtol={self.rtol!r}; expected a number between 0 and 1, or None for the dtype's own"
            raise OptionError(message)
        if self.max_iter is not None and self.max_iter < 1:
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
    """One step of CG; vectors (*batch, n), scalars (*batch, 1)."""

    x: Array
    r: Array
    p: Array
    rr: Array
    """<r, r>."""
    pp: Array
    """<p, p>."""
    curvature: Array
    """<p, H p> / <p, p> of the last step taken or refused."""
    sharpest: Array
    """The largest curvature so far: a lower bound of the norm of H."""
    going: Array
    steps: Array
    """Products with H, counted for each problem."""


class Pass(NamedTuple):
    """One pass from a true residual to the next."""

    x: Array
    r: Array
    """The true residual b - H x."""
    curvature: Array
    sharpest: Array
    going: Array
    steps: Array


def cg(matvec: Matvec, b: Array, *, rtol: float, max_iter: int, loop: Loop) -> Solution:
    """Solve H x = b; b: (*batch, n). See `CG`."""
    xp = array_namespace(b)
    beta0 = scale(b)
    zero, one = full(beta0, 0.0), full(beta0, 1.0)
    finite = xp.all(xp.isfinite(b), axis=-1, keepdims=True)
    b = xp.where(finite, b / beta0, full(b, 0.0))
    singular = eps(xp, b.dtype)
    aim = (0.5 * rtol) ** 2  # the recurrence aims a little below, so that the true residual rarely misses
    accept = rtol**2

    def step(s: Iterate) -> Iterate:
        Hp = matvec(s.p)
        pHp = dot(s.p, Hp)
        curvature = xp.where(s.going, pHp / s.pp, s.curvature)
        sharpest = xp.maximum(s.sharpest, curvature)
        convex = s.going & (curvature > singular * sharpest)  # False for NaN
        alpha = xp.where(convex, s.rr / pHp, zero)
        x = s.x + alpha * s.p
        r = s.r - alpha * xp.where(convex, Hp, zero)  # 0 * NaN would reach r
        rr = dot(r, r)
        beta = xp.where(convex, rr / s.rr, zero)
        p = r + beta * s.p
        pp = rr + beta * beta * s.pp  # r is orthogonal to the old p
        steps = s.steps + xp.astype(s.going, s.steps.dtype)
        going = convex & (rr > aim) & (steps < max_iter)
        return Iterate(x, r, p, rr, pp, curvature, sharpest, going, steps)

    def descend(s: Pass) -> Pass:
        rr = dot(s.r, s.r)
        p = xp.where(s.going, s.r, zero)
        start = Iterate(s.x, p, p, rr, rr, s.curvature, s.sharpest, s.going, s.steps)
        end = loop(lambda i: xp.any(i.going), step, start)
        x = end.x
        r = b - matvec(x)
        left = dot(r, r)
        usable = end.curvature > singular * end.sharpest
        again = s.going & usable & (left > accept) & (4 * left < rr) & (end.steps < max_iter)
        return Pass(x, r, end.curvature, end.sharpest, again, end.steps)

    count = xp.zeros_like(finite, dtype=xp.int32)
    first = Pass(full(b, 0.0), b, one, zero, dot(b, b) > 0, count)
    last = loop(lambda s: xp.any(s.going), descend, first)
    residual = xp.sqrt(dot(last.r, last.r))
    status = _status(last, residual <= rtol, finite, singular, max_iter)
    unknown = ~finite | ~(xp.isfinite(last.curvature) | (last.steps > 1))
    x = xp.where(unknown, full(b, float("nan")), last.x * beta0)
    return Solution(x, status[..., 0], last.steps[..., 0], residual[..., 0])


def _status(last: Pass, solved: Array, finite: Array, singular: float, max_iter: int) -> Array:
    """Say why each problem ended, from the last curvature that it met."""
    xp = array_namespace(last.x)
    code = full(last.curvature, int(Status.STAGNATED), dtype=xp.int32)

    def mark(where: Array, status: Status) -> None:
        nonlocal code
        code = xp.where(where, full(code, int(status)), code)

    mark(last.steps >= max_iter, Status.MAX_ITER)
    mark(last.curvature <= singular * last.sharpest, Status.SINGULAR)
    mark(last.curvature < -singular * last.sharpest, Status.INDEFINITE)
    mark(solved, Status.CONVERGED)
    mark(~(xp.isfinite(last.curvature) & finite), Status.NON_FINITE)
    return code
