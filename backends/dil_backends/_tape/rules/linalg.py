"""Rules of products, of linear systems and of determinants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

from array_api_compat import device as device_of

from dil._base.arrays import is_complex
from dil._base.typing import Namespace
from dil_backends._tape.rules.axes import axes_of
from dil_backends._tape.rules.clusters import refuse_derivative
from dil_backends._tape.rules.conjugates import adjoint, conjugate
from dil_backends._tape.rules.eigen import pull_general_spectrum, pull_spectrum
from dil_backends._tape.rules.factors import pull_cholesky, pull_qr
from dil_backends._tape.rules.matrices import column, row
from dil_backends._tape.rules.norms import pull_power_norm
from dil_backends._tape.rules.reductions import others
from dil_backends._tape.rules.rule import Rule, Value, refuse
from dil_backends._tape.rules.singular import pull_polar, pull_pseudoinverse, pull_singular


def matmul_left(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return c b^H."""
    b = conjugate(xp, b)
    if b.ndim == 1:
        return column(xp, c) * b
    if a.ndim == 1:
        return xp.squeeze(b @ column(xp, c), axis=-1)
    return c @ xp.matrix_transpose(b)


def matmul_right(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return a^H c."""
    a = conjugate(xp, a)
    if a.ndim == 1:
        return a * c if b.ndim == 1 else column(xp, a) * row(xp, c)
    if b.ndim == 1 and a.ndim > 2:
        return xp.squeeze(xp.matrix_transpose(a) @ column(xp, c), axis=-1)
    if b.ndim == 2 and a.ndim > 2 and c.size:  # one product instead of the sum of a batch of products
        a, c = (xp.reshape(z, (math.prod(z.shape[:-1]), z.shape[-1])) for z in (a, c))
    return xp.matrix_transpose(a) @ c


def solved(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return a^-H c. It is the cotangent of b and a factor of the cotangent of a."""
    at = adjoint(xp, a)
    return xp.squeeze(xp.linalg.solve(at, column(xp, c)), axis=-1) if b.ndim == 1 else xp.linalg.solve(at, c)


def pull_det(xp: Namespace, c: Value, y: Value, x: Value) -> Value:
    """Return c conj(det x) x^-H. For a singular matrix it is c times the cofactors, which are finite.

    It is linear in c, so forward mode may differentiate it in c there.
    """
    singular = xp.constant(y) == 0.0
    if not bool(xp.any(singular)):
        return scaled(xp, c * conjugate(xp, y), inverse_adjoint(xp, x))
    if xp.recorded(x):
        refuse_derivative("det", "the matrix is singular, and a derivative of the cofactors is asked for")
    u, s, vh = xp.linalg.svd(x, full_matrices=False)
    phase = xp.linalg.det(u) * xp.linalg.det(vh)
    return scaled(xp, c * conjugate(xp, phase), (u * row(xp, others(xp, s, -1))) @ vh)


def pull_slogdet(xp: Namespace, c: Value, y: Value, x: Value) -> Value:
    """Return z x^-H. The real part of z is the cotangent of log|det x|; the sign of a complex matrix can turn."""
    c_sign, c_log = c
    if bool(xp.any(xp.constant(y[0]) == 0.0)):
        refuse_derivative("slogdet", "the matrix is singular")
    if is_complex(xp, x.dtype):
        c_log = c_log + 1j * xp.imag(c_sign * xp.conj(y[0]))
    return scaled(xp, c_log, inverse_adjoint(xp, x))


def inverse_adjoint(xp: Namespace, x: Value) -> Value:
    return adjoint(xp, xp.linalg.inv(x))


def scaled(xp: Namespace, c: Value, x: Value) -> Value:
    """Return matrices times one number each."""
    return xp.reshape(c, (*c.shape, 1, 1)) * x


LINALG: dict[str, Rule] = {
    "matmul": Rule((matmul_left, matmul_right)),
    # the standard conjugates the first argument
    "vecdot": Rule(
        (
            lambda xp, c, y, a, b, *, axis=-1: xp.expand_dims(conjugate(xp, c), axis=axis) * b,
            lambda xp, c, y, a, b, *, axis=-1: xp.expand_dims(c, axis=axis) * a,
        )
    ),
    "linalg.solve": Rule(
        (
            lambda xp, s, y, a, b: -column(xp, s) * row(xp, conjugate(xp, y)) if b.ndim == 1 else -s @ adjoint(xp, y),
            lambda xp, s, y, a, b: s,
        ),
        prepare=solved,
    ),
    "linalg.inv": Rule((lambda xp, c, y, x: -adjoint(xp, y) @ c @ adjoint(xp, y),)),
    "linalg.det": Rule((pull_det,)),
    "linalg.slogdet": Rule((pull_slogdet,)),
    # decompositions, with one signature for the standard's functions and NumPy's
    "cholesky_factor": Rule((pull_cholesky,)),
    "spectrum": Rule((pull_spectrum,)),
    "general_spectrum": Rule((pull_general_spectrum,)),
    "singular": Rule((pull_singular,)),
    "orthogonal_triangular": Rule((pull_qr,)),
    "pseudoinverse": Rule((pull_pseudoinverse,)),
    "polar": Rule((pull_polar,)),
    "nuclear": Rule((lambda xp, c, y, x: scaled(xp, c, xp.polar(x)),)),
    "power_norm": Rule((pull_power_norm,)),
    # c . (a x b) = (b x c) . a = (c x a) . b
    "linalg.cross": Rule(
        (
            lambda xp, c, y, a, b, *, axis=-1: xp.linalg.cross(conjugate(xp, b), c, axis=axis),
            lambda xp, c, y, a, b, *, axis=-1: xp.linalg.cross(c, conjugate(xp, a), axis=axis),
        )
    ),
}


def tensordot(xp: Namespace, a: Value, b: Value, axes: Any = 2) -> Value:
    if isinstance(axes, int):
        axes = range(a.ndim - axes, a.ndim), range(axes)
    over_a, over_b = (axes_of(tuple(ax), x.ndim) for ax, x in zip(axes, (a, b), strict=True))
    free_a, free_b = (tuple(i for i in range(x.ndim) if i not in ax) for x, ax in ((a, over_a), (b, over_b)))
    rows, columns = tuple(a.shape[i] for i in free_a), tuple(b.shape[i] for i in free_b)
    inner = math.prod(a.shape[i] for i in over_a)
    left = xp.reshape(xp.permute_dims(a, free_a + over_a), (math.prod(rows), inner))
    right = xp.reshape(xp.permute_dims(b, over_b + free_b), (inner, math.prod(columns)))
    return xp.reshape(xp.matmul(left, right), rows + columns)


def outer(xp: Namespace, a: Value, b: Value) -> Value:
    if a.ndim != 1 or b.ndim != 1:
        refuse("linalg.outer of anything but vectors")
    return xp.multiply(column(xp, a), row(xp, b))


def diagonal(xp: Namespace, x: Value, offset: int = 0) -> Value:
    """Return the diagonal as a slice of the flattened matrix. Its entries are n + 1 places apart."""
    *batch, m, n = x.shape
    length = max(0, min(m + min(offset, 0), n - max(offset, 0)))
    if not length:
        return xp.zeros((*batch, 0), dtype=x.dtype, device=device_of(x))
    start = offset if offset >= 0 else -offset * n
    return xp.reshape(x, (*batch, m * n))[..., start : start + (length - 1) * (n + 1) + 1 : n + 1]


def trace(xp: Namespace, x: Value, offset: int = 0, dtype: Any = None) -> Value:
    return xp.sum(diagonal(xp, x, offset), axis=-1, dtype=dtype)


def matrix_power(xp: Namespace, x: Value, n: int) -> Value:
    """Return x^n by squaring."""
    if n < 0:
        return matrix_power(xp, xp.linalg.inv(x), -n)
    if n == 0:
        return xp.broadcast_to(xp.eye(x.shape[-1], dtype=x.dtype, device=device_of(x)), x.shape)
    half = matrix_power(xp, x, n // 2) if n > 1 else x
    return half if n == 1 else half @ half @ x if n % 2 else half @ half


def multi_dot(xp: Namespace, arrays: Sequence[Value]) -> Value:
    """Return the product of all matrices, from that end where it is cheaper. The first and last may be vectors."""
    first, *rest = arrays
    if first.size <= arrays[-1].size:
        return reduce(xp.matmul, rest, first)
    return reduce(lambda product, a: xp.matmul(a, product), arrays[-2::-1], arrays[-1])


def lstsq(xp: Namespace, a: Value, b: Value, rcond: Value = None) -> tuple[Value, Value, Value, Value]:
    """Return NumPy's four results: the least-norm solution, the squares of the residuals, rank, singular values."""
    dtype = xp.result_type(a.dtype, b.dtype)
    a, b = (x if x.dtype == dtype else xp.astype(x, dtype) for x in (a, b))  # single precision stays if both have it
    x = xp.linalg.pinv(a, rtol=rcond) @ b
    raw, n = xp.constant(a), a.shape[-1]
    rank = xp.linalg.matrix_rank(raw) if rcond is None else xp.linalg.matrix_rank(raw, rtol=rcond)
    squares = xp.sum(xp.abs(a @ x - b) ** 2, axis=0, keepdims=b.ndim == 1)
    return x, squares if int(rank) == n < a.shape[0] else squares[:0], rank, xp.linalg.svdvals(a)


def tensorinv(xp: Namespace, a: Value, ind: int = 2) -> Value:
    size = math.prod(a.shape[ind:])
    return xp.reshape(xp.linalg.inv(xp.reshape(a, (size, size))), a.shape[ind:] + a.shape[:ind])


def tensorsolve(xp: Namespace, a: Value, b: Value, axes: Sequence[int] | None = None) -> Value:
    if axes is not None:
        last = [i % a.ndim for i in axes]
        a = xp.permute_dims(a, (*(i for i in range(a.ndim) if i not in last), *last))
    shape = a.shape[b.ndim :]
    square = xp.reshape(a, (b.size, math.prod(shape)))
    return xp.reshape(xp.linalg.solve(square, xp.reshape(b, (b.size,))), shape)
