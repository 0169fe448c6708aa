"""Newton's method with backtracking, for minima and for roots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from dil._base.arrays import all_finite, array_namespace, dot, eps, full, max_abs, nonzero_max_abs, nonzero_or_one, norm
from dil._base.errors import OptionError
from dil._base.operator import Operator
from dil._base.scalars import reader
from dil._base.scale import is_short
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Matvec, Tree
from dil._frameworks.loops import Loops
from dil._problem.terms import within_rounding_of_terms
from dil.linear._auto import Auto
from dil.linear._cg import CG, cg
from dil.linear._direct import Direct, solution_of_few
from dil.linear._normal_cg import NormalCG
from dil.solvers._finish import finish
from dil.solvers._judge import judge
from dil.solvers._leaving import iterate_problems
from dil.solvers._linearised import linearised, records, remember, remember_trial, residual_at, score_at
from dil.solvers._no_minimum import is_cut, is_unbounded, is_wrong
from dil.solvers._progress import check_watched
from dil.solvers._start import Start, check_positive, start, tolerance, zeros_like_count
from dil.solvers._verify import solved_or_rounded

Equations = Literal["hessian", "normal", "truncated"]
GOLDEN = (1 + 5**0.5) / 2
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

    Notes
    -----
    Roots: each step lowers 1/2 ||F||^2 (Nocedal and Wright 2006, section 11.2). If the Newton step is not a direction
    of descent, the steepest descent step is taken. If J^T F = 0 but F is not zero, the problem ends SINGULAR. A short
    step does not end a problem if J d is far from F, as at a singular J or with large damping.

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

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Solve from init; the value has the structure of init."""
        started = start(self, fun, init, args, kwargs, roots=True)
        problem, u, _ = started
        if not problem.symmetric and self.equations == "truncated":
            message = "equations='truncated' is for scores; take Newton() for a root or a fixed point"
            raise OptionError(message)
        xp, rtol, loops = array_namespace(u), tolerance(u, self.rtol, 0.5), problem.backend.loops

        def descend(started: Start, s: Iterate) -> Iterate:
            at = self._step(started, s)
            usable = s.going & ~at.done & all_finite(at.step) & all_finite(at.value)
            flat = usable & at.flat
            going = usable & ~flat
            found = backtrack(started, s.u, at._replace(step=only(going, at.step, loops)), going)
            steps = s.steps + xp.astype(s.going, s.steps.dtype)
            taken = found.length > 0
            near = usable & taken & ~at.rough & is_short(at.step, found.u, started.u, rtol)
            solved = s.solved | (near if self.equations != "truncated" else near & s.near)
            going = usable & taken & ~solved & (steps < self.max_iter)
            idle = s.idle
            if problem.symmetric and loops.number(xp.any(s.cramped)) is not False:
                # where a score does not change as its gradient says, short steps lead nowhere
                idle = s.idle + xp.astype(s.cramped & ~(at.value < s.value), s.idle.dtype)
                going = going & (idle < MOST_IDLE)
            broken = s.broken | (s.going & ~at.done & ~usable)
            slope = at.size if started.problem.space.batch == () else xp.where(s.going, at.size, s.slope)
            cramped = found.length < CRAMPED
            found_flat = s.singular | flat
            return Iterate(
                found.u, slope, steps, going, near, solved | at.done, found_flat, broken, cramped, at.value, idle
            )

        remember(started, u)
        slope = norm(residual_at(started, u))
        finite = xp.isfinite(slope)
        there = finite & (slope == 0)
        none = ~finite & finite
        first = Iterate(
            u,
            slope,
            zeros_like_count(u),
            finite & ~there,
            there,
            there,
            none,
            ~finite,
            none,
            full(slope, math.inf),
            zeros_like_count(u),
        )

        def residual(s: Iterate) -> Array:
            return s.slope / nonzero_or_one(slope)

        last, extra = iterate_problems(
            self, started, descend, first, max_iter=self.max_iter, residual=residual, evaluations=STEP
        )
        ended = ~last.broken
        solved = solved_or_rounded(started, last.u, last.solved, ended)
        # a linear solve in one norm can miss an entry whose unit is small
        verdict = judge(started, last.u, solved, ~(solved | last.broken))
        solved = solved & ~verdict.far
        return finish(
            problem.space,
            last.u,
            last.steps,
            residual(last),
            max_iter=self.max_iter,
            solved=solved,
            far=verdict.far,
            singular=last.singular,
            broken=last.broken,
            extra=extra,
            cut=is_cut(started, there) if problem.symmetric else None,
            diverged=is_unbounded(started, last.u, ended & (residual(last) > 0.25)) if problem.symmetric else None,
            wrong=is_wrong(started, last.u, ended & ~solved) if problem.symmetric else None,
            rootless=verdict.rootless,
        )

    def _step(self, started: Start, s: Iterate) -> Step:
        """Return the Newton step, or the best one found, in a direction of descent."""
        (F, J), loops = linearised(started, s.u), started.problem.backend.loops
        alone = self.equations == "hessian" and not started.problem.symmetric and not records(started, s.u)
        at = of_one_equation(J, F, self.damping, loops) if alone else None
        if at is not None:
            return at._replace(done=is_rounded(started, s, J, at))
        found = self._solve(started, J, F, s)
        if started.problem.symmetric:
            rough = None if found.status is None else (found.status != int(Status.CONVERGED))[..., None]
            at = downhill(started, s.u, J, F, found.value, rough)
        else:
            at = towards_root(J, F, found.value, loops)
        return at._replace(done=is_rounded(started, s, J, at))

    def _solve(self, started: Start, J: Operator, F: Array, s: Iterate) -> Solution:
        """Solve the linear system."""
        loop = started.problem.backend.loops.while_loop
        if self.equations == "truncated":
            return self._truncated(started, J, F, forcing(norm(F), s))
        if self.equations == "normal":
            return NormalCG(damping=self.damping)(J, F, loop=loop)
        if not started.problem.symmetric and J.matrix is not None and F.shape[-1] == 1:
            return Solution(divided(F, J.matrix[..., 0] + self.damping, started.problem.backend.loops))
        if not started.problem.symmetric:
            return Auto(damping=self.damping)(J, F, loop=loop)
        few = F.shape[-1] <= started.problem.backend.dense.crossover.symmetric
        return self._dense(started, J, F) if few else CG(damping=self.damping)(J, F, loop=loop)

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

    def _truncated(self, started: Start, hessian: Matvec, gradient: Array, forced: Array) -> Solution:
        """Return a step with ||H d - F|| <= forced ||F||. The class `CG` takes no tolerance for each problem."""
        backend = started.problem.backend
        return cg(
            lambda p: hessian(p) + self.damping * p,
            gradient,
            rtol=reader(backend.loops.number, gradient.ndim == 1)(forced[..., 0]),
            max_iter=max(100, 10 * gradient.shape[-1]),
            loops=backend.loops,
        )


def forcing(slope: Array, s: Iterate) -> Array:
    """Return the relative tolerance of a truncated step: 0.9 (||F|| / ||F of the step before||)^1.618, 1/2 at most.

    Eisenstat and Walker 1996, eq. 2.6, without its safeguard: convergence is superlinear, of order 1.618. A truncated
    step can be short because it is rough: where one was short enough to be the last, the next is solved for to the
    full, and judged in its place.
    """
    xp = array_namespace(slope)
    wanted = 0.9 * (slope / nonzero_or_one(s.slope)) ** GOLDEN
    finest = full(slope, eps(xp, slope.dtype) ** 0.75)
    wanted = xp.where(s.near | (wanted < finest), finest, wanted)
    return xp.where(wanted < 0.5, wanted, full(slope, 0.5))  # type: ignore[no-any-return]


class Step(NamedTuple):
    """A step d, to be subtracted, and what it promises; vectors (*batch, n), the rest (*batch, 1)."""

    F: Array
    """F(u)."""
    step: Array
    unit: Array
    """What F is divided by in the merit of a root, so that the squares of a tiny or huge one are right."""
    value: Array
    """The merit at u."""
    slope: Array
    """How fast the merit falls along d."""
    rough: Array
    """Whether d is far from solving J d = F; it may then be short far from any root."""
    flat: Array
    """Whether the merit of a root is stationary where F is not zero, so that J is singular."""
    size: Array
    """||F||."""
    done: Array
    """Whether F is as small as the rounding of its terms."""


def only(going: Array, step: Array, loops: Loops) -> Array:
    """Return the step of the problems that are going, and zero for the others."""
    xp = array_namespace(step)
    return step if loops.number(xp.all(going)) is True else xp.where(going, step, full(step, 0.0))


def divided(F: Array, a: Array, loops: Loops) -> Array:
    """Return F / a of one equation, (*batch, 1), and zero where this is no finite number."""
    step = F / a
    return only(all_finite(step), step, loops)


def merit(started: Start, u: Array, unit: Array) -> Array:
    """Return what a step must lower, (*batch, 1): the score, or 1/2 ||F||^2 in units of F."""
    if started.problem.symmetric:
        return score_at(started, u)[..., None]
    F = residual_at(started, u) / unit
    return 0.5 * dot(F, F)


def downhill(started: Start, u: Array, J: Operator, gradient: Array, step: Array, rough: Array | None) -> Step:
    """Return a step that lowers the score: turned round if it points uphill, down the gradient if it is level.

    `rough` is None where the step is known to solve H d = F.

    CG that meets no curvature along the gradient itself gives none. The step along it is as long as Newton's would be
    with the sign of the curvature turned: of the size of u, whatever the units of the score, but no measure of how far
    the minimum is.
    """
    backend, xp, slope, size = started.problem.backend, array_namespace(u), dot(gradient, step), norm(gradient)
    unit, uphill = full(slope, 1.0), ~(slope > 0)
    if backend.loops.number(xp.any(uphill)) is False:
        rough = uphill if rough is None else rough
        return Step(gradient, step, unit, merit(started, u, unit), slope, rough, uphill, size, uphill)
    level, step, slope = (slope == 0) & (size > 0), xp.where(slope < 0, -step, step), xp.abs(slope)

    def along(given: tuple[Array, Array]) -> tuple[Array, Array]:
        g = gradient / nonzero_max_abs(gradient)
        step = xp.where(level, gradient * dot(g, g) / nonzero_or_one(xp.abs(dot(g, J(g)))), given[0])
        return step, xp.where(level, dot(gradient, step), given[1])

    step, slope = backend.loops.run_if(xp.any(level), along, (step, slope))
    no = level & ~level
    rough = level if rough is None else level | rough
    return Step(gradient, step, unit, merit(started, u, unit), slope, rough, no, size, no)


def of_one_equation(J: Operator, F: Array, damping: float, loops: Loops) -> Step | None:
    """Return the step F / J of one equation a problem, or None if it does not solve J d = F in all problems.

    The linear model then comes to zero at the step, so that nothing but F has to be computed: in units of F, the merit
    is 1/2 and its slope 1. A batch of many small problems pays for each operation.
    """
    if F.shape[-1] != 1 or J.matrix is None:
        return None
    xp, a = array_namespace(F), J.matrix[..., 0]
    size, step = xp.abs(F), F / (a + damping if damping else a)
    solves = xp.abs(F - a * step) <= LEFT_OF_ONE * size  # False for NaN, and where the step underflows
    if loops.number(xp.all(solves)) is not True:
        return None
    slope, none = xp.astype(size > 0, F.dtype), size < 0
    return Step(F, step, nonzero_or_one(size), 0.5 * slope, slope, none, none, size, none)


def towards_root(J: Operator, F: Array, step: Array, loops: Loops) -> Step:
    """Return a step that lowers 1/2 ||F||^2: that of steepest descent where the one given does not.

    Along J^T F the linear model is least at ||J^T F||^2 / ||J J^T F||^2 (Cauchy's step).
    """
    xp, unit = array_namespace(F), nonzero_max_abs(F)
    target = F / unit
    ahead = J(step) / unit
    slope, value = dot(target, ahead), 0.5 * dot(target, target)
    falls = (slope > 0) | (value == 0)

    def cauchy(given: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, ahead, _ = given
        g = J.T(target)
        g = g / nonzero_max_abs(g)
        Jg = J(g)
        height = nonzero_max_abs(Jg)
        Jg = Jg / height
        length = dot(target, Jg) / nonzero_or_one(dot(Jg, Jg))
        ahead = xp.where(falls, ahead, length * Jg)
        return xp.where(falls, step, (unit / height) * length * g), ahead, dot(target, ahead)

    step, ahead, slope = loops.run_if(xp.any(~falls), cauchy, (step, ahead, slope))
    remainder = target - ahead
    rough, flat = dot(remainder, remainder) > 0.5 * value, (slope == 0) & (value > 0)
    return Step(F, step, unit, value, slope, rough, flat, norm(F), flat & ~flat)


class Iterate(NamedTuple):
    """One Newton step; u: (*batch, n), the rest (*batch, 1)."""

    u: Array
    slope: Array
    """The norm of the gradient at the start of the step."""
    steps: Array
    going: Array
    near: Array
    """Whether the step was short enough to be the last."""
    solved: Array
    singular: Array
    broken: Array
    cramped: Array
    """Whether the line search cut the last step to less than `CRAMPED` of it."""
    value: Array
    """The merit at the start of the step."""
    idle: Array
    """The number of cut steps that did not lower the score."""


def is_rounded(started: Start, s: Iterate, J: Operator, at: Step) -> Array:
    """Return whether F is as small as the rounding of its terms, (*batch, 1).

    A look is due where the last step was cut short, for there no step lowers F but by chance, although it need not be
    short: J may be tiny. And it is due where the last step did not halve F and the next one is short beside the largest
    entry of u: an entry that is zero at the solution, as by symmetry, never has a step that is short beside itself.
    """
    xp, run_if = array_namespace(at.F), started.problem.backend.loops.run_if
    stalled = at.size > 0.5 * s.slope

    def look(due: Array) -> Array:
        condition, floats = started.problem.optimality(started.arrays)
        return due & within_rounding_of_terms(condition, J, at.F, s.u, floats)[..., None]

    def doubt(due: Array) -> Array:
        way = max_abs(s.u) + max_abs(s.u - started.u)
        short = (max_abs(at.step) <= eps(xp, s.u.dtype) ** (1 / 3) * way)[..., None]
        due = due & (s.cramped | short)
        return run_if(xp.any(due), look, due)  # type: ignore[no-any-return]

    due = s.going & (s.cramped | stalled)
    return run_if(xp.any(due), doubt, due)  # type: ignore[no-any-return]


class Trial(NamedTuple):
    """A point under trial, (*batch, n), and its step length, (*batch, 1)."""

    u: Array
    length: Array
    going: Array


def falls_by_gradients(started: Start, trial: Array, at: Step, value: Array) -> Array:
    """Return whether the gradients at both ends of a full step tell that the score falls, (*batch, 1).

    A score that is a small sum of large terms loses more digits than its gradient. So the parabola through the two
    slopes stands for the values (Hager and Zhang 2005, eq. 4.1), if these agree to half of the digits. Where no problem
    has such values, as where the score is NaN, no gradient is asked for: it may raise there.
    """
    xp = array_namespace(trial)
    close = value - at.value <= eps(xp, trial.dtype) ** 0.5 * (xp.abs(at.value) + xp.abs(value))

    def gentle(close: Array) -> Array:
        left = dot(residual_at(started, trial), at.step)
        return close & (xp.abs(left) <= 0.5 * at.slope)  # type: ignore[no-any-return]

    return started.problem.backend.loops.run_if(xp.any(close), gentle, close)  # type: ignore[no-any-return]


def backtrack(started: Start, u: Array, at: Step, going: Array) -> Trial:
    """Shorten the length of u - length * step until the merit falls enough; zero where none is found.

    F at the full step, which nearly always is the next iterate, is linearised for the step from there.

    The first lengths are halves, for a length that is too short costs further steps. From 2 ** -10 on, the next one
    minimises the parabola through the merit and its slope at u and the merit at the trial, within 0.1 and 0.5 of the
    last length (Dennis and Schnabel 1983, algorithm A6.3.1). It is 0.1 where the merit is not finite. A shortened step
    towards a root must lower the merit itself, without an allowance for rounding.
    """
    xp, root, loops = array_namespace(u), not started.problem.symmetric, started.problem.backend.loops
    rounding = 8 * eps(xp, u.dtype)

    def shorten(s: Trial) -> Trial:
        trial = merit(started, s.u, at.unit)
        wanted = at.value - 1e-4 * s.length * at.slope
        lower = (trial < wanted) & (trial > -math.inf)  # False for NaN
        going = s.going & ~lower

        def look(s: Trial) -> Trial:
            first = s.length == 1
            lower = trial <= wanted + rounding * (xp.abs(at.value) + xp.abs(trial))
            if root:  # where F is rounding, a shortened step that does not lower it would be taken again and again
                lower = lower & (first | (trial <= wanted) & (trial < at.value))
            going = s.going & ~(lower & xp.isfinite(trial))
            return loops.run_if(xp.any(going), doubt, s._replace(going=going))  # type: ignore[no-any-return]

        def doubt(s: Trial) -> Trial:
            # the score does not resolve such a step: its change is of second order, below rounding
            dull = is_short(at.step, u, started.u, 16 * eps(xp, u.dtype) ** 0.5)
            if not root:
                dull = dull | falls_by_gradients(started, s.u, at, trial)
            going = s.going & ~((s.length == 1) & dull)
            return loops.run_if(xp.any(going), cut, s._replace(going=going))  # type: ignore[no-any-return]

        def cut(s: Trial) -> Trial:
            promised = s.length * at.slope
            bend = 2 * (trial - at.value + promised)
            share = promised / xp.where(bend > 0, bend, full(bend, math.inf))  # NaN and infinity give the least
            share = xp.where(share > SHORTEST_CUT, share, full(share, SHORTEST_CUT))
            share = xp.where((share < LONGEST_CUT) & (s.length <= TINY), share, full(share, LONGEST_CUT))
            length = xp.where(s.going, share * s.length, s.length)
            spent = s.going & (length < rounding)
            length = xp.where(spent, 0.0 * length, length)
            return Trial(u - length * at.step, length, s.going & ~spent)

        return loops.run_if(xp.any(going), look, s._replace(going=going))  # type: ignore[no-any-return]

    length = xp.astype(going, at.value.dtype)
    if loops.number(xp.any(going)) is False:
        return Trial(u, length, going)
    first = Trial(u - at.step, length, going)
    remember_trial(started, first.u)
    return loops.while_loop(lambda s: xp.any(s.going), shorten, first)  # type: ignore[no-any-return]
