"""Swinging a pendulum up: a plan as a layer, animated.

The motor is too weak to lift the pendulum, so the plan has to swing it back and forth first. `dil.control.plan` is the
layer from state and parameters to the best controls, solved by iLQR, and its gradient says how the effort depends on
gravity.

    python docs/examples/swing_up.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter

import dil
from dil.control import ILQR, plan

STEP, TORQUE, HORIZON = 0.05, 4.0, 60
GRAVITY = np.asarray(9.8)

# %% [markdown]
# A state is angle and speed; the pendulum hangs at angle 0 and stands at pi. States and controls have leading
# dimensions, so the functions index the last axis.


# %%
def pendulum(x: np.ndarray, u: np.ndarray, gravity: np.ndarray) -> np.ndarray:
    """Return the states after a step of 0.05 s under the torques u."""
    speed = x[..., 1:] + STEP * (u - gravity * np.sin(x[..., :1]))
    return np.concatenate([x[..., :1] + STEP * speed, speed], axis=-1)


def effort(x: np.ndarray, u: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the cost of a step: distance from upright, and torque."""
    return STEP * (weight * (1.0 + np.cos(x[..., 0])) + 0.05 * u[..., 0] ** 2)


def upright(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the cost of the last state."""
    return 50.0 * weight * (1.0 + np.cos(x[..., 0])) + 5.0 * weight * x[..., 1] ** 2


def states(u: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the states that the controls lead through, (HORIZON + 1, 2)."""
    visited = [x]
    for torque in u:
        visited.append(pendulum(visited[-1], torque, GRAVITY))
    return np.stack(visited)


# %% [markdown]
# The bounds keep the torque below 4, where gravity pulls with up to 9.8. The first guess is a push to and fro.


# %%
def main(*, quick: bool = False, out: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Plan and animate; return the states, (HORIZON + 1, 2), and d (sum of u^2) / d gravity."""
    guess = 3.0 * np.sign(np.sin(3.0 * STEP * np.arange(HORIZON)))[:, None]
    swing = plan(effort, pendulum, HORIZON, final=upright, solver=ILQR(), bounds=(-TORQUE, TORQUE), barrier=1e-2)
    x0, weight = np.asarray([0.0, 0.0]), np.asarray(1.0)
    u = swing(x0, weight, GRAVITY, init=guess)
    x = states(u, x0)
    slope = dil.grad(lambda g: STEP * np.sum(swing(x0, weight, g, init=guess) ** 2))(GRAVITY)
    print(f"ends at {x[-1, 0] / np.pi:.3f} pi; effort {STEP * np.sum(u**2):.2f}, its slope in gravity {slope:.2f}")

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    left.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", title="the plan, played")
    left.axis("off")
    (rod,) = left.plot([], [], "o-", linewidth=4, markersize=14)
    (trail,) = left.plot([], [], color="C1", linewidth=1.2)
    time = STEP * np.arange(HORIZON)
    right.plot(time, u[:, 0], label="torque")
    right.plot(time, x[1:, 0], color="C1", label="angle")
    right.axhline(np.pi, color="C6", linestyle=":", linewidth=1.2)
    marker = right.axvline(0.0, color="C6", linewidth=1)
    right.set(xlabel="t in s", title="controls and angle", ylim=(-4.5, 6))
    right.legend(loc="upper left")
    tip = np.stack([np.sin(x[:, 0]), -np.cos(x[:, 0])], axis=-1)

    def draw(frame: int) -> None:
        now = min(frame, HORIZON)
        rod.set_data([0.0, tip[now, 0]], [0.0, tip[now, 1]])
        trail.set_data(*tip[max(0, now - 15) : now + 1].T)
        marker.set_xdata([STEP * now] * 2)

    if out is not None:
        frames = range(0, HORIZON + 1, 20) if quick else range(0, HORIZON + 12, 2)
        FuncAnimation(figure, draw, frames).save(out / "swing_up.gif", PillowWriter(fps=10), dpi=60)
    draw(HORIZON)
    return x, slope


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer frames")
    parser.add_argument("--out", type=Path, help="a folder for the animation")
    main(**vars(parser.parse_args()))
