"""JAX flags for programs that run for seconds: compilation takes a fifth of the time, and the program runs slower."""

from __future__ import annotations

import importlib.metadata

KNOWN = "0.10."
"""The versions of jaxlib that are known to take the flags; another might abort the process at one that is new to it."""
FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"


def quick_compile_flags(flags: str = "") -> str:
    """Return flags for XLA_FLAGS, with those for quick compilation where this jaxlib knows them."""
    known = importlib.metadata.version("jaxlib").startswith(KNOWN)
    return f"{flags} {FLAGS}".strip() if known else flags
