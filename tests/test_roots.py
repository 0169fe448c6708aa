"""Roots, fixed points and optimal values against closed forms, on every engine, within 1e-9."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace, device

import dil
from dil import Status
from dil.solvers import LBFGS, Anderson, FixedPoint, GradientDescent, Newton, RandomShooting, SciPy, SciPyRoot

RTOL = 1e-9
ONCE = "JAX compiles each case; jax:jit runs {}"
SHARP = Newton(rtol=1e-11)


@pytest.fixture
def engine(engine):
    if engine.name == "jax":
        pytest.skip(ONCE.format("this one"))
    return engine


@pytest.fixture
def plain(plain):
    if plain.name == "jax":
        pytest.skip(ONCE.format("its neighbours"))
    return plain


def not_on_jax_but(engine, name, chosen):
    if engine.backend == "jax" and name != chosen:
        pytest.skip(ONCE.format(chosen))


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
    not_on_jax_but(engine, name, "Newton")
    layer = COSINE[name]
    y, (slope,) = engine.gradients(layer, (0.0,))
    close(y, 0.7390851332151607)
    close(slope, 0.5975100457)
    close(slope, 1 / (1 + np.sin(y)))
    close(engine.tangent(layer, (0.0,), (1.0,)), slope)


@pytest.mark.parametrize("name", COSINE)
def test_second_derivative_of_cosine(engine, name):
    not_on_jax_but(engine, name, "Anderson")
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

    def solver(fun, init, x):
        xp = array_namespace(x)
        return xp.flip(xp.concat([xp.sqrt(x + 2.0), -xp.sqrt(x)]), axis=-1)

    layer, x = dil.root(residual, solver), np.asarray([0.5, 2.0, 3.0])
    v = np.random.default_rng(0).standard_normal(6)
    y, (dx,) = engine.gradients(layer, (x,), v)
    close(y, np.concatenate([np.sqrt(x + 2), -np.sqrt(x)])[::-1])
    J = np.concatenate([np.diag(0.5 / np.sqrt(x + 2)), np.diag(-0.5 / np.sqrt(x))])[::-1]
    close(dx, J.T @ v)
    t = np.asarray([1.0, -2.0, 0.5])
    close(engine.tangent(layer, (x,), (t,)), J @ t)
    agree(engine, layer, (x,), v, (dx,))


AFFINE = {"FixedPoint": FixedPoint(), "Anderson": Anderson()}


@pytest.mark.parametrize("name", AFFINE)
def test_affine_fixed_point(engine, name):
    """y = M y + b: dy/db = (I - M)^-1, and dy in direction E of M is (I - M)^-1 E y."""
    not_on_jax_but(engine, name, "FixedPoint")
    draw = np.random.default_rng(1)
    M = draw.standard_normal((4, 4))
    M *= 0.45 / np.abs(np.linalg.eigvals(M)).max()
    b, v = draw.standard_normal(4), draw.standard_normal(4)
    assert np.abs(M - M.T).max() > 0.1
    layer = dil.fixed_point(lambda y, M, b: M @ y + b, AFFINE[name], init=zeros)
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
    not_on_jax_but(engine, name, "root")
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


def test_an_optimal_value_with_a_nan_in_its_gradient_is_told_as_such():
    """The minimisers are finite. The second problem has a NaN in its data; the third is half off."""
    t = np.asarray([[1.0], [np.nan], [2.0]])
    u = np.asarray([[1.0], [1.0], [3.0]])

    def score(u, t):
        return np.sum((u - t) ** 2 + t**2, axis=-1)

    layer = dil.value(score, lambda *_: u, batch_ndim=1, on_failure="nan")
    with dil.record() as record:
        dil.vjp(layer, t)[1](np.ones(3))
    assert [Status(int(s)).name for s in record.backward[0].status] == ["CONVERGED", "NON_FINITE", "NOT_STATIONARY"]


@pytest.mark.parametrize("n", [5, 100, 1000])
def test_an_optimal_value_that_leaves_directions_open_is_not_called_a_saddle(n):
    """A score of two combinations of the unknowns: the Hessian has the eigenvalue zero, and rounding moves it a bit."""
    draw, t = np.random.default_rng(0), np.asarray(3.0, dtype="float32")

    def score(u, t, W):
        return 0.5 * np.sum((np.sum(W * u, axis=-1) - t) ** 2) + t**2  # BLAS in float32 may warn of numbers all finite

    for W in draw.standard_normal((12, 2, n)).astype("float32"):
        layer = dil.value(score, lambda f, i, t, W: np.linalg.pinv(W) @ np.full(2, t), on_failure="raise")
        np.testing.assert_allclose(dil.grad(layer)(t, W), 6.0, rtol=1e-4)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize(("error", "status"), [(4e-4, "CONVERGED"), (0.5, "NOT_STATIONARY")])
def test_units_of_the_derivative_of_a_value(unit, scale, error, status):
    """The derivative is as far off as the minimiser, relative to it."""

    def score(u, t):
        return scale * np.sum((u - t) ** 2 + t**2)

    t = unit * np.asarray([1.0, -2.0])
    value = dil.value(score, lambda f, i, t: (1 + error) * t, on_failure="ignore")
    with dil.record() as record:
        (g,) = dil.vjp(value, t)[1](np.asarray(1.0))
    np.testing.assert_allclose(g, 2 * scale * (1 - error) * t, rtol=1e-12)
    assert Status(int(record.backward[0].status)).name == status


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_a_derivative_of_a_value_that_is_rounding_at_a_minimiser_of_zero(unit):
    A, b = np.asarray([[1.0, 3.0], [-2.0, 0.7]]), unit * np.asarray([0.1, 0.3])
    value = dil.value(lambda u, c: np.sum((A @ (u + c) - b) ** 2), lambda f, i, c: 0.0 * c, on_failure="raise")
    _, g = dil.value_and_grad(value)((1 + 1e-15) * np.linalg.solve(A, b))
    assert np.all(np.abs(g) <= 1e-14 * unit)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize(("off", "told"), [((0.0, 0.0), False), ((0.1, 0.0), True), ((0.0, 0.1), True)])
def test_the_value_of_a_lasso_has_a_derivative_at_its_kinks(unit, off, told):
    """The second entry is on its kink; only an error of the solver is told."""

    def score(u, t):
        return 0.5 * np.sum((u - t) ** 2) + unit * np.sum(np.abs(u))

    t = unit * np.asarray([2.0, 0.5])
    value = dil.value(score, lambda f, i, t: unit * (np.asarray([1.0, 0.0]) + off), on_failure="ignore")
    with dil.record() as record:
        (g,) = dil.vjp(value, t)[1](np.asarray(1.0))
    assert (Status(int(record.backward[0].status)) is Status.NOT_STATIONARY) == told
    if not told:
        np.testing.assert_allclose(g, unit * np.asarray([1.0, 0.5]))


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_a_maximum_is_told_in_the_derivative_of_a_value_in_any_unit_of_the_score(scale):
    value = dil.value(lambda u, t: scale * np.sum(t**2 - (u - t) ** 2), lambda f, i, t: 1.0 * t, on_failure="ignore")
    with dil.record() as record:
        dil.vjp(value, np.ones(3))[1](np.asarray(1.0))
    assert Status(int(record.backward[0].status)) is Status.NOT_MINIMUM


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
    backend = dil._frameworks.registry.load(engine.backend)

    def solver(fun, init, *args):
        def solve(*args):
            return (engine.asarray(linalg.solve_discrete_are(*(engine.to_numpy(x) for x in args))),)

        return backend.loops.on_host(solve, (args[0],), *args)[0]

    layer = dil.root(riccati, solver, linear_solver=dil.linear.Direct())

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


# --- Newton on roots -------------------------------------------------------------------------------------------------

EQUATIONS = ["hessian", "normal"]


def names(engine, status):
    return [Status(int(code)).name for code in np.ravel(engine.to_numpy(status))]


def swirl(u, t):
    """A residual whose Jacobian is far from symmetric: u turned by a right angle, a cube, and t."""
    xp = array_namespace(u)
    turned = xp.flip(u, axis=-1) * xp.asarray([-1.0, 1.0], dtype=u.dtype, device=device(u))
    return turned + 0.1 * u**3 - t


@pytest.mark.parametrize("equations", EQUATIONS)
def test_newton_finds_roots(plain, equations):
    t = np.asarray([[1.0, 2.0], [np.nan, 1.0], [0.0, 0.0], [-30.0, 4.0]])
    layer = dil.root(swirl, Newton(equations), init=lambda t: 0.0 * t, batch_ndim=1)
    sol = layer.solve(plain.asarray(t))
    assert names(plain, sol.status) == ["CONVERGED", "NON_FINITE", "CONVERGED", "CONVERGED"]
    u, steps = plain.to_numpy(sol.value), plain.to_numpy(sol.iterations)
    assert steps[1] == steps[2] == 0
    assert 0 < steps[0] < steps[3]
    left = u[:, ::-1] * [-1.0, 1.0] + 0.1 * u**3 - t
    rounding = 4 * np.finfo(float).eps * np.nanmax(np.abs(t))
    assert np.abs(left[[0, 2, 3]]).max() <= rounding
    alone = dil.root(swirl, Newton(equations), init=lambda t: 0.0 * t).solve(plain.asarray(t[0]))
    np.testing.assert_allclose(u[0], plain.to_numpy(alone.value), rtol=1e-12)


@pytest.mark.parametrize("equations", EQUATIONS)
def test_newton_finds_a_root_that_is_a_tree(plain, equations):
    def residual(u, t):
        xp = array_namespace(u["a"])
        return {"a": u["b"][0] ** 3 - t, "b": [u["a"] + xp.sin(u["b"][0])]}

    ones = plain.asarray(np.ones(3))
    sol = dil.root(residual, Newton(equations)).solve(2.0 * ones, init={"a": ones, "b": [1.5 * ones]})
    assert names(plain, sol.status) == ["CONVERGED"]
    np.testing.assert_allclose(plain.to_numpy(sol.value["b"][0]), 2 ** (1 / 3), rtol=1e-12)
    np.testing.assert_allclose(plain.to_numpy(sol.value["a"]), -np.sin(2 ** (1 / 3)), rtol=1e-12)


def test_newton_finds_a_fixed_point(plain):
    sol = dil.fixed_point(cosine, Newton()).solve(plain.asarray(0.0), init=plain.asarray(5.0))
    assert names(plain, sol.status) == ["CONVERGED"]
    np.testing.assert_allclose(plain.to_numpy(sol.value), 0.7390851332151607, rtol=1e-14)


@pytest.mark.parametrize("equations", EQUATIONS)
@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_units_of_the_residual_are_immaterial_to_newton(equations, scale):
    solve = [dil.root(lambda u, t, k=k: k * swirl(u, t), Newton(equations)).solve for k in (1.0, scale)]
    usual, scaled = (fn(np.asarray([-30.0, 4.0]), init=np.zeros(2)) for fn in solve)
    assert Status(int(scaled.status)) is Status.CONVERGED
    assert abs(int(scaled.iterations) - int(usual.iterations)) <= 1
    np.testing.assert_allclose(scaled.value, usual.value, rtol=1e-12)


SINGULAR = {
    "no slope at the start": (lambda u, t: u**2 - t, 4.0, 0.0, {"SINGULAR"}),
    "no slope anywhere": (lambda u, t: 0.0 * u + t, 1.0, 1.0, {"SINGULAR"}),
    "no slope at a small residual": (lambda u, t: u**2 - t, 1e-12, 0.0, {"SINGULAR"}),
    "no root": (lambda u, t: u**2 + t, 1.0, 0.3, {"NO_ROOT"}),
    "a root at infinity": (lambda u, t: array_namespace(u).exp(-t * u), 1.0, 0.0, {"MAX_ITER"}),
}


@pytest.mark.parametrize("equations", EQUATIONS)
@pytest.mark.parametrize("kind", SINGULAR)
def test_newton_calls_no_singular_point_a_root(plain, kind, equations):
    fn, t, start, ends = SINGULAR[kind]
    sol = dil.root(fn, Newton(equations, max_iter=40)).solve(plain.asarray(t), init=plain.asarray(start))
    assert set(names(plain, sol.status)) <= ends


@pytest.mark.parametrize("damping", [1e-3, 10.0])
@pytest.mark.parametrize("equations", EQUATIONS)
def test_damped_newton_calls_no_short_step_converged(equations, damping):
    """Damping shortens every step, at a singular J to anything: J = 0 in the first of the problems."""

    def residual(u, t):
        return u**2 - t

    solver = Newton(equations, damping=damping, max_iter=400)
    sol = dil.root(residual, solver, batch_ndim=1).solve(np.full((2, 1), 1e-12), init=np.asarray([[0.0], [1.0]]))
    for u, status in zip(sol.value[:, 0], sol.status, strict=True):
        assert int(status) != Status.CONVERGED or abs(u**2 - 1e-12) <= 1e-13


def test_newton_goes_round_a_singular_jacobian(plain):
    """J = [[0, 0], [1, 1]] at the start: the equations have no solution there, and the way of descent leads away."""

    def residual(u, t):
        xp = array_namespace(u)
        return xp.stack([u[0] ** 2 - t[0], u[0] + u[1] - t[1]])

    sol = dil.root(residual, Newton()).solve(plain.asarray([4.0, 1.0]), init=plain.asarray([0.0, 0.0]))
    assert names(plain, sol.status) == ["CONVERGED"]
    np.testing.assert_allclose(plain.to_numpy(sol.value), [2.0, -1.0], rtol=1e-12)


def test_a_step_to_where_the_score_overflows_is_not_taken(plain):
    """The Newton step from a region of little curvature leads to where exp is infinite, which is no descent."""
    start, target = plain.asarray(np.asarray([-10.0])), plain.asarray(1000.0)

    def score(u, t):
        xp = array_namespace(u)
        small = xp.where(u < 700.0, u, 0.0 * u)
        return xp.sum(xp.where(u < 700.0, xp.exp(small), 0.0 * u + float("inf")) - t * u)

    sol = dil.argmin(score, Newton()).solve(target, init=start)
    assert names(plain, sol.status) == ["CONVERGED"]
    np.testing.assert_allclose(plain.to_numpy(sol.value), np.log(1000.0), rtol=1e-12)


def test_newton_on_roots_under_jit():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    t = np.asarray([[1.0, 2.0], [np.nan, 1.0], [-30.0, 4.0]])
    layer = dil.root(swirl, Newton(), init=lambda t: 0.0 * t, batch_ndim=1)
    here = layer.solve(t)
    there = jax.jit(lambda t: layer.solve(t)._replace(extra=None))(jax.numpy.asarray(t))
    np.testing.assert_array_equal(there.status, here.status)
    np.testing.assert_allclose(np.asarray(there.value)[[0, 2]], here.value[[0, 2]], rtol=1e-12)


# --- solvers and layers that do not go together ----------------------------------------------------------------------

X = np.asarray([1.0, 2.0])
MISMATCHED = [
    *(
        (make, solver, rf"{type(solver).__name__} minimises a score, and this layer has a {kind}; take .*Newton\(\)")
        for solver in (GradientDescent(), LBFGS(), RandomShooting(), SciPy())
        for make, kind in ((dil.root, "residual"), (dil.fixed_point, "step"))
    ),
    *(
        (make, solver, rf"{type(solver).__name__} takes a step, and this layer has a {kind}; take dil\.fixed_point")
        for solver in (FixedPoint(), Anderson())
        for make, kind in ((dil.root, "residual"), (dil.argmin, "score"))
    ),
    *(
        (make, SciPyRoot(), rf"SciPyRoot takes a residual, and this layer has a {kind}; take dil\.root")
        for make, kind in ((dil.fixed_point, "step"), (dil.argmin, "score"))
    ),
    *(
        (make, Newton("truncated"), r"equations='truncated' is for scores; take Newton\(\)")
        for make in (dil.root, dil.fixed_point)
    ),
]


@pytest.mark.parametrize(("make", "solver", "text"), MISMATCHED, ids=lambda x: getattr(x, "__name__", type(x).__name__))
def test_a_solver_of_another_kind_of_layer_is_refused(make, solver, text):
    fn = (lambda u, x: np.sum((u - x) ** 2)) if make is dil.argmin else (lambda u, x: 0.5 * u - x)
    with pytest.raises(dil.OptionError, match=text):
        make(fn, solver, init=X)(X)


@pytest.mark.parametrize("make", [dil.root, dil.fixed_point])
def test_newton_on_an_equation_needs_a_start(make):
    with pytest.raises(dil.OptionError, match=r"Newton needs a start; pass init= in the call"):
        make(lambda u, x: 0.5 * u - x, Newton())(X)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["hybr", "lm", "krylov", "df-sane", "broyden1"])
def test_every_method_of_scipy_finds_a_root_in_float32(method, dtype):
    """Those that take differences take them above the rounding of the residual."""
    d = np.linspace(1.0, 3.0, 10).astype(dtype)
    layer = dil.root(lambda u, t: d * (u - t) + 0.1 * np.sin(u), dil.solvers.SciPyRoot(method), init=lambda t: 0 * t)
    found = layer.solve(np.ones(10, dtype))
    assert dil.Status(int(found.status)).ok
    residual = d * (found.value - 1.0) + 0.1 * np.sin(found.value)
    assert np.abs(residual).max() <= 1e-4 * np.abs(d).max()


@pytest.mark.parametrize("name", ["root", "fsolve", "newton"])
def test_a_function_of_scipy_is_no_solver_and_the_error_says_which_is(name):
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    with pytest.raises(dil.OptionError, match=rf"solver={name} is a function of SciPy.*dil\.solvers\.SciPyRoot\(\)"):
        dil.root(lambda u, a: u - a, getattr(optimize, name), init=lambda a: a)
