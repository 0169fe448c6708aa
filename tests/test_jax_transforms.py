"""Every transform of JAX through a layer, each against the closed form of the layer's solution."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402
from jax.flatten_util import ravel_pytree  # noqa: E402

import dil  # noqa: E402

A = np.asarray([[3.0, 0.5], [0.5, 1.5]])
B = np.asarray([1.0, -0.7])
E = np.asarray([[0.3, -1.1], [0.4, 0.8]])
V = np.asarray([0.9, -1.3])
CG = dil.linear.CG()


def needs(name):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed; its modules are pytrees to JAX like any other")


def score(u, A, b):
    return 0.5 * jnp.sum(u * (A @ u)) - jnp.sum(b * u)


def closed(A, b):
    """The minimiser of `score`, which sees the symmetric part of A alone; 2 x 2, in elementary operations."""
    p, q, r = A[0, 0], 0.5 * (A[0, 1] + A[1, 0]), A[1, 1]
    return jnp.stack([r * b[0] - q * b[1], p * b[1] - q * b[0]]) / (p * r - q * q)


LAYER = dil.argmin(score, lambda fun, init, A, b: closed(A, b), linear_solver=CG)


def loss(fn):
    return lambda A, b: jnp.sum(jnp.sin(fn(A, b)))


def close(found, expected, tolerance=1e-10):
    """Compare trees, relative to the largest entry of each leaf."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1e-300, np.abs(y).max(initial=0.0)))


# --- transforms of a function, each a function of (fn, A, b) ---


TRANSFORMS = []


def row(name):
    def register(fn):
        TRANSFORMS.append(pytest.param(fn, marks=pytest.mark.transform(name), id=fn.__name__))
        return fn

    return register


@row("jax.jit")
def jit(fn, A, b):
    return jax.jit(fn)(A, b)


@row("jax.grad")
def grad(fn, A, b):
    return jax.jit(jax.grad(loss(fn), argnums=(0, 1)))(A, b)


@row("jax.value_and_grad, under jit")
def value_and_grad(fn, A, b):
    return jax.jit(jax.value_and_grad(loss(fn), argnums=(0, 1)))(A, b)


@row("jax.vjp")
def vjp(fn, A, b):
    return jax.jit(lambda A, b, v: jax.vjp(fn, A, b)[1](v))(A, b, V)


@row("jax.jvp")
def jvp(fn, A, b):
    return jax.jit(lambda *args: jax.jvp(fn, args[:2], args[2:]))(A, b, E, V)


@row("jax.linearize")
def linearize(fn, A, b):
    def both(A, b):
        y, push = jax.linearize(fn, A, b)
        return y, push(E, V), push(2.0 * E, -V)

    return jax.jit(both)(A, b)


@row("jax.linear_transpose of jax.linearize")
def linear_transpose(fn, A, b):
    def both(A, b):
        _, push = jax.linearize(fn, A, b)
        return jax.linear_transpose(push, A, b)(jnp.asarray(V))

    return jax.jit(both)(A, b)


@row("jax.jacfwd")
def jacfwd(fn, A, b):
    return jax.jit(jax.jacfwd(fn, argnums=(0, 1)))(A, b)


@row("jax.jacrev")
def jacrev(fn, A, b):
    return jax.jit(jax.jacrev(fn, argnums=(0, 1)))(A, b)


@row("jax.hessian")
def hessian(fn, A, b):
    return jax.jit(jax.hessian(loss(fn), argnums=(0, 1)))(A, b)


@row("jax.vmap, in_axes mixed")
def vmap(fn, A, b):
    """A shared; b along its last axis, and the results along the last as well."""
    return jax.jit(jax.vmap(fn, in_axes=(None, 1), out_axes=1))(A, jnp.stack([b, 2.0 * b, b - 1.0], axis=1))


@row("jax.vmap, nested")
def nested_vmap(fn, A, b):
    As, bs = jnp.stack([A, 2.0 * A]), jnp.stack([b, b + 1.0, -b])
    return jax.jit(jax.vmap(jax.vmap(fn, in_axes=(None, 0)), in_axes=(0, None)))(As, bs)


@row("jax.vmap of jax.grad")
def vmap_of_grad(fn, A, b):
    return jax.jit(jax.vmap(jax.grad(loss(fn), argnums=(0, 1)), in_axes=(None, 0)))(A, jnp.stack([b, 2.0 * b]))


@row("jax.grad of jax.vmap")
def grad_of_vmap(fn, A, b):
    """The cotangents of a shared argument are summed over the batch."""

    def total(A, bs):
        return jnp.sum(jnp.sin(jax.vmap(fn, in_axes=(None, 0))(A, bs)))

    return jax.jit(jax.grad(total, argnums=(0, 1)))(A, jnp.stack([b, 2.0 * b]))


@row("jax.lax.scan")
def scan(fn, A, b):
    def run(A, b):
        def step(carry, _):
            carry = fn(A, b + 0.3 * jnp.tanh(carry))
            return carry, carry

        return jnp.sum(jax.lax.scan(step, b, None, length=5)[1] ** 2)

    return jax.jit(jax.grad(run, argnums=(0, 1)))(A, b)


@row("jax.lax.while_loop, forward mode")
def while_loop(fn, A, b):
    def run(A, b):
        def step(state):
            i, u = state
            return i + 1, fn(A, b + 0.3 * jnp.tanh(u))

        return jax.lax.while_loop(lambda state: state[0] < 5, step, (0, b))[1]

    return jax.jit(lambda *args: jax.jvp(run, args[:2], args[2:]))(A, b, E, V)


@row("jax.lax.cond")
def cond(fn, A, b):
    def run(A, b):
        return jnp.sum(jax.lax.cond(b[0] > 0, fn, lambda A, b: b, A, b) ** 2)

    gradient = jax.jit(jax.grad(run, argnums=(0, 1)))
    return gradient(A, b), gradient(A, -b)


@row("jax.checkpoint")
def checkpoint(fn, A, b):
    def run(A, b):
        return jnp.sum(jax.checkpoint(fn)(A, jnp.sin(b)) ** 2)

    return jax.jit(jax.grad(run, argnums=(0, 1)))(A, b)


@row("jax.jit, compiled ahead of time")
def ahead_of_time(fn, A, b):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (A, b))
    assert jax.eval_shape(fn, *shapes).shape == b.shape
    return jax.jit(fn).lower(*shapes).compile()(A, b)


@row("jax.disable_jit")
def disable_jit(fn, A, b):
    with jax.disable_jit():
        return jax.jit(fn)(A, b)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transform(transform):
    args = jnp.asarray(A), jnp.asarray(B)
    close(transform(LAYER, *args), transform(closed, *args))


# --- what a user's program may hold ---


@pytest.mark.transform("jax.pure_callback in the solver, under jit, grad and vmap")
def test_a_solver_behind_a_callback():
    def solver(fun, init, A, b):
        like = jax.ShapeDtypeStruct(b.shape, b.dtype)
        return jax.pure_callback(
            lambda A, b: np.linalg.solve(A, b[..., None])[..., 0], like, A, b, vmap_method="expand_dims"
        )

    layer = dil.argmin(score, solver, linear_solver=CG)
    args = jnp.asarray(A), jnp.stack([jnp.asarray(B), 2.0 * B])
    axes = (None, 0)

    def run(fn):
        return jax.jit(jax.vmap(jax.value_and_grad(loss(fn), argnums=(0, 1)), in_axes=axes))(*args)

    close(run(layer), run(closed))


@pytest.mark.transform("jax.jit, donated buffers")
def test_donated_buffers():
    step = jax.jit(lambda b, A: b - 0.1 * jax.grad(loss(LAYER), argnums=1)(A, b), donate_argnums=0)
    expected = B - 0.1 * jax.grad(loss(closed), argnums=1)(jnp.asarray(A), jnp.asarray(B))
    b = jnp.array(B)
    found = step(b, jnp.asarray(A))
    close(found, expected)
    assert b.is_deleted()
    close(step(found, jnp.asarray(A)), step(jnp.array(expected), jnp.asarray(A)))


THETA = {"b": B, "flip": np.asarray([1, -1]), "on": np.asarray(True), "name": None}


def tree_score(u, theta):
    pull = jnp.where(theta["on"], theta["b"], 0.0)
    return score(u, jnp.asarray(A), theta["flip"] * pull)


TREE_LAYER = dil.argmin(
    tree_score, lambda fun, init, theta: closed(jnp.asarray(A), theta["flip"] * theta["b"]), linear_solver=CG
)


def integer_reference(theta):
    return closed(jnp.asarray(A), theta["flip"] * theta["b"])


@pytest.mark.transform("integer, boolean and None leaves; float0 tangents and cotangents")
def test_leaves_without_a_derivative():
    theta = jax.tree.map(jnp.asarray, THETA)
    still = np.zeros((2,), jax.dtypes.float0), np.zeros((), jax.dtypes.float0)
    tangent = {"b": jnp.asarray(V), "flip": still[0], "on": still[1], "name": None}

    def both(theta):
        _, pull = jax.vjp(TREE_LAYER, theta)
        (pulled,) = pull(jnp.asarray(V))
        assert pulled["flip"].dtype == pulled["on"].dtype == jax.dtypes.float0
        return jax.jvp(TREE_LAYER, (theta,), (tangent,)), pulled["b"]

    pushed, pulled = jax.jit(both)(theta)
    close(pushed, jax.jvp(integer_reference, (theta,), (tangent,)))
    close(pulled, jax.vjp(integer_reference, theta)[1](jnp.asarray(V))[0]["b"])
    gradient = jax.jit(jax.grad(lambda theta: jnp.sum(TREE_LAYER(theta)), allow_int=True))
    assert jax.eval_shape(gradient, theta)["flip"].dtype == jax.dtypes.float0


def divide(A, b, *, loop):
    return dil.Solution(b / A(jnp.ones_like(b)))


SQRT = dil.root(lambda u, x: u * u - x, lambda fun, init, x: x**0.5, init=lambda x: x, linear_solver=divide)


def test_numbers_of_python_are_arrays_to_the_layer_and_its_solver():
    close(jax.jvp(SQRT, (2.25,), (1.0,)), (jnp.asarray(1.5), jnp.asarray(1 / 3)))
    close(jax.grad(SQRT)(2.25), jnp.asarray(1 / 3))


@pytest.mark.slow
def test_numbers_of_python_under_a_second_derivative():
    close(jax.hessian(SQRT)(2.25), jnp.asarray(-2 / 27))


@jax.custom_vjp
def half_square(z):
    return 0.5 * jnp.sum(z * z)


half_square.defvjp(lambda z: (half_square(z), z), lambda z, ct: (ct * z,))


def custom_score(u, A, b):
    """1/2 ||A u||^2 - b^T u, so `score` with A^T A."""
    return half_square(A @ u) - jnp.sum(b * u)


CUSTOM = dil.argmin(custom_score, lambda fun, init, A, b: closed(A.T @ A, b), linear_solver=CG)


def reverse_twice(fn, A, b):
    return jax.jit(jax.jacrev(jax.grad(loss(fn), argnums=1)))(A, b)


@pytest.mark.parametrize("transform", [vjp, jvp, reverse_twice])
@pytest.mark.transform("jax.custom_vjp in the score: reverse mode, once and twice, and forward mode")
def test_a_custom_vjp_in_the_score(transform):
    """Forward mode as well: the layer's pushforward is built of pulls alone."""
    args = jnp.asarray(A), jnp.asarray(B)
    close(transform(CUSTOM, *args), transform(lambda A, b: closed(A.T @ A, b), *args))


@pytest.mark.transform("jax.hessian of a score with a jax.custom_vjp, forward over reverse", refused=True)
def test_a_custom_vjp_forward_over_reverse_is_refused_by_jax():
    with pytest.raises(TypeError, match="custom_vjp") as caught:
        jax.eval_shape(jax.hessian(loss(CUSTOM), argnums=1), jnp.asarray(A), jnp.asarray(B))
    assert any("jax.jacrev twice" in note for note in caught.value.__notes__)


@pytest.mark.transform("jax.pure_callback in the score, without derivatives", refused=True)
def test_a_custom_vjp_that_has_no_second_derivative_is_refused_by_jax():
    """A kernel in NumPy with a gradient in NumPy: JAX cannot differentiate the gradient, and says so."""

    def on_host(fn, shape, *args):
        return jax.pure_callback(fn, jax.ShapeDtypeStruct(shape, jnp.float64), *args, vmap_method="expand_dims")

    @jax.custom_vjp
    def energy(u):
        return on_host(lambda u: 0.25 * np.sum(np.asarray(u) ** 4), (), u)

    energy.defvjp(lambda u: (energy(u), u), lambda u, ct: (ct * on_host(lambda u: np.asarray(u) ** 3, u.shape, u),))
    layer = dil.argmin(lambda u, b: energy(u) - jnp.sum(b * u), lambda fun, init, b: jnp.cbrt(b), linear_solver=CG)
    np.testing.assert_allclose(layer(jnp.asarray([8.0, 1.0])), [2.0, 1.0])
    with pytest.raises(ValueError, match="Pure callbacks do not support JVP") as caught:
        jax.grad(lambda b: jnp.sum(layer(b)))(jnp.asarray([8.0, 1.0]))
    assert any("dil.Derivatives" in note for note in caught.value.__notes__)


@pytest.mark.transform("jax.enable_x64(False): float32 throughout")
def test_without_x64():
    with jax.enable_x64(False):
        args = jnp.asarray(A, dtype=jnp.float32), jnp.asarray(B, dtype=jnp.float32)
        found = value_and_grad(LAYER, *args)
        assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}
        close(found, value_and_grad(closed, *args), 1e-5)


@pytest.mark.transform("jax.checking_leaks")
def test_no_tracer_leaks():
    with jax.checking_leaks():
        value_and_grad(LAYER, jnp.asarray(A), jnp.asarray(B))


def test_second_derivatives_under_vmap_with_a_captured_array():
    """The solve is then traced in both directions, and meets every rule of its primitive."""

    def total(b, scale):
        captured = scale * jnp.asarray(A)
        layer = dil.argmin(
            lambda u, b: score(u, captured, b), lambda fun, init, b: closed(captured, b), linear_solver=CG
        )
        return jnp.sum(jnp.sin(layer(b)))

    def expected(b, scale):
        return jnp.sum(jnp.sin(closed(scale * jnp.asarray(A), b)))

    b, scales = jnp.asarray(B), jnp.asarray([1.0, 2.0])
    found = jax.jit(jax.vmap(jax.hessian(total), (None, 0)))(b, scales)
    close(found, jax.vmap(jax.hessian(expected), (None, 0))(b, scales), 1e-8)


# --- modules as arguments, and training ---


def pinned(u, model, x):
    """1/2 ||u - model(x)||^2 + 1/4 sum u^4, so that u + u^3 = model(x)."""
    z = model(x)
    return 0.5 * jnp.sum((u - z) ** 2) + 0.25 * jnp.sum(u**4)


def cubic_root(z):
    """The u with u + u^3 = z (Cardano)."""
    root = jnp.sqrt(0.25 * z * z + 1 / 27)
    return jnp.cbrt(0.5 * z + root) + jnp.cbrt(0.5 * z - root)


def pin(fun, init, model, x):
    return cubic_root(model(x))


def compare_training_gradients(layer, reference, model, differentiate):
    x, target = jnp.asarray([0.3, -0.8]), jnp.asarray([0.5, 0.2])

    def gradient(fn):
        return differentiate(lambda model: jnp.sum((fn(model, x) - target) ** 2))(model)

    found, expected = gradient(layer), gradient(reference)
    close(ravel_pytree(found)[0], ravel_pytree(expected)[0])


@needs("equinox")
@pytest.mark.transform("Equinox: a module as an argument, eqx.filter_jit and eqx.filter_grad")
def test_equinox_filtered():
    import equinox as eqx

    model = eqx.nn.MLP(2, 2, 3, 1, activation=jnp.tanh, key=jax.random.key(0))
    layer = dil.argmin(pinned, pin, linear_solver=CG)

    def differentiate(f):
        return lambda model: eqx.filter(eqx.filter_jit(eqx.filter_grad(f))(model), eqx.is_array)

    compare_training_gradients(layer, lambda model, x: cubic_root(model(x)), model, differentiate)


@needs("equinox")
@pytest.mark.transform("Equinox: eqx.partition and eqx.combine")
def test_equinox_partitioned():
    """Parameters as the argument, the rest of the module combined in the score; a frozen bias gets no gradient."""
    import equinox as eqx

    model = eqx.nn.Linear(2, 2, key=jax.random.key(1))
    free = eqx.tree_at(lambda m: m.bias, jax.tree.map(lambda _: True, model), False)
    params, static = eqx.partition(model, free)

    def whole(fn):
        return lambda *args: fn(*args[:-2], eqx.combine(args[-2], static), args[-1])

    layer = dil.argmin(whole(pinned), whole(pin), linear_solver=CG)
    compare_training_gradients(
        layer, whole(lambda model, x: cubic_root(model(x))), params, lambda f: jax.jit(jax.grad(f))
    )


@needs("flax")
@pytest.mark.transform("Flax: the parameters of a linen module as an argument")
def test_flax():
    import flax.linen as nn

    module = nn.Dense(2, param_dtype=jnp.float64)
    params = module.init(jax.random.key(0), jnp.zeros(2))

    def applied(fn):
        return lambda *args: fn(*args[:-2], lambda x: module.apply(args[-2], x), args[-1])

    layer = dil.argmin(applied(pinned), applied(pin), linear_solver=CG)
    reference = applied(lambda model, x: cubic_root(model(x)))
    compare_training_gradients(layer, reference, params, lambda f: jax.jit(jax.grad(f)))


@needs("optax")
@pytest.mark.transform("optax: training in a jitted loop")
def test_optax_training():
    """Twenty steps of Adam on an argument of the layer take the way that they take on the closed form."""
    import optax

    target, optimiser = jnp.asarray([0.4, 0.1]), optax.adam(0.1)

    def train(fn, b):
        def step(carry, _):
            b, state = carry
            value, gradient = jax.value_and_grad(lambda b: jnp.sum((fn(jnp.asarray(A), b) - target) ** 2))(b)
            updates, state = optimiser.update(gradient, state, b)
            return (optax.apply_updates(b, updates), state), value

        return jax.lax.scan(step, (b, optimiser.init(b)), None, length=20)

    (found, _), values = jax.jit(lambda b: train(LAYER, b))(jnp.asarray(B))
    (expected, _), _ = jax.jit(lambda b: train(closed, b))(jnp.asarray(B))
    close(found, expected, 1e-9)
    assert values[-1] < 0.1 * values[0]
