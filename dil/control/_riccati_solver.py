"""The linear solver of a plan: one sweep back and one forth through its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, eye, full, nonzero_or_one, norm
from dil._base.errors import OptionError
from dil._base.operator import Operator
from dil._base.solution import Solution
from dil._base.status import Status, first_of
from dil._base.typing import Array, Arrays, Loop
from dil._diagnostics.failure_policy import Place
from dil._frameworks.protocol import Backend
from dil.control._expansion import Expansion
from dil.control._riccati import symmetric
from dil.control._where_cheap import run_where_cheap
from dil.linear._right_hand_side import backend_of_system

SLACK = 32
"""The least eigenvalue of Q_uu, relative to the terms that it is a sum of, in units of their rounding."""


@dataclass(frozen=True)
class Riccati:
    """Solve H x = b, with H the Hessian of a plan in its controls, in time linear in the horizon.

    Notes
    -----
    It is for plans only, and calls their functions with a leading axis of times, like `DDP` and `ILQR`. H x = b are
    the optimality conditions of a linear quadratic problem about the trajectory of the plan. Its costs are the second
    derivatives of the Hamiltonian, so H is exact, with the second derivatives of the dynamics (Dunn and Bertsekas
    1989; Pantoja 1988). The Riccati recursion solves it by a sweep back through the steps and a sweep forth:
    O(horizon (n_x + n_u)^3) operations, where a dense solve takes O(horizon^3 n_u^3), and memory for one matrix of
    n_x + n_u rows for each step. Amos et al. 2018 differentiate the same regulator, without those second derivatives.

    In the sweep back, each step has a matrix Q_uu of n_u rows. All of them are positive definite if and only if H is,
    so if and only if the plan is a strict minimum. If one has a negative eigenvalue, `extra["indefinite"]` is true and
    the layer ends NOT_MINIMUM; the solution is that of the system all the same. If one is singular, the problem ends
    SINGULAR. `extra["step"]` is the first such step, or -1. With `Box` for bounds, H is that of the controls between
    their bounds, and a held control is looked at: see there. One step of refinement follows the sweeps where the
    residual is above eps ** 0.75 of b; a problem whose residual stays above ends STAGNATED.

    Raises
    ------
    OptionError
        If the system is not that of a plan.

    Examples
    --------
    >>> import numpy as np, dil
    >>> def cost(x, u, goal):
    ...     return np.sum((x - goal) ** 2, axis=-1) + np.sum(u**2, axis=-1)
    >>> def drift(x, u, gain):
    ...     return x + gain * np.sin(u)
    >>> steer = dil.control.plan(cost, drift, 200, solver=dil.control.DDP(), linear_solver=dil.control.Riccati())
    >>> _, pull = dil.vjp(steer, np.asarray([1.0]), np.asarray(0.0), np.asarray(1.0))
    >>> round(float(pull(np.ones((200, 1)))[1]), 3)
    1.106
    """

    _takes_many = True
    """Whether it solves for many right-hand sides, (k, *batch, n), of an operator with `one`."""

    def __call__(self, A: Operator, b: Array, /, *, loop: Loop | None = None) -> Solution:
        """Solve A x = b for b: (*batch, n); status: batch."""
        backend = backend_of_system(b, "dil.control.Riccati")
        one, xp = A if A.one is None else A.one, array_namespace(b)
        expansion = one._expansion() if isinstance(one, Operator) and one._expansion is not None else None
        if not isinstance(expansion, Expansion):
            message = "dil.control.Riccati solves the systems of a plan; take dil.linear.Auto() for another layer"
            raise OptionError(message)
        rows = b[None, ...] if A.one is None else b
        probes = [xp.broadcast_to(p, rows.shape[1:])[None, ...] for p in A.probes]
        rhs = xp.concat([rows, *probes]) if probes else rows
        x, Q_uu = sweeps(expansion, rhs, backend)
        verdict, count = judged(Q_uu, expansion), rows.shape[0]
        found = x[:count, ...] if A.one is not None else x[0, ...]
        regular, held = verdict.singular < 0, expansion.held

        def refine(s: Checked) -> Checked:
            r = xp.where(s.needs_step[..., None], s.r, 0.0)
            more, _ = sweeps(expansion, r if A.one is not None else r[None, ...], backend)
            return checked(A, b, s.x + xp.reshape(more, s.x.shape))

        start = checked(A, b, found)
        start = start._replace(needs_step=start.needs_step & regular)
        last = backend.loops.run_if(xp.any(start.needs_step), refine, start)
        finite = xp.isfinite(last.residual) & xp.all(xp.isfinite(b), axis=-1)
        status = first_of(
            [
                (~verdict.finite | ~xp.all(xp.isfinite(b), axis=-1), Status.NON_FINITE),
                (~regular | ~finite, Status.SINGULAR),
                *([] if held is None else [(held.wrong, Status.NOT_STATIONARY), (held.degenerate, Status.KINK)]),
                (last.needs_step, Status.STAGNATED),
            ],
            Status.CONVERGED,
        )
        steps = full(status, expansion.F.shape[0])
        extra: dict[str, Any] = {"indefinite": verdict.indefinite & (status == status), "step": verdict.first}
        extra = {**extra, "products": full(status, 1), "place": Place("step", verdict.first)}
        if A.probes:
            extra["probes"] = tuple(x[count + i, ...] for i in range(len(A.probes)))
        return Solution(last.x, status, steps, xp.where(finite, last.residual, 1.0), extra)


class Checked(NamedTuple):
    """A solution, its residual, and whether that is above the tolerance; x, r: like b."""

    x: Array
    r: Array
    residual: Array
    """||r|| / ||b||"""
    needs_step: Array


def checked(A: Operator, b: Array, x: Array) -> Checked:
    """Return a solution with its residual."""
    xp, r = array_namespace(b), b - A(x)
    residual = (norm(r) / nonzero_or_one(norm(b)))[..., 0]
    return Checked(x, r, residual, residual > eps(xp, b.dtype) ** 0.75)


def sweeps(expansion: Expansion, b: Array, backend: Backend) -> Arrays:
    """Return x with H x = b, both (m, *batch, n), and the matrices Q_uu, (horizon, *batch, n_u, n_u)."""
    xp, (F, W, P, *_) = array_namespace(b), expansion
    horizon, n_u = F.shape[0], F.shape[-1] - F.shape[-2]
    # one column for each right-hand side
    w = xp.moveaxis(xp.reshape(b, (*b.shape[:-1], horizon, n_u)), (-2, 0), (0, -1))
    v, Q_uu = run_where_cheap(_back_and_forth, backend, (F, W, w), P)
    return xp.reshape(xp.moveaxis(v, (-1, 0), (0, -2)), b.shape), xp.flip(Q_uu, axis=0)


def _back_and_forth(backend: Backend, rows: Arrays, P: Array) -> Arrays:
    """Return the changes v of the controls, (horizon, *batch, n_u, m), and Q_uu from the last time to the first."""
    xp, n, (F, _, w) = array_namespace(P), P.shape[-1], rows

    def back(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        (P, p), (F, W, w) = carry, row
        Q, q = W + F.mT @ (P @ F), F.mT @ p
        Q_ux, Q_uu, q_u = Q[..., n:, :n], Q[..., n:, n:], q[..., n:, :] - w
        gains = -backend.dense.lu_solve(Q_uu, xp.concat([Q_ux, q_u], axis=-1))
        K, k = gains[..., :n], gains[..., n:]
        return (symmetric(Q[..., :n, :n] + Q_ux.mT @ K), q[..., :n, :] + K.mT @ q_u), (K, k, Q_uu)

    zero = full(w, 0.0, shape=(*w.shape[1:-2], n, w.shape[-1]))
    _, (K, k, Q_uu) = backend.loops.scan(back, (P, zero), tuple(xp.flip(a, axis=0) for a in rows))

    def forth(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        (x,), (F, K, k) = carry, row
        v = k + K @ x
        return (F[..., :n] @ x + F[..., n:] @ v,), (v,)

    _, (v,) = backend.loops.scan(forth, (zero,), (F, xp.flip(K, axis=0), xp.flip(k, axis=0)))
    return v, Q_uu


class Verdict(NamedTuple):
    """What the matrices Q_uu say; shape batch."""

    finite: Array
    """Whether the expansion is finite."""
    indefinite: Array
    """Whether one has a negative eigenvalue."""
    singular: Array
    """The first step whose matrix is singular, or -1."""
    first: Array
    """The first step whose matrix is not positive definite, or -1."""


def judged(Q_uu: Array, expansion: Expansion) -> Verdict:
    """Return the verdict, in the units of each control: its terms in Q_uu."""
    xp, n = array_namespace(Q_uu), expansion.F.shape[-2]
    machine = eps(xp, Q_uu.dtype)
    own = xp.abs(xp.linalg.diagonal(expansion.W[..., n:, n:]))
    terms = xp.maximum(own, xp.abs(xp.linalg.diagonal(Q_uu) - xp.linalg.diagonal(expansion.W[..., n:, n:])))
    d = 1.0 / xp.sqrt(nonzero_or_one(terms))
    scaled = d[..., :, None] * Q_uu * d[..., None, :]
    # what comes before a singular step is not finite
    usable = xp.all(xp.isfinite(scaled), axis=(-2, -1), keepdims=True)
    scaled = xp.where(usable, scaled, eye(scaled.shape[-1], scaled))
    values = xp.linalg.eigvalsh(scaled)
    rounding = SLACK * machine * Q_uu.shape[-1]
    is_singular = xp.any(xp.abs(values) <= rounding, axis=-1)
    not_positive = xp.any(values <= rounding, axis=-1)

    def first(mask: Array) -> Array:
        """Return the first time at which the mask holds, or -1."""
        place = xp.argmax(xp.astype(mask, xp.int32), axis=0)
        found: Array = xp.where(xp.any(mask, axis=0), xp.astype(place, xp.int32), full(place, -1, dtype=xp.int32))
        return found

    finite = xp.all(xp.isfinite(expansion.W), axis=(0, -2, -1)) & xp.all(xp.isfinite(expansion.F), axis=(0, -2, -1))
    finite = finite & xp.all(xp.isfinite(expansion.P), axis=(-2, -1))
    return Verdict(finite, xp.any(values < -rounding, axis=(0, -1)), first(is_singular), first(not_positive))
