"""Newton's method for the stages of a step. It has no inner loops, as the start is good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, eye, full, max_abs, norm
from dil._base.errors import OptionError
from dil._base.options import is_number
from dil._base.scale import is_short
from dil._base.solution import Solution
from dil._base.typing import Array, Matvec, Tree
from dil._frameworks.protocol import Backend
from dil._problem.jacobian import operator
from dil.linear._auto import Auto
from dil.linear._solver import LinearSolver
from dil.solvers._finish import finish
from dil.solvers._start import Start, check_positive, start, tolerance, zeros_like_count


@dataclass(frozen=True)
class StepNewton:
    """Solve a layer by steps z <- z - d with J d = F. It is made for the stages of an ODE method.

    Parameters
    ----------
    linear_solver : callable, optional
        Solves J d = F: `dil.linear.NormalCG()`, CG on the normal equations as in Look et al. 2020, section 3.1, or
        `dil.linear.GMRES()`. By default, J is built and factored for a small state, and `dil.linear.Auto()` solves for
        a large one.
    rtol : float, optional
        A stage is solved when each entry of a full step is within rtol |z|; by default eps ** (1/2) of the dtype.
        Convergence is quadratic, so the error after that step is of the order of the step squared.
    max_iter : int
        The largest number of Newton iterations.
    rounding : float
        A step also counts as short if each entry is within this number times eps times the largest |z|. The algebraic
        equations of a mass matrix need it where an unknown is zero, since they lack the small factor of a step.

    Notes
    -----
    Each problem of a batch has its own steps. A step that does not lower ||F|| is halved. `dil.solvers.Newton()` has a
    better line search and takes several times as long.

    Raises
    ------
    OptionError
        If an option is out of range, or a call has no start.

    Examples
    --------
    >>> import numpy as np, dil
    >>> layer = dil.root(lambda u, t: u**2 - t, dil.ode.StepNewton(), init=lambda t: 0.0 * t + 1.0)
    >>> float(layer(np.asarray(4.0)))
    2.0
    """

    linear_solver: LinearSolver | None = None
    rtol: float | None = None
    max_iter: int = 20
    rounding: float = 0.0

    def __post_init__(self) -> None:
        if not (is_number(self.rounding) and self.rounding >= 0):
            message = f"rounding={self.rounding!r}; expected a number >= 0"
            raise OptionError(message)
        check_positive(optional={"rtol": self.rtol}, max_iter=self.max_iter)
        if self.linear_solver is not None and not callable(self.linear_solver):
            message = (
                f"linear_solver={self.linear_solver!r}; expected a callable such as dil.linear.NormalCG(), or None"
            )
            raise OptionError(message)

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Solve from init; the value has the structure of init."""
        started = start(self, fun, init, args, kwargs, roots=True)
        problem, u, _ = started
        xp, rtol = array_namespace(u), tolerance(u, self.rtol, 0.5)

        def advance(s: Iterate) -> Iterate:
            F, d, linear = newton_step(started, s.u, self.linear_solver)
            size = norm(F)
            lower = size < s.size  # False for NaN
            usable = xp.all(xp.isfinite(d), axis=-1, keepdims=True)
            broken = s.broken | (s.active & ~lower & (s.steps == 0))
            singular = s.singular | (s.active & lower & ~usable)
            moving = s.active & ~broken & ~singular
            step = xp.where(lower, d, 0.5 * s.step)
            # u was moved by a full step that did not lower F: move back by half of it
            u = xp.where(moving, s.u - xp.where(lower, d, -step), s.u)
            small = is_short(step, u, started.u, rtol)
            if self.rounding:
                small = small | (max_abs(step) <= self.rounding * eps(xp, u.dtype) * max_abs(u))[..., None]
            steps = s.steps + xp.astype(s.active, s.steps.dtype)
            return Iterate(
                u,
                xp.where(moving, step, s.step),
                xp.where(moving & lower, size, s.size),
                steps,
                s.linear + xp.where(s.active, linear, zeros_like_count(u)),
                moving & ~small & (steps < self.max_iter),
                s.solved | (moving & lower & small),
                singular,
                broken,
            )

        zero, count = full(norm(u), 0.0), zeros_like_count(u)
        no = zero != 0
        first = Iterate(u, full(u, 0.0), full(zero, float("inf")), count, count, ~no, no, no, no)
        last: Iterate = problem.backend.loops.while_loop(lambda s: xp.any(s.active), advance, first)
        return finish(
            problem.space,
            last.u,
            last.steps,
            last.size,
            max_iter=self.max_iter,
            solved=last.solved,
            singular=last.singular,
            broken=last.broken,
            extra={"linear": last.linear[..., 0]},
        )


class Iterate(NamedTuple):
    """One Newton iteration; u and the last step: (*batch, n), the rest: (*batch, 1)."""

    u: Array
    step: Array
    size: Array
    """||F|| before the step."""
    steps: Array
    linear: Array
    """Iterations of the linear solver so far; a dense solve adds zero."""
    active: Array
    solved: Array
    singular: Array
    broken: Array


def newton_step(started: Start, u: Array, linear_solver: LinearSolver | None) -> tuple[Array, Array, Array]:
    """Return F, the solution d of J d = F, and the iterations of the linear solver, (*batch, 1)."""
    problem, _, arrays = started
    backend, xp = problem.backend, array_namespace(u)
    (F,), pull = backend.vjp(lambda w: (problem.residual(w, *arrays),), u)
    if linear_solver is None and u.shape[-1] <= backend.dense.crossover.general:
        return F, dense_solve(backend, lambda p: pull((p,))[0], F), zeros_like_count(u)
    J = operator(problem, pull, u, arrays)
    solution = (Auto() if linear_solver is None else linear_solver)(J, F, loop=backend.loops.while_loop)
    return F, solution.value, xp.astype(solution.iterations, xp.int32)[..., None]


def dense_solve(backend: Backend, pull: Matvec, F: Array) -> Array:
    """Return d with J d = F, by the dense J from n pullbacks. It is not finite if J is singular.

    The condition number of J is not checked: the next iteration shows whether the step was good.
    """
    xp, n = array_namespace(F), F.shape[-1]
    rows = xp.reshape(eye(n, F), (n, *(1,) * (F.ndim - 1), n))
    matrix = xp.moveaxis(backend.loops.map_rows(pull, xp.broadcast_to(rows, (n, *F.shape))), 0, -2)
    return backend.dense.lu_solve(matrix, F[..., None])[..., 0]
