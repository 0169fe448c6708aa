"""A planner tuned through the loop that it controls: a cart follows a reference with a limited force.

The planner's model has no friction, and the cart has. `mpc_rollout` is differentiable, so the friction of the model is
found from how well the cart follows its reference, not from measured forces. The force reaches its limits: there the
plan holds it, and it has no derivative.

    python docs/examples/tracking.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import scipy.optimize
from matplotlib import pyplot as plt

import dil
from dil.control import Box, mpc_rollout, plan

STEP, HORIZON, FRICTION = 0.2, 7, 0.8

# %% [markdown]
# The state is place and speed. The reference is a place for each time: `theta_c_axis` says that it has an axis of
# times, and the weight of the force has none.


# %%
def cost(x: np.ndarray, u: np.ndarray, theta: dict[str, np.ndarray]) -> np.ndarray:
    """Return the cost of a state and a force."""
    return (x[..., 0] - theta["place"]) ** 2 + theta["price"] * u[..., 0] ** 2


def final(x: np.ndarray, theta: dict[str, np.ndarray]) -> np.ndarray:
    """Return the cost of the last state."""
    return (x[..., 0] - theta["place"]) ** 2


def cart(x: np.ndarray, u: np.ndarray, friction: np.ndarray) -> np.ndarray:
    """Return the next state."""
    speed = x[..., 1] + STEP * (u[..., 0] - friction * x[..., 1])
    return np.stack([x[..., 0] + STEP * speed, speed], axis=-1)


STEER = plan(
    cost,
    cart,
    HORIZON,
    final=final,
    bounds=Box(-1.0, 1.0),
    theta_c_axis={"place": 0, "price": None},
    on_failure="raise",
)

# %% [markdown]
# Each step makes a plan from the state that it observes, and applies its first force. The plan of a step gets the rows
# of the reference from its time on.


# %%
def main(*, quick: bool = False, out: Path | None = None) -> float:
    """Tune and draw; return the relative error of the gradient through the loop, from finite differences."""
    steps = 7 if quick else 28
    times = STEP * np.arange(steps + HORIZON)
    theta = {"place": 0.8 * np.sin(times) * (1.0 + 0.3 * np.sin(2.3 * times)), "price": np.asarray(1e-3)}

    def follow(friction: np.ndarray) -> dil.control.Rollout:
        return mpc_rollout(STEER, lambda x, u: cart(x, u, FRICTION), np.zeros(2), steps, theta, friction)

    def loss(friction: np.ndarray) -> np.ndarray:
        return np.mean((follow(friction).states[1:, 0] - theta["place"][1 : steps + 1]) ** 2)

    slope, h = dil.value_and_grad(loss), 1e-5
    start = np.asarray(0.0)
    difference = (loss(start + h) - loss(start - h)) / (2 * h)
    error = abs(slope(start)[1] - difference) / abs(difference)
    found = scipy.optimize.minimize(
        lambda f: slope(np.asarray(f[0])), [0.0], jac=True, method="BFGS", options={"maxiter": 1 if quick else 6}
    )

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    left.plot(times[: steps + 1], theta["place"][: steps + 1], color="black", label="reference")
    for value, shade in ((start, "C1"), (np.asarray(found.x[0]), "C0")):
        run = follow(value)
        left.plot(times[: steps + 1], run.states[:, 0], color=shade, label=f"friction of the model {float(value):.2f}")
        right.step(times[:steps], run.controls[:, 0], where="post", color=shade)
    left.set(title="place of the cart", xlabel="time", ylim=(-0.75, 1.35))
    left.legend(loc="upper right")
    for limit in (-1.0, 1.0):
        right.axhline(limit, color="black", linestyle=":", linewidth=1)
    right.set(title="force, and its limits", xlabel="time")
    if out is not None:
        figure.savefig(out / "tracking.png")
    print(
        f"friction {found.x[0]:.2f} (the cart: {FRICTION}); mean square error {loss(start):.1e}, then {found.fun:.1e}"
    )
    return float(error)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="seven steps")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
