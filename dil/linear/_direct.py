"""Solve A x = b by a dense matrix: build it from products with the identity, then factor by Cholesky or LU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from dil._base.arrays import (
    array_namespace,
    device,
    eps,
    eye,
    finite_max,
    full,
    max_abs,
    nonzero_max_abs,
    nonzero_or_one,
    size,
)
from dil._base.numpy_inverse import numpy_inverse
from dil._base.operator import Operator, as_operator
from dil._base.reciprocal import reciprocal
from dil._base.small_inverse import KnownInverse, Numbers, condition_limit, residual_slack, small_inverse
from dil._base.solution import Solution
from dil._base.status import Status, first_of
from dil._base.typing import Array, Arrays, Loop, Matvec
from dil._frameworks.loops import runs_later
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import standard_normal
from dil.linear._cg import CG
from dil.linear._dense_cost import rows_at_once
from dil.linear._equilibration import Equilibrated, equilibrate, equilibrate_by_logarithms
from dil.linear._right_hand_side import backend_of_system

FEW_NUMBERS = 2**10
"""The most numbers of matrices that are solved with on the host."""
MOST_INVERTED = 32
"""The most unknowns of one problem whose matrix is inverted."""
MOST_IN_PYTHON = 5
"""The most unknowns for which Python numbers are faster than NumPy."""


@dataclass(frozen=True)
class Direct:
    """Solve (A + damping I) x = b by a factorisation of the dense matrix, separately for each problem of a batch.

    Parameters
    ----------
    damping : float
        The number added to the diagonal of A, in the units of A.

    Notes
    -----
    The matrix costs n products with A. As many as memory allows are taken together, where the framework can batch them.
    A symmetric matrix is factored by Cholesky. Other matrices, and symmetric ones that are not positive definite, are
    factored by LU. One step of refinement follows where a problem of the batch needs it (Higham 2002, Algorithm 12.1).

    The rows and columns of A are scaled first, so that the units of the unknowns and of the equations have no effect. A
    matrix that looks singular is scaled by the logarithms of its entries (Curtis and Reid 1972), and solved again.
    What follows holds for the scaled system. A problem counts as solved under two conditions. Its residual is at the
    level of rounding, ||b - A x|| <= 16 eps sqrt(n) (||A|| ||x|| + ||b||). Its condition number is below the larger of
    5e-5 / eps and eps ** (-2/3): 2.3e11 in float64 and 4.1e4 in float32. The condition number is estimated from below,
    with b and a random right-hand side. Any other problem with finite data ends SINGULAR. Entries of its solution that
    are not finite are replaced by zero. Norms are maximum norms.

    Raises
    ------
    OptionError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np, dil
    >>> H = np.asarray([[4.0, 1.0], [1.0, -3.0]])
    >>> x = dil.linear.Direct()(lambda p: p @ H, np.asarray([1.0, 2.0]))
    >>> np.allclose(H @ x.value, [1.0, 2.0])
    True
    """

    damping: float = 0.0

    _takes_many = True
    """Whether it solves for many right-hand sides, (k, *batch, n), of an operator with `one`."""

    def __post_init__(self) -> None:
        CG(damping=self.damping)

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None
    ) -> Solution:
        """Solve A x = b for b: (*batch, n); status: batch. The start x0 is ignored."""
        backend = backend_of_system(b, "dil.linear.Direct", x0)
        A = as_operator(A)
        found = solved_by_inverse(A, b, backend) if self.damping == 0 else None
        if found is not None:
            return found
        matrix = dense(A, b, backend) if A.one is None else dense(A.one, b[0, ...], backend)
        if self.damping:
            matrix = matrix + self.damping * eye(b.shape[-1], b)
        if A._inverse is None and not A.probes:
            inverse = inverse_of_few(matrix, b, backend, symmetric=A.symmetric)
            found = solved_by_inverse(replace(A, _inverse=inverse), b, backend)
            if found is not None:
                return found
        return solve_dense(matrix, b, backend, symmetric=A.symmetric, probes=A.probes)


def inverse_of_few(matrix: Array, b: Array, backend: Backend, *, symmetric: bool) -> KnownInverse | None:
    """Return the inverse of the matrix (n, n) of one problem; None for more unknowns, or if it needs a closer look."""
    if not 0 < b.shape[-1] <= MOST_INVERTED or b.ndim != 1:
        return None
    rows = backend.loops.numbers(matrix)
    if not isinstance(rows, list):
        return None
    if len(rows) == 1:
        return reciprocal(rows, eps(array_namespace(b), b.dtype), symmetric=symmetric)
    invert = small_inverse if len(rows) <= MOST_IN_PYTHON else numpy_inverse
    return invert(rows, eps(array_namespace(b), b.dtype), symmetric=symmetric)


def solution_of_few(A: Operator, b: Array, backend: Backend) -> tuple[Array | None, Operator]:
    """Return x with A x = b for one problem of few unknowns, and A with its matrix if that was made on the way.

    None stands for x if there are more unknowns, or if A or b needs a closer look: A is badly conditioned, for example,
    or symmetric and not positive definite. Whoever needs no more than x saves the arrays of a `Solution`.
    """
    if b.ndim != 1 or not 0 < b.shape[-1] <= MOST_INVERTED or not isinstance(numbers := backend.loops.numbers(b), list):
        return None, A
    matrix = dense(A, b, backend)
    inverse = inverse_of_few(matrix, b, backend, symmetric=A.symmetric)
    found = None if inverse is None else numbers_times_inverse(inverse, numbers, b)
    x = None if found is None else backend.asarray(found[0], dtype=b.dtype, device=device(b))
    return x, replace(A, matrix=matrix)


def solved_by_inverse(A: Operator, b: Array, backend: Backend) -> Solution | None:
    """Return the solution by the inverse of a small matrix, or None if there is none, or b needs a closer look."""
    inverse = A._inverse
    found = None if inverse is None or b.ndim != 1 else times_inverse(inverse, b, backend)
    if inverse is None or found is None:
        return None
    xp, place, (x, residual) = array_namespace(b), device(b), found

    def array(x: Any, dtype: Any) -> Array:
        return backend.asarray(x, dtype=dtype, device=place)

    count, condition = array(len(x), xp.int32), array(inverse.condition, b.dtype)
    extra = {"condition": condition, "indefinite": array(False, xp.bool), "products": count}
    return Solution(array(x, b.dtype), array(int(Status.CONVERGED), xp.int32), count, array(residual, b.dtype), extra)


def times_inverse(inverse: KnownInverse, b: Array, backend: Backend) -> tuple[list[float], float] | None:
    """Return A^-1 b and its relative residual, or None if b, (n,), needs a closer look or cannot be read."""
    numbers = backend.loops.numbers(b)
    return numbers_times_inverse(inverse, numbers, b) if isinstance(numbers, list) else None


def numbers_times_inverse(inverse: KnownInverse, b: Numbers, like: Array) -> tuple[Numbers, float] | None:
    """Return A^-1 b and its relative residual, or None if b needs a closer look; its dtype is that of `like`."""
    xp = array_namespace(like)
    found = inverse.solve(b, eps(xp, like.dtype))
    # a Python number: NumPy warns where it makes a float32 of a number that is too large for it
    return found if found is not None and max(map(abs, found[0])) <= finite_max(xp, like.dtype) else None


def dense(A: Operator, b: Array, backend: Backend) -> Array:
    """Return the matrix of each problem, (*batch, n, n), from products with the columns of the identity."""
    if A.matrix is not None:
        return A.matrix
    xp, n = array_namespace(b), b.shape[-1]
    if n == 0:
        return full(b, 0.0, shape=(*b.shape, n))
    rows = eye(n, b)
    if b.ndim > 1:
        rows = xp.broadcast_to(xp.reshape(rows, (n, *(1,) * (b.ndim - 1), n)), (n, *b.shape))
    columns = backend.loops.map_rows(A, rows, rows_at_once(A, b, backend))
    matrix: Array = xp.moveaxis(columns, 0, -1)
    return matrix


def solve_dense(
    matrix: Array,
    b: Array,
    backend: Backend,
    *,
    symmetric: bool,
    probes: Arrays = (),
) -> Solution:
    """Solve dense systems; matrix: (*batch, n, n), b: (*batch, n). See `Direct` for the status.

    `extra["probes"]` holds the solutions for the right-hand sides `probes`, (*batch, n). A matrix may have many
    right-hand sides, b: (k, *batch, n). It is factorised once, and the status is that of each one, (k, *batch).
    """
    host = backend.dense.host(matrix, b, *probes) if b.shape[-1] > 1 and size(matrix.shape) <= FEW_NUMBERS else None
    if host is not None:
        there = [host.give(x) for x in (matrix, b, *probes)]
        run = partial(solve_dense, backend=host.backend, symmetric=symmetric, probes=tuple(there[2:]))
        return _from_host(host.run(run, *there[:2]), host.take)
    if b.ndim < matrix.ndim:
        found = _solve_rows(matrix, b[..., None, :], backend, symmetric, probes)
        return _with_shapes(found, lambda x: x[..., 0, :], lambda x: x[..., 0])
    xp = array_namespace(b)
    found = _solve_rows(matrix, xp.moveaxis(b, 0, -2), backend, symmetric, probes)
    return _with_shapes(found, lambda x: xp.moveaxis(x, -2, 0), lambda x: xp.moveaxis(x, -1, 0))


def _from_host(found: Solution, take: Callable[[Any], Array]) -> Solution:
    """Return a solution whose arrays are taken back from a host."""
    extra = {name: tuple(map(take, x)) if name == "probes" else take(x) for name, x in (found.extra or {}).items()}
    return Solution(take(found.value), take(found.status), take(found.iterations), take(found.residual), extra)


def _with_shapes(found: Solution, vectors: Callable[[Array], Array], numbers: Callable[[Any], Array]) -> Solution:
    """Return a solution for right-hand sides (*batch, k, n) in the shapes of the caller."""
    extra = {name: x if name == "probes" else numbers(x) for name, x in (found.extra or {}).items()}
    status, iterations, residual = map(numbers, (found.status, found.iterations, found.residual))
    return Solution(vectors(found.value), status, iterations, residual, extra)


def _solve_rows(matrix: Array, b: Array, backend: Backend, symmetric: bool, probes: Arrays) -> Solution:
    """Solve dense systems; matrix: (*batch, n, n), b: (*batch, k, n), status: (*batch, k)."""
    if b.shape[-1] == 1:
        return _divide(matrix[..., 0], b[..., 0], symmetric, probes)

    loops = backend.loops
    if size(b.shape) > 0 and runs_later(loops, b):
        return _solve_in_turn(matrix, b, backend, symmetric, probes)

    def again(found: Solution) -> Solution:
        scaled = equilibrate_by_logarithms(matrix, backend, symmetric=symmetric)
        return _with_solved(found, _solve_scaled(scaled, b, backend, symmetric, probes))

    found = _solve_scaled(equilibrate(matrix, symmetric=symmetric), b, backend, symmetric, probes)
    return found if size(b.shape) == 0 else loops.run_if(_any_singular(found), again, found)


class Turn(NamedTuple):
    """The state of the solves in the one and then in the other scales."""

    k: Array
    found: Solution


def _solve_in_turn(matrix: Array, b: Array, backend: Backend, symmetric: bool, probes: Arrays) -> Solution:
    """Solve in other scales what looks singular, by a loop: a program holds the solve once, and compiles it once."""
    xp = array_namespace(b)
    numbers, code = full(b[..., 0], 0.0), full(b[..., 0], int(Status.SINGULAR), dtype=xp.int32)
    extra = {"condition": numbers, "indefinite": code < 0, "products": code}
    start = Solution(full(b, 0.0), code, code, numbers, {**extra, **({"probes": probes} if probes else {})})

    def advance(s: Turn) -> Turn:
        def other(_: Equilibrated) -> Equilibrated:
            return equilibrate_by_logarithms(matrix, backend, symmetric=symmetric)

        scaled = backend.loops.run_if(s.k > 0, other, equilibrate(matrix, symmetric=symmetric))
        new = _solve_scaled(scaled, b, backend, symmetric, probes)
        return Turn(s.k + 1, _with_solved(s.found, new, is_first=s.k == 0))

    def goes_on(s: Turn) -> Array:
        return (s.k == 0) | ((s.k == 1) & _any_singular(s.found))

    last: Turn = backend.loops.while_loop(goes_on, advance, Turn(full(b, 0, shape=(), dtype=xp.int32), start))
    return last.found


def _any_singular(found: Solution) -> Array:
    return array_namespace(found.value).any(found.status == int(Status.SINGULAR))  # type: ignore[no-any-return]


def _with_solved(found: Solution, again: Solution, is_first: Array | bool = False) -> Solution:
    """Return a solution with the systems that looked singular and are solved in other scales; status: (*batch, k)."""
    xp = array_namespace(found.value)
    before, after = xp.asarray(found.status), xp.asarray(again.status)
    better: Array = ((before == int(Status.SINGULAR)) & (after == int(Status.CONVERGED))) | is_first
    extra, new = dict(found.extra or {}), again.extra or {}
    for name in ("condition", "indefinite", "products"):
        extra[name] = xp.where(better, new[name], extra[name])
    if "probes" in extra:
        of_problem = xp.any(better, axis=-1)[..., None]
        extra["probes"] = tuple(xp.where(of_problem, x, y) for x, y in zip(new["probes"], extra["probes"], strict=True))
    return found._replace(
        value=xp.where(better[..., None], again.value, found.value),
        status=xp.where(better, after, before),
        iterations=xp.where(better, again.iterations, found.iterations),
        residual=xp.where(better, again.residual, found.residual),
        extra=extra,
    )


def _solve_scaled(system: Equilibrated, b: Array, backend: Backend, symmetric: bool, probes: Arrays) -> Solution:
    """Solve systems whose matrices are scaled; b: (*batch, k, n), status: (*batch, k)."""
    xp, (k, n) = array_namespace(b), b.shape[-2:]
    matrix, rows, columns, unit_A = system
    rows, columns, unit_A = rows[..., None, :], columns[..., None, :], unit_A[..., None]
    largest = max_abs(b)
    zero = largest == 0
    unit = xp.where(zero, 1.0, largest)[..., None]
    b = rows * (b / unit)
    scaled_size = nonzero_max_abs(b)
    # a further right-hand side e gives a lower bound of the condition number, ||A|| ||A^-1 e|| / ||e||; e is random,
    # because an e with a pattern can be orthogonal to a null vector, such as the constants of a Laplacian
    probe = standard_normal(backend, full(b, 0.0, shape=(n,)), 1, 0)[0, ...]
    probe = xp.broadcast_to(probe / nonzero_max_abs(probe), (*b.shape[:-2], 1, n))
    given = [p[..., None, :] for p in probes]
    units = [nonzero_max_abs(p) for p in given]
    scaled = [rows * (p / unit) for p, unit in zip(given, units, strict=True)]
    rhs = xp.concat([b / scaled_size, probe, *scaled], axis=-2).mT
    # the probes of a layer may hold NaN of their own
    x, not_positive = _Factor(matrix, backend, symmetric).solve(rhs, k + 1)
    norm_A, machine_eps = max_abs(xp.sum(xp.abs(matrix), axis=-1))[..., None], eps(xp, b.dtype)
    slack = residual_slack(machine_eps, n)

    def residual_of(x: Array) -> tuple[Array, Array]:
        r = rhs - matrix @ x
        return r, max_abs(r.mT)[..., :k]

    def rounding_bound(x: Array) -> Array:
        return slack * (norm_A * max_abs(x.mT)[..., :k] + 1.0)

    def refine(s: Refined) -> Refined:
        needed = xp.any(s.needs_step, axis=-1)[..., None, None]
        finer = xp.where(needed, s.x + backend.dense.lu_solve(matrix, s.r), s.x)
        return Refined(s.needs_step, finer, *residual_of(finer))

    start = Refined(zero, x, *residual_of(x))
    # False for NaN, which no step repairs
    start = start._replace(needs_step=~zero & (start.size > 0.25 * rounding_bound(x)))
    last = backend.loops.run_if(xp.any(start.needs_step), refine, start)
    x, residual = last.x.mT, last.size
    length = max_abs(x)
    condition = norm_A * xp.maximum(length[..., :k], length[..., k : k + 1])
    accurate = residual <= rounding_bound(last.x)
    solved = zero | (accurate & (condition < condition_limit(machine_eps)))
    count = xp.where(zero, 0, full(largest, n, dtype=xp.int32))
    value, fits = _multiply(x[..., :k, :] * columns * scaled_size, unit, unit_A)
    finite = xp.isfinite(largest) & xp.isfinite(norm_A) & (zero | ~solved | xp.all(fits, axis=-1))
    extra = {"condition": condition, "indefinite": not_positive[..., None] & solved & ~zero, "products": count}
    if probes:
        solutions = [x[..., k + 1 + j, :] * columns[..., 0, :] for j in range(len(probes))]
        extra["probes"] = tuple(x * (unit / unit_A)[..., 0, :] for x, unit in zip(solutions, units, strict=True))
    return Solution(
        xp.where(zero[..., None], full(value, 0.0), value),
        first_of([(solved & finite, Status.CONVERGED), (finite, Status.SINGULAR)], Status.NON_FINITE),
        count,
        xp.where(zero, 0.0, xp.where(xp.isfinite(residual), residual, 1.0)),
        extra,
    )


def _divide(a: Array, b: Array, symmetric: bool, probes: Arrays) -> Solution:
    """Solve systems of one unknown, with the statuses of `Direct`; a: (*batch, 1), b: (*batch, k)."""
    xp = array_namespace(b)
    zero, regular, finite = b == 0, a != 0, xp.isfinite(a) & xp.isfinite(b)
    divisor, most = nonzero_or_one(a), finite_max(xp, b.dtype)
    size_a = xp.abs(divisor)
    fits = xp.abs(b) <= most * xp.where(size_a < 1, size_a, full(size_a, 1.0))
    solved = finite & (zero | (regular & fits))
    x = xp.where(solved, b, full(b, 0.0)) / divisor
    extra = {
        "condition": xp.where(regular | zero, full(x, 1.0), full(x, math.inf)),
        "indefinite": solved & ~zero & (a < 0) if symmetric else solved & ~solved,
        "products": xp.astype(~zero, xp.int32),
    }
    if probes:
        extra["probes"] = tuple(p / divisor for p in probes)
    status = first_of([(solved, Status.CONVERGED), (finite & ~regular, Status.SINGULAR)], Status.NON_FINITE)
    residual = xp.where(solved, full(x, 0.0), full(x, 1.0))
    return Solution(x[..., None], status, extra["products"], residual, extra)


def _multiply(x: Array, unit: Array, unit_A: Array) -> tuple[Array, Array]:
    """Return x unit / unit_A, and whether each entry fits in the dtype; zero where it does not."""
    xp = array_namespace(x)
    one, largest = full(unit_A, 1.0), finite_max(xp, x.dtype)
    small, large = xp.where(unit_A < 1, unit_A, one), xp.where(unit_A < 1, one, unit_A)
    ratio_fits = unit <= largest * small
    ratio = xp.where(ratio_fits, unit, full(unit, 0.0)) / small / large
    fits = ratio_fits & (xp.abs(x) <= largest / xp.where(ratio > 1, ratio, one))  # False for NaN
    return xp.where(fits, x, full(x, 0.0)) * ratio, fits


class Refined(NamedTuple):
    """The solutions and their residuals, before or after refinement."""

    needs_step: Array
    """Whether the residual is larger than rounding explains, (*batch, k)."""
    x: Array
    """The solutions, (*batch, n, k and the probes)."""
    r: Array
    size: Array
    """The largest entry of each of the k residuals."""


class _Factor(NamedTuple):
    """Dense matrices, (*batch, n, n), and the backend that solves with them."""

    matrix: Array
    backend: Backend
    symmetric: bool

    def solve(self, rhs: Array, count: int) -> tuple[Array, Array]:
        """Return the solution, by Cholesky or else by LU, and whether a symmetric matrix was not positive definite.

        The first `count` right-hand sides decide.
        """
        xp, backend = array_namespace(rhs), self.backend
        if not self.symmetric:
            x = backend.dense.lu_solve(self.matrix, rhs)
            return x, xp.zeros(x.shape[:-2], dtype=xp.bool, device=device(x))
        x = backend.dense.cholesky_solve(self.matrix, rhs)
        failed = ~xp.all(xp.isfinite(x[..., :count]), axis=(-2, -1), keepdims=True)

        def by_lu(x: Array) -> Array:
            return xp.where(failed, backend.dense.lu_solve(self.matrix, rhs), x)  # type: ignore[no-any-return]

        return backend.loops.run_if(xp.any(failed), by_lu, x), failed[..., 0, 0]
