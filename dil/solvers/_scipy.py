"""SciPy's minimisers as solvers, on the host, for arrays of every backend and under jit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.protocol import Pull
from dil._problem.problem import Problem
from dil.solvers._host_call import Found, Host, check_scipy, import_optimize, solve_on_host
from dil.solvers._start import start

WITHOUT_GRADIENT = frozenset({"nelder-mead", "powell", "cobyla", "cobyqa"})
WITH_PRODUCTS = frozenset({"newton-cg", "trust-ncg", "trust-krylov", "trust-constr"})
WITH_HESSIAN = frozenset({"dogleg", "trust-exact"})


@dataclass(frozen=True)
class SciPy:
    """Minimise with `scipy.optimize.minimize`; gradient and Hessian products are supplied to the methods that use them.

    Parameters
    ----------
    method : str
        Any method of `scipy.optimize.minimize`.
    tol : float, optional
        SciPy's `tol`; None leaves SciPy's default, which for BFGS is a gradient of 1e-5.
    options : mapping, optional
        SciPy's `options`.

    Notes
    -----
    A batch is minimised as one problem, the sum of its scores. Its problems share one status and one count. Under
    `jax.jit` the solver runs in a host callback.

    Examples
    --------
    >>> import numpy as np, dil
    >>> sol = dil.solvers.SciPy("trust-ncg")(lambda u: np.sum((u - 1.0) ** 2 + u**4), np.zeros(2))
    >>> dil.Status(int(sol.status)).name
    'CONVERGED'
    """

    method: str = "BFGS"
    tol: float | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_scipy("minimize", self.method, self.tol, self.options)

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Minimise fun from init; the value has the structure of init."""
        problem, u, arrays = start(self, fun, init, args, kwargs)

        def solve(host: Host, arrays: Arrays) -> Found:
            return self._minimize(Sum(problem, host, arrays))

        def residual(u: Array) -> Array:
            return problem.gradient(u, *arrays)

        return solve_on_host(problem, u, arrays, solve, residual)

    def _minimize(self, score: Sum) -> Found:
        minimize = import_optimize("SciPy").minimize
        method = self.method.lower()
        supplied: dict[str, Any] = {} if method in WITHOUT_GRADIENT else {"jac": True}
        if method in WITH_PRODUCTS:
            supplied["hessp"] = score.hessian_product
        if method in WITH_HESSIAN:
            supplied["hess"] = score.hessian
        fun = score.value_and_gradient if "jac" in supplied else lambda x: score.value_and_gradient(x)[0]
        begin, options = score.host.out(score.host.like), dict(self.options or {})
        found = minimize(fun, begin, method=self.method, tol=self.tol, options=options, **supplied)
        return Found(found.x, _status(found), int(found.get("nit", 0)), str(found.message))


@dataclass(frozen=True)
class Sum:
    """The sum of the scores of a batch as functions of one NumPy vector."""

    problem: Problem
    host: Host
    arrays: Arrays

    def value_and_gradient(self, x: Any) -> tuple[float, Any]:
        """Return the score and its gradient, shape (m,)."""
        value, gradient = self.problem.value_and_gradient(self.host.into(x), *self.arrays)
        return float(self.host.out(value).sum()), self.host.out(gradient)

    def hessian_product(self, x: Any, p: Any) -> Any:
        """Return H p, shape (m,)."""
        return self.host.out(self._differentiated(x)((self.host.into(p),))[0])

    def hessian(self, x: Any) -> Any:
        """Return H, shape (m, m)."""
        return self.host.matrix(self._differentiated(x))

    def _differentiated(self, x: Any) -> Pull:
        def gradient(u: Array) -> Arrays:
            return (self.problem.gradient(u, *self.arrays),)

        return self.problem.backend.vjp(gradient, self.host.into(x))[1]


def _status(found: Any) -> Status:
    if not bool(abs(found.x).max(initial=0.0) < float("inf")):
        return Status.NON_FINITE
    if found.success:
        return Status.CONVERGED
    return {1: Status.MAX_ITER, 2: Status.STAGNATED}.get(int(found.status), Status.FAILED)
