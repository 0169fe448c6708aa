"""The problems of jax_peers.py, as each library states them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TIGHT = 1e-8
"""The tolerance of the peers. Those of dil are its defaults."""


class Problem(NamedTuple):
    """A loss of the penalty through each library, and the point."""

    losses: dict[str, Callable[[], Callable[[Any], Any]]]
    point: Any


def logistic(rows: int = 569, unknowns: int = 31) -> tuple[Callable[[Any, Any], Any], Any, Any]:
    """Return the score of L2 logistic regression with one penalty for each unknown, a start and the penalties."""
    draw = np.random.default_rng(0)
    X = draw.standard_normal((rows, unknowns))
    label = np.sign(X @ draw.standard_normal(unknowns) + 0.5 * draw.standard_normal(rows))
    Z = jnp.asarray(label[:, None] * X)

    def score(w: Any, penalty: Any) -> Any:
        return jnp.mean(jnp.logaddexp(0.0, -Z @ w)) + 0.5 * jnp.sum(jnp.exp(penalty) * w**2)

    return score, jnp.zeros(unknowns), jnp.full(unknowns, -3.0)


def minimum(score: Callable[[Any, Any], Any], start: Any) -> dict[str, Callable[[], Callable[[Any], Any]]]:
    """Return a minimiser of the score as a function of its argument, by each library."""
    import dil

    def by_dil(solver: Any, **options: Any) -> Callable[[Any], Any]:
        return dil.argmin(score, solver, init=lambda _: jnp.zeros_like(start), **options)

    def by_jaxopt() -> Callable[[Any], Any]:
        import jaxopt

        solver = jaxopt.LBFGS(fun=score, tol=TIGHT, maxiter=500)
        return lambda t: solver.run(start, t).params

    def by_optimistix() -> Callable[[Any], Any]:
        import optimistix as optx

        solver = optx.BFGS(rtol=TIGHT, atol=TIGHT)
        return lambda t: optx.minimise(score, solver, start, args=t, max_steps=500).value

    return {
        "dil, LBFGS": lambda: by_dil(dil.solvers.LBFGS()),
        "dil, Newton": lambda: by_dil(dil.solvers.Newton()),
        "dil, LBFGS, unchecked": lambda: by_dil(dil.solvers.LBFGS(), **unchecked()),
        "jaxopt, LBFGS": by_jaxopt,
        "optimistix, BFGS": by_optimistix,
    }


def unchecked(linear_solver: Any = None) -> dict[str, Any]:
    """Return the options of a layer without checks of its gradient, and with one linear solver."""
    import dil

    return {"on_failure": "ignore", "linear_solver": linear_solver or dil.linear.CG()}


def root_of(residual: Callable[[Any, Any], Any], start: Any) -> dict[str, Callable[[], Callable[[Any], Any]]]:
    """Return a root as a function of its argument, by each library."""
    import dil

    def by_jaxopt() -> Callable[[Any], Any]:
        import jaxopt

        solver = jaxopt.Broyden(fun=residual, tol=TIGHT, maxiter=500)
        return lambda t: solver.run(start, t).params

    def by_optimistix() -> Callable[[Any], Any]:
        import optimistix as optx

        solver = optx.Newton(rtol=TIGHT, atol=TIGHT)
        return lambda t: optx.root_find(residual, solver, start, args=t).value

    return {
        "dil, Newton": lambda: dil.root(residual, dil.solvers.Newton(), init=start),
        "dil, Newton, unchecked": lambda: dil.root(
            residual, dil.solvers.Newton(), init=start, **unchecked(dil.linear.BiCGSTAB())
        ),
        "jaxopt, Broyden": by_jaxopt,
        "optimistix, Newton": by_optimistix,
    }


def fixed_point_of(step: Callable[[Any, Any], Any], start: Any) -> dict[str, Callable[[], Callable[[Any], Any]]]:
    """Return a fixed point as a function of its argument, by each library."""
    import dil

    def by_jaxopt() -> Callable[[Any], Any]:
        import jaxopt

        solver = jaxopt.AndersonAcceleration(fixed_point_fun=step, tol=TIGHT, maxiter=500)
        return lambda t: solver.run(start, t).params

    def by_optimistix() -> Callable[[Any], Any]:
        import optimistix as optx

        solver = optx.FixedPointIteration(rtol=TIGHT, atol=TIGHT)
        return lambda t: optx.fixed_point(step, solver, start, args=t, max_steps=500).value

    return {
        "dil, Anderson": lambda: dil.fixed_point(step, dil.solvers.Anderson(), init=start),
        "dil, Anderson, unchecked": lambda: dil.fixed_point(
            step, dil.solvers.Anderson(), init=start, **unchecked(dil.linear.BiCGSTAB())
        ),
        "jaxopt, Anderson": by_jaxopt,
        "optimistix, iteration": by_optimistix,
    }


def problem(name: str) -> Problem:
    """Return one problem by its name."""
    if name == "logistic":
        score, start, penalty = logistic()
        return Problem(minimum(score, start), penalty)
    if name == "batch":
        score, start, penalty = logistic(200, 5)
        makers = minimum(score, start)
        mapped = {key: lambda make=make: jax.vmap(make()) for key, make in makers.items()}
        return Problem(mapped, penalty + 0.1 * jnp.arange(64.0)[:, None])
    W = jnp.asarray(np.random.default_rng(1).standard_normal((20, 20)) / 10)
    t = jnp.linspace(-1.0, 1.0, 20)
    if name == "root":
        return Problem(root_of(lambda u, t: u + jnp.tanh(W @ u) - t, jnp.zeros(20)), t)
    return Problem(fixed_point_of(lambda u, t: jnp.tanh(W @ u) + t, jnp.zeros(20)), t)


def loss(layer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the sum of squares of the layer's result."""
    return lambda t: jnp.sum(layer(t) ** 2)
