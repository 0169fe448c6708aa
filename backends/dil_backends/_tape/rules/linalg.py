"""Rules of products and of linear algebra.

`linalg.cholesky` assumes that its argument is symmetric. Its cotangent is symmetric.
"""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import device as device_of

from dil._base.typing import Namespace
from dil_backends._tape.rules.axes import axes_of
from dil_backends._tape.rules.rule import Axis, Rule, Value, refuse


def column(xp: Namespace, v: Value) -> Value:
    """Return vectors as matrices of one column."""
    return xp.expand_dims(v, axis=-1)


def row(xp: Namespace, v: Value) -> Value:
    """Return vectors as matrices of one row."""
    return xp.expand_dims(v, axis=-2)


def matmul_left(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return c b^T."""
    if b.ndim == 1:
        return column(xp, c) * b
    if a.ndim == 1:
        return xp.squeeze(b @ column(xp, c), axis=-1)
    return c @ xp.matrix_transpose(b)


def matmul_right(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return a^T c."""
    if a.ndim == 1:
        return a * c if b.ndim == 1 else column(xp, a) * row(xp, c)
    if b.ndim == 1 and a.ndim > 2:
        return xp.squeeze(xp.matrix_transpose(a) @ column(xp, c), axis=-1)
    if b.ndim == 2 and a.ndim > 2 and c.size:  # one product instead of the sum of a batch of products
        a, c = (xp.reshape(z, (math.prod(z.shape[:-1]), z.shape[-1])) for z in (a, c))
    return xp.matrix_transpose(a) @ c


def solved(xp: Namespace, c: Value, y: Value, a: Value, b: Value) -> Value:
    """Return a^-T c. It is the cotangent of b and a factor of the cotangent of a."""
    at = xp.matrix_transpose(a)
    return xp.squeeze(xp.linalg.solve(at, column(xp, c)), axis=-1) if b.ndim == 1 else xp.linalg.solve(at, c)


def times_inverse(xp: Namespace, c: Value, x: Value) -> Value:
    """Return c x^-T, with one number c per matrix. This is the pullback of log|det x|."""
    return xp.reshape(c, (*c.shape, 1, 1)) * xp.matrix_transpose(xp.linalg.inv(x))


def cholesky(xp: Namespace, c: Value, y: Value, x: Value, *, upper: bool = False) -> Value:
    """Return the symmetric part of L^-T P L^-1.

    P is the lower triangle of L^T c with its diagonal halved (Murray 2016).
    """
    turn = xp.matrix_transpose
    lower, c = (turn(y), turn(c)) if upper else (y, c)
    product = turn(lower) @ c
    half = 0.5 * (xp.tril(product) + xp.tril(product, k=-1))
    left = xp.linalg.solve(turn(lower), half)
    both = xp.linalg.solve(turn(lower), turn(left))
    return 0.5 * (both + turn(both))


LINALG: dict[str, Rule] = {
    "matmul": Rule((matmul_left, matmul_right), holomorphic=True),
    "vecdot": Rule(
        (
            # y = sum conj(a) b
            lambda xp, c, y, a, b, *, axis=-1: xp.expand_dims(xp.conj(c), axis=axis) * b,
            lambda xp, c, y, a, b, *, axis=-1: xp.expand_dims(c, axis=axis) * a,
        )
    ),
    "linalg.solve": Rule(
        (
            lambda xp, s, y, a, b: -column(xp, s) * row(xp, y) if b.ndim == 1 else -s @ xp.matrix_transpose(y),
            lambda xp, s, y, a, b: s,
        ),
        prepare=solved,
        holomorphic=True,
    ),
    "linalg.inv": Rule((lambda xp, c, y, x: -xp.matrix_transpose(y) @ c @ xp.matrix_transpose(y),), holomorphic=True),
    "linalg.det": Rule((lambda xp, c, y, x: times_inverse(xp, c * y, x),), holomorphic=True),
    "linalg.slogdet": Rule((lambda xp, c, y, x: times_inverse(xp, c[1], x),)),  # the sign is constant
    "linalg.cholesky": Rule((cholesky,)),
    # c . (a x b) = (b x c) . a = (c x a) . b
    "linalg.cross": Rule(
        (
            lambda xp, c, y, a, b, *, axis=-1: xp.linalg.cross(b, c, axis=axis),
            lambda xp, c, y, a, b, *, axis=-1: xp.linalg.cross(c, a, axis=axis),
        ),
        holomorphic=True,
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


def vector_norm(xp: Namespace, x: Value, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Value:
    if ord == 2:
        return xp.norm(x, axis=axis, keepdims=keepdims)
    if ord not in (1, math.inf):
        refuse(f"linalg.vector_norm(ord={ord})")
    reduce = xp.sum if ord == 1 else xp.max
    return reduce(xp.abs(x), axis=axis, keepdims=keepdims)


def matrix_norm(xp: Namespace, x: Value, keepdims: bool = False, ord: Any = "fro") -> Value:
    if ord != "fro":
        refuse(f"linalg.matrix_norm(ord={ord!r})")
    return xp.norm(x, axis=(-2, -1), keepdims=keepdims)


def matrix_power(xp: Namespace, x: Value, n: int) -> Value:
    """Return x^n by squaring."""
    if n < 0:
        return matrix_power(xp, xp.linalg.inv(x), -n)
    if n == 0:
        return xp.broadcast_to(xp.eye(x.shape[-1], dtype=x.dtype, device=device_of(x)), x.shape)
    half = matrix_power(xp, x, n // 2) if n > 1 else x
    return half if n == 1 else half @ half @ x if n % 2 else half @ half


def norm(xp: Namespace, x: Value, ord: Any = None, axis: Axis = None, keepdims: bool = False) -> Value:
    if ord is not None and x.ndim != 1:
        refuse(f"linalg.norm(ord={ord!r})")
    return vector_norm(xp, x, axis, keepdims, 2 if ord is None else ord)
