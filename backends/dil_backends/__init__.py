"""The backends that come with dil, one module for each framework. A module is imported when its arrays first appear."""

MODULES = {
    "numpy": "dil_backends.numpy",
    "torch": "dil_backends.torch.protocol",
    "jax": "dil_backends.jax.protocol",
    "cupy": "dil_backends.cupy",
}
"""Name of the backend (the root module of its arrays) -> module. The entry points in pyproject.toml list the same."""

INSTALL = {
    "numpy": "pip install numpy",
    "torch": "pip install torch",
    "jax": "pip install jax",
    "cupy": "pip install cupy-cuda13x (or the wheel of your CUDA version)",
}
"""The install command for each framework."""
