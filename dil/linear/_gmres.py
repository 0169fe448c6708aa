"""GMRES with restarts for (A + damping I) x = b with any square A, by one product per iteration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, dot, eye, factor_dtype, full, nonzero_max_abs, norm
from dil._base.errors import OptionError
from dil._base.operator import Operator, shifted
from dil._base.options import check_linear_options, is_integer
from dil._base.solution import Solution
from dil._base.typing import Array, Loop, Matvec
from dil.linear._restarts import Pass, Progress, Task, restarted


@dataclass(frozen=True)
class GMRES:
    """Generalised minimal residuals with restarts, for matrices that need not be symmetric, without their transpose.

    Parameters
    ----------
    restart : int
        The number of steps between restarts. The solver keeps min(restart, n) + 1 vectors.
    damping : float
        The shift in (A + damping I) x = b, in the units of A.
    rtol : float, optional
        A problem is solved when ||b - A x|| <= rtol ||b||. By default eps ** 0.75 of the dtype: 1.8e-12 in float64,
        6.4e-6 in float32.
    max_iter : int, optional
        The largest number of iterations for each problem, over all restarts. The default is max(100, 10 n).

    Notes
    -----
    1. Each cycle starts from the true residual. If a cycle lowers the residual by less than a thousandth, the problem
       ends STAGNATED. A larger `restart` may then help.
    2. A singular system that has a solution may be solved. If no solution is found and the least-squares problem of a
       cycle is singular to working precision, the problem ends SINGULAR.
    3. Classical Gram-Schmidt, applied twice, makes the basis orthogonal. Each application costs two products with the
       matrix of the basis vectors, and none with A. The result is as accurate as Householder's for this purpose.
       `extra["products"]` counts products with A.

    Sources: Saad and Schultz 1986, Algorithm 4 (restarts) and section 3.2 (rotations); Giraud, Langou, Rozloznik and
    van den Eshof 2005 (twice is enough).

    Raises
    ------
    OptionError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np, dil
    >>> A = np.asarray([[1.0, 2.0], [-3.0, 1.0]])
    >>> x = dil.linear.GMRES()(lambda p: A @ p, np.asarray([5.0, -1.0]))
    >>> np.allclose(x.value, [1.0, 2.0]), int(x.iterations)
    (True, 2)
    """

    restart: int = 30
    damping: float = 0.0
    rtol: float | None = None
    max_iter: int | None = None

    _takes_many = True
    """Whether it solves for many right-hand sides, (k, *batch, n), of an operator with `one`."""

    def __post_init__(self) -> None:
        check_linear_options(self)
        if not is_integer(self.restart, 1):
            message = f"restart={self.restart!r}; expected at least 1, the steps between restarts"
            raise OptionError(message)

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None
    ) -> Solution:
        """Solve each problem of a batch; b, the start x0 and the value: (*batch, n), float; status: batch."""
        recurrence = partial(gmres, restart=self.restart)
        return restarted(recurrence, self, shifted(A, self.damping), b, loop=loop, x0=x0, gain=0.999)


class Iterate(NamedTuple):
    """The state, in units in which A is of order one; m = min(restart, n), scalars: (*batch, 1)."""

    V: Array
    """The orthonormal basis as rows, (*batch, m + 1, n). Rows that are not computed yet are zero."""
    R: Array
    """The triangular factor, (*batch, m, m). Columns that are not computed yet are those of the identity."""
    Q: Array
    """The product of the rotations, (*batch, m + 1, m + 1)."""
    v: Array
    """The newest row of the basis, (*batch, n)."""
    residual: Array
    """The norm of the residual, relative to that at the start of the cycle."""
    unit: Array
    scale: Array
    """The largest ||A v|| so far: a lower bound of the norm of A."""
    finite: Array
    stuck: Array
    """Whether the least-squares problem is singular."""
    j: Array
    """The index of the step, the same for all problems: shape ()."""
    steps: Array


def gmres(task: Task, s: Progress, *, restart: int) -> Pass:
    """Run one cycle of GMRES from x and its residual."""
    xp, n = array_namespace(s.x), s.x.shape[-1]
    m = min(restart, n, task.max_iter)
    norm_r = norm(s.r)
    goal = 0.5 * task.rtol / xp.where(norm_r > 0, norm_r, full(norm_r, 1.0))

    def active(i: Iterate) -> Array:
        iterating: Array = s.active & i.finite & ~i.stuck & (i.residual > goal) & (i.steps < task.max_iter) & (i.j < m)
        return iterating

    last = task.iterate(partial(_step, task), active, _first(s, norm_r, m))
    # g = Q e_1 ||r||; for the unused columns, R is the identity and g is zero
    # the step in which a problem became stuck added no column
    count = last.steps - s.steps - xp.astype(last.stuck, xp.int32)
    used = xp.reshape(_indices(norm_r, m), (1,) * (s.x.ndim - 1) + (m,)) < count
    usable = last.finite & s.active
    g = xp.where(used & usable, last.Q[..., :m, 0], xp.zeros_like(used, dtype=s.x.dtype))
    R = xp.where((used & usable)[..., None, :], last.R, eye(m, s.x))
    dtype = factor_dtype(g)
    y = xp.astype(xp.linalg.solve(xp.astype(R, dtype), xp.astype(g[..., None], dtype)), g.dtype)
    dx = xp.matmul(last.V[..., :m, :].mT, y)[..., 0] * (norm_r / last.unit)
    return Pass(
        s.x + dx, last.steps, s.products + last.steps - s.steps, last.stuck, last.finite, last.unit * last.scale
    )


def _indices(like: Array, count: int) -> Array:
    """Return 0, 1, ..., count - 1 on the device of another array."""
    xp = array_namespace(like)
    indices: Array = xp.arange(count, dtype=xp.int32, device=device(like))
    return indices


def _first(s: Progress, norm_r: Array, m: int) -> Iterate:
    """Return the state before the first step of a cycle."""
    xp, batch = array_namespace(s.x), s.x.shape[:-1]
    one = full(norm_r, 1.0)
    v = s.r / xp.where(norm_r > 0, norm_r, one)
    is_first_row = xp.reshape(_indices(norm_r, m + 1) == 0, (m + 1, 1))
    V = xp.where(is_first_row, v[..., None, :], xp.zeros_like(v)[..., None, :])
    Q = xp.broadcast_to(eye(m + 1, s.x), (*batch, m + 1, m + 1))
    R = xp.broadcast_to(eye(m, s.x), (*batch, m, m))
    no = xp.zeros_like(s.active)
    return Iterate(V, R, Q, v, one, one, 0.0 * norm_r, ~no, no, _indices(norm_r, 1)[0], s.steps)


def _step(task: Task, i: Iterate) -> Iterate:
    """Take an Arnoldi step, and rotate the new column of the Hessenberg matrix into R."""
    xp = array_namespace(i.v)
    Av = task.A(i.v)
    unit = xp.where(i.j == 0, nonzero_max_abs(Av), i.unit)
    w = Av / unit
    length = dot(w, w) ** 0.5
    scale = xp.where(length > i.scale, length, i.scale)
    tiny = 16 * task.eps * scale
    h, w = _orthogonalise(i.V, w)
    correction, w = _orthogonalise(i.V, w)
    h = h + correction  # (*batch, m + 1)
    beta = dot(w, w) ** 0.5
    one = full(beta, 1.0)
    v = w / xp.where(beta > tiny, beta, one)
    v = xp.where(beta > tiny, v, xp.zeros_like(v))

    index = _indices(beta, i.Q.shape[-1])
    row_j, row_next = (xp.astype(index == i.j + k, beta.dtype) for k in (0, 1))  # rows j and j + 1
    column = xp.matmul(i.Q, h[..., None])[..., 0]
    a = xp.sum(column * row_j, axis=-1, keepdims=True)
    r = (a * a + beta * beta) ** 0.5
    finite = xp.isfinite(r)
    stuck = finite & (r <= tiny)
    pivot = xp.where(finite & ~stuck, r, one)
    c, sn = a / pivot, beta / pivot
    column = column + row_j * (pivot - a)
    R = xp.where(_per_column(index[:-1] == i.j), column[..., :-1, None], i.R)
    Q_j, Q_next = (xp.sum(i.Q * part[:, None], axis=-2) for part in (row_j, row_next))
    rotated_row = row_j[:, None] * ((c - 1) * Q_j + sn * Q_next)[..., None, :]
    Q = i.Q + rotated_row + row_next[:, None] * ((c - 1) * Q_next - sn * Q_j)[..., None, :]
    residual = xp.abs(xp.sum(Q[..., 0] * row_next, axis=-1, keepdims=True))
    V = xp.where((index == i.j + 1)[:, None], v[..., None, :], i.V)
    return Iterate(
        V,
        R,
        Q,
        v,
        residual,
        unit,
        scale,
        finite,
        stuck,
        i.j + 1,
        i.steps + 1,
    )


def _per_column(columns: Array) -> Array:
    """Return a mask of columns with a row axis, so that it broadcasts over matrices."""
    return columns[None, :]


def _orthogonalise(V: Array, w: Array) -> tuple[Array, Array]:
    """Return the components of w along the rows of V, and the remainder of w."""
    xp = array_namespace(w)
    h = xp.matmul(V, w[..., None])
    return h[..., 0], w - xp.matmul(V.mT, h)[..., 0]
