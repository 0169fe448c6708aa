"""GMRES with restarts for (A + damping I) x = b with any square A, by one product per iteration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from dil._base.arrays import array_namespace, full, logical_not, select
from dil._base.errors import OptionError
from dil._base.operator import Operator, shifted
from dil._base.options import check_linear_options, is_integer
from dil._base.scalars import Scalar, either, greater, in_unit, is_finite, sqrt
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Loop, Matvec
from dil._frameworks.iteration import repeat
from dil._frameworks.protocol import Backend
from dil.linear._random_norm import with_rounding
from dil.linear._restarts import Pass, Progress, Task, restarted
from dil.linear._right_hand_side import backend_of_system
from dil.linear._rotations import ArrayRotations, NumberRotations, array_rotations, number_rotations, rows_like
from dil.linear._tolerance import Tolerance
from dil.linear.preconditioners._preconditioner import Preconditioner, check_preconditioner, prepared


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
    preconditioner : callable or Preconditioner, optional
        A linear map M near A^-1, r -> z, as `dil.linear.SparseILU()`. The system A M y = b is solved, and x = M y: the
        residual, which decides, is that of x (Saad 2003, section 9.3.2). A start x0 is then not used.

    Notes
    -----
    1. Each cycle starts from the true residual. If a cycle lowers the residual by less than a thousandth, the problem
       ends STAGNATED. A larger `restart` may then help.
    2. A singular system that has a solution may be solved. If no solution is found and the least-squares problem of a
       cycle is singular to working precision, the problem ends SINGULAR, or PRECONDITIONER where the preconditioner
       maps the residual to zero.
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
    preconditioner: Preconditioner | Matvec | None = None

    _takes_tolerance = True
    """Whether its call takes a tolerance `rtol`, for each problem or for all, in the place of its option."""

    def __post_init__(self) -> None:
        check_linear_options(self)
        if not is_integer(self.restart, 1):
            message = f"restart={self.restart!r}; expected at least 1, the steps between restarts"
            raise OptionError(message)
        check_preconditioner(self.preconditioner)

    @property
    def _takes_many(self) -> bool:
        """Whether it solves for many right-hand sides, (k, *batch, n), of an operator with `one`."""
        return self.preconditioner is None

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
        recurrence, A = partial(gmres, restart=self.restart), shifted(A, self.damping)
        if self.preconditioner is None:
            return restarted(recurrence, self, A, b, loop=loop, x0=x0, gain=0.999, rtol=rtol)
        backend = backend_of_system(b, "dil.linear.GMRES", x0)
        loop = backend.loops.while_loop if loop is None else loop
        M = prepared(self.preconditioner, A, b, loop)
        system = Operator(lambda y: A(M(y)))
        found = restarted(recurrence, self, system, b, loop=loop, x0=None, gain=0.999, rtol=rtol)
        extra = found.extra or {}
        x, xp = M(found.value), array_namespace(b)
        x = xp.where(xp.all(xp.isfinite(x), axis=-1, keepdims=True), x, full(x, 0.0))  # as a solve that has not begun
        found = found._replace(value=x, extra={**extra, "products": extra["products"] + M.products})
        return _with_preconditioner_blamed(with_rounding(found, A, b, backend), A, M, b, backend)


def _with_preconditioner_blamed(found: Solution, A: Matvec, M: Matvec, b: Array, backend: Backend) -> Solution:
    """Return the solution with PRECONDITIONER where M r is zero for the residual r that is left.

    A M is then singular whatever A is. The look costs a product, and is taken only where a problem failed.
    """
    xp, status = array_namespace(b), found.status
    assert status is not None
    failed = (status == int(Status.SINGULAR)) | (status == int(Status.STAGNATED))

    def look(status: Array) -> Array:
        zero = xp.all(M(b - A(found.value)) == 0, axis=-1)
        return xp.where(failed & zero, full(status, int(Status.PRECONDITIONER)), status)  # type: ignore[no-any-return]

    return found._replace(status=backend.loops.run_if(xp.any(failed), look, status))


Rotations: TypeAlias = NumberRotations | ArrayRotations


class Iterate(NamedTuple):
    """The state; m = min(restart, n)."""

    V: Array
    """The orthonormal basis as rows, (*batch, m + 1, n). Rows that are not computed yet are zero."""
    rotations: Rotations
    """The least-squares problem, in units in which A is of order one."""
    v: Array
    """The newest row of the basis, (*batch, n)."""
    residual: Scalar
    """The norm of the residual, relative to that at the start of the cycle."""
    unit: Scalar
    """The unit of A."""
    norm_A: Scalar
    """The largest ||A v|| so far, over all cycles: a lower bound of the norm of A."""
    finite: Scalar
    stuck: Scalar
    """Whether the least-squares problem is singular."""
    going: Scalar
    j: Any
    """The index of the step, the same for all problems: an int, or an array of shape () in a trace."""
    steps: Scalar


def gmres(task: Task, s: Progress, *, restart: int) -> Pass:
    """Run one cycle of GMRES from x and its residual."""
    m = min(restart, s.x.shape[-1], task.max_iter)
    norm_r = task.scalars.norm(s.r)
    nonzero = select(norm_r > 0, norm_r, 1.0)
    goal = 0.5 * task.rtol / nonzero

    def step(i: Iterate) -> Iterate:
        new = _step(task, i)
        return new._replace(going=new.going & (new.residual > goal) & (new.steps < task.max_iter) & (new.j < m))

    steps_per_read = task.loops.steps_per_read(s.x)
    # the last read may come some steps too late
    first = _first(task, s, s.r / nonzero, norm_r, m + steps_per_read - 1)
    first = first._replace(going=s.active & (first.residual > goal) & (s.steps < task.max_iter))
    last = repeat(step, lambda i: i.going, first, loops=task.loops, steps_per_read=steps_per_read)
    x = s.x + last.rotations.combined(last.V) * (norm_r / last.unit)
    return Pass(x, last.steps, s.products + last.steps - s.steps, last.stuck, last.finite, last.norm_A)


def _first(task: Task, s: Progress, v: Array, norm_r: Scalar, rows: int) -> Iterate:
    """Return the state before the first step of a cycle, which starts at v = r / ||r||."""
    one, no = 0.0 * norm_r + 1.0, s.active & False
    V = task.loops.set_row(rows_like(v, rows + 1, v.shape[-1]), 0, v)
    rotations = number_rotations() if isinstance(norm_r, float) else array_rotations(v, rows)
    return Iterate(V, rotations, v, one, one, s.norm_A, s.active, no, s.active, 0, s.steps)


def _step(task: Task, i: Iterate) -> Iterate:
    """Take an Arnoldi step, and rotate the new column of the Hessenberg matrix."""
    scalars, set_row, j = task.scalars, task.loops.set_row, i.j
    Av = task.A(i.v)
    unit = either(j == 0, lambda: scalars.unit(Av), lambda: i.unit)
    w = in_unit(Av, unit)
    norm_A = greater(unit * sqrt(scalars.dot(w, w)), i.norm_A)
    tiny = 16 * task.eps * norm_A / unit
    # where j is known, the rows that are still zero cost nothing
    V = i.V[..., : j + 1, :] if isinstance(j, int) else i.V
    h, w = _orthogonalise(V, w)
    correction, w = _orthogonalise(V, w)
    column, a = i.rotations.rotated(h + correction, scalars)
    beta = sqrt(scalars.dot(w, w))
    r = sqrt(a * a + beta * beta)
    finite = is_finite(r)
    stuck = finite & (r <= tiny)
    accepted = i.going & finite & logical_not(stuck)
    pivot = select(accepted, r, 1.0)
    c, sn = a / pivot, beta / pivot
    v = either(accepted & (beta > tiny), lambda: w / select(beta > tiny, beta, 1.0), lambda: 0.0 * w)
    return Iterate(
        set_row(i.V, j + 1, v),
        i.rotations.extended(column, beta, c, sn, accepted, j, set_row),
        v,
        select(i.going, sn * i.residual, i.residual),
        select(i.going, unit, i.unit),
        select(i.going, norm_A, i.norm_A),
        select(i.going, finite, i.finite),
        select(i.going, stuck, i.stuck),
        accepted,
        j + 1,
        select(i.going, i.steps + 1, i.steps),
    )


def _orthogonalise(V: Array, w: Array) -> tuple[Array, Array]:
    """Return the components of w along the rows of V, and the remainder of w."""
    if w.ndim == 1:
        h = V @ w
        return h, w - h @ V
    xp = array_namespace(w)
    h = xp.matmul(V, w[..., None])
    return h[..., 0], w - xp.matmul(V.mT, h)[..., 0]
