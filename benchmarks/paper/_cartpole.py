"""The cart-pole system of Table 2: its dynamics, its cost, and the expert that swings the pole up.

The equations of motion are those of Deisenroth 2010, appendix C.2 (PILCO), with the numbers of Gal et al. 2016: a pole
of 0.6 m and 0.5 kg on a cart of 0.5 kg, friction of 0.1 N s/m, at most 10 N, steps of 0.1 s. A state is (position of
the cart, velocity of the cart, angular velocity of the pole, angle of the pole). The pole hangs down at angle zero and
stands upright at pi or -pi.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = Any

LENGTH, POLE, CART, FRICTION, GRAVITY = 0.6, 0.5, 0.5, 0.1, 9.82
"""m, kg, kg, N s/m, m/s^2"""
FORCE = 10.0
"""Newtons of a control of one."""
STEP = 0.1
"""Seconds."""
WIDTH = 0.25
"""Metres from the target at which the cost is 1 - exp(-1/2)."""
STATE = 4
STEPS = 40
"""Controls of a trajectory."""
HORIZON, PARTICLES = 10, 1000
"""Of the expert's random shooting."""


def environment(x: Array, u: Array) -> Array:
    """Return the states after controls u in [-1, 1]: (..., 4), (..., 1) -> (..., 4); one explicit step of Euler's."""
    _, v, w, angle = (x[..., i] for i in range(STATE))
    s, c, force = jnp.sin(angle), jnp.cos(angle), FORCE * u[..., 0] - FRICTION * v
    mass = 4 * (CART + POLE) - 3 * POLE * c**2
    push = (2 * POLE * LENGTH * w**2 * s + 3 * POLE * GRAVITY * s * c + 4 * force) / mass
    turn = (3 * POLE * LENGTH * w**2 * s * c + 6 * (CART + POLE) * GRAVITY * s + 6 * force * c) / (LENGTH * mass)
    return x + STEP * jnp.stack([v, push, -turn, w], axis=-1)


def cost(x: Array) -> Array:
    """Return 1 - exp(-d^2 / (2 WIDTH^2)), d from the tip of the pole to where it stands upright: (..., 4) -> (...)."""
    across, up = x[..., 0] + LENGTH * jnp.sin(x[..., 3]), LENGTH * jnp.cos(x[..., 3])
    return 1.0 - jnp.exp(-0.5 * (across**2 + (up + LENGTH) ** 2) / WIDTH**2)


def total(states: Array) -> Array:
    """Return the cost of the states that a control is taken in, summed: (..., STEPS + 1, 4) -> (...)."""
    return jnp.sum(cost(states[..., :-1, :]), axis=-1)


def features(x: Array) -> Array:
    """Return states with the angle as sine and cosine, which do not jump: (..., 4) -> (..., 5)."""
    return jnp.concatenate([x[..., :3], jnp.sin(x[..., 3:]), jnp.cos(x[..., 3:])], axis=-1)


def starts(key: Array, count: int, variance: float) -> Array:
    """Return states from N(0, variance I), (count, 4)."""
    return variance**0.5 * jax.random.normal(key, (count, STATE), dtype=jnp.zeros(()).dtype)


def shoot(key: Array, x: Array) -> Array:
    """Return the first control of the best of some uniform sequences, by the true motion and cost: (n, 4) -> (n, 1)."""
    u = jax.random.uniform(key, (HORIZON, PARTICLES, len(x), 1), minval=-1.0, maxval=1.0)

    def step(carry: tuple[Array, Array], u: Array) -> tuple[tuple[Array, Array], None]:
        x, total = carry
        x = environment(x, u)
        return (x, total + cost(x)), None

    wide = jnp.broadcast_to(x, (PARTICLES, *x.shape))
    (_, total), _ = jax.lax.scan(step, (wide, jnp.zeros(wide.shape[:-1])), u)
    return u[0, jnp.argmin(total, axis=0), jnp.arange(len(x))]


def drive(policy: Callable[[Array, Array], Array], key: Array, x: Array) -> Array:
    """Return x and the states after each of the controls policy(key, x), (n, STEPS + 1, 4)."""

    def step(x: Array, key: Array) -> tuple[Array, Array]:
        x = environment(x, policy(key, x))
        return x, x

    _, after = jax.lax.scan(step, x, jax.random.split(key, STEPS))
    return jnp.concatenate([x[:, None], jnp.moveaxis(after, 0, 1)], axis=1)
