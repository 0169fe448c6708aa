"""BiCGSTAB for (A + damping I) x = b with any square A, in little memory and without the transpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, logical_not, select
from dil._base.operator import Operator, shifted
from dil._base.options import check_linear_options
from dil._base.scalars import Scalar, divided, either, in_unit, is_finite, sqrt, times
from dil._base.solution import Solution
from dil._base.typing import Array, Loop, Matvec
from dil._frameworks.iteration import choose
from dil.linear._restarts import TRIAL_SHARE, Pass, Progress, Task, restarted
from dil.linear._tolerance import Tolerance


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
    _takes_tolerance = True
    """Whether its call takes a tolerance `rtol`, for each problem or for all, in the place of its option."""

    def __post_init__(self) -> None:
        check_linear_options(self)

    def __call__(
        self,
        A: Operator | Matvec,
        b: Array,
        /,
        *,
        loop: Loop | None = None,
        x0: Array | None = None,
        rtol: Tolerance = None,
    ) -> Solution:
        """Solve each problem of a batch; b, the start x0 and the value: (*batch, n), float; status: batch.

        `rtol` stands for the option in this call: a number, or one for each problem, (*batch, 1).
        """
        return self.tried(A, b, loop=loop, x0=x0, rtol=rtol)

    def tried(
        self,
        A: Operator | Matvec,
        b: Array,
        /,
        *,
        loop: Loop | None = None,
        x0: Array | None = None,
        rtol: Tolerance = None,
        trial: int | None = None,
    ) -> Solution:
        """Solve like a call, but give up a problem that is slow after `trial` steps.

        A problem is slow if its relative residual after `trial` steps is above rtol ** (2 / 7). It ends STAGNATED.
        """
        return restarted(
            bicgstab, self, shifted(A, self.damping), b, loop=loop, x0=x0, rtol=rtol, patience=3, trial=trial
        )


class Given(NamedTuple):
    """What a pass holds fixed. `shadow`: (*batch, n)."""

    active: Scalar
    shadow: Array
    weight: Scalar
    """<shadow, shadow>"""
    first_step: Scalar
    """The number of steps before the pass."""
    goal: Scalar
    """<r, r> at which the pass ends."""
    trial: Scalar
    """The number of steps at which the pass ends if r is above `on_track`; below zero, if it never does."""
    on_track: Scalar
    """The norm of r that a trial must reach."""
    look: Scalar
    """A number of steps like `trial`, for `hurdle`."""
    hurdle: Scalar
    M: Array | float
    """The diagonal that preconditions from the right: A M y = b and x = M y. It is one where none does."""


class Iterate(NamedTuple):
    """The state, in units in which A is of order one. Vectors: (*batch, n)."""

    dx: Array
    """x minus its start, times the unit of A."""
    r: Array
    p: Array
    rho: Scalar
    """<shadow, r>"""
    rr: Scalar
    best_dx: Array
    """The dx of least <r, r> so far."""
    least: Scalar
    """<r, r> at best_dx."""
    unit: Scalar
    scale: Scalar
    """The largest ||A p|| / ||p|| so far: a lower bound of the norm of A."""
    finite: Scalar
    broken: Scalar
    singular: Scalar
    steps: Scalar


def bicgstab(task: Task, s: Progress) -> Pass:
    """Run BiCGSTAB from x and its residual, with a shadow residual that differs from pass to pass."""
    given, first, unit = started(task, s)
    return ended(s, given, task.iterate(given, step, is_active, first), unit)


def started(task: Task, s: Progress) -> tuple[Given, Iterate, Scalar]:
    """Return what a pass holds fixed, its first state, and the unit of its residuals."""
    dot, size = task.scalars.dot, task.scalars.norm(s.r)
    nonzero = select(size > 0, size, 1.0)
    r = s.r / nonzero  # of norm one, because the squares of a small residual would underflow
    goal = (0.5 * task.rtol) ** 2 / nonzero / nonzero
    trial = -1 if task.trial is None else task.trial
    on_track = task.rtol**TRIAL_SHARE / nonzero
    shadow = r * _weights(r, s.passes)
    given = Given(s.active, shadow, dot(shadow, shadow), s.steps, goal, trial, on_track, -1, 0.0 * on_track, 1.0)
    rr, null = dot(r, r), array_namespace(r).zeros_like(r)
    zero, no = 0.0 * rr, s.active & False
    first = Iterate(null, r, r, dot(shadow, r), rr, null, rr, zero + 1.0, zero, s.active, no, no, s.steps)
    return given, first, size


def ended(s: Progress, given: Given, last: Iterate, unit: Scalar) -> Pass:
    """Return the result of a pass that started from s."""
    x = s.x + times(given.M, last.best_dx * (unit / last.unit))
    products = s.products + 2 * (last.steps - s.steps)
    return Pass(x, last.steps, products, last.singular, last.finite, last.unit * last.scale)


def _weights(r: Array, passes: Scalar) -> Array | float:
    """Return the weights from a residual to its shadow: ones in the first pass, later irregular positive numbers."""
    if isinstance(passes, int) and passes == 0:
        return 1.0
    xp = array_namespace(r)
    index = xp.arange(r.shape[-1], dtype=r.dtype, device=device(r))
    pass_number = passes if isinstance(passes, int) else xp.astype(passes, r.dtype)
    irregular = xp.sin((1.0 + pass_number) * (index + 1.0) ** 2)
    return 1.0 + 0.75 * select(passes > 0, irregular, 0.0)  # type: ignore[no-any-return]


def is_active(task: Task, given: Given, i: Iterate) -> Scalar:
    """Return whether a pass goes on."""
    going = given.active & i.finite & logical_not(i.broken) & (i.rr > given.goal) & (i.steps < task.max_iter)
    on_track = (i.steps != given.trial) | (i.least <= given.on_track * given.on_track)
    return going & on_track & ((i.steps != given.look) | (i.least <= given.hurdle * given.hurdle))


def step(task: Task, given: Given, i: Iterate) -> Iterate:
    """Take a step along p, then a stabilising step along s, which reduces the residual."""
    dot, eps, shadow, weight = task.scalars.dot, task.eps, given.shadow, given.weight
    is_first = i.steps == given.first_step
    Ap = task.A(times(given.M, i.p))
    unit = either(is_first, lambda: task.scalars.unit(Ap), lambda: i.unit)
    v = in_unit(Ap, unit)
    pp, vv, sv = dot(i.p, i.p), dot(v, v), dot(shadow, v)
    scale = either(vv > i.scale * i.scale * pp, lambda: sqrt(divided(vv, pp)), lambda: i.scale)
    tiny = (4 * eps * scale) ** 2
    p_is_null = vv <= tiny * pp
    blocked = p_is_null | (sv * sv <= (4 * eps) ** 2 * weight * vv)
    alpha = divided(i.rho, select(blocked, 1.0, sv))
    s = i.r - alpha * v
    t = in_unit(task.A(times(given.M, s)), unit)
    ss, tt, ts = dot(s, s), dot(t, t), dot(t, s)
    s_is_null = tt <= tiny * ss
    solved = ss <= given.goal
    omega = _stabilising_length(ts, ss, tt, s_is_null | solved)
    dx, r = i.dx + alpha * i.p + omega * s, s - omega * t
    rr, rho = dot(r, r), dot(shadow, r)
    beta = divided(rho, i.rho) * (alpha / select(omega == 0, 1.0, omega))
    p = r + beta * (i.p - omega * v)
    # a residual that has grown this much leaves rounding errors that no later step removes
    rr_too_large = rr * eps > i.least
    rho_vanished = rho * rho <= (4 * eps) ** 2 * weight * rr
    broken = blocked | s_is_null | rr_too_large | rho_vanished
    finite = is_finite(rr) & is_finite(rho)
    improved = finite & logical_not(blocked) & (rr < i.least)
    return Iterate(
        dx,
        choose(blocked, i.r, r, task.loops),
        p,
        rho,
        select(blocked, i.rr, rr),
        choose(improved, dx, i.best_dx, task.loops),
        select(improved, rr, i.least),
        unit,
        scale,
        finite,
        broken,
        p_is_null | (s_is_null & logical_not(solved)),
        i.steps + 1,
    )


def _stabilising_length(ts: Scalar, ss: Scalar, tt: Scalar, skipped: Scalar) -> Scalar:
    """Return the length of the stabilising step, or zero where the step is skipped."""
    safe = select(skipped, 1.0, tt)
    least = 0.7 * sqrt(divided(ss, safe))
    omega = divided(ts, safe)
    lengthened = select(omega < 0, -least, least)
    return select(skipped, 0.0, select(abs(omega) < least, lengthened, omega))
