"""Newton's method with backtracking, for minima and for roots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from dil._arrays import array_namespace, dot, eps, full, norm
from dil._errors import OptionError
from dil._jacobian import operator
from dil._operator import Operator
from dil._solution import Solution
from dil._typing import Array, Matvec, Tree
from dil.linear._auto import Auto
from dil.linear._cg import CG, cg
from dil.solvers._finish import finish, or_one
from dil.solvers._start import Start, check_positive, size_of, start, tolerance, zeros_like_count
from dil.solvers._watch import check_watched, iterate

Equations = Literal["hessian", "normal", "truncated"]
GOLDEN = (1 + 5**0.5) / 2


@dataclass(frozen=True)
class Newton:
    """Minimise by steps d that solve H d = df/du, or find a root by steps that solve J d = F.

    Parameters
    ----------
    equations : {"hessian", "normal", "truncated"}
        Solve H d = F by CG, one Hessian product an iteration, or H H d = H F, two products, which does without a
        positive definite H (Look et al. 2020, section 3.1). "truncated" solves H d = F as exactly as the step is
        worth: roughly far from the solution, ever more sharply near it. In a root or fixed-point layer, "hessian"
        solves J d = F by `dil.linear.Auto`, "normal" J^T J d = J^T F, and "truncated" is refused.
    rtol : float, optional
        A problem is solved when a full step is within rtol (1 + ||u||); by default eps ** (1/2) of the dtype. As
        convergence is quadratic, the error that is left after that step is of the order of its square.
    max_iter : int
        Newton steps at most.
    damping : float
        Added to the diagonal of the matrix solved, H or H H, J or J^T J.
    history : bool
        Whether `extra["history"]` gives the residual after every step, (max_iter, *batch), NaN where none was taken.
    progress : bool
        Whether a run of more than a second draws a progress bar; needs rich.

    Notes
    -----
    The tolerance is relative to 1 + ||u||: an unknown in units that make it much smaller than one needs other units.

    A root is found by lowering 1/2 ||F||^2 (Nocedal and Wright 2006, section 11.2).

    Where CG meets negative curvature its last iterate is the step, or the gradient if there is none; a step that
    points uphill is turned round; backtracking (Armijo 1966) does the rest. Nocedal and Wright 2006, Algorithm 7.1.

    Truncated steps follow the second forcing term of Eisenstat and Walker 1996, each problem of a batch its own.

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

    def __post_init__(self) -> None:
        check_positive(optional={"rtol": self.rtol}, max_iter=self.max_iter)
        if self.equations not in get_args(Equations):
            message = f"equations={self.equations!r} is unknown; expected one of {', '.join(get_args(Equations))}"
            raise OptionError(message)
        check_watched(self)
        CG(damping=self.damping)

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Solve from init; the value has the structure of init."""
        begun = start(self, fun, init, args, kwargs, roots=True)
        problem, u, arrays = begun
        if not problem.symmetric and self.equations == "truncated":
            message = "equations='truncated' is for scores; take Newton() for a root or a fixed point"
            raise OptionError(message)
        xp, rtol = array_namespace(u), tolerance(u, self.rtol, 0.5)

        def descend(s: Iterate) -> Iterate:
            value = merit(begun, s.u)
            left, gradient, step = self._step(begun, s)
            usable = s.going & xp.all(xp.isfinite(step), axis=-1, keepdims=True) & xp.isfinite(value)
            step = xp.where(usable, step, full(step, 0.0))
            length = backtrack(begun, s.u, value, step, dot(gradient, step), usable)
            new = s.u - length * step
            steps = s.steps + xp.astype(s.going, s.steps.dtype)
            near = usable & (length > 0) & (norm(step) <= rtol * size_of(new))
            solved = s.solved | (near if self.equations != "truncated" else near & s.near)
            going = usable & (length > 0) & ~solved & (steps < self.max_iter)
            broken = s.broken | (s.going & ~usable)
            return Iterate(new, xp.where(s.going, norm(left), s.slope), steps, going, near, solved, broken)

        slope = norm(problem.residual(u, *arrays))
        finite = xp.isfinite(slope)
        there = finite & (slope == 0)
        first = Iterate(u, slope, zeros_like_count(u), finite & ~there, there, there, ~finite)

        def residual(s: Iterate) -> Array:
            return s.slope / or_one(slope)

        last, extra = iterate(self, problem.backend, descend, first, max_iter=self.max_iter, residual=residual)
        return finish(
            problem.space,
            last.u,
            last.steps,
            residual(last),
            max_iter=self.max_iter,
            solved=last.solved,
            broken=last.broken,
            extra=extra,
        )

    def _step(self, begun: Start, s: Iterate) -> tuple[Array, Array, Array]:
        """Return F(u), the gradient of the merit, and a step or the best that is found, turned downhill."""
        problem, _, arrays = begun
        xp, loop = array_namespace(s.u), problem.backend.while_loop
        (left,), pull = problem.backend.vjp(lambda w: (problem.residual(w, *arrays),), s.u)
        J = operator(problem, lambda p: pull((p,))[0], s.u)
        gradient = left if problem.symmetric else J.T(left)
        if self.equations == "truncated":
            step = self._truncated(begun, J, gradient, forcing(norm(gradient), s))
        elif self.equations == "normal":
            gram = Operator(lambda p: J.T(J(p)), symmetric=True)
            step = CG(damping=self.damping)(gram, J.T(left), loop=loop).value
        else:
            step = (CG if problem.symmetric else Auto)(damping=self.damping)(J, left, loop=loop).value
        slope = dot(gradient, step)
        return left, gradient, xp.where(slope == 0, gradient, xp.where(slope < 0, -step, step))

    def _truncated(self, begun: Start, hessian: Matvec, gradient: Array, forced: Array) -> Array:
        """Return a step with ||H d - F|| <= forced ||F||, a tolerance for each problem, which `CG` does not take."""
        backend = begun.problem.backend
        found = cg(
            lambda p: hessian(p) + self.damping * p,
            gradient,
            rtol=backend.number(forced[..., 0]),
            max_iter=max(100, 10 * gradient.shape[-1]),
            loop=backend.while_loop,
            number=backend.number,
        )
        return found.value  # type: ignore[no-any-return]


def forcing(slope: Array, s: Iterate) -> Array:
    """Return how exactly a step is worth solving for: 0.9 (||F|| / ||F of the step before||)^1.618, 1/2 at most.

    Eisenstat and Walker 1996, eq. 2.6, without its safeguard: convergence is superlinear, of order 1.618. A truncated
    step can be short because it is rough: where one was short enough to be the last, the next is solved for to the
    full, and judged in its place.
    """
    xp = array_namespace(slope)
    wanted = 0.9 * (slope / or_one(s.slope)) ** GOLDEN
    finest = full(slope, eps(xp, slope.dtype) ** 0.75)
    wanted = xp.where(s.near | (wanted < finest), finest, wanted)
    return xp.where(wanted < 0.5, wanted, full(slope, 0.5))  # type: ignore[no-any-return]


def merit(begun: Start, u: Array) -> Array:
    """Return what a step must lower, (*batch, 1): the score, or 1/2 ||F||^2."""
    problem, _, arrays = begun
    if problem.symmetric:
        return problem.value(u, *arrays)[..., None]
    left = problem.residual(u, *arrays)
    return 0.5 * dot(left, left)


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
    broken: Array


class Trial(NamedTuple):
    """A step length under trial, (*batch, 1)."""

    length: Array
    going: Array


def backtrack(begun: Start, u: Array, value: Array, step: Array, slope: Array, going: Array) -> Array:
    """Halve the length of u - length * step until the score falls enough; zero where none is found."""
    xp = array_namespace(u)
    rounding = 8 * eps(xp, u.dtype)

    def halve(s: Trial) -> Trial:
        trial = merit(begun, u - s.length * step)
        lower = trial <= value - 1e-4 * s.length * slope + rounding * (xp.abs(value) + xp.abs(trial))
        going = s.going & ~lower
        length = xp.where(going, 0.5 * s.length, s.length)
        spent = going & (length < rounding)
        return Trial(xp.where(spent, 0.0 * length, length), going & ~spent)

    # the score does not resolve a step this short: its change is of second order, below the rounding of its terms
    short = norm(step) <= 16 * eps(xp, u.dtype) ** 0.5 * size_of(u)
    first = Trial(xp.where(going, full(value, 1.0), full(value, 0.0)), going & ~short)
    return begun.problem.backend.while_loop(lambda s: xp.any(s.going), halve, first).length  # type: ignore[no-any-return]
