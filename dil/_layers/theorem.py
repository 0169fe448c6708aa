"""The implicit function theorem: the derivative of y where F(y, args) = 0.

J dy + F_args dargs = 0,   J = dF/du

pullback      dL/dargs = -g^T F_args,   J^T g = dL/dy
pushforward   dy = -J^-1 (F_args dargs)

For a score F = df/du and J = H is symmetric: Look et al. 2020, Theorem 1 (pullback) and Theorem 2 (pushforward).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, full, size
from dil._base.operator import Operator
from dil._base.options import declares
from dil._base.quasi_newton import Pairs
from dil._base.scale import scale_of
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Arrays, CheckSmoothness
from dil._diagnostics.curvature import check_curvature, check_degenerate
from dil._diagnostics.error_bound import error_bound
from dil._diagnostics.failure_policy import Place, Policy, without_approximate
from dil._diagnostics.newton_comparison import Point
from dil._diagnostics.record import Record, add_entry, open_records, recording, with_records_of_forward_call
from dil._diagnostics.smoothness import check_smoothness
from dil._diagnostics.stationarity import DerivativeSolve, check_stationarity, gives_step, probes_of
from dil._frameworks.forward_mode import jvp_from_vjp
from dil._frameworks.many import with_many
from dil._frameworks.protocol import Backend, LinearSystem, Pull, RepeatedPull, Vectorise
from dil._layers.batched_call import batched_call
from dil._layers.call import Call
from dil._layers.continued import is_long, way_to_solution
from dil._layers.few_unknowns import (
    FewPulled,
    checked_solution,
    in_numbers,
    matrix_of_few,
    pull_few,
    with_inverse,
)
from dil._layers.first_calls import FirstCalls, is_readable
from dil._layers.mixed_check import check_mixed, is_unchecked, with_wrong_mixed
from dil._layers.repeated import MOST_UNKNOWNS, Argument, has_inverse, repeated_pullback
from dil._layers.score_check import with_wrong_gradient
from dil._layers.together import solved_together
from dil._problem.jacobian import jacobian, of_part, transposed_operator
from dil._problem.problem import Optimality, Problem
from dil.linear._choice import Choice
from dil.linear._direct import inverse_of_few
from dil.linear._recycled_choice import RecycledChoice
from dil.linear._solver import LinearSolver, check_solution

SMOOTH = FirstCalls()
"""The calls whose F was found to be smooth at a solution."""
NOT_HELD: Any = object()
"""Stands for an array that comes as an argument."""


@dataclass(frozen=True)
class ImplicitRule:
    """The derivative of a layer's solution with respect to its arguments.

    The solution is the first output. Constants may follow: the start, for the scale of the solution, and the solver's
    pairs, for a preconditioner.
    """

    find: Callable[[], Problem]
    """The problem of the call. The shape of its unknown is known once the solver has run."""
    linear_solver: LinearSolver
    policy: Policy
    check_smoothness: CheckSmoothness = "never"
    solver: object = None
    """The forward solver. The first call with another one is checked anew."""
    call: Call | None = None
    """The call itself, if it may be one of many that are made at once."""
    records: tuple[Record, ...] = field(default_factory=open_records, repr=False, compare=False)
    """The records that were open at the forward call."""

    @with_records_of_forward_call
    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return -g^T F_args for the arguments in `wrt`, where J^T g = v."""
        problem, v = self.find(), cotangents[0]
        F, floats = problem.optimality(args)
        places, at = _places(problem, wrt), self._linearised(F, floats, y)
        few = FewPulled()
        if at.way is None and not self.looks_further(F, at.u, places):
            few = pull_few(at.pull, v, at.Fu, _outputs(y)[:2], places, self.linear_solver, problem)
        if few.cotangents is not None:
            return few.cotangents
        g = problem.backend.linear_solve(self._transposed_system(F, floats, y, places, at, few.matrix), v)
        return at.pull((-g,), places)

    @with_records_of_forward_call
    def pullbacks(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return the pullbacks of many v, (k, *batch, n), by one solve with many right-hand sides."""
        problem = self.find()
        F, floats = problem.optimality(args)
        places, at = _places(problem, wrt), self._linearised(F, floats, y)
        system = with_many(self._transposed_system(F, floats, y, places, at))
        return at.pull.many((-problem.backend.linear_solve(system, cotangents[0]),), places)

    def _linearised(self, F: Optimality, floats: Arrays, y: Arrays) -> Linearised:
        """Return F and its pullback at the solution, or at a better point near it."""
        vjp, u = F.problem.backend.vjp, y[0]
        (Fu,), pull = vjp(F, u, *floats)
        way = way_to_solution(F, u, Fu, floats, self.linear_solver)
        if way is not None:
            u = u + way
            (Fu,), pull = vjp(F, u, *floats)
        return Linearised(u, Fu, pull, way)

    def _transposed_system(
        self,
        F: Optimality,
        floats: Arrays,
        y: Arrays,
        places: tuple[int, ...],
        at: Linearised,
        matrix: Array | None = None,
    ) -> LinearSystem:
        """Return the system of J^T. Its `matrix` may be at hand."""
        problem, u = F.problem, at.u
        part = of_part(problem, u, F.arrays(floats))
        A = transposed_operator(problem, at.pull, u, F.arrays(floats))
        A = replace(A, _pull=at.pull, _rows=lambda rows: part(rows).T, matrix=matrix)
        return self.system(F, at.Fu, A, (u, *floats), (u, *y[1:]), places, at.way)

    @with_records_of_forward_call
    def has_looked(self, args: Arrays, y: Arrays, wrt: Sequence[int]) -> bool:
        """Return whether a pullback to these arguments has nothing to look at but its system."""
        problem = self.find()
        return not self.looks_further(problem.optimality(args)[0], y[0], _places(problem, wrt))

    @with_records_of_forward_call
    def repeated(self, args: Arrays, y: Arrays) -> RepeatedPull | None:
        """Return the pullback for further cotangents of the solution, with J^-1 at hand, or None."""
        problem, u = self.find(), y[0]
        if recording() or u.shape[-1] > MOST_UNKNOWNS:
            return None
        F, floats = problem.optimality(args)
        (Fu,), pull = problem.backend.vjp(F, u, *floats)
        A = transposed_operator(problem, pull, u, F.arrays(floats))
        if not has_inverse(self.linear_solver, A, u, problem.backend):
            return None
        places = enumerate(zip(problem.arguments.floats, floats, strict=True), start=1)
        arguments = {i: Argument(place, x.shape) for place, (i, x) in places}
        return repeated_pullback(self.system(F, Fu, A, (u, *floats), y), u, pull, arguments, problem.backend)

    @with_records_of_forward_call
    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return -J^-1 (F_args t)."""
        problem, u = self.find(), y[0]
        F, floats = problem.optimality(args)
        t, zeros = [tangents[i] for i in problem.arguments.floats], tuple(full(x, 0.0) for x in y[1:])
        if all(tangent is None for tangent in t):
            return (full(u, 0.0), *zeros)
        (Fu,), (Ft,) = jvp_from_vjp(problem.backend, F, (u, *floats), (None, *t))
        way = way_to_solution(F, u, Fu, floats, self.linear_solver)
        if way is not None:
            u = u + way
            (Fu,), (Ft,) = jvp_from_vjp(problem.backend, F, (u, *floats), (None, *t))
        wanted = tuple([k for k, tangent in enumerate(t, start=1) if tangent is not None])
        system = self.system(F, Fu, jacobian(F, u, *floats), (u, *floats), (u, *y[1:]), wanted, way)
        return (problem.backend.linear_solve(system, -Ft), *zeros)

    def batched(
        self, axes: Sequence[bool], size: int, vectorise: Vectorise
    ) -> tuple[Callable[..., Arrays], ImplicitRule] | None:
        """Return the solve and the rule of `size` calls at once, or None if they are made one after the other."""
        call = None if self.call is None else batched_call(self.call, axes, size, vectorise)
        return None if call is None else (call.forward, replace(self, find=call.problem, call=call))

    def system(
        self,
        F: Optimality,
        Fu: Array,
        A: Operator,
        params: Arrays,
        y: Arrays,
        wrt: tuple[int, ...] | None = None,
        way: Array | None = None,
    ) -> LinearSystem:
        """Return the system with the matrix A, which is J or J^T at params = (u, *floats).

        Its solve checks the answer and u, and applies the policy. `wrt` are the places in `params` of the arguments
        whose derivative is wanted; None: of all. `way` leads from the solver's answer to u, if they differ.
        """
        backend = F.problem.backend
        fixed, has_way = F.with_fixed([NOT_HELD] * len(F.fixed)), way is not None
        maps = DerivativeMaps(self, fixed, A.transposed, len(params), len(y), wrt, has_way)
        # arrays that are only checked take no part in the derivative
        ways = () if way is None else (way,)
        constants = tuple(backend.constant(x) for x in (Fu, *y, *ways, *params[1:], *F.fixed))
        return LinearSystem(
            maps.build, params, A, maps.solve, constants, fixed=F.fixed, many=maps.many, batched=maps.batched
        )

    @with_records_of_forward_call
    def solution(self, F: Optimality, A: Operator, b: Array, at: At) -> Array:
        """Solve A g = b, check g and the point, and apply the policy."""
        backend, Fu = F.problem.backend, at.Fu
        matrix = matrix_of_few(A, b, self.linear_solver, backend)
        if matrix is not None:
            inverse = inverse_of_few(matrix, b, backend, symmetric=A.symmetric)
            read = None if inverse is None else in_numbers(b, Fu, at.u, at.start, backend)
            if inverse is not None and read is not None and at.way is None and not self.looks_further(F, at.u, at.wrt):
                g = checked_solution(inverse, read, b, step=gives_step(A))
                if g is not None:
                    return backend.asarray(g, dtype=b.dtype, device=device(b))
            A = with_inverse(A, matrix, inverse)
        unasked = self.policy.on_failure == "ignore" and not recording()
        scale = scale_of(at.u, at.start)
        A = replace(A, pairs=at.pairs, probes=() if unasked else probes_of(A, Fu, scale, backend))
        solution = self.linear_solver(A, b, loop=backend.loops.while_loop)
        check_solution(solution, b)
        solution = _with_nan(solution, b, backend)
        if unasked:  # nobody would hear of the point, and a look at it may cost more than the solve
            value: Array = solution.value
            return value
        here = Point(at.u, solution.value, at.floats, scale, at.wrt)
        status = check_stationarity(DerivativeSolve(F, A, b, Fu, here, solution, self.linear_solver))
        if at.way is not None:
            far = without_approximate(status) == int(Status.CONVERGED)
            far = far & is_long(at.way, b, scale, transposed=A.transposed)
            status = array_namespace(b).where(far, full(status, int(Status.NOT_STATIONARY)), status)
        status = check_curvature(status, A, b, solution, backend)
        status = check_degenerate(status, A, b, backend)
        status = self.smooth(status, F, A, Fu, here)
        if recording():
            found = error_bound(F, A, b, Fu, here._replace(wrt=None))
            holds = status < int(Status.KINK)  # later statuses say that J is not the derivative of F, or none exists
            bound = array_namespace(b).where(holds, found.bound, full(found.bound, float("inf")))
            found = found._replace(bound=bound)
            counts = {"iterations": solution.iterations, "residual": solution.residual}
            choice = (solution.extra or {}).get("choice")
            told: dict[str, Array | None] = {
                "_choice": choice.numbers() if isinstance(choice, Choice | RecycledChoice) else None
            }
            if F.problem.untraced is not None:
                told["differences"] = F.problem.untraced.error_of_differences(at.u, *F.arrays(at.floats))
            add_entry(backend, self.policy, "backward", {"status": status, **counts, **found._asdict(), **told})
        place = (solution.extra or {}).get("place")
        return self.policy.apply(
            backend, "backward solve", status, solution.value, place=place if isinstance(place, Place) else None
        )

    @with_records_of_forward_call
    def solutions(self, F: Optimality, A: Operator, B: Array, at: At) -> Array | None:
        """Solve A g = b for many b at once. Return None if one of them, or the point, needs a closer look."""
        if recording() or B.shape[0] == 0 or not declares(self.linear_solver, "_takes_many"):
            return None
        point = Point(at.u, at.u, at.floats, scale_of(at.u, at.start))
        if at.way is not None and bool(
            array_namespace(B).any(is_long(at.way, B, point.scale, transposed=A.transposed))
        ):
            return None
        solve = solved_together(self.linear_solver, F, A, B, at.Fu, point)
        return None if solve is None or self._bends(solve, at.wrt) else solve.here.g

    def _bends(self, solve: DerivativeSolve, wrt: tuple[int, ...] | None) -> bool:
        """Return whether the layer looks for kinks and finds one at a solution with many right-hand sides."""
        F, here, A = solve.F, solve.here._replace(g=solve.here.g[0, ...], wrt=wrt), solve.A.one
        xp = array_namespace(here.u)
        assert A is not None
        status = self.smooth(full(here.u, 0, shape=here.u.shape[:-1], dtype=xp.int32), F, A, solve.Fu, here)
        return not bool(xp.all(status == int(Status.CONVERGED)))

    def smooth(self, status: Array, F: Optimality, A: Operator, Fu: Array, here: Point) -> Array:
        """Return the statuses, with KINK, WRONG_DERIVATIVE, WRONG_MIXED or RANDOM, if a layer or a record looks for it.

        A is J or J^T.
        """
        backend, u = F.problem.backend, here.u
        if size(u.shape) == 0 or not self.looks_further(F, u, here.wrt, forward=not A.transposed):
            return status
        if recording() or self.check_smoothness == "always":
            status = check_smoothness(status, F, A.T if A.transposed else A, Fu, here)
            status = with_wrong_gradient(status, F, here)
            if is_readable(backend, u) and is_unchecked(F.problem, u, here.wrt, forward=not A.transposed):
                return check_mixed(status, F, A, here, self.policy)
            return with_wrong_mixed(status, F, A, here)
        if is_readable(backend, u):
            # one of many relus is near its bend now and then, and the derivative of its side is right
            status = check_smoothness(status, F, A.T if A.transposed else A, Fu, here, bends=False)
            if bool(array_namespace(status).all(without_approximate(status) == int(Status.CONVERGED))):
                SMOOTH.add(F.problem, u, self.solver)
                status = check_mixed(status, F, A, here, self.policy)
        return status

    def looks_further(self, F: Optimality, u: Array, wrt: tuple[int, ...] | None, *, forward: bool = False) -> bool:
        """Return whether more than the solution is asked for: an entry of a record, or a look at the derivatives."""
        if recording() or self.check_smoothness != "first":
            return recording() or self.check_smoothness == "always"
        return SMOOTH.are_new(F.problem, u, self.solver) or is_unchecked(F.problem, u, wrt, forward=forward)


class Linearised(NamedTuple):
    """F and its pullback at a point."""

    u: Array
    Fu: Array
    pull: Pull
    way: Array | None
    """The way from the solver's answer to u, if they differ."""


class At(NamedTuple):
    """The point of a derivative: F, the outputs of the call, and its float arguments."""

    Fu: Array
    u: Array
    start: Array | None
    pairs: Pairs | None
    floats: Arrays
    wrt: tuple[int, ...] | None
    way: Array | None = None
    """The way from the solver's answer to u, if they differ."""


@dataclass(frozen=True)
class DerivativeMaps:
    """The functions of the linear system of one derivative. All arrays come as arguments."""

    rule: ImplicitRule
    F: Optimality
    transposed: bool
    params: int
    """The number of parameters: u and the float arguments."""
    outputs: int
    """The number of outputs of the call."""
    wrt: tuple[int, ...] | None = None
    """The places in the parameters of the arguments whose gradient is wanted; None: of all."""
    has_way: bool = False
    """Whether the way from the solver's answer to u follows the outputs."""

    def build(self, *arrays: Array) -> Operator:
        """Return J or J^T; arrays: u, the float arguments, the other arguments."""
        J = jacobian(self.F.with_fixed(arrays[self.params :]), *arrays[: self.params])
        return J.T if self.transposed else J

    def solve(self, A: Operator, b: Array, *constants: Array) -> Array:
        """Return the checked solution."""
        return self.rule.solution(*self._at(A, b, constants))

    def many(self, A: Operator, B: Array, *constants: Array) -> Array | None:
        """Return the solutions of many systems with the matrix A.one, or None."""
        return self.rule.solutions(*self._at(A, B, constants))

    def batched(
        self, system: LinearSystem, params: Sequence[bool], fixed: Sequence[bool], size: int, vectorise: Vectorise
    ) -> LinearSystem | None:
        """Return many systems as one, or None."""
        if self.rule.call is None or not params[0]:
            return None
        arguments = self.F.problem.arguments
        rest = iter(fixed)
        others = [x is not None and next(rest) for x in self.F.others]
        axes = arguments.with_floats(others, params[1:])
        call = batched_call(self.rule.call, axes, size, vectorise)
        if call is None:
            return None
        call.space = self.F.problem.space.many(size)
        rule = replace(self.rule, find=call.problem, call=call)
        maps = replace(self, rule=rule, F=replace(self.F, problem=call.problem()))
        return replace(system, operator=maps.build, solve=maps.solve, many=maps.many, batched=maps.batched)

    def _at(self, A: Operator, b: Array, constants: Arrays) -> tuple[Optimality, Operator, Array, At]:
        Fu, *rest = constants
        (u, start, pairs), rest = _outputs(rest[: self.outputs]), rest[self.outputs :]
        way, rest = (rest[0], rest[1:]) if self.has_way else (None, rest)
        count = self.params - 1
        return self.F.with_fixed(rest[count:]), A, b, At(Fu, u, start, pairs, tuple(rest[:count]), self.wrt, way)


def _places(problem: Problem, wrt: Sequence[int]) -> tuple[int, ...]:
    """Return the places of the arguments `wrt` among the unknown and the float arguments."""
    return tuple([1 + problem.arguments.floats.index(i) for i in wrt])


def _outputs(y: Sequence[Array]) -> tuple[Array, Array | None, Pairs | None]:
    """Return the solution, the start and the pairs of the outputs of a call. Only the solution is always there."""
    u, *rest = y
    count = len(Pairs._fields)
    has_start = len(rest) % count == 1
    pairs = rest[has_start:]
    return u, rest[0] if has_start else None, Pairs(*pairs) if pairs else None


def _with_nan(solution: Solution, b: Array, backend: Backend) -> Solution:
    """Return the solution with NaN in the problems whose b is not finite, as of an operation that is differentiated.

    Solvers that meet no finite number return the last iterate, which is zero: a gradient that looks right.
    """
    code = None if solution.status is None else backend.loops.number(solution.status)
    if code is None or (isinstance(code, int) and code != Status.NON_FINITE):
        return solution
    xp = array_namespace(b)
    failed = xp.asarray(solution.status, device=device(b)) == int(Status.NON_FINITE)
    lost = xp.any(~xp.isfinite(b), axis=-1, keepdims=True) & failed[..., None]
    return solution._replace(value=xp.where(lost, full(b, float("nan")), solution.value))
