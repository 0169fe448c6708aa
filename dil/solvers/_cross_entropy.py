"""The cross-entropy method: normal samples whose mean and deviation follow the best samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, full, nonzero_or_one, norm
from dil._base.errors import OptionError
from dil._base.options import check_integer, is_integer, is_number
from dil._base.solution import Solution
from dil._base.typing import Array, Tree
from dil._frameworks.random_vectors import standard_normal
from dil.solvers._finish import finish
from dil.solvers._progress import check_watched, iterate_watched
from dil.solvers._score_values import best_row, evaluate, evaluate_rows
from dil.solvers._start import check_positive, size_of, start, tolerance, zeros_like_count


@dataclass(frozen=True)
class CrossEntropy:
    """Minimise by a normal distribution that moves to the best of its samples; the score is never differentiated.

    Parameters
    ----------
    samples : int
        The number of evaluations of the score in each iteration.
    elites : int, optional
        The number of best samples to which the distribution is fitted; by default a tenth, and at least two.
    iterations : int
        The largest number of iterations.
    spread : float
        The first standard deviation of every unknown, in the units of u. It should be as large as the distance from
        the start to the minimum. If it is smaller, the samples contract before they reach the minimum.
    smoothing : float
        The share of the last mean and deviation that is kept, in [0, 1).
    seed : int
        The seed of the random numbers. Every problem of a batch gets the same numbers as it would get alone.
    rtol : float, optional
        A problem is solved when its deviations, as one vector, are within rtol of ||u||, or of its distance from the
        start if that is larger. By default eps ** (1/3) of the dtype: 6.1e-6 in float64, 4.9e-3 in float32.
    history : bool
        Whether `extra["history"]` holds the deviation after every iteration, relative to the first,
        (iterations, *batch); NaN for iterations not taken.
    progress : bool
        Whether to draw a progress bar if the run takes more than a second. Needs rich.

    Notes
    -----
    Source: Rubinstein and Kroese 2004, section 5.1, with one deviation for each unknown. The value is the best of all
    samples. A score that is not finite counts as infinite. A problem that never meets a finite score is NON_FINITE.
    All samples of an iteration are evaluated at once if the score or the framework can do so. The random numbers,
    iterations * samples * n of them, are held in memory.

    Raises
    ------
    OptionError
        If an option is out of range, or there is no start.

    Examples
    --------
    >>> import numpy as np, dil
    >>> sol = dil.solvers.CrossEntropy()(lambda u: np.sum(np.abs(u - 1.0)), np.zeros(2))
    >>> np.round(sol.value, 3), dil.Status(int(sol.status)).name
    (array([1., 1.]), 'CONVERGED')
    """

    samples: int = 100
    elites: int | None = None
    iterations: int = 50
    spread: float = 1.0
    smoothing: float = 0.0
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
        if not (is_number(self.smoothing) and 0 <= self.smoothing < 1):
            message = f"smoothing={self.smoothing!r}; expected a number in [0, 1)"
            raise OptionError(message)
        if not 2 <= self._elites <= self.samples or not is_integer(self._elites, 2):
            message = f"elites={self.elites!r} of samples={self.samples!r}; expected an integer from 2 to samples"
            raise OptionError(message)
        check_watched(self)

    @property
    def _elites(self) -> int:
        return max(2, self.samples // 10) if self.elites is None else self.elites

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Minimise fun from init; the value has the structure of init."""
        started = start(self, fun, init, args, kwargs)
        u, backend = started.u, started.problem.backend
        xp, rtol = array_namespace(u), tolerance(u, self.rtol, 1 / 3)
        like = full(u, 0.0, shape=(self.samples, u.shape[-1]))
        noise = standard_normal(backend, like, self.iterations, self.seed)

        def is_narrow(u: Array, deviation: Array) -> Array:
            return norm(deviation) <= rtol * size_of(u, started.u, self.spread)

        def search(s: Search) -> Search:
            rows = self._drawn(noise, s)
            values = evaluate_rows(started, rows)
            best, value = best_row(rows, values)
            better = s.going & (value < s.value)
            mean, deviation = self._fitted(rows, values, s)
            steps = s.steps + xp.astype(s.going, s.steps.dtype)
            u = xp.where(better, best, s.u)
            going = s.going & ~is_narrow(u, deviation) & (steps < self.iterations)
            return Search(
                u,
                xp.where(better, value, s.value),
                xp.where(s.going, mean, s.mean),
                xp.where(s.going, deviation, s.deviation),
                s.number + 1,
                steps,
                going,
            )

        counter = zeros_like_count(u)
        spread, number = full(u, self.spread), full(u, 0, shape=(), dtype=xp.int32)
        first = Search(u, evaluate(started, u), u, spread, number, counter, counter == 0)

        def residual(s: Search) -> Array:
            return norm(s.deviation) / nonzero_or_one(norm(spread))

        last, extra = iterate_watched(self, backend, search, first, max_iter=self.iterations, residual=residual)
        finite = last.value < math.inf
        return finish(
            started.problem.space,
            last.u,
            last.steps,
            residual(last),
            max_iter=self.iterations,
            solved=finite & is_narrow(last.u, last.deviation),
            broken=~finite,
            extra=extra,
        )

    def _drawn(self, noise: Array, s: Search) -> Array:
        """Return the samples of one iteration, (samples, *batch, n)."""
        xp = array_namespace(s.u)
        row = xp.take(noise, xp.reshape(s.number, (1,)), axis=0)[0, ...]
        row = xp.reshape(row, (self.samples, *(1 for _ in s.u.shape[:-1]), s.u.shape[-1]))
        return s.mean[None, ...] + s.deviation[None, ...] * row  # type: ignore[no-any-return]

    def _fitted(self, rows: Array, values: Array, s: Search) -> tuple[Array, Array]:
        """Return mean and deviation of the elites (with all ties), smoothed by the last; the last if none is finite."""
        xp, kept = array_namespace(rows), self.smoothing
        last = xp.sort(values, axis=0)[self._elites - 1, ...]
        elite = (values <= last[None, ...]) & (values < math.inf)
        weight = xp.astype(elite, rows.dtype)
        count = xp.sum(weight, axis=0)
        some = nonzero_or_one(count)
        mean = xp.sum(xp.where(elite, rows, full(rows, 0.0)), axis=0) / some
        deviation = xp.sqrt(xp.sum(weight * (rows - mean[None, ...]) ** 2, axis=0) / some)
        mixed = ((1 - kept) * mean + kept * s.mean, (1 - kept) * deviation + kept * s.deviation)
        return xp.where(count > 0, mixed[0], s.mean), xp.where(count > 0, mixed[1], s.deviation)


class Search(NamedTuple):
    """One iteration; u, mean and deviation: (*batch, n), its number: (), the rest: (*batch, 1)."""

    u: Array
    """The best so far."""
    value: Array
    mean: Array
    deviation: Array
    number: Array
    steps: Array
    going: Array
