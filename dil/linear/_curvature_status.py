"""The status of a problem after conjugate gradients, by its residual and by the curvature of its last direction."""

from __future__ import annotations

import math
from typing import Protocol

from dil._base.arrays import logical_not
from dil._base.scalars import Scalar
from dil._base.status import Status, first_of


class Directions(Protocol):
    """What a state of conjugate gradients tells of its directions p."""

    @property
    def curvature(self) -> Scalar:
        """<p, H p> / <p, p> of the last direction p, also if its step was refused."""
        ...

    @property
    def curvature_sum(self) -> Scalar:
        """The sum of |<p, H p>| / <p, p> so far. It is at least of the order of the norm of H."""
        ...

    @property
    def steps(self) -> Scalar: ...


def curvature_status(last: Directions, failed: Scalar, rounded: Scalar, max_iter: int, machine_eps: float) -> Scalar:
    """Return the status of each problem. The first condition that holds decides.

    `failed`: whether the residual is above the tolerance; `rounded`: whether it is rounding all the same.
    """
    if failed is False:
        return int(Status.CONVERGED)
    reasons = [
        (logical_not(failed), Status.CONVERGED),
        (logical_not(abs(last.curvature) < math.inf), Status.NON_FINITE),
        (last.curvature < -machine_eps * last.curvature_sum, Status.INDEFINITE),
        (logical_not(last.curvature > machine_eps * last.curvature_sum), Status.SINGULAR),
        (rounded, Status.CONVERGED),
        (last.steps >= max_iter, Status.MAX_ITER),
    ]
    return first_of(reasons, Status.STAGNATED)
