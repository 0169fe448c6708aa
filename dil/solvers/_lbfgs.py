"""L-BFGS with a strong Wolfe line search, each problem of a batch by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, dot, eps, full, inner, nonzero_or_one, norm
from dil._base.quasi_newton import Pairs, forget, inverse_product, no_pairs, remember
from dil._base.scale import is_short
from dil._base.solution import Solution
from dil._base.typing import Array, Tree
from dil._frameworks.protocol import Backend
from dil.solvers._finish import finish
from dil.solvers._no_minimum import is_cut, is_unbounded
from dil.solvers._progress import check_watched, iterate_watched
from dil.solvers._start import check_positive, start, tolerance, zeros_like_count
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

        def evaluate(u: Array) -> tuple[Array, Array]:
            value, gradient = problem.value_and_gradient(u, *arrays)
            return backend.constant(value)[..., None] / unit, backend.constant(gradient) / unit

        # in units of the first gradient: squares of tiny or huge gradients would under- or overflow
        unit = full(norm(u), 1.0)
        value, gradient = evaluate(u)
        unit = nonzero_or_one(norm(gradient))
        value, gradient = value / unit, gradient / unit

        def descend(s: Iterate) -> Iterate:
            learned = (s.pairs.rho[-1, ...] > 0)[..., None]
            length = xp.where(learned, full(s.value, 1.0), at_most_one(1.0 / nonzero_or_one(norm(s.gradient))))
            line = wolfe_search(
                evaluate, s.u, u, s.value, s.gradient, s.direction, length, s.going, backend.loops.while_loop
            )
            moved = s.going & (line.low > 0)
            new_u = xp.where(moved, s.u + line.low * s.direction, s.u)
            gradient = xp.where(moved, line.low_gradient, s.gradient)
            pairs = learn(forget(s.pairs, (s.going & ~moved)[..., 0]), new_u - s.u, gradient - s.gradient)
            direction, pairs = downhill(pairs, gradient, backend)
            steps = s.steps + xp.astype(s.going, s.steps.dtype)
            close = near(pairs, gradient, new_u, u, rtol)
            # one search more shows the curvature along a gradient that only seemed small
            solved = s.solved | (s.near & ((moved & close) | (s.going & ~moved)))
            lost = xp.all(xp.abs(direction) <= eps(xp, u.dtype) * xp.abs(new_u), axis=-1, keepdims=True)
            going = s.going & (moved | learned) & ~(solved | lost) & (steps < self.max_iter)
            return Iterate(
                new_u,
                xp.where(moved, line.low_value, s.value),
                gradient,
                direction,
                pairs,
                steps,
                s.evaluations + line.probes,
                going,
                close,
                solved,
            )

        finite = xp.isfinite(norm(gradient)) & xp.isfinite(value)
        # a probe along the gradient, whose curvature gives the length of the first step
        probe = -(eps(xp, u.dtype) ** 0.5) * nonzero_or_one(norm(u)) * gradient
        pairs = learn(no_pairs(u, self.memory), probe, evaluate(u + probe)[1] - gradient)
        direction, pairs = downhill(pairs, gradient, backend)
        solved = finite & (norm(gradient) == 0)
        none = zeros_like_count(u)
        close = near(pairs, gradient, u, u, rtol)
        first = Iterate(u, value, gradient, direction, pairs, none, none + 3, finite & ~solved, close, solved)

        def residual(s: Iterate) -> Array:
            return norm(s.gradient)

        last, extra = iterate_watched(self, backend, descend, first, max_iter=self.max_iter, residual=residual)
        rho, most = last.pairs.rho, float(xp.finfo(u.dtype).max)
        held = rho <= most * at_most_one(unit[..., 0])  # drop a pair whose rho would overflow
        rho = xp.where(held, rho, full(rho, 0.0)) / unit[..., 0]
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
            cut=is_cut(started, solved),
            diverged=is_unbounded(started, last.u, finite & (residual(last) > 0.25)),
            extra={
                "pairs": Pairs(last.pairs.s, last.pairs.y * unit[None, ...], rho),
                "evaluations": last.evaluations[..., 0],
                **extra,
            },
        )


class Iterate(NamedTuple):
    """One step; vectors (*batch, n), the rest but the pairs (*batch, 1)."""

    u: Array
    value: Array
    gradient: Array
    direction: Array
    """The direction of search: minus the approximation of H^-1, times the gradient."""
    pairs: Pairs
    steps: Array
    evaluations: Array
    going: Array
    near: Array
    """Whether the step that is left is short."""
    solved: Array


def downhill(pairs: Pairs, gradient: Array, backend: Backend) -> tuple[Array, Pairs]:
    """Return a direction of descent, and its pairs. Pairs that lead uphill because of rounding are cleared."""
    xp = array_namespace(gradient)
    direction = -inverse_product(pairs, backend.dense.triangular_solve)(gradient)
    good = dot(direction, gradient) <= 0
    return xp.where(good, direction, -gradient), forget(pairs, ~good[..., 0])


def learn(pairs: Pairs, step: Array, change: Array) -> Pairs:
    """Store the pairs whose curvature is positive beyond rounding, as it is for condition numbers below 1 / eps."""
    widest = eps(array_namespace(step), step.dtype) ** 0.5
    return remember(pairs, step, change, (dot(step, change) > widest * norm(step) * norm(change))[..., 0])


def near(pairs: Pairs, gradient: Array, u: Array, start: Array, rtol: float) -> Array:
    """Whether u is within the tolerance of the solution, estimated by the least curvature in memory, <s, y> / <s, s>.

    The length of the next step is a worse estimate: while the memory is short, so is the step.
    """
    xp, slope = array_namespace(u), norm(gradient)
    flattest = xp.max(inner(pairs.s, pairs.s) * pairs.rho, axis=0)[..., None]
    return (slope == 0) | ((flattest > 0) & is_short(flattest * gradient, u, start, rtol))  # type: ignore[no-any-return]


def at_most_one(length: Array) -> Array:
    """Return the smaller of a length and one."""
    return array_namespace(length).where(length < 1, length, full(length, 1.0))  # type: ignore[no-any-return]
