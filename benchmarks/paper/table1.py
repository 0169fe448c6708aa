"""Table 1 of the paper: forecasts by neural ODEs that are trained by five methods.

    python benchmarks/paper/table1.py --data PATH/mocap35.mat --out docs/results

The data are those of Look et al. 2020, section 3.1, and the methods are the rows of its Table 1. Runs with the same
recipe that DIR/table1.json already holds are not repeated, so an interrupted run continues. One compiled program trains
all seeds of a row together.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import _sys_path  # noqa: F401
from _common import ONE_THREAD, described, machine, markdown, show, version, word
from _forecast_figure import draw
from _quick_compile import quick_compile_flags
from _recipes import CHOSEN_BY, FULL, PROXY, QUICK, RUNS, TRIALS, LatentRecipe, Recipe
from _results import write_results
from _series import SPIRAL, Series, folds, spiral, van_der_pol, walking

ROWS = {
    "dopri5_adjoint": "DOPRI5, adjoint",
    "forward_euler_adjoint": "forward Euler, adjoint",
    "backward_euler_adjoint": "backward Euler, adjoint",
    "backward_euler_naive": "backward Euler, IFT naive",
    "backward_euler_cg": "backward Euler, IFT CG",
}
SIXTH = {"van_der_pol": {"sdirk3_cg": "SDIRK of order 3, IFT CG, half steps"}}
"""A row that the paper does not have: steps of 0.1 are long for a method of order one on this equation."""
LEARNERS = {**ROWS, PROXY: "forward Euler, exact gradient"}
PAPER = {
    "van_der_pol": ((0.89, 0.15), (0.68, 0.07), (0.67, 0.12), (0.38, 0.05), (0.40, 0.06)),
    "spiral": ((0.13, 0.01), (0.20, 0.01), (0.09, 0.01), (0.09, 0.00), (0.09, 0.01)),
    "walking": ((15.92, 2.10), (12.17, 1.39), (13.68, 2.02), (11.57, 1.79), (11.43, 1.27)),
}
BLOCK = 10
"""Seeds that are trained together."""
ONE_CORE = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
Run = dict[str, Any]


# --- running ---------------------------------------------------------------------------------------------------------


def rows(data: str) -> dict[str, str]:
    """Return the rows of a data set with their titles."""
    return {**ROWS, **SIXTH.get(data, {})}


class Unit(NamedTuple):
    """Some seeds of one row on one data set."""

    series: Series
    row: str
    recipe: Recipe | LatentRecipe
    seeds: tuple[int, ...]


def units(series: Series, recipe: Recipe | LatentRecipe, runs: int, done: Sequence[Run]) -> Iterator[Unit]:
    """Return what is left to run."""
    for row in rows(series.name):
        there = {run["seed"] for run in done if (run["data"], run["row"]) == (series.name, row)}
        left = [seed for seed in range(runs) if seed not in there]
        for begin in range(0, len(left), BLOCK):
            yield Unit(series, row, recipe, tuple(left[begin : begin + BLOCK]))


def work(unit: Unit) -> list[Run]:
    import _forecast

    return _forecast.work(*unit)


def load(path: Path | None, recipes: dict[str, Recipe | LatentRecipe]) -> list[Run]:
    """Return the runs that a file holds of these recipes."""
    if path is None or not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return [run for run in found if run["recipe"] == asdict(recipes[run["data"]])]


# --- what came out ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One row of the table on one data set."""

    data: str
    row: str
    runs: int
    diverged: int
    """Runs without a finite test error, which the other numbers leave out."""
    mean: float | None
    error: float | None
    """The standard error of the mean."""
    median: float | None
    validation: float | None
    """The mean error on the validation split."""
    seconds: float
    """Of the processor for one run, its share of compilation included."""
    paper: tuple[float, float] | None


def summarised(data: str, runs: Sequence[Run]) -> list[Cell]:
    cells = []
    for i, row in enumerate(rows(data)):
        mine = [run for run in runs if (run["data"], run["row"]) == (data, row)]
        if not mine:
            continue
        tests = [run["test"] for run in mine if run["test"] is not None]
        judged = [run["validation"] for run in mine if run["validation"] is not None]
        cells.append(
            Cell(
                data,
                row,
                len(mine),
                len(mine) - len(tests),
                statistics.fmean(tests) if tests else None,
                statistics.stdev(tests) / math.sqrt(len(tests)) if len(tests) > 1 else None,
                statistics.median(tests) if tests else None,
                statistics.fmean(judged) if judged else None,
                statistics.fmean(run["seconds"] for run in mine),
                PAPER[data][i] if data in PAPER and i < len(ROWS) else None,
            )
        )
    return cells


@dataclass(frozen=True)
class Claim:
    """One claim of the paper on one data set, as the issue states it."""

    data: str
    claim: str
    measured: str
    met: bool


def claims(cells: Sequence[Cell]) -> Iterator[Claim]:
    """Judge the data sets that all rows have a finite mean of."""
    for data in dict.fromkeys(cell.data for cell in cells):
        mean = {c.row: c.mean for c in cells if c.data == data and c.mean is not None}
        if not ROWS.keys() <= mean.keys():
            continue
        (ours,) = (c for c in cells if (c.data, c.row) == (data, "backward_euler_cg"))
        cg, naive = mean["backward_euler_cg"], mean["backward_euler_naive"]
        if ours.error is not None:
            distance = abs(cg - naive) / ours.error
            yield Claim(data, "IFT CG within a standard error of naive", f"{distance:.2f}", distance <= 1)
        adjoints = [mean[row] for row in ROWS if row.endswith("adjoint")]
        below = cg < min(adjoints)
        yield Claim(data, "IFT CG better than the adjoint rows", f"{cg:.3g} to {min(adjoints):.3g}", below)
        if data in PAPER:
            order = [sorted(range(3), key=lambda i, x=x: x[i]) for x in (adjoints, [p for p, _ in PAPER[data][:3]])]
            best = ", ".join(tuple(ROWS.values())[i].removesuffix(", adjoint") for i in order[0])
            yield Claim(data, "adjoint rows in the paper's order", f"best first: {best}", order[0] == order[1])
            limit = PAPER[data][-1][0]
            yield Claim(data, "IFT CG at or below the paper's", f"{cg:.3g} to {limit:g}", cg <= limit)
        for row in SIXTH.get(data, {}).keys() & mean.keys():
            ours_by, theirs = mean[row], mean["dopri5_adjoint"]
            yield Claim(
                data, "IFT CG of order 3 at or below DOPRI5", f"{ours_by:.3g} to {theirs:.3g}", ours_by <= theirs
            )


# --- telling ---------------------------------------------------------------------------------------------------------


def table(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    heads = ["data", "row", "runs", "test MSE", "paper", "median", "validation", "diverged", "CPU s / run"]
    lines = [
        [
            *(c.data, rows(c.data)[c.row], str(c.runs), number(c.mean, c.error)),
            "-" if c.paper is None else f"{c.paper[0]:.2f} ± {c.paper[1]:.2f}",
            *(number(c.median), number(c.validation), str(c.diverged), f"{c.seconds:.1f}"),
        ]
        for c in cells
    ]
    return heads, lines


def number(x: float | None, error: float | None = None) -> str:
    if x is None:
        return "-"
    digits = max(0, 3 - len(f"{x:.0f}")) if x >= 1 else 3
    return f"{x:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def claim_table(found: Sequence[Claim]) -> tuple[list[str], list[list[str]]]:
    return ["data", "claim", "measured", "met"], [[c.data, c.claim, c.measured, word(c.met)] for c in found]


def trial_table() -> tuple[list[str], list[list[str]]]:
    lines = [
        [data, options(t.recipe), LEARNERS[t.row], str(t.seeds), number(t.validation)]
        for data, trials in TRIALS.items()
        for t in trials
    ]
    return ["data", "recipe", "row", "seeds", "validation"], lines


def options(recipe: Recipe | LatentRecipe) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in asdict(recipe).items())


def trials_told() -> dict[str, list[dict[str, Any]]]:
    return {data: [{**t._asdict(), "recipe": asdict(t.recipe)} for t in trials] for data, trials in TRIALS.items()}


def write(out: Path, command: str, host: dict[str, str], all_series: Sequence[Series], runs: list[Run]) -> None:
    """Write table1.json and table1.md."""
    cells = [cell for series in all_series for cell in summarised(series.name, runs)]
    found = list(claims(cells))
    record = {
        "command": command,
        "machine": host,
        "measured": MEASURED,
        "recipes": {"chosen": CHOSEN_BY, "trials": trials_told()},
        "claims": [asdict(c) for c in found],
        "cells": [asdict(c) for c in cells],
        "runs": sorted(runs, key=lambda run: (run["data"], run["row"], run["seed"])),
    }
    means = "; ".join(f"{series.name} {series.naive():.3f}" for series in all_series)
    recipes = [f"{data}: {used}" for data, used in used_recipes(runs)]
    parts = [
        "# Table 1: forecasts by neural ODEs",
        f"`{command}`",
        described(host) + ".",
        MEASURED,
        markdown(*table(cells)),
        f"![Forecasts of the first test sequence beside the truth, by the runs of seed 0]({FIGURE})",
        f"Predicting the mean of the training frames has these test errors: {means}.",
        markdown(*claim_table(found)),
        "## Recipes",
        CHOSEN_BY,
        "\n".join(f"* {line}" for line in recipes),
        "Trials, with their median validation error:",
        markdown(*trial_table()),
    ]
    write_results(out, "table1", parts, record)
    draw(out / FIGURE, all_series, runs, ROWS)


def used_recipes(runs: Sequence[Run]) -> list[tuple[str, str]]:
    found = {run["data"]: run["recipe"] for run in runs}
    return [(data, ", ".join(f"{k} {v:g}" for k, v in recipe.items() if v)) for data, recipe in found.items()]


FIGURE = "table1_forecasts.png"
MEASURED = (
    "Mean squared error of the test forecast, in squared units of the data, mean ± standard error over the runs, "
    "which differ in the seed of the initial weights and of the segments. Van der Pol: mu = 3, 320 points 0.1 s "
    "apart, split 107 / 106 / 106, and 106 steps forecast; spiral: dx/dt = A x^3, 300 points, 100 / 50 / 150, 150 "
    "steps forecast; both from (2, 0), which the paper does not say, each forecast from the last state before its "
    "split. Walking: CMU subject 35, 16 / 3 / 4 walks, 297 frames forecast after 3; the latent ODE of Li et al. 2020:"
    " 6 latent states and a context of 3 that is an input of their dynamics, both from a Gaussian that the encoder, 2"
    " layers of 30 softplus units, makes of 3 frames; dynamics and decoder of one layer of 30 softplus units; a "
    "forecast starts at the mean. Dynamics of the other sets: 2 layers of 30 tanh units. float32, under JAX; one step"
    " of an Euler method from frame to frame, two of SDIRK. DOPRI5 and its adjoint: diffrax, rtol 1e-5, atol 1e-6, a "
    "whole batch as one system. The adjoint of an Euler method takes that method's steps back in time, from the state"
    " of the forward pass at each frame. 'naive' solves with the dense Jacobian, CG on its normal equations, whose "
    "matrix at a root is the Hessian of the paper's squared residual."
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def chosen(names: str, data: Path | None, console: Console) -> list[Series]:
    """Return the data sets that are asked for and there."""
    found = []
    for name in (part.strip() for part in names.split(",")):
        if name == "van_der_pol":
            found.append(van_der_pol())
        elif name in SPIRAL:
            found.append(spiral(name))
        elif name != "walking":
            message = f"unknown data set {name!r}; expected some of {', '.join(RUNS)}"
            raise typer.BadParameter(message)
        elif data is None:
            console.print("walking: left out, since there is no --data PATH", style="yellow")
        else:
            found.append(walking(data))
    return found


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where table1.{json,md} go and are resumed.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="mocap35.mat, for the walks.")] = None,
    sets: Annotated[str, typer.Option(metavar="NAMES", help="Data sets, in this order.")] = ",".join(PAPER),
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="One seed, few iterations.")] = False,
    trials: Annotated[bool, typer.Option("--trials", help="Only run the trials of the recipes again.")] = False,
) -> None:
    """Train neural ODEs by the five methods of the paper's Table 1, and judge their forecasts."""
    os.environ.update(ONE_THREAD)
    os.environ["XLA_FLAGS"] = quick_compile_flags(ONE_CORE) if quick else ONE_CORE
    console, recipes = Console(), QUICK if quick else FULL
    host = {**machine(), **{name: version(name) for name in ("diffrax", "optax")}}
    shown = ["PATH" if i and sys.argv[i] == "--data" else a for i, a in enumerate(sys.argv[1:])]
    command = shlex.join(["python", "benchmarks/paper/table1.py", *shown])
    series = chosen(sets, data, console)
    if trials:
        tried(series, console)
        return
    runs = load(None if out is None else out / "table1.json", recipes)
    every = [*series, *(s for s in others(series) if any(run["data"] == s.name for run in runs))]
    todo = [u for s in series for u in units(s, recipes[s.name], 1 if quick else RUNS[s.name], runs)]
    todo.sort(key=lambda unit: unit.seeds[0] > 0)  # every row has some runs before any has them all
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    with Progress(*columns, console=console) as progress, pool:
        job = progress.add_task("runs", total=sum(len(u.seeds) for u in todo))
        jobs = {pool.submit(work, unit): unit for unit in todo}
        for future in as_completed(jobs):
            runs += future.result()
            unit = jobs[future]
            progress.update(
                job, advance=len(unit.seeds), description=f"{unit.series.name}: {rows(unit.series.name)[unit.row]}"
            )
            if out is not None:
                write(out, command, host, every, runs)
    if out is not None:
        write(out, command, host, every, runs)
    cells = [cell for s in every for cell in summarised(s.name, runs)]
    console.print(f"{command}\n{described(host)}\n\n{MEASURED}\n", highlight=False)
    show(console, "test MSE", *table(cells))
    show(console, "claims", *claim_table(list(claims(cells))))


def tried(series: Sequence[Series], console: Console) -> None:
    """Run the trials, and print their median validation error beside the one on record."""
    for one in series:
        for trial in TRIALS[one.name]:
            parts = folds(one) if isinstance(trial.recipe, LatentRecipe) else [one]
            seeds = tuple(range(100, 100 + trial.seeds))
            runs = [run for part in parts for run in work(Unit(part, trial.row, trial.recipe, seeds))]
            now = [math.inf if r["validation"] is None else r["validation"] for r in runs]
            said = f"{options(trial.recipe)}, {LEARNERS[trial.row]}, {trial.seeds} seeds"
            line = f"median {number(statistics.median(now))}, mean {number(statistics.fmean(now))}"
            console.print(f"{one.name}: {said}: {line} (on record: {number(trial.validation)})", highlight=False)


def others(series: Sequence[Series]) -> list[Series]:
    """Return the data sets that take no file and are not among those given."""
    names = {s.name for s in series}
    return [s for s in (van_der_pol(), *(spiral(name) for name in SPIRAL)) if s.name not in names]


if __name__ == "__main__":
    app()
