"""A solver for layers of every kind that runs a solver of optimistix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import optimistix

from dil._base.arrays import full, nonzero_or_one, norm
from dil._base.errors import OptionError
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Tree
from dil._problem.equation import Equation
from dil._problem.score import Score
from dil.solvers._start import Start, check_positive, start
from dil_backends._optimiser_bridge import check_arrays

MINIMISERS = (optimistix.AbstractMinimiser,)
ROOTS = (optimistix.AbstractRootFinder, optimistix.AbstractLeastSquaresSolver, *MINIMISERS)
FIXED_POINTS = (optimistix.AbstractFixedPointSolver, *ROOTS)
BRACKETS = (optimistix.Bisection, optimistix.GoldenSearch)
"""These solvers search for one number between two bounds."""
ENDS = (
    (optimistix.RESULTS.successful, Status.CONVERGED),
    (optimistix.RESULTS.nonlinear_max_steps_reached, Status.MAX_ITER),
    (optimistix.RESULTS.nonfinite, Status.NON_FINITE),
    (optimistix.RESULTS.singular, Status.SINGULAR),
    (optimistix.RESULTS.stagnation, Status.STAGNATED),
)
"""Results of optimistix and their statuses. Every other result is FAILED."""


@dataclass(frozen=True)
class Optimistix:
    """Solve by `optimistix.minimise`, `root_find` or `fixed_point`, according to the kind of the layer.

    Parameters
    ----------
    solver : an optimistix solver
        Minimisers solve layers of every kind. Root finders and least-squares solvers solve root and fixed-point layers.
        Fixed-point solvers solve fixed-point layers. The rtol and atol of the solver are the stopping test.
    max_iter : int
        The `max_steps` of optimistix.

    Raises
    ------
    OptionError
        If `solver` is not a solver of optimistix, if it searches between bounds (Bisection, GoldenSearch), or if it
        cannot solve this kind of layer. Also if the arrays of the layer are not JAX's.

    Notes
    -----
    A batch is solved as one problem (the sum of its scores, or all its equations at once). Its problems share one
    status and one iteration count. Under `jax.vmap` each problem has its own status and count.

    Examples
    --------
    >>> import jax.numpy as jnp, optimistix, dil
    >>> from dil_backends.optimistix import Optimistix
    >>> newton = Optimistix(optimistix.Newton(rtol=1e-5, atol=1e-5))
    >>> layer = dil.root(lambda u, t: u**2 - t, newton, init=lambda t: t)
    >>> [round(float(y), 3) for y in layer(jnp.asarray([4.0, 9.0]))]
    [2.0, 3.0]
    """

    solver: Any
    max_iter: int = 256

    def __post_init__(self) -> None:
        if not isinstance(self.solver, FIXED_POINTS):
            message = f"solver={self.solver!r}; expected one of optimistix, such as optimistix.Newton(rtol=, atol=)"
            raise OptionError(message)
        if isinstance(self.solver, BRACKETS):
            message = (
                f"{type(self.solver).__name__} of optimistix searches between bounds, and a layer has none; take "
                f"optimistix.Newton for a root, optimistix.BFGS for a minimum, or write the solver as a function"
            )
            raise OptionError(message)
        check_positive(optional={}, max_iter=self.max_iter)

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Solve from init; the value has the structure of init."""
        started = start(self, fun, init, args, kwargs, roots=True)
        check_arrays(started, "jax", "Optimistix")
        problem, u, arrays = started
        if problem.space.dimension == 0:
            return Solution(problem.space.unravel(u), full(norm(u)[..., 0], 0, dtype=jnp.int32))
        found = self._solve(started)
        value, batch, spread = found.value, problem.space.batch, cast(Any, jnp.broadcast_to)
        left, slope = (norm(problem.residual(w, *arrays)) for w in (value, u))
        return Solution(
            problem.space.unravel(value),
            spread(_status(found.result), batch),
            spread(jnp.asarray(found.stats["num_steps"], dtype=jnp.int32), batch),
            (left / nonzero_or_one(slope))[..., 0],
        )

    def _solve(self, started: Start) -> Any:
        problem, u, arrays = started
        options: dict[str, Any] = {"max_steps": self.max_iter, "throw": False}
        if isinstance(problem.condition, Score):
            self._check(MINIMISERS, "argmin", "a minimiser")
            return optimistix.minimise(lambda w, xs: _sum(problem.value(w, *xs)), self.solver, u, arrays, **options)
        if isinstance(problem.condition, Equation) and problem.condition.kind == "residual":
            self._check(ROOTS, "root", "a root finder, a least-squares solver or a minimiser")
            return optimistix.root_find(lambda w, xs: problem.image(w, *xs), self.solver, u, arrays, **options)
        return optimistix.fixed_point(lambda w, xs: problem.image(w, *xs), self.solver, u, arrays, **options)

    def _check(self, kinds: tuple[type, ...], layer: str, expected: str) -> None:
        if not isinstance(self.solver, kinds):
            message = f"{type(self.solver).__name__} of optimistix cannot solve a layer of dil.{layer}; take {expected}"
            raise OptionError(message)


def _sum(values: Any) -> Any:
    return jnp.sum(values)


def _status(result: Any) -> jax.Array:
    status = jnp.asarray(int(Status.FAILED), dtype=jnp.int32)
    for ending, code in ENDS:
        status = jnp.where(result == ending, int(code), status)
    return status
