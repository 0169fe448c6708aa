"""The argmin layer: y = argmin_u score(u, *args)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dil._base.typing import CheckSmoothness, OnFailure, Tree
from dil._diagnostics.failure_policy import Policy
from dil._layers.call import Solver
from dil._layers.layer import Layer
from dil._problem.score import Derivatives, Score
from dil.linear._auto import Auto
from dil.linear._solver import LinearSolver


def argmin(
    score: Callable[..., Any],
    solver: Solver,
    *,
    linear_solver: LinearSolver | None = None,
    batch_ndim: int = 0,
    init: Tree | Callable[..., Tree] | None = None,
    on_failure: OnFailure = "warn",
    derivatives: Derivatives | None = None,
    refine: int = 0,
    check_smoothness: CheckSmoothness = "first",
) -> Layer:
    """Return the layer y = argmin_u score(u, *args, **kwargs).

    Parameters
    ----------
    score : callable
        `score(u, *args, **kwargs)` returns one number per problem: shape `u.shape[:batch_ndim]`, so () by default.
        u and the arguments are trees of arrays; the float arrays among them share one dtype.
    solver : callable
        `solver(fun, init, *args, **kwargs)` returns u, or a `dil.Solution`; fun is the score. It is a black box: a
        closed form, SciPy, a simulator, one of `dil.solvers`. It is never differentiated.
    linear_solver : callable, optional
        Solves the linear system of the backward pass; `dil.linear.Auto()` by default.
    batch_ndim : int
        The number of leading dimensions of u that count independent problems, each with its own status. Arguments
        may be shared between problems.
    init : tree or callable, optional
        Where the solver starts, if the call gives no `init=`; a callable is called with the arguments.
    on_failure : {"warn", "raise", "nan", "ignore"}
        What happens if a forward or backward solve fails: a warning, an error, NaN in the failed problems, or nothing.
        With "ignore" the backward pass does not look at y, unless a record is open.
    derivatives : dil.Derivatives, optional
        Derivative products of the score that the backend cannot find by tracing.
    refine : int
        The number of Newton steps from the solver's y, each a linear solve with the Hessian. With them a rough solver
        still gives an accurate gradient.
    check_smoothness : {"first", "always", "never"}
        When the backward pass looks for a solution on a kink of the score and for random numbers in the score: at the
        first pass with new shapes, at each pass, or never. "first" sees jumps of the gradient alone, and it cannot look
        while code is traced, as on JAX. "always" also works there; it costs five evaluations of the gradient and one
        product with the Hessian. Unless "never", the first call with new shapes compares the score with its gradient.
        The first backward pass also looks whether the gradient of the score has a graph that leads to each argument.

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
    The gradient is that of Theorem 1 in Look et al. 2020, -g^T d2f/(du dargs) with H g = dL/dy. Second derivatives
    differentiate the same expressions once more.

    Examples
    --------
    The mean minimises the sum of squared distances; its gradient is the same for every point:

    >>> import numpy as np, dil
    >>> layer = dil.argmin(lambda u, x: np.sum((u - x) ** 2), dil.solvers.Newton())
    >>> y, pull = dil.vjp(lambda x: layer(x, init=np.asarray(0.0)), np.asarray([1.0, 2.0, 6.0]))
    >>> float(y)
    3.0
    >>> np.round(pull(np.asarray(1.0))[0], 6)
    array([0.333333, 0.333333, 0.333333])
    """
    condition = Score(score, batch_ndim, derivatives)
    policy = Policy(on_failure, f"argmin layer of {condition.name!r}")
    linear_solver = Auto() if linear_solver is None else linear_solver
    return Layer(condition, solver, linear_solver, init, policy, refine, check_smoothness)
