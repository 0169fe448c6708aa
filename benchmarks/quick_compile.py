"""How long XLA compiles a gradient through a layer with less optimisation, and how long the program runs then.

    python benchmarks/quick_compile.py

The options are those of jaxlib 0.10 on the CPU. Processor time, one program after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dil

OPTIONS: dict[str, bool | int] = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}


def score(w: Any, X: Any, y: Any, penalty: Any) -> Any:
    """Return the loss of a fit with a penalty for each entry."""
    return jnp.sum((jnp.tanh(X @ w) - y) ** 2) + jnp.sum(jnp.exp(penalty) * w**2)


def seconds(run: Callable[[], object]) -> float:
    """Return the processor time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(unknowns: int, rows: int) -> tuple[float, float, float, float]:
    """Return the seconds to compile and to run, with the defaults and with the options."""
    X = jnp.asarray(np.random.default_rng(0).normal(size=(rows, unknowns))) / unknowns**0.5
    y, penalty = jnp.tanh(0.5 * jnp.sum(X, axis=1)), jnp.zeros(unknowns)
    fit = dil.argmin(score, dil.solvers.Newton(), init=lambda X, y, penalty: 0.0 * X[0])
    lowered = jax.jit(jax.grad(lambda penalty: jnp.sum(fit(X, y, penalty) ** 2))).lower(penalty)
    found: list[float] = []
    for options in (None, OPTIONS):
        programs: list[Any] = []
        compiling = seconds(lambda options=options, programs=programs: programs.append(lowered.compile(options)))  # type: ignore[misc]
        run = lambda program=programs[0]: jax.block_until_ready(program(penalty))  # noqa: E731
        run()
        found += [compiling, min(seconds(run) for _ in range(5))]
    return found[0], found[1], found[2], found[3]


def main() -> None:
    """Print a row for each size."""
    jax.config.update("jax_enable_x64", True)
    for unknowns, rows in ((5, 20), (300, 3000)):
        compiled, ran, compiled_less, ran_less = compare(unknowns, rows)
        print(
            f"{unknowns} unknowns: compiled in {compiled:.1f} s, {compiled_less:.1f} s with the options; "
            f"ran {1e3 * ran:.2f} ms, {1e3 * ran_less:.2f} ms"
        )


if __name__ == "__main__":
    main()
