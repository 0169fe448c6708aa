"""SciPy's minimisers as solvers, on the host, for arrays of every backend and under jit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dil._arrays import array_namespace, device, full, norm
from dil._errors import OptionError
from dil._solution import Solution
from dil._status import Status
from dil._typing import Array, Arrays, Tree
from dil.solvers._start import Start, check_positive, start

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
    A batch is minimised as one problem, the sum of its scores: its problems share one status and one count. Under
    `jax.jit` the solver runs behind a host callback.

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
        if not isinstance(self.method, str):
            message = f"method={self.method!r}; expected the name of a method of scipy.optimize.minimize"
            raise OptionError(message)
        if self.options is not None and not isinstance(self.options, Mapping):
            message = f"options={self.options!r}; expected a mapping of SciPy's options, or None"
            raise OptionError(message)
        check_positive(optional={"tol": self.tol})

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Minimise fun from init; the value has the structure of init."""
        begun = start(self, fun, init, args, kwargs)
        problem, u, arrays = begun
        xp = array_namespace(u)
        said: list[str] = []

        if problem.space.dimension == 0:
            return Solution(init, xp.zeros(problem.space.batch, dtype=xp.int32, device=device(u)))

        def run(u: Array, *arrays: Array) -> Arrays:
            found = self._minimize(Start(problem, u, arrays))
            said.append(str(found.message))
            xp, place = array_namespace(u), {"device": device(u)}
            return (
                xp.reshape(xp.asarray(found.x, dtype=u.dtype, **place), u.shape),
                xp.asarray(int(_status(found)), dtype=xp.int32, **place),
                xp.asarray(int(found.get("nit", 0)), dtype=xp.int32, **place),
            )

        count = xp.zeros((), dtype=xp.int32, device=device(u))
        best, status, steps = problem.backend.on_host(run, (u, count, count), u, *arrays)
        batch = problem.space.batch
        left = norm(problem.gradient(best, *arrays))
        first = norm(problem.gradient(u, *arrays))
        return Solution(
            problem.space.unravel(best),
            xp.broadcast_to(status, batch),
            xp.broadcast_to(steps, batch),
            (left / xp.where(first > 0, first, full(first, 1.0)))[..., 0],
            {"message": said[-1]} if said else None,
        )

    def _minimize(self, begun: Start) -> Any:
        try:
            from scipy.optimize import minimize
        except ImportError as error:
            message = f"dil.solvers.SciPy needs SciPy, which cannot be imported ({error}); pip install scipy"
            raise OptionError(message) from error
        host = Host(begun)
        method = self.method.lower()
        supplied: dict[str, Any] = {} if method in WITHOUT_GRADIENT else {"jac": True}
        if method in WITH_PRODUCTS:
            supplied["hessp"] = host.hessian_product
        if method in WITH_HESSIAN:
            supplied["hess"] = host.hessian
        fun = host.value_and_gradient if "jac" in supplied else lambda x: host.value_and_gradient(x)[0]
        return minimize(fun, host.start, method=self.method, tol=self.tol, options=dict(self.options or {}), **supplied)


@dataclass(frozen=True)
class Host:
    """The sum of the scores of a batch as functions of one NumPy vector in float64."""

    begun: Start

    @property
    def start(self) -> Any:
        """Where to start, shape (m,)."""
        return self._out(self.begun.u)

    def value_and_gradient(self, x: Any) -> tuple[float, Any]:
        """Return the score and its gradient, shape (m,)."""
        value, gradient = self.begun.problem.value_and_gradient(self._in(x), *self.begun.arrays)
        return float(self._out(value).sum()), self._out(gradient)

    def hessian_product(self, x: Any, p: Any) -> Any:
        """Return H p, shape (m,)."""
        problem, _, arrays = self.begun
        _, pull = problem.backend.vjp(lambda w: (problem.gradient(w, *arrays),), self._in(x))
        return self._out(pull((self._in(p),))[0])

    def hessian(self, x: Any) -> Any:
        """Return H, shape (m, m)."""
        import numpy as np

        return np.stack([self.hessian_product(x, row) for row in np.eye(x.size)])

    def _in(self, x: Any) -> Array:
        u = self.begun.u
        xp = array_namespace(u)
        return xp.reshape(xp.asarray(x, dtype=u.dtype, device=device(u)), u.shape)  # type: ignore[no-any-return]

    def _out(self, x: Array) -> Any:
        return self.begun.problem.backend.to_numpy(x).astype("float64").reshape(-1)


def _status(found: Any) -> Status:
    if not bool(abs(found.x).max(initial=0.0) < float("inf")):
        return Status.NON_FINITE
    if found.success:
        return Status.CONVERGED
    return {1: Status.MAX_ITER, 2: Status.STAGNATED}.get(int(found.status), Status.FAILED)
