"""The latent ODE for the walks of Table 1: the model of Li, Wong, Chen and Duvenaud 2020, arXiv:2001.01328.

The first frames give a Gaussian over a latent state and a context. The context is an input of the dynamics at all
times. The model is trained on the evidence lower bound, and forecasts from the mean of the Gaussian.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from _nets import evaluate, network
from _recipes import LatentRecipe
from _series import Series

LATENT, CONTEXT, HIDDEN = 6, 3, 30
Solve = Callable[[Any, Any, Any, Any], Any]
"""`solve(field, z, steps, args)`: the states after each step, (steps, batch, LATENT)."""


class Code(NamedTuple):
    """What the encoder makes of the first frames: a Gaussian over states and contexts."""

    mean: Any
    """(batch, LATENT + CONTEXT)."""
    log_deviation: Any
    """(batch, LATENT + CONTEXT)."""

    def drawn(self, key: Any) -> Any:
        """Return a sample of it."""
        return self.mean + jnp.exp(self.log_deviation) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def divergence(self) -> Any:
        """Return the Kullback-Leibler divergence from the standard normal, the mean over the batch."""
        s = self.log_deviation
        return 0.5 * jnp.mean(jnp.sum(self.mean**2 + jnp.exp(2 * s) - 1 - 2 * s, axis=-1))


def fresh(series: Series, seed: int) -> dict[str, Any]:
    """Return the parameters: three networks, and the logarithm of the noise's deviation."""
    rng, seen, code = np.random.default_rng(seed), series.context * series.dimensions, LATENT + CONTEXT
    parts = {
        "field": network(rng, (code, HIDDEN, LATENT)),
        "encoder": network(rng, (seen, HIDDEN, HIDDEN, 2 * code)),
        "decoder": network(rng, (LATENT, HIDDEN, series.dimensions)),
        "log_noise": np.zeros(()),
    }
    return jax.tree.map(lambda x: np.asarray(x, np.float32), parts)


def field(_: Any, z: Any, layers: Any, context: Any) -> Any:
    return evaluate(layers, jnp.concatenate([z, context], axis=-1), jax.nn.softplus)


def encoded(params: Any, frames: Any) -> Code:
    """Return the code of the frames seen, (batch, context, D)."""
    code = evaluate(params["encoder"], frames.reshape(frames.shape[0], -1), jax.nn.softplus)
    mean, log_deviation = jnp.split(code, 2, axis=-1)
    return Code(mean, log_deviation)


def forecast(solve: Solve, params: Any, code: Any, steps: int) -> Any:
    """Return the next frames, (batch, steps, D), from states and contexts, (batch, LATENT + CONTEXT)."""
    z, context = code[:, :LATENT], code[:, LATENT:]
    ahead = solve(field, z, steps, (params["field"], context))
    return jnp.swapaxes(evaluate(params["decoder"], ahead, jax.nn.softplus), 0, 1)


def forecast_all(solve: Solve, params: Any, frames: Any, context: int) -> Any:
    """Return a forecast of all frames from the first, by the mean of their code."""
    return forecast(solve, params, encoded(params, frames[:, :context]).mean, frames.shape[1] - context)


def loss(solve: Solve, params: Any, frames: Any, context: int, recipe: LatentRecipe, key: Any, iteration: Any) -> Any:
    """Return the negative evidence lower bound of a walk, with the divergence weighted; a constant is left out."""
    code, ahead = encoded(params, frames[:, :context]), frames[:, context:]
    missed = forecast(solve, params, code.drawn(key), ahead.shape[1]) - ahead
    each = 0.5 * (missed * jnp.exp(-params["log_noise"])) ** 2 + params["log_noise"]
    weight = recipe.divergence * jnp.minimum(1.0, iteration / recipe.grown)
    return jnp.mean(jnp.sum(each, axis=(1, 2))) + weight * code.divergence()


def windows(key: Any, frames: Any, recipe: LatentRecipe) -> Any:
    """Return all walks, each from a random one of the first frames, and as long as the shortest of them."""
    walks, length, _ = frames.shape
    begins = jax.random.randint(key, (walks,), 0, recipe.first)
    return frames[jnp.arange(walks)[:, None], begins[:, None] + jnp.arange(length - recipe.first + 1)]
