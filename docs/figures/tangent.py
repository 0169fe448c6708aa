"""The picture of the first page: minimisers of a score for many parameters, and the tangents that dil computes.

python docs/figures/tangent.py --out docs/pages
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from array_api_compat import array_namespace

import dil

mpl.use("Agg")
import matplotlib.pyplot as plt

Array = Any


def score(u: Array, theta: Array) -> Array:
    """Return a tilted well; u and theta: shape (problems,)."""
    xp = array_namespace(u)
    return 0.5 * (u - xp.sin(theta)) ** 2 + 0.1 * (u - 0.4 * theta) ** 4


def draw(out: Path) -> list[Path]:
    """Draw the picture into a folder, and return its path."""
    layer = dil.argmin(score, dil.solvers.Newton(), batch_ndim=1, init=lambda theta: 0.0 * theta)
    at = np.linspace(-2.8, 2.8, 9)
    y, slope = dil.jvp(layer, (at,), (np.ones(9),))

    theta, u = np.meshgrid(np.linspace(-3.3, 3.3, 200), np.linspace(-2.0, 2.0, 160))
    figure, axes = plt.subplots(figsize=(8, 3.6), dpi=110, layout="constrained")
    drawn = axes.contourf(theta, u, np.log10(score(u, theta) + 0.02), levels=24, cmap="Blues")
    figure.colorbar(drawn, ax=axes, label=r"$\log_{10} f(u;\,\theta)$", ticks=[-1, 0])
    half = 0.36 / np.sqrt(1.0 + slope**2)
    axes.plot([at - half, at + half], [y - half * slope, y + half * slope], color="#e64a19", linewidth=2.5)
    axes.plot(at, y, "o", color="#1a237e", markersize=6, zorder=3)
    axes.set(xlabel=r"parameter $\theta$", ylabel=r"unknown $u$", xlim=(-3.3, 3.3), ylim=(-2.0, 2.0))
    axes.plot([], [], "o", color="#1a237e", label=r"$y = \mathrm{argmin}_u f(u;\,\theta)$, by a solver")
    axes.plot([], [], color="#e64a19", linewidth=2.5, label=r"$\mathrm{d}y / \mathrm{d}\theta$, by one linear solve")
    axes.legend(loc="upper left", framealpha=0.95)
    figure.savefig(path := out / "tangent.png")
    plt.close(figure)
    return [path]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/pages"))
    draw(parser.parse_args().out)
