"""The pictures of the pages of results, drawn from what the benchmarks wrote.

python docs/figures/results.py --out docs/results
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

RESULTS = Path(__file__).parent.parent / "results"
Row = dict[str, Any]


def ratios(axes: Axes, names: Sequence[str], numbers: Sequence[Sequence[float]], label: str) -> None:
    """Draw a median and its quartiles for each name, best first; (least, median, largest) in each row of numbers."""
    low, middle, high = np.asarray(sorted(numbers, key=lambda row: row[1])).T
    names = [names[k] for k in np.argsort([row[1] for row in numbers], kind="stable")]
    axes.errorbar(middle, range(len(names)), xerr=[middle - low, high - middle], fmt="o", color="#3f51b5", capsize=3)
    axes.axvline(1.0, color="#e64a19", linewidth=1)
    axes.set(xscale="log", xlabel=label)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.grid(axis="x", alpha=0.3)


def backward(axes: Axes, found: Row) -> None:
    """Draw the ratio to the same iterations by hand against the time by hand."""
    for name in sorted({row["backend"] for row in found["times"]}):
        rows = [row for row in found["times"] if row["backend"] == name]
        axes.plot([r["hand_ms"] for r in rows], [r["ratio_cpu"][1] for r in rows], "o", label=name)
    axes.axhline(1.0, color="#e64a19", linewidth=1)
    axes.set(xscale="log", xlabel="by hand, ms", ylabel="processor time, layer / by hand")
    axes.legend()


def batched(axes: Axes, found: Row) -> None:
    """Draw how many times as long the other way takes."""
    rows = found["times"]
    names = [f"{r['backend']}, {r['score']}, {r['against']}" for r in rows]
    ratios(axes, names, [r["ratio"] for r in rows], "other / layer with batch_ndim=1")


def torch_calls(axes: Axes, found: Row) -> None:
    """Draw the ratio to code by hand, or to the peer."""
    rows = found["rows"]
    numbers = [[r["quartiles"][0], r["ratio"], r["quartiles"][1]] for r in rows]
    ratios(axes, [r["case"] for r in rows], numbers, "time of the layer / time of what stands beside it")


def jax_peers(axes: Axes, found: Row) -> None:
    """Draw the seconds of tracing and compiling."""
    rows = found["rows"]
    traced, compiled = (np.asarray([r[key] for r in rows]) for key in ("trace_s", "compile_s"))
    axes.barh(range(len(rows)), traced, color="#9fa8da", label="trace")
    axes.barh(range(len(rows)), compiled, left=traced, color="#3f51b5", label="compile")
    axes.set_yticks(range(len(rows)), [f"{r['problem']}: {r['library']}" for r in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="s")
    axes.legend()


def tape(axes: Axes, found: Row) -> None:
    """Draw the time relative to autograd's, with its quartiles and what it shall be at most."""
    rows = [row for row in found["rows"] if row["ratio"] is not None]
    low, high = (np.asarray([abs(row["quartiles"][i] - row["ratio"]) for row in rows]) for i in (0, 1))
    ratios = [row["ratio"] for row in rows]
    axes.errorbar(ratios, range(len(rows)), xerr=(low, high), fmt="o", color="#3f51b5", label="ratio, quartiles")
    for place, row in enumerate(rows):
        if row["limit"] is not None:
            axes.plot(
                [row["limit"]] * 2, [place - 0.3, place + 0.3], color="#e64a19", label="at most" if not place else None
            )
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="time relative to autograd", xlim=(0, None))
    axes.legend()


def plan(axes: Axes, found: Row) -> None:
    """Draw the time of a backward pass against the steps of the solver."""
    rows = found["rows"]
    for key, color in (("unrolled", "#e64a19"), ("layer", "#3f51b5")):
        axes.plot([r["steps"] for r in rows], [1e3 * r[key] for r in rows], "o-", color=color, label=key)
    axes.set(xlabel="steps of the solver", ylabel="backward pass, ms", ylim=(0, None))
    axes.legend()


def linear(axes: Axes, found: Row) -> None:
    """Draw the time of `Auto` against that of the best single solver."""
    problems: dict[tuple[Any, ...], Row] = {}
    for row in (r for r in found["solvers"] if r["status"] == "CONVERGED"):
        problems.setdefault((row["problem"], row["backend"], row["n"]), {})[row["solver"]] = row["ms"]
    for name in sorted({key[1] for key in problems}):
        pairs = [
            (min(ms for solver, ms in times.items() if solver != "Auto"), times["Auto"])
            for (_, backend, _), times in problems.items()
            if backend == name and "Auto" in times
        ]
        axes.loglog(*zip(*pairs, strict=True), "o", label=name, alpha=0.7)
    axes.axline((1, 1), (10, 10), color="#e64a19", linewidth=1)
    axes.set(xlabel="best single solver, ms", ylabel="Auto, ms")
    axes.legend()


def spectra(axes: Axes, found: Row) -> None:
    """Draw the products of `Auto` against those of the best single solver."""
    for kind in dict.fromkeys(row["kind"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["kind"] == kind and any(row["products"].values())]
        best = [min(k for k in row["products"].values() if k is not None) for row in rows]
        axes.loglog(best, [row["auto"] for row in rows], "o", label=kind, alpha=0.7, markersize=4)
    axes.axline((10, 10), (100, 100), color="#e64a19", linewidth=1)
    axes.set(xlabel="products of the best single solver", ylabel="products of Auto")
    axes.legend()


def general(axes: Axes, found: Row) -> None:
    """Draw the products of `Auto` against those of BiCGSTAB; crosses where BiCGSTAB did not converge."""
    for place, group in enumerate(dict.fromkeys(row["group"] for row in found["rows"])):
        for solved, marker in ((True, "o"), (False, "x")):
            rows = [r for r in found["rows"] if r["group"] == group and r["converged"]["BiCGSTAB"] == solved]
            points = [[row["products"][name] for row in rows] for name in ("BiCGSTAB", "Auto")]
            label = group if solved else None
            axes.loglog(*points, marker, color=f"C{place}", label=label, alpha=0.7, markersize=4)
    axes.axline((10, 10), (100, 100), color="#e64a19", linewidth=1)
    axes.axline((10, 20), (100, 200), color="#e64a19", linewidth=1, linestyle=":")
    axes.set(xlabel="products of BiCGSTAB", ylabel="products of Auto")
    axes.legend()


def large(axes: Axes, found: Row) -> None:
    """Draw the time of Bratu's equation and its gradient against the number of unknowns."""
    for way in dict.fromkeys(row["way"] for row in found["sweep"]):
        own = [row for row in found["sweep"] if row["way"] == way]
        style = {"color": "black", "linestyle": ":"} if way == "by hand" else {"linestyle": "-"}
        label = way if way == "by hand" else f"SparseDirect on {way}"
        axes.loglog([row["n"] ** 2 for row in own], [row["seconds"] for row in own], marker="o", label=label, **style)
    axes.set(xlabel="unknowns", ylabel="forward and backward [s]", title="Bratu's equation on a square")
    axes.legend()


def nonsymmetric(axes: Axes, found: Row) -> None:
    """Draw the products over the fewest of all solvers, in ascending order; a curve ends where a solver fails."""
    rows = [row["products"] for row in found["rows"]]
    for solver in rows[0]:
        known = [(r[solver], min(k for k in r.values() if k is not None)) for r in rows if r[solver] is not None]
        ratios = sorted(own / best for own, best in known)
        style = {"color": "#e64a19", "linewidth": 2} if solver == "IDR(4)" else {"alpha": 0.7}
        axes.plot(range(1, len(ratios) + 1), ratios, "o-", label=solver, markersize=4, **style)
    axes.set(yscale="log", xlabel="matrices, ordered for each solver", ylabel="products over those of the best solver")
    axes.legend()


def ode(axes: Axes, found: Row) -> None:
    """Draw the error against the time of each way on one stiff problem."""
    points = [row for row in found["points"] if row["problem"] == "HIRES" and row["reached"]]
    for way in dict.fromkeys(row["way"] for row in points):
        own = [row for row in points if row["way"] == way]
        style = {"linewidth": 2, "marker": "o"} if way.startswith("dil") else {"alpha": 0.7, "marker": "s"}
        axes.loglog([row["error"] for row in own], [row["forward_ms"] for row in own], label=way, markersize=4, **style)
    axes.invert_xaxis()
    axes.set(xlabel="relative error of the last state", ylabel="ms", title="HIRES, 8 unknowns")
    axes.legend(fontsize=8)


def peers(axes: Axes, found: Row) -> None:
    """Draw the time of the backward pass at 10,000 unknowns against the condition number."""
    rows = [row for row in found["rows"] if (row["problem"], row["framework"], row["n"]) == ("scales", "torch", 10_000)]
    for library in dict.fromkeys(row["library"] for row in rows):
        own = [row for row in rows if row["library"] == library]
        style = {"color": "#e64a19", "linewidth": 2} if library == "dil" else {"alpha": 0.7}
        axes.loglog([row["condition"] for row in own], [row["ms"] for row in own], "o-", label=library, **style)
    axes.set(xlabel="condition number", ylabel="backward pass [ms]", title="scales, 10,000 unknowns, torch")
    axes.legend()


def silent(axes: Axes, found: Row) -> None:
    """Draw the error of each gradient against that of its argmin, by what the status says."""
    for told, color, name in ((False, "#3f51b5", "CONVERGED"), (True, "#e64a19", "a warning")):
        rows = [r for r in found["rows"] if (r["status"] != "CONVERGED") == told]
        points = [[max(r[key], 1e-17) for r in rows] for key in ("argmin_error", "error")]
        axes.loglog(*points, ".", color=color, label=name, alpha=0.5, markersize=4)
    axes.axhline(0.1, color="black", linewidth=1)
    axes.set(xlabel="relative error of y", ylabel="relative error of the gradient")
    axes.legend()


def trust(axes: Axes, found: Row) -> None:
    """Draw the bound of each gradient's error against the error."""
    error, bound = (
        np.asarray([float(row[found["columns"].index(key)]) for row in found["rows"]]) for key in ("error", "bound")
    )
    axes.loglog(error, bound, ".", color="#3f51b5", alpha=0.5, markersize=4)
    axes.axline((1, 1), (10, 10), color="#e64a19", linewidth=1)
    axes.set(xlabel="relative error of the gradient", ylabel="bound of dil")


def table1(axes: Axes, found: Row) -> None:
    """Draw the test errors beside the paper's."""
    cells = found["cells"]
    place = np.arange(len(cells))
    axes.barh(place - 0.2, [cell["mean"] for cell in cells], 0.4, color="#3f51b5", label="here")
    theirs = [cell["paper"][0] if cell["paper"] else np.nan for cell in cells]  # the paper has no row of order 3
    axes.barh(place + 0.2, theirs, 0.4, color="#ffab91", label="paper")
    axes.set_yticks(place, [f"{cell['data']}: {cell['row'].replace('_', ' ')}" for cell in cells], fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="mean squared error of the test forecast")
    axes.legend()


def training(axes: Axes, found: Row) -> None:
    """Draw the products of the loops with a memory beside those without."""
    rows = found["rows"]
    place = np.arange(len(rows))
    for shift, key, color in ((-0.2, 0, "#9fa8da"), (0.2, 1, "#3f51b5")):
        products = [row["products"][key] / row["steps"] for row in rows]
        axes.barh(place + shift, products, 0.4, color=color, label=("Auto", "Recycle")[key])
    axes.set_yticks(place, [row["loop"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="products of a backward pass")
    axes.legend()


PICTURES: dict[str, Callable[[Axes, Row], None]] = {
    f.__name__: f
    for f in (
        backward,
        batched,
        general,
        jax_peers,
        large,
        linear,
        nonsymmetric,
        ode,
        peers,
        plan,
        silent,
        spectra,
        table1,
        tape,
        torch_calls,
        training,
        trust,
    )
}


def draw(out: Path) -> list[Path]:
    """Draw every picture into a folder, and return their paths."""
    paths = []
    for name, drawing in PICTURES.items():
        figure, axes = plt.subplots(figsize=(8, 4.5), dpi=90, layout="constrained")
        drawing(axes, json.loads((RESULTS / f"{name}.json").read_text()))
        figure.savefig(path := out / f"{name}.png")
        plt.close(figure)
        paths.append(path)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    draw(parser.parse_args().out)
