"""Explicit steps, implicit steps and method="auto" on problems that are not stiff, stiff, and stiff at times.

    python benchmarks/ode_auto.py

NumPy on one core. The gradient is that of the last state in the parameters, beside differences of "radau" at 1e-11.
Both errors are relative: that of the state in each entry, and that of the gradient in its norm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import dil
from _common import markdown, one_core
from _ode_problems import Problem, problems

METHODS = ("tsit5", "radau", "auto")
HEADS = ("problem", "method", "steps", "of them implicit", "ms", "error", "gradient, ms", "its error")
MOST, RTOL, LENGTH = 10000, 1e-6, 1e-3


def end_state(p: Problem, log: Any, rtol: float, method: str, solve: Callable[..., Any]) -> Any:
    """Return what `solve` finds, with the parameters p times the exponential of `log`."""
    field = lambda t, y, a: p.slope(np, t, y, a)  # noqa: E731
    options = {"method": method, "rtol": rtol, "atol": rtol * p.share, "max_steps": MOST}
    return solve(field, np.asarray(p.start, float), [0.0, p.end], (p.p * np.exp(log),), **options)


def milliseconds(run: Callable[[], object]) -> float:
    """Return the least processor time of some calls."""
    times = []
    for _ in range(5):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def differences(fn: Callable[[Any], float], x: Any) -> Any:
    """Return the gradient of fn by differences of order 4."""
    found = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        h = np.zeros(x.shape)
        h[place] = LENGTH
        near, far = (fn(x + k * h) - fn(x - k * h) for k in (1, 2))
        found[place] = (8 * near - far) / (12 * LENGTH)
    return found


def rows(p: Problem) -> list[tuple[str, ...]]:
    """Return the lines of one problem."""
    zero = np.zeros(np.shape(p.p))
    exact = end_state(p, zero, 1e-11, "radau", dil.ode.solve).value[-1]

    def score(log: Any, rtol: float, method: str, solve: Callable[..., Any]) -> Any:
        found = end_state(p, log, rtol, method, solve)
        return np.sum((found if solve is dil.ode.odeint else found.value)[-1] / exact)

    slope = differences(partial(score, rtol=1e-11, method="radau", solve=dil.ode.solve), zero)
    lines = []
    for method in METHODS:
        found = end_state(p, zero, RTOL, method, dil.ode.solve)
        if int(found.status):
            lines.append((p.name, method, f"more than {MOST:,}", *"-----"))
            continue
        forward = milliseconds(partial(end_state, p, zero, RTOL, method, dil.ode.solve))
        gradient = dil.grad(partial(score, rtol=RTOL, method=method, solve=dil.ode.odeint))
        error = np.sqrt(np.mean((found.value[-1] / exact - 1) ** 2))
        wrong = np.linalg.norm(gradient(zero) - slope) / np.linalg.norm(slope)
        implicit = {"tsit5": 0, "radau": found.steps, "auto": found.implicit_steps}[method]
        took = milliseconds(partial(gradient, zero))
        counts = f"{int(found.steps):,}", f"{int(implicit):,}"
        lines.append((p.name, method, *counts, f"{forward:.0f}", f"{error:.0e}", f"{took:.0f}", f"{wrong:.0e}"))
    return lines


def main() -> None:
    """Print the table."""
    one_core()
    known = problems()
    one = known["1,000 small problems"]
    rates = np.asarray([1.1, 0.4, 0.1, 0.4])
    lotka = Problem("Lotka and Volterra", one.slope, np.asarray([10.0, 5.0]), 20.0, rates, stiff=False)
    chosen = (lotka, *(known[name] for name in ("Van der Pol, mu 100", "Van der Pol, mu 1e3", "Robertson")))
    print(markdown(HEADS, [line for p in chosen for line in rows(p)]))


if __name__ == "__main__":
    main()
