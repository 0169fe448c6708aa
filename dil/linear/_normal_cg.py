"""Conjugate gradients on the normal equations (A^T A + damping I) x = A^T b, for any square A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, logical_not, select
from dil._base.operator import Operator, as_operator
from dil._base.options import check_linear_options
from dil._base.scalars import Scalar, count, divided, either, is_finite, sqrt
from dil._base.solution import Solution
from dil._base.typing import Array, Loop, Matvec
from dil.linear._restarts import Measure, Pass, Progress, Task, restarted
from dil.linear._tolerance import Tolerance


@dataclass(frozen=True)
class NormalCG:
    """Conjugate gradients on A^T A x = A^T b, for any square A.

    Parameters
    ----------
    damping : float
        The shift in (A^T A + damping I) x = A^T b, in the units of A^T A.
    rtol : float, optional
        A problem is solved when ||b - A x|| <= rtol ||b||. By default eps ** 0.75 of the dtype: 1.8e-12 in float64,
        6.4e-6 in float32.
    max_iter : int, optional
        The largest number of iterations for each problem. The default is max(100, 10 n).

    Notes
    -----
    1. An iteration costs two products. The number of iterations depends on the squared condition number of A.
    2. The iteration updates the residual b - A x (the form CGNR, or CGLS). The residual of the normal equations would
       lose digits.
    3. With damping, b - A x does not become zero. The test and `residual` then use ||A^T (b - A x) - damping x||
       relative to ||A^T b||.
    4. If A^T (b - A x) becomes zero and b - A x does not, x solves the least-squares problem, A is singular, and the
       problem ends SINGULAR.
    5. A pass ends when the residual of the recurrence meets the tolerance. Then the true residual is computed. If it
       misses the tolerance but was at least halved, a new pass starts from it. `extra["products"]` counts products with
       A and A^T.

    Sources: Look et al. 2020, section 3.1; Saad 2003, Algorithm 8.4; Paige and Saunders 1982, section 7.1 (damping).

    Raises
    ------
    OptionError
        If an option is out of range, or the operator in a call has no transpose.

    Examples
    --------
    >>> import numpy as np, dil
    >>> M = np.asarray([[1.0, 2.0], [-3.0, 1.0]])
    >>> A = dil.linear.Operator(lambda p: M @ p, lambda p: M.T @ p)
    >>> x = dil.linear.NormalCG()(A, np.asarray([5.0, -1.0]))
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
        check_linear_options(self, "A^T A")

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
        A = as_operator(A)
        _ = A.T  # raises if the transpose is missing, before any work is done
        measure = None if self.damping == 0 else normal_error
        return restarted(normal_cg, self, A, b, loop=loop, x0=x0, measure=measure, rtol=rtol)


class Given(NamedTuple):
    """What a pass holds fixed."""

    active: Scalar
    x: Array
    """Its start, (*batch, n)."""
    unit: Scalar
    """The unit of A."""
    damping: Scalar
    """The damping in the unit of A^T A."""
    target_rr: Scalar
    target_zz: Scalar
    """<z, z> and <r, r> at which the pass ends, with and without damping."""


class Iterate(NamedTuple):
    """The state, in units in which A is of order one. Vectors: (*batch, n)."""

    dx: Array
    """x minus its start, times the unit of A."""
    r: Array
    p: Array
    zz: Scalar
    """<z, z> with z = A^T r - damping x."""
    rr: Scalar
    stretch: Scalar
    """The largest <A p, A p> / <p, p> so far: a lower bound of the squared norm of A."""
    finite: Scalar
    stuck: Scalar
    """Whether A^T r is zero but r is not."""
    steps: Scalar


def normal_cg(task: Task, s: Progress) -> Pass:
    """Run CGLS from x and its residual."""
    dot = task.scalars.dot
    z = task.A.T(s.r) - task.damping * s.x
    # <A z, A z> is of fourth order in A, so A is divided by about its norm
    unit, floor = task.scalars.norm(z), task.damping**0.5
    unit = select(unit > floor, unit, floor if floor > 0 else 1.0)
    damping = (task.damping**0.5 / unit) ** 2
    z = z / unit
    zz = dot(z, z)
    # the target of the recurrence is below the tolerance, so that the true residual rarely misses the tolerance
    target_rr = (0.5 * task.rtol) ** 2
    target_zz = zz * target_rr / s.error / s.error if task.damping > 0 else zz

    finite, null = is_finite(zz), array_namespace(s.x).zeros_like(s.x)
    first = Iterate(null, s.r, z, zz, dot(s.r, s.r), 0.0 * zz, finite, finite & (zz == 0), s.steps)
    last = task.iterate(Given(s.active, s.x, unit, damping, target_rr, target_zz), _step, _active, first)
    products = s.products + 2 * (last.steps - s.steps) + count(s.active)
    return Pass(s.x + last.dx / unit, last.steps, products, last.stuck, last.finite, unit * sqrt(last.stretch))


def _active(task: Task, given: Given, i: Iterate) -> Scalar:
    """Return whether a pass goes on."""
    unsolved = i.zz > given.target_zz if task.damping > 0 else i.rr > given.target_rr
    return given.active & i.finite & logical_not(i.stuck) & unsolved & (i.steps < task.max_iter)


def _step(task: Task, given: Given, i: Iterate) -> Iterate:
    """Take a step along p."""
    dot, unit, damping = task.scalars.dot, given.unit, given.damping
    pp = dot(i.p, i.p)
    w = task.A(i.p) / unit
    ww = dot(w, w)
    stretch = either(ww > i.stretch * pp, lambda: divided(ww, pp), lambda: i.stretch)
    curvature = ww + damping * pp
    finite = is_finite(curvature)
    is_null = finite & (curvature <= (task.eps**2) * stretch * pp)
    accepted = finite & logical_not(is_null)
    alpha = select(accepted, i.zz, 0.0) / select(accepted, curvature, 1.0)
    dx, r = i.dx + alpha * i.p, i.r - alpha * w
    z = task.A.T(r) / unit
    z = z if task.damping == 0 else z - damping * (unit * given.x + dx)
    zz, rr = dot(z, z), dot(r, r)
    p = z + divided(zz, i.zz) * i.p
    stuck = is_null | (zz <= (4 * task.eps) ** 2 * stretch * rr) if task.damping == 0 else is_null
    return Iterate(dx, r, p, zz, rr, stretch, finite & is_finite(zz), stuck, i.steps + 1)


def normal_error(task: Task) -> Measure:
    """Return the measure of the error for damping > 0, in which case b - A x does not become zero."""
    norm = task.scalars.norm
    size = norm(task.A.T(task.b))
    nonzero_size = select(size > 0, size, 1.0)
    return lambda x, r: norm(task.A.T(r) - task.damping * x) / nonzero_size
