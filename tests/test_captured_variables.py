"""What a layer's function captures counts as it was at the call, whenever the derivative is computed."""

from __future__ import annotations

import numpy as np
import pytest

import dil
from dil._base.arrays import array_namespace

K = (1.0, 4.0)
X = np.asarray([1.0, 2.0])


def minima(x):
    """Return the sum of squares of the solutions x / k of layers that capture the variable of a loop."""
    found = 0.0 * x
    for k in K:

        def score(u, x):
            return array_namespace(u).sum(0.5 * k * u**2 - x * u)  # noqa: B023

        y = dil.argmin(score, dil.solvers.Newton(), init=lambda x: 0.0 * x)(x)
        found = found + y * y
    return found


def roots(x):
    """Return the same sum from equations."""
    found = 0.0 * x
    for k in K:
        y = dil.root(lambda u, x: k * u - x, dil.solvers.Newton(), init=lambda x: 0.0 * x)(x)  # noqa: B023
        found = found + y * y
    return found


def minima_by_the_users_derivatives(x):
    """Return the same sum from scores whose derivatives the user gives."""
    found = 0.0 * x
    for k in K:
        given = dil.Derivatives(
            gradient=lambda u, x: u - x / k,  # noqa: B023
            hvp=lambda u, v, x: v,
            mixed=lambda u, w, x: (-w / k,),  # noqa: B023
        )
        y = dil.argmin(
            lambda u, x: array_namespace(u).sum(0.5 * u**2 - x * u / k),  # noqa: B023
            lambda fun, u, x, k=k: x / k,
            derivatives=given,
        )(x)
        found = found + y * y
    return found


@pytest.mark.transform("layers made in a loop, whose functions hold its variable")
@pytest.mark.parametrize("make", [minima, roots, minima_by_the_users_derivatives])
def test_the_variable_of_a_loop(engine, make):
    _, (found,) = engine.gradients(make, (X,), np.ones(2))
    np.testing.assert_allclose(found, 2.0 * X * sum(k**-2 for k in K), rtol=1e-5)


def test_a_function_that_counts_its_calls_still_does():
    calls = 0

    def score(u, x):
        nonlocal calls
        calls += 1
        return np.sum((u - x) ** 2)

    layer = dil.argmin(score, lambda fun, u, x: x, init=lambda x: 0.0 * x)
    _, pull = dil.vjp(layer, X)
    before = calls
    pull(np.ones(2))
    assert calls > before


jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy


class Settings:
    """What a score reads."""


def quartic_of(settings):
    return lambda u, x: jnp.sum((u - settings.scale * x) ** 2 + u**4)


@pytest.mark.parametrize(
    ("kind", "gradient"),
    [(dil.argmin, lambda f: jax.grad(jax.jit(f))), (dil.value, lambda f: jax.jacfwd(jax.jit(f)))],
    ids=["grad of jit", "jacfwd of jit of the least value"],
)
def test_an_attribute_that_changes_between_two_calls(kind, gradient):
    settings, other = Settings(), Settings()
    layer = kind(quartic_of(settings), dil.solvers.Newton(), init=lambda x: 0.0 * x)
    fixed = kind(quartic_of(other), dil.solvers.Newton(), init=lambda x: 0.0 * x)

    def loss(x):
        settings.scale = 1.0
        first = layer(x)
        settings.scale = 4.0
        return jnp.sum(first) + jnp.sum(layer(x))

    other.scale, expected = 1.0, 0.0
    for other.scale in (1.0, 4.0):
        expected = expected + jax.grad(lambda x: jnp.sum(fixed(x)))(jnp.asarray(X))
    np.testing.assert_allclose(gradient(loss)(jnp.asarray(X)), expected, rtol=1e-5)


def test_a_pullback_that_is_called_after_a_change():
    settings, data = Settings(), np.ones(2)
    layer = dil.root(lambda u, x: settings.scale * u - data * x, dil.solvers.Newton(), init=lambda x: 0.0 * x)
    pulls = []
    for settings.scale in K:
        pulls.append(jax.vjp(layer, jnp.asarray(X))[1])
    data[:] = 5.0
    for k, pull in zip(K, pulls, strict=True):
        np.testing.assert_allclose(pull(jnp.ones(2))[0], np.full(2, 1.0 / k), rtol=1e-5)


def test_an_ode_in_a_loop():
    def last(x):
        ends = 0.0 * x
        for k in K:
            ends = ends + dil.ode.odeint(lambda t, y, x: -k * x * y, jnp.ones(2), [0.0, 0.1], (x,))[-1]  # noqa: B023
        return jnp.sum(ends)

    expected = sum(-0.1 * k / (1.0 + 0.1 * k * X) ** 2 for k in K)
    np.testing.assert_allclose(jax.grad(jax.jit(last))(jnp.asarray(X)), expected, rtol=1e-4)
