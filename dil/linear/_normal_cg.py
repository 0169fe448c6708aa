"""Conjugate gradients on the normal equations (A^T A + damping I) x = A^T b, A square and otherwise arbitrary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, dot, full, norm
from dil._base.operator import Operator, as_operator
from dil._base.options import check_linear_options
from dil._base.solution import Solution
from dil._base.typing import Array, Loop, Matvec
from dil.linear._restarts import Measure, Pass, Progress, Task, restarted


@dataclass(frozen=True)
class NormalCG:
    """Conjugate gradients on A^T A x = A^T b: for any matrix, at two products an iteration and the condition squared.

    Parameters
    ----------
    damping : float
        Solves (A^T A + damping I) x = A^T b. It is absolute, in the units of A^T A.
    rtol : float, optional
        A problem is solved when ||b - A x|| <= rtol ||b||. By default eps ** 0.75 of the dtype: 1.8e-12 in float64,
        6.4e-6 in float32.
    max_iter : int, optional
        Iterations at most, for each problem; by default max(100, 10 n).

    Notes
    -----
    1. The residual kept is b - A x, not that of the normal equations, which loses digits (form CGNR, or CGLS).
    2. With damping, b - A x does not vanish: then a problem is solved, and `residual` measured, by
       ||A^T (b - A x) - damping x|| relative to ||A^T b||.
    3. Where A^T (b - A x) vanishes before b - A x does, x solves the least-squares problem and A is singular: the
       status says SINGULAR.
    4. A pass ends by its recurrence; the true residual decides, and where it misses the tolerance a new pass starts
       from it, as long as that halves it at least. `extra["products"]` counts products with A and A^T.

    Sources: Look et al. 2020, section 3.1; Saad 2003, Algorithm 8.4; Paige and Saunders 1982, section 7.1 (damping).

    Raises
    ------
    OptionError
        If an option is out of range, or the operator has no transpose.

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

    def __post_init__(self) -> None:
        check_linear_options(self, "A^T A")

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None
    ) -> Solution:
        """Solve for each problem of a batch; b, x0 (a start) and the value: (*batch, n), float."""
        A = as_operator(A)
        _ = A.T  # a transpose that is missing is said before any work is done
        measure = None if self.damping == 0 else normal_error
        return restarted(normal_cg, self, A, b, loop=loop, x0=x0, measure=measure)


class Iterate(NamedTuple):
    """One step, in units in which A is of the order of one; vectors (*batch, n), scalars (*batch, 1)."""

    dx: Array
    """x less its start, times the unit of A."""
    r: Array
    p: Array
    zz: Array
    """<z, z>, z = A^T r - damping x."""
    rr: Array
    stretch: Array
    """The largest <A p, A p> / <p, p> so far: at most the squared norm of A."""
    sound: Array
    stuck: Array
    """Whether A^T r has vanished, r has not."""
    steps: Array


def normal_cg(task: Task, s: Progress) -> Pass:
    """Run CGLS from x and its residual."""
    xp = array_namespace(s.x)
    z = task.A.T(s.r) - task.damping * s.x
    # squares of A z are of the fourth power of A, so A is divided by about its norm
    unit = norm(z)
    floor = task.damping**0.5
    unit = xp.where(unit > floor, unit, full(unit, floor if floor > 0 else 1.0))
    damping = (task.damping**0.5 / unit) ** 2
    z = z / unit
    zz = dot(z, z)
    # the recurrence aims a little below the tolerance, so that the true residual rarely misses it
    aim = (0.5 * task.rtol) ** 2
    enough = zz * aim / s.error**2

    def going(i: Iterate) -> Array:
        unsolved = i.zz > enough if task.damping > 0 else i.rr > aim
        return s.going & i.sound & ~i.stuck & unsolved & (i.steps < task.max_iter)

    def step(i: Iterate) -> Iterate:
        pp = dot(i.p, i.p)
        w = task.A(i.p) / unit
        ww = dot(w, w)
        stretch = xp.where(ww > i.stretch * pp, ww / pp, i.stretch)
        bend = ww + damping * pp
        finite = xp.isfinite(bend)
        null = finite & (bend <= (task.eps**2) * stretch * pp)
        take = finite & ~null
        alpha = xp.where(take, i.zz, 0.0 * i.zz) / xp.where(take, bend, full(bend, 1.0))
        dx, r = i.dx + alpha * i.p, i.r - alpha * w
        z = task.A.T(r) / unit - damping * (unit * s.x + dx)
        zz, rr = dot(z, z), dot(r, r)
        p = z + (zz / i.zz) * i.p
        stuck = null | (zz <= (4 * task.eps) ** 2 * stretch * rr) if task.damping == 0 else null
        sound = finite & xp.isfinite(zz)
        return Iterate(dx, r, p, zz, rr, stretch, sound, stuck, i.steps + 1)

    none = 0.0 * zz
    sound = xp.isfinite(zz)
    first = Iterate(xp.zeros_like(s.x), s.r, z, zz, dot(s.r, s.r), none, sound, sound & (zz == 0), s.steps)
    last = task.iterate(step, going, first)
    products = s.products + 2 * (last.steps - s.steps) + xp.astype(s.going, xp.int32)
    return Pass(s.x + last.dx / unit, last.steps, products, last.stuck, last.sound, unit * last.stretch**0.5)


def normal_error(task: Task) -> Measure:
    """Return the measure of an error for damping > 0, where b - A x does not vanish."""
    size = norm(task.A.T(task.b))
    whole = array_namespace(size).where(size > 0, size, full(size, 1.0))
    return lambda x, r: norm(task.A.T(r) - task.damping * x) / whole
