"""Kepler's equation: where a planet is, and how that depends on its orbit.

The eccentric anomaly E solves E - e sin E = M and has no closed form. A root layer solves the equation for a whole
batch at once, and its derivatives come from the equation, not from the iterations of the solver. They agree with the
closed form dE/de = sin E / (1 - e cos E) to rounding.

    python docs/examples/kepler.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

import dil

# %% [markdown]
# The equation is written as a residual. With `batch_ndim=1` every row is a problem of its own: Newton's method starts
# each at E = pi, from where it converges for every eccentricity below one.


# %%
def residual(E: np.ndarray, M: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Return E - e sin E - M for the mean anomalies M, between 0 and 2 pi, and the eccentricities e."""
    return E - e * np.sin(E) - M


anomaly = dil.root(residual, dil.solvers.Newton(), batch_ndim=1, init=lambda M, e: np.pi + 0.0 * M)

# %% [markdown]
# M grows evenly in time, so the dots on an orbit are equal times apart. Their colour is the derivative dE/de: where a
# small error in e moves the planet most.


# %%
def main(*, quick: bool = False, out: Path | None = None) -> float:
    """Draw three orbits and the derivative; return its largest relative error."""
    M = np.linspace(0.0, 2 * np.pi, 24 if quick else 72, endpoint=False) + 0.04
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    errors = []
    for number, eccentricity in enumerate((0.2, 0.5, 0.8)):
        e = np.full_like(M, eccentricity)
        E, pull = dil.vjp(anomaly, M, e)
        _, slope = pull(np.ones_like(M))  # the rows are independent, so this is dE/de of each
        exact = np.sin(E) / (1 - e * np.cos(E))
        errors.append(np.max(np.abs(slope - exact)) / np.max(np.abs(exact)))

        x, y = np.cos(E) - e, np.sqrt(1 - e**2) * np.sin(E)  # the sun is at the origin
        left.fill(x, y, fill=False, edgecolor=f"C{number}", linewidth=1)
        dots = left.scatter(x, y, c=np.abs(slope), s=16, vmin=0, vmax=1.7, zorder=2)
        right.plot(M, exact, color=f"C{number}", label=f"e = {eccentricity}")
        right.plot(M[::3], slope[::3], "o", color=f"C{number}")
    left.plot(0, 0, "*", color="C4", markersize=16)
    left.set(title="equal times apart", aspect="equal", anchor="C", xticks=[], yticks=[])
    left.spines[:].set_visible(False)
    figure.colorbar(dots, ax=left, label="|dE/de|", shrink=0.6)
    right.set(title="the layer (dots) and the closed form", xlabel="mean anomaly M", ylabel="dE/de")
    right.legend()
    if out is not None:
        figure.savefig(out / "kepler.png")
    print(f"largest relative error of dE/de: {max(errors):.1e}")
    return max(errors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer points")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
