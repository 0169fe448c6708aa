"""An energy model in JAX whose prediction is the minimiser of a network.

    python docs/examples/energy_model.py --out out

The prediction is the point where an energy is least, not the output of a network. With the parameters theta of an
Equinox module it is

    y(x) = argmin_u  E(u, x; theta),     E = sum softplus(V u + W x + b) + 1/2 ||u||^2 - u . (A x + c).

E is convex in u whatever the parameters are, so that the minimiser exists, is the only one, and can be differentiated.
The loss of the minimiser is trained by optax as any loss is: the layer inside takes the module as an argument like
another.

The task is to undo a map: the data are pairs of u and x = u + R^T tanh(R u), whose inverse has no closed form. But it
is the minimiser of an energy of the kind above, with V = 2 R, and so it can be learned. Prediction, gradient and the
step of optax are one function under one `jit`.

Needs JAX, Equinox and optax.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array
from matplotlib import pyplot as plt

import dil

SIZE = 2
"""Of x and of u."""
WIDTH = 8
"""Of the network."""
SAMPLES = 64
R = ((1.0, 1.0), (-0.5, 0.5))
"""Of the map."""

# %% [markdown]
# The energy, the layer and the loss.


# %%
class Energy(eqx.Module):
    """E(u, x), convex in u; u, x: (SIZE,)."""

    across: eqx.nn.Linear
    """V, of u."""
    given: eqx.nn.Linear
    """W and b, of x."""
    pull: eqx.nn.Linear
    """A and c, of x."""

    def __init__(self, key: Array) -> None:
        keys = jax.random.split(key, 3)
        self.across = eqx.nn.Linear(SIZE, WIDTH, use_bias=False, key=keys[0])
        self.given = eqx.nn.Linear(SIZE, WIDTH, key=keys[1])
        self.pull = eqx.nn.Linear(SIZE, SIZE, key=keys[2])

    def __call__(self, u: Array, x: Array) -> Array:
        """Return the energy of one u."""
        bent = jnp.sum(jax.nn.softplus(self.across(u) + self.given(x)))
        return bent + 0.5 * u @ u - u @ self.pull(x)


def score(u: Array, model: Energy, x: Array) -> Array:
    """Return the energy: the parameters come as an argument, and so they get gradients."""
    return model(u, x)


predict = dil.argmin(score, dil.solvers.Newton(), linear_solver=dil.linear.CG(), init=lambda model, x: 0.0 * x)


def loss_of(model: Energy, x: Array, u: Array) -> tuple[Array, Array]:
    """Return the mean squared error of the minimisers, and the minimisers; x, u: (samples, SIZE)."""
    found = jax.vmap(predict, in_axes=(None, 0))(model, x)
    return jnp.mean((found - u) ** 2), found


# %% [markdown]
# The data, and the training.


# %%
def samples(key: Array) -> tuple[Array, Array]:
    """Draw x and the u that the model shall find for it."""
    u = 2.0 * jax.random.normal(key, (SAMPLES, SIZE))
    r = jnp.asarray(R)
    return u + jnp.tanh(u @ r.T) @ r, u


class Figures(NamedTuple):
    """What came of the training."""

    first: float
    """The loss before the first step."""
    last: float
    """The loss before the last."""
    held_out: float
    """The loss on samples that were not trained with."""
    slope: float
    """The largest slope of the energy at a prediction for them, which is no minimiser unless it vanishes."""


def draw(model: Energy, x: Array, u: Array, found: Array, losses: list[float], out: Path) -> None:
    """Draw the energy for one x, least at the prediction, and the losses."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    reach = jnp.linspace(-3.5, 3.5, 60)
    grid = u[0] + jnp.stack(jnp.meshgrid(reach, reach), axis=-1)
    levels = jax.vmap(jax.vmap(model, (0, None)), (0, None))(grid, x[0])
    left.contourf(grid[..., 0], grid[..., 1], jnp.sqrt(levels - levels.min()), 16, cmap="viridis_r")
    left.plot(*u[0], "o", markersize=11, markerfacecolor="none", color="black", label="truth")
    left.plot(*found[0], "*", color="C1", markersize=10, label="prediction")
    left.set(title="the learned energy for one x", xlabel="u[0]", ylabel="u[1]")
    left.legend()
    right.semilogy(losses)
    right.set(title="training", xlabel="step of Adam", ylabel="mean squared error of the minimisers")
    figure.savefig(out / "energy_model.png")


# %%
def main(*, quick: bool = False, out: Path | None = None) -> Figures:
    """Train, `quick` for fewer steps, and return what came of it."""
    keys = jax.random.split(jax.random.key(0), 3)
    model = Energy(keys[0])
    (x, u), (x_held, u_held) = samples(keys[1]), samples(keys[2])
    optimiser = optax.adam(5e-2)

    @eqx.filter_jit
    def step(model: Energy, state: Any, x: Array, u: Array) -> tuple[Energy, Any, Array, Array]:
        (loss, found), gradient = eqx.filter_value_and_grad(loss_of, has_aux=True)(model, x, u)
        updates, state = optimiser.update(gradient, state)
        return eqx.apply_updates(model, updates), state, loss, found

    state, begun, losses = optimiser.init(eqx.filter(model, eqx.is_array)), time.perf_counter(), []
    steps = 100 if quick else 1000
    print("step       loss  seconds")
    for number in range(steps):
        model, state, loss, _ = step(model, state, x, u)
        losses.append(float(loss))
        if number % (steps // 10) == 0 or number == steps - 1:
            print(f"{number:4d}  {losses[-1]:9.6f}  {time.perf_counter() - begun:7.1f}")

    _, _, held_out, found = step(model, state, x_held, u_held)  # for its loss alone: compiled it is already
    slope = jnp.max(jnp.abs(jax.vmap(jax.grad(model))(found, x_held)))
    print(f"held out {held_out:.6f}; the slope of the energy at these predictions is at most {slope:.1e}")
    if out is not None:
        draw(model, x_held, u_held, found, losses, out)
    return Figures(losses[0], losses[-1], float(held_out), float(slope))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
