"""GMRES with restarts for (A + damping I) x = b, A square and otherwise arbitrary, by one product an iteration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, dot, eye, full, nonzero_max_abs, norm
from dil._base.errors import OptionError
from dil._base.operator import Operator, shifted
from dil._base.options import check_linear_options, is_integer
from dil._base.solution import Solution
from dil._base.typing import Array, Loop, Matvec
from dil.linear._restarts import Pass, Progress, Task, restarted


@dataclass(frozen=True)
class GMRES:
    """Generalised minimal residuals, restarted: for matrices that are not symmetric, without their transpose.

    Parameters
    ----------
    restart : int
        Steps before the basis is dropped; min(restart, n) + 1 vectors are kept.
    damping : float
        Solves (A + damping I) x = b. It is absolute, in the units of A.
    rtol : float, optional
        A problem is solved when ||b - A x|| <= rtol ||b||. By default eps ** 0.75 of the dtype: 1.8e-12 in float64,
        6.4e-6 in float32.
    max_iter : int, optional
        Iterations at most, for each problem and over all restarts; by default max(100, 10 n).

    Notes
    -----
    1. Each cycle starts from the true residual. One that lowers it by less than a thousandth ends its problem as
       STAGNATED: a larger `restart` may help.
    2. A singular system that has a solution may be solved; where the least-squares problem of a cycle is singular to
       working precision and no solution is found, the status is SINGULAR.
    3. The basis is made orthogonal by classical Gram-Schmidt done twice, two products of matrices each time, as exact
       as Householder's for this purpose. `extra["products"]` counts products with A.

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

    def __post_init__(self) -> None:
        check_linear_options(self)
        if not is_integer(self.restart, 1):
            message = f"restart={self.restart!r}; expected at least 1, the steps between restarts"
            raise OptionError(message)

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None
    ) -> Solution:
        """Solve for each problem of a batch; b, x0 (a start) and the value: (*batch, n), float."""
        recurrence = partial(gmres, restart=self.restart)
        return restarted(recurrence, self, shifted(A, self.damping), b, loop=loop, x0=x0, gain=0.999)


class Iterate(NamedTuple):
    """One step, in units in which A is of the order of one; m = min(restart, n), scalars (*batch, 1)."""

    V: Array
    """The basis, orthonormal rows; zero where there is none yet. (*batch, m + 1, n)."""
    R: Array
    """The triangular factor, with a unit diagonal where there is none yet. (*batch, m, m)."""
    Q: Array
    """The product of the rotations. (*batch, m + 1, m + 1)."""
    v: Array
    """The newest row of the basis. (*batch, n)."""
    left: Array
    """What is left of the residual, of its norm at the start."""
    unit: Array
    scale: Array
    """The largest ||A v|| so far: at most the norm of A."""
    sound: Array
    stuck: Array
    """Whether the least-squares problem became singular."""
    j: Array
    """The index of the step, the same for all problems: shape ()."""
    steps: Array


def gmres(task: Task, s: Progress, *, restart: int) -> Pass:
    """Run one cycle of GMRES from x and its residual."""
    xp, n = array_namespace(s.x), s.x.shape[-1]
    m = min(restart, n, task.max_iter)
    size = norm(s.r)
    goal = 0.5 * task.rtol / xp.where(size > 0, size, full(size, 1.0))

    def going(i: Iterate) -> Array:
        on: Array = s.going & i.sound & ~i.stuck & (i.left > goal) & (i.steps < task.max_iter) & (i.j < m)
        return on

    last = task.iterate(partial(_step, task), going, _first(s, size, m))
    # g = Q e_1 ||r||; unused columns of R are those of the identity, with zeros on the right
    # the step in which a problem became stuck gave no column
    count = last.steps - s.steps - xp.astype(last.stuck, xp.int32)
    used = xp.reshape(_range(size, m), (1,) * (s.x.ndim - 1) + (m,)) < count
    ok = last.sound & s.going
    g = xp.where(used & ok, last.Q[..., :m, 0], xp.zeros_like(used, dtype=s.x.dtype))
    R = xp.where((used & ok)[..., None, :], last.R, eye(m, s.x))
    y = xp.linalg.solve(R, g[..., None])
    dx = xp.matmul(last.V[..., :m, :].mT, y)[..., 0] * (size / last.unit)
    return Pass(s.x + dx, last.steps, s.products + last.steps - s.steps, last.stuck, last.sound, last.unit * last.scale)


def _range(like: Array, count: int) -> Array:
    """Return 0, 1, ..., count - 1 beside another array."""
    xp = array_namespace(like)
    numbers: Array = xp.arange(count, dtype=xp.int32, device=device(like))
    return numbers


def _first(s: Progress, size: Array, m: int) -> Iterate:
    """Return the state before the first step of a cycle."""
    xp, batch = array_namespace(s.x), s.x.shape[:-1]
    one = full(size, 1.0)
    v = s.r / xp.where(size > 0, size, one)
    top = xp.reshape(_range(size, m + 1) == 0, (m + 1, 1))
    V = xp.where(top, v[..., None, :], xp.zeros_like(v)[..., None, :])
    Q = xp.broadcast_to(eye(m + 1, s.x), (*batch, m + 1, m + 1))
    R = xp.broadcast_to(eye(m, s.x), (*batch, m, m))
    no = xp.zeros_like(s.going)
    return Iterate(V, R, Q, v, one, one, 0.0 * size, ~no, no, _range(size, 1)[0], s.steps)


def _step(task: Task, i: Iterate) -> Iterate:
    """Take a step of Arnoldi, and rotate its column of the Hessenberg matrix into R."""
    xp = array_namespace(i.v)
    Av = task.A(i.v)
    unit = xp.where(i.j == 0, nonzero_max_abs(Av), i.unit)
    w = Av / unit
    length = dot(w, w) ** 0.5
    scale = xp.where(length > i.scale, length, i.scale)
    tiny = 16 * task.eps * scale
    h, w = _orthogonalise(i.V, w)
    more, w = _orthogonalise(i.V, w)
    h = h + more  # (*batch, m + 1)
    beta = dot(w, w) ** 0.5
    one = full(beta, 1.0)
    v = w / xp.where(beta > tiny, beta, one)
    v = xp.where(beta > tiny, v, xp.zeros_like(v))

    place = _range(beta, i.Q.shape[-1])
    here, below = (xp.astype(place == i.j + k, beta.dtype) for k in (0, 1))  # rows j and j + 1
    column = xp.matmul(i.Q, h[..., None])[..., 0]
    a = xp.sum(column * here, axis=-1, keepdims=True)
    r = (a * a + beta * beta) ** 0.5
    sound = xp.isfinite(r)
    stuck = sound & (r <= tiny)
    pivot = xp.where(sound & ~stuck, r, one)
    c, sn = a / pivot, beta / pivot
    column = column + here * (pivot - a)
    R = xp.where(_flag(place[:-1] == i.j), column[..., :-1, None], i.R)
    mine, other = (xp.sum(i.Q * part[:, None], axis=-2) for part in (here, below))
    turn = here[:, None] * ((c - 1) * mine + sn * other)[..., None, :]
    Q = i.Q + turn + below[:, None] * ((c - 1) * other - sn * mine)[..., None, :]
    left = xp.abs(xp.sum(Q[..., 0] * below, axis=-1, keepdims=True))
    V = xp.where((place == i.j + 1)[:, None], v[..., None, :], i.V)
    return Iterate(
        V,
        R,
        Q,
        v,
        left,
        unit,
        scale,
        sound,
        stuck,
        i.j + 1,
        i.steps + 1,
    )


def _flag(columns: Array) -> Array:
    """Return a mask of columns as one of matrices."""
    return columns[None, :]


def _orthogonalise(V: Array, w: Array) -> tuple[Array, Array]:
    """Return the parts of w along the rows of V, and what is left of w."""
    xp = array_namespace(w)
    h = xp.matmul(V, w[..., None])
    return h[..., 0], w - xp.matmul(V.mT, h)[..., 0]
