"""One call of a layer: run the solver, check its answer, and make it a constant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, full, max_abs
from dil._base.errors import BackendError, CapturedError, DilError, DTypeError, ShapeError, UnmappableError
from dil._base.options import declares
from dil._base.quasi_newton import Pairs
from dil._base.solution import Solution
from dil._base.status import EXPLAINS_NON_FINITE, Status
from dil._base.typing import Array, Arrays, Tree
from dil._diagnostics.failure_policy import Policy
from dil._diagnostics.record import add_entry, recording
from dil._frameworks.arguments import Arguments
from dil._frameworks.protocol import Backend, Rule
from dil._frameworks.registry import adopted_tree, leaves_of, owner
from dil._layers.refine import refine
from dil._problem.equation import Equation
from dil._problem.problem import Problem
from dil._problem.score import Score
from dil._problem.space import Space, space_of
from dil.linear._solver import LinearSolver

Solver = Callable[..., Any]
"""`solver(fun, init, *args, **kwargs)` returns the solution, or a `dil.Solution`."""


class Run(NamedTuple):
    """One run of the solver."""

    y: Array
    """The solution as a vector, (*batch, n)."""
    solution: Solution
    """The answer of the solver."""
    start: Array | None
    """The start as a vector, if there is one."""


@dataclass
class Call:
    """One call of a layer: its structure, and the shape of its unknown once that is known."""

    condition: Score | Equation
    solver: Solver
    linear_solver: LinearSolver
    policy: Policy
    refine: int
    backend: Backend
    arguments: Arguments
    start: Arguments
    space: Space | None = field(default=None)
    has_start: bool = field(default=True)
    """Whether the solver had a start. Without one, nothing but the score itself knows the shape of the unknown."""
    fixed: Score | Equation | None = field(default=None)
    """The condition as it was at the call. Derivatives are computed later, and what it captures may change."""

    answer: Arguments | None = field(default=None)
    """The solver's answer without its arrays, once it has run by itself."""

    def problem(self) -> Problem:
        """Return the problem that the solver solved."""
        assert self.space is not None
        return Problem(self.condition_now(), self.backend, self.space, self.arguments)

    def condition_now(self) -> Score | Equation:
        """Return the condition as it was when this was first asked for."""
        if self.fixed is None:
            self.fixed = self.condition.fixed(self.backend.fixed)
        return self.fixed

    def forward(self, *arrays: Array) -> Arrays:
        """Solve, refine, check and apply the policy. The start and the solver's pairs, if any, follow the solution."""
        y, solution, start = self.run(arrays)
        assert solution.status is not None
        if recording():
            numbers = {"iterations": solution.iterations, "residual": solution.residual}
            add_entry(self.backend, self.policy, "forward", {"status": solution.status, **numbers})
        said = (solution.extra or {}).get("message")
        y = self.policy.apply(self.backend, "forward solve", solution.status, y, said)
        return (y, *(() if start is None else (start,)), *(self._remembered(solution) or ()))

    def run(self, arrays: Arrays) -> Run:
        """Run the solver. Return its answer as a vector, and unchanged, and the start."""
        count = len(self.arguments.arrays)
        args, kwargs = self.arguments.call(arrays[:count])
        # a copy: a solver may write into its start, which may be an argument or belong to the layer
        init = _copy(adopted_tree(self.initial(args, kwargs, arrays[count:]), arrays))
        start, expected = self._start(init, arrays)
        self.has_start = expected is not None
        what = f"the result of the solver {_name(self.solver)!r}"
        if declares(self.solver, "_array_code"):  # another solver may call the function with numbers, on the host
            self.condition = self.condition.once(self.backend.once)
        result = self.solver(self.condition, init, *args, **kwargs)
        solution = _as_solution(result)
        y, self.space = space_of(solution.value, self.condition.batch_ndim, what)
        self._check_solution(y, arrays, expected, what)
        y = array_namespace(y).asarray(self.backend.constant(y), copy=True)  # a solver may return one of its arguments
        status = self._with_finite(solution.status, y, what)
        if self.refine:
            y, status = self._refined(y, arrays[:count], status, self._remembered(solution))
        return Run(y, solution._replace(status=status), start)

    def initial(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], starts: Arrays) -> Tree:
        """Return the start."""
        (init,), _ = self.start.call(starts)
        return start_of(init, args, kwargs)

    def _refined(self, y: Array, arrays: Arrays, status: Array, pairs: Pairs | None) -> tuple[Array, Array]:
        plain = tuple(self.backend.constant(x) for x in arrays)
        return refine(self.problem(), self.linear_solver, y, plain, status, self.refine, pairs)

    def _remembered(self, solution: Solution) -> Pairs | None:
        """Return the pairs of the solver, if the linear solver asks for them."""
        pairs = (solution.extra or {}).get("pairs")
        if pairs is None or not getattr(self.linear_solver, "uses_pairs", False):
            return None
        return Pairs(*(self.backend.constant(x) for x in pairs))

    def _start(self, init: Tree, arrays: Arrays) -> tuple[Array | None, Space | None]:
        """Return the start as a vector and its space, if there is one. Its dtype is checked before the solver runs."""
        if init is None or not leaves_of(init)[0]:
            return None, None
        start, space = space_of(init, self.condition.batch_ndim, "init")
        for i, x in zip(self.arguments.floats, self.arguments.only_floats(arrays), strict=True):
            if x.dtype != space.dtype:
                message = f"init has dtype {space.dtype}, but {self.arguments.name(i)} has {x.dtype}; cast one of them"
                raise DTypeError(message)
        return start, space

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

    def _with_finite(self, status: Array | int | None, y: Array, what: str) -> Array:
        """Return the statuses of a forward solve, NON_FINITE where y is not finite and no status says why."""
        xp = array_namespace(y)
        broken = ~(max_abs(y) < math.inf)  # for NaN too
        if status is None or isinstance(status, int):
            status = full(broken, int(status or 0), dtype=xp.int32)
        if tuple(status.shape) != tuple(broken.shape):
            message = (
                f"{what} has status of shape {tuple(status.shape)}; expected {tuple(broken.shape)}, one per problem"
            )
            raise ShapeError(message)
        if self.backend.loops.number(broken) is False:
            return status
        said = (status >= int(EXPLAINS_NON_FINITE)) | (status == int(Status.FAILED))
        marked: Array = xp.where(broken & ~said, full(status, int(Status.NON_FINITE)), status)
        return marked

    def differentiable(self, solve: Callable[..., Arrays], rule: Rule, arrays: list[Array]) -> Arrays:
        """Return solve(*arrays) with the derivative of a rule. An error about a captured array names the layer."""
        try:
            return self.backend.implicit(solve, rule)(*arrays)
        except CapturedError as error:
            message = f"{self.policy.layer}: {error}"
            raise CapturedError(message) from error

    def refuse_captured(self, y: Array, arrays: list[Array]) -> None:
        """Raise if the score depends on an array that is being differentiated but was not passed as an argument.

        The score is evaluated inside a vjp, as in the backward pass, so it cannot write into y.
        """
        backend, problem = self.backend, self.problem()
        count = len(self.arguments.arrays)
        y, *constants = (backend.constant(x) for x in (y, *arrays[:count]))
        traced = isinstance(problem.condition, Score) and problem.condition.derivatives is None
        condition = problem.value if traced else problem.residual
        try:
            (value,), _ = backend.vjp(lambda u: (condition(u, *constants),), y)
        except UnmappableError:
            rule = CapturesRule(self)
            self.differentiable(rule.solve, rule, [y, *constants])
            return
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            if self.has_start or isinstance(error, DilError):
                raise
            message = (
                f"the function {self.condition.name!r} cannot be evaluated at the result of the solver "
                f"{_name(self.solver)!r}, which is {problem.space.describe()}: {error}"
            )
            raise ShapeError(message) from error
        message = (
            f"{self.policy.layer}: its function uses an array that takes part in a differentiation but is not "
            f"among the arguments (captured by a closure, or a parameter of a module), so it would silently get "
            f"no gradient; pass it as an argument, or detach it"
        )
        backend.assert_constant(value, message)


@dataclass(frozen=True)
class CapturesRule:
    """The look for captured arrays at one row after the other, where `vmap` cannot map the function of a layer."""

    call: Call

    def solve(self, *arrays: Array) -> Arrays:
        """Look at one row. Return the solution."""
        self.call.refuse_captured(arrays[0], list(arrays[1:]))
        return arrays[:1]

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Sequence[Array | None]:
        """Return zero cotangents."""
        return [None for _ in wrt]

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return zero tangents."""
        return (full(y[0], 0.0),)


@dataclass
class SolvedCall(Call):
    """A call whose solver has run. What its forward pass returned, `outputs` arrays, follows the arrays of the call."""

    outputs: int = 0

    def forward(self, *arrays: Array) -> Arrays:
        """Return what the solver has returned."""
        return arrays[-self.outputs :]


def solved(call: Call, arrays: list[Array]) -> tuple[SolvedCall, list[Array]]:
    """Run the forward pass of a call. Return the call without its solver, and its arrays."""
    found = call.forward(*(call.backend.constant(x) for x in arrays))
    parts = {part.name: getattr(call, part.name) for part in fields(call)}
    return SolvedCall(**parts, outputs=len(found)), [*arrays, *found]


def start_of(init: Tree, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> Tree:
    """Return the start of a call: `init`, or what it returns for all arguments of the layer."""
    if not callable(init):
        return init
    try:
        return init(*args, **kwargs)
    except TypeError as error:
        names = ", ".join([*(f"argument {i}" for i in range(len(args))), *(f"{name}=" for name in kwargs)])
        error.add_note(
            f"init was called with all arguments of the layer: init({names}); use a function that takes them"
        )
        raise


def _as_solution(result: Any) -> Solution:
    """Return the answer of a solver as a Solution; SciPy's OptimizeResult is known by its fields."""
    if isinstance(result, Solution):
        return result
    if isinstance(result, Mapping) and {"x", "success", "message"} <= result.keys():
        status = Status.CONVERGED if result["success"] else Status.FAILED
        return Solution(result["x"], int(status), extra={"message": str(result["message"])})  # type: ignore[arg-type]
    return Solution(result)


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


def _name(fn: object) -> str:
    return getattr(fn, "__name__", type(fn).__name__)
