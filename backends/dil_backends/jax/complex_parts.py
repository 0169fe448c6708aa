"""Complex arrays of JAX as real ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dil._frameworks.complex_parts import ComplexParts


@jax.jit
def split(z: Any) -> Any:
    """Return the parts of a complex array, (*shape, 2)."""
    return jnp.stack([jnp.real(z), jnp.imag(z)], axis=-1)


@jax.jit
def join(parts: Any) -> Any:
    """Return the complex array of real parts, (*shape, 2)."""
    return jax.lax.complex(parts[..., 0], parts[..., 1])


COMPLEX_PARTS = ComplexParts(split, join, conjugate=True)
