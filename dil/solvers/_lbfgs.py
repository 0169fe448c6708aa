"""L-BFGS with a strong Wolfe line search, each problem of a batch by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, full, inner, logical_not, nonzero_or_one, norm, select
from dil._base.quasi_newton import Pairs
from dil._base.scalars import Scalar, as_column, either, reader
from dil._base.scale import shortest_long
from dil._base.solution import Solution
from dil._base.typing import Array, Tree
from dil.solvers._finish import finish
from dil.solvers._leaving import iterate_problems
from dil.solvers._no_minimum import is_cut, is_random, is_unbounded, is_wrong
from dil.solvers._progress import check_watched
from dil.solvers._quasi_newton_memory import Memory, nothing
from dil.solvers._start import Start, check_positive, start, tolerance, zeros_like_count
from dil.solvers._verify import verified
from dil.solvers._wolfe import PROBES, wolfe_search

MOST_IDLE = 3
"""The most searches in a row that may end with nothing."""


@dataclass(frozen=True)
class LBFGS:
    """Minimise a smooth score of many unknowns by limited-memory BFGS, with gradients alone.

    Parameters
    ----------
    memory : int
        The number of pairs of a step and a change of gradient that describe the Hessian.
    rtol : float, optional
        The remaining step is estimated by the gradient divided by the least curvature in memory. A problem is solved
        when each entry of the estimated step is at most rtol |u|, or at most 4 eps |u - start|. This must hold before a
        line search and again after it. The default rtol is eps ** (2/3): 3.7e-11 in float64, 2.4e-5 in float32.
    max_iter : int
        The largest number of line searches. Most of them take one evaluation of the score and its gradient.
    history : bool
        Whether `extra["history"]` holds the residual after every step, (max_iter, *batch); NaN for steps not taken.
    progress : bool
        Whether to draw a progress bar if the run takes more than a second. Needs rich.

    Notes
    -----
    For up to 64 unknowns a solution is verified by a Newton step, which finds directions of small curvature that the
    memory has missed. This takes one product with the Hessian for each unknown, or 8 where dense solves are slow. A
    problem ends NOT_STATIONARY if a Newton step would still move it by more than eps ** (1/3) |u| = 6e-6 |u|. Below
    that, the memory alone judges, and it can miss a part of the error: on 96 random convex problems of 2 to 30
    unknowns and condition numbers up to 1e6, errors were up to 22 rtol with memory=10, 510 rtol with memory=2 and 8,500
    rtol with memory=1, where rtol is 3.7e-11. `refine=1` in the layer, one Newton step, removes them.

    `extra["pairs"]` holds the pairs at the solution, for a preconditioner of the backward pass. `extra["evaluations"]`
    counts evaluations of the score and its gradient. A pair is kept if its curvature is positive beyond rounding. If
    no step length is found, the memory is cleared and the next direction is the negative gradient.

    CONVERGED says that the gradient vanishes, not that u is a minimum: a start with a gradient of exactly zero ends
    CONVERGED, as in SciPy, also at a maximum or a saddle point. The derivative of a layer then tells NOT_MINIMUM.

    Sources: Nocedal and Wright 2006, Algorithms 7.4 and 7.5, line search of Algorithms 3.5 and 3.6.

    Raises
    ------
    OptionError
        If an option is out of range, or there is no start.

    Examples
    --------
    >>> import numpy as np, dil
    >>> def rosenbrock(u):
    ...     return 100 * (u[1] - u[0] ** 2) ** 2 + (1 - u[0]) ** 2
    >>> sol = dil.solvers.LBFGS()(rosenbrock, np.asarray([-1.2, 1.0]))
    >>> np.round(sol.value, 8), dil.Status(int(sol.status)).name
    (array([1., 1.]), 'CONVERGED')
    """

    memory: int = 10
    rtol: float | None = None
    max_iter: int = 1000
    history: bool = False
    progress: bool = False

    _takes_batch = True
    """Whether it solves a batch by calls of the score alone."""
    _array_code = True
    """Whether the solver is array code alone, which a framework may compile."""

    def __post_init__(self) -> None:
        check_positive(optional={"rtol": self.rtol}, max_iter=self.max_iter, memory=self.memory)
        check_watched(self)

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Minimise fun from init; the value has the structure of init."""
        started = start(self, fun, init, args, kwargs)
        problem, u, arrays = started
        backend, xp, rtol = problem.backend, array_namespace(u), tolerance(u, self.rtol, 2 / 3)
        value, gradient = (backend.constant(x) for x in problem.value_and_gradient(u, *arrays))
        gradient_unit = nonzero_or_one(norm(gradient))
        single = u.ndim == 1 and not (self.history or self.progress)
        single = single and isinstance(backend.loops.number(gradient_unit[..., 0]), float)
        read = reader(backend.loops.number, single)
        unit, machine = read(gradient_unit[..., 0]), eps(xp, u.dtype)

        def descend(started: Start, s: Iterate) -> Iterate:
            length = either(s.memory.learned, lambda: like_one(s.value), lambda: first_length(s.gradient, read))
            at = partial(evaluate, started, s.unit, read)
            longest = shortest_long(s.size, s.extent, 16 * machine**0.5) if single else math.inf
            line = wolfe_search(
                at, s.u, started.u, s.value, s.gradient, s.direction, length, s.going, backend.loops, longest
            )
            moved = s.going & (line.low > 0)
            new_u = either(moved, lambda: s.u + line.low * s.direction, lambda: s.u)
            gradient = select(moved, line.low_gradient, s.gradient)
            known = s.memory.without(s.going & logical_not(moved))
            direction, memory = known.learn(new_u - s.u, gradient - s.gradient).downhill(gradient, backend.dense)
            steps = select(s.going, s.steps + 1, s.steps)
            extent, size = s.extent, s.size
            if single:
                extent, size = s.extent + 2 * line.low * s.size, read(inner(direction, direction)) ** 0.5
            close = memory.is_near(gradient, new_u, started.u, rtol, extent)
            # one search more shows the curvature along a gradient that only seemed small
            solved = s.solved | (s.near & ((moved & close) | (s.going & logical_not(moved))))
            # where the score does not change as its gradient says, no search ends and none lowers it
            idle = s.going & (line.probes >= PROBES) & logical_not(line.low_value < s.value)
            idle = select(idle, s.idle + 1, 0 * s.idle)
            lost = idle >= MOST_IDLE
            if not single or shortest_long(size, extent, machine) >= 1:
                lost = lost | read(xp.all(xp.abs(direction) <= machine * xp.abs(new_u), axis=-1))
            going = s.going & (moved | s.memory.learned) & logical_not(solved | lost) & (steps < self.max_iter)
            return Iterate(
                new_u,
                select(moved, line.low_value, s.value),
                gradient,
                direction,
                memory,
                steps,
                s.evaluations + line.probes,
                going,
                close,
                solved,
                s.unit,
                extent,
                size,
                idle,
            )

        value, gradient = read(value) / unit, gradient / unit
        count = 0 if single else zeros_like_count(u)
        slope, size_u = read(norm(gradient)[..., 0]), read(norm(u)[..., 0])
        finite = (slope < math.inf) & (abs(value) < math.inf)
        # a probe along the gradient, whose curvature gives the length of the first step
        probe = -(eps(xp, u.dtype) ** 0.5) * reach(size_u, abs(value)) * gradient
        memory = nothing(u, self.memory, value, backend.loops)
        change = evaluate(started, unit, read, u + probe)[1] - gradient
        direction, memory = memory.learn(probe, change).downhill(gradient, backend.dense)
        solved = finite & (slope == 0)
        extent, size = (size_u, read(norm(direction)[..., 0])) if single else (None, None)
        close = memory.is_near(gradient, u, u, rtol, extent)
        going = finite & logical_not(solved)
        scalars = count, count + 3, going, close, solved, unit, extent, size, count
        first = Iterate(u, value, gradient, direction, memory, *scalars)

        def residual(s: Iterate) -> Array:
            return norm(s.gradient)

        last, extra = iterate_problems(self, started, descend, first, max_iter=self.max_iter, residual=residual)
        left = residual(last)
        steps, evaluations, ended, near, cut, finite = (
            as_column(x, u) for x in (last.steps, last.evaluations, last.solved, last.near, solved, finite)
        )
        # a short step that no search could take any more, as at a gradient of zero, ends without `solved`
        unverified = ended | (near & finite & (steps < self.max_iter))
        verdict = verified(started, last.u, ended, finite, rtol, unverified)
        return finish(
            problem.space,
            last.u,
            steps,
            left,
            max_iter=self.max_iter,
            solved=verdict.solved,
            broken=~finite,
            far=verdict.far,
            wrong=is_wrong(started, last.u, finite & ~verdict.solved),
            random=is_random(started, last.u, finite & ~verdict.solved),
            cut=is_cut(started, cut),
            diverged=is_unbounded(started, last.u, finite & (left > 0.25)),
            extra={
                "pairs": in_own_units(last.memory.as_pairs(), gradient_unit),
                "evaluations": evaluations[..., 0],
                **extra,
            },
        )


class Iterate(NamedTuple):
    """One step; vectors (*batch, n), scalars (*batch, 1) or Python numbers."""

    u: Array
    value: Scalar
    gradient: Array
    direction: Array
    """The direction of search: minus the approximation of H^-1, times the gradient."""
    memory: Memory
    steps: Scalar
    evaluations: Scalar
    going: Scalar
    near: Scalar
    """Whether the step that is left is short."""
    solved: Scalar
    unit: Scalar
    """The norm of the first gradient: squares of tiny or huge gradients would under- or overflow."""
    extent: Any
    """A bound on ||u|| + ||u - start|| of a single problem in numbers, with which most tests of short steps end."""
    size: Any
    """The norm of the direction of such a problem."""
    idle: Scalar
    """The number of searches in a row that took all their probes and did not lower the score."""


def evaluate(started: Start, unit: Scalar, read: Callable[[Array], Scalar], u: Array) -> tuple[Scalar, Array]:
    """Return the score and its gradient in units of the first gradient."""
    problem, _, arrays = started
    value, gradient = problem.value_and_gradient(u, *arrays)
    constant = problem.backend.constant
    return read(constant(value)) / unit, constant(gradient) / unit


def like_one(value: Scalar) -> Scalar:
    """Return one, as an array like the value or as a Python number."""
    return 1.0 if isinstance(value, float) else full(value, 1.0)


def reach(size: Scalar, way: Scalar) -> Scalar:
    """Return a length in the unit of the unknown: its size, or for zeros the way on which the score falls to zero."""
    usable = (way > 0) & (way < math.inf)
    return select(size > 0, size, select(usable, way, 1.0))


def first_length(gradient: Array, read: Callable[[Array], Scalar]) -> Scalar:
    """Return the length of a step of norm one along the negative gradient, or one if that is less."""
    length = 1.0 / read(nonzero_or_one(norm(gradient))[..., 0])
    return select(length < 1, length, 1.0)


def in_own_units(pairs: Pairs, unit: Array) -> Pairs:
    """Return the pairs, whose gradients are in a unit, (*batch, 1), in the units of the score."""
    xp = array_namespace(unit)
    most = float(xp.finfo(unit.dtype).max)
    # drop a pair whose rho would overflow
    held = pairs.rho <= most * xp.where(unit < 1, unit, full(unit, 1.0))[..., 0]
    rho = xp.where(held, pairs.rho, full(pairs.rho, 0.0)) / unit[..., 0]
    return Pairs(pairs.s, pairs.y * unit[None, ...], rho)
