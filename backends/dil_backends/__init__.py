"""The backends that come with dil: one module for each framework, imported only when its arrays appear."""

MODULES = {
    "numpy": "dil_backends.numpy",
    "torch": "dil_backends.torch.protocol",
    "jax": "dil_backends.jax.protocol",
    "cupy": "dil_backends.cupy",
}
"""Name (the root module of the arrays served) and module; the entry points in pyproject.toml say the same."""

INSTALL = {
    "numpy": "pip install numpy",
    "torch": "pip install torch",
    "jax": "pip install jax",
    "cupy": "pip install cupy-cuda13x (or the wheel of your CUDA version)",
}
"""The install command for each framework."""
