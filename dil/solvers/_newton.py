"""Newton's method with backtracking; its step by conjugate gradients, on H d = F or on the normal equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from dil._arrays import array_namespace, dot, eps, full, norm
from dil._errors import OptionError
from dil._solution import Solution
from dil._status import Status
from dil._typing import Array, Matvec, Tree
from dil.linear._cg import CG
from dil.solvers._start import Start, check_positive, size_of, start, tolerance, zeros_like_count

Equations = Literal["hessian", "normal"]


@dataclass(frozen=True)
class Newton:
    """Minimise by steps d that solve H d = df/du.

    Parameters
    ----------
    equations : {"hessian", "normal"}
        Solve H d = F by CG, one Hessian product an iteration, or H H d = H F, two products, which does without a
        positive definite H (Look et al. 2020, section 3.1).
    rtol : float, optional
        A problem is solved when a full step is within rtol (1 + ||u||); by default eps ** (1/2) of the dtype. As
        convergence is quadratic, the error that is left after that step is of the order of its square.
    max_iter : int
        Newton steps at most.
    damping : float
        Added to the diagonal of the matrix solved, H or H H.

    Notes
    -----
    The tolerance is relative to 1 + ||u||: an unknown in units that make it much smaller than one needs other units.

    Where CG meets negative curvature its last iterate is the step, or the gradient if there is none; a step that
    points uphill is turned round; backtracking (Armijo 1966) does the rest. Nocedal and Wright 2006, Algorithm 7.1.

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

    def __post_init__(self) -> None:
        check_positive(optional={"rtol": self.rtol}, max_iter=self.max_iter)
        if self.equations not in get_args(Equations):
            message = f"equations={self.equations!r} is unknown; expected one of {', '.join(get_args(Equations))}"
            raise OptionError(message)
        CG(damping=self.damping)

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Minimise fun from init; the value has the structure of init."""
        begun = start(self, fun, init, args, kwargs)
        problem, u, arrays = begun
        xp, rtol = array_namespace(u), tolerance(u, self.rtol, 0.5)

        def iterate(s: Iterate) -> Iterate:
            value = problem.value(s.u, *arrays)[..., None]
            gradient, step = self._step(begun, s.u)
            usable = s.going & xp.all(xp.isfinite(step), axis=-1, keepdims=True) & xp.isfinite(value)
            step = xp.where(usable, step, full(step, 0.0))
            length = backtrack(begun, s.u, value, step, dot(gradient, step), usable)
            new = s.u - length * step
            steps = s.steps + xp.astype(s.going, s.steps.dtype)
            solved = s.solved | (usable & (length > 0) & (norm(step) <= rtol * size_of(new)))
            going = usable & (length > 0) & ~solved & (steps < self.max_iter)
            broken = s.broken | (s.going & ~usable)
            return Iterate(new, norm(gradient), steps, going, solved, broken)

        slope = norm(problem.gradient(u, *arrays))
        finite = xp.isfinite(slope)
        first = Iterate(u, slope, zeros_like_count(u), finite & (slope > 0), finite & (slope == 0), ~finite)
        last = problem.backend.while_loop(lambda s: xp.any(s.going), iterate, first)
        status = full(last.steps, int(Status.STAGNATED), dtype=xp.int32)
        status = xp.where(last.steps >= self.max_iter, full(status, int(Status.MAX_ITER)), status)
        status = xp.where(last.broken, full(status, int(Status.NON_FINITE)), status)
        status = xp.where(last.solved, full(status, int(Status.CONVERGED)), status)
        residual = last.slope / xp.where(slope > 0, slope, full(slope, 1.0))
        return Solution(problem.space.unravel(last.u), status[..., 0], last.steps[..., 0], residual[..., 0])

    def _step(self, begun: Start, u: Array) -> tuple[Array, Array]:
        """Return F(u), and a step d with H d = F or the best that is found, turned downhill."""
        problem, _, arrays = begun
        xp = array_namespace(u)
        (gradient,), pull = problem.backend.vjp(lambda w: (problem.gradient(w, *arrays),), u)

        def hessian(p: Array) -> Array:
            return pull((p,))[0]

        matvec: Matvec = hessian if self.equations == "hessian" else lambda p: hessian(hessian(p))
        right = gradient if self.equations == "hessian" else hessian(gradient)
        step = CG(damping=self.damping)(matvec, right, loop=problem.backend.while_loop).value
        slope = dot(gradient, step)
        step = xp.where(slope == 0, gradient, xp.where(slope < 0, -step, step))
        return gradient, step


class Iterate(NamedTuple):
    """One Newton step; u: (*batch, n), the rest (*batch, 1)."""

    u: Array
    slope: Array
    """The norm of the gradient at the start of the step."""
    steps: Array
    going: Array
    solved: Array
    broken: Array


class Trial(NamedTuple):
    """A step length under trial, (*batch, 1)."""

    length: Array
    going: Array


def backtrack(begun: Start, u: Array, value: Array, step: Array, slope: Array, going: Array) -> Array:
    """Halve the length of u - length * step until the score falls enough; zero where none is found."""
    problem, _, arrays = begun
    xp = array_namespace(u)
    rounding = 8 * eps(xp, u.dtype)

    def halve(s: Trial) -> Trial:
        trial = problem.value(u - s.length * step, *arrays)[..., None]
        lower = trial <= value - 1e-4 * s.length * slope + rounding * (xp.abs(value) + xp.abs(trial))
        going = s.going & ~lower
        length = xp.where(going, 0.5 * s.length, s.length)
        spent = going & (length < rounding)
        return Trial(xp.where(spent, 0.0 * length, length), going & ~spent)

    # the score does not resolve a step this short: its change is of second order, below the rounding of its terms
    short = norm(step) <= 16 * eps(xp, u.dtype) ** 0.5 * size_of(u)
    first = Trial(xp.where(going, full(value, 1.0), full(value, 0.0)), going & ~short)
    return problem.backend.while_loop(lambda s: xp.any(s.going), halve, first).length  # type: ignore[no-any-return]
