"""The default linear solver of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from dil._base.arrays import array_namespace, size
from dil._base.errors import OptionError
from dil._base.operator import Operator, as_operator, shifted
from dil._base.options import is_integer
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Loop, Matvec
from dil._frameworks.loops import with_loop
from dil._frameworks.protocol import Backend
from dil.linear._bicgstab import BiCGSTAB
from dil.linear._cg import CG
from dil.linear._choice import Choice
from dil.linear._choice_in_words import Reason, Tried
from dil.linear._dense_cost import FEWEST_TRIED, krylov_budget
from dil.linear._direct import Direct, solved_by_inverse
from dil.linear._found_symmetry import KNOWN_SYMMETRIC, PRODUCTS, signs, times_sign
from dil.linear._given_solve import solved_by_given_matrix
from dil.linear._idr import IDR
from dil.linear._least_norm import LeastNorm
from dil.linear._minres import MINRES
from dil.linear._racing_cg import racing_cg
from dil.linear._right_hand_side import backend_of_system
from dil.linear._scaled_bicgstab import scaled_bicgstab
from dil.linear._solve_again import SoFar, solve_again
from dil.linear._solver import LinearSolver
from dil.linear._sparse_choice import Call, Sparse, by_sparse_factor, with_more_products
from dil.linear._tolerance import Tolerance, tolerance_of_call

MAX_DENSE_NUMBERS = 2**22
"""The most numbers that the dense matrices of a batch may hold: 32 MiB in float64. JAX always reserves this memory."""


class Plan(NamedTuple):
    """What the options of `Auto` and the sizes of a system decide before a step is taken."""

    dense_first: bool
    has_fallback: bool
    """Whether problems that the iteration does not solve go to `Direct`."""
    dense_allowed: bool
    """Whether a matrix that is singular or not positive definite may be dense."""
    trial: int | None
    """The steps after which a slow iteration stops."""
    most: int | None
    """The most steps."""


PATIENCE, END = 64, 1024
"""The steps after which BiCGSTAB hands a large problem over to IDR: one that is slow, with three times as many steps if
it looked for a preconditioner, and any. On the matrices of benchmarks/nonsymmetric.py on which BiCGSTAB takes the most
products, IDR(8) takes an eighth to three quarters of them."""


@dataclass(frozen=True)
class Auto:
    """Solve (A + damping I) x = b by a method that fits the size and the symmetry of A.

    1. Problems with up to 32 unknowns are solved by `Direct`, and so are those for which a dense solve costs fewer than
       32 steps of the iteration. The sizes of the problem, and constant overheads of the framework, say how many
       steps it costs.
    2. Other problems are solved by `BiCGSTAB`, or by `CG` if A is known to be symmetric. If they would take long, they
       choose a preconditioner: see below. After a quarter of the steps that a dense solve costs, or three quarters if
       A is symmetric or a preconditioner was looked for, the iteration stops if the relative residual is above
       rtol ** (2/7). It also stops once it has cost 3/2 of a dense solve. Problems that are not solved go to `Direct`.
    3. The matrices of `Direct` may hold 2^22 numbers for the batch. If they would hold more, the iteration continues to
       max_iter.
    4. At moderate sizes, every problem in which the iteration fails goes to `Direct`. If the dense matrix is singular,
       the result is the least-squares solution of least norm.
    5. At larger sizes, problems in which CG meets zero or negative curvature go to `MINRES`. Problems in which BiCGSTAB
       breaks down go to `IDR(8)`. So do those whose relative residual is above rtol ** (2/7) after 64 steps of
       BiCGSTAB, or after 192 if a preconditioner was looked for, and those that are not solved in 1,024 steps.
    6. At these sizes, one product with A and one with its transpose show whether a matrix that is not known to be
       symmetric is so to rounding, as where a root is that of the gradient of an energy. They are taken where 16 steps
       of BiCGSTAB promise more than 64. Such problems are then solved as symmetric ones, and those with negative
       eigenvalues as -A x = -b. The next solve for the same function of a layer takes these two products first.

    7. The dF/du of a layer with at least 256 unknowns, for which no dense solve comes first, is looked at once for each
       function and its shapes, if SciPy is installed and numbers are on the host, not in a compiled program. Where 8
       plain steps do not solve the system, its pattern is found, in up to 100 products. It goes to `SparseDirect` from
       then on if a factorisation costs less than the steps that the pace of the first ones promises; the width of the
       pattern says what it costs. The inexact steps of Newton's method are decided apart, after 16 steps. This comes
       before steps 2 to 6.

    CG chooses as follows. It takes 8 plain steps, and goes on if their pace promises 40 steps. Otherwise 2 products
    with vectors of random signs show whether A is nearly diagonal; then its diagonal is the preconditioner. If the
    pace promises 64 steps, or if 6 further products show that the diagonal is flat, CG goes on and keeps up to 64
    residuals, to which it makes up to 64 new ones orthogonal. Rounding makes CG repeat steps where a few eigenvalues
    are far from the others, and this prevents it. If the kept residuals show no such eigenvalue, none is made
    orthogonal. In all other cases both ways take turns until one is clearly ahead. The products are rarely more than
    those of plain CG; on 800 random spectra (`benchmarks/spectra.py`) they were at most 1.8 times as many.

    BiCGSTAB chooses a diagonal M for A M y = b, x = M y, if products with the transpose of A are known. It takes 16
    plain steps, and goes on if their pace promises 64 steps. Otherwise 8 products with random vectors show the sizes of
    the rows and columns of A, from which M follows. If its entries differ little, plain BiCGSTAB goes on. If not, 11
    steps with M follow. If they win a sixth of the digits of rtol, BiCGSTAB with M goes on. If not, plain BiCGSTAB
    takes 11 steps more, and the way that is ahead goes on. Where plain BiCGSTAB wins, there are at most 32 products
    more, as many as its first 16 steps took.

    Where a layer has `derivatives=dil.Jacobian(matrix=...)`, that matrix is factorised on the host, once for the point
    and for both directions, and nothing else is tried: by SuperLU as in `SparseDirect` if it is sparse.

    A start x0 is used by plain CG and plain BiCGSTAB alone.

    `extra["products"]` counts the products of all methods that a problem went through.
    `str(solution.extra["choice"])` says in a sentence what was done and why, and so do `layer.report` and `dil.record`.

    If a symmetric matrix is not positive definite, `extra["indefinite"]` is true. An argmin layer then ends the problem
    `NOT_MINIMUM`: the gradient is that of a stationary point that is not a minimum.

    Sources: Bekas, Kokiopoulou and Saad 2007, section 2, and Bradley and Murray 2011 (the diagonal); Simon 1984
    (residuals that are kept orthogonal); Hestenes and Stiefel 1952 (the energy, by which both ways are compared); Ruiz
    2001, and Bradley and Murray 2011 (the sizes of rows and columns, by products).

    Parameters
    ----------
    damping, rtol, max_iter
        As in `CG`. A dense solve uses only damping. If max_iter is given, no problem goes from step 2 to `Direct`.
    dense : int, optional
        If given, problems with at most this many unknowns are solved by `Direct`, and larger problems never are. By
        default the cost decides.

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

    _takes_many = True
    """Whether it solves for many right-hand sides, (k, *batch, n), of an operator with `one`."""
    _takes_tolerance = True
    """Whether its call takes a tolerance `rtol`, for each problem or for all, in the place of its option."""
    _takes_start = True
    """Whether a start x0 saves steps."""

    def __post_init__(self) -> None:
        CG(damping=self.damping, rtol=self.rtol, max_iter=self.max_iter)
        if not (self.dense is None or is_integer(self.dense, 0)):
            message = f"dense={self.dense!r}; expected a number of unknowns >= 0, or None for the backend's own"
            raise OptionError(message)

    def __call__(
        self,
        A: Operator | Matvec,
        b: Array,
        /,
        *,
        loop: Loop | None = None,
        x0: Array | None = None,
        rtol: Tolerance = None,
    ) -> Solution:
        """Solve A x = b for b: (*batch, n); status: batch.

        `rtol` stands for the option in this call: a number, or one for each problem, (*batch, 1). A dense solve has no
        use for it.
        """
        backend = backend_of_system(b, "dil.linear.Auto", x0)
        A, loop = as_operator(A), backend.loops.while_loop if loop is None else loop
        is_step = rtol is not None
        rtol = self.rtol if rtol is None else rtol
        found = solved_by_given_matrix(A, b, backend, self.damping)
        if found is not None:
            return _with_choice(found, Choice.of(Tried.DIRECT, found, Reason.GIVEN, FEWEST_TRIED))
        found = solved_by_inverse(A, b, backend) if self.damping == 0 and self.dense is None else None
        if found is not None:
            return _with_choice(found, Choice.of(Tried.DIRECT, found, Reason.FEW, FEWEST_TRIED))
        plan = self._plan(A, b, backend)
        sparse = self._sparse(A, b, plan, backend, loop=loop, x0=x0, rtol=rtol, is_step=is_step)
        if sparse.solution is not None:
            return sparse.solution
        if plan.dense_first:
            first, sign = Direct(self.damping)(A, b, loop=loop), None
            first = _with_choice(first, Choice.of(Tried.DIRECT, first, *self._reason(A, b.shape[-1])))
        else:
            known = self._known_symmetric(A, b, plan, backend, loop=loop, rtol=rtol) if x0 is None else None
            if known is not None:
                return with_more_products(known, sparse.spent)
            first, sign = self._iterated(A, b, plan, backend, loop=loop, x0=x0, rtol=rtol)
        last = self._solved(first, sign, A, b, plan, loop=loop, rtol=rtol)
        return with_more_products(last, sparse.spent) if sparse.spent else last

    def _known_symmetric(
        self, A: Operator, b: Array, plan: Plan, backend: Backend, *, loop: Loop, rtol: Tolerance
    ) -> Solution | None:
        """Solve as symmetric systems, without first steps, those of a function whose matrix was symmetric before."""
        looks = not (A.symmetric or plan.has_fallback) and A.one is None and size(b.shape) > 0
        if not looks or not KNOWN_SYMMETRIC.get(A._source, b.shape[-1]):
            return None
        sign = signs(shifted(A, self.damping), b, backend)
        if backend.loops.number(array_namespace(b).all(sign != 0)) is not True:
            return None
        found = with_more_products(self._by_symmetry(A, b, sign, loop=loop, rtol=rtol), PRODUCTS)
        return _with_choice(found, Choice.of(Tried.SYMMETRIC, found, Reason.ITERATES, FEWEST_TRIED))

    def _sparse(
        self,
        A: Operator,
        b: Array,
        plan: Plan,
        backend: Backend,
        *,
        loop: Loop,
        x0: Array | None,
        rtol: Tolerance,
        is_step: bool,
    ) -> Sparse:
        """Return the solution by a sparse factorisation, or by the few steps that show whether it is due."""
        plain = self.max_iter is None and self.dense is None
        if not plain or plan.dense_first:
            return Sparse(None, 0)
        call = Call(loop, rtol, is_step, plan.most if plan.has_fallback else None)
        return by_sparse_factor(shifted(A, self.damping), b, backend, call, looks=x0 is None)

    def takes_dense(self, A: Operator | Matvec, b: Array, /) -> bool:
        """Return whether a dense solve comes first, which is exact whatever the tolerance; b: (*batch, n).

        The options and the sizes of A and b decide, so a program that is traced can ask.
        """
        return self._plan(as_operator(A), b, backend_of_system(b, "dil.linear.Auto")).dense_first

    def _plan(self, A: Operator, b: Array, backend: Backend) -> Plan:
        """Return what the options and the sizes of a system decide; b: (*batch, n)."""
        n, max_iter = b.shape[-1], self.max_iter
        fits = size((b if A.one is None else b[0, ...]).shape) * n <= MAX_DENSE_NUMBERS
        budget = krylov_budget(A, b, backend) if fits and self.dense is None else 0
        dense_first = n <= self.dense if self.dense is not None else fits and budget == 0
        has_fallback = fits and self.dense is None and max_iter is None and not dense_first
        dense_allowed = dense_first or (has_fallback and n <= backend.dense.crossover.general)
        trial, most = (budget // 4, budget * 3 // 2) if has_fallback else (None, max_iter)
        return Plan(dense_first, has_fallback, dense_allowed, trial, most)

    def _iterated(
        self,
        A: Operator,
        b: Array,
        plan: Plan,
        backend: Backend,
        *,
        loop: Loop,
        x0: Array | None,
        rtol: Tolerance,
    ) -> tuple[Solution, Array | None]:
        """Solve by an iteration. Return also the signs of problems whose matrix was found to be symmetric, if any."""
        trial, most = plan.trial, plan.most
        hands_over = not (plan.has_fallback or A.symmetric)
        if A.symmetric and x0 is None:
            first = racing_cg(
                shifted(A, self.damping),
                b,
                rtol=tolerance_of_call(rtol, None, b, backend),
                max_iter=max(100, 10 * b.shape[-1]) if most is None else most,
                backend=backend,
                loops=with_loop(backend.loops, loop),
                trial=None if trial is None else 3 * trial,
            )
        elif not A.symmetric and A.rmatvec is not None and x0 is None:
            first = scaled_bicgstab(
                BiCGSTAB(self.damping, max_iter=END if hands_over and (most is None or most > END) else most),
                shifted(A, self.damping),
                b,
                backend=backend,
                loop=loop,
                rtol=rtol,
                trial=PATIENCE if hands_over else trial,
                looks=not plan.has_fallback and self.dense is None and A.one is None,
            )
        else:
            solver = (CG if A.symmetric else BiCGSTAB)(self.damping, max_iter=most)
            first = solver.tried(A, b, loop=loop, x0=x0, rtol=rtol, trial=trial)
        kind, extra = Tried.CG if A.symmetric else Tried.BICGSTAB, first.extra or {}
        sign = extra.get("sign")
        if sign is not None and backend.loops.number(array_namespace(b).all(sign != 0)) is True:
            KNOWN_SYMMETRIC.keep(A._source, b.shape[-1], value=True)
        first = _with_choice(first, Choice.of(kind, first, Reason.ITERATES, FEWEST_TRIED, extra.get("raced")))
        return (first if sign is None else self._as_symmetric(first, sign, A, b, loop=loop, rtol=rtol)), sign

    def _solved(
        self,
        first: Solution,
        sign: Array | None,
        A: Operator,
        b: Array,
        plan: Plan,
        *,
        loop: Loop,
        rtol: Tolerance,
    ) -> Solution:
        """Return the solution, with the problems that failed solved again by what may solve them."""
        if plan.has_fallback:
            curvature_failures = (Status.INDEFINITE, Status.SINGULAR) if plan.dense_allowed else ()
            failures = (Status.MAX_ITER, Status.STAGNATED, *curvature_failures)
            first = _retry(first, failures, Direct(self.damping), Tried.DIRECT, A, b, loop)
        if A.one is not None:
            return first  # a right-hand side that failed is solved again by itself
        if plan.dense_allowed:
            least_norm = partial(LeastNorm(self.damping), rtol=rtol)
            return _retry(first, (Status.SINGULAR,), least_norm, Tried.LEAST_NORM, A, b, loop)
        if A.symmetric:
            minres = partial(MINRES(self.damping, max_iter=self.max_iter), rtol=rtol)
            return _retry(first, (Status.INDEFINITE, Status.SINGULAR), minres, Tried.MINRES, A, b, loop)
        idr = partial(IDR(8, self.damping, max_iter=self.max_iter), rtol=rtol)
        ends = self.max_iter is not None and self.max_iter <= END
        failed = _ended(first, (Status.SINGULAR, Status.STAGNATED, *(() if ends else (Status.MAX_ITER,))))
        # IDR is no better for a symmetric matrix
        failed = failed if sign is None else failed & (sign[..., 0] == 0)
        return _again(first, failed, idr, Tried.IDR, A, b, loop)

    def _as_symmetric(
        self, first: Solution, sign: Array, A: Operator, b: Array, *, loop: Loop, rtol: Tolerance
    ) -> Solution:
        """Solve again the problems whose matrix was found to be symmetric; see `signs`."""

        def solver(_: Matvec, b: Array, /, *, loop: Loop) -> Solution:
            return self._by_symmetry(A, b, sign, loop=loop, rtol=rtol)

        return _again(first, sign[..., 0] != 0, solver, Tried.SYMMETRIC, A, b, loop)

    def _by_symmetry(self, A: Operator, b: Array, sign: Array, *, loop: Loop, rtol: Tolerance) -> Solution:
        """Solve systems whose matrix is symmetric, with the signs that `signs` says."""
        system = times_sign(shifted(A, self.damping), sign)
        found = replace(self, damping=0.0)(system, sign * b, loop=loop, rtol=rtol)
        # what is indefinite is no failure of a matrix that was not said to be positive definite
        return found._replace(extra={"products": (found.extra or {})["products"]})

    def _reason(self, A: Operator, n: int) -> tuple[Reason, int]:
        """Return why a dense solve comes first, and the limit that decided."""
        if self.dense is not None:
            return Reason.ASKED, self.dense
        if n <= FEWEST_TRIED:
            return Reason.FEW, FEWEST_TRIED
        return (Reason.CHEAPER_THAN_CG if A.symmetric else Reason.CHEAPER_THAN_BICGSTAB), FEWEST_TRIED


def _with_choice(solution: Solution, choice: Choice) -> Solution:
    """Return a solution that tells what was chosen."""
    extra = {name: x for name, x in (solution.extra or {}).items() if name not in ("raced", "sign")}
    return solution._replace(extra={**extra, "choice": choice})


def _retry(
    first: Solution, failures: Sequence[Status], second: LinearSolver, kind: Tried, A: Operator, b: Array, loop: Loop
) -> Solution:
    """Return the solution, with the problems whose first status is in `failures` solved again by `second`."""
    return _again(first, _ended(first, failures), second, kind, A, b, loop)


def _ended(first: Solution, failures: Sequence[Status]) -> Array:
    """Return the problems whose status is one of the failures, shape batch."""
    assert first.status is not None
    selected: Array = first.status != first.status
    for failure in failures:
        selected = selected | (first.status == int(failure))
    return selected


def _again(
    first: Solution, selected: Array, second: LinearSolver, kind: Tried, A: Operator, b: Array, loop: Loop
) -> Solution:
    """Return the solution, with the selected problems solved again by `second`; selected: batch."""
    backend, xp = backend_of_system(b, "dil.linear.Auto"), array_namespace(b)
    assert first.status is not None
    assert first.iterations is not None
    assert first.residual is not None
    some = xp.any(selected)
    if backend.loops.number(some) is False:
        return first

    assert first.extra is not None
    indefinite = first.extra.get("indefinite", selected & ~selected) | (first.status == int(Status.INDEFINITE))
    products = first.extra["products"]
    start = SoFar(first.value, first.status, first.iterations, first.residual, products, indefinite)
    last: SoFar = backend.loops.run_if(some, lambda s: solve_again(second, A, b, selected, s, loop), start)
    choice = first.extra["choice"].then(kind, selected, last.status, last.steps)
    extra = {**first.extra, "products": last.products, "indefinite": last.indefinite, "choice": choice}
    return Solution(last.x, last.status, last.steps, last.residual, extra)
