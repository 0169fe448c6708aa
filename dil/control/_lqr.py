"""The linear quadratic regulator: the optimal gain for an infinite or a finite horizon."""

from __future__ import annotations

from dil._base.arrays import array_namespace, device, eps, eye, full
from dil._base.errors import DTypeError, OptionError, ShapeError
from dil._base.options import check_integer
from dil._base.status import Status
from dil._base.typing import AnyArray, Array, Arrays, OnFailure
from dil._diagnostics.failure_policy import Policy
from dil._frameworks.registry import adopted, common_owner, owner
from dil.control._dare import Gradient, broadcasts_to, check_shapes, dare
from dil.control._riccati import feedback, sandwich, symmetric
from dil.linear._solver import LinearSolver


def lqr_gain(
    A: AnyArray,
    B: AnyArray,
    Q: AnyArray,
    R: AnyArray,
    *,
    horizon: int | None = None,
    final: AnyArray | None = None,
    gradient: Gradient = "implicit",
    linear_solver: LinearSolver | None = None,
    on_failure: OnFailure = "raise",
) -> AnyArray:
    """Return K, where u = -K x minimises sum_t x_t^T Q x_t + u_t^T R u_t with x_{t+1} = A x_t + B u_t.

    Parameters
    ----------
    A, B, Q, R
        As in `dil.control.dare`.
    horizon : int, optional
        The number of controls. Without it the horizon is infinite and the gain is constant.
    final : array, (*batch, n, n), optional
        The cost x_H^T final x_H of the state after the last control; zero by default. Only for a finite horizon.
    gradient, linear_solver
        As in `dil.control.dare`, only for the infinite horizon.
    on_failure
        As in `dil.control.dare`.

    Returns
    -------
    array, (*batch, m, n), or (*batch, horizon, m, n) with a horizon
        The gain. With a horizon there is one gain for each time. It is differentiable in all arrays.

    Raises
    ------
    OptionError
        If an option is out of range, or applies only to the other kind of horizon (finite or infinite).
    ShapeError
        If the shapes do not match.
    ConvergenceError
        If there is no optimal gain and on_failure="raise".

    Notes
    -----
    Look et al. 2020, eq. 7 to 9. A finite horizon uses the Riccati recursion from S_H = final:
    K_t = (R + B^T S_{t+1} B)^-1 B^T S_{t+1} A, S_t = Q + A^T S_{t+1} (A - B K_t). The recursion is a scan of the
    backend, and the gradient is taken through its steps. If some R + B^T S_t B is not positive definite, no least cost
    exists and the system ends NOT_CONVEX. R may be zero.

    Examples
    --------
    >>> import numpy as np, dil
    >>> A, B = np.asarray([[1.0, 1.0], [0.0, 1.0]]), np.asarray([[0.0], [1.0]])
    >>> np.round(dil.control.lqr_gain(A, B, np.eye(2), np.eye(1)), 4)
    array([[0.4221, 1.2439]])
    >>> np.round(dil.control.lqr_gain(A, B, np.eye(2), np.eye(1), horizon=3)[:, 0], 4)
    array([[0.2857, 1.    ],
           [0.    , 0.5   ],
           [0.    , 0.    ]])
    """
    A, B, Q, R, final = adopted((A, B, Q, R, final))
    if horizon is None:
        if final is not None:
            message = "final= is the cost of the last state, so it needs horizon="
            raise OptionError(message)
        S = dare(A, B, Q, R, gradient=gradient, linear_solver=linear_solver, on_failure=on_failure)
        return feedback(S, A, B, R)
    check_integer("horizon", horizon, 1)
    if gradient != "implicit" or linear_solver is not None:
        message = (
            "gradient= and linear_solver= are for the infinite horizon; a finite one is differentiated by its steps"
        )
        raise OptionError(message)
    batch = check_shapes(A, B, Q, R)
    if final is not None:
        _check_final(final, Q, batch)
    policy = Policy(on_failure, "lqr_gain")
    return _recursion(policy, batch, int(horizon), A, B, Q, R, 0.0 * Q if final is None else final)


def _check_final(final: Array, Q: Array, batch: tuple[int, ...]) -> None:
    """Raise if `final` is not like Q."""
    if owner(final) is None:
        message = f"final={final!r} of type {type(final).__name__}; expected an array like Q"
        raise DTypeError(message)
    common_owner([Q, final], ["Q", "final"], "lqr_gain")
    if final.dtype != Q.dtype:
        message = f"final has dtype {final.dtype}, but Q has {Q.dtype}; cast one of them"
        raise DTypeError(message)
    shape = tuple(final.shape)
    if shape[-2:] != tuple(Q.shape[-2:]) or not broadcasts_to(shape[:-2], batch):
        message = f"final has shape {shape}; expected {(*batch, *Q.shape[-2:])}, like Q, or one that broadcasts to it"
        raise ShapeError(message)


def _recursion(
    policy: Policy, batch: tuple[int, ...], horizon: int, A: Array, B: Array, Q: Array, R: Array, final: Array
) -> Array:
    """Return the gains at all times, (*batch, horizon, m, n)."""
    backend, xp, Q = common_owner([A], ["A"], "lqr_gain"), array_namespace(final), symmetric(Q)

    def step(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        (S,) = carry
        status = _step_status(backend.constant(symmetric(R) + sandwich(B, S)))
        failed = (status != 0)[..., None, None]
        # replace a matrix that may be singular by the identity, since NumPy raises for a singular one
        safe = array_namespace(R).where(failed, eye(R.shape[-1], R), R)
        K = feedback(array_namespace(S).where(failed, full(S, 0.0), S), A, B, safe)
        return (symmetric(Q + A.mT @ S @ (A - B @ K)),), (K, status)

    last = symmetric(xp.broadcast_to(final, (*batch, *final.shape[-2:])))
    _, (gains, statuses) = backend.loops.scan(step, (last,), (xp.zeros((horizon,), dtype=A.dtype, device=device(A)),))
    xp = array_namespace(gains)
    gains = xp.moveaxis(xp.flip(gains, axis=0), 0, -3)
    status = array_namespace(statuses).max(statuses, axis=0)
    flat = xp.reshape(gains, (*batch, horizon * gains.shape[-2] * gains.shape[-1]))
    status = array_namespace(status).astype(status, array_namespace(status).int32)
    return xp.reshape(policy.apply(backend, "recursion", status, flat), gains.shape)  # type: ignore[no-any-return]


def _step_status(M: Array) -> Array:
    """Return the status of a step with M = R + B^T S B, of shape batch and the dtype of M."""
    xp = array_namespace(M)
    finite = xp.all(xp.isfinite(M), axis=(-2, -1))
    safe = xp.where(finite[..., None, None], M, eye(M.shape[-1], M))
    threshold = 64 * eps(xp, M.dtype) * xp.max(xp.abs(safe), axis=(-2, -1))
    convex = xp.min(xp.linalg.eigvalsh(safe), axis=-1) > threshold
    zero = full(M[..., 0, 0], 0.0)
    code = xp.where(convex, zero, zero + float(Status.NOT_CONVEX))
    return xp.where(finite, code, zero + float(Status.NON_FINITE))  # type: ignore[no-any-return]
