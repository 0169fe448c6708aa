"""A stiff equation on two solvers: Robertson's reaction by implicit and by explicit Euler steps.

y1' = -k1 y1 + k3 y2 y3, y2' = k1 y1 - k3 y2 y3 - k2 y2^2, y3' = k2 y2^2, with rates that differ by nine orders of
magnitude (Hairer and Wanner 1996, eq. IV.1.4). The rate k1 is then learned from the end of the reaction, through the
implicit steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

import dil

RATES = (0.04, 3e7, 1e4)
"""k1, k2, k3."""
START = 0.08
"""The k1 that the learning starts from."""
POINTS = 40
FOUND = 1e-8
"""The relative error of k1 that counts as found."""
STEPS = 8


@dataclass(frozen=True)
class Learned:
    """A reaction by two methods, and the path of k1."""

    backend: str
    times: Any
    implicit: Any
    """The concentrations by implicit steps, (times, 3), in NumPy."""
    explicit: Any
    """The same by explicit steps of the same size."""
    path: tuple[float, ...]

    @property
    def error(self) -> float:
        """The relative error of k1 at the end."""
        return abs(self.path[-1] / RATES[0] - 1)


def reaction(t: Any, y: Any, k1: Any) -> Any:
    """Return dy/dt, (3,)."""
    xp = array_namespace(y)
    made, used, lost = k1 * y[..., 0], RATES[2] * y[..., 1] * y[..., 2], RATES[1] * y[..., 1] ** 2
    return xp.stack([used - made, made - used - lost, lost], axis=-1)


def learn(handle: dil.BackendHandle, *, points: int = POINTS, steps: int = STEPS) -> Learned:
    """Integrate, and learn log k1 from the last concentrations by Gauss-Newton steps."""
    times = np.concatenate([[0.0], np.logspace(-5, 3, points)])
    t, y0 = handle.asarray(times), handle.asarray([1.0, 0.0, 0.0])

    def states(log_k1: Any, method: str = "implicit_euler") -> Any:
        k1 = handle.xp.exp(log_k1)
        return dil.ode.odeint(reaction, y0, t, (k1,), method=method, on_failure="ignore")

    start, truth = (handle.asarray(float(np.log(k))) for k in (START, RATES[0]))
    data = handle.to_numpy(states(truth))
    explicit = handle.to_numpy(states(truth, "euler"))
    left, at, path = float(data[-1, 0]), start, [START]
    for _ in range(steps):
        value, slope = dil.value_and_grad(lambda w: states(w)[-1, 0])(at)
        at = at - (value - left) / slope
        path.append(float(handle.to_numpy(handle.xp.exp(at))))
    return Learned(handle.name, times, data, explicit, tuple(path))


def save(learned: Learned, path: Path) -> None:
    """Draw the reaction and the learning."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    t, scales = learned.times[1:], (1.0, 1e4, 1.0)
    for i, scale in enumerate(scales):
        label = f"y{i + 1}" + (" x 1e4" if scale > 1 else "")
        left.semilogx(t, scale * learned.implicit[1:, i], ".-", color=f"C{i}", label=label)
    blown = np.clip(learned.explicit[1:, 1] * 1e4, -10, 10)
    left.semilogx(t, blown, "--", color="0.5", label="y2 x 1e4, explicit Euler")
    left.set(xlabel="t", ylim=(-0.2, 1.4), title="Robertson's reaction, the same steps")
    left.legend(fontsize="small")
    right.semilogy(np.abs(np.asarray(learned.path) / RATES[0] - 1), "o-")
    right.set(xlabel="step", title="relative error of k1")
    figure.savefig(path, dpi=120)
