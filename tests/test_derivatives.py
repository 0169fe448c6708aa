"""Layers whose derivative products come from the user."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace, device

import dil

A = np.asarray([[3.0, 1.0], [1.0, 2.0]])


def like(u, values):
    """Return values as an array beside u."""
    return array_namespace(u).asarray(values.tolist(), dtype=u.dtype, device=device(u))


def score(u, x, c):
    xp = array_namespace(u)
    return 0.5 * xp.sum(u * (like(u, A) @ u)) - c * xp.sum(x * u)


def gradient(u, x, c):
    return like(u, A) @ u - c * x


def hvp(u, v, x, c):
    return like(v, A) @ v


def mixed(u, w, x, c):
    return -c * w, -array_namespace(w).sum(x * w)


def solver(fun, init, x, c):
    return c * (like(x, np.linalg.inv(A)) @ x)


PRODUCTS = [
    dil.Derivatives(gradient),
    dil.Derivatives(gradient, hvp=hvp),
    dil.Derivatives(gradient, mixed=mixed),
    dil.Derivatives(gradient, hvp=hvp, mixed=mixed),
]


@pytest.mark.parametrize("products", PRODUCTS, ids=["gradient", "hvp", "mixed", "all"])
def test_every_choice_of_products(engine, products):
    layer = dil.argmin(score, solver, derivatives=products)
    x, c, v = np.asarray([1.0, -2.0]), np.asarray(1.5), np.asarray([0.3, 0.7])
    y, (dx, dc) = engine.gradients(layer, (x, c), v)
    g = np.linalg.solve(A, v)
    np.testing.assert_allclose(y, 1.5 * np.linalg.solve(A, x), rtol=1e-12)
    np.testing.assert_allclose(dx, 1.5 * g, rtol=1e-10)
    np.testing.assert_allclose(dc, g @ x, rtol=1e-10)


def test_a_kernel_that_cannot_be_traced():
    """A score in compiled code: np.asarray of what it is given, as a kernel of its own would take it."""

    def opaque(fn):
        def kernel(*args):
            assert all(type(a) in (np.ndarray, np.float64) for a in args), "a kernel takes plain arrays only"
            return fn(*args)

        return kernel

    products = dil.Derivatives(opaque(gradient), hvp=opaque(hvp), mixed=opaque(mixed))
    layer = dil.argmin(opaque(score), dil.solvers.Newton(), init=lambda x, c: 0.0 * x, derivatives=products)
    x, c, v = np.asarray([1.0, -2.0]), np.asarray(1.5), np.asarray([0.3, 0.7])
    y, pull = dil.vjp(layer, x, c)
    dx, dc = pull(v)
    np.testing.assert_allclose(y, 1.5 * np.linalg.solve(A, x), rtol=1e-10)
    np.testing.assert_allclose(dx, 1.5 * np.linalg.solve(A, v), rtol=1e-10)
    np.testing.assert_allclose(dc, np.linalg.solve(A, v) @ x, rtol=1e-10)


def test_a_kernel_without_products_is_refused_not_silently_constant():
    products = dil.Derivatives(lambda u, t: np.frombuffer((u - t).tobytes()), mixed=lambda u, w, t: (-w,))
    layer = dil.argmin(lambda u, t: 0.5 * np.sum((u - t) ** 2), lambda f, u, t: t, derivatives=products)
    _, pull = dil.vjp(layer, np.ones(2))
    with pytest.raises(dil.UnsupportedFunctionError, match="tobytes"):
        pull(np.ones(2))


def test_second_derivatives_differentiate_the_products(plain):
    if plain.backend == "jax":
        pytest.skip("JAX would compile every difference quotient; its second order is checked in tests/test_jax.py")
    quartic = dil.Derivatives(
        gradient=lambda u, t: u**3 + u - t, hvp=lambda u, v, t: (3 * u**2 + 1) * v, mixed=lambda u, w, t: (-w,)
    )

    def fn(t):
        xp = array_namespace(t)
        layer = dil.argmin(
            lambda u, t: xp.sum(u**4) / 4 + xp.sum(u * u) / 2 - xp.sum(t * u),
            dil.solvers.Newton(rtol=1e-11),
            init=lambda t: t,
            derivatives=quartic,
        )
        return layer(t)

    report = dil.check_gradients(fn, plain.asarray([0.5, 1.0]), order=2, directions=1)
    assert report.ok, str(report)


def test_keyword_arguments_come_last():
    products = dil.Derivatives(
        gradient=lambda u, x, scale: u - scale * x,
        hvp=lambda u, v, x, scale: v,
        mixed=lambda u, w, x, scale: (-scale * w, {"scale": -np.sum(x * w)}),
    )
    layer = dil.argmin(
        lambda u, x, scale: 0.5 * np.sum((u - scale * x) ** 2),
        lambda f, u, x, scale: scale * x,
        derivatives=products,
    )
    x, scale = np.asarray([1.0, 2.0]), np.asarray(3.0)
    _, pull = dil.vjp(lambda x, scale: layer(x, scale=scale), x, scale)
    dx, dscale = pull(np.ones(2))
    np.testing.assert_allclose(dx, [3.0, 3.0])
    np.testing.assert_allclose(dscale, 3.0)
