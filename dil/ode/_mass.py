"""The mass matrix M of M dy/dt = f(t, y). It may be singular: its left null space gives the algebraic equations."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, eps, eye, full, max_abs, nonzero_max_abs, nonzero_or_one
from dil._base.errors import DTypeError, ShapeError
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Backend
from dil._problem.space import Space


class Mass(NamedTuple):
    """The mass matrix and the rows of its equations, as arrays among the arguments."""

    matrix: Array
    """(n, n), or its diagonal (n,)."""
    algebraic: Array
    """Which equations are algebraic, (n,): those without a derivative."""
    left: Array | None = None
    """The equations are combined by this matrix L, (n, n), so that each is algebraic or has a derivative.

    None for a diagonal: the equations are then those of the user.
    """
    free: Array | None = None
    """Which unknowns M does not determine, (n,). None for a diagonal: those of the algebraic equations."""

    @property
    def undetermined(self) -> Array:
        """Which unknowns M does not determine, (n,)."""
        return self.algebraic if self.free is None else self.free

    def combined(self, v: Array) -> Array:
        """Return L v for the vectors v, (*batch, n)."""
        return v if self.left is None else _times(self.left, v)

    def times(self, v: Array) -> Array:
        """Return L M v for the vectors v, (*batch, n)."""
        return self.matrix * v if self.left is None else _times(self.left, _times(self.matrix, v))

    def residual(self, z: Array, base: Array, gh: Array, slope: Array) -> Array:
        """Return the residual of the stage M (z - base) = gh f, where `slope` is f at z.

        An algebraic equation is divided by gh. So a stage of length zero finds the z with M z = M base that satisfies
        the algebraic equations. Their row of M is zero, but its derivative need not be. A stage of negative length is
        none: its z is the base (see `KnownStages`).
        """
        xp, moved, f = array_namespace(z), self.times(z - base), self.combined(slope)
        none = gh == 0
        rate = xp.where(none, 0.0 * gh, 1.0 / xp.where(none, full(gh, 1.0), gh)) * moved
        found = xp.where(self.algebraic, rate - f, moved - gh * f)
        return xp.where(gh < 0, z - base, found)  # type: ignore[no-any-return]

    def factor(self, gh: Array) -> Array:
        """Return the factor of each equation's slope in the residual, (n,): gh, or one if it is algebraic."""
        return array_namespace(gh).where(self.algebraic, full(gh, 1.0), gh)  # type: ignore[no-any-return]

    def stage(self, z: Array, base: Array, factor: Array, slope: Array) -> Array:
        """Return the residual without the term of an algebraic equation that is zero: it has a derivative alone."""
        return self.times(z - base) - factor * self.combined(slope)

    def stage_matrix(self, jacobian: Array, gh: Array, multiple: float = 1.0) -> Array:
        """Return the derivative of the residual in z from J = df/dy, (*batch, n, n), with a multiple of M."""
        if self.left is not None:
            jacobian = self.left @ jacobian
        found = multiple * self.rows - gh * jacobian
        return array_namespace(found).where(self.algebraic[:, None], -jacobian, found)  # type: ignore[no-any-return]

    @property
    def rows(self) -> Array:
        """L M, (n, n), with zeros in the algebraic equations."""
        if self.left is None:
            matrix = self.matrix[:, None] * eye(self.matrix.shape[0], self.matrix)
        else:
            matrix = self.left @ self.matrix
        return array_namespace(matrix).where(self.algebraic[:, None], 0.0 * matrix, matrix)  # type: ignore[no-any-return]


def _times(matrix: Array, v: Array) -> Array:
    return (matrix @ v[..., None])[..., 0]


def mass_of(matrix: Array, y: Array, space: Space, backend: Backend) -> Arrays:
    """Return the arrays of the `Mass` of a matrix, after a check. y is the state, as vectors.

    The null space is held constant. It is found in units in which the rows and the columns are of the size one.

    Raises
    ------
    ShapeError, DTypeError
        If the matrix does not suit the state, or the state is complex.
    """
    n = y.shape[-1]
    if tuple(matrix.shape) not in ((n,), (n, n)):
        message = (
            f"mass has shape {tuple(matrix.shape)}; expected ({n}, {n}), or ({n},) for a diagonal matrix: a problem "
            f"has {n} entries"
        )
        raise ShapeError(message)
    if matrix.dtype != y.dtype:
        message = f"mass has dtype {matrix.dtype}, but y0 has {y.dtype}; cast one of them"
        raise DTypeError(message)
    if space.split:
        message = "mass= is for a real state; give the real and the imaginary parts as entries of their own"
        raise DTypeError(message)
    plain = backend.constant(matrix)
    if matrix.ndim == 1:
        return (matrix, plain == 0)
    parts, xp = _in_units(plain), array_namespace(plain)
    null = xp.where(parts.algebraic[:, None], xp.abs(parts.right), 0.0 * parts.right)
    free = xp.max(null, axis=0) > eps(xp, y.dtype) ** 0.5
    return (matrix, parts.algebraic, xp.matrix_transpose(parts.left) / parts.rows[:, 0], free)


class _InUnits(NamedTuple):
    """The singular vectors of a matrix in units in which its rows and columns are of the size one."""

    left: Array
    right: Array
    """Its rows are the right singular vectors."""
    algebraic: Array
    """Which singular values are zero, (n,)."""
    rows: Array
    """The units of the rows, (n, 1), and of the columns, (n,)."""
    columns: Array


def _in_units(matrix: Array) -> _InUnits:
    xp, n = array_namespace(matrix), matrix.shape[-1]
    matrix = xp.where(xp.isfinite(matrix), matrix, full(matrix, 0.0))  # a NaN is told of by the first step
    rows = nonzero_max_abs(matrix)
    columns = nonzero_or_one(xp.max(xp.abs(matrix / rows), axis=0))
    left, values, right = xp.linalg.svd(matrix / rows / columns)
    return _InUnits(left, right, values <= n * eps(xp, matrix.dtype) * values[0], rows, columns)


def along_algebraic(matrix: Array, gradient: Array) -> Array:
    """Return whether a gradient, (*batch, n), has a part along a change of the state that M does not see; shape batch.

    The matrix, (n, n) or its diagonal (n,), is a constant.
    """
    xp = array_namespace(gradient)
    if matrix.ndim == 1:
        return xp.any((matrix == 0) & (gradient != 0), axis=-1)  # type: ignore[no-any-return]
    parts = _in_units(matrix)
    scaled = gradient / parts.columns
    along = xp.where(parts.algebraic, _times(parts.right, scaled), full(scaled, 0.0))
    return max_abs(along) > eps(xp, gradient.dtype) ** 0.5 * max_abs(scaled)  # type: ignore[no-any-return]
