"""A stiff oscillator in the phase plane, and its derivative along the way.

Van der Pol's equation x'' = mu (1 - x^2) x' - x creeps along a curve and then jumps, a hundred times faster. Implicit
steps that adapt their size follow it with few points, and each step is a layer, so that forward mode gives dx/dmu at
all times in one sweep. It agrees with the difference of two solutions.

    python docs/examples/van_der_pol.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection

import dil

# %% [markdown]
# The second-order equation is a system of two: position x and velocity v.


# %%
def van_der_pol(t: float, y: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """Return the derivative of y = (x, v)."""
    x, v = y[0], y[1]
    return np.stack([v, mu * (1.0 - x**2) * v - x])


def orbit(mu: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return x and v at the times, (times, 2), from x = 2 and v = 0."""
    return dil.ode.odeint(van_der_pol, np.asarray([2.0, 0.0]), times, (mu,), method="sdirk2", rtol=1e-4, atol=1e-6)


# %% [markdown]
# `dil.jvp` pushes the direction dmu = 1 through all steps. The colour of the orbit is the speed, on a logarithmic
# scale.


# %%
def main(*, quick: bool = False, out: Path | None = None) -> float:
    """Draw; return the largest difference of dx/dmu from a difference quotient, over its largest size."""
    mu, times = np.asarray(8.0), np.linspace(0.0, 8.0 if quick else 20.0, 100 if quick else 1500)
    y, slope = dil.jvp(lambda mu: orbit(mu, times), (mu,), (np.asarray(1.0),))
    h = 1e-3
    quotient = (orbit(mu + h, times) - orbit(mu - h, times)) / (2 * h)
    error = np.max(np.abs(slope - quotient)[:, 0]) / np.max(np.abs(quotient[:, 0]))

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    pieces = LineCollection(np.stack([y[:-1], y[1:]], axis=1), cmap="plasma", linewidth=2.5)
    speed = np.linalg.norm(np.asarray([van_der_pol(0.0, row, mu) for row in y]), axis=-1)
    pieces.set_array(np.log10(speed[:-1]))
    left.add_collection(pieces)
    left.autoscale()
    figure.colorbar(pieces, ax=left, label="log10 of the speed", shrink=0.8)
    left.set(title=f"phase plane, mu = {mu:.0f}", xlabel="x", ylabel="v")
    right.plot(times, y[:, 0], label="x")
    right.plot(times, slope[:, 0], color="C1", label="dx/dmu by the layer")
    right.plot(times[::25], quotient[::25, 0], ".", color="black", label="difference quotient")
    right.set(title="along time", xlabel="t", ylim=(-4, 6))
    right.legend(loc="upper left")
    if out is not None:
        figure.savefig(out / "van_der_pol.png")
    print(f"dx/dmu differs from a difference quotient by {error:.1e}")
    return error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a shorter time")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
