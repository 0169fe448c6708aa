"""Newton's method with backtracking, for minima and for roots."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from dil._base.arrays import (
    all_finite,
    array_namespace,
    eps,
    full,
    logical_not,
    max_abs,
    nonzero_max_abs,
    norm,
    select,
)
from dil._base.errors import OptionError
from dil._base.operator import Operator, shifted
from dil._base.options import check_callable
from dil._base.scalars import (
    Scalar,
    Scalars,
    any_of,
    as_column,
    count,
    filled,
    greater,
    in_unit,
    indicator,
    is_finite,
    nonzero,
    sqrt,
)
from dil._base.scale import is_short
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Loop, Matvec, Tree
from dil._frameworks.iteration import choose
from dil._frameworks.loops import Loops
from dil._problem.terms import within_rounding_of_terms
from dil.linear._auto import Auto
from dil.linear._cg import CG, cg
from dil.linear._direct import Direct, solution_of_few
from dil.linear._normal_cg import NormalCG
from dil.linear._solver import LinearSolver, check_solution
from dil.solvers._finish import finish
from dil.solvers._forcing import LOOSEST, finest_forcing, forcing_of_root, forcing_of_score, is_inexact
from dil.solvers._judge import judge
from dil.solvers._leaving import iterate_problems
from dil.solvers._linearised import linearised, records, remember, remember_trial, residual_at, score_at
from dil.solvers._no_minimum import is_cut, is_random, is_unbounded, is_wrong
from dil.solvers._progress import check_watched
from dil.solvers._rough_steps import has_rough_steps
from dil.solvers._start import Start, check_positive, start, tolerance, zeros_like_count
from dil.solvers._verify import solved_or_rounded
from dil.solvers._wrong_pattern import is_wrong_pattern, refused

Equations = Literal["hessian", "normal", "truncated"]
SHORTEST_CUT, LONGEST_CUT = 0.1, 0.5
"""The share of a step length that a line search tries next is between these two."""
TINY = 2.0**-10
"""A line search halves the length to here. What an interpolation cuts from a longer one ends in narrow valleys."""
CRAMPED = 2.0**-4
"""A step that is cut to less than this makes the solver look whether F is within its rounding."""
MOST_IDLE = 4
"""The most cut steps that may not lower the score."""
LEFT_OF_ONE = 2.0**-10
"""The share of F that the step of one equation may leave."""
STEP = 5.0
"""About how many evaluations of F a step costs: a record of F, products with J, and trials of the line search."""


@dataclass(frozen=True)
class Newton:
    """Minimise by steps d with H d = df/du, or find a root by steps d with J d = F.

    Parameters
    ----------
    equations : {"hessian", "normal", "truncated"}
        "hessian" solves H d = F: by Cholesky's factor for few unknowns, else by CG with one Hessian product an
        iteration. "normal" solves H H d = H F, with two products; H need not be positive definite (Look et al. 2020,
        section 3.1). "truncated" solves H d = F to a tolerance that is loose far from the solution and tight near it.
        In a root or fixed-point layer, "hessian" solves J d = F by `dil.linear.Auto`, "normal" solves
        J^T J d = J^T F, and "truncated" is refused.
    rtol : float, optional
        A problem is solved when each entry of a full step is at most rtol |u|, or at most 4 eps |u - start|. By default
        rtol is eps ** (1/2). Convergence is quadratic, so the error after that step is of the order of the step
        squared. A problem is also solved when F is as small as the rounding errors of its terms.
    max_iter : int
        The largest number of Newton steps.
    damping : float
        A number added to the diagonal of the matrix of the linear system, which is H, H H, J or J^T J.
    history : bool
        Whether `extra["history"]` holds the residual after every step, (max_iter, *batch); NaN for steps not taken.
    progress : bool
        Whether to draw a progress bar if the run takes more than a second. Needs rich.
    linear_solver : callable, optional
        Solves (J + damping I) d = F, or (H + damping I) d = F, as `dil.linear.CG()` for symmetric J,
        `dil.linear.CG(preconditioner=...)`, or `dil.linear.SparseDirect(pattern)` for sparse J. By default
        `dil.linear.Auto` for a root; for a minimum, Cholesky's factor or CG, as above. It belongs to
        `equations="hessian"`.

    Raises
    ------
    OptionError
        If an option is out of range, or `linear_solver` meets other equations.

    Notes
    -----
    Roots: each step lowers 1/2 ||F||^2 (Nocedal and Wright 2006, section 11.2). If the Newton step is not a direction
    of descent, the steepest descent step is taken. If J^T F = 0 but F is not zero, the problem ends SINGULAR. A short
    step does not end a problem if J d is far from F, as at a singular J or with large damping.

    Steps towards a root are solved to the full where a dense solve is cheap. Larger ones are inexact: the tolerance is
    1/2 far from the root, and tightens as ||F|| falls, for each problem of a batch separately (Eisenstat and Walker
    1996, second forcing term, with its safeguard). A last step takes off what the one before it left, so the root is as
    exact as by full steps. A linear solver that takes no tolerance in its call solves each step to its own.

    Minima: where H is not positive definite, CG serves, and stops at negative curvature (Nocedal and Wright 2006,
    Algorithm 7.1). The Newton step is then the last iterate of CG, or along the gradient if CG has no iterate. A step
    that points uphill is reversed. Backtracking (Armijo 1966) sets the length: by halves, and by interpolation where
    many would follow (Dennis and Schnabel 1983, algorithm A6.3.1).

    CONVERGED says that the gradient vanishes, not that u is a minimum: a start with a gradient of exactly zero ends
    CONVERGED, as in SciPy, also at a maximum or a saddle point. The derivative of a layer then tells NOT_MINIMUM.

    Truncated steps use the second forcing term of Eisenstat and Walker 1996, for each problem of a batch separately.

    Examples
    --------
    >>> import numpy as np, dil
    >>> sol = dil.solvers.Newton()(lambda u, t: np.sum(np.exp(u) - t * u), np.zeros(2), np.asarray([1.0, 2.0]))
    >>> np.round(sol.value, 6)
    array([0.      , 0.693147])
    """

    equations: Equations = "hessian"
    rtol: float | None = None
    max_iter: int = 100
    damping: float = 0.0
    history: bool = False
    progress: bool = False
    linear_solver: LinearSolver | None = None

    _takes_batch = True
    """Whether it solves a batch by calls of the score alone."""
    _array_code = True
    """Whether the solver is array code alone, which a framework may compile."""

    def __post_init__(self) -> None:
        check_positive(optional={"rtol": self.rtol}, max_iter=self.max_iter)
        if self.equations not in get_args(Equations):
            message = f"equations={self.equations!r} is unknown; expected one of {', '.join(get_args(Equations))}"
            raise OptionError(message)
        check_watched(self)
        CG(damping=self.damping)
        if self.linear_solver is None:
            return
        check_callable("linear_solver", self.linear_solver)
        if self.equations != "hessian":
            message = (
                f"equations={self.equations!r} is solved by CG of its own and takes no linear_solver=; take "
                f"Newton(linear_solver=...), for the normal equations Newton(linear_solver=dil.linear.NormalCG())"
            )
            raise OptionError(message)

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Solve from init; the value has the structure of init."""
        started = start(self, fun, init, args, kwargs, roots=True)
        problem, u, _ = started
        if not problem.symmetric and self.equations == "truncated":
            message = "equations='truncated' is for scores; take Newton() for a root or a fixed point"
            raise OptionError(message)
        rtol, loops = tolerance(u, self.rtol, 0.5), problem.backend.loops
        finest = finest_forcing(eps(array_namespace(u), u.dtype))

        def descend(started: Start, s: Iterate) -> Iterate:
            at = self._step(started, s, scalars)
            usable = s.going & logical_not(at.done) & scalars.finite(at.step) & is_finite(at.value)
            flat = usable & at.flat
            going = usable & logical_not(flat)
            found = backtrack(started, s.u, at._replace(step=only(going, at.step, loops)), going, scalars)
            steps = s.steps + count(s.going)
            taken = found.length > 0
            short = scalars.holds(is_short(at.step, found.u, started.u, rtol))
            near = usable & taken & logical_not(at.rough) & short
            solved = s.solved | (near if at.forced is None else near & (s.near | (at.left <= finest)))
            going = usable & taken & logical_not(solved) & (steps < self.max_iter)
            idle = s.idle
            some = any_of(s.cramped)
            if problem.symmetric and (some if isinstance(some, bool) else loops.number(some)) is not False:
                # where a score does not change as its gradient says, short steps lead nowhere
                idle = s.idle + count(s.cramped & logical_not(at.value < s.value))
                going = going & (idle < MOST_IDLE)
            broken = s.broken | (s.going & logical_not(at.done | usable))
            slope = at.size if started.problem.space.batch == () else choose(s.going, at.size, s.slope, loops)
            cramped = found.length < CRAMPED
            found_flat, forced = s.singular | flat, s.forced if at.forced is None else at.forced
            ends = near, solved | at.done, found_flat, broken
            return Iterate(found.u, slope, steps, going, *ends, cramped, at.value, idle, forced)

        remember(started, u)
        size = norm(residual_at(started, u))[..., 0]
        single = u.ndim == 1 and not (self.history or self.progress) and isinstance(loops.number(size), float)
        scalars = Scalars(loops.number, loops.numbers, single)
        slope = scalars.read(size)
        finite = is_finite(slope)
        there, broken = finite & (slope == 0), logical_not(finite)
        none = 0 if scalars.single else zeros_like_count(u)
        no, high = broken & finite, math.inf if scalars.single else full(slope, math.inf)
        forced = filled(slope, LOOSEST)
        first = Iterate(u, slope, none, finite & (slope != 0), there, there, no, broken, no, high, none, forced)

        def residual(s: Iterate) -> Array:
            return as_column(s.slope / nonzero(slope), u)

        last, extra = iterate_problems(
            self, started, descend, first, max_iter=self.max_iter, residual=residual, evaluations=STEP
        )
        there, broken, singular, steps = (as_column(x, u) for x in (there, last.broken, last.singular, last.steps))
        ended = ~broken
        by_step = as_column(last.solved, u)
        solved = solved_or_rounded(started, last.u, by_step, ended)
        # a linear solve in one norm can miss an entry whose unit is small; no F within rounding has one
        verdict = judge(started, last.u, by_step, ~(solved | broken))
        solved = solved & ~verdict.far
        return finish(
            problem.space,
            last.u,
            steps,
            residual(last),
            max_iter=self.max_iter,
            solved=solved,
            far=verdict.far,
            singular=singular,
            broken=broken,
            extra=extra,
            cut=is_cut(started, there) if problem.symmetric else None,
            diverged=is_unbounded(started, last.u, ended & (residual(last) > 0.25)) if problem.symmetric else None,
            wrong=is_wrong(started, last.u, ended & ~solved) if problem.symmetric else None,
            random=is_random(started, last.u, ended & ~solved) if problem.symmetric else None,
            rootless=verdict.rootless,
            rough=has_rough_steps(started, last.u, ~(solved | broken), self.linear_solver, self.damping),
            wrong_pattern=is_wrong_pattern(started, last.u, broken, self.linear_solver, self.damping),
        )

    def _step(self, started: Start, s: Iterate, scalars: Scalars) -> Step:
        """Return the Newton step, or the best one found, in a direction of descent."""
        F, J = linearised(started, s.u)
        plain = self.equations == "hessian" and self.linear_solver is None
        alone = plain and not started.problem.symmetric and not records(started, s.u)
        at = of_one_equation(J, F, self.damping, scalars) if alone else None
        if at is not None:
            return at._replace(done=is_rounded(started, s, J, at, scalars))
        if not started.problem.symmetric:
            at = self._towards_root(started, J, F, s, scalars)
            return at._replace(done=at.done | is_rounded(started, s, J, at, scalars))
        forced = None
        if self.equations == "truncated":
            forced = forcing_of_score(scalars.norm(F), s.slope, s.near, eps(array_namespace(F), F.dtype))
        found = self._solve(started, J, F, forced)
        rough = None if found.status is None else scalars.read(found.status != int(Status.CONVERGED))
        at = downhill(started, s.u, J, F, found.value, rough, scalars)
        return at._replace(done=is_rounded(started, s, J, at, scalars), forced=forced)

    def _towards_root(self, started: Start, J: Operator, F: Array, s: Iterate, scalars: Scalars) -> Step:
        """Return the step towards a root: inexact, unless a full one is cheap or the solver takes no tolerance."""
        loops, solver = started.problem.backend.loops, Auto() if self.linear_solver is None else self.linear_solver
        if self.equations == "normal" or not is_inexact(solver, J, F):
            found = self._solve(started, J, F, None)
            at = towards_root(J, F, found.value, loops, scalars)
            return at._replace(step=refused(at.step, found, self.linear_solver))
        size, machine_eps = scalars.norm(F), eps(array_namespace(F), F.dtype)
        done = leaves_rounding(started, s, J, F, size, scalars)
        wanted = forcing_of_root(size, s.slope, s.forced, s.near, machine_eps)
        forced = select(done, filled(size, LOOSEST), wanted)
        at = towards_root(J, F, self._solve(started, J, F, forced).value, loops, scalars)
        return at._replace(forced=greater(forced, at.left), done=done)

    def _solve(self, started: Start, J: Operator, F: Array, forced: Scalar | None) -> Solution:
        """Solve the linear system, to a tolerance if there is one."""
        loop = started.problem.backend.loops.while_loop
        if self.equations == "truncated":
            return self._truncated(started, J, F, forced)
        if self.linear_solver is not None:
            return self._by_linear_solver(J, F, loop, forced)
        if self.equations == "normal":
            return NormalCG(damping=self.damping)(J, F, loop=loop)
        if not started.problem.symmetric and J.matrix is not None and F.shape[-1] == 1:
            return Solution(divided(F, J.matrix[..., 0] + self.damping, started.problem.backend.loops))
        if not started.problem.symmetric:
            return Auto(damping=self.damping)(J, F, loop=loop, rtol=forced)
        few = F.shape[-1] <= started.problem.backend.dense.crossover.symmetric
        return self._dense(started, J, F) if few else CG(damping=self.damping)(J, F, loop=loop)

    def _by_linear_solver(self, J: Operator, F: Array, loop: Loop, forced: Scalar | None) -> Solution:
        """Solve by the linear solver of the user."""
        solver: Callable[..., Solution] | None = self.linear_solver
        assert solver is not None
        options = {} if forced is None else {"rtol": forced}
        solution = solver(shifted(J, self.damping), F, loop=loop, **options)
        check_solution(solution, F)
        return solution

    def _dense(self, started: Start, J: Operator, F: Array) -> Solution:
        """Solve by Cholesky, in which the unknowns may have any units. CG serves where H is not positive definite."""
        backend, xp = started.problem.backend, array_namespace(F)
        x, J = solution_of_few(J, F, backend) if self.damping == 0 else (None, J)
        if x is not None:
            return Solution(x)
        first = Direct(damping=self.damping)(J, F)
        assert first.status is not None
        assert first.extra is not None
        other = first.extra["indefinite"] | (first.status != int(Status.CONVERGED))

        def by_cg(found: tuple[Array, Array]) -> tuple[Array, Array]:
            new = CG(damping=self.damping)(J, F, loop=backend.loops.while_loop)
            return xp.where(other[..., None], new.value, found[0]), xp.where(other, new.status, found[1])

        return Solution(*backend.loops.run_if(xp.any(other), by_cg, (first.value, first.status)))

    def _truncated(self, started: Start, hessian: Matvec, gradient: Array, forced: Scalar) -> Solution:
        """Return a step with ||H d - F|| <= forced ||F||. The class `CG` takes no tolerance for each problem."""
        backend = started.problem.backend
        return cg(
            lambda p: hessian(p) + self.damping * p,
            gradient,
            rtol=forced if isinstance(forced, float) or gradient.ndim > 1 else backend.loops.number(forced[0]),
            max_iter=max(100, 10 * gradient.shape[-1]),
            loops=backend.loops,
        )


class Step(NamedTuple):
    """A step d, to be subtracted, and what it promises; vectors (*batch, n), the rest (*batch, 1) or Python numbers."""

    F: Array
    """F(u)."""
    step: Array
    unit: Scalar
    """What F is divided by in the merit of a root, so that the squares of a tiny or huge one are right."""
    value: Scalar
    """The merit at u."""
    slope: Scalar
    """How fast the merit falls along d."""
    rough: Scalar
    """Whether d is far from solving J d = F; it may then be short far from any root."""
    flat: Scalar
    """Whether the merit of a root is stationary where F is not zero, so that J is singular."""
    size: Scalar
    """||F||."""
    done: Scalar
    """Whether F is as small as the rounding of its terms."""
    left: Scalar
    """||F - J d|| / ||F|| of a step towards a root."""
    forced: Scalar | None = None
    """The tolerance to which J d = F was solved, or None where it was solved to the full."""


def only(going: Scalar, step: Array, loops: Loops) -> Array:
    """Return the step of the problems that are going, and zero for the others."""
    if not isinstance(going, bool) and loops.number(array_namespace(step).all(going)) is True:
        return step
    return select(going, step, full(step, 0.0))  # type: ignore[no-any-return]


def divided(F: Array, a: Array, loops: Loops) -> Array:
    """Return F / a of one equation, (*batch, 1), and zero where this is no finite number."""
    step = F / a
    return only(all_finite(step), step, loops)


def merit(started: Start, u: Array, unit: Scalar, scalars: Scalars) -> Scalar:
    """Return what a step must lower: the score, or 1/2 ||F||^2 in units of F."""
    if started.problem.symmetric:
        return scalars.read(score_at(started, u))
    F = in_unit(residual_at(started, u), unit)
    return 0.5 * scalars.dot(F, F)


def downhill(
    started: Start, u: Array, J: Operator, gradient: Array, step: Array, rough: Scalar | None, scalars: Scalars
) -> Step:
    """Return a step that lowers the score: turned round if it points uphill, down the gradient if it is level.

    `rough` is None where the step is known to solve H d = F.

    CG that meets no curvature along the gradient itself gives none. The step along it is as long as Newton's would be
    with the sign of the curvature turned: of the size of u, whatever the units of the score, but no measure of how far
    the minimum is.
    """
    loops, slope, size = started.problem.backend.loops, scalars.dot(gradient, step), scalars.norm(gradient)
    unit, uphill = filled(slope, 1.0), logical_not(slope > 0)
    value = merit(started, u, unit, scalars)
    if scalars.none(uphill):
        rough = uphill if rough is None else rough
        return Step(gradient, step, unit, value, slope, rough, uphill, size, uphill, filled(slope, 1.0))
    level, step, slope = (slope == 0) & (size > 0), select(slope < 0, -step, step), abs(slope)

    def along(given: tuple[Array, Scalar]) -> tuple[Array, Scalar]:
        g = gradient / nonzero_max_abs(gradient)
        length = scalars.dot(g, g) / nonzero(abs(scalars.dot(g, J(g))))
        step = select(level, gradient * length, given[0])
        return step, select(level, scalars.dot(gradient, step), given[1])

    step, slope = loops.run_if(any_of(level), along, (step, slope))
    no = level & logical_not(level)
    rough = level if rough is None else level | rough
    return Step(gradient, step, unit, value, slope, rough, no, size, no, filled(slope, 1.0))


def of_one_equation(J: Operator, F: Array, damping: float, scalars: Scalars) -> Step | None:
    """Return the step F / J of one equation a problem, or None if it does not solve J d = F in all problems.

    The linear model then comes to zero at the step, so that nothing but F has to be computed: in units of F, the merit
    is 1/2 and its slope 1. A batch of many small problems pays for each operation.
    """
    if F.shape[-1] != 1 or J.matrix is None:
        return None
    xp, a = array_namespace(F), J.matrix[..., 0]
    size, step = xp.abs(F), F / (a + damping if damping else a)
    solves = xp.abs(F - a * step) <= LEFT_OF_ONE * size  # False for NaN, and where the step underflows
    if scalars.number(xp.all(solves)) is not True:
        return None
    size = scalars.read(size[..., 0])
    slope, none = indicator(size > 0, size), size < 0
    return Step(F, step, nonzero(size), 0.5 * slope, slope, none, none, size, none, filled(slope, 0.0))


def towards_root(J: Operator, F: Array, step: Array, loops: Loops, scalars: Scalars) -> Step:
    """Return a step that lowers 1/2 ||F||^2: that of steepest descent where the one given does not.

    Along J^T F the linear model is least at ||J^T F||^2 / ||J J^T F||^2 (Cauchy's step).
    """
    unit = scalars.largest(F)
    target, ahead = F / unit, J(step) / unit
    slope, value = scalars.dot(target, ahead), 0.5 * scalars.dot(target, target)
    falls = (slope > 0) | (value == 0)

    def cauchy(given: tuple[Array, Array, Scalar]) -> tuple[Array, Array, Scalar]:
        step, ahead, _ = given
        g = J.T(target)
        g = g / scalars.largest(g)
        Jg = J(g)
        height = scalars.largest(Jg)
        Jg = Jg / height
        length = scalars.dot(target, Jg) / nonzero(scalars.dot(Jg, Jg))
        ahead = select(falls, ahead, length * Jg)
        return select(falls, step, (unit / height) * length * g), ahead, scalars.dot(target, ahead)

    step, ahead, slope = loops.run_if(any_of(logical_not(falls)), cauchy, (step, ahead, slope))
    remainder = target - ahead
    left, flat = scalars.dot(remainder, remainder), (slope == 0) & (value > 0)
    rough, none = left > 0.5 * value, flat & logical_not(flat)
    left = sqrt(0.5 * left / nonzero(value))
    return Step(F, step, unit, value, slope, rough, flat, scalars.norm(F), none, left)


class Iterate(NamedTuple):
    """One Newton step; u: (*batch, n), the rest (*batch, 1) or Python numbers."""

    u: Array
    slope: Scalar
    """The norm of the gradient at the start of the step."""
    steps: Scalar
    going: Scalar
    near: Scalar
    """Whether the step was short enough to be the last."""
    solved: Scalar
    singular: Scalar
    broken: Scalar
    cramped: Scalar
    """Whether the line search cut the last step to less than `CRAMPED` of it."""
    value: Scalar
    """The merit at the start of the step."""
    idle: Scalar
    """The number of cut steps that did not lower the score."""
    forced: Scalar
    """The tolerance of the last inexact step."""


def within_rounding(started: Start, s: Iterate, J: Operator, F: Array, due: Scalar, scalars: Scalars) -> Scalar:
    """Return whether a look is due and F is as small as the rounding of its terms."""

    def look(due: Scalar) -> Scalar:
        condition, floats = started.problem.optimality(started.arrays)
        found = within_rounding_of_terms(condition, J, F, s.u, floats)
        return due & scalars.read(found)

    return started.problem.backend.loops.run_if(any_of(due), look, due)


def leaves_rounding(started: Start, s: Iterate, J: Operator, F: Array, size: Scalar, scalars: Scalars) -> Scalar:
    """Return whether an inexact step that was short has left rounding, of which no solve to the full takes anything.

    What it left of its linear system is then less than half of F.
    """
    due = s.going & s.near & (size > 2 * s.forced * s.slope)
    return within_rounding(started, s, J, F, due, scalars)


def is_rounded(started: Start, s: Iterate, J: Operator, at: Step, scalars: Scalars) -> Scalar:
    """Return whether F is as small as the rounding of its terms.

    A look is due where the last step was cut short, for there no step lowers F but by chance, although it need not be
    short: J may be tiny. And it is due where the last step did not halve F and the next one is short beside the largest
    entry of u: an entry that is zero at the solution, as by symmetry, never has a step that is short beside itself.
    """
    run_if, stalled = started.problem.backend.loops.run_if, at.size > 0.5 * s.slope

    def doubt(due: Scalar) -> Scalar:
        way = max_abs(s.u) + max_abs(s.u - started.u)
        short = scalars.read(max_abs(at.step) <= eps(array_namespace(way), s.u.dtype) ** (1 / 3) * way)
        due = due & (s.cramped | short)
        return within_rounding(started, s, J, at.F, due, scalars)

    due = s.going & (s.cramped | stalled)
    return run_if(any_of(due), doubt, due)


class Trial(NamedTuple):
    """A point under trial, (*batch, n), and its step length."""

    u: Array
    length: Scalar
    going: Scalar


def falls_by_gradients(started: Start, trial: Array, at: Step, value: Scalar, scalars: Scalars) -> Scalar:
    """Return whether the gradients at both ends of a full step tell that the score falls.

    A score that is a small sum of large terms loses more digits than its gradient. So the parabola through the two
    slopes stands for the values (Hager and Zhang 2005, eq. 4.1), if these agree to half of the digits. Where no problem
    has such values, as where the score is NaN, no gradient is asked for: it may raise there.
    """
    close = value - at.value <= eps(array_namespace(trial), trial.dtype) ** 0.5 * (abs(at.value) + abs(value))

    def gentle(close: Scalar) -> Scalar:
        left = scalars.dot(residual_at(started, trial), at.step)
        return close & (abs(left) <= 0.5 * at.slope)

    return started.problem.backend.loops.run_if(any_of(close), gentle, close)


def backtrack(started: Start, u: Array, at: Step, going: Scalar, scalars: Scalars) -> Trial:
    """Shorten the length of u - length * step until the merit falls enough; zero where none is found.

    F at the full step, which nearly always is the next iterate, is linearised for the step from there.

    The first lengths are halves, for a length that is too short costs further steps. From 2 ** -10 on, the next one
    minimises the parabola through the merit and its slope at u and the merit at the trial, within 0.1 and 0.5 of the
    last length (Dennis and Schnabel 1983, algorithm A6.3.1). It is 0.1 where the merit is not finite. A shortened step
    towards a root must lower the merit itself, without an allowance for rounding.
    """
    root, loops, machine_eps = (
        not started.problem.symmetric,
        started.problem.backend.loops,
        eps(array_namespace(u), u.dtype),
    )
    rounding = 8 * machine_eps

    def shorten(s: Trial) -> Trial:
        trial = merit(started, s.u, at.unit, scalars)
        wanted = at.value - 1e-4 * s.length * at.slope
        lower = (trial < wanted) & (trial > -math.inf)  # False for NaN
        going = s.going & logical_not(lower)

        def look(s: Trial) -> Trial:
            first = s.length == 1
            lower = trial <= wanted + rounding * (abs(at.value) + abs(trial))
            if root:  # where F is rounding, a shortened step that does not lower it would be taken again and again
                lower = lower & (first | (trial <= wanted) & (trial < at.value))
            going = s.going & logical_not(lower & is_finite(trial))
            return loops.run_if(any_of(going), doubt, s._replace(going=going))  # type: ignore[no-any-return]

        def doubt(s: Trial) -> Trial:
            # the score does not resolve such a step: its change is of second order, below rounding
            dull = scalars.holds(is_short(at.step, u, started.u, 16 * machine_eps**0.5))
            if not root:
                dull = dull | falls_by_gradients(started, s.u, at, trial, scalars)
            going = s.going & logical_not((s.length == 1) & dull)
            return loops.run_if(any_of(going), cut, s._replace(going=going))  # type: ignore[no-any-return]

        def cut(s: Trial) -> Trial:
            promised = s.length * at.slope
            bend = 2 * (trial - at.value + promised)
            # NaN and infinity give the least share
            share = greater(promised / select(bend > 0, bend, math.inf), filled(promised, SHORTEST_CUT))
            share = select((share < LONGEST_CUT) & (s.length <= TINY), share, LONGEST_CUT)
            length = select(s.going, share * s.length, s.length)
            spent = s.going & (length < rounding)
            length = select(spent, 0.0 * length, length)
            return Trial(u - length * at.step, length, s.going & logical_not(spent))

        return loops.run_if(any_of(going), look, s._replace(going=going))  # type: ignore[no-any-return]

    length = indicator(going, at.value)
    if scalars.none(going):
        return Trial(u, length, going)
    first = Trial(u - at.step, length, going)
    remember_trial(started, first.u)
    return loops.while_loop(lambda s: any_of(s.going), shorten, first)  # type: ignore[no-any-return]
