"""MINRES for (A + damping I) x = b, A symmetric, by one product an iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, dot, full, nonzero_max_abs, norm
from dil._base.operator import Operator, shifted
from dil._base.options import check_linear_options
from dil._base.solution import Solution
from dil._base.typing import Array, Loop, Matvec
from dil.linear._restarts import Pass, Progress, Task, restarted


@dataclass(frozen=True)
class MINRES:
    """The method of minimal residuals for symmetric matrices that need not be definite, one product an iteration.

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
    1. A singular system that has a solution is solved. One that has none ends at the point where A r vanishes to
       working precision, of least residual, with status SINGULAR or STAGNATED.
    2. A pass ends by its recurrence; the true residual decides, and where it misses the tolerance a new pass starts
       from it, as long as that halves it at least. `extra["products"]` counts products with A.
    3. A matrix that is not symmetric breaks the recurrence, never the judgement: the status says that it failed.

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

    def __post_init__(self) -> None:
        check_linear_options(self)

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None
    ) -> Solution:
        """Solve for each problem of a batch; b, x0 (a start) and the value: (*batch, n), float."""
        return restarted(minres, self, shifted(A, self.damping), b, loop=loop, x0=x0)


class Iterate(NamedTuple):
    """One step, in units in which A is of the order of one; vectors (*batch, n), scalars (*batch, 1)."""

    dx: Array
    """x less its start, times the unit of A."""
    v: Array
    v_old: Array
    w: Array
    w_old: Array
    beta: Array
    c: Array
    s: Array
    c_old: Array
    s_old: Array
    phi: Array
    """The residual's norm, with a sign."""
    unit: Array
    scale: Array
    """The largest ||A v|| so far: at most the norm of A."""
    best: Array
    """The dx at which ||A r|| / ||r|| was least, here `flat`, and |phi| `level`."""
    flat: Array
    level: Array
    sound: Array
    stuck: Array
    """Whether A r has vanished, r has not, or rounding has outgrown r."""
    steps: Array


def minres(task: Task, s: Progress) -> Pass:
    """Run MINRES from x and its residual."""
    xp = array_namespace(s.x)

    def going(i: Iterate) -> Array:
        # aim a little below the tolerance, so that the true residual rarely misses it
        unsolved = xp.abs(i.phi) > 0.5 * task.rtol
        on: Array = s.going & i.sound & ~i.stuck & unsolved & (i.steps < task.max_iter)
        return on

    def step(i: Iterate) -> Iterate:
        return _step(task, i, i.steps == s.steps)

    phi = norm(s.r)
    zero, one, null = 0.0 * phi, full(phi, 1.0), xp.zeros_like(s.x)
    no = xp.zeros_like(s.going)
    v = s.r / xp.where(phi > 0, phi, one)
    first = Iterate(
        null, v, null, null, null, zero, one, zero, one, zero, phi, one, zero, null, one, phi, ~no, no, s.steps
    )
    last = task.iterate(step, going, first)
    # a system without a solution ends with a huge x along the null space, and hardly less a residual
    drift = 4 * task.eps * last.scale * dot(last.dx, last.dx) ** 0.5
    back = last.stuck & (xp.abs(last.phi) + drift > 0.5 * last.level)
    x = s.x + xp.where(back, last.best, last.dx) / last.unit
    singular = last.stuck & (last.flat <= 8 * task.eps**0.5 * last.scale)
    return Pass(x, last.steps, s.products + last.steps - s.steps, singular, last.sound, last.unit * last.scale)


def _step(task: Task, i: Iterate, is_first: Array) -> Iterate:
    """Take a step of Lanczos, rotate its column of the tridiagonal matrix into R, and move along the new direction."""
    xp = array_namespace(i.v)
    Av = task.A(i.v)
    unit = xp.where(is_first, nonzero_max_abs(Av), i.unit)
    u = Av / unit - i.beta * i.v_old
    alpha = dot(i.v, u)
    u = u - alpha * i.v
    beta = dot(u, u) ** 0.5
    one = full(beta, 1.0)
    scale = (alpha * alpha + beta * beta + i.beta * i.beta) ** 0.5
    scale = xp.where(scale > i.scale, scale, i.scale)
    rest = i.c_old * i.beta
    r1, r2 = i.s_old * i.beta, i.c * rest + i.s * alpha
    g = i.c * alpha - i.s * rest
    r3 = (g * g + beta * beta) ** 0.5
    flat = (g * g + (i.c * beta) ** 2) ** 0.5  # ||A r|| / ||r|| before this step
    better = is_first | (flat < i.flat)
    best, flat = xp.where(better, i.dx, i.best), xp.where(better, flat, i.flat)
    level = xp.where(better, xp.abs(i.phi), i.level)
    sound = xp.isfinite(r3)
    tiny = 4 * task.eps * scale
    take = sound & (flat > tiny) & (r3 > tiny)
    pivot = xp.where(take, r3, one)
    c, sn = g / pivot, beta / pivot
    w = (i.v - r1 * i.w_old - r2 * i.w) / pivot
    dx = xp.where(take, i.dx + (c * i.phi) * w, i.dx)
    v = u / xp.where(beta > 0, beta, one)
    phi = xp.where(take, -sn * i.phi, i.phi)
    # rounding moves the true residual off the recurrence by about eps ||A|| ||dx||; a quarter of phi is too much
    lost = dot(dx, dx) ** 0.5 * tiny > xp.abs(phi)
    stuck = sound & (~take | (lost & (xp.abs(phi) > 0.5 * task.rtol)))
    return Iterate(
        dx, v, i.v, w, i.w, beta, c, sn, i.c, i.s, phi, unit, scale, best, flat, level, sound, stuck, i.steps + 1
    )
