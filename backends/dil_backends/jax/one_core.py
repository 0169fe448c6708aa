"""A warning for machines with one core, where a callback of JAX can wait for itself."""

from __future__ import annotations

import os
import warnings
from typing import Any

import jax

from dil._frameworks.reports import users_line

MANY = 2**14
"""The numbers of an array from which JAX copies it in a thread of its own."""


def warn_of_one_core(arrays: tuple[Any, ...]) -> None:
    """Warn where a callback with these arrays may never end, before the program is compiled.

    JAX runs a program on the CPU in a pool of one thread for each core, and copies the arguments of a callback in the
    same pool. With one core the callback holds the thread that it waits for (jax-ml/jax#24255, seen with JAX 0.10).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if cores != 1 or max((x.size for x in arrays), default=0) < MANY or jax.default_backend() != "cpu":
        return
    if jax.config.values.get("jax_cpu_enable_async_dispatch", False):
        message = (
            "this program calls the host with large arrays, and with one core JAX may wait for its own callback for "
            "ever; call jax.config.update('jax_cpu_enable_async_dispatch', False) at the start of the program, before "
            "its first array"
        )
        warnings.warn_explicit(message, UserWarning, *users_line("jax dil_backends"))
