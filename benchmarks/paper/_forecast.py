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

import _latent
import dil.linear
import dil.ode
from _nets import evaluate, network
from _recipes import PROXY, LatentRecipe, Recipe
from _series import DT, Series

HIDDEN = 30
RTOL, ATOL = 1e-5, 1e-6
"""The tolerances of DOPRI5, there and back."""
SQUARABLE = 1e15
"""The squares of many gradients of this size sum up in float32."""
Solve = Callable[[Any, Any, Any, Any], Any]
"""`solve(field, z, t, args)`: the states at the times t, (times, batch, states), of z' = field(t, z, *args)."""


# --- the rows --------------------------------------------------------------------------------------------------------


def dopri5(field: Any, z: Any, t: Any, args: Any) -> Any:
    """Dormand and Prince's method over the whole batch, and its adjoint, as in Chen et al. 2018."""
    import diffrax

    found = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, z, args: field(t, z, *args)),
        diffrax.Dopri5(),
        t[0],
        t[-1],
        None,
        z,
        args,
        saveat=diffrax.SaveAt(ts=t),
        stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
        adjoint=diffrax.BacksolveAdjoint(),
        max_steps=4096,
        throw=False,
    )
    return found.ys


def ours(**options: Any) -> Solve:
    def solve(field: Any, z: Any, t: Any, args: Any) -> Any:
        return dil.ode.odeint(field, z, t, args, batch_ndim=1, on_failure="ignore", **options)

    return solve


ROWS: dict[str, Solve] = {
    "dopri5_adjoint": dopri5,
    "forward_euler_adjoint": ours(method="euler", gradient="adjoint"),
    "backward_euler_adjoint": ours(gradient="adjoint", linear_solver=dil.linear.Direct()),
    "backward_euler_naive": ours(gradient="naive"),
    # at a root, J^T J is the Hessian of the residual's half square, so this is CG on the paper's system
    "backward_euler_cg": ours(linear_solver=dil.linear.NormalCG()),
    "sdirk3_cg": ours(method="sdirk3", steps=2, linear_solver=dil.linear.NormalCG()),
    PROXY: ours(method="euler"),
}


# --- the models ------------------------------------------------------------------------------------------------------


class Model(NamedTuple):
    """A network to train on a data set by one row of the table."""

    fresh: Callable[[int], Any]
    """The parameters of a seed."""
    batch: Callable[[Any, Any], Any]
    """`batch(key, frames)`: what one iteration trains on."""
    loss: Callable[[Any, Any, Any, Any], Any]
    """`loss(params, frames, key, iteration)`."""
    forecast: Callable[[Any, Any], Any]
    """`forecast(params, frames)`: all frames from the first, (batch, frames - context, D)."""
    descent: Any
    """The transformation of optax."""


def model(series: Series, row: str, recipe: Recipe | LatentRecipe) -> Model:
    """Return a latent ODE where frames are not states, and else the dynamics alone."""
    if isinstance(recipe, Recipe):
        return dynamics(series, ROWS[row], recipe)

    def solve(field: Any, z: Any, steps: int, args: Any) -> Any:
        return ROWS[row](field, z, times(steps), args)[1:]

    context = series.context
    rate = optax.exponential_decay(recipe.rate, 1, recipe.decay)
    return Model(
        lambda seed: _latent.fresh(series, seed),
        lambda key, frames: _latent.windows(key, frames, recipe),
        lambda params, frames, key, i: _latent.loss(solve, params, frames, context, recipe, key, i),
        lambda params, frames: _latent.forecast_all(solve, params, frames, context),
        optax.chain(squarable(), optax.clip_by_global_norm(10.0), optax.adam(rate)),
    )


def squarable() -> Any:
    """Return a transformation that scales a gradient whose squares would overflow, as some are at the first weights."""

    def scaled(grads: Any, params: Any = None) -> Any:
        del params
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(grads)]))
        factor = jnp.where(largest > SQUARABLE, SQUARABLE / largest, 1.0)
        return jax.tree.map(lambda g: g * factor, grads)

    return optax.stateless(scaled)


def dynamics(series: Series, solve: Solve, recipe: Recipe) -> Model:
    """Return a network whose states are the frames."""

    def fresh(seed: int) -> Any:
        net = network(np.random.default_rng(seed), (series.dimensions, HIDDEN, HIDDEN, series.dimensions))
        return jax.tree.map(lambda x: np.asarray(x, np.float32), net)

    def forecast(layers: Any, frames: Any) -> Any:
        return jnp.swapaxes(solve(tanh_field, frames[:, 0], times(frames.shape[1] - 1), (layers,))[1:], 0, 1)

    rate = optax.cosine_decay_schedule(recipe.rate, recipe.iterations)
    return Model(
        fresh,
        lambda key, frames: segments(key, frames, recipe),
        lambda layers, frames, key, i: jnp.mean((forecast(layers, frames) - frames[:, 1:]) ** 2),
        forecast,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
    )


def tanh_field(_: Any, z: Any, layers: Any) -> Any:
    return evaluate(layers, z, jnp.tanh)


def times(steps: int) -> Any:
    return jnp.arange(steps + 1, dtype=jnp.float32) * np.float32(DT)


def segments(key: Any, frames: Any, recipe: Recipe) -> Any:
    """Return random segments of the training sequences, (batch, 1 + segment, D)."""
    sequences, length, _ = frames.shape
    window = 1 + recipe.segment
    which, start = jax.random.split(key)
    rows = jax.random.randint(which, (recipe.batch,), 0, sequences)
    begins = jax.random.randint(start, (recipe.batch,), 0, length - window + 1)
    return frames[rows[:, None], begins[:, None] + jnp.arange(window)]


# --- training --------------------------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """What came of some seeds, (seeds,) each."""

    validation: Any
    test: Any
    iteration: Any
    """At which the best parameters were found."""
    seconds: float
    """Of the processor, for all of them, compilation included."""
    forecast: Any
    """Of the first test sequence, (seeds, frames, D)."""


def train(series: Series, row: str, recipe: Recipe | LatentRecipe, seeds: Sequence[int]) -> Trained:
    """Train one network for each seed, and judge those that did best on validation on the test part."""
    started, scale, made = time.process_time(), series.scale, model(series, row, recipe)
    parts = [jnp.asarray(x / scale, jnp.float32) for x in (series.train, series.validation, series.test)]
    each = recipe.iterations // recipe.checks
    optimizer = optax.apply_if_finite(made.descent, 10**6)

    def step(learner: Any, now: Any) -> Any:
        (params, state), (key, iteration) = learner, now
        draw, noise = jax.random.split(key)
        frames = made.batch(draw, parts[0])
        grads = jax.grad(made.loss)(params, frames, noise, iteration)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def chunk(learner: Any, key: Any, check: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(key, check), each)
        return jax.lax.scan(step, learner, (keys, check * each + jnp.arange(each)))[0]

    run = jax.jit(jax.vmap(chunk, in_axes=(0, 0, None)))
    forecast = jax.jit(jax.vmap(made.forecast, in_axes=(0, None)))

    def judge(params: Any, frames: Any) -> Any:
        return np.mean((np.asarray(forecast(params, frames), float) - frames[:, series.context :]) ** 2, axis=(1, 2, 3))

    params = jax.tree.map(lambda *x: jnp.stack(x), *(made.fresh(seed) for seed in seeds))
    learner = params, jax.vmap(optimizer.init)(params)
    keys = jnp.stack([jax.random.PRNGKey(seed) for seed in seeds])
    best, least = params, np.full(len(seeds), np.inf)
    found = np.zeros(len(seeds), int)
    for check in range(recipe.checks):
        learner = run(learner, keys, check)
        judged = np.nan_to_num(judge(learner[0], parts[1]), nan=np.inf, posinf=np.inf)
        better = judged < least
        least, found = np.where(better, judged, least), np.where(better, (check + 1) * each, found)
        best = jax.tree.map(lambda a, b, better=better: jnp.where(spread(better, a), a, b), learner[0], best)
    test, seconds = judge(best, parts[2]) * scale**2, time.process_time() - started
    return Trained(least * scale**2, test, found, seconds, np.asarray(forecast(best, parts[2][:1])[:, 0]) * scale)


def spread(flags: Any, like: Any) -> Any:
    return jnp.reshape(jnp.asarray(flags), (-1,) + (1,) * (like.ndim - 1))


def work(series: Series, row: str, recipe: Recipe | LatentRecipe, seeds: Sequence[int]) -> list[dict[str, Any]]:
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
            **({"forecast": shown(series, f)} if seed == 0 else {}),
        }
        for seed, v, t, i, f in zip(seeds, found.validation, found.test, found.iteration, found.forecast, strict=True)
    ]


def shown(series: Series, forecast: Any) -> list[list[float]]:
    """Return the coordinates of a forecast that the figure shows."""
    return [[float(f"{x:.4g}") for x in row] for row in forecast[:, series.shown()]]


def finite(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
