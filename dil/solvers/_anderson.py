"""Anderson acceleration of a fixed-point iteration, each problem of a batch by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, eps, eye, full, nonzero_or_one, norm
from dil._base.errors import OptionError
from dil._base.scale import is_short
from dil._base.solution import Solution
from dil._base.typing import Array, Tree
from dil._frameworks.iteration import frozen
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
        u = start
        backend, xp, rtol = problem.backend, array_namespace(u), tolerance(u, self.rtol, 0.75)

        def move(u: Array) -> Array:
            return backend.constant(problem.image(u, *arrays)) - u

        def near(u: Array, f: Array) -> Array:
            return is_short(f, u, start, rtol)

        def step(s: Iterate) -> Iterate:
            new = self._mix(s, backend.dense.cholesky_solve)
            f = move(new)
            size, before = norm(f), norm(s.f)
            finite = xp.all(xp.isfinite(f), axis=-1, keepdims=True)
            worse = (size > EXPLODED * s.least) | ((norm(new - s.u) > FAR * before) & (size > 0.5 * before))
            taken = finite & ~(s.mixed & worse)
            restart = ~taken & s.mixed  # clear the memory, and take a plain step next
            solved = taken & near(new, f)
            moved = xp.any(new != s.u, axis=-1, keepdims=True)
            return Iterate(
                xp.where(taken, new, s.u),
                xp.where(taken, f, s.f),
                push(s.du, new - s.u, taken, restart),
                push(s.df, f - s.f, taken, restart),
                xp.where(taken & (size < s.least), size, s.least),
                taken,
                s.steps + 1,
                ((taken & moved) | restart) & ~solved & (s.steps + 1 < self.max_iter),
                solved,
                ~taken & ~s.mixed,
            )

        f, zero = move(u), zeros_like_count(u)
        none = full(u, 0.0, shape=(*u.shape[:-1], self.memory, u.shape[-1]))
        finite = xp.isfinite(norm(f))
        solved = finite & near(u, f)
        first = Iterate(u, f, none, none, norm(f), zero > 0, zero, finite & ~solved, solved, ~finite)
        scale = nonzero_or_one(norm(f))

        def residual(s: Iterate) -> Array:
            return norm(s.f) / scale

        last, extra = iterate_watched(
            self, backend, frozen(step, u.ndim - 1), first, max_iter=self.max_iter, residual=residual
        )
        return finish(
            problem.space,
            last.u,
            last.steps,
            residual(last),
            max_iter=self.max_iter,
            solved=solved_or_rounded(started, last.u, last.solved, ~last.broken),
            broken=last.broken,
            extra=extra,
        )

    def _mix(self, s: Iterate, solve: Callable[[Array, Array], Array]) -> Array:
        """Return u + mixing f - (dU + mixing dF) gamma, where gamma solves dF gamma = f in the least-squares sense."""
        xp = array_namespace(s.u)
        gamma = least_squares(s.df, s.f, self.regularisation, solve)
        change = xp.sum((s.du + self.mixing * s.df) * gamma, axis=-2)
        return s.u + self.mixing * s.f - change  # type: ignore[no-any-return]


class Iterate(NamedTuple):
    """One step; u and f: (*batch, n), the memory: (*batch, m, n), the rest: (*batch, 1)."""

    u: Array
    f: Array
    """f = step(u) - u."""
    du: Array
    """Differences of successive iterates, oldest first; zero where none is stored yet."""
    df: Array
    """Differences of successive f."""
    least: Array
    """The least residual so far."""
    mixed: Array
    """Whether the next step mixes. A plain step is always kept."""
    steps: Array
    going: Array
    solved: Array
    broken: Array


def push(memory: Array, new: Array, kept: Array, forgotten: Array) -> Array:
    """Add a difference to a memory and drop the oldest, or clear the memory."""
    xp = array_namespace(new)
    pushed = xp.concat([memory[..., 1:, :], new[..., None, :]], axis=-2)
    pushed = xp.where(kept[..., None], pushed, memory)
    return xp.where(forgotten[..., None], full(memory, 0.0), pushed)  # type: ignore[no-any-return]


def least_squares(rows: Array, right: Array, regularisation: float, solve: Callable[[Array, Array], Array]) -> Array:
    """Return gamma, (*batch, m, 1), that minimises ||sum_i gamma_i rows_i - right|| for each problem.

    The rows are scaled to norm one first, so that no row is lost by its size. The trace of the normal matrix is then
    m, and the regularisation is relative to one. Rows of zeros, which store nothing yet, get gamma = 0. `solve` takes
    positive definite matrices.
    """
    xp, count = array_namespace(rows), rows.shape[-2]
    sizes = nonzero_or_one(norm(rows))
    units = rows / sizes
    normal = xp.matmul(units, xp.matrix_transpose(units))
    scale = nonzero_or_one(norm(right))
    rhs = xp.matmul(units, (right / scale)[..., None])
    finite = xp.all(xp.isfinite(normal), axis=(-2, -1), keepdims=True)
    # a value below the rounding of the matrix could let the solve meet a pivot of zero
    ridge = max(regularisation, 4 * count * eps(xp, rows.dtype))
    identity = eye(count, rows)
    absent = xp.astype(xp.sum(units * units, axis=-1, keepdims=True) == 0, rows.dtype)
    matrix = xp.where(finite, normal, 0.0 * identity) + (ridge + absent) * identity
    gamma = solve(xp.where(finite, matrix, identity), rhs)
    return gamma * scale[..., None] / sizes
