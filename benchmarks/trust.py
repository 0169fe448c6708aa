"""Reliability of the error bound of a gradient, and the accuracy that a gradient needs of an argmin.

    python benchmarks/trust.py --out docs/results

Random layers with known gradients (`_trust.py`) are solved to loose tolerances, in the forward and in the linear solve.
Each gradient is compared with the reference, and its error with `backward.bound`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

import _trust
from _results import write_results
from _trust import Row
from backward import machine, markdown, show

COVERED = 0.99
"""The least share of the problems whose error the bound must cover."""
FACTOR = 30.0
"""The most that the bound may be above the error, in the median."""
SEED = 20201
REFINE = (0, 1, 2)
SHOWN = 180
"""Problems in the picture."""
TOP = 1e3
"""Where the picture ends, and puts infinite bounds."""
FLOOR = float(np.finfo(float).eps)
"""Where the picture puts smaller errors."""
INK = {"as solved": "#0072B2", "bound": "#D55E00", "refine=1": "#E69F00", "refine=2": "#009E73", "line": "#555555"}
"""Colours that the colour-blind tell apart (Okabe and Ito)."""

MEASURED = (
    "Layers of eight families: scores (softplus network, quartic, two coupled leaves, double wells), roots and fixed "
    "points whose Jacobians are not symmetric; 1 to 30 unknowns, condition numbers 1 to 1e4, differentiated in three "
    "arguments for a random cotangent; one draw in ten is a batch of three, whose bounds are per problem. Draws whose "
    "reference Newton iteration finds no solution, or no minimum, are drawn anew. 'argmin error' is `||y - y*|| / "
    "(1 + ||y*||)`: y is y* moved by 1e-10 to 1e-1, in a random direction or as J^-1 times one, as descent leaves it. "
    "'error' is `||G - G*|| / ||G*||`, with G the gradient in all arguments. G* is that of F written by hand, by "
    "complex steps, Newton's method and dense solves in NumPy. Half of the linear solves are the layer's own "
    "('exact'), the others are cut short or damped. 'refine=1' and 'refine=2' are other layers, for single problems "
    "alone, whose gradients are often exact but for rounding. An infinite bound covers; 'infinite' is their share. "
    "The factor, bound / error, is taken where the error exceeds 1e-13 times the condition number of J, so that it is"
    " not rounding, and the bound is finite."
)
MEASURED_DECADES = (
    "The medians of the argmin error, and of the gradient's error without and with Newton steps in the layer, "
    "refine=1 and refine=2, for the problems that are no batch, with the layer's own linear solver."
)


@dataclass(frozen=True)
class Group:
    """Some of the problems, taken together."""

    what: str
    problems: int
    covered: float
    infinite: float
    compared: int
    factor: float
    tail: float
    """The factor that one in a hundred exceeds."""

    @property
    def met(self) -> bool:
        """Whether the group reaches both targets."""
        return self.covered >= COVERED and self.factor <= FACTOR


def group(what: str, rows: Sequence[Row]) -> Group:
    factors = [row.bound / row.error for row in rows if row.compared]
    return Group(
        what,
        len(rows),
        float(np.mean([row.covered for row in rows])),
        float(np.mean([not np.isfinite(row.bound) for row in rows])),
        len(factors),
        float(np.median(factors)),
        float(np.quantile(factors, 0.99)),
    )


def groups(rows: Sequence[Row]) -> list[Group]:
    """Return all, and what there is of each family, each linear solver, and batches."""
    found = [group("all", rows)]
    by: list[Callable[[Row], str]] = [
        lambda row: row.name,
        lambda row: row.linear,
        lambda row: "batches" if row.batch else "single",
    ]
    for key in by:
        for what in dict.fromkeys(key(row) for row in rows):
            found.append(group(what, [row for row in rows if key(row) == what]))
    return found


@dataclass(frozen=True)
class Decade:
    """The problems whose argmin error is in one decade."""

    least: float
    problems: int
    argmin_error: float
    errors: tuple[float, ...]
    """Medians, for each number of Newton steps."""


def decades(runs: Sequence[Sequence[Row]]) -> list[Decade]:
    errors = np.asarray([[row.error for row in rows] for rows in runs])
    argmin = np.asarray([row.argmin_error for row in runs[0]])
    found = []
    for power in range(-10, -1):
        here = (argmin >= 10.0**power) & (argmin < 10.0 ** (power + 1))
        if here.any():
            medians = np.median(errors[:, here], axis=1)
            found.append(
                Decade(10.0**power, int(here.sum()), float(np.median(argmin[here])), tuple(map(float, medians)))
            )
    return found


# --- telling ---------------------------------------------------------------------------------------------------------


def group_table(found: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    heads = ["what", "problems", "covered", "infinite", "compared", "median factor", "99 % below", "met"]
    cells = [
        [
            *(g.what, f"{g.problems:,}", f"{100 * g.covered:.2f} %", f"{100 * g.infinite:.2f} %", f"{g.compared:,}"),
            *(f"{g.factor:.2f}", f"{g.tail:.1f}", "yes" if g.met else "MISSED"),
        ]
        for g in found
    ]
    return heads, cells


def decade_table(found: Sequence[Decade]) -> tuple[list[str], list[list[str]]]:
    heads = ["argmin error", "problems", "median", "gradient's error", *(f"refine={k}" for k in REFINE[1:])]
    cells = [
        [
            *(f"{d.least:.0e} .. {10 * d.least:.0e}", str(d.problems), f"{d.argmin_error:.1e}"),
            *(f"{error:.1e}" for error in d.errors),
        ]
        for d in found
    ]
    return heads, cells


def targets() -> str:
    return f"Targets: covered in {100 * COVERED:.0f} % at least, median factor {FACTOR:.0f} at most."


def missed(rows: Sequence[Row]) -> str:
    lines = [
        f"- {row.name}, {row.size} unknowns, condition {row.condition:.1e}, linear solve {row.linear}, argmin error "
        f"{row.argmin_error:.1e}: error {row.error:.3g}, bound {row.bound:.3g}"
        for row in rows
        if not row.covered
    ]
    return "\n".join(
        ["Not covered:", "", *lines] if lines else ["Every error of a layer without `refine=` is covered."]
    )


def picture(path: Path, runs: Sequence[Sequence[Row]]) -> None:
    """Draw the errors of the gradients over those of the argmin, with the bounds, and what refining does."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    runs = [rows[:SHOWN] for rows in runs]
    x = np.asarray([row.argmin_error for row in runs[0]])
    errors = [np.maximum([row.error for row in rows], FLOOR) for rows in runs]
    bounds = np.asarray([row.bound for row in runs[0]])
    slope = float(np.median(errors[0] / x))
    spots: dict[str, Any] = {"linestyle": "none", "markersize": 4, "markeredgecolor": "white", "markeredgewidth": 0.3}
    infinite = ~np.isfinite(bounds)
    bounds = np.where(infinite, TOP, bounds)
    left.vlines(x, errors[0], bounds, color=INK["bound"], linewidth=1.0)
    open_ = {**spots, "markeredgecolor": INK["bound"], "markeredgewidth": 0.9}
    left.plot(x, bounds, "v", markerfacecolor="none", label="bound, from the report", clip_on=False, **open_)
    if infinite.any():
        note = {"textcoords": "offset points", "ha": "right", "va": "top", "fontsize": 9, "color": INK["bound"]}
        left.annotate("infinite bound", (float(x[infinite].min()), TOP), (-5, -3), **note)
    left.plot(x, errors[0], "o", color=INK["as solved"], label="error of the same, measured", **spots)
    left.set_title("The bound is just above the error", fontsize=11)
    for k, marker in zip(reversed(REFINE), "s^o", strict=True):
        name = f"refine={k}" if k else "as solved"
        right.plot(x, errors[k], marker, color=INK[name], label=name, **spots)
    right.axhline(FLOOR, color=INK["line"], linewidth=1, linestyle=":")
    right.text(8e-11, FLOOR / 2, "rounding of float64; less is drawn on it", va="top", fontsize=9, color=INK["line"])
    right.set_title("Newton steps in the layer sharpen a rough solution", fontsize=11)
    span = np.asarray([8e-11, 1.3e-1])
    for axes, lowest in ((left, 1e-11), (right, 1e-17)):
        axes.plot(span, slope * span, color="black", linewidth=1.2, label=f"first order: {slope:.1f} x argmin error")
        axes.set(xscale="log", yscale="log", xlabel="relative error of the argmin", ylim=(lowest, TOP))
        axes.set_xticks([10.0**k for k in range(-10, 0, 2)])
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        handles, labels = axes.get_legend_handles_labels()
        order = [0, 1, 2] if axes is left else [2, 1, 0, 3]
        axes.legend([handles[i] for i in order], [labels[i] for i in order], loc="upper left", fontsize=9)
    left.set_ylabel("relative error of the gradient")
    right.set_ylabel("relative error of the gradient")
    figure.savefig(path, dpi=150, metadata={"Software": None})


def write(out: Path, command: str, rows: Sequence[Row], found: Sequence[Group], by_decade: Sequence[Decade]) -> None:
    """Write trust.md and trust.json."""
    host = machine()
    record = {
        "command": command,
        "machine": host,
        "measured": MEASURED,
        "targets": {"covered": COVERED, "median factor": FACTOR},
        "groups": [{**vars(g), "met": g.met} for g in found],
        "measured_decades": MEASURED_DECADES,
        "decades": [vars(d) for d in by_decade],
        "columns": list(Row._fields),
        "rows": [[_short(x) for x in row] for row in rows],  # JSON knows no infinity
    }
    parts = [
        "# The bound of a gradient's error against the error",
        f"`{command}`",
        "; ".join(f"{key}: {value}" for key, value in host.items()) + ".",
        MEASURED,
        markdown(*group_table(found)),
        targets(),
        missed(rows),
        "## How accurate the argmin must be",
        MEASURED_DECADES,
        markdown(*decade_table(by_decade)),
    ]
    write_results(out, "trust", parts, record)


def _short(x: Any) -> Any:
    if not isinstance(x, float):
        return x
    return float(f"{x:.4g}") if np.isfinite(x) else str(x)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where trust.md, trust.json go; trust.png to DIR/../pages.")
    ] = None,
    count: Annotated[int, typer.Option(help="Problems at least.", min=8)] = 2_000,
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = SEED,
) -> None:
    """Measure how often the bound of a gradient's error covers the error, and how far above it is."""
    console = Console()
    command = shlex.join(["python", "benchmarks/trust.py", *sys.argv[1:]])
    drawn = _trust.problems(count, seed)
    rows = [row for problem in track(drawn, "bounds", console=console) for row in _trust.measure(problem)]
    sharp = [p._replace(linear="exact", solver=None) for p in drawn if p.v.ndim == 1]
    sharp = sharp[: max(100, len(sharp) // 3)]
    runs = [
        [row for problem in track(sharp, f"refine={k}", console=console) for row in _trust.measure(problem, refine=k)]
        for k in REFINE
    ]
    refined = [group(f"refine={k}", run) for k, run in zip(REFINE, runs, strict=True) if k]
    found, by_decade = [*groups(rows), *refined], decades(runs)
    console.print(f"{command}\n\n{MEASURED}", highlight=False)
    show(console, "bounds", *group_table(found))
    console.print(f"{targets()}\n{missed(rows)}\n\n{MEASURED_DECADES}", highlight=False)
    show(console, "decades", *decade_table(by_decade))
    if out is not None:
        write(out, command, rows, found, by_decade)
        pages = out.resolve().parent / "pages"
        picture((pages if pages.is_dir() else out) / "trust.png", runs)


if __name__ == "__main__":
    app()
