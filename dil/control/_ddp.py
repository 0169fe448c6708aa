"""Differential dynamic programming: Newton steps on a plan, each with two sweeps over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eye, full, nonzero_or_one, norm
from dil._base.solution import Solution
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.protocol import Backend
from dil.control._expansion import Expansion, Slopes, convex_part, expanded, slopes, with_matrices
from dil.control._ilqr import Gains, Task, plan_of, task_of
from dil.control._riccati import symmetric
from dil.control._riccati_solver import sweeps
from dil.control._sweeping import MU_MAX, MU_MIN, SweepOptions, judge, next_mu
from dil.control._where_cheap import run_where_cheap
from dil.solvers._finish import finish
from dil.solvers._progress import iterate_watched
from dil.solvers._score_values import evaluate
from dil.solvers._start import size_of, start, tolerance, zeros_like_count

GOOD = 0.25
"""The share of the predicted decrease after which the next sweep takes the second derivatives of the dynamics."""


@dataclass(frozen=True)
class DDP(SweepOptions):
    """Minimise the cost of a plan by differential dynamic programming, with the dynamics to second order.

    Parameters
    ----------
    rtol : float, optional
        A problem is solved when a full step is within rtol of ||v||, or of its distance from the start if that is
        larger, where v are the free controls. The default is eps ** (2/3) of the dtype: 3.7e-11 in float64, 2.4e-5 in
        float32.
    max_iter : int
        The largest number of sweeps.
    history : bool
        Whether to keep `extra["history"]`, as in `ILQR`.
    progress : bool
        Whether to draw a progress bar if the run takes more than a second. Needs rich.

    Notes
    -----
    It is for plans only, `dil.control.plan(..., solver=dil.control.DDP())`. A sweep is a step of Newton's method on the
    controls, with the exact Hessian of the plan in the form of `dil.control.Riccati`: the second derivatives of the
    dynamics enter through the costates (Dunn and Bertsekas 1989; Pantoja 1988). So it converges quadratically, where
    `ILQR` converges linearly. New controls are found along the trajectory, v + alpha k + K (x' - x), for eight step
    lengths alpha at once. A sweep takes n_x + 1 products with the derivative of the dynamics, and n_x + n_u products
    with second derivatives, twice as many where that Hessian is not positive definite, each for all times at once.

    After a step d of Newton's method that promises to be the last but one, the step s from the new controls by the old
    Hessian is found, which takes no second derivatives, and is taken. If |s| <= |d| / 4, the Hessian has changed by
    less than half along d, and the next Newton step is at most 2 |s| (Deuflhard 2004, section 2.1). So a problem also
    ends when 2 |s| is within rtol, and a linear quadratic plan takes one sweep. With `Box`, the next sweep is awaited.

    Away from a minimum the Hessian may not be positive definite. A sweep in which it is not, and the sweep after one
    that won less than a quarter of the decrease that it promised, leaves out the second derivatives of the dynamics, as
    `ILQR` does, and the negative eigenvalues of those of the cost. If a sweep does not lower the cost, a multiple of
    the identity is added to Q_uu (Tassa, Erez and Todorov 2012), relative to its largest entry.

    With bounds, the map from the free controls flattens as a control comes near its bound. Where a bound is active, a
    barrier of some hundredths of the cost keeps the problem solvable. With `dil.control.Box` for the bounds, controls
    stay within them by projection: in the sweep back, a control at a bound to which its gradient pushes it is held
    (Bertsekas 1982), and new controls are cut to their bounds. Tassa, Mansard and Todorov 2014 solve a small quadratic
    programme at each step in its place.

    Raises
    ------
    OptionError
        If an option is out of range, or the problem is not a plan.

    Examples
    --------
    >>> import numpy as np, dil
    >>> def cost(x, u, goal):
    ...     return np.sum((x - goal) ** 2, axis=-1) + np.sum(u**2, axis=-1)
    >>> steer = dil.control.plan(cost, lambda x, u, gain: x + gain * np.sin(u), 3, solver=dil.control.DDP())
    >>> sol = steer.solve(np.asarray([1.0]), np.asarray(0.0), np.asarray(1.0))
    >>> dil.Status(int(sol.status)).name, np.round(sol.value[:, 0], 4)
    ('CONVERGED', array([-0.576 , -0.2257,  0.    ]))
    """

    _array_code = True
    """Whether the solver is array code alone, which a framework may compile."""
    _takes_all_times = True
    """Whether it calls cost and dynamics for all times at once."""
    _takes_box = True
    """Whether it keeps the controls within a box."""

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Minimise fun, the score of a plan, from init, (*batch, horizon, n_u)."""
        plan_of(fun, "DDP")
        started = start(self, fun, init, args, kwargs)
        backend, task = started.problem.backend, task_of(started)
        u = task.within(started.u)
        xp, rtol = array_namespace(u), tolerance(u, self.rtol, 2 / 3)

        def sweep(s: Iterate) -> Iterate:
            at, newton = backend.loops.run_if(
                xp.any(s.going & s.exact), lambda none: _newton(task, s.at, s.mu), _no_newton(s.at, s.mu)
            )
            exact = s.exact & newton.positive

            def convex(newton: Swept) -> Swept:
                parts = convex_part(at, task.plan, backend, task.theta_c)
                return _where(exact, newton, _gains(task, at, parts, s.mu))

            swept = backend.loops.run_if(xp.any(s.going & ~exact), convex, newton)
            gains = Gains(at.states, at.controls, swept.k, swept.K, s.slope)
            usable = s.going & xp.isfinite(swept.predicted)
            found = judge(task.forward(s.u, gains), s.u, s.value, usable, u)
            after, limit = _slopes(task, found.u), rtol * size_of(found.u, u)
            slope, whole = _slope(task, after), found.taken & (s.mu <= MU_MIN)
            solved = s.solved | (whole & (found.full_step <= limit))
            near = whole & exact & ~solved & (slope * found.full_step <= limit * s.slope)
            step = _simplified(task, at, after, near)
            last = near & (norm(step) <= 0.5 * limit) & (norm(step) <= 0.25 * found.full_step)
            ended, solved = xp.where(last, found.u - step, found.u), solved | last
            # a step of Newton's method that fails is followed by one without second derivatives, as long
            mu = xp.where(s.going & (found.taken | ~exact), next_mu(s.mu, found.taken), s.mu)
            won = found.taken & (found.takes_full | (s.value - found.value >= GOOD * swept.predicted))
            steps = s.steps + xp.astype(s.going, s.steps.dtype)
            going = s.going & ~solved & (mu < MU_MAX) & (steps < self.max_iter)
            slope = xp.where(s.going, slope, s.slope)
            return Iterate(ended, found.value, after, slope, mu, won, steps, going, solved)

        value, at = evaluate(started, u), _slopes(task, u)
        counter, finite = zeros_like_count(u), xp.isfinite(value)
        first = Iterate(u, value, at, _slope(task, at), full(value, 0.0), finite, counter, finite, ~finite & finite)

        def residual(s: Iterate) -> Array:
            return s.slope / nonzero_or_one(first.slope)

        last, extra = iterate_watched(self, backend, sweep, first, max_iter=self.max_iter, residual=residual)
        return finish(
            started.problem.space,
            last.u,
            last.steps,
            residual(last),
            max_iter=self.max_iter,
            solved=last.solved,
            broken=~finite,
            extra=extra,
        )


class Iterate(NamedTuple):
    """The state of the iteration; u: (*batch, n), the rest: (*batch, 1)."""

    u: Array
    value: Array
    at: Slopes
    """Those at u, before the step that ended a problem."""
    slope: Array
    """The norm of the gradient in v, there."""
    mu: Array
    """The number added to the diagonal of Q_uu, relative to its largest entry."""
    exact: Array
    """Whether the next sweep takes the second derivatives of the dynamics."""
    steps: Array
    going: Array
    solved: Array


class Swept(NamedTuple):
    """The result of a sweep back: dv = k + K dx, time first."""

    k: Array
    """(horizon, *batch, n_u)"""
    K: Array
    """(horizon, *batch, n_u, n_x)"""
    predicted: Array
    """The decrease of the score that a full step promises, (*batch, 1)."""
    positive: Array
    """Whether every Q_uu is positive definite, (*batch, 1)."""


def _slopes(task: Task, u: Array) -> Slopes:
    v = task.started.problem.space.unravel(u)
    return slopes(task.plan, task.backend, v, task.x0, task.theta_c, task.theta_h)


def _slope(task: Task, at: Slopes) -> Array:
    """Return the norm of the gradient in the controls that may move, (*batch, 1)."""
    return norm(task.vector(at.q if task.box is None else at.q * moves(at.q, *task.box.pushed(at.controls))))


def _simplified(task: Task, at: Expansion, after: Slopes, near: Array) -> Array:
    """Return H^-1 times the new gradient, H the Hessian `at` the point before the last step, (*batch, n).

    It is infinite where it is not needed.
    """
    xp, q = array_namespace(after.q), task.vector(after.q)
    if task.box is not None:
        return full(q, float("inf"))

    def step(none: Array) -> Array:
        return sweeps(at, q[None, ...], task.backend)[0][0, ...]

    return task.backend.loops.run_if(xp.any(near), step, full(q, float("inf")))  # type: ignore[no-any-return]


def moves(q: Array, at_low: Array, at_high: Array) -> Array:
    """Return one for each control that may move: zero at a bound to which the gradient pushes it (Bertsekas 1982)."""
    xp = array_namespace(q)
    return 1.0 - xp.where(q > 0, at_low, xp.where(q < 0, at_high, full(q, 0.0)))  # type: ignore[no-any-return]


def _newton(task: Task, at: Slopes, mu: Array) -> tuple[Expansion, Swept]:
    """Return the expansion and its gains."""
    found = expanded(task.plan, task.backend, at, task.theta_c, task.theta_h)
    return found, _gains(task, found, (found.W, found.P), mu)


def _no_newton(at: Slopes, mu: Array) -> tuple[Expansion, Swept]:
    """Return zeros in the place of W and of gains that are not positive."""
    zero, W = full(at.q, 0.0), 0.0 * (at.F.mT @ at.F)
    swept = Swept(zero, zero[..., None] * full(at.states[:-1, ...], 0.0)[..., None, :], full(mu, 0.0), mu != mu)
    return with_matrices(at, W), swept


def _gains(task: Task, at: Expansion, matrices: tuple[Array, Array], mu: Array) -> Swept:
    """Return the gains of the quadratic problem with `matrices` in the place of W and P."""
    xp, (W, P) = array_namespace(at.F), matrices
    sides = () if task.box is None else task.box.pushed(at.controls)
    rows = tuple(xp.flip(a, axis=0) for a in (at.F, W, at.q, *sides))
    k, K, predicted = run_where_cheap(_sweep_back, task.backend, rows, P, mu)
    k, K = xp.flip(k, axis=0), xp.flip(K, axis=0)
    return Swept(k, K, predicted, xp.all(xp.isfinite(k), axis=(0, -1))[..., None])


def _sweep_back(backend: Backend, rows: Arrays, P: Array, mu: Array) -> Arrays:
    """Return k and K from the last time to the first, and the predicted decrease, (*batch, 1)."""
    F, _, q, *_ = rows
    xp, n, identity = array_namespace(P), F.shape[-2], eye(q.shape[-1], q)

    def back(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        (P, p, predicted), (F, W, g), sides = carry, row[:3], row[3:]
        Q, q = W + F.mT @ (P @ F), F.mT @ p
        Q_ux, Q_uu, q_u = Q[..., n:, :n], Q[..., n:, n:], q[..., n:, :] + g[..., None]
        scale = nonzero_or_one(xp.max(xp.abs(Q_uu), axis=(-2, -1), keepdims=True))
        rhs, matrix = xp.concat([Q_ux, q_u], axis=-1), Q_uu + mu[..., None] * scale * identity
        if sides:
            free = moves(q_u[..., 0], *sides)[..., None]
            rhs, matrix = free * rhs, free * matrix * free.mT + (1.0 - free) * scale * identity
        gains = -backend.dense.cholesky_solve(matrix, rhs)
        K, k = gains[..., :n], gains[..., n:]
        mixed = Q_ux.mT @ K
        P = symmetric(Q[..., :n, :n] + mixed + mixed.mT + K.mT @ (Q_uu @ K))
        p = q[..., :n, :] + K.mT @ (q_u + Q_uu @ k) + Q_ux.mT @ k
        predicted = predicted - 0.5 * xp.sum(q_u * k, axis=-2)
        return (P, p, predicted), (k[..., 0], K)

    zero = full(P[..., :1], 0.0)
    (_, _, predicted), (k, K) = backend.loops.scan(back, (P, zero, full(mu, 0.0)), rows)
    return k, K, predicted


def _where(mask: Array, a: Swept, b: Swept) -> Swept:
    xp = array_namespace(mask)
    wide = mask[..., None]
    return Swept(
        xp.where(mask, a.k, b.k),
        xp.where(wide, a.K, b.K),
        xp.where(mask, a.predicted, b.predicted),
        xp.where(mask, a.positive, b.positive),
    )
