"""The figure of the learning: score, argmin line and gradient field over eccentricity and eccentric anomaly.

It follows Figure 1 of Look et al. 2020. The backend of the learning computes the numbers, and matplotlib draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

import dil
from dil import kepler
from dil._cli.demos.kepler import Learned, compiled

FINE = 301
"""Number of points along each axis, for the score and the argmin line."""
ARROWS = (19, 15)
DPI = 150
SIZE = (8.0, 7.0)
"""Size of the figure, inches."""
BOX = (0.085, 0.245, 0.765, 0.655)
"""The axes in the figure: left, bottom, width, height."""
LOWEST = -5
"""log10 of the score in rad^2 below which all scores have one colour."""

# colours for colour-blind readers (Okabe and Ito 2008), on a grey scale
BLACK, DARK, ORANGE, BLUE, GREEN = "#000000", "#555555", "#D55E00", "#0072B2", "#009E73"


@dataclass(frozen=True)
class Landscape:
    """Values on a grid of eccentricities e and eccentric anomalies E, computed by the backend, as NumPy arrays."""

    e: Any
    E: Any
    score: Any
    """(E, e)"""
    curvature: Any
    """d2 score / dE2, (E, e)."""
    line: Any
    """E(e), on the argmin line."""
    at_e: Any
    at_E: Any
    slope: Any
    """dE/de by the implicit function theorem at the points (at_e, at_E) off the line; NaN where it does not exist."""
    gradient: Any
    """(E - target) dE/de at the same points."""


def survey(handle: dil.BackendHandle, learned: Learned) -> Landscape:
    """Compute the values that the figure shows, on the backend."""
    M, xp = learned.mean_anomaly, handle.xp
    e = np.linspace(0.0, max(0.95, 0.5 * (1 + max(s.e for s in learned.path))), FINE)
    line = handle.to_numpy(compiled(handle, lambda e: kepler.eccentric_anomaly(M, e))(handle.asarray(e)))
    room = max(0.55 * float(np.ptp(line)), 0.1)
    E = np.linspace(float(line.min()) - room, float(line.max()) + room, FINE)
    points_e, points_E = (handle.asarray(a.reshape(-1)) for a in np.meshgrid(e, E))

    def total(E: Any) -> Any:
        return xp.sum(kepler.score(E, M, points_e))

    def curvature(E: Any) -> Any:
        # the Hessian of a sum over separate problems is diagonal, so its product with ones is the diagonal
        gradient, pull = dil.vjp(dil.grad(total), E)
        return pull(xp.ones_like(gradient))[0]

    at_e, at_E = (a.reshape(-1) for a in np.meshgrid(*(_centres(a, n) for a, n in zip((e, E), ARROWS, strict=True))))
    slope = handle.to_numpy(_slope_at(handle, M)(handle.asarray(at_e), handle.asarray(at_E)))
    # Where the Hessian is not positive, the point is not near a minimum and the theorem does not apply. CG stops at its
    # first step and returns an exact zero. No arrow is drawn there. Where the Hessian is positive but small, dE/de is
    # large. The length of its arrow saturates.
    slope = np.where(slope == 0, np.nan, slope)
    return Landscape(
        e,
        E,
        handle.to_numpy(kepler.score(points_E, M, points_e)).reshape(FINE, FINE),
        handle.to_numpy(compiled(handle, curvature)(points_E)).reshape(FINE, FINE),
        line,
        at_e,
        at_E,
        slope,
        (at_E - learned.target) * slope,
    )


def _slope_at(handle: dil.BackendHandle, M: float) -> Callable[[Any, Any], Any]:
    """Return dE/de by the implicit function theorem at points (e, E), as if they were solutions.

    The solver of the layer returns its start.
    """
    # failures are ignored, because the points are not solutions, as the figure intends
    layer = dil.argmin(
        kepler.score,
        lambda score, init, *args: init,
        linear_solver=dil.linear.CG(),
        batch_ndim=1,
        on_failure="ignore",
    )

    def slope(e: Any, E: Any) -> Any:
        found, pull = dil.vjp(lambda e: layer(M, e, init=E), e)
        return pull(handle.xp.ones_like(found))[0]

    return compiled(handle, slope)


def _centres(axis: Any, count: int) -> Any:
    edges = np.linspace(axis[0], axis[-1], count + 1)
    return 0.5 * (edges[:-1] + edges[1:])


def agreement(land: Landscape, learned: Learned) -> tuple[int, int, int]:
    """Return three counts of points off the line: dE/de has the sign of dE/de on the line, exists, does not exist.

    With that sign, descent on the loss changes e in the direction that moves E toward the target.
    """
    there = np.isfinite(land.slope)
    same = land.slope * math.sin(learned.mean_anomaly) > 0  # on the line, sin E and so dE/de have the sign of sin M
    return int(same.sum()), int(there.sum()), int((~there).sum())


def draw(learned: Learned, land: Landscape) -> Figure:
    """Draw the figure. The global state of matplotlib is neither read nor changed."""
    with _style():
        figure = Figure(figsize=SIZE, dpi=DPI)
        FigureCanvasAgg(figure)
        axes = figure.add_axes(BOX)
        _score(figure, axes, land)
        arrows = _field(axes, land)
        hatched = [_hatch_entry()] if land.curvature.min() <= 0 else []
        _words(figure, axes, learned, [*_line_and_path(axes, learned, land), arrows, *hatched])
    return figure


def save(figure: Figure, file: Path) -> None:
    """Write a PNG of the figure, without the metadata about the program that wrote it."""
    with _style():
        figure.savefig(file, format="png", metadata={"Software": None})


@contextmanager
def _style() -> Iterator[None]:
    """Use the default style of matplotlib, not the user's. Some of it is read when the figure is saved."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["hatch.linewidth"] = 0.6
        yield


def _score(figure: Figure, axes: Any, land: Landscape) -> None:
    highest = math.ceil(4 * math.log10(float(land.score.max()))) / 4
    levels = np.arange(LOWEST, highest + 0.125, 0.25)
    log = np.log10(np.maximum(land.score, 1e-300))
    colours = mpl.colors.ListedColormap(mpl.colormaps["Greys_r"](np.linspace(0.2, 1.0, 256)))
    filled = axes.contourf(land.e, land.E, log, levels=levels, cmap=colours, extend="min")
    decades = np.arange(LOWEST, math.floor(highest) + 1)
    axes.contour(land.e, land.E, log, levels=decades, colors="white", linewidths=0.7, linestyles="solid")
    if land.curvature.min() <= 0:
        below = [-np.inf, 0.0]
        hatched = axes.contourf(land.e, land.E, land.curvature, levels=below, colors="none", hatches=["///"])
        hatched.set_edgecolor(DARK)
        hatched.set_linewidth(0.0)
    place = figure.add_axes((BOX[0] + BOX[2] + 0.022, BOX[1], 0.022, BOX[3]))
    bar = figure.colorbar(filled, cax=place, ticks=decades)
    place.set_yticklabels([f"$10^{{{k}}}$" for k in decades])
    bar.set_label(r"score  $f(E;\,M, e) = \frac{1}{2}\,(E - e\,\sin E - M)^2$   [rad$^2$]", fontsize=11)


def _field(axes: Any, land: Landscape) -> Any:
    spans = land.e[-1] - land.e[0], land.E[-1] - land.E[0]
    inches = BOX[2] * SIZE[0], BOX[3] * SIZE[1]
    # when e follows the gradient down, E changes by dE/de; the arrow is that motion, in inches on the page
    x = -land.gradient / spans[0] * inches[0]
    y = -land.gradient * land.slope / spans[1] * inches[1]
    size = np.hypot(x, y)
    length = 0.95 * inches[0] / ARROWS[0] * size / (size + 0.7 * float(np.nanmedian(size)))
    keep = np.isfinite(length) & (length > 0.06)  # shorter arrows, near the target, would look like dots
    axes.quiver(
        land.at_e[keep],
        land.at_E[keep],
        (x / size * length)[keep],
        (y / size * length)[keep],
        angles="uv",
        units="inches",
        scale_units="inches",
        scale=1.0,
        pivot="middle",
        color=BLUE,
        width=0.016,
        headwidth=4.0,
        headlength=4.5,
        headaxislength=4.0,
        zorder=3,
    )
    label = r"descent by the gradient there, $-\frac{\mathrm{d}L}{\mathrm{d}e}\,(1, \frac{\mathrm{d}E}{\mathrm{d}e})$"
    return Line2D([], [], color=BLUE, marker=r"$\rightarrow$", markersize=16, linestyle="none", label=label)


def _line_and_path(axes: Any, learned: Learned, land: Landscape) -> list[Any]:
    (line,) = axes.plot(land.e, land.line, color=BLACK, linewidth=2.2, zorder=4, label="argmin line $E(e)$")
    goal = axes.axhline(
        learned.target,
        color=GREEN,
        linewidth=1.6,
        linestyle=(0, (6, 3)),
        zorder=4,
        label=f"target $E = {learned.target:.4f}$ rad",
    )
    e, E = [s.e for s in learned.path], [s.E for s in learned.path]
    style = {"color": ORANGE, "markeredgecolor": "white", "zorder": 6, "clip_on": False}
    (path,) = axes.plot(
        e, E, linewidth=2.0, marker="o", markersize=6.5, label=f"path of the learning, {len(e) - 1} steps", **style
    )
    (first,) = axes.plot(
        e[:1], E[:1], linestyle="none", marker="s", markersize=10, label=f"start $e = {e[0]:.4g}$", **style
    )
    (last,) = axes.plot(
        e[-1:], E[-1:], linestyle="none", marker="*", markersize=19, label=f"end $e = {e[-1]:.4f}$", **style
    )
    return [line, goal, path, first, last]


def _hatch_entry() -> Patch:
    label = r"no arrow: score not convex in $E$, $\partial^2 f/\partial E^2 \leq 0$"
    return Patch(facecolor="#eeeeee", edgecolor=DARK, hatch="///", linewidth=0.5, label=label)


def _words(figure: Figure, axes: Any, learned: Learned, handles: list[Any]) -> None:
    axes.set_xlabel("eccentricity  $e$   [1]", fontsize=11)
    axes.set_ylabel("eccentric anomaly  $E$   [rad]", fontsize=11)
    axes.set_title(
        f"Learning the eccentricity through Kepler's equation at $M = {learned.mean_anomaly:g}$ rad:\n"
        "the gradient leads to the target $E$, also from points off the argmin line",
        fontsize=12,
        loc="left",
        pad=10,
    )
    below = (0.075, 0.008)
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=below, ncols=2, frameon=False, fontsize=9.5)
