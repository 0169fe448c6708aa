"""Dense solves in XLA. A system that cannot be solved gives NaN or infinity."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dil._base.arrays import factor_dtype
from dil._frameworks.dense import Crossover, Dense, Overheads


def cholesky_solve(A: Any, b: Any) -> Any:
    """Solve by Cholesky. JAX's Cholesky factor is NaN where A is not positive definite, and so is the result."""
    dtype = factor_dtype(b)
    L = jax.lax.linalg.cholesky(A.astype(dtype))
    z = jax.lax.linalg.triangular_solve(L, b.astype(dtype), left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(L, z, left_side=True, lower=True, transpose_a=True).astype(b.dtype)


def lu_solve(A: Any, b: Any) -> Any:
    """Solve by LU. The result is not finite where A is singular."""
    dtype = factor_dtype(b)
    return jnp.linalg.solve(A.astype(dtype), b.astype(dtype)).astype(b.dtype)


def triangular_solve(T: Any, b: Any, /, *, upper: bool) -> Any:
    """Solve by substitution."""
    return jax.lax.linalg.triangular_solve(T, b, left_side=True, lower=not upper)


DENSE = Dense(
    cholesky_solve,
    lu_solve,
    triangular_solve,
    Crossover(symmetric=64, general=128),
    Overheads(symmetric_step=5e3, general_step=1.3e4, dense=2e4, row=1e3, read_by_row=1 / 32),
)
