"""The JAX backend: `jax.vjp`, the loops of `jax.lax`, custom derivatives that compose with every transform.

Users import its doors `dil_backends.optax` and `dil_backends.optimistix`. It imports the rooms of dil, never another
backend.
"""
