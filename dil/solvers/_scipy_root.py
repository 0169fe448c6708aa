"""SciPy's root finders as solvers, on the host, for arrays of every backend and under jit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dil._base.arrays import array_namespace, eps, full, size
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Arrays, Tree
from dil._problem.problem import Problem
from dil._problem.space import space_of
from dil.solvers._host_call import Found, Host, check_scipy, import_optimize, solve_on_host
from dil.solvers._judge import judge
from dil.solvers._start import Start, start_equation
from dil.solvers._verify import solved_or_rounded

WITH_JACOBIAN = frozenset({"hybr", "lm"})
ENDS = {
    "hybr": {2: Status.MAX_ITER, 3: Status.STAGNATED, 4: Status.STAGNATED, 5: Status.STAGNATED},
    "lm": {5: Status.MAX_ITER, 6: Status.STAGNATED, 7: Status.STAGNATED, 8: Status.STAGNATED},
}
"""The meaning of SciPy's codes. For methods that are not listed, 2 means too many iterations."""


@dataclass(frozen=True)
class SciPyRoot:
    """Find a root with `scipy.optimize.root`; the Jacobian is supplied to the methods that use it.

    Parameters
    ----------
    method : str
        Any method of `scipy.optimize.root`.
    tol : float, optional
        SciPy's `tol`; None leaves SciPy's default, which for hybr is a relative step of 1.5e-8.
    options : mapping, optional
        SciPy's `options`.

    Notes
    -----
    A batch is solved as one system. Its problems share one status and one count. Under `jax.jit` the solver runs in a
    host callback. The count is that of evaluations if SciPy counts no iterations.

    SciPy gets the residual divided by its largest entry at the start, since its tolerances are absolute. hybr and lm
    get the Jacobian, built by n vector-Jacobian products. A success is checked by products with the Jacobian: it ends
    NOT_STATIONARY if an equation is far from zero beside its terms.

    Raises
    ------
    OptionError
        If an option is out of range, SciPy is absent, or there is no start.

    Examples
    --------
    >>> import numpy as np, dil
    >>> sol = dil.solvers.SciPyRoot()(lambda u, t: u**3 + u - t, np.zeros(2), np.asarray([2.0, 10.0]))
    >>> np.round(sol.value, 8), dil.Status(int(sol.status)).name
    (array([1., 2.]), 'CONVERGED')
    """

    method: str = "hybr"
    tol: float | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_scipy("root", self.method, self.tol, self.options)

    def __call__(self, fun: Callable[..., Tree], init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Find a root of fun from init; the value has the structure of init."""
        started = start_equation(self, fun, init, args, kwargs, "residual")
        problem, u, arrays = started

        def solve(host: Host, arrays: Arrays) -> Found:
            return self._root(System(problem, host, arrays))

        def residual(u: Array) -> Array:
            return problem.backend.constant(problem.image(u, *arrays))

        found = solve_on_host(problem, u, arrays, solve, residual)
        return _judged(started, found) if size(u.shape) else found

    def _root(self, system: System) -> Found:
        root = import_optimize("SciPyRoot").root
        method = self.method.lower()
        supplied: dict[str, Any] = {"jac": system.jacobian} if method in WITH_JACOBIAN else {}
        begin, options = system.host.out(system.host.like), dict(self.options or {})
        if method == "krylov":
            # SciPy works in float64, and its differences would vanish in the rounding of a residual in float32
            like = system.host.like
            rdiff = float(eps(array_namespace(like), like.dtype) ** 0.5)
            options["jac_options"] = {"rdiff": rdiff, **options.get("jac_options", {})}
        try:
            found = root(system.residual, begin, method=self.method, tol=self.tol, options=options, **supplied)
        except ValueError as error:  # of an option, if SciPy has not begun; else of what a method met
            if not system.last:
                raise
            return Found(begin, Status.FAILED if system.finite() else Status.NON_FINITE, 0, str(error))
        status, message = _status(found, method), str(found.message)
        return Found(found.x, status, int(found.get("nit", found.get("nfev", 0))), message)


@dataclass(frozen=True)
class System:
    """The residuals of a batch as functions of one NumPy vector."""

    problem: Problem
    host: Host
    arrays: Arrays
    last: list[Any] = field(default_factory=list)
    """The residual that was evaluated last."""

    def residual(self, x: Any) -> Any:
        """Return the residual in its own unit, shape (m,)."""
        self.last[:] = [self._image(x) / self.unit]
        return self.last[0]

    @cached_property
    def unit(self) -> float:
        """The largest entry of the residual at the start; one if it is zero or not finite."""
        largest = float(abs(self._image(self.host.out(self.host.like))).max(initial=0.0))
        return largest if 0 < largest < float("inf") else 1.0

    def _image(self, x: Any) -> Any:
        return self.host.out(self.problem.image(self.host.into(x), *self.arrays))

    def finite(self) -> bool:
        """Whether SciPy has got finite numbers so far."""
        return bool(abs(self.last[0]).max(initial=0.0) < float("inf"))

    def jacobian(self, x: Any) -> Any:
        """Return the derivative of the residual, shape (m, m)."""
        _, pull = self.problem.backend.vjp(lambda u: (self.problem.image(u, *self.arrays),), self.host.into(x))
        return self.host.matrix(pull) / self.unit


def _judged(started: Start, found: Solution) -> Solution:
    """Return the solution with a status that does not depend on SciPy's absolute tolerances."""
    assert found.status is not None
    status, xp = found.status[..., None], array_namespace(found.status)
    u, _ = space_of(found.value, started.problem.condition.batch_ndim, "the solution")
    solved = status == int(Status.CONVERGED)
    # a point where F is within its rounding is a root, whatever SciPy's tolerances in float64 say of it
    solved = solved_or_rounded(started, u, solved, status != int(Status.NON_FINITE))
    status = xp.where(solved, full(status, int(Status.CONVERGED)), status)
    verdict = judge(started, u, solved, ~solved & (status != int(Status.NON_FINITE)))
    status = xp.where(verdict.far, full(status, int(Status.NOT_STATIONARY)), status)
    return found._replace(status=xp.where(verdict.rootless, full(status, int(Status.NO_ROOT)), status)[..., 0])


def _status(found: Any, method: str) -> Status:
    if not all(bool(abs(part).max(initial=0.0) < float("inf")) for part in (found.x, found.fun)):
        return Status.NON_FINITE
    if found.success:
        return Status.CONVERGED
    return ENDS.get(method, {2: Status.MAX_ITER}).get(int(found.get("status", -1)), Status.FAILED)
