"""The discrete algebraic Riccati equation as a layer with SciPy's solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dil._base.arrays import array_namespace, eye, full, is_float, shared_namespace
from dil._base.errors import DTypeError, OptionError, ShapeError
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import AnyArray, Array, Arrays, OnFailure
from dil._diagnostics.failure_policy import Policy
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import adopted, common_owner, guarded
from dil._layers.layer import Layer
from dil._problem.equation import Equation
from dil.control._riccati import feedback, sandwich, symmetric
from dil.linear._auto import Auto
from dil.linear._solver import LinearSolver

Gradient = Literal["implicit", "analytic"]
STRICT, LOOSE = 1e-10, 1e-4
"""Tolerance for eigenvalues on the unit circle. Rounding moves an m-fold eigenvalue by about eps^(1/m)."""


def dare(
    A: AnyArray,
    B: AnyArray,
    Q: AnyArray,
    R: AnyArray,
    *,
    gradient: Gradient = "implicit",
    linear_solver: LinearSolver | None = None,
    on_failure: OnFailure = "raise",
) -> AnyArray:
    """Return S with A^T S A - S - A^T S B (R + B^T S B)^-1 B^T S A + Q = 0, the optimal cost to go.

    Parameters
    ----------
    A, B : array, (*batch, n, n) and (*batch, n, m)
        x_{t+1} = A x_t + B u_t.
    Q, R : array, (*batch, n, n) and (*batch, m, m)
        The cost x^T Q x + u^T R u, with Q positive semi-definite and R positive definite. The cost and S depend only on
        the symmetric parts of Q and R, so the gradients in Q and R are symmetric.
    gradient : {"implicit", "analytic"}
        "implicit" uses the implicit function theorem with the equation and a linear solver. "analytic" uses explicit
        formulas (East et al. 2020, Proposition 2), a dense system of n^2 unknowns. They agree to rounding.
    linear_solver : callable, optional
        The linear solver of the implicit gradient. Its matrix, n^2 by n^2, is not symmetric. The default is
        `dil.linear.Auto()`. `dil.linear.Direct()` is the naive inverse, `dil.linear.NormalCG()` uses conjugate
        gradients, and `dil.linear.GMRES()` is another choice.
    on_failure : {"raise", "warn", "nan", "ignore"}
        What happens if a system has no solution. Its S is NaN, and its status is UNSTABILISABLE, UNDETECTABLE or
        NOT_CONVEX.

    Returns
    -------
    array, (*batch, n, n)
        S, symmetric. x^T S x is the least cost from the state x, and A - B K with K = `lqr_gain` is stable. S is
        differentiable in A, B, Q and R, to any order.

    Raises
    ------
    ShapeError
        If the shapes do not match.
    DTypeError
        If the arrays differ in dtype, or are neither float32 nor float64.
    OptionError
        If an option is unknown, `linear_solver` is given for gradient="analytic", or SciPy is missing.
    ConvergenceError
        If a system has no solution and on_failure="raise".

    Notes
    -----
    Look et al. 2020, eq. 9. SciPy's `solve_discrete_are` runs on the host, in float64, for each system of a batch in
    turn; under `jax.jit` in a callback.

    Examples
    --------
    >>> import numpy as np, dil
    >>> A, B = np.asarray([[1.0, 1.0], [0.0, 1.0]]), np.asarray([[0.0], [1.0]])
    >>> S = dil.control.dare(A, B, np.eye(2), np.eye(1))
    >>> np.round(S, 4)
    array([[2.9471, 2.3692],
           [2.3692, 4.6131]])
    >>> scale = dil.grad(lambda r: np.sum(dil.control.dare(A, B, np.eye(2), np.reshape(r, (1, 1)))))
    >>> round(float(scale(np.asarray(1.0))), 4)
    2.9202
    """
    if gradient not in get_args(Gradient):
        message = f"gradient={gradient!r} is unknown; expected one of {', '.join(get_args(Gradient))}"
        raise OptionError(message)
    if gradient == "analytic" and linear_solver is not None:
        message = "linear_solver= is for gradient='implicit'; the analytic gradient has its own dense solve"
        raise OptionError(message)
    A, B, Q, R = adopted((A, B, Q, R))
    batch = check_shapes(A, B, Q, R)
    policy = Policy(on_failure, "dare")
    if gradient == "analytic":
        return guarded(_analytic, policy, batch, A, B, Q, R)
    layer = Layer(Equation(residual, len(batch), "residual"), _by_scipy, linear_solver or Auto(), None, policy)
    return layer(A, B, Q, R)


def residual(S: Array, A: Array, B: Array, Q: Array, R: Array) -> Array:
    """Return the residual of the equation, (*batch, n, n), by the feedback K: A^T S (A - B K) - S + Q."""
    return A.mT @ S @ (A - B @ feedback(S, A, B, R)) - S + symmetric(Q)


def _by_scipy(fun: object, init: None, A: Array, B: Array, Q: Array, R: Array) -> Solution:
    """Solve on the host by SciPy."""
    backend = common_owner([A, B, Q, R], ["A", "B", "Q", "R"], "dare")
    batch = check_shapes(A, B, Q, R)
    xp, n = array_namespace(A), A.shape[-1]
    like = (full(A, 0.0, shape=(*batch, n, n)), full(A, 0, shape=batch, dtype=xp.int32))
    constants = (backend.constant(x) for x in (A, B, Q, R))
    S, status = backend.loops.on_host(lambda *arrays: _each(backend, batch, arrays), like, *constants)
    return Solution(S, status)


def _each(backend: Backend, batch: tuple[int, ...], arrays: Arrays) -> tuple[Any, Any]:
    """Return S and the status of every system of a batch, in NumPy."""
    import numpy as np

    matrices = [backend.to_numpy(x).astype(float) for x in arrays]
    batched = [np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in matrices]
    S, status = np.empty(batched[0].shape), np.zeros(batch, dtype="int32")
    for i in np.ndindex(*batch):
        S[i], status[i] = solve_one(*(x[i] for x in batched))
    return S, status


def solve_one(A: Any, B: Any, Q: Any, R: Any) -> tuple[Any, int]:
    """Return S and the status of one system of NumPy arrays. S is NaN if there is no solution."""
    import numpy as np

    try:
        from scipy.linalg import solve_discrete_are
    except ImportError as error:
        message = f"dil.control.dare needs SciPy, which cannot be imported ({error}); pip install scipy"
        raise OptionError(message) from error
    no_solution = np.full(A.shape, np.nan)
    if not all(np.all(np.isfinite(x)) for x in (A, B, Q, R)):
        return no_solution, int(Status.NON_FINITE)
    Q, R = 0.5 * (Q + Q.T), 0.5 * (R + R.T)
    size_Q, costs = np.abs(Q).max(), np.diag(R)
    if not (np.all(costs > 0) and _least_eigenvalue(Q) >= -1e-12 * size_Q):
        return no_solution, int(Status.NOT_CONVEX)
    # each control in units in which its cost is like that of the states; powers of two round nothing
    size_Q = 2.0 ** np.round(np.log2(size_Q or 1.0))
    unit = 2.0 ** np.round(0.5 * np.log2(size_Q / costs))
    Bu, Ru = B * unit, R * unit[:, None] * unit / size_Q
    if not _least_eigenvalue(Ru) > 1e-14 * np.abs(Ru).max():
        return no_solution, int(Status.NOT_CONVEX)
    try:
        S = solve_discrete_are(A, Bu, Q / size_Q, Ru)
        S = 0.5 * (S + S.T)
        K = unit[:, None] * np.linalg.solve(Ru + Bu.T @ S @ Bu, Bu.T @ S @ A)
        S = size_Q * S
    except (np.linalg.LinAlgError, ValueError):
        return no_solution, int(_cause(A, Bu, Q))
    radius = np.abs(np.linalg.eigvals(A - B @ K)).max()
    # for some systems without a solution SciPy returns a wrong S; for stiff systems S can be inaccurate
    F, size = A.T @ S @ (A - B @ K) - S + Q, max(np.abs(S).max(), np.abs(A.T @ S @ A).max())
    if not (radius < 1.0 and np.abs(F).max() <= 1e-3 * size):
        return no_solution, int(_cause(A, B, Q))
    # rounding can put a mode without cost on either side of the unit circle
    suspect = radius > 1.0 - 1e-6 or np.abs(F).max() > 1e-8 * size
    tolerance = LOOSE if radius > 1.0 - 1e-12 else STRICT
    undetectable = suspect and not _controllable(A.T, Q, outside=False, tolerance=tolerance)
    return (no_solution, int(Status.UNDETECTABLE)) if undetectable else (S, int(Status.CONVERGED))


def _cause(A: Any, B: Any, Q: Any) -> Status:
    """Return the reason why SciPy finds no solution."""
    for tolerance in (STRICT, LOOSE):
        if not _controllable(A, B, outside=True, tolerance=tolerance):
            return Status.UNSTABILISABLE
        if not _controllable(A.T, Q, outside=False, tolerance=tolerance):
            return Status.UNDETECTABLE
    return Status.FAILED


def _least_eigenvalue(X: Any) -> float:
    import numpy as np

    return float(np.linalg.eigvalsh(X)[0])


def _controllable(A: Any, B: Any, *, outside: bool, tolerance: float = STRICT) -> bool:
    """Whether B controls all modes of A on the unit circle, or also outside it (Popov, Belevitch and Hautus)."""
    import numpy as np

    B = B / (np.abs(B).max() or 1.0) * np.abs(A).max()  # the units of the controls must not matter
    for value in np.linalg.eigvals(A):
        if abs(value) > 1 - tolerance and (outside or abs(value) < 1 + tolerance):
            pencil = np.concatenate([A - value * np.eye(len(A)), B], axis=1)
            singular_values = np.linalg.svd(pencil, compute_uv=False)
            if singular_values[-1] <= 1e-2 * tolerance * singular_values[0]:
                return False
    return True


def check_shapes(A: Array, B: Array, Q: Array, R: Array) -> tuple[int, ...]:
    """Return the shape of the batch.

    Raises
    ------
    ShapeError
        If the shapes do not match.
    DTypeError
        If the arrays differ in dtype, or are neither float32 nor float64.
    """
    common_owner([A, B, Q, R], ["A", "B", "Q", "R"], "dare")
    named = {"A": A, "B": B, "Q": Q, "R": R}
    shapes = {name: tuple(getattr(x, "shape", ())) for name, x in named.items()}
    n, m = shapes["B"][-2:] if len(shapes["B"]) >= 2 else (0, 0)
    expected = {"A": (n, n), "B": (n, m), "Q": (n, n), "R": (m, m)}
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    if not (n and m) or any(shapes[name][-2:] != shape for name, shape in expected.items()):
        message = f"got {listed}; expected A (*batch, n, n), B (*batch, n, m), Q (*batch, n, n) and R (*batch, m, m)"
        raise ShapeError(message)
    if len({str(x.dtype) for x in named.values()}) > 1:
        message = f"A, B, Q and R have dtypes {', '.join(str(x.dtype) for x in named.values())}; cast them to one"
        raise DTypeError(message)
    xp = array_namespace(A)
    if not is_float(xp, A.dtype) or xp.finfo(A.dtype).bits < 32:
        message = f"A, B, Q and R have dtype {A.dtype}; expected float32 or float64, so cast them"
        raise DTypeError(message)
    try:
        return _broadcast([shape[:-2] for shape in shapes.values()])
    except ValueError as error:
        message = f"the batches of {listed} do not belong together; expected leading dimensions that broadcast"
        raise ShapeError(message) from error


def broadcasts_to(shape: tuple[int, ...], batch: tuple[int, ...]) -> bool:
    """Whether `shape` broadcasts to `batch`."""
    try:
        return _broadcast([shape, batch]) == batch
    except ValueError:
        return False


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    import numpy as np

    return tuple(np.broadcast_shapes(*shapes))


def _analytic(policy: Policy, batch: tuple[int, ...], A: Array, B: Array, Q: Array, R: Array) -> Array:
    """Solve the equation, with the analytic gradient."""
    backend = common_owner([A, B, Q, R], ["A", "B", "Q", "R"], "dare")

    def solve(*arrays: Array) -> Arrays:
        solution = _by_scipy(None, None, *arrays)
        assert solution.status is not None
        S = solution.value
        flat = array_namespace(S).reshape(S, (*S.shape[:-2], S.shape[-1] ** 2))
        return (array_namespace(S).reshape(policy.apply(backend, "forward solve", solution.status, flat), S.shape),)

    xp = array_namespace(A)
    batched = (xp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (A, B, Q, R))
    return backend.implicit(solve, Analytic(backend))(*batched)[0]


@dataclass(frozen=True)
class Analytic:
    """The derivative of S by explicit formulas (East et al. 2020, Proposition 2).

    With A' = A - B K, L(X) = X - A'^T X A' and P(X) = (X + X^T) / 2,

    L(dS) = 2 P(A'^T S dA) - 2 P(A'^T S dB K) + P(dQ) + K^T P(dR) K.

    The matrix of L is the identity minus the Kronecker product of A'^T with itself.
    """

    backend: Backend

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return the cotangents. They follow from the solution G of G - A' G A'^T = dL/dS."""
        A, B, _, R = args
        S = y[0]
        K = feedback(S, A, B, R)
        closed = A - B @ K
        G = symmetric(lyapunov(closed.mT, cotangents[0]))
        dA = 2.0 * (S @ closed @ G)
        gradients = (dA, -(dA @ K.mT), G, sandwich(K.mT, G))
        return tuple(gradients[i] for i in wrt)

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return dS."""
        A, B, _, R = args
        S = y[0]
        K = feedback(S, A, B, R)
        closed = A - B @ K
        dA, dB, dQ, dR = tangents
        total = full(S, 0.0)
        total = total if dA is None else total + 2.0 * symmetric(closed.mT @ S @ dA)
        total = total if dB is None else total - 2.0 * symmetric(closed.mT @ S @ dB @ K)
        total = total if dQ is None else total + symmetric(dQ)
        total = total if dR is None else total + sandwich(K, symmetric(dR))
        return (lyapunov(closed, total),)


def lyapunov(A: Array, V: Array) -> Array:
    """Return the solution X of X - A^T X A = V, (*batch, n, n), by the Kronecker product of A^T with itself."""
    xp, n = shared_namespace(V, A), V.shape[-1]
    T = A.mT
    product = T[..., :, None, :, None] * T[..., None, :, None, :]
    matrix = xp.reshape(product, (*product.shape[:-4], n * n, n * n))
    identity = eye(n * n, V)
    rhs = xp.reshape(V, (*V.shape[:-2], n * n, 1))
    return xp.reshape(xp.linalg.solve(identity - matrix, rhs), V.shape)  # type: ignore[no-any-return]
