"""MINRES for (A + damping I) x = b with a symmetric A, by one product per iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, logical_not, select
from dil._base.operator import Operator, shifted
from dil._base.options import check_linear_options
from dil._base.scalars import Scalar, either, greater, in_unit, is_finite, sqrt
from dil._base.solution import Solution
from dil._base.typing import Array, Loop, Matvec
from dil.linear._restarts import Pass, Progress, Task, restarted
from dil.linear._tolerance import Tolerance


@dataclass(frozen=True)
class MINRES:
    """The method of minimal residuals for symmetric, possibly indefinite matrices. An iteration costs one product.

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
    1. A singular system that has a solution is solved. A system without a solution ends SINGULAR or STAGNATED at a
       point of least residual, where A r is zero to working precision.
    2. A pass ends by its recurrence, and then the true residual is computed. If it misses the tolerance but was at
       least halved, a new pass starts from it. `extra["products"]` counts products with A.
    3. If A is not symmetric, the recurrence fails. The status reports this, because it uses the true residual.

    Sources: Paige and Saunders 1975, sections 5 and 6; Choi, Paige and Saunders 2011 (systems without a solution).

    Raises
    ------
    OptionError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np, dil
    >>> A = np.asarray([[1.0, 2.0], [2.0, -1.0]])
    >>> x = dil.linear.MINRES()(lambda p: A @ p, np.asarray([5.0, 0.0]))
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
        return restarted(minres, self, shifted(A, self.damping), b, loop=loop, x0=x0, rtol=rtol)


class Iterate(NamedTuple):
    """The state, in units in which A is of order one. Vectors: (*batch, n)."""

    dx: Array
    """x minus its start, times the unit of A."""
    v: Array
    v_old: Array
    w: Array
    w_old: Array
    beta: Scalar
    c: Scalar
    s: Scalar
    c_old: Scalar
    s_old: Scalar
    phi: Scalar
    """The norm of the residual, with a sign."""
    unit: Scalar
    scale: Scalar
    """The largest ||A v|| so far: a lower bound of the norm of A."""
    best_dx: Array
    """The dx of least ||A r|| / ||r|| so far."""
    Ar_ratio: Scalar
    """||A r|| / ||r|| at best_dx."""
    best_phi: Scalar
    """|phi| at best_dx."""
    finite: Scalar
    stuck: Scalar
    """Whether A r is zero but r is not, or rounding exceeds r."""
    steps: Scalar


def minres(task: Task, s: Progress) -> Pass:
    """Run MINRES from x and its residual."""
    dot, norm = task.scalars.dot, task.scalars.norm

    def active(task: Task, s: Progress, i: Iterate) -> Scalar:
        # stop below the tolerance, so that the true residual rarely misses the tolerance
        unsolved = abs(i.phi) > 0.5 * task.rtol
        return s.active & i.finite & logical_not(i.stuck) & unsolved & (i.steps < task.max_iter)

    def step(task: Task, s: Progress, i: Iterate) -> Iterate:
        return _step(task, i, i.steps == s.steps)

    phi, null = norm(s.r), array_namespace(s.x).zeros_like(s.x)
    zero = 0.0 * phi
    one, no = zero + 1.0, s.active & False
    v = s.r / select(phi > 0, phi, 1.0)
    first = Iterate(
        null, v, null, null, null, zero, one, zero, one, zero, phi, one, zero, null, one, phi, s.active, no, s.steps
    )
    last = task.iterate(s, step, active, first)
    # a system without a solution ends with a huge x along the null space and almost the same residual
    drift = 4 * task.eps * last.scale * sqrt(dot(last.dx, last.dx))
    return_to_best = last.stuck & (abs(last.phi) + drift > 0.5 * last.best_phi)
    x = s.x + select(return_to_best, last.best_dx, last.dx) / last.unit
    singular = last.stuck & (last.Ar_ratio <= 8 * task.eps**0.5 * last.scale)
    return Pass(x, last.steps, s.products + last.steps - s.steps, singular, last.finite, last.unit * last.scale)


def _step(task: Task, i: Iterate, is_first: Scalar) -> Iterate:
    """Take a Lanczos step, rotate the new column of the tridiagonal matrix into R, and move along the new direction."""
    dot = task.scalars.dot
    Av = task.A(i.v)
    unit = either(is_first, lambda: task.scalars.unit(Av), lambda: i.unit)
    u = in_unit(Av, unit) - i.beta * i.v_old
    alpha = dot(i.v, u)
    u = u - alpha * i.v
    uu = dot(u, u)
    beta = sqrt(uu)
    scale = greater(sqrt(alpha * alpha + uu + i.beta * i.beta), i.scale)
    rotated_beta = i.c_old * i.beta
    r1, r2 = i.s_old * i.beta, i.c * rotated_beta + i.s * alpha
    g = i.c * alpha - i.s * rotated_beta
    gg, cb = g * g, i.c * beta
    r3 = sqrt(gg + uu)
    Ar_ratio = sqrt(gg + cb * cb)  # ||A r|| / ||r|| before this step
    improved = is_first | (Ar_ratio < i.Ar_ratio)
    best_dx, best_phi = select(improved, i.dx, i.best_dx), select(improved, abs(i.phi), i.best_phi)
    Ar_ratio = select(improved, Ar_ratio, i.Ar_ratio)
    finite = is_finite(r3)
    tiny = 4 * task.eps * scale
    accepted = finite & (Ar_ratio > tiny) & (r3 > tiny)
    pivot = select(accepted, r3, 1.0)
    c, sn = g / pivot, beta / pivot
    w = (i.v - r1 * i.w_old - r2 * i.w) / pivot
    dx = either(accepted, lambda: i.dx + (c * i.phi) * w, lambda: i.dx)
    v = u / select(beta > 0, beta, 1.0)
    phi = select(accepted, -sn * i.phi, i.phi)
    # rounding separates the true residual from the recurrence by about eps ||A|| ||dx||: at most phi / 4 is accepted
    size = abs(phi)
    rounding_dominates = sqrt(dot(dx, dx)) * tiny > size
    stuck = finite & (logical_not(accepted) | (rounding_dominates & (size > 0.5 * task.rtol)))
    return Iterate(
        dx,
        v,
        i.v,
        w,
        i.w,
        beta,
        c,
        sn,
        i.c,
        i.s,
        phi,
        unit,
        scale,
        best_dx,
        Ar_ratio,
        best_phi,
        finite,
        stuck,
        i.steps + 1,
    )
