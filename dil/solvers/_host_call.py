"""Solvers of NumPy vectors for arrays of every backend, in one call to the host, also from compiled programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, nonzero_or_one, norm, size
from dil._base.errors import OptionError
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Backend, Pull
from dil._problem.problem import Problem
from dil.solvers._start import check_positive


class Found(NamedTuple):
    """The answer of a solver that runs on the host."""

    x: Any
    """A NumPy vector."""
    status: Status
    steps: int
    message: str


@dataclass(frozen=True)
class Host:
    """The unknowns of a batch as one NumPy vector in float64, shape (m,)."""

    backend: Backend
    like: Array

    def into(self, x: Any) -> Array:
        """Return a NumPy vector as vectors of the backend, (*batch, n)."""
        xp, dtype, place = array_namespace(self.like), self.like.dtype, device(self.like)
        return xp.reshape(xp.asarray(x, dtype=dtype, device=place), self.like.shape)  # type: ignore[no-any-return]

    def out(self, x: Array) -> Any:
        """Return an array of the backend as a NumPy vector."""
        return self.backend.to_numpy(self.backend.constant(x)).astype("float64").reshape(-1)

    def matrix(self, pull: Pull) -> Any:
        """Return the matrix of a derivative, shape (m, m): a block for each problem, all of them by n pulls."""
        import numpy as np

        n = self.like.shape[-1]
        batch = self.like.shape[:-1]
        rows = [self.out(pull((self.into(np.tile(row, (*batch, 1))),))[0]).reshape(-1, n) for row in np.eye(n)]
        blocks = np.stack(rows, axis=1)
        count = blocks.shape[0]
        matrix = np.zeros((count, n, count, n))
        matrix[range(count), :, range(count), :] = blocks
        return matrix.reshape(count * n, count * n)


def solve_on_host(
    problem: Problem,
    u: Array,
    arrays: Arrays,
    solve: Callable[[Host, Arrays], Found],
    residual: Callable[[Array], Array],
) -> Solution:
    """Return what `solve(host, arrays)` finds, from host.like = u. It drives `residual(u)`, (*batch, n), to zero.

    A batch is one problem to the host, so its problems share one status and one count.
    """
    xp, place, batch = array_namespace(u), {"device": device(u)}, problem.space.batch
    if size(u.shape) == 0:
        return Solution(problem.space.unravel(u), xp.zeros(batch, dtype=xp.int32, **place))
    said: list[str] = []

    def run(*arrays: Array) -> Arrays:
        import numpy as np

        # the solver calls a function of the framework
        start, *rest = [problem.backend.asarray(x) if isinstance(x, np.ndarray) else x for x in arrays]
        host = Host(problem.backend, start)
        found = solve(host, tuple(rest))
        said.append(found.message)
        codes: list[Any] = [np.asarray(int(x), dtype="int32") for x in (found.status, found.steps)]
        return (host.into(found.x), *codes)

    count = xp.zeros((), dtype=xp.int32, **place)
    constants = map(problem.backend.constant, (u, *arrays))
    best, status, steps = problem.backend.loops.on_host(run, (u, count, count), *constants)
    return Solution(
        problem.space.unravel(best),
        xp.broadcast_to(status, batch),
        xp.broadcast_to(steps, batch),
        (norm(residual(best)) / nonzero_or_one(norm(residual(u))))[..., 0],
        {"message": said[-1]} if said else None,
    )


def check_scipy(function: str, method: object, tol: float | None, options: object) -> None:
    """Refuse options that no function of SciPy takes."""
    if not isinstance(method, str):
        message = f"method={method!r}; expected the name of a method of scipy.optimize.{function}"
        raise OptionError(message)
    if options is not None and not isinstance(options, Mapping):
        message = f"options={options!r}; expected a mapping of SciPy's options, or None"
        raise OptionError(message)
    check_positive(optional={"tol": tol})


def import_optimize(name: str) -> Any:
    """Return `scipy.optimize`, for the solver called `name`."""
    try:
        import scipy.optimize
    except ImportError as error:
        message = f"dil.solvers.{name} needs SciPy, which cannot be imported ({error}); pip install scipy"
        raise OptionError(message) from error
    return scipy.optimize
