"""The layer: y with F(y, *args) = 0, solved by any black box and differentiated by the theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, get_args

from dil._base.errors import DTypeError, OptionError
from dil._base.one_line import made_by, one_line
from dil._base.operator import Operator
from dil._base.options import check_callable, is_integer
from dil._base.solution import Solution
from dil._base.typing import Array, Arrays, CheckSmoothness, Tree
from dil._diagnostics.failure_policy import Policy
from dil._frameworks.adoption import run_in_its_framework
from dil._frameworks.arguments import (
    NO_START,
    Arguments,
    split_arguments,
    with_complex_split,
    with_promoted_trees,
)
from dil._frameworks.registry import common_owner, guarded, leaves_of, loaded
from dil._layers.answer import AnswerRule, answer_of, rebuilt
from dil._layers.call import Call, Solver, solved, start_of
from dil._layers.independence import check_independence
from dil._layers.programs import Programs
from dil._layers.score_check import check_score
from dil._layers.theorem import ImplicitRule
from dil._problem.equation import Equation
from dil._problem.jacobian import jacobian
from dil._problem.score import Score
from dil.linear._solver import LinearSolver

if TYPE_CHECKING:
    from dil._diagnostics.report import Report

KINDS = {"residual": "root", "step": "fixed_point"}
"""The function that makes a layer of an equation."""


@dataclass(frozen=True, eq=False)  # compared by identity, since a start or a score may have no comparison and no hash
class Layer:
    """A function y(args) defined by F(y, args) = 0; made by `dil.argmin`, `dil.root` and `dil.fixed_point`."""

    condition: Score | Equation
    solver: Solver
    linear_solver: LinearSolver
    init: Tree | Callable[..., Tree] | None
    policy: Policy
    refine: int = 0
    check_smoothness: CheckSmoothness = "first"
    programs: Programs = field(default_factory=Programs, init=False, repr=False)
    solves: Programs = field(default_factory=Programs, init=False, repr=False)
    """The compiled runs of the solver alone."""

    def __post_init__(self) -> None:
        loaded()  # `guarded` must know the framework of a compiler that meets the layer before any array
        for name, value in (("solver", self.solver), ("linear_solver", self.linear_solver)):
            check_callable(name, value)
        if str(getattr(self.solver, "__module__", "")).startswith("scipy."):
            message = (
                f"solver={one_line(self.solver)} is a function of SciPy, which takes the arguments as args=(...); take "
                "dil.solvers.SciPyRoot() or dil.solvers.SciPy(), or a function of (fun, init, *args) that calls it"
            )
            raise OptionError(message)
        if not is_integer(self.refine, 0):
            message = f"refine={self.refine!r}; expected a number of Newton steps >= 0"
            raise OptionError(message)
        if self.check_smoothness not in get_args(CheckSmoothness):
            expected = ", ".join(get_args(CheckSmoothness))
            message = f"check_smoothness={self.check_smoothness!r} is unknown; expected one of {expected}"
            raise OptionError(message)

    def __repr__(self) -> str:
        kind = "argmin" if isinstance(self.condition, Score) else KINDS[self.condition.kind]
        return made_by(
            f"dil.{kind}",
            self.condition.fn,
            self.solver,
            linear_solver=self.linear_solver,
            batch_ndim=self.condition.batch_ndim or None,
            init=self.init,
            refine=self.refine or None,
        )

    def __call__(self, *args: Tree, init: Tree | None = None, **kwargs: Tree) -> Tree:
        """Return y, differentiable in every float array of the arguments, but not in `init`."""
        return guarded(run_in_its_framework, self._answer, partial(value_at_start, self), args, kwargs, init)

    def _answer(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], init: Tree | None) -> Tree:
        call, arrays = self.begin(args, kwargs, init)
        if self.programs.need_the_solution(call, arrays):
            call, arrays = solved(call, arrays)
        program = self.programs.find(call, arrays, lambda call: partial(_solution_of, call, self.rule(call)))
        if program is None:
            (y,) = _solution_of(call, self.rule(call), *arrays)
        else:
            call = program.call
            (y,) = program.run(*arrays)
        check_independence(call, y, arrays)
        y = check_score(call, y, arrays, self.check_smoothness)
        return call.problem().space.unravel(y)

    def rule(self, call: Call) -> ImplicitRule:
        """Return the rule that differentiates the solution of one call with respect to its arrays."""
        return ImplicitRule(call.problem, self.linear_solver, self.policy, self.check_smoothness, self.solver, call)

    def solve(self, *args: Tree, init: Tree | None = None, **kwargs: Tree) -> Solution:
        """Return the `dil.Solution` of the solver. It has no derivative, and `on_failure` does not apply."""
        return guarded(run_in_its_framework, self._solution, partial(value_at_start, self), args, kwargs, init)  # type: ignore[no-any-return]

    def _solution(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], init: Tree | None) -> Solution:
        call, arrays = self.begin(args, kwargs, init)
        program = self.solves.find(call, arrays, lambda call: partial(answer_of, call))
        if program is not None:
            return rebuilt(program.call, program.run(*arrays))
        if call.backend.compiler() is not None:
            return rebuilt(call, answer_of(call, *arrays))
        # vmap asks the rule for one solve of many calls where operations run at once
        rule = AnswerRule(call)
        return rebuilt(call, call.backend.implicit(rule.solve, rule)(*map(call.backend.constant, arrays)))

    def _linearised(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], init: Tree | None) -> tuple[Operator, Array]:
        """Return dF/du at the solution of a call, and the solution as a vector, for `dil.linear.spectrum`."""
        at = partial(value_at_start, self)
        return guarded(run_in_its_framework, self._matrix, at, args, kwargs, init)  # type: ignore[no-any-return]

    def _matrix(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], init: Tree | None) -> tuple[Operator, Array]:
        call, arrays = self.begin(args, kwargs, init)
        constants = tuple(call.backend.constant(x) for x in arrays)
        u = call.backend.constant(call.run(constants).y)
        F, floats = call.problem().optimality(constants)
        return jacobian(F, u, *floats), u

    def report(self, *args: Tree, init: Tree | None = None, cotangent: Tree | None = None, **kwargs: Tree) -> Report:
        """Solve, pull a cotangent back, and report on both: statuses, stationarity, curvature, and an error bound.

        Parameters
        ----------
        *args, init, **kwargs
            As in a call.
        cotangent : tree, optional
            dL/dy, like y; ones by default.

        Returns
        -------
        Report
            `forward` and `backward`, each a `dil.Entry` of NumPy arrays of shape batch. `print` shows both.

        Raises
        ------
        OptionError
            If no argument holds a float array, so that there is no gradient.

        Notes
        -----
        The policy is not applied; the statuses show failures. `backward.bound` bounds the relative error of the
        gradient for the given cotangent, in the norm over all float arguments. The bound compares this gradient with a
        second one, computed after one Newton step with a tighter linear solve. It costs a few times as much as the
        gradient. It covers errors of y and of the linear solve, damping included, but not a wrong derivative.

        Examples
        --------
        >>> import numpy as np, dil
        >>> rough = dil.solvers.GradientDescent(rtol=1e-2)
        >>> layer = dil.argmin(lambda u, t: np.sum((u - t) ** 2 + u**4), rough, init=lambda t: 0.0 * t)
        >>> rep = layer.report(np.asarray([1.0, 2.0]))
        >>> 1e-6 < float(rep.backward.bound) < 1e-1
        True
        """
        from dil._diagnostics.report import report

        quiet = replace(self, policy=replace(self.policy, on_failure="ignore"))
        return guarded(report, partial(quiet, init=init), quiet.policy, args, kwargs, cotangent)  # type: ignore[no-any-return]

    def begin(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], init: Tree | None) -> tuple[Call, list[Array]]:
        """Return one call before it runs, and its arrays: those of the arguments, then those of the start."""
        init = self.init if init is None else init
        arrays, arguments = split_arguments(args, kwargs, () if init is None or callable(init) else leaves_of(init)[0])
        starts, start = ([], NO_START) if init is None else split_arguments((init,), {}, arrays)
        names = [arguments.name(i) for i in range(len(arrays))] + ["init"] * len(starts)
        backend = common_owner([*arrays, *starts], names, self.policy.layer)
        arrays, arguments = with_complex_split(arrays, arguments)
        starts, start = with_complex_split(starts, start)
        arrays = with_promoted_trees(arrays, arguments, starts, backend)
        _check_dtypes(arrays, arguments)
        call = Call(
            self.condition, self.solver, self.linear_solver, self.policy, self.refine, backend, arguments, start
        )
        return call, [*arrays, *(backend.constant(x) for x in starts)]


def value_at_start(layer: Layer, args: tuple[Tree, ...], kwargs: dict[str, Tree], init: Tree | None) -> Tree:
    """Return the start of a call, and the value of the layer's function there; without a start, the solver's answer."""
    init = layer.init if init is None else init
    start = start_of(init, args, kwargs)
    if start is None:
        answer = layer.solver(layer.condition, None, *args, **kwargs)
        return answer.value if isinstance(answer, Solution) else answer
    return start, layer.condition(start, *args, **kwargs)


def _solution_of(call: Call, rule: ImplicitRule, *arrays: Array) -> Arrays:
    """Return the solution of one call as a vector, differentiable in the arrays."""
    y, *_ = call.differentiable(call.forward, rule, list(arrays))
    call.refuse_captured(y, list(arrays))
    return (y,)


def _check_dtypes(arrays: list[Array], arguments: Arguments) -> None:
    floats = arguments.only_floats(arrays)
    for i, x in zip(arguments.floats, floats, strict=True):
        if x.dtype != floats[0].dtype:
            message = (
                f"{arguments.described(arguments.floats[0], floats[0])}, but {arguments.described(i, x)}; cast them to "
                f"one dtype before the call"
            )
            raise DTypeError(message)
