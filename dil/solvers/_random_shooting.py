"""Random search around the best point so far: the baseline of other solvers without gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, full
from dil._base.options import check_integer
from dil._base.solution import Solution
from dil._base.typing import Array, Tree
from dil._frameworks.random_vectors import standard_normal
from dil.solvers._finish import finish
from dil.solvers._progress import check_watched, iterate_watched
from dil.solvers._score_values import best_row, broadcasts, evaluate, evaluate_rows
from dil.solvers._start import Start, check_positive, size_of, start, tolerance, zeros_like_count


@dataclass(frozen=True)
class RandomShooting:
    """Minimise by Gaussian samples around the best point so far. The score is evaluated, never differentiated.

    Parameters
    ----------
    samples : int
        The number of evaluations of the score in each iteration.
    iterations : int
        The largest number of iterations.
    spread : float
        The first standard deviation of the samples, in the units of u.
    seed : int
        The seed of the random numbers. A problem gets the same random numbers in a batch as alone.
    rtol : float, optional
        A problem is solved when its spread is within rtol of ||u||, or of its distance from the start if that is
        larger. By default eps ** (1/3) of the dtype: 6.1e-6 in float64, 4.9e-3 in float32. The spread is one number for
        all unknowns, so they need one unit.
    history : bool
        Whether `extra["history"]` holds the spread after every iteration, relative to the first,
        (iterations, *batch); NaN for iterations not taken.
    progress : bool
        Whether to draw a progress bar if the run takes more than a second. Needs rich.

    Notes
    -----
    An evolution strategy (1 + samples) with the success rule of Rechenberg (1973): the spread doubles after an
    iteration that lowers the score and halves after one that does not. A small spread means that samples no longer
    find a lower score. It does not show that the gradient is zero, so the backward pass of a layer checks that.

    A score that is not finite counts as infinite, so a search may begin outside the domain of the score. A problem that
    never meets a finite score is NON_FINITE.

    With samples=1000, iterations=1 it is the random shooting of model predictive control (Rao 2009). Such a search ends
    with MAX_ITER, because one iteration cannot show how near the minimum is.

    The random numbers, iterations * samples * n of them, are drawn once for a call and held in memory.

    Raises
    ------
    OptionError
        If an option is out of range, or there is no start.

    Examples
    --------
    >>> import numpy as np, dil
    >>> sol = dil.solvers.RandomShooting()(lambda u: np.sum(np.abs(u - 1.0)), np.zeros(2))
    >>> np.round(sol.value, 3), dil.Status(int(sol.status)).name
    (array([1., 1.]), 'CONVERGED')
    """

    samples: int = 32
    iterations: int = 200
    spread: float = 1.0
    seed: int = 0
    rtol: float | None = None
    history: bool = False
    progress: bool = False

    _array_code = True
    """Whether the solver is array code alone, which a framework may compile."""

    def __post_init__(self) -> None:
        check_positive(
            optional={"rtol": self.rtol}, samples=self.samples, iterations=self.iterations, spread=self.spread
        )
        check_integer("seed", self.seed, 0)
        check_watched(self)

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Minimise fun from init; the value has the structure of init."""
        started = start(self, fun, init, args, kwargs)
        u, backend = started.u, started.problem.backend
        xp, rtol = array_namespace(u), tolerance(u, self.rtol, 1 / 3)
        noise = standard_normal(backend, full(u, 0.0, shape=u.shape[-1:]), self.iterations * self.samples, self.seed)

        def is_narrow(u: Array, spread: Array) -> Array:
            return spread <= rtol * size_of(u, started.u, self.spread)

        def search(s: Search) -> Search:
            shot = self._shoot(started, noise, s)
            better = s.going & (shot.value < s.value)
            steps = s.steps + xp.astype(s.going, s.steps.dtype)
            spread = xp.where(s.going, xp.where(better, 2.0 * s.spread, 0.5 * s.spread), s.spread)
            u, value = xp.where(better, shot.u, s.u), xp.where(better, shot.value, s.value)
            going = s.going & ~is_narrow(u, spread) & (steps < self.iterations)
            return Search(u, value, spread, s.number + 1, steps, going)

        counter, spread = zeros_like_count(u), full(u, self.spread, shape=(*u.shape[:-1], 1))
        first = Search(u, evaluate(started, u), spread, full(u, 0, shape=(), dtype=xp.int32), counter, counter == 0)

        def residual(s: Search) -> Array:
            return s.spread / self.spread

        last, extra = iterate_watched(self, backend, search, first, max_iter=self.iterations, residual=residual)
        finite = last.value < math.inf
        return finish(
            started.problem.space,
            last.u,
            last.steps,
            residual(last),
            max_iter=self.iterations,
            solved=finite & is_narrow(last.u, last.spread),
            broken=~finite,
            extra=extra,
        )

    def _shoot(self, started: Start, noise: Array, s: Search) -> Shot:
        """Return the best of the samples around u."""
        xp = array_namespace(s.u)
        if broadcasts(started):
            drawn = xp.take(noise, s.number * self.samples + xp.arange(self.samples, device=device(s.u)), axis=0)
            rows = s.u[None, ...] + s.spread[None, ...] * xp.reshape(
                drawn, (self.samples, *(1 for _ in s.u.shape[:-1]), s.u.shape[-1])
            )
            return Shot(*best_row(rows, evaluate_rows(started, rows)), s.number)

        def sample(best: Shot) -> Shot:
            row = xp.reshape(s.number * self.samples + best.number, (1,))
            trial = s.u + s.spread * xp.take(noise, row, axis=0)[0, :]
            value = evaluate(started, trial)
            better = value < best.value
            return Shot(xp.where(better, trial, best.u), xp.where(better, value, best.value), best.number + 1)

        first = Shot(s.u, s.value, 0 * s.number)
        return started.problem.backend.loops.while_loop(  # type: ignore[no-any-return]
            lambda best: best.number < self.samples, sample, first
        )


class Search(NamedTuple):
    """One iteration; u: (*batch, n), its number: (), the rest: (*batch, 1)."""

    u: Array
    value: Array
    spread: Array
    number: Array
    steps: Array
    going: Array


class Shot(NamedTuple):
    """The best sample of an iteration so far; u: (*batch, n), value: (*batch, 1), number of samples: ()."""

    u: Array
    value: Array
    number: Array
