"""Forecasts by neural ODEs and their training under JAX: the five rows of the paper's Table 1.

One compiled program under vmap trains all seeds of a row at once. Everything is float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dil.linear
import dil.ode
from _nets import evaluate, network
from _recipes import PROXY, Recipe
from _series import DT, Series

LATENT, HIDDEN = 6, 30
GROWN = 0.7
"""The share of the iterations after which all frames of a segment count."""
RTOL, ATOL = 1e-5, 1e-6
"""The tolerances of DOPRI5, there and back."""


# --- the rows --------------------------------------------------------------------------------------------------------


def field(_: Any, z: Any, layers: Any) -> Any:
    return evaluate(layers, z, jnp.tanh)


def dopri5(z: Any, t: Any, layers: Any) -> Any:
    """Dormand and Prince's method over the whole batch, and its adjoint, as in Chen et al. 2018."""
    import diffrax

    found = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri5(),
        t[0],
        t[-1],
        None,
        z,
        layers,
        saveat=diffrax.SaveAt(ts=t),
        stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
        adjoint=diffrax.BacksolveAdjoint(),
        max_steps=4096,
        throw=False,
    )
    return found.ys


def ours(**options: Any) -> Callable[[Any, Any, Any], Any]:
    def solve(z: Any, t: Any, layers: Any) -> Any:
        return dil.ode.odeint(field, z, t, (layers,), batch_ndim=1, on_failure="ignore", **options)

    return solve


ROWS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "dopri5_adjoint": dopri5,
    "forward_euler_adjoint": ours(method="euler", gradient="adjoint"),
    "backward_euler_adjoint": ours(gradient="adjoint", linear_solver=dil.linear.Direct()),
    "backward_euler_naive": ours(gradient="naive"),
    # at a root, J^T J is the Hessian of the residual's half square, so this is CG on the paper's system
    "backward_euler_cg": ours(linear_solver=dil.linear.NormalCG()),
    PROXY: ours(method="euler"),
}


# --- the model -------------------------------------------------------------------------------------------------------


def fresh(series: Series, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Return the networks' parameters: dynamics, and where frames are not states an encoder and a decoder too."""
    rng = np.random.default_rng(seed)
    if series.context == 1:
        parts = {"field": network(rng, (series.dimensions, HIDDEN, HIDDEN, series.dimensions))}
    else:
        seen = series.context * series.dimensions
        parts = {
            "field": network(rng, (LATENT, HIDDEN, HIDDEN, LATENT)),
            "encoder": network(rng, (seen, HIDDEN, HIDDEN, LATENT * (2 if recipe.divergence else 1))),
            "decoder": network(rng, (LATENT, HIDDEN, HIDDEN, series.dimensions)),
        }
    return jax.tree.map(lambda x: np.asarray(x, np.float32), parts)


class Code(NamedTuple):
    """What the encoder makes of the first frames: a Gaussian over latent states, or a point with no deviation."""

    mean: Any
    log_deviation: Any
    """(batch, LATENT), or (batch, 0) of a point."""

    def drawn(self, key: Any) -> Any:
        """Return a sample of it."""
        if not self.log_deviation.size:
            return self.mean
        return self.mean + jnp.exp(self.log_deviation) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def divergence(self) -> Any:
        """Return the Kullback-Leibler divergence from the standard normal, the mean over the batch."""
        s = self.log_deviation
        return 0.5 * jnp.mean(jnp.sum(self.mean**2 + jnp.exp(2 * s) - 1 - 2 * s, axis=-1)) if s.size else 0.0


def encoded(params: Any, frames: Any) -> Code:
    """Return where a forecast begins, from the frames seen, (batch, context, D)."""
    if "encoder" not in params:
        return Code(frames[:, -1], frames[:, -1, :0])
    code = evaluate(params["encoder"], frames.reshape(frames.shape[0], -1), jnp.tanh)
    return Code(code[:, :LATENT], code[:, LATENT:] - 2.0)  # narrow at first, so that training begins with the mean


def forecast(row: str, params: Any, begin: Any, steps: int) -> Any:
    """Return the next frames, (batch, steps, D), from latent states, (batch, latent)."""
    t = jnp.arange(steps + 1, dtype=begin.dtype) * np.float32(DT)
    ahead = ROWS[row](begin, t, params["field"])[1:]
    return jnp.swapaxes(evaluate(params["decoder"], ahead, jnp.tanh) if "decoder" in params else ahead, 0, 1)


def error(row: str, params: Any, frames: Any, context: int) -> Any:
    """Return the mean squared error of forecasting all frames from the first."""
    ahead = frames[:, context:]
    return jnp.mean((forecast(row, params, encoded(params, frames[:, :context]).mean, ahead.shape[1]) - ahead) ** 2)


def loss(row: str, params: Any, frames: Any, context: int, recipe: Recipe, now: Moment) -> Any:
    """Return what training makes small: the error from a sample of the code, and the divergence of the code."""
    code, ahead = encoded(params, frames[:, :context]), frames[:, context:]
    begin = code.drawn(jax.random.fold_in(now.key, 1))
    missed = jnp.mean((forecast(row, params, begin, ahead.shape[1]) - ahead) ** 2, axis=(0, 2))
    counted = jnp.arange(len(missed)) < counting(recipe, now.iteration)
    return jnp.mean(missed, where=counted) + recipe.divergence * code.divergence()


def counting(recipe: Recipe, iteration: Any) -> Any:
    """Return how many frames of a segment count."""
    if recipe.begin is None:
        return recipe.segment
    done = jnp.minimum(1.0, iteration / (GROWN * recipe.iterations))
    return recipe.begin + (recipe.segment - recipe.begin) * done


# --- training --------------------------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """What came of some seeds, (seeds,) each."""

    validation: Any
    test: Any
    iteration: Any
    """At which the best parameters were found."""
    seconds: float
    """Of the processor, for all of them, compilation included."""


class Moment(NamedTuple):
    """Of an iteration of training: what it draws by, and its number."""

    key: Any
    iteration: Any


class Learner(NamedTuple):
    """The parameters, their running mean, and the state of the optimiser."""

    params: Any
    mean: Any
    state: Any


def segments(key: Any, frames: Any, context: int, recipe: Recipe) -> Any:
    """Return random segments of the training sequences, (batch, context + segment, D)."""
    sequences, length, _ = frames.shape
    window = context + recipe.segment
    which, start = jax.random.split(key)
    rows = jax.random.randint(which, (recipe.batch,), 0, sequences)
    begins = jax.random.randint(start, (recipe.batch,), 0, length - window + 1)
    return frames[rows[:, None], begins[:, None] + jnp.arange(window)]


def train(series: Series, row: str, recipe: Recipe, seeds: Sequence[int]) -> Trained:
    """Train one network for each seed, and judge those that did best on validation on the test part."""
    started, scale = time.process_time(), series.scale
    parts = [jnp.asarray(x / scale, jnp.float32) for x in (series.train, series.validation, series.test)]
    each = recipe.iterations // recipe.checks
    rate = optax.cosine_decay_schedule(recipe.rate, each * recipe.checks)
    descent = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=recipe.decay))
    optimizer = optax.apply_if_finite(descent, 10**6)

    def step(learner: Learner, now: Moment) -> Any:
        frames = segments(now.key, parts[0], series.context, recipe)
        grads = jax.grad(lambda p: loss(row, p, frames, series.context, recipe, now))(learner.params)
        updates, state = optimizer.update(grads, learner.state, learner.params)
        params = optax.apply_updates(learner.params, updates)
        return Learner(params, optax.incremental_update(params, learner.mean, 1 - recipe.average), state), None

    def chunk(learner: Learner, key: Any, check: Any) -> Learner:
        keys = jax.random.split(jax.random.fold_in(key, check), each)
        return jax.lax.scan(step, learner, Moment(keys, check * each + jnp.arange(each)))[0]

    run = jax.jit(jax.vmap(chunk, in_axes=(0, 0, None)))
    judge = jax.jit(jax.vmap(lambda p, frames: error(row, p, frames, series.context), in_axes=(0, None)))
    params = jax.tree.map(lambda *x: jnp.stack(x), *(fresh(series, recipe, seed) for seed in seeds))
    learner = Learner(params, params, jax.vmap(optimizer.init)(params))
    keys = jnp.stack([jax.random.PRNGKey(seed) for seed in seeds])
    best, least = params, np.full(len(seeds), np.inf)
    found = np.zeros(len(seeds), int)
    for check in range(recipe.checks):
        learner = run(learner, keys, check)
        judged = np.nan_to_num(np.asarray(judge(learner.mean, parts[1]), float), nan=np.inf, posinf=np.inf)
        better = judged < least
        least, found = np.where(better, judged, least), np.where(better, (check + 1) * each, found)
        best = jax.tree.map(lambda a, b, better=better: jnp.where(spread(better, a), a, b), learner.mean, best)
    test = np.asarray(judge(best, parts[2]), float) * scale**2
    return Trained(least * scale**2, test, found, time.process_time() - started)


def spread(flags: Any, like: Any) -> Any:
    return jnp.reshape(jnp.asarray(flags), (-1,) + (1,) * (like.ndim - 1))


def work(series: Series, row: str, recipe: Recipe, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train, and return one record for each run; None stands for an error that is not finite."""
    found = train(series, row, recipe, seeds)
    return [
        {
            "data": series.name,
            "row": row,
            "seed": int(seed),
            "validation": finite(v),
            "test": finite(t),
            "iteration": int(i),
            "seconds": found.seconds / len(seeds),
            "recipe": asdict(recipe),
        }
        for seed, v, t, i in zip(seeds, found.validation, found.test, found.iteration, strict=True)
    ]


def finite(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
