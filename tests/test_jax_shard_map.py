"""Layers inside jax.shard_map with its default check of types, each against the closed form of its derivative."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import dil  # noqa: E402
from dil.solvers import LBFGS, Anderson, FixedPoint, GradientDescent, Newton, SciPy  # noqa: E402

ROWS = P("b")
T = np.asarray([[0.4, 1.5, -0.8]])


def energy(u, t):
    return jnp.sum(jnp.cosh(u - t) - jnp.sin(u), axis=-1)


def stationary(u, t):
    return jnp.sinh(u - t) - jnp.cos(u)


def step(u, t):
    return 0.5 * jnp.cos(u) + t


def slope_of_minimum(y, t):
    return np.cosh(y - t) / (np.cosh(y - t) + np.sin(y))


def slope_of_step(y, t):
    return 1 / (1 + 0.5 * np.sin(y))


LAYERS = {
    "Newton": (dil.argmin(energy, Newton(), init=jnp.zeros(3)), slope_of_minimum),
    "LBFGS": (dil.argmin(energy, LBFGS(), init=lambda t: 0 * t, linear_solver=dil.linear.CG()), slope_of_minimum),
    "refine": (dil.argmin(energy, GradientDescent(rtol=1e-2), init=jnp.zeros(3), refine=2), slope_of_minimum),
    "SciPy": (dil.argmin(energy, SciPy("BFGS"), init=lambda t: 0 * t), slope_of_minimum),
    "root": (dil.root(stationary, Newton(), init=jnp.zeros(3)), slope_of_minimum),
    "FixedPoint": (dil.fixed_point(step, FixedPoint(), init=jnp.zeros(3)), slope_of_step),
    "Anderson": (dil.fixed_point(step, Anderson(), init=jnp.zeros(3)), slope_of_step),
}


def shards(fn, out_specs=ROWS):
    mesh = jax.make_mesh((1,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=ROWS, out_specs=out_specs))


@pytest.mark.transform("jax.shard_map, check_vma on")
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_rows(name):
    layer, slope = LAYERS[name]
    y = np.asarray(layer(jnp.asarray(T[0])))
    found = shards(jax.grad(lambda t: jnp.sum(jax.vmap(layer)(t) ** 2)))(T)
    np.testing.assert_allclose(found, 2 * (y * slope(y, T[0]))[None], rtol=1e-6)


def test_a_batch_in_forward_mode():
    layer = dil.argmin(energy, Newton(), init=lambda t: 0 * t, batch_ndim=1)
    y, tangent = shards(lambda t: jax.jvp(layer, (t,), (jnp.ones_like(t),)), out_specs=(ROWS, ROWS))(T)
    np.testing.assert_allclose(tangent, slope_of_minimum(np.asarray(y), T), rtol=1e-6)


def test_a_failure_warns_and_the_policy_holds():
    def failing(policy):
        layer = dil.argmin(energy, GradientDescent(max_iter=2), init=jnp.zeros(3), on_failure=policy)
        return shards(jax.vmap(layer))

    with pytest.warns(dil.ConvergenceWarning, match="MAX_ITER"):
        jax.block_until_ready(failing("warn")(T))
    assert np.all(np.isnan(failing("nan")(T)))


PROGRAM = """
    import jax, jax.numpy as jnp, numpy as np, dil
    from jax.sharding import PartitionSpec as P
    jax.config.update("jax_enable_x64", True)
    X = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)))
    weight = jnp.asarray([0.5, 1.0, 2.0])
    mesh = jax.make_mesh((2,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))

    def captured(weight, X):  # one ridge regression for each half of the rows; the score captures them
        def score(u, weight):
            return jnp.sum((X @ u - 1.0) ** 2) + jnp.sum(weight * u**2)

        layer = dil.argmin(score, dil.solvers.LBFGS(), init=jnp.zeros(3))
        return jax.lax.psum(jnp.sum(layer(weight)), "b")

    def argument(weight, X):
        def score(u, weight, X):
            return jnp.sum((X @ u - 1.0) ** 2) + jnp.sum(weight * u**2)

        layer = dil.argmin(score, dil.solvers.Newton(), init=jnp.zeros(3))
        return jax.lax.psum(jnp.sum(layer(weight, X)), "b")

    def closed(weight):
        return sum(
            jnp.sum(jnp.linalg.solve(x.T @ x + jnp.diag(weight), jnp.sum(x, axis=0))) for x in (X[:4], X[4:])
        )

    expected, second = jax.grad(closed)(weight), jax.hessian(closed)(weight)
    for loss in (captured, argument):
        total = jax.shard_map(loss, mesh=mesh, in_specs=(P(), P("b")), out_specs=P())
        np.testing.assert_allclose(jax.jit(jax.grad(total))(weight, X), expected, rtol=1e-8)
    np.testing.assert_allclose(jax.jit(jax.hessian(total))(weight, X), second, rtol=1e-7)
    print("right on", len(jax.devices()), "devices")
"""


def test_shards_share_parameters_and_each_has_its_data():
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "right on 2 devices", done.stderr[-2000:]
