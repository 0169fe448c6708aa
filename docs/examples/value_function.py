"""A value function as a fixed point, whose gradient shows where the agent walks.

Bellman's equation with a soft maximum has the value of every state as its fixed point. The derivative of the value at
the start in the reward of a state is the expected (discounted) number of visits to that state. One gradient through the
layer therefore paints the paths through the maze. Dynamic discrete choice and inverse reinforcement learning rest on
it.

    python docs/examples/value_function.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array
from matplotlib import pyplot as plt

import dil

jax.config.update("jax_enable_x64", True)
TEMPERATURE, DISCOUNT = 0.1, 0.97

# %% [markdown]
# The agent moves to one of four neighbours; walls have a large negative reward. `jnp.roll` shifts the whole map, whose
# border is wall.


# %%
def bellman(V: Array, reward: Array, discount: Array) -> Array:
    """Return reward + discount * softmax over the four neighbours of V; V, reward: (rows, columns)."""
    moves = jnp.stack([jnp.roll(V, shift, axis) for axis in (0, 1) for shift in (1, -1)])
    return reward + discount * TEMPERATURE * jax.nn.logsumexp(moves / TEMPERATURE, axis=0)


value = dil.fixed_point(
    bellman,
    dil.solvers.Anderson(rtol=1e-10),
    linear_solver=dil.linear.BiCGSTAB(),
    init=lambda reward, discount: 0.0 * reward,
)


def maze(size: int) -> Array:
    """Return the rewards: walls, a cost of each step, and a goal."""
    reward = jnp.full((size, size), -0.1).at[jnp.asarray([0, -1])].set(-9.0).at[:, jnp.asarray([0, -1])].set(-9.0)
    reward = reward.at[size // 3, : 2 * size // 3].set(-9.0).at[2 * size // 3, size // 3 :].set(-9.0)
    return reward.at[size // 3, size // 4].set(-0.1).at[size - 3, size - 3].set(1.0)


# %% [markdown]
# The gradient of one entry of V in the whole map of rewards. Forward and backward pass are one program under `jax.jit`.


# %%
def main(*, quick: bool = False, out: Path | None = None) -> tuple[Array, Array]:
    """Draw; return V and the visits, both (rows, columns)."""
    size = 12 if quick else 21
    reward = maze(size)

    def at_start(reward: Array) -> tuple[Array, Array]:
        V = value(reward, jnp.asarray(DISCOUNT))
        return V[2, 2], V

    visits, V = jax.jit(jax.grad(at_start, has_aux=True))(reward)
    print(f"V at the start {V[2, 2]:.3f}; {visits.sum():.3f} visits in all")

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    walls = reward < -1.0
    for axes, shown, colours, title in (
        (left, jnp.log10(visits + 1e-6), "magma", "log10 of the visits: dV(start)/dreward"),
        (right, V, "viridis", "value"),
    ):
        image = axes.imshow(jnp.where(walls, jnp.nan, shown), cmap=colours, vmin=-4 if axes is left else None)
        figure.colorbar(image, ax=axes, shrink=0.8)
        axes.plot(2, 2, "o", color="white", markersize=7)
        axes.plot(size - 3, size - 3, "*", color="white", markersize=12)
        axes.set(title=title, xticks=[], yticks=[], facecolor="0.75")
        axes.grid(visible=False)
    if out is not None:
        figure.savefig(out / "value_function.png")
    return V, visits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller maze")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
