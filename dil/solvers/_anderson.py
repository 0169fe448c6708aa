"""Anderson acceleration of a fixed-point iteration, each problem of a batch by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, dot, eps, eye, factor_dtype, full, nonzero_or_one, norm
from dil._base.errors import OptionError
from dil._base.scale import is_short
from dil._base.solution import Solution
from dil._base.typing import Array, DType, Tree
from dil._frameworks.loops import Loops
from dil._frameworks.protocol import Backend
from dil.solvers._finish import finish
from dil.solvers._progress import check_watched, iterate_watched
from dil.solvers._start import check_positive, start_equation, tolerance, zeros_like_count
from dil.solvers._verify import solved_or_rounded

EXPLODED = 10.0
"""A residual this many times the least one so far sends its problem back to a plain step."""
FAR = 100.0
"""A mixed step this many times as long as a plain one must halve the residual."""


@dataclass(frozen=True)
class Anderson:
    """Find u = step(u). Each iterate combines the last steps so that the norm of the combined residual is smallest.

    Parameters
    ----------
    memory : int
        How many differences of earlier iterates are mixed.
    mixing : float
        The share of the mixed residual that is added to the mixed iterate, in (0, 1].
    regularisation : float
        The relative shift of the normal matrix of the least squares. This number times the mean diagonal entry is
        added to the diagonal. It is never below the rounding of the matrix.
    rtol : float, optional
        A problem is solved when each entry of |step(u) - u| is at most rtol |u|, or at most 4 eps |u - start|. The
        default rtol is eps ** 0.75: 1.8e-12 in float64, 6.4e-6 in float32.
    max_iter : int
        The largest number of evaluations of the step after the first.
    history : bool
        Whether `extra["history"]` holds the residual after every step, (max_iter, *batch); NaN for steps not taken.
    progress : bool
        Whether to draw a progress bar if the run takes more than a second. Needs rich.

    Notes
    -----
    For an affine step the method is equivalent to GMRES (Walker and Ni 2011, Theorem 2.2). A problem returns to its
    last iterate, clears its memory and takes the plain step u + mixing (step(u) - u) in two cases. (a) The residual is
    not finite, or is more than ten times its least value so far. (b) The step is more than a hundred times as long as
    the plain one and does not halve the residual.

    Source: Walker and Ni 2011, Algorithm AA. The least squares of eq. 2.2 are solved by their normal equations.

    Raises
    ------
    OptionError
        If an option is out of range, or there is no start.

    Examples
    --------
    >>> import numpy as np, dil
    >>> sol = dil.solvers.Anderson()(lambda u, b: 0.99 * np.cos(u) + b, np.zeros(2), np.asarray([0.0, 1.0]))
    >>> np.max(np.abs(0.99 * np.cos(sol.value) + np.asarray([0.0, 1.0]) - sol.value)) < 1e-11
    np.True_
    """

    memory: int = 5
    mixing: float = 1.0
    regularisation: float = 1e-10
    rtol: float | None = None
    max_iter: int = 1000
    history: bool = False
    progress: bool = False

    _takes_batch = True
    """Whether it solves a batch by calls of the score alone."""
    _array_code = True
    """Whether the solver is array code alone, which a framework may compile."""

    def __post_init__(self) -> None:
        optional = {"rtol": self.rtol, "regularisation": self.regularisation or None}
        check_positive(optional=optional, max_iter=self.max_iter, memory=self.memory, mixing=self.mixing)
        if self.mixing > 1:
            message = f"mixing={self.mixing!r}; expected a number in (0, 1], the part of the residual that is added"
            raise OptionError(message)
        check_watched(self)

    def __call__(self, fun: Callable[..., Tree], init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Iterate fun from init; the value has the structure of init."""
        started = start_equation(self, fun, init, args, kwargs, "step")
        problem, start, arrays = started
        backend, xp, rtol = problem.backend, array_namespace(start), tolerance(start, self.rtol, 0.75)
        loops, dtype, slack = backend.loops, factor_dtype(start), 2 * (rtol + 4 * eps(xp, start.dtype))

        def move(u: Array) -> Array:
            image: Array = backend.constant(problem.image(u, *arrays))
            return image - u

        def in_units(x: Array) -> Array:
            return as_dtype(x, dtype) / unit

        # squares of tiny or huge residuals would under- or overflow
        first_move = move(start)
        unit = nonzero_or_one(norm(as_dtype(first_move, dtype)))
        reach = norm(in_units(start))

        def step(s: Iterate) -> Iterate:
            u = s.u + as_dtype(self._mixed(s, backend), start.dtype)
            moved = move(u)
            f = in_units(moved)
            size, way = length(f), length(in_units(u - s.u))
            worse = (size > EXPLODED * s.least) | ((way > FAR * s.size) & (size > 0.5 * s.size))
            taken = s.going & xp.isfinite(size) & ~(s.mixed & worse)
            restart = s.going & ~taken & s.mixed  # clear the memory, and take a plain step next
            every = loops.number(xp.all(taken)) is True

            def kept(new: Array, old: Array | float) -> Array:
                return new if every else xp.where(taken, new, old)

            path = kept(s.path + way, s.path)
            # no entry of f can be short unless f is: |u| is at most the start and the way
            close = taken & (size <= slack * (reach + path))
            solved = loops.run_if(xp.any(close), lambda close: close & is_short(moved, u, start, rtol), close)
            dg, df = as_dtype(u - s.u + self.mixing * (moved - s.moved), dtype), f - s.f
            if not every:  # what is not finite must not stay
                dg, df = (xp.where(taken, x, full(x, 0.0)) for x in (dg, df))
            steps = s.steps + xp.astype(s.going, s.steps.dtype)
            return Iterate(
                kept(u, s.u),
                kept(moved, s.moved),
                kept(f, s.f),
                remembered(s.memory, dg, df, None if every else restart, loops),
                kept(size, s.size),
                kept(xp.where(size < s.least, size, s.least), s.least),
                path,
                taken,
                steps,
                ((taken & (way > 0)) | restart) & ~solved & (steps < self.max_iter),
                s.solved | solved,
                s.broken | (s.going & ~taken & ~s.mixed),
            )

        f, zero = in_units(first_move), zeros_like_count(start)
        size = length(f)
        finite = xp.isfinite(size) & xp.isfinite(norm(first_move))
        solved = finite & is_short(first_move, start, start, rtol)
        memory = nothing(f, self.memory)
        first = Iterate(
            start, first_move, f, memory, size, size, 0.0 * size, zero > 0, zero, finite & ~solved, solved, ~finite
        )
        last, extra = iterate_watched(
            self, backend, step, first, max_iter=self.max_iter, residual=lambda s: as_dtype(s.size, start.dtype)
        )
        return finish(
            problem.space,
            last.u,
            last.steps,
            as_dtype(last.size, start.dtype),
            max_iter=self.max_iter,
            solved=solved_or_rounded(started, last.u, last.solved, ~last.broken),
            broken=last.broken,
            extra=extra,
        )

    def _mixed(self, s: Iterate, backend: Backend) -> Array:
        """Return mixing (step(u) - u) - dG gamma, where gamma solves dF gamma = f in the least-squares sense."""
        xp, (dG, dF, gram, *_) = array_namespace(s.f), s.memory
        right = xp.matmul(dF, s.f[..., None])[..., 0]
        gamma = least_squares(gram, right, self.regularisation, backend.dense.cholesky_solve)[..., None, :]
        return self.mixing * s.moved - xp.matmul(gamma, dG)[..., 0, :]  # type: ignore[no-any-return]


class Memory(NamedTuple):
    """The last differences."""

    dG: Array
    """Differences of successive u + mixing (step(u) - u), (*batch, m, n): zero where a step is constant."""
    dF: Array
    """Differences of successive f."""
    gram: Array
    """The inner products of the rows of dF, (*batch, m, m). They are zero where a row counts no more, or not yet."""
    place: Any
    """The row that is the oldest one."""
    places: Array
    """Row i is true at the place i, (m, m)."""


class Iterate(NamedTuple):
    """One step; u, moved and f: (*batch, n), the rest but the memory: (*batch, 1)."""

    u: Array
    moved: Array
    """step(u) - u."""
    f: Array
    """step(u) - u in units of the first one, as the lengths that follow."""
    memory: Memory
    size: Array
    """The norm of f."""
    least: Array
    """The least norm so far."""
    path: Array
    """The sum of the lengths of the steps."""
    mixed: Array
    """Whether the next step mixes. A plain step is always kept."""
    steps: Array
    going: Array
    solved: Array
    broken: Array


def as_dtype(x: Array, dtype: DType) -> Array:
    """Return x in a dtype, itself if it has it."""
    return x if x.dtype == dtype else array_namespace(x).astype(x, dtype)


def length(x: Array) -> Array:
    """Return the norm of each problem, (*batch, 1), of a vector whose squares neither underflow nor overflow."""
    return array_namespace(x).sqrt(dot(x, x))  # type: ignore[no-any-return]


def nothing(f: Array, count: int) -> Memory:
    """Return an empty memory for `count` differences of vectors like f."""
    batch = f.shape[:-1]
    dG, dF = (array_namespace(f).stack([full(f, 0.0)] * count, axis=-2) for _ in range(2))
    return Memory(dG, dF, full(f, 0.0, shape=(*batch, count, count)), 0, eye(count, f) == 1)


def remembered(memory: Memory, dg: Array, df: Array, forget: Array | None, loops: Loops) -> Memory:
    """Replace the oldest difference by a new one. The problems in `forget`, (*batch, 1), lose all of theirs."""
    xp, count = array_namespace(df), memory.gram.shape[-1]
    dG, dF = (loops.set_row(rows, memory.place, row) for rows, row in zip(memory[:2], (dg, df), strict=True))
    gram, known = memory.gram, xp.linalg.diagonal(memory.gram) > 0
    if forget is not None:
        known = known & ~forget
        gram = xp.where(known[..., None, :], gram, full(gram, 0.0))
    here = memory.places[memory.place, :]
    products = xp.matmul(dF, df[..., None])
    products = xp.where((known | here)[..., None], products, full(products, 0.0))
    gram = xp.where(here, products, xp.where(here[:, None], products.mT, gram))
    return Memory(dG, dF, gram, (memory.place + 1) % count, memory.places)


def least_squares(gram: Array, right: Array, regularisation: float, solve: Callable[[Array, Array], Array]) -> Array:
    """Return gamma, (*batch, m), that minimises ||sum_i gamma_i row_i - f||; gram: <row_i, row_j>, right: <row_i, f>.

    The rows are scaled to norm one first, so that no row is lost by its size. The trace of the normal matrix is then
    m, and the regularisation is relative to one. Rows of zeros, which store nothing yet, get gamma = 0. `solve` takes
    positive definite matrices.
    """
    xp, count = array_namespace(gram), gram.shape[-1]
    squares = xp.linalg.diagonal(gram)
    absent = xp.astype(squares == 0, gram.dtype)
    scale = (1.0 - absent) / xp.sqrt(squares + absent)
    # a value below the rounding of the matrix could let the solve meet a pivot of zero
    ridge = max(regularisation, 4 * count * eps(xp, gram.dtype))
    shift = (absent + ridge)[..., None] * eye(count, gram)
    matrix = gram * scale[..., :, None] * scale[..., None, :] + shift
    gamma: Array = solve(matrix, (right * scale)[..., None])[..., 0] * scale
    return gamma
