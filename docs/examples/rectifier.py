"""The capacitor and the load of a rectifier, learned from its voltage.

A diode charges a capacitor from the mains, and a load discharges it. The node before the diode has no capacitor, so its
voltage is algebraic: the currents into it add up to zero at every time. With the mass matrix diag(C, 0) the circuit is
one call of `dil.ode.odeint`, and C, an entry of that matrix, is learned like any other parameter.

    python docs/examples/rectifier.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from matplotlib import pyplot as plt
from scipy.optimize import minimize

import dil

START, TRUTH = np.asarray([2e-5, 400.0]), np.asarray([1e-5, 1000.0])
"""Capacity in farads and load in ohms."""
TIMES = np.linspace(0.0, 0.02, 41)
"""One period of the mains, in seconds."""
RESISTANCE, SATURATION, THERMAL = 10.0, 1e-12, 0.02585
"""Of the source in ohms; current of the diode in amperes, and its thermal voltage in volts."""

# %% [markdown]
# The circuit. The first equation is Kirchhoff's law at the capacitor. The second is that at the node before the diode,
# where nothing is stored.


# %%
def source(t: Any) -> Any:
    """Return the voltage of the mains."""
    return 5.0 * array_namespace(t).sin(100 * np.pi * t)


def circuit(t: Any, y: Any, load: Any) -> Any:
    """Return the current that charges the capacitor, and the sum of the currents into the node."""
    xp = array_namespace(y)
    out, node = y[0], y[1]
    diode = SATURATION * (xp.exp((node - out) / THERMAL) - 1.0)
    return xp.stack([diode - out / load, (source(t) - node) / RESISTANCE - diode])


def voltages(parts: Any, rtol: float = 1e-3) -> Any:
    """Return the voltages of capacitor and node at the times, (T, 2), from an empty capacitor."""
    capacity, load = parts[0], parts[1]
    mass = array_namespace(parts).stack([capacity, 0.0 * capacity])
    options = {"method": "sdirk3", "rtol": rtol, "atol": 1e-4, "on_failure": "raise"}
    return dil.ode.odeint(circuit, np.zeros(2), TIMES, (load,), mass=mass, **options)


# %% [markdown]
# The measured voltage has noise of 20 mV. The loss is a function of the logarithms of both parts.


# %%
def learn(measured: np.ndarray, steps: int) -> list[tuple[np.ndarray, float]]:
    """Return the parts and the loss at each step of L-BFGS."""

    def loss(logs: Any) -> Any:
        parts = array_namespace(logs).exp(logs) * TRUTH
        return 1e3 * array_namespace(logs).mean((voltages(parts)[:, 0] - measured) ** 2)

    value_and_grad, path = dil.value_and_grad(loss), []

    def told(intermediate_result: Any) -> None:
        path.append((np.exp(intermediate_result.x) * TRUTH, float(intermediate_result.fun)))

    start = np.log(START / TRUTH)
    path.append((START, float(loss(start))))
    minimize(value_and_grad, start, jac=True, method="L-BFGS-B", callback=told, options={"maxiter": steps})
    return path


def draw(measured: np.ndarray, path: list[tuple[np.ndarray, float]], out: Path) -> None:
    """Draw the voltages before and after, and the parts at each step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    left.plot(1e3 * TIMES, source(TIMES), color="0.7", label="mains")
    left.plot(1e3 * TIMES, measured, "k.", label="measured")
    for (parts, _), name, colour in ((path[0], "before", "C6"), (path[-1], "after", "C0")):
        left.plot(1e3 * TIMES, voltages(parts)[:, 0], color=colour, label=name)
    left.set(xlabel="t in ms", ylabel="V", ylim=(-1.0, 5.4), title="the voltage of the capacitor")
    left.legend(fontsize="small")
    for i, name in enumerate(("capacity", "load")):
        right.plot([parts[i] / TRUTH[i] for parts, _ in path], "o-", label=name)
    right.set(xlabel="step of L-BFGS", ylabel="learned / true", title="the parts")
    right.legend()
    figure.savefig(out / "rectifier.png")


# %%
def main(*, quick: bool = False, out: Path | None = None) -> list[tuple[np.ndarray, float]]:
    """Learn, print and, if told where, draw; return the parts and the loss at each step."""
    noise = 0.02 * np.random.default_rng(0).standard_normal(TIMES.shape)
    measured = voltages(TRUTH, 1e-6)[:, 0] + noise
    path = learn(measured, 6 if quick else 15)
    for parts, value in path:
        print(f"loss {value:.2e} at C = {1e6 * parts[0]:.2f} uF, R = {parts[1]:.0f} ohm")
    if out is not None:
        draw(measured, path, out)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    options = parser.parse_args()
    main(quick=options.quick, out=options.out)
