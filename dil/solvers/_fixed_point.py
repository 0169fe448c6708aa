"""The damped fixed-point iteration, each problem of a batch by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, full, nonzero_or_one, norm
from dil._base.errors import OptionError
from dil._base.solution import Solution
from dil._base.typing import Array, Norm, Tree
from dil.solvers._finish import finish
from dil.solvers._leaving import iterate_problems
from dil.solvers._progress import check_watched
from dil.solvers._rounding import EVERY, STALLED, rounding_of_step
from dil.solvers._start import Start, check_positive, start_equation, tolerance, zeros_like_count
from dil.solvers._stopping import check_norm, stopping_test


@dataclass(frozen=True)
class FixedPoint:
    """Find u = step(u) by u <- u + damping (step(u) - u).

    Parameters
    ----------
    damping : float
        The share of each step that is taken, in (0, 1]. Less than 1 helps where steps overshoot.
    rtol : float, optional
        A problem is solved when each entry of |step(u) - u| is at most rtol |u|, or at most 4 eps |u - start|. The
        default rtol is eps ** 0.75: 1.8e-12 in float64, 6.4e-6 in float32. A problem is also solved when its residual
        is hardly falling, or the run is at its end, and step(u) - u is as small as the rounding errors of its terms.
    max_iter : int
        The largest number of steps.
    history : bool
        Whether `extra["history"]` holds the residual after every step, (max_iter, *batch); NaN for steps not taken.
    progress : bool
        Whether to draw a progress bar if the run takes more than a second. Needs rich.
    norm : {"entries", "leaves"}
        What rtol compares: each entry of step(u) - u with that entry of u, or the Euclidean norm of each leaf of
        step(u) - u with the norm of that leaf of u. Every entry, or every leaf, of a problem must pass.
        With "leaves", units within a leaf matter: a small entry of it may be far off, and its gradient with it.

    Notes
    -----
    If the step contracts distances by a factor q < 1, the distance to the solution is at most the residual / (1 - q).

    A problem ends DIVERGED if the norm of its residual exceeds (||u0|| + ||step(u0) - u0||) / eps, where u0 is the
    start. It ends NON_FINITE, at its last finite iterate, if the residual is no longer finite. A cycle ends with
    MAX_ITER. A problem ends STAGNATED if its iterate no longer changes while the residual is above the tolerance.
    `Anderson` needs fewer steps where the step contracts slowly.

    Raises
    ------
    OptionError
        If an option is out of range, or there is no start.

    Examples
    --------
    >>> import numpy as np, dil
    >>> sol = dil.solvers.FixedPoint()(np.cos, np.asarray(1.0))
    >>> np.round(sol.value, 10), dil.Status(int(sol.status)).name
    (np.float64(0.7390851332), 'CONVERGED')
    """

    damping: float = 1.0
    rtol: float | None = None
    max_iter: int = 1000
    history: bool = False
    progress: bool = False
    norm: Norm = "entries"

    _takes_batch = True
    """Whether it solves a batch by calls of the score alone."""
    _array_code = True
    """Whether the solver is array code alone, which a framework may compile."""
    _leaves_rtol = True
    """Whether the solver stops as soon as the residual is about rtol |u|."""

    def __post_init__(self) -> None:
        check_positive(optional={"rtol": self.rtol}, max_iter=self.max_iter, damping=self.damping)
        if self.damping > 1:
            message = f"damping={self.damping!r}; expected a number in (0, 1], the part of each step that is taken"
            raise OptionError(message)
        check_norm(self.norm)
        check_watched(self)

    def __call__(self, fun: Callable[..., Tree], init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Iterate fun from init; the value has the structure of init."""
        started = start_equation(self, fun, init, args, kwargs, "step")
        problem, u, _ = started
        xp, rtol = array_namespace(u), tolerance(u, self.rtol, 0.75)
        test = stopping_test(self.norm, problem.space)

        def advance(started: Start, s: Iterate) -> Iterate:
            new, count = s.u + self.damping * s.f, s.count + 1
            f = move(started, new)
            size = norm(f)
            usable = s.going & (size < math.inf)  # False for NaN
            moved = xp.any(new != s.u, axis=-1, keepdims=True)
            solved = usable & test.is_short(f, new, started.u, rtol)
            diverged = usable & (size > s.far)
            due, last = count % EVERY == 0, count >= self.max_iter
            stalled = due & (size > STALLED * s.mark) & (size <= s.level)
            asked = usable & ~(solved | diverged) & (stalled | ~moved | last)
            found = rounding_of_step(started, new, f, asked, s.level, test)
            solved = solved | found.rounded
            return Iterate(
                xp.where(usable, new, s.u),
                xp.where(usable, f, s.f),
                xp.where(due & (size < s.mark), size, s.mark),
                found.level,
                s.steps + xp.astype(s.going, s.steps.dtype),
                count,
                usable & moved & ~solved & ~diverged & (s.steps < self.max_iter - 1),
                s.solved | solved,
                s.broken | (s.going & ~usable),
                s.diverged | diverged,
                s.far,
            )

        f = move(started, u)
        size = norm(f)
        finite = size < math.inf
        solved = finite & test.is_short(f, u, u, rtol)
        far, level, going = (norm(u) + size) / eps(xp, u.dtype), full(size, math.inf), finite & ~solved
        first = Iterate(u, f, size, level, zeros_like_count(u), 0, going, solved, ~finite, finite & ~finite, far)
        scale = nonzero_or_one(size)

        def residual(s: Iterate) -> Array:
            return norm(s.f) / scale

        last, extra = iterate_problems(self, started, advance, first, max_iter=self.max_iter, residual=residual)
        return finish(
            problem.space,
            last.u,
            last.steps,
            residual(last),
            max_iter=self.max_iter,
            solved=last.solved,
            broken=last.broken,
            diverged=last.diverged,
            extra=extra,
        )


class Iterate(NamedTuple):
    """One step; u and f: (*batch, n), the rest: (*batch, 1)."""

    u: Array
    f: Array
    """f = step(u) - u."""
    mark: Array
    """The least norm of f of the steps at which a look at its rounding was due."""
    level: Array
    """The norm of f below which the next look is due."""
    steps: Array
    count: Any
    """The steps of the problems that are going."""
    going: Array
    solved: Array
    broken: Array
    diverged: Array
    """Whether f exceeds `far`."""
    far: Array
    """The size of the start over eps."""


def move(started: Start, u: Array) -> Array:
    """Return step(u) - u."""
    problem, _, arrays = started
    image: Array = problem.backend.constant(problem.image(u, *arrays))
    return image - u
