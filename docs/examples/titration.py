"""SciPy's root with its derivative: a titration curve and its end points.

The acidity of a solution solves a balance of charges, and `scipy.optimize.root` finds it. As the solver of a layer it
gets a derivative that SciPy alone does not give: dpH/dvolume, whose peaks are the end points that chemists look for.
Nothing changes in SciPy; the derivative comes from the balance at the root.

    python docs/examples/titration.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

import dil

PKA = np.asarray([2.15, 7.20, 12.35])  # of phosphoric acid
ACID, BASE, VOLUME = 0.1, 0.1, 20.0  # mol/l of the acid and of the lye, ml of the acid

# %% [markdown]
# Phosphoric acid gives up three protons one after the other. Positive and negative charges cancel at the pH wanted. The
# arsinh tames charges that grow tenfold with every unit of pH, and has the same root.


# %%
def charges(pH: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Return the charge of the solution after `added` ml of lye, in units of 1e-4 mol/l, through an arsinh."""
    total = VOLUME + added
    free = [1.0 + 0.0 * pH]  # acid with 0, 1, 2, 3 protons given up, beside that with none
    for pka in PKA:
        free.append(free[-1] * 10.0 ** (pH - pka))
    negative = (free[1] + 2 * free[2] + 3 * free[3]) / sum(free) * ACID * VOLUME / total
    return np.arcsinh(1e4 * (BASE * added / total + 10.0**-pH - 10.0 ** (pH - 14.0) - negative))


acidity = dil.root(charges, dil.solvers.SciPyRoot("hybr"))

# %% [markdown]
# Each point starts from the root of the point before. `dil.value_and_grad` returns the pH and its slope.


# %%
def main(*, quick: bool = False, out: Path | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw; return the volumes of lye, the pH and its slope."""
    added, pH, slope, start = np.linspace(0.5, 55.0, 40 if quick else 220), [], [], np.asarray(2.0)
    for volume in added:
        found = dil.value_and_grad(lambda v, start=start: acidity(v, init=start))(volume)
        pH.append(found[0])
        slope.append(found[1])
        start = found[0]
    pH, slope = np.asarray(pH), np.asarray(slope)

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    left.plot(added, pH)
    colours = left.scatter(added, pH, c=np.log10(slope), s=18, cmap="plasma", zorder=3)
    figure.colorbar(colours, ax=left, label="log10 dpH/dvolume", shrink=0.8)
    left.set(title="phosphoric acid", xlabel="lye added, ml", ylabel="pH")
    right.plot(added, slope, label="by the layer")
    right.plot(added, np.gradient(pH, added), ".", color="black", markersize=3, label="differences")
    for end in (VOLUME, 2 * VOLUME):
        right.axvline(end, color="C1", linestyle="--", linewidth=1.2)
    right.set(title="end points", xlabel="lye added, ml", ylabel="dpH/dvolume, 1/ml")
    right.legend(loc="upper left", bbox_to_anchor=(0.37, 0.85), handlelength=1)
    if out is not None:
        figure.savefig(out / "titration.png")
    print(f"steepest at {added[np.argmax(slope)]:.1f} ml, where the pH is {pH[np.argmax(slope)]:.2f}")
    return added, pH, slope


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer points")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
