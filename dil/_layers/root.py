"""The root layer, residual(y, *args) = 0, and the fixed-point layer, step(y, *args) = y."""

from __future__ import annotations

from collections.abc import Callable

from dil._base.typing import CheckSmoothness, OnFailure, Tree
from dil._diagnostics.failure_policy import Policy
from dil._layers.call import Solver
from dil._layers.following import following
from dil._layers.layer import Layer
from dil._problem.equation import Equation
from dil._problem.user_jacobian import Jacobian
from dil.linear._auto import Auto
from dil.linear._solver import LinearSolver


def root(
    residual: Callable[..., Tree],
    solver: Solver,
    *,
    linear_solver: LinearSolver | None = None,
    batch_ndim: int = 0,
    init: Tree | Callable[..., Tree] | None = None,
    on_failure: OnFailure = "warn",
    derivatives: Jacobian | None = None,
    refine: int = 0,
    check_smoothness: CheckSmoothness = "first",
) -> Layer:
    """Return the layer y with residual(y, *args, **kwargs) = 0.

    Parameters
    ----------
    residual : callable
        `residual(u, *args, **kwargs)` returns a tree of the structure, shapes and dtype of u.
    solver : callable
        `solver(fun, init, *args, **kwargs)` returns u, or a `dil.Solution`; fun is the residual. It is a black box:
        `dil.solvers.Newton()`, `dil.solvers.SciPyRoot()`, a closed form, a simulator. It is never differentiated.
    linear_solver : callable, optional
        Solves the linear systems with dF/du, which is not symmetric; `dil.linear.Auto()` by default.
    batch_ndim : int
        The number of leading dimensions of u that count independent problems, each with its own status.
    init, on_failure
        As in `dil.argmin`.
    derivatives : dil.Jacobian, optional
        The Jacobian and the products of a residual on the host, which no backend can trace: it gets NumPy arrays.
    refine : int
        The number of Newton steps from the solver's y, each a linear solve with dF/du.
    check_smoothness : {"first", "always", "never"}
        As in `dil.argmin`, for the residual in place of the gradient.

    Returns
    -------
    Layer
        Called as `layer(*args, init=None, **kwargs)`: differentiable in every float array of every argument.

    Raises
    ------
    OptionError
        If an option is out of range. Calls raise `ShapeError`, `DTypeError`, `BackendError` and `CapturedError`.

    Notes
    -----
    With J = dF/du: the pullback solves J^T g = v and returns -g^T dF/dargs; the pushforward solves J dy = -dF/dargs t
    (Look et al. 2020, Theorems 1 and 2, whose Hessian is J here). For least squares, min 1/2 ||r||^2, take
    `dil.argmin`, which uses the full Hessian. If r has as many entries as u and has a root, take a root layer, which
    does not square the condition number.

    Examples
    --------
    >>> import numpy as np, dil
    >>> sqrt = dil.root(lambda u, t: u**2 - t, dil.solvers.Newton(), init=lambda t: t)
    >>> float(dil.grad(sqrt)(np.asarray(4.0)))
    0.25
    """
    condition = Equation(residual, batch_ndim, "residual", derivatives)
    policy = Policy(on_failure, f"root layer of {condition.name!r}")
    linear_solver = Auto() if linear_solver is None else linear_solver
    return Layer(condition, solver, linear_solver, init, policy, refine, check_smoothness)


def fixed_point(
    step: Callable[..., Tree],
    solver: Solver,
    *,
    linear_solver: LinearSolver | None = None,
    batch_ndim: int = 0,
    init: Tree | Callable[..., Tree] | None = None,
    on_failure: OnFailure = "warn",
    derivatives: Jacobian | None = None,
    refine: int = 0,
    check_smoothness: CheckSmoothness = "first",
) -> Layer:
    """Return the layer y with step(y, *args, **kwargs) = y.

    Parameters
    ----------
    step : callable
        `step(u, *args, **kwargs)` returns a tree of the structure, shapes and dtype of u.
    solver : callable
        `solver(fun, init, *args, **kwargs)` returns u, or a `dil.Solution`; fun is the step. Use
        `dil.solvers.FixedPoint()`, `dil.solvers.Anderson()` or a loop of your own. The solver is never differentiated.
    linear_solver : callable, optional
        Solves the linear systems with J = I - dstep/du, which is not symmetric. `dil.linear.Auto()` by default, to a
        tolerance that follows that of a loose solver, see the notes.
    derivatives : dil.Jacobian, optional
        As in `dil.root`: the derivatives of the step, on the host.
    batch_ndim, init, on_failure, refine, check_smoothness
        As in `dil.root`, for the residual u - step(u).

    Returns
    -------
    Layer
        Called as `layer(*args, init=None, **kwargs)`: differentiable in every float array of every argument.

    Raises
    ------
    OptionError
        If an option is out of range. Calls raise `ShapeError`, `DTypeError`, `BackendError` and `CapturedError`.

    Notes
    -----
    `FixedPoint(rtol=r)` and `Anderson(rtol=r)` leave an error in y of up to ||J^-1|| r ||y||, and the derivative at y
    has it too. So the derivative is taken at a better point, except on JAX: Anderson's iteration goes on from y,
    without a graph. y itself stays.
    The default linear solver stops at a residual of r / 10, at most 1e-3, relative to the right-hand side, if that is
    looser than its own tolerance. Its error in the gradient is at most ||J^-1|| r / 10, relative to ||v||. With
    `refine` it is tight, because then y is. `linear_solver=dil.linear.Auto()` is always tight, and takes the derivative
    at y.

    Examples
    --------
    >>> import numpy as np, dil
    >>> layer = dil.fixed_point(lambda u, t: np.cos(u) + t, dil.solvers.FixedPoint(), init=lambda t: t)
    >>> round(float(dil.grad(layer)(np.asarray(0.0))), 6)
    0.59751
    """
    condition = Equation(step, batch_ndim, "step", derivatives)
    policy = Policy(on_failure, f"fixed-point layer of {condition.name!r}")
    linear_solver = following(solver, refine) if linear_solver is None else linear_solver
    return Layer(condition, solver, linear_solver, init, policy, refine, check_smoothness)
