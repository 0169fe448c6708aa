"""BiCGSTAB for (A + damping I) x = b with any square A, in little memory and without the transpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, dot, full, nonzero_max_abs, norm
from dil._base.operator import Operator, shifted
from dil._base.options import check_linear_options
from dil._base.solution import Solution
from dil._base.typing import Array, Loop, Matvec
from dil.linear._restarts import TRIAL_SHARE, Pass, Progress, Task, restarted


@dataclass(frozen=True)
class BiCGSTAB:
    """Stabilised biconjugate gradients, for matrices that need not be symmetric. An iteration costs two products.

    Parameters
    ----------
    damping : float
        The shift in (A + damping I) x = b, in the units of A.
    rtol : float, optional
        A problem is solved when ||b - A x|| <= rtol ||b||. By default eps ** 0.75 of the dtype: 1.8e-12 in float64,
        6.4e-6 in float32.
    max_iter : int, optional
        The largest number of iterations for each problem. The default is max(100, 10 n).

    Notes
    -----
    1. The residuals do not decrease monotonically, and the method can break down for a regular A. A breakdown ends a
       pass. The next pass starts from the x of least true residual so far, with another shadow residual. After three
       passes in a row without gain the problem ends STAGNATED.
    2. The length of a stabilising step has a lower bound. Let s be the residual after the first half of an iteration.
       A s can be nearly orthogonal to s, and then the step would be too short. This happens for matrices with
       eigenvalues far from the real axis.
    3. A direction p with A p = 0 also ends a pass. If no later pass solves the problem, it ends SINGULAR.
       `extra["products"]` counts products with A.

    Sources: van der Vorst 1992 (the algorithm of section 2); Sleijpen and van der Vorst 1995 (the length in note 2).

    Raises
    ------
    OptionError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np, dil
    >>> A = np.asarray([[1.0, 2.0], [-3.0, 1.0]])
    >>> x = dil.linear.BiCGSTAB()(lambda p: A @ p, np.asarray([5.0, -1.0]))
    >>> np.allclose(x.value, [1.0, 2.0]), int(x.iterations)
    (True, 2)
    """

    damping: float = 0.0
    rtol: float | None = None
    max_iter: int | None = None

    _takes_many = True
    """Whether it solves for many right-hand sides, (k, *batch, n), of an operator with `one`."""

    def __post_init__(self) -> None:
        check_linear_options(self)

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None
    ) -> Solution:
        """Solve each problem of a batch; b, the start x0 and the value: (*batch, n), float; status: batch."""
        return self.tried(A, b, loop=loop, x0=x0)

    def tried(
        self,
        A: Operator | Matvec,
        b: Array,
        /,
        *,
        loop: Loop | None = None,
        x0: Array | None = None,
        trial: int | None = None,
    ) -> Solution:
        """Solve like a call, but give up a problem that is slow after `trial` steps.

        A problem is slow if its relative residual after `trial` steps is above rtol ** (2 / 7). It ends STAGNATED.
        """
        return restarted(bicgstab, self, shifted(A, self.damping), b, loop=loop, x0=x0, patience=3, trial=trial)


class Iterate(NamedTuple):
    """The state, in units in which A is of order one. Vectors: (*batch, n); scalars: (*batch, 1)."""

    dx: Array
    """x minus its start, times the unit of A."""
    r: Array
    p: Array
    rho: Array
    """<shadow, r>"""
    rr: Array
    best_dx: Array
    """The dx of least <r, r> so far."""
    least: Array
    """<r, r> at best_dx."""
    unit: Array
    scale: Array
    """The largest ||A p|| / ||p|| so far: a lower bound of the norm of A."""
    finite: Array
    broken: Array
    singular: Array
    steps: Array


def bicgstab(task: Task, s: Progress) -> Pass:
    """Run BiCGSTAB from x and its residual, with a shadow residual that differs from pass to pass."""
    xp = array_namespace(s.x)
    target_rr = (0.5 * task.rtol) ** 2
    size = norm(s.r)
    # of norm one, because the squares of a small residual would underflow
    r = s.r / xp.where(size > 0, size, full(size, 1.0))
    goal = target_rr / xp.where(size > 0, size, full(size, 1.0)) ** 2
    on_track = (task.rtol**TRIAL_SHARE / xp.where(size > 0, size, full(size, 1.0))) ** 2
    shadow = r * _weights(r, s.passes)

    def active(i: Iterate) -> Array:
        iterating: Array = s.active & i.finite & ~i.broken & (i.rr > goal) & (i.steps < task.max_iter)
        return iterating if task.trial is None else iterating & ((i.steps != task.trial) | (i.least <= on_track))

    def step(i: Iterate) -> Iterate:
        return _step(task, i, shadow, i.steps == s.steps, goal)

    rr, null, no = dot(r, r), xp.zeros_like(r), xp.zeros_like(s.active)
    one = full(rr, 1.0)
    first = Iterate(null, r, r, dot(shadow, r), rr, null, rr, one, 0.0 * rr, ~no, no, no, s.steps)
    last = task.iterate(step, active, first)
    x = s.x + last.best_dx * (size / last.unit)
    return Pass(
        x, last.steps, s.products + 2 * (last.steps - s.steps), last.singular, last.finite, last.unit * last.scale
    )


def _weights(r: Array, passes: Array) -> Array:
    """Return the weights from a residual to its shadow: ones in the first pass, later irregular positive numbers."""
    xp = array_namespace(r)
    index = xp.arange(r.shape[-1], dtype=r.dtype, device=device(r))
    pass_number = xp.astype(passes, r.dtype)
    return 1.0 + 0.75 * xp.where(passes > 0, xp.sin((1.0 + pass_number) * (index + 1.0) ** 2), 0.0 * pass_number)  # type: ignore[no-any-return]


def _step(task: Task, i: Iterate, shadow: Array, is_first: Array, goal: Array) -> Iterate:
    """Take a step along p, then a stabilising step along s, which reduces the residual."""
    xp, eps = array_namespace(i.r), task.eps
    Ap = task.A(i.p)
    unit = xp.where(is_first, nonzero_max_abs(Ap), i.unit)
    v = Ap / unit
    one = full(i.rr, 1.0)
    pp, vv, hh, sv = dot(i.p, i.p), dot(v, v), dot(shadow, shadow), dot(shadow, v)
    scale = xp.where(vv > i.scale**2 * pp, (vv / pp) ** 0.5, i.scale)
    p_is_null = vv <= (4 * eps * scale) ** 2 * pp
    blocked = p_is_null | (sv * sv <= (4 * eps) ** 2 * hh * vv)
    alpha = i.rho / xp.where(blocked, one, sv)
    s = i.r - alpha * v
    dx_half = i.dx + alpha * i.p
    t = task.A(s) / unit
    ss, tt, ts = dot(s, s), dot(t, t), dot(t, s)
    s_is_null = tt <= (4 * eps * scale) ** 2 * ss
    solved = ss <= goal
    omega = _stabilising_length(ts, ss, tt, s_is_null | solved)
    dx, r = dx_half + omega * s, s - omega * t
    rr, rho = dot(r, r), dot(shadow, r)
    beta = (rho / i.rho) * (alpha / xp.where(omega == 0, one, omega))
    p = r + beta * (i.p - omega * v)
    # a residual that has grown this much leaves rounding errors that no later step removes
    rr_too_large = rr * eps > i.least
    rho_vanished = rho * rho <= (4 * eps) ** 2 * hh * rr
    broken = blocked | s_is_null | rr_too_large | rho_vanished
    finite = xp.isfinite(rr) & xp.isfinite(rho)
    improved = finite & ~blocked & (rr < i.least)
    return Iterate(
        dx,
        xp.where(blocked, i.r, r),
        p,
        rho,
        xp.where(blocked, i.rr, rr),
        xp.where(improved, dx, i.best_dx),
        xp.where(improved, rr, i.least),
        unit,
        scale,
        finite,
        broken,
        p_is_null | (s_is_null & ~solved),
        i.steps + 1,
    )


def _stabilising_length(ts: Array, ss: Array, tt: Array, skipped: Array) -> Array:
    """Return the length of the stabilising step, or zero where the step is skipped."""
    xp = array_namespace(ts)
    zero, one = 0.0 * ts, full(ts, 1.0)
    safe = xp.where(skipped, one, tt)
    least = 0.7 * (ss / safe) ** 0.5
    omega = ts / safe
    lengthened = xp.where(omega < 0, -least, least)
    return xp.where(skipped, zero, xp.where(xp.abs(omega) < least, lengthened, omega))  # type: ignore[no-any-return]
