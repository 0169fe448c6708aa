"""The iterative linear quadratic regulator: Gauss-Newton steps on a plan, each with two sweeps over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, eye, full, nonzero_or_one, norm
from dil._base.errors import OptionError
from dil._base.solution import Solution
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.fixed import identity_of
from dil._frameworks.protocol import Backend
from dil.control._bounds import Bounds
from dil.control._box import Box
from dil.control._expansion import at_the_end, gradient_and_hessian, jacobian, positive_part
from dil.control._score import PlanScore, time_first
from dil.control._sweeping import (
    MU_MAX,
    MU_MIN,
    SweepOptions,
    Trial,
    judge,
    largest_sizes,
    next_mu,
    sizes,
    solve_controls,
)
from dil.control._where_cheap import run_where_cheap
from dil.solvers._finish import finish
from dil.solvers._progress import iterate_watched
from dil.solvers._score_values import best_row, evaluate
from dil.solvers._start import Start, size_of, start, tolerance, zeros_like_count

LENGTHS = (1.0, 2.0, *(0.5**i for i in range(1, 7)))
"""The step lengths. One call tries all of them. Where full steps win slowly, longer ones win more."""


@dataclass(frozen=True)
class ILQR(SweepOptions):
    """Minimise the cost of a plan by iterated LQR, with the cost to second order and the dynamics to first order.

    Parameters
    ----------
    rtol : float, optional
        A problem is solved when a full step is within rtol of ||v||, or of its distance from the start if that is
        larger, where v are the free controls. The default is eps ** (2/3) of the dtype: 3.7e-11 in float64, 2.4e-5 in
        float32.
    max_iter : int
        The largest number of sweeps.
    history : bool
        Whether to keep `extra["history"]`, shape (max_iter, *batch): the norm of Q_u after every sweep, relative to the
        start. Q_u is the gradient in the controls. Sweeps not taken are NaN.
    progress : bool
        Whether to draw a progress bar if the run takes more than a second. Needs rich.

    Notes
    -----
    It is for plans only, `dil.control.plan(..., solver=dil.control.ILQR())`, since it needs cost and dynamics
    separately. A sweep needs n_x + 1 products with the derivative of the dynamics and n_x + n_u products with the
    Hessian of the cost. Each product covers all times. The remaining work of a sweep is dense algebra: one matrix of
    n_x + n_u rows for each time.

    The second derivatives of the dynamics are neglected, and so are the negative eigenvalues of those of the cost, and
    of the map from the free controls to the bounded ones. So each system is solvable where controls cost something.

    The steps converge linearly. Each sweep multiplies the error by the largest |1 - e|, where e are the eigenvalues of
    H_GN^-1 H, for the Hessian H of the plan and the matrix H_GN of a sweep. That is near zero if the second derivatives
    of the dynamics count for little, as near targets that are met. With dynamics of tanh over 50 steps, whose targets
    stay out of reach, e is 0.2 to 1.2, and some 90 sweeps are needed. With an e above 2 only short steps win. `DDP`
    takes the second derivatives in, and converges quadratically.

    If the best step is short, a diagonal matrix is added to all Q_uu, the same at all times, relative to their largest
    entries. Sources: Li and Todorov 2004 for the expansion; Tassa, Erez and Todorov 2012, eq. 11 and section II.F, for
    the sweep with regularisation.

    Raises
    ------
    OptionError
        If an option is out of range, or the problem is not a plan.

    Examples
    --------
    >>> import numpy as np, dil
    >>> def cost(x, u, goal):
    ...     return np.sum((x - goal) ** 2, axis=-1) + np.sum(u**2, axis=-1)
    >>> steer = dil.control.plan(cost, lambda x, u, gain: x + gain * np.sin(u), 3, solver=dil.control.ILQR())
    >>> sol = steer.solve(np.asarray([1.0]), np.asarray(0.0), np.asarray(1.0))
    >>> dil.Status(int(sol.status)).name, np.round(sol.value[:, 0], 4)
    ('CONVERGED', array([-0.576 , -0.2257,  0.    ]))
    """

    _array_code = True
    """Whether the solver is array code alone, which a framework may compile."""
    _takes_all_times = True
    """Whether it calls cost and dynamics for all times at once."""

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Minimise fun, the score of a plan, from init, (*batch, horizon, n_u)."""
        plan_of(fun, "ILQR")
        started = start(self, fun, init, args, kwargs)
        u, backend = started.u, started.problem.backend
        xp, rtol = array_namespace(u), tolerance(u, self.rtol, 2 / 3)
        task = task_of(started)

        def sweep(s: Iterate) -> Iterate:
            gains = task.backward(s.u, s.mu * s.scale)
            usable = s.going & xp.isfinite(gains.slope)
            found = judge(task.forward(s.u, gains.feedback), s.u, s.value, usable, u)
            solved = s.solved | (found.taken & (s.mu < MU_MIN) & (found.full_step <= rtol * size_of(found.u, u)))
            mu = xp.where(s.going, next_mu(s.mu, found.length), s.mu)
            steps = s.steps + xp.astype(s.going, s.steps.dtype)
            going = s.going & ~solved & (mu < MU_MAX) & (steps < self.max_iter)
            slope, scale = xp.where(usable, gains.slope, s.slope), nonzero_or_one(gains.largest)
            return Iterate(found.u, found.value, slope, mu, scale, steps, going, solved)

        value = evaluate(started, u)
        counter, finite = zeros_like_count(u), xp.isfinite(value)
        zero, gains = full(value, 0.0), task.backward(u, full(value, 0.0))
        scale = nonzero_or_one(gains.largest)
        first = Iterate(u, value, gains.slope, zero, scale, counter, finite, ~finite & finite)

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
    slope: Array
    """||Q_u|| over all times."""
    mu: Array
    """The number added to the diagonal of Q_uu, relative to `scale`."""
    scale: Array
    """The largest entry of the diagonal of Q_uu over all times, for each control, (*batch, n_u)."""
    steps: Array
    going: Array
    solved: Array


class Feedback(NamedTuple):
    """The states and controls of an expansion, and feedbacks du = k + K dx about them, time first."""

    states: Array
    controls: Array
    k: Array
    """(horizon, feedbacks, *batch, n_u)"""
    K: Array
    """(horizon, feedbacks, *batch, n_u, n_x)"""


class Gains(NamedTuple):
    """The result of a backward sweep."""

    feedback: Feedback
    slope: Array
    """||Q_u|| over all times, (*batch, 1)."""
    largest: Array
    """The largest entry of the diagonal of Q_uu over all times, for each control; (*batch, n_u)."""


class Task(NamedTuple):
    """A plan with its arguments."""

    started: Start
    backend: Backend
    plan: PlanScore
    x0: Array
    theta_c: Tree
    theta_h: Tree
    box: Box | None = None
    """The box that the controls stay within. The plan of the task does not know it."""

    def backward(self, u: Array, added: Array) -> Gains:
        """Return the gains of the expansion about u, with `added`, (*batch, n_u) or (*batch, 1), on Q_uu's diagonal."""
        xp, plan = array_namespace(u), self.plan
        v = self.started.problem.space.unravel(u)
        states = xp.moveaxis(self.backend.constant(plan.states(v, self.x0, self.theta_h)), -2, 0)
        x, v = states[:-1, ...], time_first(v)
        n = x.shape[-1]
        z = xp.concat([x, plan.controls(v)], axis=-1)
        F = jacobian(self.backend, lambda z: plan.steps(z[..., :n], z[..., n:], self.theta_h), z, n)
        c, C = gradient_and_hessian(self.backend, lambda z: plan.stages(z[..., :n], z[..., n:], self.theta_c), z)
        if plan.final is None:
            p, P = full(x[0, ...], 0.0), full(F[0, ..., :n], 0.0)
        else:
            p, P = at_the_end(self.backend, lambda z: plan.last(z, self.theta_c), states[-1, ...])
        own = xp.max(sizes(C[..., n:, n:]), axis=0)
        P, C = positive_part(P), positive_part(C)
        rows = tuple(xp.flip(a, axis=0) for a in (F, c, C, *self._bound_terms(v)))
        *back, largest = run_where_cheap(_sweep_back, self.backend, rows, p, P, added, own)
        k, K, q_u = (xp.flip(a, axis=0) for a in back)
        feedback = Feedback(states, v, k[:, None, ...], K[:, None, ...])
        return Gains(feedback, norm(self.vector(q_u)), largest)

    def forward(self, u: Array, feedback: Feedback, lengths: Sequence[float] = LENGTHS) -> Trial:
        """Return the controls with feedback and their costs, for all feedbacks and step lengths at once.

        The full step is that of the first feedback and the first length.
        """
        xp, plan, (rows, at) = array_namespace(u), self.plan, self.plan.h_rows(self.theta_h)
        count, feedbacks = len(lengths), feedback.k.shape[1]
        tried = xp.asarray(lengths, dtype=u.dtype, device=device(u))
        tried = xp.reshape(tried, (count, *(1 for _ in feedback.k.shape[1:])))

        def step(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
            (x,), (X, v, k, K, *rest) = carry, row
            dv = tried * k + _times(K, xp.reshape(x - X, (count, feedbacks, *X.shape)))
            v = v + xp.reshape(dv, (count * feedbacks, *v.shape))
            v = v if self.box is None else self.box.squash(v)
            x = self.backend.constant(plan.step(x, plan.controls(v), at(rest)))
            return (x,), (v, x)

        x = xp.broadcast_to(self.x0, (count * feedbacks, *self.x0.shape))
        known = (feedback.states[:-1, ...], *feedback[1:])
        _, (v, after) = self.backend.loops.scan(step, (x,), (*known, *rows))
        states = xp.concat([x[None, ...], after], axis=0)
        values = self.backend.constant(plan.along(states, v, self.theta_c))[..., None]
        found = xp.reshape(xp.moveaxis(v, 0, -2), (count * feedbacks, *u.shape))
        usable = xp.isfinite(values) & xp.all(xp.isfinite(found), axis=-1, keepdims=True)
        values = xp.where(usable, values, full(values, float("inf")))
        each = xp.broadcast_to(tried[..., :1], (count, feedbacks, *u.shape[:-1], 1))
        with_length = xp.concat([found, xp.reshape(each, values.shape)], axis=-1)
        best, value = best_row(with_length, values)
        return Trial(best[..., :-1], value, best[..., -1:], found[0, ...], values[0, ...])

    def _bound_terms(self, v: Array) -> Arrays:
        """Return the derivatives of u(v) and of the barrier, each (horizon, *batch, n_u); () without bounds."""
        bounds = self.plan.bounds
        if not isinstance(bounds, Bounds):
            return ()
        first, second = bounds.slopes(v)
        t = array_namespace(v).tanh(v)
        # the barrier has the derivatives 2 tanh v and 2 - 2 tanh(v)^2
        return first, second, self.plan.barrier * 2.0 * t, self.plan.barrier * 2.0 * (1.0 - t) * (1.0 + t)

    def within(self, u: Array) -> Array:
        """Return vectors of the unknowns within the box."""
        if self.box is None:
            return u
        return self.vector(self.box.squash(time_first(self.started.problem.space.unravel(u))))

    def vector(self, q: Array) -> Array:
        """Return an array with time first as vectors of the unknowns, (*batch, n)."""
        xp = array_namespace(q)
        moved = xp.moveaxis(q, 0, -2)
        return xp.reshape(moved, (*moved.shape[:-2], moved.shape[-2] * moved.shape[-1]))  # type: ignore[no-any-return]


def _sweep_back(backend: Backend, rows: Arrays, p: Array, P: Array, added: Array, own: Array) -> Arrays:
    """Return k, K and Q_u from the last time to the first, and the largest entries of Q_uu, (*batch, n_u)."""
    xp, n = array_namespace(P), P.shape[-1]

    def step(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        (p, P), (F, c, C) = carry, row[:3]
        q, Q = c + _times(F.mT, p), C + F.mT @ P @ F
        q_u, Q_ux, Q_uu = _in_free_controls(q[..., n:], Q[..., n:, :n], Q[..., n:, n:], row[3:])
        solution = -solve_controls(backend, xp.concat([q_u[..., None], Q_ux, Q_uu], axis=-1), n + 1, added)
        k, K = solution[..., 0], solution[..., 1:]
        p = q[..., :n] + _times(K.mT, _times(Q_uu, k) + q_u) + _times(Q_ux.mT, k)
        mixed = K.mT @ Q_ux
        P = Q[..., :n, :n] + K.mT @ Q_uu @ K + mixed + mixed.mT
        return (p, 0.5 * (P + P.mT)), (k, K, q_u, xp.linalg.diagonal(Q_uu))

    _, (*found, diagonals) = backend.loops.scan(step, (p, P), rows)
    return *found, largest_sizes(diagonals, own)


def _in_free_controls(q_u: Array, Q_ux: Array, Q_uu: Array, bound_terms: Arrays) -> Arrays:
    """Return the derivatives in the free controls v, with the barrier, from the derivatives in u(v)."""
    if not bound_terms:
        return q_u, Q_ux, Q_uu
    first, second, slope, curvature = bound_terms
    bend = second * q_u
    curvature = curvature + array_namespace(q_u).where(bend > 0, bend, full(bend, 0.0))
    diagonal = curvature[..., None] * eye(q_u.shape[-1], q_u)
    return first * q_u + slope, first[..., None] * Q_ux, first[..., None] * Q_uu * first[..., None, :] + diagonal


def plan_of(fun: Any, solver: str) -> PlanScore:
    """Return the plan of a score. Raises `OptionError` if it is not one."""
    plan = identity_of(getattr(fun, "fn", fun))
    if not isinstance(plan, PlanScore):
        message = f"{solver} solves plans only: dil.control.plan(..., solver={solver}()); take LBFGS() for a score"
        raise OptionError(message)
    return plan


def task_of(started: Start) -> Task:
    """Return the plan of a score, with its arguments."""
    problem, _, arrays = started
    args, kwargs = problem.arguments.call(arrays)
    named = dict(zip(("x0", "theta_c", "theta_h", "captured"), args, strict=False)) | kwargs
    plan = identity_of(problem.score.fn)
    assert isinstance(plan, PlanScore)
    plan = plan.bound(named.get("captured"))
    box = plan.bounds if isinstance(plan.bounds, Box) else None
    args = named["x0"], named.get("theta_c"), named.get("theta_h")
    return Task(started, problem.backend, plan.without_box(), *args, box)


def _times(A: Array, x: Array) -> Array:
    """Return A x for each problem: (..., m, n), (..., n) -> (..., m)."""
    return (A @ x[..., None])[..., 0]
