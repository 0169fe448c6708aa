"""What JAX finds in its environment, set before it is imported."""

from __future__ import annotations

import importlib.metadata
import os

KNOWN = "0.10."
"""The versions of jaxlib that are known to take QUICK; another might abort the process at a flag it does not know."""
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
"""Programs that compile in a fifth of the time and run slower: most of the tests compile one and run it once."""

os.environ["JAX_ENABLE_X64"] = "1"
if any(found.version.startswith(KNOWN) for found in importlib.metadata.distributions(name="jaxlib")):
    os.environ.setdefault("XLA_FLAGS", QUICK)
