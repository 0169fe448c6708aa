"""What JAX and the libraries of threads find in their environment, set before they are imported."""

from __future__ import annotations

import atexit
import importlib.metadata
import os
import shutil
import tempfile

KNOWN = "0.10."
"""The versions of jaxlib that are known to take QUICK; another might abort the process at a flag it does not know."""
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
"""Programs that compile in a fifth of the time and run slower: most of the tests compile one and run it once."""


def set_jax() -> None:
    """Set 64 bits, programs that compile fast, and a folder for them that goes with this process.

    The workers of a run and the processes that its tests start inherit the folder: what one has compiled, the others
    load. A folder that the user has set stays.
    """
    os.environ["JAX_ENABLE_X64"] = "1"
    if any(found.version.startswith(KNOWN) for found in importlib.metadata.distributions(name="jaxlib")):
        os.environ.setdefault("XLA_FLAGS", QUICK)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="dil_tests_programs_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"


def set_threads() -> None:
    """Give each worker of pytest-xdist one thread: those of two workers would wait for each other in busy loops.

    The process that starts the workers has to call it, because a plugin may import NumPy before a worker comes here.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


set_jax()
