"""Induced dimension reduction, IDR(s), for (A + damping I) x = b with any square A, by one product per step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from dil._base.arrays import full, logical_not, select
from dil._base.errors import OptionError
from dil._base.operator import Operator, shifted
from dil._base.options import check_linear_options, is_integer
from dil._base.scalars import Scalar, Scalars, divided, either, in_unit, is_finite, sqrt
from dil._base.solution import Solution
from dil._base.typing import Array, Loop, Matvec
from dil._frameworks.iteration import choose, repeat
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import standard_normal
from dil.linear._lower_triangle import Components, Triangle, combined, components, entry, first_triangle, moved
from dil.linear._restarts import Pass, Progress, Task, restarted
from dil.linear._right_hand_side import backend_of_system
from dil.linear._rotations import rows_like
from dil.linear._tolerance import Tolerance

COSINE = 0.7
"""The least cosine between r and A r at which a shortening step has its optimal length; below it, it is longer."""


@dataclass(frozen=True)
class IDR:
    """Induced dimension reduction, for matrices that need not be symmetric, in short recurrences.

    Parameters
    ----------
    s : int
        The number of shadow vectors. The solver keeps three vectors for each. More of them take fewer products.
    damping : float
        The shift in (A + damping I) x = b, in the units of A.
    rtol : float, optional
        A problem is solved when ||b - A x|| <= rtol ||b||. By default eps ** 0.75 of the dtype: 1.8e-12 in float64,
        6.4e-6 in float32.
    max_iter : int, optional
        The largest number of iterations for each problem, each with one product. The default is max(100, 10 n).

    Notes
    -----
    1. With exact numbers IDR(s) ends after n + n / s products, where BiCGSTAB, which is close to IDR(1), needs 2 n. On
       matrices that take BiCGSTAB many steps it takes fewer products, and it loses nothing to restarts as `GMRES` does:
       see `benchmarks/nonsymmetric.py`.
    2. Each cycle of s steps makes the residual orthogonal to the shadow vectors, one after the other. A last step
       shortens the residual. Its length has a lower bound, since A r can be nearly orthogonal to r.
    3. The residuals do not decrease monotonically. A breakdown ends a pass, and the next one starts from the x of least
       true residual so far. After three passes in a row without gain the problem ends STAGNATED. A direction u with
       A u = 0 ends a pass too. If no later pass solves the problem, it ends SINGULAR. `extra["products"]` counts
       products with A.

    Sources: Sonneveld and van Gijzen 2009; van Gijzen and Sonneveld 2011, the biorthogonal variant, with the
    coefficients of a step found at once; Sleijpen and van der Vorst 1995 (the length in note 2).

    Raises
    ------
    OptionError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np, dil
    >>> A = np.asarray([[1.0, 2.0], [-3.0, 1.0]])
    >>> x = dil.linear.IDR()(lambda p: A @ p, np.asarray([5.0, -1.0]))
    >>> np.allclose(x.value, [1.0, 2.0]), int(x.iterations)
    (True, 2)
    """

    s: int = 4
    damping: float = 0.0
    rtol: float | None = None
    max_iter: int | None = None

    _takes_many = True
    """Whether it solves for many right-hand sides, (k, *batch, n), of an operator with `one`."""
    _takes_tolerance = True
    """Whether its call takes a tolerance `rtol`, for each problem or for all, in the place of its option."""

    def __post_init__(self) -> None:
        check_linear_options(self)
        if not is_integer(self.s, 1):
            message = f"s={self.s!r}; expected at least 1, the number of shadow vectors"
            raise OptionError(message)

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
        backend = backend_of_system(b, "dil.linear.IDR", x0)
        recurrence = partial(idr, P=shadow_vectors(backend, b, self.s))
        return restarted(recurrence, self, shifted(A, self.damping), b, loop=loop, x0=x0, patience=3, rtol=rtol)


def shadow_vectors(backend: Backend, b: Array, s: int) -> Array:
    """Return the shadow vectors as rows, (s, n), normal and of norm about one, the same in every run. b: (*batch, n).

    Signs would be cheaper, but a matrix and a right-hand side of few integers can be exactly orthogonal to them.
    """
    n = b.shape[-1]
    rows = max(1, min(s, n))
    found: Array = standard_normal(backend, full(b, 0.0, shape=(n,)), rows, 5) / max(n, 1) ** 0.5
    return found


class Given(NamedTuple):
    """What a pass holds fixed."""

    P: Array
    """The shadow vectors, (s, n)."""
    goal: Scalar
    """<r, r> at which the pass ends."""
    first_step: Scalar
    """The number of steps before the pass."""


class Iterate(NamedTuple):
    """The state, in units in which A is of order one. Vectors: (*batch, n)."""

    dx: Array
    """x minus its start, times the unit of A."""
    r: Array
    f: Components
    """The components of r along the shadow vectors."""
    U: Array
    """The directions of the last s steps, (*batch, s + 1, n). The last row is never used."""
    G: Array
    """The images A U. They have no components along the shadow vectors before their own."""
    L: Triangle
    """The components of the images along the shadow vectors."""
    omega: Scalar
    """The length of the last shortening step."""
    rr: Scalar
    best_dx: Array
    """The dx of least <r, r> so far."""
    least: Scalar
    """<r, r> at best_dx."""
    unit: Scalar
    """The unit of A."""
    scale: Scalar
    """The largest ||A u|| / ||u|| so far: a lower bound of the norm of A."""
    finite: Scalar
    singular: Scalar
    going: Scalar
    k: Any
    """The index of the step in its cycle, the same for all problems: an int, or an array of shape () in a trace."""
    steps: Scalar


def idr(task: Task, s: Progress, *, P: Array) -> Pass:
    """Run IDR(s) from x and its residual. P: (s, n)."""
    size = task.scalars.norm(s.r)
    nonzero = select(size > 0, size, 1.0)
    given = Given(P, (0.5 * task.rtol) ** 2 / nonzero / nonzero, s.steps)
    first = _first(task, s, s.r / nonzero, P)
    first = first._replace(going=s.active & (first.rr > given.goal) & (s.steps < task.max_iter))
    loops, step = task.loops, partial(_step, task, given)
    last = repeat(step, lambda i: i.going, first, loops=loops, steps_per_read=loops.steps_per_read(s.x))
    x = s.x + last.best_dx * (nonzero / last.unit)
    products = s.products + last.steps - s.steps
    return Pass(x, last.steps, products, last.singular, last.finite, last.unit * last.scale)


def _first(task: Task, s: Progress, r: Array, P: Array) -> Iterate:
    """Return the state before the first step of a pass, which starts from r of norm one."""
    rows, rr = P.shape[0], task.scalars.dot(r, r)
    none, one, zero, no = 0.0 * r, 0.0 * rr + 1.0, 0.0 * rr, s.active & False
    U, G = rows_like(r, rows + 1, r.shape[-1]), rows_like(r, rows + 1, r.shape[-1])
    f = components(task.scalars, r, P)
    L, active = first_triangle(f, r), s.active
    return Iterate(none, r, f, U, G, L, one, rr, none, rr, one, zero, active, no, active, 0, s.steps)


class Direction(NamedTuple):
    """The direction of a step."""

    u: Array
    g: Array
    """The image A u, in the unit of A."""
    h: Components
    """The components of g along the shadow vectors."""
    gg: Scalar
    gr: Scalar
    unit: Scalar
    scale: Scalar
    null: Scalar
    """Whether A u = 0."""


def _direction(task: Task, given: Given, i: Iterate) -> Direction:
    """Return the direction of the next step: r itself if the step shortens."""
    scalars, dot, rows, k = task.scalars, task.scalars.dot, given.P.shape[0], i.k
    shortens = k == rows
    c, _ = i.L.eliminated(i.f, rows)  # zero for the shadow vectors to which r is orthogonal
    u = combined(c, i.U) + select(shortens, 1.0, i.omega) * (i.r - combined(c, i.G))
    Au = task.A(u)
    unit = either(i.steps == given.first_step, lambda: scalars.unit(Au), lambda: i.unit)
    g = in_unit(Au, unit)
    uu, gg, gr = dot(u, u), dot(g, g), dot(g, i.r)
    scale = either(gg > i.scale * i.scale * uu, lambda: sqrt(divided(gg, uu)), lambda: i.scale)
    null = gg <= (4 * task.eps * scale) ** 2 * uu
    a, h = i.L.eliminated(components(scalars, g, given.P, i.f), select(shortens, 0, k))
    return Direction(u - combined(a, i.U), g - combined(a, i.G), h, gg, gr, unit, scale, null)


def _step(task: Task, given: Given, i: Iterate) -> Iterate:
    """Make r orthogonal to the next shadow vector, or shorten it if it is orthogonal to all."""
    scalars, k, set_row = task.scalars, i.k, task.loops.set_row
    shortens, d = k == given.P.shape[0], _direction(task, given, i)
    own = entry(scalars, d.h, k)
    blocked = d.null | (logical_not(shortens) & (own * own <= (4 * task.eps) ** 2 * d.gg))
    omega = _shortening_length(d.gr, i.rr, select(d.null, 1.0, d.gg))
    length = select(shortens, omega, entry(scalars, i.f, k) / select(blocked | shortens, 1.0, own))
    length = select(blocked, 0.0, length)
    dx, r = i.dx + length * d.u, i.r - length * d.g
    rr, steps = scalars.dot(r, r), i.steps + 1
    finite = is_finite(rr)
    improved = i.going & finite & (rr < i.least)
    # a residual that has grown this much leaves rounding errors that no later step removes
    going = i.going & finite & logical_not(blocked) & (rr * task.eps <= i.least)
    U, G = (i.U, i.G) if shortens is True else (set_row(i.U, k, d.u), set_row(i.G, k, d.g))
    return Iterate(
        dx,
        r,
        _next_components(scalars, given.P, i, d.h, r, length),
        U,
        G,
        i.L.with_image(k, d.h, going & logical_not(shortens)),
        select(shortens, omega, i.omega),
        rr,
        choose(improved, dx, i.best_dx, task.loops),
        select(improved, rr, i.least),
        select(i.going, d.unit, i.unit),
        select(i.going, d.scale, i.scale),
        select(i.going, finite, i.finite),
        select(i.going, d.null, i.singular),
        going & (rr > given.goal) & (steps < task.max_iter),
        select(shortens, 0, k + 1),
        select(i.going, steps, i.steps),
    )


def _next_components(scalars: Scalars, P: Array, i: Iterate, h: Components, r: Array, length: Scalar) -> Components:
    """Return the components of the new r. After a cycle they come from r itself, so that rounding does not build up."""
    shortens = i.k == P.shape[0]
    if isinstance(shortens, bool):
        return components(scalars, r, P, i.f) if shortens else moved(i.f, h, length, i.k)
    return select(shortens, components(scalars, r, P), moved(i.f, h, length, i.k))


def _shortening_length(gr: Scalar, rr: Scalar, gg: Scalar) -> Scalar:
    """Return the length along g that makes r shortest, or a longer one if g is nearly orthogonal to r."""
    least, omega = COSINE * sqrt(divided(rr, gg)), divided(gr, gg)
    return select(abs(omega) < least, select(omega < 0, -least, least), omega)
