"""Dense solves in XLA. A system that cannot be solved gives NaN or infinity."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dil._frameworks.dense import Crossover, Dense


def cholesky_solve(A: Any, b: Any) -> Any:
    """Solve by Cholesky. JAX's Cholesky factor is NaN where A is not positive definite, and so is the result."""
    L = jax.lax.linalg.cholesky(A)
    z = jax.lax.linalg.triangular_solve(L, b, left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(L, z, left_side=True, lower=True, transpose_a=True)


DENSE = Dense(cholesky_solve, jnp.linalg.solve, Crossover(symmetric=16, general=128, trial=1 / 8))
