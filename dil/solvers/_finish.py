"""The end of every iterative solver of the library: its last iterate, and a status for each problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dil._base.solution import Solution
from dil._base.status import Status, first_of
from dil._base.typing import Array
from dil._problem.space import Space


def finish(
    space: Space,
    u: Array,
    steps: Array,
    residual: Array,
    *,
    max_iter: int,
    solved: Array,
    broken: Array,
    extra: Mapping[str, Any],
    singular: Array | None = None,
    diverged: Array | None = None,
    far: Array | None = None,
    cut: Array | None = None,
    wrong: Array | None = None,
    random: Array | None = None,
    rootless: Array | None = None,
    rough: Array | None = None,
    wrong_pattern: Array | None = None,
) -> Solution:
    """Return the solution at u, (*batch, n), from the last state of the loop, (*batch, 1) each.

    A problem that is neither solved nor broken reached the iteration limit, or it stopped because of rounding.
    """
    # the slopes at two points of a random score do not tell that it falls
    failures = ((random, Status.RANDOM), (cut, Status.NO_DERIVATIVE), (diverged, Status.DIVERGED))
    reasons = [
        *((holds, status) for holds, status in failures if holds is not None),
        (solved, Status.CONVERGED),
        *(() if wrong_pattern is None else ((wrong_pattern, Status.WRONG_PATTERN),)),
        (broken, Status.NON_FINITE),
        *(() if wrong is None else ((wrong, Status.WRONG_DERIVATIVE),)),
        *(() if rough is None else ((rough, Status.LINEAR_SOLVER),)),
        *(() if rootless is None else ((rootless, Status.NO_ROOT),)),
        *(() if far is None else ((far, Status.NOT_STATIONARY),)),
        *(() if singular is None else ((singular, Status.SINGULAR),)),
        (steps >= max_iter, Status.MAX_ITER),
    ]
    status = first_of(reasons, Status.STAGNATED)
    return Solution(space.unravel(u), status[..., 0], steps[..., 0], residual[..., 0], extra or None)
