"""The loops of recorded programs that keep few of their steps."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

import dil  # noqa: E402
from dil._frameworks.registry import load  # noqa: E402

LOOPS = load("jax").loops.recorded


def test_a_loop_fills_its_memory_for_each_problem_of_a_batch():
    """Problem i writes i^2 rows; one of them fills its memory, which the longer ones must not touch again."""

    def filled(limit):
        def step(s):
            i, x = s
            return (i + 1, 2.0 * x), ((i, x), (jnp.zeros((), jnp.int32), i + 0.0 * x))

        memories = jnp.zeros((4,)), jnp.full((1,), -1.0)
        state = jnp.zeros((), jnp.int32), jnp.ones(())
        return LOOPS.fill(lambda s: s[0] < limit, step, state, memories)

    (count, x), (rows, last) = jax.jit(jax.vmap(filled))(jnp.asarray([0, 4, 2]))
    np.testing.assert_array_equal(count, [0, 4, 2])
    np.testing.assert_array_equal(x, [1.0, 16.0, 4.0])
    np.testing.assert_array_equal(rows, [[0, 0, 0, 0], [1, 2, 4, 8], [1, 2, 0, 0]])
    np.testing.assert_array_equal(last[:, 0], [-1.0, 3.0, 1.0])


RATES = np.asarray([0.3, -0.5, 0.2, 0.7, -0.1, 0.4])


def folded(x, k, count, *, in_python):
    """x <- x + rate sin(k x) for the first rates; the sum of the new x with even numbers, in row 0, and the last x."""

    def step(carry, sums, row):
        (x, i), (rate,) = carry, row
        x = x + rate * jnp.sin(k * x)
        return (x, i + 1), (LOOPS.add_row(sums[0], jnp.where(i % 2 == 0, 0, 2), x),)

    carry, sums = (x, jnp.zeros((), jnp.int32)), (jnp.zeros(2),)
    if in_python:
        for rate in RATES[:count]:
            carry, sums = step(carry, sums, (rate,))
    else:
        known, now = [], x
        for i, rate in enumerate(RATES):
            known.append(now) if i % 2 == 0 else None
            now = jax.lax.stop_gradient(now + rate * jnp.sin(k * now))
        known = jnp.stack([jax.lax.stop_gradient(a) for a in known]), jnp.asarray([0, 2, 4], jnp.int32)
        carry, sums = LOOPS.fold(step, carry, sums, (jnp.asarray(RATES),), count, known)
    return 2.0 * sums[0][0] + carry[0] ** 2


@pytest.mark.parametrize("way", ["grad", "jvp", "hessian"])
def test_a_fold_is_differentiable(way):
    made = {
        "grad": lambda f: jax.grad(f, argnums=(0, 1)),
        "jvp": lambda f: lambda x, k: jax.jvp(f, (x, k), (0.3, 0.7)),
        "hessian": lambda f: jax.hessian(f, argnums=(0, 1)),
    }[way]
    for count in (3,) if way == "hessian" else (0, 3, 6):
        found, expected = (
            jax.jit(made(lambda x, k, slow=slow: folded(x, k, count, in_python=slow)))(0.8, 1.1)  # noqa: B023
            for slow in (False, True)
        )
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-5, atol=1e-6)


def test_the_folds_of_a_batch_have_their_own_lengths():
    counts = [0, 5, 2]
    slopes = jax.jit(jax.vmap(jax.grad(lambda x, count: folded(x, 1.1, count, in_python=False)), in_axes=(None, 0)))
    found = slopes(0.8, jnp.asarray(counts))
    expected = [jax.grad(lambda x, n=n: folded(x, 1.1, n, in_python=True))(0.8) for n in counts]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_memory_of_a_gradient_hardly_follows_max_steps():
    """A step that may be taken costs the time at its end; 16 rows of 64 unknowns would be as much as 1,000 of them."""

    def bytes_of(most):
        def end(y):
            return dil.ode.odeint(lambda t, y: -y, y, [0.0, 1.0], method="tsit5", rtol=1e-3, max_steps=most)[-1].sum()

        return jax.jit(jax.grad(end)).lower(jnp.ones(64)).compile().memory_analysis().temp_size_in_bytes

    item, few, many = jnp.ones(1).dtype.itemsize, 100, 10_000
    kept = 8 * 64 * (100 - 10)  # states and slopes, twice; the square root of max_steps
    assert bytes_of(many) - bytes_of(few) < item * (2 * (many - few) + kept)
