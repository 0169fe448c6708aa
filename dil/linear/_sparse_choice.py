"""The choice of a sparse factorisation by the default linear solver."""

from __future__ import annotations

from functools import cache
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
from dil.linear._found_pattern import find_pattern
from dil.linear._known_patterns import KNOWN_PATTERNS
from dil.linear._pattern import Pattern
from dil.linear._sparse_cost import is_cheaper, steps_to_come
from dil.linear._sparse_direct import SparseDirect, with_choice
from dil.linear._sparse_factor import import_sparse
from dil.linear._tolerance import Tolerance

FIRST = 8
"""The steps of the iteration after which a system that is not solved is looked at."""
TRIAL = 4
"""The steps after which it is looked at if the relative residual is above rtol ** (2 / 7)."""
MOST_PRODUCTS = 100
"""The most products of that look, which is taken once for a function and its shapes."""
FEWEST_UNKNOWNS = 1024
"""Below this number of unknowns for each problem, the host would take many small matrices one by one."""


class Sparse(NamedTuple):
    """A solution, or None if another solver is to find one, and the products that were spent in vain."""

    solution: Solution | None
    spent: int


NOTHING = Sparse(None, 0)


def by_sparse_factor(
    A: Operator, b: Array, backend: Backend, *, loop: Loop, rtol: Tolerance, looks: bool = True
) -> Sparse:
    """Solve A x = b, b: (*batch, n), by a sparse factorisation, where this pays and numbers are on the host.

    What pays is decided once for a function and its shapes. Where 8 steps of CG or BiCGSTAB solve the system, they
    have. Otherwise, or where 4 of them are slow, the pattern of the matrix is found. The factorisation pays if it costs
    less than the steps that the pace of the first ones promises. Sizes and counts decide, never a clock. Without
    `looks`, as where a start may save steps, nothing is decided.
    """
    source, n = A._source if A.one is None else A.one._source, b.shape[-1]
    if source is None or n < FEWEST_UNKNOWNS or size(b.shape) == 0 or not (_is_on_host(backend, b) and _has_scipy()):
        return NOTHING
    known = KNOWN_PATTERNS.pays(source, n)
    if known is None:
        return _looked(A, b, source, backend, loop=loop, rtol=rtol) if looks and A.one is None else NOTHING
    if not known:
        return NOTHING
    solution = SparseDirect(KNOWN_PATTERNS.get(source, n))(A, b)
    if _is_solved(solution):
        return Sparse(with_choice(solution, Reason.SPARSE_PAID), 0)
    spent = _products(solution)
    if looks and A.one is None and _is_wrong(solution):
        # what pays was decided for another pattern: of a function with the same code, or where an entry was zero
        return _looked(A, b, source, backend, loop=loop, rtol=rtol, spent=spent)
    KNOWN_PATTERNS.decide(source, n, pays=False)
    return Sparse(None, spent)


def _looked(
    A: Operator, b: Array, source: Source, backend: Backend, *, loop: Loop, rtol: Tolerance, spent: int = 0
) -> Sparse:
    """Return the solution by a few steps, or by the factorisation if they show that it pays.

    `spent` are the products that were spent before.
    """
    n = b.shape[-1]
    solver, kind = (CG(max_iter=FIRST), Tried.CG) if A.symmetric else (BiCGSTAB(max_iter=FIRST), Tried.BICGSTAB)
    first = solver.tried(A, b, loop=loop, rtol=rtol, trial=TRIAL)
    choice = Choice.of(kind, first, Reason.ITERATES, FEWEST_TRIED)
    if _is_solved(first):
        first = with_more_products(first, spent)
        return Sparse(first._replace(extra={**(first.extra or {}), "choice": choice}), 0)
    search = find_pattern(A, b, backend, MOST_PRODUCTS)
    spent += _products(first) + search.products
    pays = search.pattern is not None and _pays(A, b, search.pattern, first, backend)
    KNOWN_PATTERNS.decide(source, n, pays=pays)
    if search.pattern is None or not pays:
        return Sparse(None, spent)
    pattern = KNOWN_PATTERNS.add(source, search.pattern)
    last = SparseDirect().by_search(A, b, search, pattern, backend)
    if not _is_solved(last):
        KNOWN_PATTERNS.decide(source, n, pays=False)
        return Sparse(None, spent + _products(last))
    last, extra = with_more_products(last, spent), last.extra or {}
    xp = array_namespace(b)
    assert first.iterations is not None
    all_steps = first.iterations + xp.astype(last.iterations, xp.int32)
    choice = choice.then(Tried.SPARSE, extra["colours"] >= 0, last.status, all_steps)  # type: ignore[arg-type]
    choice = choice._replace(colours=extra["colours"], fill=extra["fill"])
    return Sparse(last._replace(extra={**(last.extra or {}), "choice": choice}), 0)


def _pays(A: Operator, b: Array, pattern: Pattern, first: Solution, backend: Backend) -> bool:
    """Return whether a factorisation of each problem costs less than the steps that are to come."""
    xp = array_namespace(b)
    error, steps = float(xp.max(first.residual)), int(xp.max(first.iterations))
    rtol = eps(xp, b.dtype) ** 0.75
    problems = size(b.shape) // b.shape[-1]
    return is_cheaper(pattern, steps_to_come(steps, error, rtol) * step_cost(A, b, backend) / problems)


def with_more_products(solution: Solution, spent: int) -> Solution:
    """Return the solution with further products counted."""
    extra = solution.extra or {}
    return solution._replace(extra={**extra, "products": extra["products"] + spent})


def _products(solution: Solution) -> int:
    """Return the most products that a problem took."""
    products = (solution.extra or {})["products"]
    return int(array_namespace(products).max(products))


def _is_solved(solution: Solution) -> bool:
    return bool(array_namespace(solution.value).all(solution.status == int(Status.CONVERGED)))


def _is_wrong(solution: Solution) -> bool:
    """Return whether the pattern was wrong for a problem."""
    return bool(array_namespace(solution.value).any(solution.status == int(Status.WRONG_PATTERN)))


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
