"""Judge the point where a solver stopped: whether it is a solution entry by entry, and whether a root is near."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, max_abs
from dil._base.operator import Operator
from dil._base.typing import Array
from dil._problem.terms import change_with_arguments, spread
from dil.solvers._linearised import linearised
from dil.solvers._start import Start
from dil.solvers._verify import if_differentiable

MARGIN = 4.0
"""An equation is out of reach if it exceeds the estimate of its reach so many times. The estimate is at least half."""
BALANCE = 1e-2
"""J^T F is zero if it is so small beside its terms, each entry times the way of its unknown."""
LEFT = 1e-2
"""The largest share of its terms that an equation may be away from zero at a root."""


class Reach(NamedTuple):
    """The equations at a point, and how far they can move; vectors (*batch, n)."""

    F: Array
    J: Operator
    way: Array
    """The size of each unknown, or its way from the start if that is larger."""
    reach: Array
    """How much each equation changes where each unknown moves by its way."""


class Judgement(NamedTuple):
    """(*batch, 1)."""

    far: Array
    """The solved problems whose point is no solution."""
    rootless: Array
    """The problems among these, and among the others, that stopped at a minimum of ||F|| that is not zero."""


def judge(started: Start, u: Array, solved: Array, stopped: Array) -> Judgement:
    """Judge the problems that seem solved, and those that stopped without a solution. No unit matters.

    A point is no solution if an entry of F is more than 1 percent of its terms away from zero. Its terms are its reach,
    and its change with the arguments. F may be the gradient of a score.

    There is no root near a point if one of two holds. An equation is out of reach: its linear model does not come to
    zero, although each unknown moves by its size or by its way from the start. Or the equations contradict each other:
    J^T F is zero beside its terms. A point that never left its start is not judged.
    """
    xp = array_namespace(u)

    def above(F: Array, terms: Array) -> Array:
        return xp.any(xp.abs(F) > LEFT * terms, axis=-1, keepdims=True)  # type: ignore[no-any-return]

    def judged(now: Judgement) -> Judgement:
        (F, J), way = linearised(started, u), xp.maximum(xp.abs(u), xp.abs(u - started.u))

        def measured(now: Judgement) -> Judgement:
            at = Reach(F, J, way, spread(J, way, started.problem.backend))
            far = now.far & above(F, at.reach)
            far = run_if(xp.any(far), lambda far: far & above(F, at.reach + sensitivity()), far)
            if started.problem.symmetric:  # a score has no root to miss
                return now._replace(far=far)
            moved = xp.any(u != started.u, axis=-1, keepdims=True)
            beyond = xp.any(xp.abs(F) > MARGIN * at.reach, axis=-1, keepdims=True)
            return Judgement(far, (stopped | far) & moved & (beyond | _contradict(started, at)))

        def sensitivity() -> Array:
            condition, floats = started.problem.optimality(started.arrays)
            return xp.abs(change_with_arguments(condition, F, u, floats))  # type: ignore[no-any-return]

        # one draw of the reach is at most all of it, and does for most solutions
        suspect = solved & above(F, spread(J, way, started.problem.backend, 1))
        return run_if(xp.any(suspect | stopped), measured, now._replace(far=suspect))  # type: ignore[no-any-return]

    none = solved & ~solved
    unseen, run_if = Judgement(none, none), started.problem.backend.loops.run_if
    return if_differentiable(lambda: run_if(xp.any(solved | stopped), judged, unseen), unseen)


def _contradict(started: Start, at: Reach) -> Array:
    """Return whether J^T F is zero beside its terms, each entry times the way of its unknown; (*batch, 1)."""
    terms = spread(at.J.T, array_namespace(at.F).abs(at.F), started.problem.backend)
    found: Array = max_abs(at.J.T(at.F) * at.way)[..., None] <= BALANCE * max_abs(terms * at.way)[..., None]
    return found
