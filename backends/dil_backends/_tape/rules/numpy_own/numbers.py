"""Elementwise functions with several results, and products of matrices with vectors, that NumPy has as ufuncs."""

from __future__ import annotations

from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.numpy_own.arrays import as_array
from dil_backends._tape.rules.rule import Value


def divmod(xp: Namespace, x1: Value, x2: Value) -> tuple[Value, Value]:
    """Return the floor of the quotient, which has no derivative, and the remainder."""
    return xp.floor_divide(x1, x2), xp.remainder(x1, x2)


def modf(xp: Namespace, x: Value) -> tuple[Value, Value]:
    """Return the fractional part and the integral part, both with the sign of x."""
    whole = xp.trunc(x)
    return x - whole, whole


def ldexp(xp: Namespace, x1: Value, x2: Value) -> Value:
    return x1 * xp.exp2(xp.astype(as_array(xp, x2), x1.dtype))


def matvec(xp: Namespace, x1: Value, x2: Value) -> Value:
    return xp.matmul(x1, as_array(xp, x2)[..., None])[..., 0]


def vecmat(xp: Namespace, x1: Value, x2: Value) -> Value:
    return xp.matmul(xp.conj(as_array(xp, x1))[..., None, :], x2)[..., 0, :]


def unwrap(xp: Namespace, p: Value, discont: float | None = None, axis: int = -1, *, period: float = 0.0) -> Value:
    """Return p with multiples of the period added, which are constant."""
    raw = xp.unboxed(p, "unwrap")
    options: dict[str, Any] = {"period": period} if period else {}
    return p + (xp.plain.unwrap(raw, discont, axis, **options) - raw)
