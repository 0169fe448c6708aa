"""The JAX backend: `jax.vjp`, the loops of `jax.lax`, and custom derivatives that compose with every transform.

Users import `dil_backends.optax` and `dil_backends.optimistix`. This package imports packages of dil, never another
backend.
"""
