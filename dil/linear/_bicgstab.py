"""BiCGSTAB for (A + damping I) x = b, A square and otherwise arbitrary, in little memory and without the transpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, dot, full, nonzero_max_abs, norm
from dil._base.operator import Operator, shifted
from dil._base.options import check_linear_options
from dil._base.solution import Solution
from dil._base.typing import Array, Loop, Matvec
from dil.linear._restarts import Pass, Progress, Task, restarted


@dataclass(frozen=True)
class BiCGSTAB:
    """Stabilised biconjugate gradients: for matrices that are not symmetric, two products an iteration.

    Parameters
    ----------
    damping : float
        Solves (A + damping I) x = b. It is absolute, in the units of A.
    rtol : float, optional
        A problem is solved when ||b - A x|| <= rtol ||b||. By default eps ** 0.75 of the dtype: 1.8e-12 in float64,
        6.4e-6 in float32.
    max_iter : int, optional
        Iterations at most, for each problem; by default max(100, 10 n).

    Notes
    -----
    1. Its residuals do not fall steadily, and it can break down where the system is regular. A breakdown ends a pass;
       the next starts from the best point met, by its true residual, with another shadow residual. After three passes
       in a row that gain nothing the problem ends as STAGNATED.
    2. The length of a stabilising step is kept from vanishing where A s is nearly orthogonal to s, as it is for
       matrices with eigenvalues far from the real axis.
    3. A direction that A maps to nothing ends a pass as well; if no later pass solves the problem, it is SINGULAR.
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

    def __post_init__(self) -> None:
        check_linear_options(self)

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None
    ) -> Solution:
        """Solve for each problem of a batch; b, x0 (a start) and the value: (*batch, n), float."""
        return restarted(bicgstab, self, shifted(A, self.damping), b, loop=loop, x0=x0, patience=3)


class Iterate(NamedTuple):
    """One step, in units in which A is of the order of one; vectors (*batch, n), scalars (*batch, 1)."""

    dx: Array
    """x less its start, times the unit of A."""
    r: Array
    p: Array
    rho: Array
    """<shadow, r>"""
    rr: Array
    best: Array
    """The dx of the least <r, r> so far."""
    least: Array
    unit: Array
    scale: Array
    """The largest ||A p|| / ||p|| so far: at most the norm of A."""
    sound: Array
    broken: Array
    singular: Array
    steps: Array


def bicgstab(task: Task, s: Progress) -> Pass:
    """Run BiCGSTAB from x and its residual, with a shadow residual that differs from pass to pass."""
    xp = array_namespace(s.x)
    aim = (0.5 * task.rtol) ** 2
    size = norm(s.r)
    # of norm one, since the squares of a small residual's would underflow
    r = s.r / xp.where(size > 0, size, full(size, 1.0))
    goal = aim / xp.where(size > 0, size, full(size, 1.0)) ** 2
    shadow = r * _weights(r, s.passes)

    def going(i: Iterate) -> Array:
        on: Array = s.going & i.sound & ~i.broken & (i.rr > goal) & (i.steps < task.max_iter)
        return on

    def step(i: Iterate) -> Iterate:
        return _step(task, i, shadow, i.steps == s.steps, goal)

    rr, null, no = dot(r, r), xp.zeros_like(r), xp.zeros_like(s.going)
    one = full(rr, 1.0)
    first = Iterate(null, r, r, dot(shadow, r), rr, null, rr, one, 0.0 * rr, ~no, no, no, s.steps)
    last = task.iterate(step, going, first)
    x = s.x + last.best * (size / last.unit)
    return Pass(
        x, last.steps, s.products + 2 * (last.steps - s.steps), last.singular, last.sound, last.unit * last.scale
    )


def _weights(r: Array, passes: Array) -> Array:
    """Return what turns a residual into its shadow: ones in the first pass, then positive and without a pattern."""
    xp = array_namespace(r)
    place = xp.arange(r.shape[-1], dtype=r.dtype, device=device(r))
    turns = xp.astype(passes, r.dtype)
    return 1.0 + 0.75 * xp.where(passes > 0, xp.sin((1.0 + turns) * (place + 1.0) ** 2), 0.0 * turns)  # type: ignore[no-any-return]


def _step(task: Task, i: Iterate, shadow: Array, is_first: Array, goal: Array) -> Iterate:
    """Take a step along p, then one that lowers the residual along itself."""
    xp, eps = array_namespace(i.r), task.eps
    Ap = task.A(i.p)
    unit = xp.where(is_first, nonzero_max_abs(Ap), i.unit)
    v = Ap / unit
    one = full(i.rr, 1.0)
    pp, vv, hh, sv = dot(i.p, i.p), dot(v, v), dot(shadow, shadow), dot(shadow, v)
    scale = xp.where(vv > i.scale**2 * pp, (vv / pp) ** 0.5, i.scale)
    null = vv <= (4 * eps * scale) ** 2 * pp
    blocked = null | (sv * sv <= (4 * eps) ** 2 * hh * vv)
    alpha = i.rho / xp.where(blocked, one, sv)
    s = i.r - alpha * v
    half = i.dx + alpha * i.p
    t = task.A(s) / unit
    ss, tt, ts = dot(s, s), dot(t, t), dot(t, s)
    flat = tt <= (4 * eps * scale) ** 2 * ss
    done = ss <= goal
    omega = _length(ts, ss, tt, flat | done)
    dx, r = half + omega * s, s - omega * t
    rr, rho = dot(r, r), dot(shadow, r)
    beta = (rho / i.rho) * (alpha / xp.where(omega == 0, one, omega))
    p = r + beta * (i.p - omega * v)
    # a residual that has grown this much leaves rounding errors that no later step undoes
    grown = rr * eps > i.least
    lost = rho * rho <= (4 * eps) ** 2 * hh * rr
    broken = blocked | flat | grown | lost
    sound = xp.isfinite(rr) & xp.isfinite(rho)
    better = sound & ~blocked & (rr < i.least)
    return Iterate(
        dx,
        xp.where(blocked, i.r, r),
        p,
        rho,
        xp.where(blocked, i.rr, rr),
        xp.where(better, dx, i.best),
        xp.where(better, rr, i.least),
        unit,
        scale,
        sound,
        broken,
        null | (flat & ~done),
        i.steps + 1,
    )


def _length(ts: Array, ss: Array, tt: Array, none: Array) -> Array:
    """Return the length of a stabilising step; zero where there is to be none."""
    xp = array_namespace(ts)
    zero, one = 0.0 * ts, full(ts, 1.0)
    safe = xp.where(none, one, tt)
    least = 0.7 * (ss / safe) ** 0.5
    omega = ts / safe
    longer = xp.where(omega < 0, -least, least)
    return xp.where(none, zero, xp.where(xp.abs(omega) < least, longer, omega))  # type: ignore[no-any-return]
