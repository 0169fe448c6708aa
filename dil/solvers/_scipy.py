"""SciPy's minimisers as solvers, on the host, for arrays of every backend and under jit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dil._base.arrays import array_namespace, eps, full, size
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.protocol import Pull
from dil._problem.problem import Problem
from dil._problem.space import space_of
from dil.solvers._host_call import Found, Host, check_scipy, import_optimize, solve_on_host
from dil.solvers._no_minimum import is_cut, is_unbounded
from dil.solvers._start import Start, start
from dil.solvers._verify import MOST_VERIFIED, SHORT, verified

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
        SciPy's `tol`. It applies to the score divided by the largest entry of its first gradient. For methods that use
        the gradient, the default is eps of the dtype, so they continue until rounding allows no more progress. SciPy
        reports this as a stop for lack of precision. For the others the default is SciPy's own.
    options : mapping, optional
        SciPy's `options`.

    Notes
    -----
    A batch is minimised as one problem, the sum of its scores. Its problems share one status and one count. Under
    `jax.jit` the solver runs in a host callback.

    SciPy gets the score divided by the largest entry of its first gradient, since its tolerances are absolute. For up
    to 64 unknowns its answer is verified as that of `LBFGS` is: a problem ends CONVERGED if a Newton
    step would not move it any more, and NOT_STATIONARY if it would. With more unknowns, a stop for lack of precision
    counts as CONVERGED if the gradient is at most eps ** (1/2) times the first gradient.

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
        started = start(self, fun, init, args, kwargs)
        problem, u, arrays = started

        def solve(host: Host, arrays: Arrays) -> Found:
            return self._minimize(Sum(problem, host, arrays))

        def residual(u: Array) -> Array:
            return problem.gradient(u, *arrays)

        found = solve_on_host(problem, u, arrays, solve, residual)
        return _verified(started, found) if size(u.shape) else found

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
        tol = score.precision if self.tol is None and supplied else self.tol
        found = minimize(fun, begin, method=self.method, tol=tol, options=options, **supplied)
        return Found(found.x, _status(found), int(found.get("nit", 0)), str(found.message))


@dataclass(frozen=True)
class Sum:
    """The sum of the scores of a batch as functions of one NumPy vector."""

    problem: Problem
    host: Host
    arrays: Arrays

    @cached_property
    def unit(self) -> float:
        """The largest entry of the first gradient, in which SciPy gets the score; one if it is zero or not finite."""
        gradient = self.host.out(self.problem.gradient(self.host.like, *self.arrays))
        largest = float(abs(gradient).max(initial=0.0))
        return largest if 0 < largest < float("inf") else 1.0

    @property
    def precision(self) -> float:
        """The machine epsilon of the arrays of the problem."""
        return eps(array_namespace(self.host.like), self.host.like.dtype)

    def value_and_gradient(self, x: Any) -> tuple[float, Any]:
        """Return the score and its gradient, shape (m,)."""
        value, gradient = self.problem.value_and_gradient(self.host.into(x), *self.arrays)
        return float(self.host.out(value).sum()) / self.unit, self.host.out(gradient) / self.unit

    def hessian_product(self, x: Any, p: Any) -> Any:
        """Return H p, shape (m,)."""
        return self.host.out(self._differentiated(x)((self.host.into(p),))[0]) / self.unit

    def hessian(self, x: Any) -> Any:
        """Return H, shape (m, m)."""
        return self.host.matrix(self._differentiated(x)) / self.unit

    def _differentiated(self, x: Any) -> Pull:
        def gradient(u: Array) -> Arrays:
            return (self.problem.gradient(u, *self.arrays),)

        return self.problem.backend.vjp(gradient, self.host.into(x))[1]


def _verified(started: Start, found: Solution) -> Solution:
    """Return the solution with the status of its verification, where SciPy did not fail."""
    assert found.status is not None
    assert found.residual is not None
    status, xp = found.status[..., None], array_namespace(found.status)
    u, _ = space_of(found.value, started.problem.condition.batch_ndim, "the solution")
    ended = (status == int(Status.CONVERGED)) | (status == int(Status.STAGNATED))
    precise = found.residual[..., None] <= eps(xp, u.dtype) ** 0.5
    solved = (status == int(Status.CONVERGED)) | (ended & (precise if u.shape[-1] > MOST_VERIFIED else ended))
    verdict = verified(started, u, solved, ended, min(eps(xp, u.dtype) ** 0.5, SHORT / 2))
    status = xp.where(verdict.solved, full(status, int(Status.CONVERGED)), status)
    status = xp.where(verdict.far, full(status, int(Status.NOT_STATIONARY)), status)
    same = xp.all(u == started.u, axis=-1, keepdims=True)
    status = xp.where(is_cut(started, ended & same), full(status, int(Status.NO_DERIVATIVE)), status)
    steep = ended & (found.residual > 0.25)[..., None]
    status = xp.where(is_unbounded(started, u, steep), full(status, int(Status.DIVERGED)), status)
    return found._replace(status=status[..., 0])


def _status(found: Any) -> Status:
    if not bool(abs(found.x).max(initial=0.0) < float("inf")):
        return Status.NON_FINITE
    if found.success:
        return Status.CONVERGED
    return {1: Status.MAX_ITER, 2: Status.STAGNATED}.get(int(found.status), Status.FAILED)
