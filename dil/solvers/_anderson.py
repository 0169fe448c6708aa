"""Anderson acceleration of a fixed-point iteration, each problem of a batch by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, eps, eye, full, nonzero_or_one, norm
from dil._base.errors import OptionError
from dil._base.solution import Solution
from dil._base.typing import Array, Tree
from dil._frameworks.iteration import frozen
from dil.solvers._finish import finish
from dil.solvers._start import check_positive, size_of, start_equation, tolerance, zeros_like_count
from dil.solvers._watch import check_watched, iterate_watched

EXPLODED = 10.0
"""How many times the least residual so far a residual may be before its problem falls back to a plain step."""
FAR = 100.0
"""How many plain steps a mixed one may be long without halving the residual."""


@dataclass(frozen=True)
class Anderson:
    """Find u = step(u) from the last steps together: the mix of them whose residual is least.

    Parameters
    ----------
    memory : int
        How many differences of earlier iterates are mixed.
    mixing : float
        How much of the mixed residual is added to the mixed iterate; 1 takes it whole.
    regularisation : float
        What is added to the diagonal of the least squares' normal matrix, relative to its mean entry there. It is
        raised to the rounding of the matrix where it is below, in float32 say.
    rtol : float, optional
        A problem is solved when ||step(u) - u|| <= rtol (1 + ||u||); by default eps ** 0.75 of the dtype: 1.8e-12 in
        float64, 6.4e-6 in float32.
    max_iter : int
        Evaluations of the step at most, besides the first.
    history : bool
        Whether `extra["history"]` gives the residual after every step, (max_iter, *batch), NaN where none was taken.
    progress : bool
        Whether a run of more than a second draws a progress bar; needs rich.

    Notes
    -----
    The tolerance is relative to 1 + ||u||: an unknown in units that make it much smaller than one needs other units.

    Where the step is affine the method is GMRES in other words (Walker and Ni 2011, Theorem 2.2). A problem whose
    residual comes out ten times larger than its least so far, or not finite, goes back to the iterate before, forgets
    its memory and takes the plain step u + mixing (step(u) - u); so does one that leaps a hundred times as far as that
    step without halving its residual.

    Sources: Walker and Ni 2011, Algorithm AA, least squares of eq. 2.2 by normal equations of memory unknowns.

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

    def __post_init__(self) -> None:
        optional = {"rtol": self.rtol, "regularisation": self.regularisation or None}
        check_positive(optional=optional, max_iter=self.max_iter, memory=self.memory, mixing=self.mixing)
        if self.mixing > 1:
            message = f"mixing={self.mixing!r}; expected a number in (0, 1], the part of the residual that is added"
            raise OptionError(message)
        check_watched(self)

    def __call__(self, fun: Callable[..., Tree], init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Iterate fun from init; the value has the structure of init."""
        problem, u, arrays = start_equation(self, fun, init, args, kwargs, "step")
        backend, xp, rtol = problem.backend, array_namespace(u), tolerance(u, self.rtol, 0.75)

        def move(u: Array) -> Array:
            return backend.constant(problem.image(u, *arrays)) - u

        def near(u: Array, left: Array) -> Array:
            return norm(left) <= rtol * size_of(u)

        def step(s: Iterate) -> Iterate:
            new = self._mix(s)
            left = move(new)
            size, before = norm(left), norm(s.left)
            finite = xp.all(xp.isfinite(left), axis=-1, keepdims=True)
            worse = (size > EXPLODED * s.least) | ((norm(new - s.u) > FAR * before) & (size > 0.5 * before))
            accepted = finite & ~(s.mixed & worse)
            again = ~accepted & s.mixed  # forget the memory, and take a plain step next
            solved = accepted & near(new, left)
            moved = xp.any(new != s.u, axis=-1, keepdims=True)
            return Iterate(
                xp.where(accepted, new, s.u),
                xp.where(accepted, left, s.left),
                push(s.du, new - s.u, accepted, again),
                push(s.dleft, left - s.left, accepted, again),
                xp.where(accepted & (size < s.least), size, s.least),
                accepted,
                s.steps + 1,
                ((accepted & moved) | again) & ~solved & (s.steps + 1 < self.max_iter),
                solved,
                ~accepted & ~s.mixed,
            )

        left, zero = move(u), zeros_like_count(u)
        none = full(u, 0.0, shape=(*u.shape[:-1], self.memory, u.shape[-1]))
        finite = xp.isfinite(norm(left))
        solved = finite & near(u, left)
        first = Iterate(u, left, none, none, norm(left), zero > 0, zero, finite & ~solved, solved, ~finite)
        scale = nonzero_or_one(norm(left))

        def residual(s: Iterate) -> Array:
            return norm(s.left) / scale

        last, extra = iterate_watched(
            self, backend, frozen(step, u.ndim - 1), first, max_iter=self.max_iter, residual=residual
        )
        return finish(
            problem.space,
            last.u,
            last.steps,
            residual(last),
            max_iter=self.max_iter,
            solved=last.solved,
            broken=last.broken,
            extra=extra,
        )

    def _mix(self, s: Iterate) -> Array:
        """Return u + mixing f - (dU + mixing dF) gamma, gamma the least squares' solution of dF gamma = f."""
        xp = array_namespace(s.u)
        gamma = least_squares(s.dleft, s.left, self.regularisation)
        change = xp.sum((s.du + self.mixing * s.dleft) * gamma, axis=-2)
        return s.u + self.mixing * s.left - change  # type: ignore[no-any-return]


class Iterate(NamedTuple):
    """One step; u and what is left of it: (*batch, n), the memory (*batch, m, n), the rest (*batch, 1)."""

    u: Array
    left: Array
    """f = step(u) - u."""
    du: Array
    """Differences of successive iterates, oldest first, zero where there is none."""
    dleft: Array
    """Those of f."""
    least: Array
    """The least residual so far."""
    mixed: Array
    """Whether the next step mixes: a plain one is not given up."""
    steps: Array
    going: Array
    solved: Array
    broken: Array


def push(memory: Array, new: Array, kept: Array, forgotten: Array) -> Array:
    """Return a memory with one more difference, the oldest gone, or with none."""
    xp = array_namespace(new)
    pushed = xp.concat([memory[..., 1:, :], new[..., None, :]], axis=-2)
    pushed = xp.where(kept[..., None], pushed, memory)
    return xp.where(forgotten[..., None], full(memory, 0.0), pushed)  # type: ignore[no-any-return]


def least_squares(rows: Array, right: Array, regularisation: float) -> Array:
    """Return gamma, (*batch, m, 1), that minimises ||sum_i gamma_i rows_i - right|| for each problem.

    The rows are scaled to norm one first. The trace of the normal matrix is then m, and what is added to its diagonal
    is relative to that: no row is lost by its size. Absent rows, which are zero, get zero.
    """
    xp, count = array_namespace(rows), rows.shape[-2]
    sizes = nonzero_or_one(norm(rows))
    units = rows / sizes
    normal = xp.matmul(units, xp.matrix_transpose(units))
    scale = nonzero_or_one(norm(right))
    rhs = xp.matmul(units, (right / scale)[..., None])
    sound = xp.all(xp.isfinite(normal), axis=(-2, -1), keepdims=True)
    # above the rounding of the matrix, or a solve could meet a pivot of zero and raise
    ridge = max(regularisation, 4 * count * eps(xp, rows.dtype))
    identity = eye(count, rows)
    absent = xp.astype(xp.sum(units * units, axis=-1, keepdims=True) == 0, rows.dtype)
    matrix = xp.where(sound, normal, 0.0 * identity) + (ridge + absent) * identity
    gamma = xp.linalg.solve(xp.where(sound, matrix, identity), rhs)
    return gamma * scale[..., None] / sizes  # type: ignore[no-any-return]
