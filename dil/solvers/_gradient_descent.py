"""Gradient descent with Barzilai-Borwein steps and backtracking, each problem of a batch by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, dot, eps, full, nonzero_or_one, norm
from dil._base.scale import is_short
from dil._base.solution import Solution
from dil._base.typing import Array, Tree
from dil.solvers._finish import finish
from dil.solvers._leaving import iterate_problems
from dil.solvers._no_minimum import is_cut, is_random, is_unbounded, is_wrong
from dil.solvers._progress import check_watched
from dil.solvers._start import Start, check_positive, start, tolerance, zeros_like_count
from dil.solvers._verify import verified

FORGETTING = 0.95
"""What is left of the largest 1 / curvature after a step."""
PROGRESS = 0.999
"""The share of the least gradient that counts as progress where rounding hides that of the score."""
MOST_IDLE = 300
"""The most evaluations without progress."""


@dataclass(frozen=True)
class GradientDescent:
    """Minimise by steps along the negative gradient.

    Parameters
    ----------
    rtol : float, optional
        The remaining step is estimated by the gradient divided by the least curvature of the last steps. A problem is
        solved when each entry of it is at most rtol |u|, or at most 4 eps |u - start|. The default rtol is
        eps ** (2/3): 3.7e-11 in float64, 2.4e-5 in float32.
    max_iter : int
        The largest number of evaluations of the score and its gradient.
    step : float
        The length of the first step, relative to the gradient. Later lengths follow from the curvature.
    history : bool
        Whether `extra["history"]` holds the residual after every step, (max_iter, *batch); NaN for steps not taken.
    progress : bool
        Whether to draw a progress bar if the run takes more than a second. Needs rich.

    Notes
    -----
    For up to 64 unknowns a solution is verified as that of `LBFGS` is. A problem ends NOT_STATIONARY if a Newton step
    would still move it.

    CONVERGED says that the gradient vanishes, not that u is a minimum: a start with a gradient of exactly zero ends
    CONVERGED, as in SciPy, also at a maximum or a saddle point. The derivative of a layer then tells NOT_MINIMUM.

    The step length is s^T s / s^T y of the last step s and change of gradient y (Barzilai and Borwein 1988, eq. 5); a
    step that does not lower the score enough (Armijo 1966, up to rounding) is quartered.

    Examples
    --------
    >>> import numpy as np, dil
    >>> sol = dil.solvers.GradientDescent()(lambda u: np.sum((u - 3.0) ** 4 + u**2), np.zeros(2))
    >>> dil.Status(int(sol.status)).name
    'CONVERGED'
    """

    rtol: float | None = None
    max_iter: int = 10_000
    step: float = 1.0
    history: bool = False
    progress: bool = False

    _takes_batch = True
    """Whether it solves a batch by calls of the score alone."""
    _array_code = True
    """Whether the solver is array code alone, which a framework may compile."""

    def __post_init__(self) -> None:
        check_positive(optional={"rtol": self.rtol}, max_iter=self.max_iter, step=self.step)
        check_watched(self)

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Minimise fun from init; the value has the structure of init."""
        started = start(self, fun, init, args, kwargs)
        problem, u, _ = started
        xp, rtol = array_namespace(u), tolerance(u, self.rtol, 2 / 3)
        rounding = 8 * eps(xp, u.dtype)

        def descend(started: Start, s: Descent) -> Descent:
            trial = s.u - xp.where(s.going, s.step, 0.0 * s.step) * s.gradient
            value, gradient = evaluate(started, trial)
            lower = value <= s.value - 1e-4 * s.step * dot(s.gradient, s.gradient) + rounding * xp.abs(s.value)
            # rounding hides the change of the score over a step this short; the gradient still resolves it
            short = is_short(s.step * s.gradient, s.u, started.u, 16 * eps(xp, u.dtype) ** 0.5)
            lower = lower | (short & (norm(gradient) <= 2.0 * norm(s.gradient)))
            accepted = s.going & lower & xp.all(xp.isfinite(gradient), axis=-1, keepdims=True)
            moved, bent = trial - s.u, gradient - s.gradient
            curved = dot(moved, bent)
            longer = xp.where(curved > 0, dot(moved, moved) / curved, 2.0 * s.step)
            step = xp.where(accepted, longer, 0.25 * s.step)
            new_gradient, new_value = xp.where(accepted, gradient, s.gradient), xp.where(accepted, value, s.value)
            new_u = xp.where(accepted, trial, s.u)
            steps = s.steps + xp.astype(s.going, s.steps.dtype)
            # the longest of the last steps belongs to the least curvature that they met
            flattest = xp.maximum(xp.where(curved > 0, longer, 0.0 * longer), FORGETTING * s.flattest)
            flattest = xp.where(accepted, flattest, s.flattest)
            solved = s.solved | (accepted & (curved > 0) & is_short(flattest * new_gradient, new_u, started.u, rtol))
            stuck = s.going & ~accepted & is_short(step * new_gradient, new_u, new_u, rounding)
            # where the score does not change as its gradient says, no step lowers it, and short ones lead nowhere
            least, flattest_slope = xp.minimum(s.least, new_value), xp.minimum(s.least_slope, norm(new_gradient))
            better = (least < s.least - rounding * xp.abs(s.least)) | (flattest_slope < PROGRESS * s.least_slope)
            idle = xp.where(better, 0 * s.idle, s.idle + 1)
            least, flattest_slope = xp.where(better, least, s.least), xp.where(better, flattest_slope, s.least_slope)
            stuck = stuck | (idle >= MOST_IDLE)
            going = s.going & ~solved & ~stuck & (steps < self.max_iter)
            return Descent(
                new_u,
                new_value,
                new_gradient,
                xp.where(s.going, step, s.step),
                flattest,
                steps,
                going,
                solved,
                least,
                flattest_slope,
                idle,
            )

        value, gradient = evaluate(started, u)
        slope = norm(gradient)
        finite = xp.isfinite(slope) & xp.isfinite(value)
        first = Descent(
            u,
            value,
            gradient,
            full(value, self.step),
            full(value, 0.0),
            zeros_like_count(u),
            finite & (slope > 0),
            finite & (slope == 0),
            value,
            slope,
            zeros_like_count(u),
        )

        def residual(s: Descent) -> Array:
            return norm(s.gradient) / nonzero_or_one(slope)

        last, extra = iterate_problems(self, started, descend, first, max_iter=self.max_iter, residual=residual)
        verdict = verified(started, last.u, last.solved, finite, rtol)
        return finish(
            problem.space,
            last.u,
            last.steps,
            residual(last),
            max_iter=self.max_iter,
            solved=verdict.solved,
            broken=~finite,
            far=verdict.far,
            wrong=is_wrong(started, last.u, finite & ~verdict.solved),
            random=is_random(started, last.u, finite & ~verdict.solved),
            cut=is_cut(started, finite & (slope == 0)),
            diverged=is_unbounded(started, last.u, finite & (residual(last) > 0.25)),
            extra=extra,
        )


def evaluate(started: Start, u: Array) -> tuple[Array, Array]:
    """Return the score, (*batch, 1), and its gradient."""
    problem, _, arrays = started
    value, gradient = problem.value_and_gradient(u, *arrays)
    return value[..., None], gradient


class Descent(NamedTuple):
    """One step of the descent; vectors: (*batch, n), the rest: (*batch, 1)."""

    u: Array
    value: Array
    gradient: Array
    step: Array
    flattest: Array
    """The largest 1 / curvature of the last steps, of which old ones count less."""
    steps: Array
    going: Array
    solved: Array
    least: Array
    """The least value so far, where progress was last made."""
    least_slope: Array
    """The least norm of a gradient so far, where progress was last made."""
    idle: Array
    """The number of evaluations since then."""
