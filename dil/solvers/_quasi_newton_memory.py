"""What the last steps of L-BFGS say of the Hessian, for a batch in arrays and for one problem in numbers."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from dil._base.arrays import array_namespace, device, dot, eps, full, inner, max_abs, nonzero_or_one, norm, select
from dil._base.quasi_newton import Pairs, forget, inverse_product, no_pairs, remember
from dil._base.scalars import Scalar
from dil._base.scale import is_short, shortest_long
from dil._base.typing import Array
from dil._frameworks.dense import Dense
from dil._frameworks.loops import Loops


class ArrayMemory(NamedTuple):
    """The memory of each problem of a batch. Scalars are (*batch, 1)."""

    pairs: Pairs
    learned: Array
    """Whether there is a pair."""
    scale: Array
    """<s, y> / <y, y> of the newest pair, or one: the size of H^-1. Nocedal and Wright 2006, eq. 7.20."""

    def without(self, which: Array) -> ArrayMemory:
        """Return a memory without the pairs of the problems in `which`."""
        scale = select(which, 1.0, self.scale)
        return ArrayMemory(forget(self.pairs, which[..., 0]), self.learned & ~which, scale)

    def learn(self, step: Array, change: Array) -> ArrayMemory:
        """Store the pairs whose curvature is positive beyond rounding, as it is for condition numbers below 1 / eps."""
        length, bend, product = norm(step), norm(change), dot(step, change)
        keep = product > eps(array_namespace(step), step.dtype) ** 0.5 * length * bend
        pairs = remember(self.pairs, step, change, keep[..., 0])
        scale = product / nonzero_or_one(bend) / nonzero_or_one(bend)
        return ArrayMemory(pairs, self.learned | keep, select(keep, scale, self.scale))

    def downhill(self, gradient: Array, dense: Dense) -> tuple[Array, ArrayMemory]:
        """Return a direction of descent, and the memory. Pairs that lead uphill because of rounding are cleared."""
        direction = -inverse_product(self.pairs, dense.triangular_solve, self.scale)(gradient)
        good = dot(direction, gradient) <= 0
        return select(good, direction, -gradient), self.without(~good)

    def is_near(self, gradient: Array, u: Array, start: Array, rtol: float, extent: Any) -> Array:
        """Whether u is within the tolerance of the solution, estimated by the least curvature, <s, y> / <s, s>.

        The length of the next step is a worse estimate: while the memory is short, so is the step.
        """
        longest = array_namespace(u).max(inner(self.pairs.s, self.pairs.s) * self.pairs.rho, axis=0)[..., None]
        flat = max_abs(gradient)[..., None] == 0
        found: Array = flat | ((longest > 0) & is_short(longest * gradient, u, start, rtol))
        return found

    def as_pairs(self) -> Pairs:
        """Return the pairs."""
        return self.pairs


class NumberMemory(NamedTuple):
    """The memory of a single problem. Small matrices are lists of Python numbers, which cost less than arrays."""

    s: Array
    """The last steps, (m, n), oldest first; zeros before there are any."""
    y: Array
    """The changes of gradient along them."""
    columns: tuple[tuple[float, ...], ...]
    """<s_i, y_j> for i <= j, a column for each pair: the triangle R of Byrd, Nocedal and Schnabel 1994."""
    flattest: tuple[float, ...]
    """<s, y> / <s, s> of each pair."""
    scale: float
    """<s, y> / <y, y> of the newest pair, or one."""
    loops: Loops

    @property
    def learned(self) -> bool:
        """Whether there is a pair."""
        return bool(self.columns)

    def without(self, which: bool) -> NumberMemory:
        """Return a memory without pairs if `which` is true."""
        return self._replace(columns=(), flattest=(), scale=1.0) if which else self

    def learn(self, step: Array, change: Array) -> NumberMemory:
        """Store a pair whose curvature is positive beyond rounding, as for a batch."""
        xp, sy = array_namespace(step), self.loops.number(inner(step, change))
        length, bend = self._norm(step), self._norm(change)
        if not sy > eps(xp, step.dtype) ** 0.5 * length * bend:
            return self
        s, y = (xp.concat([old[1:, ...], new[None, ...]]) for old, new in ((self.s, step), (self.y, change)))
        count = min(len(self.columns) + 1, s.shape[0])
        dropped = len(self.columns) + 1 - count
        column = tuple(self._products(s, change)[-count:])
        columns = (*(c[dropped:] for c in self.columns[dropped:]), column)
        return NumberMemory(
            s, y, columns, (*self.flattest, sy / length / length)[-count:], sy / bend / bend, self.loops
        )

    def _products(self, rows: Array, x: Array) -> list[float]:
        """Return the inner products of some rows, (k, n), with x."""
        found: list[float] = self.loops.numbers((rows @ x[:, None])[:, 0])
        return found

    def _norm(self, x: Array) -> float:
        """Return the norm of x, by `norm` where its square is not safe."""
        square, info = self.loops.number(inner(x, x)), array_namespace(x).finfo(x.dtype)
        safe = float(info.smallest_normal) / float(info.eps)
        return float(square**0.5 if safe < square < 1 / safe else self.loops.number(norm(x)[..., 0]))

    def downhill(self, gradient: Array, dense: Dense) -> tuple[Array, NumberMemory]:
        """Return a direction of descent, and the memory. Pairs that lead uphill because of rounding are cleared."""
        direction = self._direction(gradient)
        if self.loops.number(inner(direction, gradient)) <= 0:
            return direction, self
        return -gradient, self.without(True)

    def _direction(self, gradient: Array) -> Array:
        """Return minus the approximation of H^-1 times the gradient (see `inverse_product`)."""
        if not self.columns:
            return -gradient
        xp, R, count = array_namespace(gradient), self.columns, len(self.columns)
        s, y = self.s[-count:, ...], self.y[-count:, ...]

        def combined(numbers: list[float], rows: Array) -> Array:
            weights = xp.asarray([numbers], dtype=gradient.dtype, device=device(gradient))
            return (weights @ rows)[0, :]  # type: ignore[no-any-return]

        a = self._products(s, gradient)
        for j in reversed(range(count)):  # R a = S g
            a[j] /= R[j][j]
            for i in range(j):
                a[i] -= R[j][i] * a[j]
        z = self.scale * (combined(a, y) - gradient)
        c = self._products(y, z)
        for j in range(count):  # R^T c = diag(R) a + Y z with z = -scale (g - Y^T a); H^-1 g = S^T c - z
            c[j] = (R[j][j] * a[j] + c[j] - sum(R[j][i] * c[i] for i in range(j))) / R[j][j]
        return z - combined(c, s)

    def is_near(self, gradient: Array, u: Array, start: Array, rtol: float, extent: Any) -> bool:
        """Whether u is within the tolerance of the solution, as for a batch. See `shortest_long` for the extent."""
        number = self.loops.number
        size = number(inner(gradient, gradient)) ** 0.5
        if size == 0 and number(max_abs(gradient)) == 0:
            return True
        if not self.flattest:
            return False
        longest = 1.0 / min(self.flattest)
        if longest > shortest_long(size, extent, max(rtol, 4 * eps(array_namespace(u), u.dtype))):
            return False
        return bool(is_short(longest * gradient, u, start, rtol))

    def as_pairs(self) -> Pairs:
        """Return the pairs, in arrays."""
        xp = array_namespace(self.s)
        inverse = [0.0] * (self.s.shape[0] - len(self.columns)) + [1.0 / c[-1] for c in self.columns]
        return Pairs(self.s, self.y, xp.asarray(inverse, dtype=self.s.dtype, device=device(self.s)))


Memory: TypeAlias = ArrayMemory | NumberMemory


def nothing(u: Array, count: int, value: Scalar, loops: Loops) -> Any:
    """Return an empty memory for vectors like u, of the kind of the scalar `value`."""
    pairs = no_pairs(u, count)
    if isinstance(value, float):
        return NumberMemory(pairs.s, pairs.y, (), (), 1.0, loops)
    return ArrayMemory(pairs, value != value, full(value, 1.0))
