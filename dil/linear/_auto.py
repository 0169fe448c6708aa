"""The linear solver that a layer takes when none is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from dil._arrays import array_namespace, full
from dil._errors import OptionError
from dil._operator import Operator, as_operator
from dil._registry import common_owner
from dil._solution import Solution
from dil._status import Status
from dil._typing import Array, Loop, Matvec
from dil.linear._cg import CG
from dil.linear._direct import Direct
from dil.linear._gmres import GMRES
from dil.linear._minres import MINRES
from dil.linear._solver import LinearSolver


@dataclass(frozen=True)
class Auto:
    """Solve (A + damping I) x = b by what the size and the symmetry of A allow.

    A dense solve, `Direct`, for few unknowns; `CG` for a symmetric A; `GMRES` for one that is not known to be
    symmetric. The problems in which CG meets negative or no curvature, or whose dense matrix is singular, go to
    `MINRES` (`GMRES` if not symmetric), which solves a singular system too if it has a solution.

    Where a symmetric matrix proves not to be positive definite, `extra["indefinite"]` says so, and an argmin layer ends
    that problem `NOT_MINIMUM`: its gradient is that of the stationary point, which is no minimum.

    Parameters
    ----------
    damping, rtol, max_iter
        As in `CG`; a dense solve knows damping alone.
    dense : int, optional
        The number of unknowns up to which the solve is dense; by default the backend's, measured by
        `benchmarks/linear.py`.

    Raises
    ------
    OptionError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np, dil
    >>> A = dil.linear.Operator(lambda p: p * np.asarray([1.0, -2.0]), symmetric=True)
    >>> dil.linear.Auto()(A, np.asarray([1.0, 1.0])).value
    array([ 1. , -0.5])
    """

    damping: float = 0.0
    rtol: float | None = None
    max_iter: int | None = None
    dense: int | None = None

    def __post_init__(self) -> None:
        CG(damping=self.damping, rtol=self.rtol, max_iter=self.max_iter)
        if self.dense is not None and not (isinstance(self.dense, int) and self.dense >= 0):
            message = f"dense={self.dense!r}; expected a number of unknowns >= 0, or None for the backend's own"
            raise OptionError(message)

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None
    ) -> Solution:
        """Solve A x = b for b: (*batch, n); status: batch."""
        backend = common_owner([b], ["b"], "dil.linear.Auto")
        A, loop = as_operator(A), backend.while_loop if loop is None else loop
        damping, rtol, limit = self.damping, self.rtol, self.max_iter
        second = MINRES(damping, rtol, limit) if A.symmetric else GMRES(damping=damping, rtol=rtol, max_iter=limit)
        if b.shape[-1] <= (backend.DENSE if self.dense is None else self.dense):
            return _mended(Direct(damping)(A, b, loop=loop), second, A, b, loop)
        if not A.symmetric:
            return second(A, b, loop=loop, x0=x0)
        return _mended(CG(damping, rtol, limit)(A, b, loop=loop, x0=x0), second, A, b, loop)


Mending: TypeAlias = tuple[Array, Array, Array, Array, Array]


def _mended(first: Solution, second: LinearSolver, A: Operator, b: Array, loop: Loop) -> Solution:
    """Solve the problems again whose matrix the first solver could not take."""
    xp = array_namespace(b)
    assert first.status is not None
    bent = (first.status == int(Status.INDEFINITE)) | (first.status == int(Status.SINGULAR))

    def again(s: Mending) -> Mending:
        met, x, status, steps, residual = s
        # the others get a right-hand side of zero, which costs no iteration
        new = second(A, xp.where(met[..., None], b, full(b, 0.0)), loop=loop)
        assert new.iterations is not None
        return (
            met & ~met,
            xp.where(met[..., None], new.value, x),
            xp.where(met, new.status, status),
            xp.where(met, steps + new.iterations, steps),
            xp.where(met, new.residual, residual),
        )

    # a loop that runs once if there is such a problem, and not at all otherwise
    start = (bent, first.value, first.status, first.iterations, first.residual)
    _, x, status, steps, residual = loop(lambda s: xp.any(s[0]), again, start)
    indefinite = (first.status == int(Status.INDEFINITE)) | (first.extra or {}).get("indefinite", bent & ~bent)
    return Solution(x, status, steps, residual, {"indefinite": indefinite})
