"""The layer: y = argmin_u f(u, *args), solved by any black box and differentiated by the theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dil._arguments import Arguments, take_apart
from dil._arrays import array_namespace, full, is_complex
from dil._errors import BackendError, DTypeError, OptionError, ShapeError
from dil._policy import Policy
from dil._problem import Problem
from dil._protocol import Backend
from dil._registry import common_owner, leaves_of, owner
from dil._score import Derivatives, Score
from dil._solution import Solution
from dil._space import Space, space_of
from dil._status import Status
from dil._theorem import BilevelRule
from dil._typing import Array, Arrays, OnFailure, Tree
from dil.linear._cg import CG
from dil.linear._solver import LinearSolver

Solver = Callable[..., Any]
"""`solver(fun, init, *args, **kwargs)` returns the solution, or a `dil.Solution`."""


def argmin(
    score: Callable[..., Any],
    solver: Solver,
    *,
    linear_solver: LinearSolver | None = None,
    batch_ndim: int = 0,
    init: Tree | Callable[..., Tree] | None = None,
    on_failure: OnFailure = "warn",
    derivatives: Derivatives | None = None,
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
        Solves the linear system of the backward pass; `dil.linear.CG()` by default.
    batch_ndim : int
        The number of leading dimensions of u that count independent problems, each with its own status. Arguments
        may be shared between problems.
    init : tree or callable, optional
        Where the solver starts, if the call gives no `init=`; a callable is called with the arguments.
    on_failure : {"warn", "raise", "nan", "ignore"}
        What becomes of problems whose forward or backward solve fails: a warning, an error, NaN in place, nothing.
    derivatives : dil.Derivatives, optional
        Derivative products of the score that the backend cannot find by tracing.

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
    The mean is the point nearest to all others; its gradient spreads evenly:

    >>> import numpy as np, dil
    >>> layer = dil.argmin(lambda u, x: np.sum((u - x) ** 2), dil.solvers.Newton())
    >>> y, pull = dil.vjp(lambda x: layer(x, init=np.asarray(0.0)), np.asarray([1.0, 2.0, 6.0]))
    >>> float(y)
    3.0
    >>> np.round(pull(np.asarray(1.0))[0], 6)
    array([0.333333, 0.333333, 0.333333])
    """
    return Layer(
        Score(score, batch_ndim, derivatives),
        solver,
        CG() if linear_solver is None else linear_solver,
        init,
        Policy(on_failure, f"argmin layer of {getattr(score, '__name__', type(score).__name__)!r}"),
    )


@dataclass(frozen=True, eq=False)  # by identity: a start or a score need not compare or hash
class Layer:
    """A function defined by what its value minimises; made by `dil.argmin`."""

    score: Score
    solver: Solver
    linear_solver: LinearSolver
    init: Tree | Callable[..., Tree] | None
    policy: Policy

    def __post_init__(self) -> None:
        for name, value in (("score", self.score.fn), ("solver", self.solver), ("linear_solver", self.linear_solver)):
            if not callable(value) or (isinstance(value, type) and name != "score"):
                hint = f"; did you mean {value.__name__}()?" if isinstance(value, type) else ""
                message = f"{name}={value!r} of type {type(value).__name__}; expected a callable{hint}"
                raise OptionError(message)
        if not isinstance(self.score.batch_ndim, int) or self.score.batch_ndim < 0:
            message = f"batch_ndim={self.score.batch_ndim!r}; expected an integer >= 0"
            raise OptionError(message)
        given = self.score.derivatives
        if given is not None and not isinstance(given, Derivatives):
            message = f"derivatives={given!r}; expected dil.Derivatives(gradient=..., hvp=..., mixed=...)"
            raise OptionError(message)

    def __call__(self, *args: Tree, init: Tree | None = None, **kwargs: Tree) -> Tree:
        """Return y, differentiable in every float array of the arguments, and never in `init`."""
        call, arrays = self._call(args, kwargs, init)
        rule = BilevelRule(call.problem, self.linear_solver, self.policy)
        (y,) = call.backend.implicit(call.forward, rule)(*arrays)
        call.refuse_captured(y, arrays)
        return call.problem().space.unravel(y)

    def solve(self, *args: Tree, init: Tree | None = None, **kwargs: Tree) -> Solution:
        """Return the solver's whole answer, a constant to every derivative; no policy is applied."""
        call, arrays = self._call(args, kwargs, init)
        y, solution = call.run(tuple(call.backend.constant(x) for x in arrays))
        return solution._replace(value=call.problem().space.unravel(call.backend.constant(y)))

    def _call(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], init: Tree | None) -> tuple[Call, list[Array]]:
        arrays, arguments = take_apart(args, kwargs)
        starts, start = take_apart((self.init if init is None else init,), {})
        names = [arguments.name(i) for i in range(len(arrays))] + ["init"] * len(starts)
        backend = common_owner([*arrays, *starts], names, self.policy.layer)
        _check_dtypes(arrays, arguments)
        return Call(self, backend, arguments, start), [*arrays, *(backend.constant(x) for x in starts)]


@dataclass
class Call:
    """One call of a layer: its structure, and the shape of its unknown once that is known."""

    layer: Layer
    backend: Backend
    arguments: Arguments
    start: Arguments
    space: Space | None = field(default=None)

    def problem(self) -> Problem:
        """Return the problem that the solver solved."""
        assert self.space is not None
        return Problem(self.layer.score, self.backend, self.space, self.arguments)

    def forward(self, *arrays: Array) -> Arrays:
        """Solve, judge and act on the policy."""
        y, solution = self.run(arrays)
        if solution.status is not None:
            y = self.layer.policy.settle(self.backend, "forward solve", solution.status, y)
        return (y,)

    def run(self, arrays: Arrays) -> tuple[Array, Solution]:
        """Run the solver; return its answer as a vector and as it is."""
        count = len(self.arguments.arrays)
        args, kwargs = self.arguments.call(arrays[:count])
        # a copy: a solver may write into its start, which may be an argument or belong to the layer
        (init,), _ = self.start.call(arrays[count:])
        init = _copy(init(*args, **kwargs) if callable(init) else init)
        expected = self._start_space(init, arrays)
        score, what = self.layer.score, f"the result of the solver {_name(self.layer.solver)!r}"
        result = self.layer.solver(score, init, *args, **kwargs)
        solution = result if isinstance(result, Solution) else Solution(result)
        y, self.space = space_of(solution.value, score.batch_ndim, what)
        self._check_solution(y, arrays, expected, what)
        y = array_namespace(y).asarray(self.backend.constant(y), copy=True)  # a solver may return one of its arguments
        return y, solution._replace(status=_with_finite(solution.status, y, what))

    def _start_space(self, init: Tree, arrays: Arrays) -> Space | None:
        """Return the space of the start, if there is one; its dtype is checked before any solver is confused by it."""
        if init is None or not leaves_of(init)[0]:
            return None
        space = space_of(init, self.layer.score.batch_ndim, "init")[1]
        for i, x in zip(self.arguments.floats, self.arguments.only_floats(arrays), strict=True):
            if x.dtype != space.dtype:
                message = f"init has dtype {space.dtype}, but {self.arguments.name(i)} has {x.dtype}; cast one of them"
                raise DTypeError(message)
        return space

    def _check_solution(self, y: Array, arrays: Arrays, expected: Space | None, what: str) -> None:
        assert self.space is not None
        backend = owner(y)
        if backend is not self.backend:
            message = (
                f"{what} is an array of {backend.NATIVE if backend else type(y).__name__}, but the arguments are of "
                f"{self.backend.NATIVE}; convert it inside the solver"
            )
            raise BackendError(message)
        floats = self.arguments.only_floats(arrays)
        if floats and floats[0].dtype != y.dtype:
            message = (
                f"{what} has dtype {y.dtype}, but {self.arguments.name(self.arguments.floats[0])} has "
                f"{floats[0].dtype}; cast one of them"
            )
            raise DTypeError(message)
        if expected is not None and expected != self.space:
            message = f"{what} is {self.space.describe()}, but init is {expected.describe()}; they must agree"
            raise ShapeError(message)

    def refuse_captured(self, y: Array, arrays: list[Array]) -> None:
        """Raise if the score depends on an array that is being differentiated but was not passed as an argument.

        The score is evaluated under a vjp of its own: it sees what it sees in the backward pass, and cannot write
        into y.
        """
        backend, problem = self.backend, self.problem()
        count = len(self.arguments.arrays)
        y, *constants = (backend.constant(x) for x in (y, *arrays[:count]))
        looked_at = problem.value if problem.score.derivatives is None else problem.gradient
        (value,), _ = backend.vjp(lambda u: (looked_at(u, *constants),), y)
        message = (
            f"{self.layer.policy.layer}: the score uses an array that takes part in a differentiation but is not "
            f"among the arguments (captured by a closure, or a parameter of a module), so it would silently get "
            f"no gradient; pass it as an argument, or detach it"
        )
        backend.assert_constant(value, message)


def _with_finite(status: Array | int | None, y: Array, what: str) -> Array:
    """Return the statuses of a forward solve, NON_FINITE where the solution is not finite."""
    xp = array_namespace(y)
    broken = ~xp.all(xp.isfinite(y), axis=-1)
    if status is None or isinstance(status, int):
        status = full(broken, int(status or 0), dtype=xp.int32)
    if tuple(status.shape) != tuple(broken.shape):
        message = f"{what} has status of shape {tuple(status.shape)}; expected {tuple(broken.shape)}, one per problem"
        raise ShapeError(message)
    marked: Array = xp.where(broken, full(status, int(Status.NON_FINITE)), status)
    return marked


def _copy(tree: Tree) -> Tree:
    """Return a tree with copies of its arrays, cut off from every derivative."""
    leaves, structure = leaves_of(tree)
    owners = [owner(x) for x in leaves]
    return structure.unflatten(
        [
            x if own is None else array_namespace(x).asarray(own.constant(x), copy=True)
            for x, own in zip(leaves, owners, strict=True)
        ]
    )


def _check_dtypes(arrays: list[Array], arguments: Arguments) -> None:
    floats = arguments.only_floats(arrays)
    for i, x in enumerate(arrays):
        if is_complex(array_namespace(x), x.dtype):
            message = (
                f"{arguments.name(i)} has dtype {x.dtype}; a layer differentiates in real arrays only, so pass the "
                f"real and the imaginary part"
            )
            raise DTypeError(message)
    for i, x in zip(arguments.floats, floats, strict=True):
        if x.dtype != floats[0].dtype:
            message = (
                f"{arguments.name(arguments.floats[0])} has dtype {floats[0].dtype}, but {arguments.name(i)} has "
                f"{x.dtype}; cast them to one dtype before the call"
            )
            raise DTypeError(message)


def _name(fn: object) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


__all__ = ["Layer", "Solver", "argmin"]
