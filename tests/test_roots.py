"""Roots, fixed points and optimal values against closed forms, on every engine, within 1e-9."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil.solvers import Anderson, FixedPoint, Newton

RTOL = 1e-9
SHARP = Newton(rtol=1e-11)


def close(found, expected):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=RTOL * np.abs(expected).max())


def agree(engine, fn, args, cotangent, gradients, seed=0):
    """Assert that forward mode is the transpose of the reverse mode that gave these gradients."""
    draw = np.random.default_rng(seed)
    tangents = [draw.standard_normal(np.shape(x)) for x in args]
    moved = cotangent * engine.tangent(fn, args, tangents)
    products = [g * t for g, t in zip(gradients, tangents, strict=True)]
    terms = np.sum(np.abs(moved)) + sum(np.sum(np.abs(p)) for p in products)
    assert abs(np.sum(moved) - sum(np.sum(p) for p in products)) <= RTOL * terms


def zeros(*args):
    return array_namespace(args[-1]).zeros_like(args[-1])


# --- closed forms ----------------------------------------------------------------------------------------------------


def cosine(y, t):
    return array_namespace(y).cos(y) + t


COSINE = {
    "FixedPoint": dil.fixed_point(cosine, FixedPoint(), init=zeros),
    "Anderson": dil.fixed_point(cosine, Anderson(), init=zeros),
    "Newton": dil.root(lambda y, t: y - cosine(y, t), SHARP, init=zeros),
}


@pytest.mark.parametrize("name", COSINE)
def test_cosine(engine, name):
    """y = cos y + t at t = 0: y' = 1 / (1 + sin y), y'' = -cos y / (1 + sin y)^3."""
    layer = COSINE[name]
    y, (slope,) = engine.gradients(layer, (0.0,))
    close(y, 0.7390851332151607)
    close(slope, 0.5975100457)
    close(slope, 1 / (1 + np.sin(y)))
    close(engine.tangent(layer, (0.0,), (1.0,)), slope)


@pytest.mark.parametrize("name", COSINE)
def test_second_derivative_of_cosine(engine, name):
    slope, (bend,) = engine.gradients(dil.grad(COSINE[name]), (0.0,))
    close(slope, 0.5975100457)
    close(bend, -0.1576631141)
    y = 0.7390851332151607
    close(bend, -np.cos(y) / (1 + np.sin(y)) ** 3)


def test_jacobians_that_are_not_symmetric(engine):
    """y = reverse([sqrt(x + 2); -sqrt(x)]) solves reverse(y^2) = [x + 2; x]."""

    def residual(y, x):
        xp = array_namespace(y)
        return xp.flip(y**2, axis=-1) - xp.concat([x + 2.0, x])

    def start(x):
        xp = array_namespace(x)
        return xp.concat([-xp.ones_like(x), xp.ones_like(x)])

    layer, x = dil.root(residual, SHARP, init=start), np.asarray([0.5, 2.0, 3.0])
    v = np.random.default_rng(0).standard_normal(6)
    y, (dx,) = engine.gradients(layer, (x,), v)
    close(y, np.concatenate([np.sqrt(x + 2), -np.sqrt(x)])[::-1])
    J = np.concatenate([np.diag(0.5 / np.sqrt(x + 2)), np.diag(-0.5 / np.sqrt(x))])[::-1]
    close(dx, J.T @ v)
    t = np.asarray([1.0, -2.0, 0.5])
    close(engine.tangent(layer, (x,), (t,)), J @ t)
    agree(engine, layer, (x,), v, (dx,))


@pytest.mark.parametrize("solver", [FixedPoint(), Anderson()], ids=lambda s: type(s).__name__)
def test_affine_fixed_point(engine, solver):
    """y = M y + b: dy/db = (I - M)^-1, and dy in direction E of M is (I - M)^-1 E y."""
    draw = np.random.default_rng(1)
    M = draw.standard_normal((4, 4))
    M *= 0.45 / np.abs(np.linalg.eigvals(M)).max()
    b, v = draw.standard_normal(4), draw.standard_normal(4)
    assert np.abs(M - M.T).max() > 0.1
    layer = dil.fixed_point(lambda y, M, b: M @ y + b, solver, init=zeros)
    y, gradients = engine.gradients(layer, (M, b), v)
    g = np.linalg.solve((np.eye(4) - M).T, v)
    close(y, np.linalg.solve(np.eye(4) - M, b))
    close(gradients[0], np.outer(g, y))
    close(gradients[1], g)
    agree(engine, layer, (M, b), v, gradients)


def euler(y, before, h, rate):
    return y * (1.0 + h * rate) - before


EULER = {
    "root": dil.root(euler, SHARP, init=lambda before, h, rate: before),
    "least squares": dil.argmin(lambda *args: 0.5 * euler(*args) ** 2, SHARP, init=lambda before, h, rate: before),
}


@pytest.mark.parametrize("name", EULER)
def test_implicit_euler_of_a_stiff_equation(engine, name):
    """y (1 + h l) = y_n: dy/dl = -h y_n / (1 + h l)^2."""
    before, h, rate = 2.0, 0.5, 1e4
    y, gradients = engine.gradients(EULER[name], (before, h, rate))
    grown = 1 + h * rate
    close(y, before / grown)
    for found, expected in zip(gradients, (1 / grown, -rate * before / grown**2, -h * before / grown**2), strict=True):
        close(found, expected)
    agree(engine, EULER[name], (before, h, rate), 1.0, gradients)


def never(A, b, /, *, loop):
    message = "the gradient of an optimal value needs no linear solve"
    raise AssertionError(message)


def ridge(w, X, y, penalty):
    xp = array_namespace(w)
    r = X @ w - y
    return 0.5 * xp.sum(r * r) + 0.5 * penalty * xp.sum(w * w)


def test_envelope_theorem(engine):
    """v = min_w f(w, args): dv/dargs = df/dargs at the minimiser, and no linear system is solved."""
    draw = np.random.default_rng(2)
    X, y, penalty = draw.standard_normal((6, 3)), draw.standard_normal(6), 0.3
    layer = dil.value(ridge, SHARP, linear_solver=never, init=lambda X, y, penalty: 0.0 * X[0, :])
    v, gradients = engine.gradients(layer, (X, y, penalty), 2.0)
    w = np.linalg.solve(X.T @ X + penalty * np.eye(3), X.T @ y)
    r = X @ w - y
    close(v, 0.5 * r @ r + 0.5 * penalty * w @ w)
    for found, expected in zip(gradients, (np.outer(r, w), -r, 0.5 * w @ w), strict=True):
        close(found, 2.0 * expected)
    agree(engine, layer, (X, y, penalty), 2.0, gradients)


def test_second_derivative_of_an_optimal_value(engine):
    """v = 1/2 ||y||^2 - 1/2 y^T X (X^T X + l I)^-1 X^T y, so d2v/dl2 = -w^T (X^T X + l I)^-1 w."""
    draw = np.random.default_rng(3)
    X, y, penalty = draw.standard_normal((6, 3)), draw.standard_normal(6), 0.3
    layer = dil.value(ridge, SHARP, init=lambda X, y, penalty: 0.0 * X[0, :])
    slope, (_, dy, bend) = engine.gradients(dil.grad(layer, argnums=2), (X, y, penalty))
    A = X.T @ X + penalty * np.eye(3)
    w = np.linalg.solve(A, X.T @ y)
    close(slope, 0.5 * w @ w)
    close(bend, -w @ np.linalg.solve(A, w))
    close(dy, X @ np.linalg.solve(A, w))


def test_optimal_values_of_a_batch(plain):
    t = np.asarray([[1.0, 2.0], [np.nan, 1.0], [-3.0, 0.5]])

    def score(u, t, c):
        return array_namespace(u).sum(0.5 * (u - t) ** 2 + 0.5 * c * u**2, axis=-1)

    layer = dil.value(score, SHARP, linear_solver=never, init=lambda t, c: 0.0 * t, batch_ndim=1, on_failure="nan")
    v, (dt, dc) = plain.gradients(layer, (t, 1.0), np.asarray([1.0, 0.0, 2.0]))
    close(v[[0, 2]], 0.25 * np.sum(t**2, axis=-1)[[0, 2]])
    assert np.isnan(v[1])
    close(dt[[0, 2]], 0.5 * t[[0, 2]] * np.asarray([[1.0], [2.0]]))
    assert np.isnan(dc)  # what is shared collects the cotangents of all problems, the broken one's too


# --- the algebraic Riccati equation ----------------------------------------------------------------------------------


def riccati(S, A, B, Q, R):
    # A^T S B, not the transpose of B^T S A: with that, dF/dS is singular along what is not symmetric, as det A = 1
    return A.mT @ S @ A - S - A.mT @ S @ B @ gain(S, A, B, R) + Q


def gain(S, A, B, R):
    return array_namespace(S).linalg.solve(R + B.mT @ S @ B, B.mT @ S @ A)


def slope_of_gain(S, A, B, R, dA, dB, dQ, dR):
    """Return dK by the linear equation of dS, dS = C^T dS C + D with C = A - B K (East et al. 2020)."""
    K = gain(S, A, B, R)
    C = A - B @ K
    half = C.T @ S @ (dA - dB @ K)
    D = half + half.T + dQ + K.T @ dR @ K
    dS = np.linalg.solve(np.eye(4) - np.kron(C.T, C.T), D.reshape(-1)).reshape(2, 2)
    return np.linalg.solve(R + B.T @ S @ B, dB.T @ S @ C + B.T @ dS @ C + B.T @ S @ (dA - dB @ K) - dR @ K)


def test_gain_of_a_regulator(engine):
    """The gain of the paper's appendix C, differentiated in A, B, Q and R."""
    linalg = pytest.importorskip("scipy.linalg", reason="SciPy is not installed")
    backend = dil._registry.load(engine.backend)

    def solver(fun, init, *args):
        def solve(*args):
            return (engine.asarray(linalg.solve_discrete_are(*(engine.to_numpy(x) for x in args))),)

        return backend.on_host(solve, (args[0],), *args)[0]

    layer = dil.root(riccati, solver)

    def fn(A, B, Q, R):
        return gain(layer(A, B, Q, R), A, B, R)

    k, m, c = 1.0, 1.0, 1.0
    A, B = np.asarray([[0.0, 1.0], [-k / m, -c / m]]), np.asarray([[0.0], [-1.0 / m]])
    args = (A, B, np.eye(2), np.asarray([[2.0]]))
    v = np.asarray([[1.0, -0.5]])
    K, gradients = engine.gradients(fn, args, v)
    S = linalg.solve_discrete_are(*args)
    close(K, np.linalg.solve(args[3] + B.T @ S @ B, B.T @ S @ A))
    for i, found in enumerate(gradients):
        for entry in np.ndindex(found.shape):
            moves = [np.zeros(np.shape(x)) for x in args]
            moves[i][entry] = 1.0
            close(found[entry], np.sum(v * slope_of_gain(S, A, B, args[3], *moves)))
    agree(engine, fn, args, v, gradients)


# --- batches ---------------------------------------------------------------------------------------------------------

T = np.asarray([[0.1, 0.3], [np.nan, 0.2], [-0.2, 0.4], [0.5, -0.6]])


def crossed(y, t, k):
    xp = array_namespace(y)
    return k * xp.cos(xp.flip(y, axis=-1)) + t


BATCHES = {
    "root": (dil.root, lambda y, t, k: y - crossed(y, t, k), SHARP),
    "fixed point": (dil.fixed_point, crossed, Anderson()),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_broken_member_leaves_the_others_alone(engine, kind):
    make, fn, solver = BATCHES[kind]
    layer = make(fn, solver, init=lambda t, k: 0.0 * t, batch_ndim=1, on_failure="nan")
    v = np.asarray([[1.0, -1.0], [1.0, 1.0], [0.5, 2.0], [0.0, 0.0]])
    y, (dt, dk) = engine.gradients(layer, (T, 0.4), v)
    assert np.isnan(y[1]).all()
    assert np.isnan(dt[1]).all()
    assert np.isnan(dk)
    for i in (0, 2, 3):
        residual = y[i] - 0.4 * np.cos(y[i][::-1]) - T[i]
        assert np.abs(residual).max() < 1e-11
        J = np.eye(2) + 0.4 * np.diag(np.sin(y[i][::-1]))[:, ::-1]
        close(dt[i], np.linalg.solve(J.T, v[i]))
    assert np.all(dt[3] == 0)


@pytest.mark.parametrize("kind", BATCHES)
def test_a_shared_argument_collects_from_all_problems(plain, kind):
    make, fn, solver = BATCHES[kind]
    layer = make(fn, solver, init=lambda t, k: 0.0 * t, batch_ndim=1)
    t, v = T[[0, 2, 3]], np.asarray([[1.0, -1.0], [0.5, 2.0], [3.0, 0.1]])
    y, gradients = plain.gradients(layer, (t, 0.4), v)
    total = 0.0
    for row, u in zip(y, v, strict=True):
        J = np.eye(2) + 0.4 * np.diag(np.sin(row[::-1]))[:, ::-1]
        total += np.linalg.solve(J.T, u) @ np.cos(row[::-1])
    close(gradients[1], total)
    agree(plain, layer, (t, 0.4), v, gradients)
