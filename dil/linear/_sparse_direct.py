"""Solve A x = b by a sparse matrix: recover it from a few products, then factorise it on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, eps, finite_max, full, size
from dil._base.operator import Operator, as_operator
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Arrays, Loop, Matvec
from dil._frameworks.protocol import Backend
from dil.linear._cg import CG
from dil.linear._colouring import Colouring, coloured
from dil.linear._dense_cost import rows_at_once
from dil.linear._pattern import Pattern, PatternLike, given_pattern, pattern_for
from dil.linear._right_hand_side import backend_of_system
from dil.linear._sparse_factor import Recovery, import_sparse, random_vector


@dataclass(frozen=True)
class SparseDirect:
    """Solve (A + damping I) x = b by a sparse factorisation, separately for each problem of a batch.

    Parameters
    ----------
    pattern : sparse array, array of bool, "tridiagonal", int or callable
        Where J = dF/du may differ from zero: entry (i, j) where F_i depends on u_j. It is a SciPy sparse array or
        matrix, (n, n), of which the stored entries count; a NumPy array of bool, (n, n); "tridiagonal"; a number k for
        |i - j| <= k; or a function that returns one of these for n. The unknown of a layer is flattened in C order.
        The problems of a batch share the pattern. The diagonal always belongs to it.
    damping : float
        The number added to the diagonal of A, in the units of A.

    Notes
    -----
    The columns are grouped so that no two of a group share a row, and one product gives the entries of a whole group
    (Curtis, Powell and Reid 1974), largest first (Coleman and Moré 1983, section 4). Where the transpose is known, the
    rows are grouped instead if that takes no more products: a product with J^T is one pullback. A symmetric matrix is
    recovered in the same way. The groups of a pattern are found once.

    The matrix is factorised on the host by SuperLU, `scipy.sparse.linalg.splu`, in float64, once for all right-hand
    sides. Rows and columns are scaled to size one first, so units have no effect. A symmetric pattern takes pivots on
    the diagonal and a minimum degree order; where that is not exact to rounding, and for other patterns, pivots are
    chosen in the column (Demmel et al. 1999). One step of refinement follows where it is needed. Under a compiler this
    is a host callback. It needs SciPy.

    A problem ends CONVERGED if its residual is at rounding as in `Direct`, and the condition number of the scaled
    matrix is below 1 / (32 eps). It is estimated from below, with b and one step of inverse iteration from a random
    vector. Otherwise it ends SINGULAR, or NON_FINITE if the products or b are not finite.

    A wrong pattern is told and never used: a product with a random vector, and one with the solution, are compared with
    those of the matrix that was recovered. Where a row differs by more than eps ** (2/3) of its terms (3.7e-11 in
    float64), and for the solution by more than rounding, the status is WRONG_PATTERN and the solution is NaN.

    `extra` holds the numbers of `products` and `colours`, the `fill`, which is the number of entries of the factors
    beside those of the pattern, and the `condition` number.

    Raises
    ------
    OptionError
        If an option is out of range, or SciPy is absent.
    ShapeError
        If the pattern is not square, or that of another number of unknowns.

    Examples
    --------
    >>> import numpy as np, dil
    >>> def F(u, t):  # -u'' = t exp(u) between zeros
    ...     inner = np.pad(u, 1)
    ...     return 2.0 * u - inner[:-2] - inner[2:] - t * np.exp(u)
    >>> solver = dil.linear.SparseDirect("tridiagonal")
    >>> newton = dil.solvers.Newton(linear_solver=solver)
    >>> layer = dil.root(F, newton, linear_solver=solver, init=lambda t: 0.0 * t)
    >>> y, pull = dil.vjp(layer, np.full(1000, 1e-6))
    >>> round(float(np.max(y)), 4), round(float(np.max(pull(np.ones(1000))[0])))
    (0.1409, 163447)
    """

    pattern: PatternLike
    damping: float = 0.0

    _takes_many = True
    """Whether it solves for many right-hand sides, (k, *batch, n), of an operator with `one`."""

    def __post_init__(self) -> None:
        CG(damping=self.damping)
        object.__setattr__(self, "pattern", given_pattern(self.pattern))

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None
    ) -> Solution:
        """Solve A x = b for b: (*batch, n); status: batch. The start x0 is ignored."""
        backend = backend_of_system(b, "dil.linear.SparseDirect", x0)
        import_sparse()
        A = as_operator(A)
        one, like, rows = (A, b, b[None, ...]) if A.one is None else (A.one, b[0, ...], b)
        pattern = pattern_for(self.pattern, b.shape[-1])
        if size(b.shape) == 0:
            return _of_nothing(b)
        xp, way, count = array_namespace(b), _cheapest(one, pattern), rows.shape[0]
        recovery = Recovery(
            way.pattern,
            way.colouring,
            way.D is not one,
            one.symmetric,
            float(self.damping),
            eps(xp, b.dtype),
            finite_max(xp, b.dtype),
        )
        rhs = xp.concat([rows, *(p[None, ...] for p in A.probes)], axis=0) if A.probes else rows
        found = _on_host(recovery, *_products(way, like, backend), rhs, count, backend)
        probes = tuple([found.x[count + j, ...] for j in range(len(A.probes))])
        found = found._replace(x=found.x[:count, ...])
        found = found.of_one() if A.one is None else found
        wrong = self._is_wrong(A, b, found)
        products = full(found.status, way.colouring.count + 2)
        extra: dict[str, Any] = {
            "condition": found.condition,
            "indefinite": found.indefinite & ~wrong,
            "products": products,
            "colours": full(products, way.colouring.count),
            "fill": found.fill,
        }
        if A.probes:
            extra["probes"] = probes
        return Solution(
            xp.where(wrong[..., None], full(b, float("nan")), found.x),
            xp.where(wrong, full(products, int(Status.WRONG_PATTERN)), found.status),
            products,
            xp.where(wrong, full(found.residual, 1.0), found.residual),
            extra,
        )

    def _is_wrong(self, A: Operator, b: Array, found: OnHost) -> Array:
        """Return where the pattern is wrong: where a product with v, or with the solution, is not that of A."""
        status, x = found.status, found.x
        residual = b - A(x) - self.damping * x if self.damping else b - A(x)
        far = array_namespace(b).any(~(abs(residual) <= found.allowed), axis=-1)
        wrong: Array = (status == int(Status.CONVERGED)) & far
        return wrong | (status == int(Status.WRONG_PATTERN))


class Way(NamedTuple):
    """The operator whose columns are recovered: A or its transpose."""

    D: Operator
    pattern: Pattern
    colouring: Colouring


def _cheapest(A: Operator, J: Pattern) -> Way:
    """Return the way with the fewest products. Of two that are equal, that by J^T: a pullback of F."""
    known = [A] if A.symmetric or A.rmatvec is None else [A, A.T]
    ways = [Way(D, pattern, coloured(pattern)) for D in known for pattern in (J.T if D.transposed else J,)]
    return min(ways, key=lambda way: (way.colouring.count, not way.D.transposed))


def _products(way: Way, like: Array, backend: Backend) -> tuple[Array, Array]:
    """Return the products with the seed of each colour and with a random vector v, (colours + 1, *batch, n), and v."""
    xp, n, count = array_namespace(like), like.shape[-1], way.colouring.count
    colours = backend.asarray(way.colouring.colours.copy(), device=device(like))
    numbers = backend.asarray(list(range(count)), dtype=colours.dtype, device=device(like))
    v = backend.asarray(random_vector(n).copy(), dtype=like.dtype, device=device(like))
    seeds = xp.concat([xp.astype(numbers[:, None] == colours, like.dtype), v[None, :]], axis=0)
    if like.ndim > 1:
        seeds = xp.reshape(seeds, (count + 1, *(1,) * (like.ndim - 1), n))
        seeds = xp.broadcast_to(seeds, (count + 1, *like.shape))
    return backend.loops.map_rows(way.D, seeds, rows_at_once(way.D, like, backend)), v


class OnHost(NamedTuple):
    """The answers for the right-hand sides (k, *batch, n), as arrays of the backend. See `Answer`."""

    x: Array
    allowed: Array
    status: Array
    residual: Array
    indefinite: Array
    condition: Array
    fill: Array

    def of_one(self) -> OnHost:
        """Return the answer for the only right-hand side, without its axis."""
        return OnHost._make([*(x[0, ...] for x in self[:-1]), self.fill])


def _on_host(recovery: Recovery, products: Array, v: Array, rhs: Array, count: int, backend: Backend) -> OnHost:
    """Factorise and solve each problem of a batch on the host. rhs: (m, *batch, n), the first `count` have a status."""
    import numpy as np

    xp, batch, n = array_namespace(rhs), tuple(rhs.shape[1:-1]), rhs.shape[-1]
    number, vector = full(rhs, 0.0, shape=(count, *batch)), full(rhs, 0.0, shape=(count, *batch, n))
    codes = full(number, 0, dtype=xp.int32)
    like = (rhs, vector, codes, number, codes != 0, number, number[0, ...])

    def run(*arrays: Array) -> Arrays:
        P, w, R = [np.asarray(backend.to_numpy(x), dtype=float) for x in arrays]
        place = device(arrays[-1])
        found = recovery.solve_each(P, w, R, count)
        return tuple(backend.asarray(x, dtype=y.dtype, device=place) for x, y in zip(found, like, strict=True))

    return OnHost._make(backend.loops.on_host(run, like, *map(backend.constant, (products, v, rhs))))


def _of_nothing(b: Array) -> Solution:
    """Return the solution of problems without unknowns, or of no problem."""
    xp = array_namespace(b)
    none = full(b, 0, shape=tuple(b.shape[:-1]), dtype=xp.int32)
    zero = xp.astype(none, b.dtype)
    extra = {"products": none, "colours": none, "fill": zero, "condition": zero, "indefinite": none != 0}
    return Solution(b, none, none, zero, extra)
