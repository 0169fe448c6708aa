"""One gradient through an optimum, by what is installed here: its time and its error.

A logistic regression is fitted, and the slope of its validation loss in the logarithm of the penalty is wanted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from array_api_compat import array_namespace

import dil

ROWS, FEATURES = 300, 30
PENALTY = -3.0
UNROLLED = 300
"""Steps of gradient descent that are unrolled."""
DIFFERENCE = 1e-5
"""Step of the central difference."""


@dataclass(frozen=True)
class Data:
    """The rows to fit and those to validate with; NumPy arrays. A row is multiplied by its label, +1 or -1."""

    fitted: Any
    validated: Any


@dataclass(frozen=True)
class Method:
    """A way to the slope. `make` returns a function that computes it."""

    name: str
    needs: tuple[str, ...]
    make: Callable[[Data], Callable[[], float]]


@dataclass(frozen=True)
class Timing:
    """What one method took."""

    name: str
    seconds: float
    """The median of the calls after the first one."""
    first: float
    """Seconds of the first call, which compiles where a framework does."""
    calls: int
    error: float
    """Relative to the closed form."""


def score(w: Any, A: Any, penalty: Any) -> Any:
    """Return the loss of a fit with a penalty."""
    xp = array_namespace(w)
    return loss(w, A) + 0.5 * xp.exp(penalty) * xp.sum(w**2)


def loss(w: Any, A: Any) -> Any:
    """Return the logistic loss, a mean over rows."""
    xp = array_namespace(w)
    margins = A @ w
    return xp.mean(xp.logaddexp(-margins, xp.zeros_like(margins)))


def data(rows: int = ROWS, features: int = FEATURES) -> Data:
    """Return random rows whose labels follow a hidden direction, with noise."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=features)
    X = rng.normal(size=(2 * rows, features))
    labels = np.sign(X @ hidden + rng.normal(size=2 * rows) * features**0.5)
    signed = X * labels[:, None]
    return Data(signed[:rows], signed[rows:])


def compare(seconds: float, given: Data) -> Iterator[Timing]:
    """Measure every method that can run here; each gets an equal share of the time, and two calls at least."""
    exact = by_hand(given)()
    usable = [m for m in METHODS if all(find_spec(package) is not None for package in m.needs)]
    for method in usable:
        yield _timed(method, given, exact, seconds / len(usable))


def missing() -> list[str]:
    """Return the packages that a method needs and that are not installed."""
    return sorted({package for m in METHODS for package in m.needs if find_spec(package) is None})


def _timed(method: Method, given: Data, exact: float, share: float) -> Timing:
    start = time.perf_counter()
    slope = method.make(given)
    value = slope()
    first = time.perf_counter() - start
    took: list[float] = []
    while not took or time.perf_counter() - start < share:
        before = time.perf_counter()
        slope()
        took.append(time.perf_counter() - before)
    return Timing(method.name, float(np.median(took)), first, len(took), abs(value / exact - 1))


# --- the methods ---


def by_hand(given: Data) -> Callable[[], float]:
    """Return Newton's method with the closed form of every derivative, in NumPy."""

    def slope() -> float:
        A, factor = given.fitted, np.exp(PENALTY)
        w = np.zeros(A.shape[1])
        while True:
            p = 1.0 / (1.0 + np.exp(A @ w))
            gradient = -A.T @ p / len(A) + factor * w
            hessian = (A.T * (p * (1 - p))) @ A / len(A) + factor * np.eye(len(w))
            step = np.linalg.solve(hessian, gradient)
            w = w - step
            if np.max(np.abs(step)) <= 1e-12 * np.max(np.abs(w)):
                break
        B = given.validated
        v = -B.T @ (1.0 / (1.0 + np.exp(B @ w))) / len(B)
        return float(-v @ np.linalg.solve(hessian, factor * w))

    return slope


def by_layer(backend: str, solver: Callable[[], Any]) -> Callable[[Data], Callable[[], float]]:
    """Return the slope by a layer of dil."""

    def make(given: Data) -> Callable[[], float]:
        handle = dil.backend(backend, dtype="float64")
        A, B, at = (handle.asarray(x) for x in (given.fitted, given.validated, PENALTY))
        fit = dil.argmin(score, solver(), init=lambda A, penalty: 0.0 * A[0, :])
        slope = dil.grad(lambda penalty: loss(fit(A, penalty), B))
        return lambda: float(handle.to_numpy(slope(at)))

    return make


def by_differences(given: Data) -> Callable[[], float]:
    """Return a central difference of two fits by SciPy."""
    from scipy.optimize import minimize

    def fitted(penalty: float) -> float:
        def both(w: Any) -> tuple[float, Any]:
            A, p = given.fitted, 1.0 / (1.0 + np.exp(given.fitted @ w))
            return float(score(w, A, np.asarray(penalty))), -A.T @ p / len(A) + np.exp(penalty) * w

        start = np.zeros(given.fitted.shape[1])
        found = minimize(both, start, jac=True, method="L-BFGS-B", options={"ftol": 0.0, "gtol": 1e-10})
        return float(loss(found.x, given.validated))

    def slope() -> float:
        return (fitted(PENALTY + DIFFERENCE) - fitted(PENALTY - DIFFERENCE)) / (2 * DIFFERENCE)

    return slope


def by_unrolling(given: Data) -> Callable[[], float]:
    """Return the derivative of steps of gradient descent, by torch's autograd."""
    import torch

    A, B = torch.asarray(given.fitted), torch.asarray(given.validated)

    def slope() -> float:
        penalty = torch.tensor(PENALTY, dtype=A.dtype, requires_grad=True)
        w = torch.zeros(A.shape[1], dtype=A.dtype, requires_grad=True)
        for _ in range(UNROLLED):
            (gradient,) = torch.autograd.grad(score(w, A, penalty), w, create_graph=True)
            w = w - gradient
        (found,) = torch.autograd.grad(loss(w, B), penalty)
        return float(found)

    return slope


def by_torch_optimiser() -> Any:
    """Return an optimiser of torch.optim as the solver of a layer."""
    from functools import partial

    import torch

    from dil_backends.optim import TorchOptim

    # its own tolerances are absolute, and end it before the layer's
    return TorchOptim(
        partial(torch.optim.LBFGS, line_search_fn="strong_wolfe", tolerance_grad=0.0, tolerance_change=0.0)
    )


def by_jaxopt(given: Data) -> Callable[[], float]:
    """Return the slope through jaxopt's L-BFGS, which differentiates implicitly, in one compiled program."""
    import jax
    import jax.numpy as jnp
    import jaxopt

    A, B = jnp.asarray(given.fitted), jnp.asarray(given.validated)
    solver = jaxopt.LBFGS(fun=score, tol=1e-10, maxiter=500)

    @jax.jit
    @jax.grad
    def slope(penalty: Any) -> Any:
        return loss(solver.run(jnp.zeros(A.shape[1]), A, penalty).params, B)

    return lambda: float(slope(jnp.asarray(PENALTY)))


METHODS = (
    Method("by hand, closed forms in NumPy", (), by_hand),
    Method("dil on NumPy, Newton", (), by_layer("numpy", dil.solvers.Newton)),
    Method("dil on NumPy, SciPy's BFGS", ("scipy",), by_layer("numpy", dil.solvers.SciPy)),
    Method("SciPy, central difference", ("scipy",), by_differences),
    Method("dil on torch, Newton", ("torch",), by_layer("torch", dil.solvers.Newton)),
    Method("dil on torch, torch.optim.LBFGS", ("torch",), by_layer("torch", by_torch_optimiser)),
    Method(f"torch, {UNROLLED} steps unrolled", ("torch",), by_unrolling),
    Method("dil on JAX, Newton", ("jax",), by_layer("jax", dil.solvers.Newton)),
    Method("jaxopt.LBFGS, implicit", ("jax", "jaxopt"), by_jaxopt),
)
