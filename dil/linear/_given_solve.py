"""Solve A x = b by a matrix that the user gives on the host: SuperLU for a sparse one, LU for a dense one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, finite_max, full
from dil._base.given_matrix import GivenMatrix, Kept
from dil._base.operator import Operator, matrix_operator, shifted
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import load
from dil.linear._direct import Direct
from dil.linear._pattern import given_pattern
from dil.linear._sparse_factor import Matrix, Recovery, Scaled, no_answer, places_of


class Solved(NamedTuple):
    """The solutions, (k, n), of the right-hand sides of one matrix; the rest (k,)."""

    x: Any
    status: Any
    residual: Any
    condition: Any


def solved_by_given_matrix(A: Operator, b: Array, backend: Backend, damping: float) -> Solution | None:
    """Return the solution of (A + damping I) x = b for b: (n,), or (k, n) if A has `one`; None if no matrix is given.

    The matrix is factorised on the host, once for the point and both directions.
    """
    one = A if A.one is None else A.one
    given = shifted(one, damping)._given
    if given is None:
        return None
    xp = array_namespace(b)
    rows = b[None, :] if A.one is None else b
    count = rows.shape[0]
    rhs = xp.concat([rows, *(p[None, :] for p in A.probes)], axis=0) if A.probes else rows
    every = full(b, 0.0, shape=(rhs.shape[0],))
    like = (rhs, full(every, 0, dtype=xp.int32), every, every)

    def run(*arrays: Array) -> Arrays:
        *at, R = map(backend.to_numpy, arrays)
        return tuple(_solved(given, given.at(*at), R, eps(xp, b.dtype), finite_max(xp, b.dtype)))

    found = Solved._make(backend.loops.on_host(run, like, *given.arrays, backend.constant(rhs)))
    x, status, residual, condition = (part[:count, ...] for part in found)
    if A.one is None:
        x, status, residual, condition = (part[0, ...] for part in (x, status, residual, condition))
    none = full(status, 0)
    extra: dict[str, Any] = {"condition": condition, "products": none, "indefinite": none != 0}
    once = full(status, 1)
    if A.probes:
        extra["probes"] = tuple([found.x[count + j, ...] for j in range(len(A.probes))])
    return Solution(x, status, once, residual, extra)


def _solved(given: GivenMatrix, kept: Kept, rhs: Any, machine_eps: float, largest: float) -> Solved:
    """Return the solutions with the matrix, or its transpose, in float64."""
    import numpy as np

    rhs = np.asarray(rhs, dtype=float)
    if isinstance(kept.matrix, np.ndarray):
        return _by_dense(given, kept.matrix, rhs)
    if given.shift not in kept.factors:
        kept.factors[given.shift] = _scaled(kept.matrix, given.shift, machine_eps, largest)
    factor, count = kept.factors[given.shift], rhs.shape[0]
    if isinstance(factor, Status):
        answer = no_answer(rhs, count, factor)
    else:
        answer = factor.scaled.answer(rhs, count, factor.unit, transposed=given.transposed)
    return Solved(answer.x, answer.status, answer.residual, answer.condition)


class Factor(NamedTuple):
    """A scaled matrix, whose factors are made when they are used first, and the unit of its entries."""

    scaled: Scaled
    unit: float


def _scaled(matrix: Any, shift: float, machine_eps: float, largest: float) -> Factor | Status:
    """Return a sparse matrix with a shift, ready for a factorisation, or the status that says why there is none."""
    import numpy as np

    pattern = given_pattern(matrix)
    places = places_of(pattern)
    data = np.zeros(places.rows.shape)
    matrix.sort_indices()
    columns = np.repeat(np.arange(pattern.n), np.diff(matrix.indptr))
    keys = places.columns.astype(np.int64) * pattern.n + places.rows
    data[np.searchsorted(keys, columns.astype(np.int64) * pattern.n + matrix.indices)] = matrix.data
    unit = np.abs(data).max(initial=0.0)
    if not unit < np.inf:
        return Status.NON_FINITE
    unit = float(unit) or 1.0
    data /= unit
    data[places.diagonal] += shift / unit
    recovery = Recovery(pattern, None, Matrix(False, False, 0.0, machine_eps, largest))
    scaled = recovery.scaled(data)
    return Status.SINGULAR if scaled is None else Factor(scaled, unit)


def _by_dense(given: GivenMatrix, matrix: Any, rhs: Any) -> Solved:
    """Return the solutions with a dense matrix."""
    import numpy as np

    count = rhs.shape[0]
    if not np.all(np.isfinite(matrix)):
        answer = no_answer(rhs, count, Status.NON_FINITE)
        return Solved(answer.x, answer.status, answer.residual, answer.condition)
    one = matrix_operator(load("numpy").asarray(matrix.T if given.transposed else matrix))
    found = Direct(given.shift)(replace(one, one=one), rhs)
    assert found.extra is not None
    condition = found.extra.get("condition", np.full(count, np.nan))
    return Solved(found.value, found.status, found.residual, condition)
