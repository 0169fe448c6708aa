"""A market equilibrium as a fixed point, and what a bad harvest does to all prices.

Traders own goods and buy what they like best at the going prices. Prices that clear every market are the fixed point of
a simple rule: what is in short supply gets dearer. The layer finds them, and one Jacobian through it says how each
price answers to each good's supply, without solving the market again.

    python docs/examples/market.py --out out
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
GOODS = ("wheat", "rice", "oil", "wood", "iron")

# %% [markdown]
# A trader with tastes a and elasticity of substitution s spends the share a p^(1-s) / sum(a p^(1-s)) of the income on a
# good. Money is the sixth good, with price one: only ratios of prices matter.


# %%
def demand(log_price: Array, taste: Array, owned: Array, elasticity: Array) -> Array:
    """Return what all traders together want of each good; taste and owned: (traders, goods)."""
    price = jnp.exp(log_price)
    weight = taste * price ** (1.0 - elasticity)
    income = owned @ price
    return ((weight / weight.sum(1, keepdims=True)) * income[:, None] / price).sum(0)


def adjust(q: Array, taste: Array, owned: Array, elasticity: Array) -> Array:
    """Return log prices raised where demand exceeds supply, and lowered where it falls short; q: (goods - 1,)."""
    wanted = demand(jnp.append(q, 0.0), taste, owned, elasticity)
    return q + 0.3 * jnp.log(wanted / owned.sum(0))[:-1]


prices = dil.fixed_point(
    adjust,
    dil.solvers.FixedPoint(),
    linear_solver=dil.linear.Direct(),
    init=lambda taste, owned, elasticity: 0.0 * taste[0, :-1],
)

# %% [markdown]
# One `jax.jacobian` gives the log prices and d log price / d log supply of every pair. A harvest of wheat that is 20 %
# smaller is then predicted to first order, and compared with the market solved anew.


# %%
def main(*, quick: bool = False, out: Path | None = None) -> tuple[float, Array, Array, Array]:
    """Draw; return the excess demand, d log price / d log supply, and the log prices predicted and solved anew."""
    keys = jax.random.split(jax.random.key(2), 3)
    traders, goods = (4 if quick else 30), len(GOODS) + 1
    taste, owned = (jnp.exp(1.5 * jax.random.normal(key, (traders, goods))) for key in keys[:2])
    elasticity = jax.random.uniform(keys[2], (traders, 1), minval=1.2, maxval=4.0)

    def clear(log_supply: Array) -> tuple[Array, Array]:
        q = prices(taste, owned * jnp.exp(log_supply), elasticity)
        return q, q

    market = jax.jit(jax.jacobian(clear, has_aux=True))
    zero = jnp.zeros(goods)
    response, q = market(zero)
    excess = float(jnp.max(jnp.abs(demand(jnp.append(q, 0.0), taste, owned, elasticity) / owned.sum(0) - 1.0)))
    shock = zero.at[0].set(jnp.log(0.8))
    predicted, solved = response @ shock, market(shock)[1] - q
    response = response[:, :-1]
    print(f"excess demand {excess:.1e} of the supply; wheat gets {100 * jnp.expm1(solved[0]):.1f} % dearer")

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    left.imshow(response, cmap="RdBu", vmin=-1, vmax=1)
    left.grid(visible=False)
    for i, row in enumerate(response):
        for j, value in enumerate(row):
            left.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > 0.6 else "black")
    left.set(title="d log price / d log supply", ylabel="price of", xlabel="supply of")
    left.set(xticks=range(5), yticks=range(5), xticklabels=GOODS, yticklabels=GOODS)
    place = jnp.arange(5)
    right.bar(place - 0.2, 100 * jnp.expm1(solved), 0.4, label="solved anew")
    right.bar(place + 0.2, 100 * jnp.expm1(predicted), 0.4, label="by the derivative")
    right.set(title="a fifth less wheat", ylabel="change of price, %", xticks=range(5), xticklabels=GOODS)
    right.legend()
    if out is not None:
        figure.savefig(out / "market.png")
    return excess, response, predicted, solved


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer traders")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
