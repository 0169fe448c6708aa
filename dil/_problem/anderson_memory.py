"""The memory of Anderson's method: the last differences of a fixed-point iteration, and how they are mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, eye, full, select
from dil._base.scalars import Scalar
from dil._base.typing import Array, DType
from dil._frameworks.loops import Loops


class Memory(NamedTuple):
    """The last differences."""

    dG: Array
    """Differences of successive u + mixing (step(u) - u), (*batch, m, n): zero where a step is constant."""
    dF: Array
    """Differences of successive f."""
    scale: Array
    """The inverse norm of each row of dF, (*batch, m, 1): zero for a row that counts no more, or not yet."""
    gram: Array
    """The inner products of the rows of dF at norm one, (*batch, m, m), with the regularisation on the diagonal."""
    right: Array
    """The inner products of the rows at norm one with the last f, (*batch, m)."""
    place: Any
    """The row that is the oldest one."""
    ridge: Array
    """The regularisation, a multiple of the identity, (*batch, m, m)."""


def nothing(f: Array, count: int, regularisation: float) -> Memory:
    """Return an empty memory for `count` differences of vectors like f."""
    xp, batch = array_namespace(f), f.shape[:-1]
    # shared out among devices as f is, and of memory of its own
    row = full(f, 0.0)[..., None, :]
    dG, dF = (xp.repeat(row, count, axis=-2) for _ in range(2))
    scale, right = full(f, 0.0, shape=(*batch, count, 1)), full(f, 0.0, shape=(*batch, count))
    # a value below the rounding of the matrix could let the solve meet a pivot of zero
    ridge = max(regularisation, 4 * count * eps(xp, f.dtype)) * eye(count, f)
    ridge = xp.broadcast_to(ridge, (*batch, count, count))
    return Memory(dG, dF, scale, full(f, 0.0, shape=(*batch, count, count)) + ridge, right, 0, ridge)


def correction(memory: Memory, solve: Callable[[Array, Array], Array]) -> Array:
    """Return dG gamma, where gamma solves dF gamma = f in the least-squares sense. Rows that do not count get zero.

    The rows of dF have norm one in the normal equations, so that no row is lost by its size. `solve` takes positive
    definite matrices.
    """
    gamma = solve(memory.gram, memory.right[..., None]) * memory.scale
    return (gamma.mT @ memory.dG)[..., 0, :]


def forgotten(memory: Memory, forget: Scalar) -> Memory:
    """Return the memory without the rows of the problems in `forget`, (*batch, 1)."""
    if forget is None or forget is False:
        return memory
    which = forget if isinstance(forget, bool) else forget[..., None]
    scale = select(which, full(memory.scale, 0.0), memory.scale)
    return memory._replace(scale=scale, gram=select(which, full(memory.gram, 0.0) + memory.ridge, memory.gram))


def remembered(memory: Memory, dg: Array, df: Array, f: Array, loops: Loops) -> Memory:
    """Replace the oldest difference by a new one. A difference of zero has inner products of zero."""
    xp, place, set_row = array_namespace(df), memory.place, loops.set_row
    dG, dF = set_row(memory.dG, place, dg), set_row(memory.dF, place, df)
    tiny = float(xp.finfo(df.dtype).smallest_normal)
    inverse = 1.0 / (xp.linalg.vector_norm(df, axis=-1, keepdims=True) + tiny)
    scale = set_row(memory.scale, place, inverse)
    products = (xp.stack([df, f], axis=-2) @ dF.mT) * scale.mT
    row = products[..., 0, :] * inverse + memory.ridge[..., place, :]
    gram = set_row(set_row(memory.gram, place, row).mT, place, row).mT
    return Memory(dG, dF, scale, gram, products[..., 1, :], (place + 1) % memory.ridge.shape[-1], memory.ridge)


def as_dtype(x: Array, dtype: DType) -> Array:
    """Return x in a dtype, itself if it has it."""
    return x if x.dtype == dtype else array_namespace(x).astype(x, dtype)
