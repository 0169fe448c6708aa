"""The choice of a sparse factorisation by the default linear solver."""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

from dil._base.arrays import array_namespace, eps, size
from dil._base.errors import OptionError
from dil._base.operator import Operator, Source
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Loop
from dil._frameworks.protocol import Backend
from dil.linear._bicgstab import BiCGSTAB
from dil.linear._cg import CG
from dil.linear._choice import Choice
from dil.linear._choice_in_words import Reason, Tried
from dil.linear._dense_cost import FEWEST_TRIED, step_cost
from dil.linear._found_pattern import Search, find_pattern
from dil.linear._known_patterns import KNOWN_PATTERNS
from dil.linear._sparse_cost import is_cheaper, may_be_cheaper, steps_to_come
from dil.linear._sparse_direct import SparseDirect, is_wrong, most_products, with_choice
from dil.linear._sparse_factor import import_sparse
from dil.linear._tolerance import Tolerance

FIRST = 8
"""The steps of the iteration after which a system that is not solved is looked at."""
FIRST_OF_STEP = 16
"""The same for an inexact step of Newton's method: the matrices of the next ones may be easier."""
TRIAL = 4
"""The steps after which it is looked at if the relative residual is above rtol ** (2 / 7)."""
MOST_PRODUCTS = 100
"""The most products of that look, which is taken once for a function and its shapes."""
FEWEST_UNKNOWNS = 256
"""Below this number of unknowns for each problem, a dense solve costs little more."""
NUMBER = 1 / 4
"""Nanoseconds for a number that a product makes, of vectors that fit into the cache."""
STEP_SHARE = 0.4
"""What a factorisation for an inexact step may cost, as a share of a solve to the full. All the steps of Newton's
method together iterate about 2.3 times as long as one such solve, and each of 6 would be factorised."""


class Sparse(NamedTuple):
    """A solution, or None if another solver is to find one, and the products that were spent in vain."""

    solution: Solution | None
    spent: int


NOTHING = Sparse(None, 0)


class Call(NamedTuple):
    """How a call of the default solver asks for a solution."""

    loop: Loop
    rtol: Tolerance
    is_step: bool
    """Whether the call names the tolerance, as an inexact step of Newton's method does."""
    most: int | None
    """The most steps of an iteration, if a dense solve follows them."""


def by_sparse_factor(A: Operator, b: Array, backend: Backend, call: Call, *, looks: bool = True) -> Sparse:
    """Solve A x = b, b: (*batch, n), by a sparse factorisation, where this pays and numbers are on the host.

    What pays is decided once for a function and its shapes, for inexact steps apart. Where 8 steps of CG or BiCGSTAB
    solve the system, they have. Otherwise, or where 4 of them are slow, the pattern of the matrix is found. The
    factorisation pays if it costs less than the steps that the pace of the first ones promises. Sizes and counts
    decide, never a clock. Without `looks`, as where a start may save steps, nothing is decided.
    """
    source, n = A._source if A.one is None else A.one._source, b.shape[-1]
    if source is None or n < FEWEST_UNKNOWNS or size(b.shape) == 0 or not (_is_on_host(backend, b) and _has_scipy()):
        return NOTHING
    pays = KNOWN_PATTERNS.pays(source, n, step=call.is_step)
    if not call.is_step and KNOWN_PATTERNS.pays(source, n, step=True):
        pays = True  # a solve to the full iterates longer than an inexact step, whatever its right-hand side
    if pays is None:
        return _looked(A, b, source, backend, call) if looks and A.one is None else NOTHING
    if not pays:
        return NOTHING
    solution = SparseDirect(KNOWN_PATTERNS.get(source, n))(A, b)
    if _is_solved(solution):
        return Sparse(with_choice(solution, Reason.SPARSE_PAID), 0)
    spent = most_products(solution)
    if looks and A.one is None and is_wrong(solution):
        # what pays was decided for another pattern: of a function with the same code, or where an entry was zero
        return _looked(A, b, source, backend, call, spent=spent, is_new=True)
    for step in (False, True):
        KNOWN_PATTERNS.decide(source, n, pays=False, step=step)
    return Sparse(None, spent)


def _looked(
    A: Operator, b: Array, source: Source, backend: Backend, call: Call, *, spent: int = 0, is_new: bool = False
) -> Sparse:
    """Return the solution by a few steps, or by the factorisation if they show that it pays.

    `spent` are the products that were spent before. Where the matrix `is_new`, a pattern that is known is not that of
    it.
    """
    n, decide = b.shape[-1], partial(KNOWN_PATTERNS.decide, source, b.shape[-1])
    most = FIRST_OF_STEP if call.is_step else FIRST
    solver, kind = (CG(max_iter=most), Tried.CG) if A.symmetric else (BiCGSTAB(max_iter=most), Tried.BICGSTAB)
    first = solver.tried(A, b, loop=call.loop, rtol=call.rtol, trial=None if call.is_step else TRIAL)
    choice = Choice.of(kind, first, Reason.ITERATES, FEWEST_TRIED)
    if _is_solved(first):
        first = with_more_products(first, spent)
        return Sparse(first._replace(extra={**(first.extra or {}), "choice": choice}), 0)
    spent += most_products(first)
    budget, known = _budget(A, b, first, backend, call), None if is_new else KNOWN_PATTERNS.get(source, n)
    search = Search(known, 0)
    if known is None and may_be_cheaper(n, budget):
        search = find_pattern(A, b, backend, MOST_PRODUCTS)
        spent += search.products
        if search.pattern is None:
            decide(pays=False, step=not call.is_step)
    pays = search.pattern is not None and is_cheaper(search.pattern, budget)
    decide(pays=pays, step=call.is_step)
    if search.pattern is None or not pays:
        return Sparse(None, spent)
    pattern = known if known is not None else KNOWN_PATTERNS.add(source, search.pattern)
    last = SparseDirect().by_search(A, b, search, pattern, backend)
    if not _is_solved(last):
        if known is not None and is_wrong(last):
            return _looked(A, b, source, backend, call, spent=spent + most_products(last), is_new=True)
        decide(pays=False, step=call.is_step)
        return Sparse(None, spent + most_products(last))
    last, extra = with_more_products(last, spent), last.extra or {}
    xp = array_namespace(b)
    assert first.iterations is not None
    all_steps = first.iterations + xp.astype(last.iterations, xp.int32)
    choice = choice.then(Tried.SPARSE, extra["colours"] >= 0, last.status, all_steps)  # type: ignore[arg-type]
    choice = choice._replace(colours=extra["colours"], fill=extra["fill"])
    return Sparse(last._replace(extra={**(last.extra or {}), "choice": choice}), 0)


def _budget(A: Operator, b: Array, first: Solution, backend: Backend, call: Call) -> float:
    """Return the nanoseconds that a factorisation of one problem may take, by the steps that are to come without it."""
    xp = array_namespace(b)
    error, steps = float(xp.max(first.residual)), int(xp.max(first.iterations))
    machine = eps(xp, b.dtype) ** 0.75
    rtol = machine if call.is_step or call.rtol is None else float(call.rtol)
    to_come = steps_to_come(steps, error, max(rtol, machine))
    if call.most is not None:
        to_come = min(to_come, call.most)
    problems = size(b.shape) // b.shape[-1]
    share = STEP_SHARE if call.is_step else 1.0
    return share * to_come * step_cost(A, b, backend, NUMBER) / problems


def with_more_products(solution: Solution, spent: int) -> Solution:
    """Return the solution with further products counted."""
    extra = solution.extra or {}
    return solution._replace(extra={**extra, "products": extra["products"] + spent})


def _is_solved(solution: Solution) -> bool:
    return bool(array_namespace(solution.value).all(solution.status == int(Status.CONVERGED)))


def _is_on_host(backend: Backend, x: Array) -> bool:
    """Return whether the numbers of x are at hand: not in a program, nor on a device, which iterates faster."""
    return isinstance(backend.loops.number(backend.constant(x)[(0,) * x.ndim]), int | float)


@cache
def _has_scipy() -> bool:
    """Return whether SciPy is there: without it nothing is lost but time."""
    try:
        import_sparse()
    except OptionError:
        return False
    return True
