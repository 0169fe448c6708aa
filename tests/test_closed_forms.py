"""Gradients against closed forms, on every engine, within 1e-9."""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace, device

import dil

RTOL = 1e-9


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=RTOL * np.abs(expected).max())


def newton(score, **options):
    return dil.argmin(score, dil.solvers.Newton(rtol=1e-11), **options)


def test_ridge(engine):
    """w = (X^T X + l n I)^-1 X^T y; dw/dl = -n (X^T X + l n I)^-1 w."""
    draw = np.random.default_rng(0)
    n, d, penalty = 20, 4, 0.3
    X, y = draw.standard_normal((n, d)), draw.standard_normal(n)

    def score(w, X, y, penalty):
        xp = array_namespace(w)
        r = X @ w - y
        return 0.5 * xp.sum(r * r) + 0.5 * n * penalty * xp.sum(w * w)

    layer = newton(score, init=lambda X, y, penalty: array_namespace(X).zeros_like(X[0, :]))
    H = X.T @ X + penalty * n * np.eye(d)
    w = np.linalg.solve(H, X.T @ y)
    v = draw.standard_normal(d)
    found, (_, dy, dpenalty) = engine.gradients(layer, (X, y, penalty), v)
    close(found, w)
    close(dpenalty, v @ (-n * np.linalg.solve(H, w)))
    close(dy, X @ np.linalg.solve(H, v))


def test_quadratic(engine):
    """1/2 u^T A u - b^T u: dy/db = A^-1; dy in direction E of A is -A^-1 E y."""
    draw = np.random.default_rng(1)
    M = draw.standard_normal((5, 5))
    A, b, v = M @ M.T + np.eye(5), draw.standard_normal(5), draw.standard_normal(5)

    def score(u, A, b):
        xp = array_namespace(u)
        return 0.5 * xp.sum(u * (A @ u)) - xp.sum(b * u)

    layer = newton(score, init=lambda A, b: array_namespace(b).zeros_like(b))
    y, (dA, db) = engine.gradients(layer, (A, b), v)
    g = np.linalg.solve(A, v)
    close(y, np.linalg.solve(A, b))
    close(db, g)
    close(dA, -0.5 * (np.outer(g, y) + np.outer(y, g)))  # the score sees the symmetric part of A alone


def test_logistic_regression(engine):
    """L2-regularised logistic regression: dw/dl = -H^-1 w."""
    draw = np.random.default_rng(2)
    X, t = draw.standard_normal((30, 3)), np.sign(draw.standard_normal(30))

    def score(w, X, t, penalty):
        xp = array_namespace(w)
        margin = (X @ w) * t
        loss = xp.sum(xp.log1p(xp.exp(-xp.abs(margin))) + xp.maximum(-margin, 0.0 * margin))
        return loss + 0.5 * penalty * xp.sum(w * w)

    layer = newton(score, init=lambda X, t, penalty: array_namespace(X).zeros_like(X[0, :]))
    v = draw.standard_normal(3)
    w, (_, _, dpenalty) = engine.gradients(layer, (X, t, 0.7), v)
    p = 1 / (1 + np.exp(-(X @ w) * t))
    H = (X.T * (p * (1 - p))) @ X + 0.7 * np.eye(3)
    close(dpenalty, -v @ np.linalg.solve(H, w))


def test_kepler(engine):
    """E - e sin E = M at M = 1, e = 0.3."""

    def score(E, M, e):
        xp = array_namespace(E)
        return 0.5 * (E - e * xp.sin(E) - M) ** 2

    layer = newton(score, init=lambda M, e: M)
    E, (dM, de) = engine.gradients(layer, (1.0, 0.3))
    close(E, 1.2880913132)
    close(de, 1.0480083050)
    close(dM, 1.0913293012)
    close(de, np.sin(E) / (1 - 0.3 * np.cos(E)))


def test_gauss_newton_is_not_newton(engine):
    """f = 1/2 (u - t)^2 + 1/2 (u^2 + 1)^2 at t = 1: dy/dt = 1/(3 + 6 y^2)."""

    def score(u, t):
        return 0.5 * (u - t) ** 2 + 0.5 * (u**2 + 1.0) ** 2

    y, (dt,) = engine.gradients(newton(score, init=lambda t: t), (1.0,))
    close(y, 0.3129084095)
    close(dt, 0.2787479728)
    close(dt, 1 / (3 + 6 * y**2))


def test_damping(engine):
    """The paper's eps: with CG(damping=eps) the gradient is that of (H + eps I)^-1."""
    a = np.asarray([1.0, 2.0, 5.0])

    def score(u, b):
        xp = array_namespace(u)
        return 0.5 * xp.sum(u * u * xp.asarray(a.tolist(), dtype=u.dtype, device=device(u))) - xp.sum(b * u)

    layer = newton(score, init=lambda b: b, linear_solver=dil.linear.CG(damping=0.5))
    _, (db,) = engine.gradients(layer, (np.ones(3),), np.asarray([1.0, -2.0, 3.0]))
    close(db, np.asarray([1.0, -2.0, 3.0]) / (a + 0.5))


def test_batch(engine):
    """Rows are independent problems; a shared argument collects the cotangents of all of them."""
    draw = np.random.default_rng(3)
    t, c = draw.standard_normal((4, 3)), np.asarray([0.5, 1.0, 2.0])

    def score(u, t, c):
        xp = array_namespace(u)
        return xp.sum(0.25 * c * u**4 + 0.5 * (u - t) ** 2, axis=-1)

    layer = newton(score, init=lambda t, c: array_namespace(t).zeros_like(t), batch_ndim=1)
    v = draw.standard_normal((4, 3))
    y, (dt, dc) = engine.gradients(layer, (t, c), v)
    h = 3 * c * y**2 + 1
    close(dt, v / h)
    close(dc, -(v * y**3 / h).sum(0))
