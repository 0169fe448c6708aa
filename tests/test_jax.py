"""Layers inside JAX: jit, grad, vmap, jacobians of jacobians, custom rules in the score, callbacks as solvers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import dil  # noqa: E402
from dil._frameworks.registry import common_owner  # noqa: E402


def matrix(b):
    return jnp.diag(jnp.exp(b)) + jnp.ones((3, 3))


def score(u, b):
    """A quadratic whose matrix and right-hand side depend on b, so that the solution is not linear in it."""
    return 0.5 * jnp.sum(u * (matrix(b) @ u)) - jnp.sum(b * u)


def closed(fun, init, b):
    return jnp.linalg.solve(matrix(b), b)


LAYER = dil.argmin(score, closed)


@pytest.fixture
def b():
    return jnp.asarray(np.random.default_rng(0).standard_normal(3))


def test_check_grads_second_order(b):
    check_grads(jax.jit(lambda b: LAYER(jnp.asarray(b))), (b,), order=2, modes=("fwd", "rev"))


def test_jit_grad_vmap_and_jacobians(b):
    expected = jax.jacrev(lambda b: closed(None, None, b))(b)
    np.testing.assert_allclose(jax.jit(jax.jacrev(LAYER))(b), expected, rtol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(LAYER))(b), expected, rtol=1e-9)
    rows = jax.jit(jax.vmap(jax.grad(lambda b: jnp.sum(LAYER(b)))))(jnp.stack([b, 2 * b]))
    np.testing.assert_allclose(rows[0], expected.sum(0), rtol=1e-9)


def test_hessian(b):
    def loss(layer):
        return lambda b: jnp.sum(layer(b) ** 2)

    expected = jax.hessian(loss(lambda b: closed(None, None, b)))(b)
    np.testing.assert_allclose(jax.jit(jax.hessian(loss(LAYER)))(b), expected, rtol=1e-8, atol=1e-12)


def test_score_with_custom_vjp(b):
    @jax.custom_vjp
    def square(x):
        return jnp.sum(x * x)

    square.defvjp(lambda x: (jnp.sum(x * x), x), lambda x, ct: (2 * x * ct,))
    layer = dil.argmin(lambda u, b: 0.5 * square(u - b) + 0.5 * square(u), lambda f, u0, b: b / 2)
    np.testing.assert_allclose(jax.jit(jax.jacrev(layer))(b), 0.5 * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(layer))(b), 0.5 * np.eye(3), atol=1e-12)


def test_scipy_under_jit(b):
    layer = dil.argmin(score, dil.solvers.SciPy("trust-ncg", tol=1e-8), init=jnp.zeros_like)
    expected = jax.jit(jax.grad(lambda b: jnp.sum(LAYER(b))))(b)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda b: jnp.sum(layer(b))))(b), expected, rtol=1e-6)


def test_integer_leaves(b):
    def indexed(u, b, which):
        return 0.5 * jnp.sum((u - b) ** 2) + 0.5 * u[which] ** 2

    def halved(fun, init, b, which):
        return b.at[which].multiply(0.5)

    layer = dil.argmin(indexed, halved)
    which = jnp.asarray(1)
    gradient = jax.jit(jax.grad(lambda b, which: jnp.sum(layer(b, which))))(b, which)
    np.testing.assert_allclose(gradient, [1.0, 0.5, 1.0], rtol=1e-9)
    rows = jax.vmap(lambda which: layer(b, which))(jnp.arange(2))
    np.testing.assert_allclose(rows[1], layer(b, which), rtol=1e-12)


def test_registered_pytrees_win(b):
    @jax.tree_util.register_pytree_node_class
    class Parameters:
        def __init__(self, b, name):
            self.b, self.name = b, name

        def tree_flatten(self):
            return (self.b,), self.name

        @classmethod
        def tree_unflatten(cls, name, children):
            return cls(*children, name)

    layer = dil.argmin(lambda u, p: score(u, p.b), lambda f, u0, p: closed(f, u0, p.b))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(layer(p))))(Parameters(b, "theta"))
    assert gradient.name == "theta"
    np.testing.assert_allclose(gradient.b, jax.grad(lambda b: jnp.sum(LAYER(b)))(b), rtol=1e-9)


def test_warning_and_error_under_jit(b):
    def saddle(u, b):
        return -0.5 * jnp.sum((u - b) ** 2)

    def gradient(on_failure):
        layer = dil.argmin(saddle, lambda f, u0, b: b, on_failure=on_failure)
        return jax.block_until_ready(jax.jit(jax.grad(lambda b: jnp.sum(layer(b))))(b))

    with pytest.raises(Exception, match="NOT_MINIMUM"):
        gradient("raise")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradient("warn")
        jax.effects_barrier()
    assert any("NOT_MINIMUM" in str(w.message) for w in caught)
    assert np.isnan(gradient("nan")).all()


def test_a_dense_solve_that_is_not_needed_costs_nothing():
    """XLA must not take the identity of the reserve dense solve out of the step that may need it."""
    n = 500
    d = jnp.linspace(1.0, 2.0, n)

    def solve(b):
        return dil.linear.Auto()(dil.linear.Operator(lambda p: d * p, symmetric=True), b).value

    program = jax.jit(solve).lower(d).compile().as_text()
    entry = program[program.index("\nENTRY") :]
    assert f"[{n},{n}]" in program  # the reserve is there
    assert f"[{n},{n}]" not in entry  # and nothing of it is computed on the way


@pytest.mark.parametrize("solver", [dil.solvers.LBFGS(), dil.solvers.GradientDescent()], ids=lambda s: type(s).__name__)
def test_an_eager_vmap_batches_the_checks_of_a_minimum(solver):
    """They draw random vectors in a branch whose condition is batched."""
    layer = dil.argmin(lambda u, t: jnp.sum((u - t) ** 2 + 0.1 * u**4), solver, init=lambda t: 0.0 * t)
    t = jnp.asarray([[1.0, 2.0], [0.5, -1.0]])
    each = jnp.stack([layer(t[0]), layer(t[1])])
    np.testing.assert_allclose(jax.vmap(layer)(t), each, rtol=1e-6)


@pytest.mark.parametrize("cores", [1, 2])
def test_one_core_and_a_large_callback(monkeypatch, cores):
    """JAX may then wait for its own callback, so the program says so before it is compiled."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    host = common_owner([jnp.zeros(1)], ["x"], "the test").loops.on_host
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.eval_shape(lambda x: host(lambda a: (a,), (x,), x), jnp.zeros(2**14))
        jax.eval_shape(lambda x: host(lambda a: (a,), (x,), x), jnp.zeros(2**10))
    assert ["jax_cpu_enable_async_dispatch" in str(w.message) for w in caught] == [True] * (cores == 1)
