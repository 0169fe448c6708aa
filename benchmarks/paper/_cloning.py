"""Behavioural cloning from observations for Table 2: it learns controls that lead to the expert's next state.

The controls of the expert are not observed. So the learned dynamics map the controls of the policy to the next state,
and the distance to the expert's next state is minimised (Look et al. 2020, section 3.2).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import _cartpole
import _dynamics
from _dynamics import Data, Net

Array = Any

HIDDEN = (64, 64)
BATCH = 128
RATE = 2e-3


class Clone(NamedTuple):
    """theta_h and the policy, each with the state of its optimiser."""

    h: tuple[Net, Any]
    policy: tuple[Net, Any]


def begin(key: Array) -> Net:
    """Return the network of the policy: features to the control before its bounds."""
    return _dynamics.network(key, (5, *HIDDEN, 1))


def act(data: Data, x: Array, policy: Net) -> Array:
    """Return the controls of the policy, in (-1, 1): (..., 4) -> (..., 1)."""
    return jnp.tanh(_dynamics.evaluate(policy, _dynamics.standard(data, x)))


class Cloning:
    """The programs of cloning for one set of trajectories of an expert; compiled once for all runs."""

    def __init__(self, data: Data, steps: int) -> None:
        self.data, self.steps = data, steps
        self.rate_h, self.rate = _dynamics.optimiser(_dynamics.RATE, steps), _dynamics.optimiser(RATE, steps)
        self.run, self.roll = jax.jit(self._run), jax.jit(self._roll)

    def _run(self, key: Array) -> tuple[Net, Array]:
        """Learn from scratch, each step one of the dynamics and one of the policy; return the policy and its losses."""
        dynamics, policy, rest = jax.random.split(key, 3)
        theta_h, theta = _dynamics.begin(dynamics), begin(policy)
        state = Clone((theta_h, self.rate_h.init(theta_h)), (theta, self.rate.init(theta)))
        state, losses = jax.lax.scan(self._step, state, jax.random.split(rest, self.steps))
        return state.policy[0], losses

    def _step(self, state: Clone, key: Array) -> tuple[Clone, Array]:
        first, second = jax.random.split(key)
        h, _ = _dynamics.train_h(self.data, self.rate_h, state.h, first, 1)
        row = jax.random.randint(second, (BATCH,), 0, len(self.data.x))
        x, after = self.data.x[row], self.data.after[row]

        def loss(policy: Net) -> Array:
            imagined = _dynamics.imagine(self.data, x, act(self.data, x, policy), h[0])
            return jnp.mean(_dynamics.distance(self.data, imagined, after))

        value, slope = jax.value_and_grad(loss)(state.policy[0])
        return Clone(h, _dynamics.descend(self.rate, state.policy, slope)), value

    def _roll(self, policy: Net, x: Array) -> Array:
        """Return the states that the policy leads the true cart through, (n, steps + 1, 4)."""
        return _cartpole.drive(lambda _, x: act(self.data, x, policy), jax.random.key(0), x)
