"""The stopping rule of the bridges to optimisers. It applies to each problem of a batch separately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, full, nonzero_or_one, norm
from dil._base.errors import OptionError
from dil._base.solution import Solution
from dil._base.typing import Array
from dil._problem.problem import Problem
from dil.solvers._finish import finish
from dil.solvers._start import Start, check_positive, tolerance, zeros_like_count


class State(NamedTuple):
    """The state of each problem; u and gradient: (*batch, n), value: batch, the rest: (*batch, 1)."""

    u: Array
    value: Array
    gradient: Array
    slope: Array
    """The norm of the gradient at the start."""
    steps: Array
    going: Array
    solved: Array
    broken: Array

    def masked(self, value: Array, gradient: Array) -> tuple[Array, Array]:
        """Return the sum of the scores of the active problems, and its gradient."""
        xp = array_namespace(value)
        total = xp.sum(xp.where(self.going[..., 0], value, full(value, 0.0)))
        return total, xp.where(self.going, gradient, full(gradient, 0.0))


@dataclass(frozen=True)
class Rule:
    """A problem is solved if ||df/du|| <= rtol ||df/du at the start|| + atol."""

    max_iter: int
    rtol: float | None
    atol: float | None

    def __post_init__(self) -> None:
        check_positive(optional={"rtol": self.rtol, "atol": self.atol}, max_iter=self.max_iter)

    def first(self, started: Start) -> State:
        """Return the state at the start."""
        problem, u, arrays = started
        value, gradient = problem.value_and_gradient(u, *arrays)
        slope = norm(gradient)
        solved, broken = self._stopping_test(u, value, gradient, slope)
        return State(u, value, gradient, slope, zeros_like_count(u), ~(solved | broken), solved, broken)

    def advance(self, started: Start, s: State, u: Array) -> State:
        """Return the state after one step of the optimiser to u. An inactive problem keeps its iterate."""
        problem, _, arrays = started
        xp = array_namespace(u)
        u = xp.where(s.going, u, s.u)
        value, gradient = problem.value_and_gradient(u, *arrays)
        solved, broken = self._stopping_test(u, value, gradient, s.slope)
        solved, broken = s.solved | (s.going & solved), s.broken | (s.going & broken)
        steps = s.steps + xp.astype(s.going, s.steps.dtype)
        moved = xp.any(u != s.u, axis=-1, keepdims=True)
        going = s.going & moved & ~solved & ~broken & (steps < self.max_iter)
        keep = s.going & ~broken  # a broken problem keeps its last finite iterate
        return State(
            xp.where(keep, u, s.u),
            xp.where(keep[..., 0], value, s.value),
            xp.where(keep, gradient, s.gradient),
            s.slope,
            steps,
            going,
            solved,
            broken,
        )

    def finish(self, problem: Problem, s: State) -> Solution:
        """Return the solution. A problem that no longer moves and is not solved has stagnated."""
        left = norm(s.gradient) / nonzero_or_one(s.slope)
        return finish(
            problem.space, s.u, s.steps, left, max_iter=self.max_iter, solved=s.solved, broken=s.broken, extra={}
        )

    def _stopping_test(self, u: Array, value: Array, gradient: Array, slope: Array) -> tuple[Array, Array]:
        xp = array_namespace(u)
        finite = xp.isfinite(value)[..., None] & xp.all(xp.isfinite(gradient), axis=-1, keepdims=True)
        solved = finite & (norm(gradient) <= tolerance(u, self.rtol, 0.5) * slope + (self.atol or 0.0))
        return solved, ~finite


def check_arrays(started: Start, native: str, name: str) -> None:
    """Raise if the arrays are of another framework than the optimiser."""
    found = started.problem.backend.NATIVE
    if found != native:
        message = f"{name} minimises over arrays of {native}, and these are of {found}; take one of dil.solvers"
        raise OptionError(message)
