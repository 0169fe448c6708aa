"""NumPy arrays and numbers next to arrays of JAX are arrays of JAX, wherever a user may pass them."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import dil  # noqa: E402
from dil.solvers import LBFGS, Newton  # noqa: E402

X = np.random.default_rng(0).standard_normal((6, 3))
THETA = np.asarray([0.5, 1.0, 2.0, -1.0, 0.3, 0.7])


def ridge(u, theta, X):
    return jnp.sum((X @ u - theta) ** 2) + 0.1 * jnp.sum(u**2)


def closed(f, init, theta, X):
    return jnp.linalg.solve(X.T @ X + 0.1 * jnp.eye(3), X.T @ theta)


LAYER = dil.argmin(ridge, closed)
RIGHT = np.linalg.solve(X.T @ X + 0.1 * np.eye(3), X.T @ THETA)


def is_right(y):
    assert isinstance(y, jax.Array)
    np.testing.assert_allclose(y, RIGHT, rtol=1e-6)


@pytest.mark.transform("NumPy arrays beside arrays of JAX")
def test_data_of_numpy_beside_parameters_of_jax():
    theta = jnp.asarray(THETA)
    is_right(LAYER(theta, X))
    is_right(LAYER(THETA, jnp.asarray(X)))
    is_right(jax.jit(lambda theta: LAYER(theta, X))(theta))
    is_right(LAYER.solve(theta, X).value)
    assert LAYER.report(theta, X).ok


def test_derivatives_with_data_of_numpy():
    theta = jnp.asarray(THETA)
    expected = jax.grad(lambda theta: jnp.sum(LAYER(theta, jnp.asarray(X))))(theta)
    for gradient in (
        jax.grad(lambda theta: jnp.sum(LAYER(theta, X)))(theta),
        jax.jit(jax.grad(lambda theta: jnp.sum(LAYER(theta, X))))(theta),
        dil.grad(lambda theta, X: jnp.sum(LAYER(theta, X)))(theta, X),
        dil.vjp(lambda theta: LAYER(theta, X), theta)[1](np.ones(3))[0],
    ):
        np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    _, tangent = dil.jvp(lambda theta: LAYER(theta, X), (theta,), (np.ones(6),))
    np.testing.assert_allclose(jnp.sum(tangent), jnp.sum(expected), rtol=1e-10)


@pytest.mark.parametrize("init", [np.zeros(3), lambda theta, X: np.zeros(3)], ids=["array", "callable"])
def test_a_start_of_numpy(init):
    layer = dil.argmin(ridge, Newton(), init=init)
    is_right(layer(jnp.asarray(THETA), X))
    is_right(layer(jnp.asarray(THETA), X, init=np.ones(3)))


def test_a_start_of_jax_beside_data_of_numpy():
    is_right(dil.argmin(ridge, Newton())(THETA, X, init=jnp.zeros(3)))


def test_a_solver_called_by_itself():
    is_right(LBFGS()(ridge, np.zeros(3), jnp.asarray(THETA), X).value)


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2.0), np.asarray(2.0)], ids=repr)
def test_numbers(number):
    layer = dil.root(lambda u, a, t: a * u - t, lambda f, init, a, t: t / a)
    assert float(layer(number, jnp.asarray(3.0))) == 1.5


def test_integers_and_masks_of_numpy():
    layer = dil.argmin(lambda u, t, k, m: jnp.sum(m * (u - k * t) ** 2), lambda f, init, t, k, m: k * t)
    y = layer(jnp.asarray([1.0, 2.0]), np.asarray([2, 3]), np.asarray([True, True]))
    np.testing.assert_allclose(y, [2.0, 6.0])


def smooth(u, t):
    return jnp.sum((u - t) ** 2) + jax.nn.logsumexp(u)


def root_of(u, t):
    return jnp.tanh(u) + 2.0 * u - t


NUMPY_ALONE = [
    lambda t: dil.argmin(smooth, LBFGS(), init=lambda t: 0.0 * t)(t),
    lambda t: dil.argmin(smooth, LBFGS(), init=lambda t: jnp.zeros(3))(t),
    lambda t: dil.argmin(lambda u, d: smooth(u, d["t"]), Newton(), init=lambda d: 0.0 * d["t"])({"t": t}),
    lambda t: dil.root(root_of, Newton(), init=np.zeros(3))(t),
    lambda t: dil.value(smooth, Newton(), init=lambda t: 0.0 * t)(t),
    lambda t: dil.ode.odeint(lambda s, y, a: jnp.sin(a * y), t, [0.0, 0.3], args=(t,), method="trapezoid", steps=5),
]


@pytest.mark.parametrize("call", NUMPY_ALONE)
def test_arrays_of_numpy_alone_beside_a_function_of_jax(call):
    t = np.asarray([0.5, 1.0, -1.0])
    found, expected = call(t), call(jnp.asarray(t))
    assert isinstance(found, jax.Array)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_check_grads_of_jax():
    layer = dil.argmin(smooth, Newton(), init=lambda t: 0.0 * t)
    check_grads(layer, (jnp.asarray([0.5, 1.0, -1.0]),), order=1)


def test_an_error_of_the_function_is_told_as_it_is():
    layer = dil.argmin(lambda u, t: jnp.sum(u + t + unknown), Newton(), init=lambda t: 0.0 * t)  # noqa: F821
    with pytest.raises(NameError, match="unknown"):
        layer(np.ones(2))
    layer = dil.argmin(lambda u, t: np.sum(u.mistake), Newton(), init=lambda t: 0.0 * t)
    with pytest.raises(AttributeError, match="mistake"):
        layer(np.ones(2))


@pytest.mark.parametrize("dtype", [object, str])
def test_a_numpy_array_without_numbers_is_refused(dtype):
    with pytest.raises(dil.DTypeError, match="is no array of numbers for JAX; convert it"):
        LAYER(jnp.asarray(THETA), X.astype(dtype))


def test_a_solver_that_is_no_jax_code_under_jit():
    layer = dil.argmin(smooth, lambda f, init, t: jnp.asarray(np.asarray(t) / 2))
    with pytest.raises(dil.DilError, match=r"needs the numbers of an array that JAX traces.*jax\.pure_callback"):
        jax.jit(layer)(jnp.ones(2))


def test_derivatives_by_dil_at_arrays_of_numpy_alone():
    layer, t = dil.argmin(smooth, Newton(), init=lambda t: 0.0 * t), np.asarray([0.5, 1.0, -1.0])
    expected = jax.grad(lambda t: jnp.sum(layer(t)))(jnp.asarray(t))
    np.testing.assert_allclose(dil.grad(lambda t: layer(t).sum())(t), expected, rtol=1e-12)
    tangent = dil.jvp(lambda t: layer(t).sum(), (t,), (np.ones(3),))[1]
    np.testing.assert_allclose(tangent, jnp.sum(expected), rtol=1e-12)
    assert layer.report(t).ok


class Parameter:
    """As in modules of JAX: it is no array, and gives itself as one."""

    def __init__(self, value):
        self.value = value

    def __jax_array__(self):
        return self.value


def test_the_tangent_decides_the_framework_too():
    layer = dil.argmin(lambda u, t: ((u - t) ** 2).sum(), Newton(), init=lambda t: 0.0 * t)
    value, tangent = dil.jvp(layer, (np.ones(3),), (jnp.arange(3.0),))
    assert isinstance(value, jax.Array)
    np.testing.assert_allclose(tangent, [0.0, 1.0, 2.0], atol=1e-12)


def test_what_gives_itself_as_an_array_of_jax():
    is_right(LAYER(Parameter(jnp.asarray(THETA)), jnp.asarray(X)))
    gradient = jax.grad(lambda theta: jnp.sum(LAYER(Parameter(theta), X)))(jnp.asarray(THETA))
    assert float(jnp.sum(jnp.abs(gradient))) > 0.1


def test_the_wider_dtype_of_numpy_is_an_error_that_names_both():
    with pytest.raises(dil.DTypeError, match="argument 0 has dtype float32, but argument 1 has dtype float64"):
        LAYER(jnp.asarray(THETA, dtype=jnp.float32), X)


def test_arrays_of_torch_are_refused():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(dil.BackendError, match="two backends"):
        LAYER(jnp.asarray(THETA), torch.ones(6, 3))


def test_differential_equations_and_riccati_equations():
    from dil.ode import odeint

    ys = odeint(
        lambda t, y, a: -a * y, np.ones(2), np.asarray([0.0, 1.0]), (jnp.asarray(1.0),), method="sdirk3", steps=20
    )
    np.testing.assert_allclose(ys[-1], np.exp(-1.0) * np.ones(2), rtol=1e-4)
    A, B = np.asarray([[1.0, 1.0], [0.0, 1.0]]), jnp.asarray([[0.0], [1.0]])
    S = dil.control.dare(A, B, np.eye(2), np.eye(1))
    assert isinstance(S, jax.Array)
    K = dil.control.lqr_gain(A, B, np.eye(2), np.eye(1), horizon=3)
    assert isinstance(K, jax.Array)


@pytest.mark.transform("jax.numpy_rank_promotion('raise') and jax.numpy_dtype_promotion('strict')")
def test_nothing_is_promoted():
    """Neither ranks nor dtypes, in a layer, its gradient and their batch."""
    layer = dil.argmin(smooth, Newton(), init=lambda t: 0.0 * t)
    gradient = jax.grad(lambda t: jnp.sum(layer(t)))
    t = jnp.asarray([0.5, 1.0, -1.0])
    expected = gradient(t)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        np.testing.assert_allclose(gradient(t), expected, rtol=1e-12)
        np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(jnp.stack([t, t]))[1], expected, rtol=1e-12)


@pytest.mark.parametrize("solver", [Newton(), LBFGS()], ids=["Newton", "LBFGS"])
def test_parameters_of_a_module_that_are_narrower_than_the_data(solver):
    module = {"weight": jnp.asarray([0.5, 1.0, 2.0], jnp.float32)}

    def score(u, module, X):
        return 0.5 * jnp.sum((X @ u - 1.0) ** 2) + 0.5 * jnp.sum(module["weight"] * u**2)

    def closed(module):
        weight = module["weight"].astype(jnp.float64)
        return jnp.linalg.solve(X.T @ X + jnp.diag(weight), jnp.sum(jnp.asarray(X), axis=0))

    layer = dil.argmin(score, solver, init=np.zeros(3))
    y = layer(module, X)
    assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, closed(module), rtol=1e-9)
    found = jax.jit(jax.grad(lambda module: jnp.sum(layer(module, X))))(module)["weight"]
    expected = jax.grad(lambda module: jnp.sum(closed(module)))(module)["weight"]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    captured = dil.argmin(lambda u, module: score(u, module, X), solver, init=np.zeros(3))  # init alone is float64
    np.testing.assert_allclose(captured(module), y, rtol=1e-12)


def test_other_mixes_of_dtypes_stay_errors():
    module = {"weight": jnp.ones(3, jnp.float32)}
    layer = dil.argmin(lambda u, p, X: jnp.sum((X @ u) ** 2) + jnp.sum(p * u**2), Newton(), init=np.zeros(3))
    with pytest.raises(dil.DTypeError, match="argument 0 has dtype float32, but argument 1 has dtype float64"):
        layer(module["weight"], X)
    of_tree = dil.argmin(
        lambda u, m, X: jnp.sum((X @ u) ** 2) + jnp.sum(m["weight"] * u**2), Newton(), init=np.zeros(3)
    )
    wide = {"weight": jnp.ones(3)}
    with pytest.raises(dil.DTypeError, match="float32"):  # never narrowed
        of_tree(wide, X.astype(np.float32))
    with jax.numpy_dtype_promotion("strict"), pytest.raises(dil.DTypeError, match=r"0\['weight'\] has dtype float32"):
        of_tree(module, X)


@pytest.mark.parametrize("kind", ["argmin", "root", "value"])
def test_a_closed_form_without_a_start_takes_numpy_arrays_alone(kind):
    def ridge(w, penalty, X, t):
        return 0.5 * jnp.sum((X @ w - t) ** 2) + 0.5 * penalty * jnp.sum(w**2)

    def solve(fun, init, penalty, X, t):
        return jnp.linalg.solve(X.T @ X + penalty * jnp.eye(X.shape[1]), X.T @ t)

    X, t = np.asarray([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0]]), np.asarray([1.0, 2.0, -1.0])
    layer = dil.root(jax.grad(ridge), solve) if kind == "root" else getattr(dil, kind)(ridge, solve)
    y, slope = layer(5.0, X, t), jax.jacrev(layer)(5.0, X, t)
    w = np.linalg.solve(X.T @ X + 5.0 * np.eye(2), X.T @ t)
    dw = -np.linalg.solve(X.T @ X + 5.0 * np.eye(2), w)
    expected = (ridge(w, 5.0, X, t), 0.5 * w @ w) if kind == "value" else (w, dw)
    np.testing.assert_allclose(y, expected[0], rtol=1e-5)
    np.testing.assert_allclose(slope, expected[1], rtol=1e-5)


def test_a_number_alone_beside_a_function_of_jax():
    layer = dil.argmin(lambda w, p: jnp.sum((w - p) ** 2), dil.solvers.Newton(), init=np.zeros(2))
    y = layer(-2.0)
    assert isinstance(y, jax.Array)
    np.testing.assert_allclose(y, [-2.0, -2.0])
