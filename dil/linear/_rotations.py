"""The least-squares problem of GMRES, min ||e_1 - H y||, for a Hessenberg matrix H that grows, by Givens rotations.

Each step adds a column to H: the components h of a new vector along the basis, and the norm beta of its remainder. The
rotations of the earlier steps turn h into a column of the triangular factor R, but for its last component a. The new
rotation, (c, s) = (a, beta) / r with r^2 = a^2 + beta^2, turns (a, beta) into (r, 0).

Source: Saad and Schultz 1986, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from dil._base.arrays import array_namespace, device, eye, factor_dtype, full
from dil._base.scalars import Scalar, Scalars, either
from dil._base.typing import Array

SetRow: TypeAlias = Callable[[Array, Any, Array], Array]


class NumberRotations(NamedTuple):
    """The problem in Python numbers. One step costs less than an operation on a short array."""

    R: tuple[list[Scalar], ...]
    """The columns of R, each down to the diagonal."""
    rotations: tuple[tuple[Scalar, Scalar], ...]
    """(c, s) of each step."""

    def rotated(self, h: Array, scalars: Scalars) -> tuple[list[Scalar], Scalar]:
        """Return h after the rotations of the earlier steps, and its last component a."""
        components = scalars.numbers(h)
        column = [components[k] for k in range(len(self.rotations) + 1)]
        for k, (c, s) in enumerate(self.rotations):
            column[k], column[k + 1] = c * column[k] + s * column[k + 1], c * column[k + 1] - s * column[k]
        return column, column[-1]

    def extended(
        self, column: Any, beta: Scalar, c: Scalar, s: Scalar, accepted: Scalar, j: int, set_row: SetRow
    ) -> NumberRotations:
        """Return the problem with one column more, or as it is if the column is not accepted."""
        if not accepted:
            return self
        return NumberRotations((*self.R, [*column[:-1], c * column[-1] + s * beta]), (*self.rotations, (c, s)))

    def combined(self, V: Array) -> Array:
        """Return the sum of the rows of V, (m + 1, n), each times its entry of y."""
        y, rest = [], 1.0
        for c, s in self.rotations:
            y.append(c * rest)
            rest = -s * rest
        for k in reversed(range(len(y))):
            y[k] = y[k] / self.R[k][k]
            for i in range(k):
                y[i] = y[i] - self.R[k][i] * y[k]
        xp = array_namespace(V)
        if not all(isinstance(x, float) for x in y):  # they carry a gradient
            return xp.stack(y) @ V[: len(y), :]  # type: ignore[no-any-return]
        return xp.asarray(y, dtype=V.dtype, device=device(V)) @ V[: len(y), :]  # type: ignore[no-any-return]


class ArrayRotations(NamedTuple):
    """The problems of a batch, or of a trace. Rows for steps that are not taken, or not accepted, stay zero."""

    H: Array
    """H by columns, (*batch, m, m + 1)."""
    Q: Array
    """The first m rows of the product of the rotations, (*batch, m, m + 1)."""
    q: Array
    """The row of the product that the next rotation changes, (*batch, m + 1)."""
    axes: Array
    """The identity, (m + 1, m + 1)."""

    def rotated(self, h: Array, scalars: Scalars) -> tuple[Array, Scalar]:
        """Return h, (*batch, k), and the component a that the rotations of the earlier steps give it."""
        return h, scalars.dot(self.q[..., : h.shape[-1]], h)

    def extended(
        self, column: Any, beta: Scalar, c: Scalar, s: Scalar, accepted: Scalar, j: Any, set_row: SetRow
    ) -> ArrayRotations:
        """Return the problem with one column more, or with zeros if the column is not accepted."""
        axis = self.axes[j + 1, :]
        zero = 0.0 * self.q
        return ArrayRotations(
            set_row(self.H, j, either(accepted, lambda: _padded(column, axis) + beta * axis, lambda: zero)),
            set_row(self.Q, j, either(accepted, lambda: c * self.q + s * axis, lambda: zero)),
            c * axis - s * self.q,
            self.axes,
        )

    def combined(self, V: Array) -> Array:
        """Return the sum of the rows of V, (*batch, m + 1, n), each times its entry of y."""
        # R = Q H, and g = Q e_1; for the unused columns, R is the identity and g is zero
        xp, dtype = array_namespace(V), factor_dtype(V)
        R, g = xp.triu(xp.matmul(self.Q, self.H.mT)), self.Q[..., :1]
        unused = xp.astype(xp.linalg.diagonal(R) == 0, R.dtype)
        R = R + unused[..., None] * self.axes[:-1, :-1]
        y = xp.astype(xp.linalg.solve(xp.astype(R, dtype), xp.astype(g, dtype)), V.dtype)
        return xp.matmul(V[..., :-1, :].mT, y)[..., 0]  # type: ignore[no-any-return]


def number_rotations() -> NumberRotations:
    """Return the problem of no step."""
    return NumberRotations((), ())


def array_rotations(v: Array, steps: int) -> ArrayRotations:
    """Return the problems of no step, with memory for `steps` of them, for vectors like v, (*batch, n)."""
    axes = eye(steps + 1, v)
    H, Q = rows_like(v, steps, steps + 1), rows_like(v, steps, steps + 1)
    return ArrayRotations(H, Q, rows_like(v, 1, steps + 1)[..., 0, :] + axes[0, :], axes)


def rows_like(v: Array, rows: int, columns: int) -> Array:
    """Return zeros, (*batch, rows, columns), for rows from vectors like v, (*batch, n).

    Under a transform of the framework, the zeros are then traced like v.
    """
    return 0.0 * v[..., :1, None] + full(v, 0.0, shape=(rows, columns))


def _padded(h: Array, row: Array) -> Array:
    """Return h with zeros at the end, as long as a row."""
    missing = row.shape[-1] - h.shape[-1]
    if missing == 0:
        return h
    tail = full(h, 0.0, shape=(*h.shape[:-1], missing))
    return array_namespace(h).concat([h, tail], axis=-1)  # type: ignore[no-any-return]
