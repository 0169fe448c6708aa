"""The linear solver that a layer takes when none is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, full, size
from dil._base.errors import OptionError
from dil._base.operator import Operator, as_operator
from dil._base.options import is_integer
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Loop, Matvec
from dil.linear._bicgstab import BiCGSTAB
from dil.linear._cg import CG
from dil.linear._direct import Direct
from dil.linear._gmres import GMRES
from dil.linear._least_norm import LeastNorm
from dil.linear._minres import MINRES
from dil.linear._right_hand_side import backend_of_system
from dil.linear._solver import LinearSolver

ROOM = 2**22
"""Numbers that the dense matrices of a batch may take: 32 MiB in float64, which JAX sets aside in any case."""


@dataclass(frozen=True)
class Auto:
    """Solve (A + damping I) x = b by what the size and the symmetry of A allow.

    Few unknowns are solved by `Direct`. For more, `CG` (`BiCGSTAB` if A is not known to be symmetric) takes n steps at
    most, CG only a small share of them (the backend's, n / 8 or n / 32) if these do not win two sevenths of the digits
    asked for, and the problems left over go to `Direct`.

    The matrices of `Direct` may take 2^22 numbers for the batch; the iteration goes on to max_iter where they would
    take more. Of problems of a middling size, all that the iteration fails in go to `Direct`, and where the dense
    matrix proves singular the shortest solution is taken, if there is one. Among larger ones, those in which CG meets
    negative or no curvature go to `MINRES`, and those in which BiCGSTAB breaks down to `GMRES`.

    Where a symmetric matrix proves not to be positive definite, `extra["indefinite"]` says so, and an argmin layer ends
    that problem `NOT_MINIMUM`: its gradient is that of the stationary point, which is no minimum.

    Parameters
    ----------
    damping, rtol, max_iter
        As in `CG`; a dense solve knows damping alone. With max_iter no problem is left over to `Direct`.
    dense : int, optional
        The number of unknowns up to which the solve is dense, and beyond which it never is. By default the number up
        to which it is dense at once is the backend's, measured by `benchmarks/linear.py`.

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
        if not (self.dense is None or is_integer(self.dense, 0)):
            message = f"dense={self.dense!r}; expected a number of unknowns >= 0, or None for the backend's own"
            raise OptionError(message)

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None
    ) -> Solution:
        """Solve A x = b for b: (*batch, n); status: batch."""
        backend, n = backend_of_system(b, "dil.linear.Auto", x0), b.shape[-1]
        A, loop = as_operator(A), backend.loops.while_loop if loop is None else loop
        damping, rtol, limit = self.damping, self.rtol, self.max_iter
        direct = Direct(damping)
        crossover = backend.dense.crossover
        few = crossover.symmetric if A.symmetric else crossover.general
        fits = size(b.shape) * n <= ROOM
        rescued = fits and self.dense is None and limit is None
        at_once = n <= self.dense if self.dense is not None else fits and n <= few
        small = at_once or (rescued and n <= crossover.general)
        if at_once:
            first = direct(A, b, loop=loop)
        elif A.symmetric:
            cg = CG(damping, rtol, max(n, 1) if rescued else limit)
            trial = max(8, int(n * crossover.trial)) if rescued else None
            first = cg.tried(A, b, loop=loop, x0=x0, trial=trial)
        else:
            first = BiCGSTAB(damping, rtol, max(n, 1) if rescued else limit)(A, b, loop=loop, x0=x0)
        if rescued and not at_once:
            broken = (Status.INDEFINITE, Status.SINGULAR) if small else ()
            first = _mended(first, (Status.MAX_ITER, Status.STAGNATED, *broken), direct, A, b, loop)
        if small:
            return _mended(first, (Status.SINGULAR,), LeastNorm(damping, rtol), A, b, loop)
        if A.symmetric:
            return _mended(first, (Status.INDEFINITE, Status.SINGULAR), MINRES(damping, rtol, limit), A, b, loop)
        gmres = GMRES(damping=damping, rtol=rtol, max_iter=limit)
        return _mended(first, (Status.SINGULAR, Status.STAGNATED), gmres, A, b, loop)


class Mending(NamedTuple):
    """The problems before and after they are solved again."""

    met: Array
    x: Array
    status: Array
    steps: Array
    residual: Array
    indefinite: Array


def _mended(
    first: Solution, failures: Sequence[Status], second: LinearSolver, A: Operator, b: Array, loop: Loop
) -> Solution:
    """Solve the problems again that ended so by the first solver."""
    backend, xp = backend_of_system(b, "dil.linear.Auto"), array_namespace(b)
    assert first.status is not None
    assert first.iterations is not None
    assert first.residual is not None
    met = first.status != first.status
    for failure in failures:
        met = met | (first.status == int(failure))

    def again(s: Mending) -> Mending:
        # the others get a right-hand side of zero, which costs no iteration
        new = second(A, xp.where(s.met[..., None], b, full(b, 0.0)), loop=loop)
        assert new.iterations is not None
        return Mending(
            s.met,
            xp.where(s.met[..., None], new.value, s.x),
            xp.where(s.met, new.status, s.status),
            xp.where(s.met, s.steps + new.iterations, s.steps),
            xp.where(s.met, new.residual, s.residual),
            s.indefinite | (s.met & (new.extra or {}).get("indefinite", s.met & ~s.met)),
        )

    known = (first.extra or {}).get("indefinite", met & ~met) | (first.status == int(Status.INDEFINITE))
    start = Mending(met, first.value, first.status, first.iterations, first.residual, known)
    last: Mending = backend.loops.run_if(xp.any(met), again, start)
    return Solution(last.x, last.status, last.steps, last.residual, {"indefinite": last.indefinite})
