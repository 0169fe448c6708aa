"""The dynamics model of both learners of Table 2. It is learned from random controls in the states of the expert."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import _cartpole

Array = Any
Net = list[tuple[Array, Array]]

HIDDEN = (32, 32)
BATCH = 128
RATE = 4e-3


class Data(NamedTuple):
    """Pairs of subsequent states of the expert, (pairs, 4), and the scales of the features and of the changes."""

    x: Array
    after: Array
    center: Array
    scale: Array
    change: Array


def data(states: Array) -> Data:
    """Return the pairs of trajectories (n, steps + 1, 4)."""
    x, after = (a.reshape(-1, _cartpole.STATE) for a in (states[:, :-1], states[:, 1:]))
    seen = _cartpole.features(x)
    return Data(x, after, seen.mean(axis=0), seen.std(axis=0), (after - x).std(axis=0))


def network(key: Array, sizes: tuple[int, ...]) -> Net:
    """Return weights of variance 1 / inputs, and biases of zero."""
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(jax.random.normal(k, (a, b)) / a**0.5, jnp.zeros(b)) for k, a, b in pairs]


def evaluate(net: Net, x: Array) -> Array:
    for weight, bias in net[:-1]:
        x = jnp.tanh(x @ weight + bias)
    return x @ net[-1][0] + net[-1][1]


def standard(data: Data, x: Array) -> Array:
    """Return the features of states in units of what the expert showed."""
    return (_cartpole.features(x) - data.center) / data.scale


def begin(key: Array) -> Net:
    """Return the network h(.; theta_h): features and control to the change of the state."""
    return network(key, (6, *HIDDEN, _cartpole.STATE))


def imagine(data: Data, x: Array, u: Array, theta_h: Net) -> Array:
    """Return the next states by the network."""
    return x + data.change * evaluate(theta_h, jnp.concatenate([standard(data, x), u], axis=-1))


def distance(data: Data, imagined: Array, seen: Array) -> Array:
    """Return the squared distance of states in units of their changes, (..., 4) -> (...)."""
    return jnp.mean(((imagined - seen) / data.change) ** 2, axis=-1)


def optimiser(rate: float, steps: int) -> optax.GradientTransformation:
    """Return Adam with gradients of a norm of at most one; its rate falls to zero by half a cosine."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, steps)))


def train_h(
    data: Data, rate: optax.GradientTransformation, state: tuple[Net, Any], key: Array, steps: int
) -> tuple[tuple[Net, Any], Array]:
    """Take some steps of `train.h` (Algorithm 2) on (net, optimiser's state); return the mean loss with it."""

    def step(state: tuple[Net, Any], key: Array) -> tuple[tuple[Net, Any], Array]:
        row, control = jax.random.split(key)
        x = data.x[jax.random.randint(row, (BATCH,), 0, len(data.x))]
        u = jax.random.uniform(control, (BATCH, 1), minval=-1.0, maxval=1.0)
        truth = _cartpole.environment(x, u)
        loss, slope = jax.value_and_grad(lambda net: jnp.mean(distance(data, imagine(data, x, u, net), truth)))(
            state[0]
        )
        return descend(rate, state, slope), loss

    state, losses = jax.lax.scan(step, state, jax.random.split(key, steps))
    return state, jnp.mean(losses)


def descend(rate: optax.GradientTransformation, state: tuple[Any, Any], slope: Any) -> tuple[Any, Any]:
    """Return parameters and the optimiser's state after one step."""
    change, new = rate.update(slope, state[1], state[0])
    return optax.apply_updates(state[0], change), new
