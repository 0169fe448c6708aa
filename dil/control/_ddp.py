"""Differential dynamic programming: Newton steps on a plan, each with two sweeps over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, full, nonzero_or_one, norm
from dil._base.solution import Solution
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.protocol import Backend
from dil.control._expansion import Expansion, Slopes, convex_part, expanded, slopes
from dil.control._ilqr import Feedback, Task, plan_of, task_of
from dil.control._riccati import symmetric
from dil.control._riccati_solver import sweeps
from dil.control._sweeping import (
    MU_MAX,
    MU_MIN,
    SweepOptions,
    Trial,
    is_flat,
    judge,
    largest_sizes,
    next_mu,
    sizes,
    solve_controls,
)
from dil.control._where_cheap import run_where_cheap
from dil.solvers._finish import finish
from dil.solvers._progress import iterate_watched
from dil.solvers._score_values import evaluate
from dil.solvers._start import size_of, start, tolerance, zeros_like_count

GOOD = 0.5
"""The share of the predicted decrease at which a step with the exact Hessian is taken without a look at others."""
SHARES = (0.0, 0.7, 0.3)
"""The models beside the exact one: shares of the way from the convex part of the Hessian to the Hessian."""
LENGTHS = (1.0, 4.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.0078125)
"""The step lengths. Along a negative curvature, a step longer than that of a convex model pays."""


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

    Away from a minimum the Hessian may not be positive definite. In a sweep in which it is not, or in which its step
    wins less than half of the decrease that it promises, three other models are tried at once, and the best step of all
    is taken: the convex part, without the second derivatives of the dynamics, as in `ILQR`, and without the negative
    eigenvalues of those of the cost; and two models between it and the Hessian. If the best step is short, a diagonal
    matrix is added to all Q_uu, the same at all times (Levenberg and Marquardt; Liao and Shoemaker 1991), relative to
    their largest entries. A start that is stationary, as a pole that hangs straight down, stays as it is and ends
    CONVERGED, as with other solvers. The derivative of the layer then tells NOT_MINIMUM.

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
            at = expanded(task.plan, backend, s.at, task.theta_c, task.theta_h)
            exact = _tried(task, at, s, at.W[:, None, ...], at.P[None, ...])
            won = s.value - exact.trial.value
            enough = exact.positive & ((won >= GOOD * exact.predicted) | is_flat(exact.trial, s.u, u))

            def others(exact: Tried) -> Tried:
                C, P = convex_part(at, task.plan, backend, task.theta_c)
                W = xp.stack([C + share * (at.W - C) for share in SHARES], axis=1)
                other = _tried(task, at, s, W, xp.stack([P + share * (at.P - P) for share in SHARES], axis=0))
                return _where(enough, exact, _better(exact, other))

            tried = backend.loops.run_if(xp.any(s.going & ~enough), others, exact)
            found = judge(tried.trial, s.u, s.value, s.going, u)
            after, limit = _slopes(task, found.u), rtol * size_of(found.u, u)
            slope, whole = _slope(task, after), found.taken & (s.mu < MU_MIN)
            solved = s.solved | (whole & (found.full_step <= limit))
            is_newton = enough & xp.all(found.u == tried.trial.full_u, axis=-1)[..., None]
            near = whole & is_newton & ~solved & (slope * found.full_step <= limit * s.slope)
            step = _simplified(task, at, after, near)
            last = near & (norm(step) <= 0.5 * limit) & (norm(step) <= 0.25 * found.full_step)
            ended, solved = xp.where(last, found.u - step, found.u), solved | last
            mu = xp.where(s.going, next_mu(s.mu, found.length), s.mu)
            steps = s.steps + xp.astype(s.going, s.steps.dtype)
            going = s.going & ~solved & (mu < MU_MAX) & (steps < self.max_iter)
            slope = xp.where(s.going, slope, s.slope)
            return Iterate(ended, found.value, after, slope, mu, tried.scale, steps, going, solved)

        value, at = evaluate(started, u), _slopes(task, u)
        counter, finite = zeros_like_count(u), xp.isfinite(value)
        scale = full(at.q[0, ...], 1.0)
        first = Iterate(u, value, at, _slope(task, at), full(value, 0.0), scale, counter, finite, ~finite & finite)

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
    """The number added to the diagonal of Q_uu, relative to `scale`."""
    scale: Array
    """The largest entry of the diagonal of Q_uu over all times, for each control, (*batch, n_u)."""
    steps: Array
    going: Array
    solved: Array


class Tried(NamedTuple):
    """What the sweeps back and forth with some models found; (*batch, 1) each but `trial`."""

    trial: Trial
    predicted: Array
    """The decrease of the score that a full step of the first model promises."""
    positive: Array
    """Whether every Q_uu of the first model is positive definite."""
    scale: Array
    """The largest entry of the diagonal of Q_uu over all times, for each control, (*batch, n_u)."""


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


def _tried(task: Task, at: Expansion, s: Iterate, W: Array, P: Array) -> Tried:
    """Return what the steps of some quadratic models find. W: (horizon, models, *batch, n, n), P the same without time.

    A model whose Q_uu is not positive definite at some time has no step.
    """
    xp = array_namespace(W)
    sides = () if task.box is None else task.box.pushed(at.controls)
    rows = tuple(xp.flip(a, axis=0) for a in (at.F, W, at.q, *sides))
    own = xp.max(sizes(at.W[..., at.F.shape[-2] :, at.F.shape[-2] :]), axis=0)
    k, K, predicted, scale = run_where_cheap(_sweep_back, task.backend, rows, P, s.mu * s.scale, own)
    feedback = Feedback(at.states, at.controls, xp.flip(k, axis=0), xp.flip(K, axis=0))
    positive = xp.all(xp.isfinite(k), axis=(0, -1))[..., None]
    trial, scale = task.forward(s.u, feedback, LENGTHS), nonzero_or_one(scale[0, ...])
    return Tried(trial, predicted[0, ...], positive[0, ...], scale)


def _sweep_back(backend: Backend, rows: Arrays, P: Array, added: Array, own: Array) -> Arrays:
    """Return k and K from the last time to the first, the predicted decrease, and the largest entries of Q_uu.

    Shapes: k (horizon, models, *batch, n_u), the predicted decrease (models, *batch, 1), the largest entries
    (models, *batch, n_u). `added` to the diagonal of Q_uu is (*batch, n_u), and so are its largest entries in W, `own`.
    """
    xp, n = array_namespace(P), rows[0].shape[-2]

    def back(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        (P, p, predicted), (F, W, g), sides = carry, row[:3], row[3:]
        Q, q = W + F.mT @ (P @ F), F.mT @ p
        Q_ux, Q_uu, q_u = Q[..., n:, :n], Q[..., n:, n:], q[..., n:, :] + g[..., None]
        free = moves(q_u[..., 0], *sides) if sides else None
        Q_u = xp.concat([q_u, Q[..., n:, :]], axis=-1)
        gains = -solve_controls(backend, Q_u, n + 1, added, free)
        k, K = gains[..., :1], gains[..., 1:]
        mixed = Q_ux.mT @ K
        P = symmetric(Q[..., :n, :n] + mixed + mixed.mT + K.mT @ (Q_uu @ K))
        p = q[..., :n, :] + K.mT @ (q_u + Q_uu @ k) + Q_ux.mT @ k
        predicted = predicted - 0.5 * xp.sum(q_u * k, axis=-2)
        return (P, p, predicted), (k[..., 0], K, xp.linalg.diagonal(Q_uu))

    zero = full(P[..., :1], 0.0)
    (_, _, predicted), (k, K, diagonals) = backend.loops.scan(back, (P, zero, zero[..., 0, :]), rows)
    # where the cost is concave in the controls, the convex Q_uu is zero, and says nothing of their unit
    return k, K, predicted, largest_sizes(diagonals, own)


def _better(a: Tried, b: Tried) -> Tried:
    """Return which step is better; the full step, and what is known of the models, are those of the first if it can."""
    xp = array_namespace(a.predicted)
    first, at_b = _where(a.positive, a, b), b.trial.value < a.trial.value
    best, value, length = (xp.where(at_b, y, x) for x, y in zip(a.trial[:3], b.trial[:3], strict=True))
    return first._replace(trial=first.trial._replace(best=best, value=value, length=length))


def _where(mask: Array, a: Tried, b: Tried) -> Tried:
    xp = array_namespace(mask)
    trial = Trial(*(xp.where(mask, x, y) for x, y in zip(a.trial, b.trial, strict=True)))
    return Tried(trial, *(xp.where(mask, x, y) for x, y in zip(a[1:], b[1:], strict=True)))
