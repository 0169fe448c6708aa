"""The default linear solver of a fixed-point layer whose solver stops early on purpose."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dil._base.arrays import array_namespace, eps
from dil._base.operator import Operator
from dil._base.options import declares
from dil._base.solution import Solution
from dil._base.typing import Array, Loop
from dil.linear._auto import Auto
from dil.linear._solver import LinearSolver
from dil.linear._tolerance import Tolerance

SHARE = 0.1
"""The tolerance of the linear solve beside that of the forward solver: its error adds a tenth."""
LOOSEST = 1e-3
"""The loosest tolerance of the linear solve, whatever that of the forward solver: a layer tells of errors of 1 %."""
OF_STEPS = 1e-2
"""The tolerance of a Newton step that only shows how far the derivative is off."""


@dataclass(frozen=True)
class FollowingAuto:
    """`Auto` with the tolerance `rtol`, or with its own one if that of the dtype is looser."""

    rtol: float

    _takes_many = True
    """Whether it solves for many right-hand sides, (k, *batch, n), of an operator with `one`."""
    _takes_tolerance = True
    """Whether its call takes a tolerance `rtol`, for each problem or for all, in the place of its option."""
    _takes_start = True
    """Whether a start x0 saves steps."""
    _continues = True
    """Whether the layer continues the iteration before it differentiates."""

    @property
    def _of_steps(self) -> LinearSolver:
        """The solver for a Newton step of which two digits are enough."""
        return replace(self, rtol=max(self.rtol, OF_STEPS))

    def __call__(
        self, A: Operator, b: Array, /, *, loop: Loop, x0: Array | None = None, rtol: Tolerance = None
    ) -> Solution:
        """Solve A x = b for b: (*batch, n); status: batch. `rtol` stands for both tolerances in this call."""
        loose = self.rtol > eps(array_namespace(b), b.dtype) ** 0.75
        return Auto(rtol=self.rtol if loose else None)(A, b, loop=loop, x0=x0, rtol=rtol)


def following(solver: object, refine: int) -> LinearSolver:
    """Return the default linear solver of a layer whose forward solver is `solver`.

    A forward solver that leaves ||F|| = rtol ||u|| leaves an error of up to ||J^-1|| rtol ||u|| in u. A linear solve
    that leaves a residual rtol' ||v|| leaves an error of up to ||J^-1|| rtol' ||v|| in g. So a solve much tighter than
    the forward one does not make that bound better, and rtol' = rtol / 10 adds a tenth to it. Newton steps after the
    solver (`refine`) remove the first error, and then the solve is tight.

    What it costs and gives, for a block of two convolutions in float32 with `Anderson(rtol=1e-3)`: the error of the
    gradient is 3e-5, and the backward pass takes about a fifth less time than with a tight solve. Where the layer can
    not continue the iteration (see `way_to_solution`), a check solves for a Newton step to two digits.
    """
    solver = getattr(solver, "identity", solver)
    rtol = getattr(solver, "rtol", None)
    if rtol is None or refine or not declares(solver, "_leaves_rtol"):
        return Auto()
    return FollowingAuto(min(SHARE * rtol, LOOSEST))
