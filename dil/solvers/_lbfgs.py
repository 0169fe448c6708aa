"""L-BFGS with a strong Wolfe line search, each problem of a batch by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from dil._base.arrays import (
    array_namespace,
    dot,
    eps,
    full,
    inner,
    logical_not,
    max_abs,
    nonzero_or_one,
    norm,
    select,
)
from dil._base.quasi_newton import Pairs, forget, inverse_product, no_pairs, remember
from dil._base.scalars import Scalar, as_column, either, reader
from dil._base.scale import is_short
from dil._base.solution import Solution
from dil._base.typing import Array, Tree
from dil._frameworks.protocol import Backend
from dil.solvers._finish import finish
from dil.solvers._leaving import iterate_problems
from dil.solvers._no_minimum import is_cut, is_unbounded
from dil.solvers._progress import check_watched
from dil.solvers._start import Start, check_positive, start, tolerance, zeros_like_count
from dil.solvers._verify import verified
from dil.solvers._wolfe import wolfe_search


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
    problem ends NOT_STATIONARY if a Newton step would still move it.

    `extra["pairs"]` holds the pairs at the solution, for a preconditioner of the backward pass. `extra["evaluations"]`
    counts evaluations of the score and its gradient. A pair is kept if its curvature is positive beyond rounding. If
    no step length is found, the memory is cleared and the next direction is the negative gradient.

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
        unit = read(gradient_unit[..., 0])

        def descend(started: Start, s: Iterate) -> Iterate:
            length = either(s.memory.learned, lambda: like_one(s.value), lambda: first_length(s.gradient, read))
            at = partial(evaluate, started, s.unit, read)
            line = wolfe_search(at, s.u, started.u, s.value, s.gradient, s.direction, length, s.going, backend.loops)
            moved = s.going & (line.low > 0)
            new_u = either(moved, lambda: s.u + line.low * s.direction, lambda: s.u)
            gradient = select(moved, line.low_gradient, s.gradient)
            known = forgotten(s.memory, s.going & logical_not(moved))
            memory = learn(known, new_u - s.u, gradient - s.gradient, read)
            direction, memory = downhill(memory, gradient, backend, read)
            steps = select(s.going, s.steps + 1, s.steps)
            close = near(memory, gradient, new_u, started.u, rtol, read)
            # one search more shows the curvature along a gradient that only seemed small
            solved = s.solved | (s.near & ((moved & close) | (s.going & logical_not(moved))))
            lost = read(xp.all(xp.abs(direction) <= eps(xp, u.dtype) * xp.abs(new_u), axis=-1))
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
            )

        value, gradient = read(value) / unit, gradient / unit
        count = 0 if single else zeros_like_count(u)
        finite = (read(norm(gradient)[..., 0]) < math.inf) & (abs(value) < math.inf)
        # a probe along the gradient, whose curvature gives the length of the first step
        probe = -(eps(xp, u.dtype) ** 0.5) * reach(read(norm(u)[..., 0]), abs(value)) * gradient
        memory = learn(
            nothing(u, self.memory, value), probe, evaluate(started, unit, read, u + probe)[1] - gradient, read
        )
        direction, memory = downhill(memory, gradient, backend, read)
        solved = finite & (read(norm(gradient)[..., 0]) == 0)
        close = near(memory, gradient, u, u, rtol, read)
        going = finite & logical_not(solved)
        first = Iterate(u, value, gradient, direction, memory, count, count + 3, going, close, solved, unit)

        def residual(s: Iterate) -> Array:
            return norm(s.gradient)

        last, extra = iterate_problems(self, started, descend, first, max_iter=self.max_iter, residual=residual)
        steps, evaluations, ended, cut, finite = (
            as_column(x, u) for x in (last.steps, last.evaluations, last.solved, solved, finite)
        )
        verdict = verified(started, last.u, ended, finite, rtol)
        return finish(
            problem.space,
            last.u,
            steps,
            residual(last),
            max_iter=self.max_iter,
            solved=verdict.solved,
            broken=~finite,
            far=verdict.far,
            cut=is_cut(started, cut),
            diverged=is_unbounded(started, last.u, finite & (residual(last) > 0.25)),
            extra={
                "pairs": in_own_units(last.memory.pairs, gradient_unit),
                "evaluations": evaluations[..., 0],
                **extra,
            },
        )


class Memory(NamedTuple):
    """What the last steps say of the Hessian. Scalars are (*batch, 1), or Python numbers."""

    pairs: Pairs
    learned: Scalar
    """Whether there is a pair."""
    scale: Scalar
    """<s, y> / <y, y> of the newest pair, or one: the size of H^-1. Nocedal and Wright 2006, eq. 7.20."""
    flattest: tuple[float, ...]
    """<s, y> / <s, s> of the pairs of a single problem whose scalars are Python numbers."""


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


def evaluate(started: Start, unit: Scalar, read: Callable[[Array], Scalar], u: Array) -> tuple[Scalar, Array]:
    """Return the score and its gradient in units of the first gradient."""
    problem, _, arrays = started
    value, gradient = problem.value_and_gradient(u, *arrays)
    constant = problem.backend.constant
    return read(constant(value)) / unit, constant(gradient) / unit


def like_one(value: Scalar) -> Scalar:
    """Return one, as an array like the value or as a Python number."""
    return 1.0 if isinstance(value, float) else full(value, 1.0)


def nothing(u: Array, count: int, value: Scalar) -> Memory:
    """Return an empty memory; the scalars are like `value`."""
    single = isinstance(value, float)
    return Memory(no_pairs(u, count), False if single else value != value, 1.0 if single else full(value, 1.0), ())


def forgotten(memory: Memory, which: Scalar) -> Memory:
    """Return a memory without the pairs of the problems in `which`."""
    if which is False:
        return memory
    if which is True:
        return Memory(memory.pairs._replace(rho=0.0 * memory.pairs.rho), False, 1.0, ())
    scale = select(which, 1.0, memory.scale)
    return Memory(forget(memory.pairs, which[..., 0]), memory.learned & ~which, scale, ())


def downhill(
    memory: Memory, gradient: Array, backend: Backend, read: Callable[[Array], Scalar]
) -> tuple[Array, Memory]:
    """Return a direction of descent, and its pairs. Pairs that lead uphill because of rounding are cleared."""
    product = inverse_product(memory.pairs, backend.dense.triangular_solve, memory.scale)
    direction = -product(gradient)
    good = read(inner(direction, gradient)) <= 0
    return either(good, lambda: direction, lambda: -gradient), forgotten(memory, logical_not(good))


def learn(memory: Memory, step: Array, change: Array, read: Callable[[Array], Scalar]) -> Memory:
    """Store the pairs whose curvature is positive beyond rounding, as it is for condition numbers below 1 / eps."""
    xp, pairs = array_namespace(step), memory.pairs
    widest = eps(xp, step.dtype) ** 0.5
    sy, ss, yy = (read(inner(a, b)) for a, b in ((step, change), (step, step), (change, change)))
    safe = float(xp.finfo(step.dtype).smallest_normal) / eps(xp, step.dtype)
    if isinstance(sy, float) and all(safe < abs(x) < 1 / safe for x in (sy, ss, yy)):
        if not sy > widest * ss**0.5 * yy**0.5:
            return memory
        newest = (step, change, full(step, 1.0 / sy, shape=()))
        pairs = Pairs(
            *(xp.concat([old[1:, ...], new[None, ...]], axis=0) for old, new in zip(pairs, newest, strict=True))
        )
        return Memory(pairs, True, sy / yy, (*memory.flattest, sy / ss)[-pairs.rho.shape[0] :])
    length, bend = norm(step), norm(change)
    keep = dot(step, change) > widest * length * bend
    pairs = remember(pairs, step, change, keep[..., 0])
    scale = dot(step, change) / nonzero_or_one(bend) / nonzero_or_one(bend)
    flat = dot(step, change) / nonzero_or_one(length) / nonzero_or_one(length)
    if not isinstance(sy, float):
        return Memory(pairs, memory.learned | keep, select(keep, scale, memory.scale), ())
    if not read(keep[..., 0]):
        return memory
    scale, flat = read(scale[..., 0]), read(flat[..., 0])
    return Memory(pairs, True, scale, (*memory.flattest, flat)[-pairs.rho.shape[0] :])


def near(
    memory: Memory, gradient: Array, u: Array, start: Array, rtol: float, read: Callable[[Array], Scalar]
) -> Scalar:
    """Whether u is within the tolerance of the solution, estimated by the least curvature in memory, <s, y> / <s, s>.

    The length of the next step is a worse estimate: while the memory is short, so is the step.
    """
    xp, pairs = array_namespace(u), memory.pairs
    flat = read(max_abs(gradient)) == 0
    if isinstance(memory.scale, float):
        if flat or not memory.flattest:
            return flat
        longest = 1.0 / min(memory.flattest)
        return bool(is_short(longest * gradient, u, start, rtol))
    longest = xp.max(inner(pairs.s, pairs.s) * pairs.rho, axis=0)[..., None]
    return flat | ((longest > 0) & is_short(longest * gradient, u, start, rtol))


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
