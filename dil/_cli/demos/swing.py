"""A pendulum swung up by model predictive control: at every state a plan is made and its first torque applied.

The motor is too weak to lift the pendulum at once: its torque is 40 percent of the largest one of gravity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

import dil

GRAVITY, STEP, TORQUE = 9.81, 0.05, 2.0
"""m/s^2, s, N m; the rod has 1 m and 1 kg."""
HORIZON, STEPS = 30, 70
UPRIGHT = 0.1
"""Radians and radians per second that count as upright and at rest."""


@dataclass(frozen=True)
class Swing:
    """A swing-up."""

    backend: str
    states: Any
    """Angle from upright and speed, (steps + 1, 2), in NumPy."""
    torques: Any
    """(steps,)"""

    @property
    def away(self) -> float:
        """The larger of the angle from upright and the speed at the end."""
        angle, speed = map(float, self.states[-1])
        return max(abs((angle + math.pi) % (2 * math.pi) - math.pi), abs(speed))


def motion(x: Any, u: Any, theta: Any = None) -> Any:
    """Return the states after one step of semi-implicit Euler, (..., 2)."""
    xp = array_namespace(x)
    speed = x[..., 1] + STEP * (1.5 * GRAVITY * xp.sin(x[..., 0]) + 3.0 * u[..., 0])
    return xp.stack([x[..., 0] + STEP * speed, speed], axis=-1)


def cost(x: Any, u: Any, theta: Any) -> Any:
    """Return the cost of a state and a torque."""
    return 1.0 - array_namespace(x).cos(x[..., 0]) + 0.01 * x[..., 1] ** 2 + 0.01 * u[..., 0] ** 2


def last_cost(x: Any, theta: Any) -> Any:
    """Return the cost of the last state of a plan."""
    return 20.0 * (1.0 - array_namespace(x).cos(x[..., 0])) + x[..., 1] ** 2


def swing_up(handle: dil.BackendHandle, *, steps: int = STEPS) -> Swing:
    """Swing up from hanging at rest."""
    plan = dil.control.plan(
        cost,
        motion,
        HORIZON,
        final=last_cost,
        solver=dil.control.ILQR(max_iter=60),
        bounds=(-TORQUE, TORQUE),
        barrier=1e-2,
        on_failure="ignore",  # a plan that ends early is a good one too
    )
    start = handle.asarray([math.pi, 0.0])
    run = dil.control.mpc_rollout(plan, lambda x, u: motion(x, u), start, steps, None, None)
    return Swing(handle.name, handle.to_numpy(run.states), handle.to_numpy(run.controls)[:, 0])


def save(swing: Swing, path: Path) -> None:
    """Write the swing-up as an animation, in real time."""
    from matplotlib.animation import FuncAnimation, PillowWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal", xticks=[], yticks=[])
    (rod,) = left.plot([], [], "o-", color="C0", linewidth=4, markersize=10)
    times = STEP * np.arange(len(swing.torques))
    right.set(xlabel="t in s", ylabel="torque in N m", ylim=(-1.1 * TORQUE, 1.1 * TORQUE))
    right.set_xlim(0.0, max(STEP, STEP * len(swing.torques)))
    for bound in (-TORQUE, TORQUE):
        right.axhline(bound, color="0.6", linestyle=":")
    (line,) = right.step([], [], where="post", color="C1")

    def show(k: int) -> tuple[Any, Any]:
        angle = swing.states[k, 0]
        rod.set_data([0.0, -math.sin(angle)], [0.0, math.cos(angle)])
        line.set_data(times[:k], swing.torques[:k])
        return rod, line

    animation = FuncAnimation(figure, show, frames=len(swing.states), blit=False)
    animation.save(path, writer=PillowWriter(fps=round(1 / STEP)), dpi=70)
