"""A product with dF/dargs that the user gives is compared with F, in both modes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil._base.status import name_of

A = np.diag(np.arange(1.0, 5.0)) + 0.3 * np.eye(4, k=1)
T, C = np.linspace(0.5, 2.0, 4), np.asarray(0.7)
V = np.cos(np.arange(4.0))
WRONG = {
    "sign": lambda u, w, t, c: (w, np.sum(w * u**3)),
    "left out": lambda u, w, t, c: (-w, None),
    "lost": lambda u, w, t, c: (0.0 * w, np.sum(w * u**3)),
    "scaled": lambda u, w, t, c: (-1.03 * w, np.sum(w * u**3)),
    "another order": lambda u, w, t, c: (-w[::-1], np.sum(w * u**3)),
}


def matrix(u, t, c):
    return A + c * np.diag(3 * u**2)


def mixed(u, w, t, c):
    return -w, np.sum(w * u**3)


def mixed_jvp(u, d, t, c):
    return d[1] * u**3 - d[0]


def root_of(fn=None, J=matrix, *, units=1.0, **options):
    """A new residual, which no check remembers."""

    def residual(u, t, c):
        return A @ u + c * u**3 - t

    given = {"mixed": mixed} if fn is None else fn if isinstance(fn, dict) else {"mixed": fn}
    return dil.root(
        residual,
        dil.solvers.Newton(),
        init=lambda t, c: 0.0 * t,
        derivatives=dil.Jacobian(J, **given),
        **{"on_failure": "raise", **options},
    )


@pytest.fixture
def looks(eager):
    """How a layer comes to look at its derivatives: array_api_strict stands for compiled programs, unread at first."""
    return {"check_smoothness": "always" if eager.name == "array_api_strict" else "first"}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_product_is_told(eager, looks, kind):
    with pytest.raises(dil.ConvergenceError, match=r"WRONG_MIXED.*`mixed`"):
        eager.gradients(root_of(WRONG[kind], **looks), (T, C), V)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eager.gradients(root_of(WRONG[kind], check_smoothness="never"), (T, C), V)


def test_every_engine_tells_where_it_always_looks(engine):
    def derivative(fn):
        return engine.gradients(root_of(fn, check_smoothness="always", on_failure="nan"), (T, C), V)[1]

    for found, expected in zip(derivative(mixed), numpy_gradient(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert all(np.all(np.isnan(x)) for x in derivative(WRONG["sign"]))


def numpy_gradient():
    return dil.vjp(root_of(), T, C)[1](V)


def test_forward_mode(eager, looks):
    """It uses the product of forward mode, which is compared with F, or with that of reverse mode if both are given."""
    alone = root_of({"mixed_jvp": mixed_jvp})
    both = root_of({"mixed_jvp": mixed_jvp, "mixed": mixed})
    np.testing.assert_allclose(
        *(eager.tangent(layer, (T, C), (V, np.asarray(2.0))) for layer in (alone, both)), rtol=1e-12
    )
    for wrong in (lambda u, d, t, c: d[1] * u**3 + d[0], lambda u, d, t, c: -d[0]):
        with pytest.raises(dil.ConvergenceError, match=r"WRONG_MIXED.*`mixed_jvp`"):
            eager.tangent(root_of({"mixed_jvp": wrong}, **looks), (T, C), (V, np.asarray(2.0)))
        with pytest.raises(dil.UnsupportedFunctionError, match="contradict each other"):
            eager.tangent(root_of({"mixed_jvp": wrong, "mixed": mixed}), (T, C), (V, np.asarray(2.0)))


def test_forward_mode_needs_no_product_of_reverse_mode(engine):
    found = engine.tangent(root_of({"mixed_jvp": mixed_jvp}), (T, C), (V, np.asarray(2.0)))
    expected = dil.jvp(root_of({"mixed_jvp": mixed_jvp, "mixed": mixed}), (T, C), (V, np.asarray(2.0)))[1]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_step(eager, looks):
    def layer(sign):
        return dil.fixed_point(
            lambda u, t: 0.3 * np.sin(u) + t,
            dil.solvers.FixedPoint(rtol=1e-12),
            init=lambda t: 0.0 * t,
            derivatives=dil.Jacobian(lambda u, t: np.diag(0.3 * np.cos(u)), mixed=lambda u, w, t: (sign * w,)),
            on_failure="raise",
            **looks,
        )

    eager.gradients(layer(1.0), (T,), V)
    with pytest.raises(dil.ConvergenceError, match="WRONG_MIXED"):
        eager.gradients(layer(-1.0), (T,), V)


@pytest.mark.parametrize("batch_ndim", [0, 1])
def test_the_product_of_a_score(eager, looks, batch_ndim):
    """0.5 |u|^2 - sum(t^2 u), whose minimum is t^2."""

    def score(u, t):
        return array_namespace(u).sum(0.5 * u * u - t * t * u, axis=-1)

    def layer(factor):
        return dil.argmin(
            lambda u, t: score(u, t),
            dil.solvers.Newton(),
            init=lambda t: 0.0 * t,
            batch_ndim=batch_ndim,
            derivatives=dil.Derivatives(lambda u, t: u - t * t, lambda u, v, t: v, lambda u, w, t: (-factor * t * w,)),
            on_failure="raise",
            **looks,
        )

    t = np.stack([T, 2.0 * T]) if batch_ndim else T
    _, (dt,) = eager.gradients(layer(2.0), (t,), 1.0 + 0.0 * t)
    np.testing.assert_allclose(dt, 2.0 * t, rtol=1e-12)
    with pytest.raises(dil.ConvergenceError, match="WRONG_MIXED"):
        eager.gradients(layer(1.0), (t,), 1.0 + 0.0 * t)


@pytest.mark.parametrize("other", ["J", "mixed"])
def test_other_derivatives_of_a_known_function_are_looked_at(other):
    """A call that has passed is remembered with its derivatives."""

    def residual(u, t):
        return 2.0 * u - t

    def gradient(J, mixed):
        options = {"derivatives": dil.Jacobian(J, mixed=mixed), "on_failure": "raise"}
        return dil.vjp(dil.root(residual, lambda f, u, t: 0.5 * t, **options, init=lambda t: t), T)[1](V)[0]

    right = {"J": lambda u, t: 2.0 * np.eye(4), "mixed": lambda u, w, t: (-w,)}
    wrong = {"J": lambda u, t: 4.0 * np.eye(4), "mixed": lambda u, w, t: (-3.0 * w,)}
    np.testing.assert_allclose(gradient(**right), V / 2.0)
    with pytest.raises(dil.ConvergenceError, match="WRONG_DERIVATIVE" if other == "J" else "WRONG_MIXED"):
        gradient(**{**right, other: wrong[other]})


UNITS = [1e-12, 1.0, 1e12]


@pytest.mark.parametrize("of_t", UNITS)
@pytest.mark.parametrize("of_u", UNITS)
def test_units_do_not_matter(of_t, of_u):
    """The unknown, the equations and the argument in any units, each entry in its own."""
    rows = np.asarray([1e-6, 1.0, 1e6, 1e3])
    columns, inner = of_u * rows[::-1], of_t * rows[[2, 0, 3, 1]]

    def layer(factor):
        def residual(u, t):
            x = u / columns
            return rows * (A @ x + x**3 - t / inner)

        def J(u, t):
            x = u / columns
            return rows[:, None] * (A + np.diag(3.0 * x**2)) / columns

        given = dil.Jacobian(J, mixed=lambda u, w, t: (-factor * rows * w / inner,))
        y = columns * root_of()(T, np.asarray(1.0))
        return dil.root(residual, lambda f, u, t: y, init=lambda t: y, derivatives=given)

    def told(factor):
        report = layer(factor).report(inner * T, cotangent=1.0 / columns)
        return name_of(int(report.backward.status))

    assert told(1.0) == "CONVERGED"
    assert told(1.5) == "WRONG_MIXED"


@pytest.mark.parametrize("n", [1, 2, 300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_right_products_pass(n, dtype):
    """Arguments of all sizes, zeros, kinks beside the point and steep functions."""
    draw = np.random.default_rng(n)
    for seed in range(6):
        t = (draw.standard_normal(n) * 10.0 ** draw.uniform(-3, 3, n) * (draw.random(n) > 0.2)).astype(dtype)

        def residual(u, t, p, seed=seed):
            return u - np.exp(0.3 * np.sin(p * t)) - np.abs(t)

        def mixed(u, w, t, p, seed=seed):
            slope = np.exp(0.3 * np.sin(p * t)) * 0.3 * np.cos(p * t)
            return -w * (slope * p + np.sign(t)), np.sum(-w * slope * t).astype(w.dtype)

        layer = dil.root(
            residual,
            lambda f, u, t, p: (np.exp(0.3 * np.sin(p * t)) + np.abs(t)).astype(dtype),
            init=lambda t, p: t,
            derivatives=dil.Jacobian(lambda u, t, p: np.eye(n), mixed=mixed),
        )
        p = np.asarray(10.0 ** draw.uniform(-3, 1), dtype=dtype)
        assert int(layer.report(t, p, cotangent=np.ones(n, dtype=dtype)).backward.status) == Status.CONVERGED
