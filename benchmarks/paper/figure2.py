"""Forward and backward time of an implicit Euler step against torchdiffeq's DOPRI5 and its adjoint (Figure 2).

    python benchmarks/paper/figure2.py --out docs/results

The dynamics are h(x) = s (net(x) - x) with a network of 2 layers of 30 units and the stiffness s. Both methods go from
x_k to x_{k+1} = x(0.1) in float64 on one core. As in Look et al. 2020 (caption of Figure 2), both accept x_{k+1} by the
same tolerance, 1e-7 relative to its size, which is the default of torchdiffeq. DOPRI5 applies it to the estimated error
of a step, Newton's method to its last step. One implicit Euler step solves its own equation to this tolerance, but not
the ODE: its error is in the table. So a second experiment asks both methods for an x_{k+1} within 1e-3 of the solution
of the ODE.

Each round measures a few initialisations in all cases. Results are written after each round. A new run continues
DIR/figure2.json and does not repeat measurements that were made on this machine.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import _sys_path  # noqa: F401
from _common import ONE_THREAD, Fresh, described, machine, markdown, show, version, word
from _results import write_results

SIZES = (2, 5, 10, 20, 50, 100, 200)
STIFFNESS = (1.0, 3.0, 10.0, 30.0, 100.0)
SIZE, STIFF = 20, 10.0
"""What is kept while the other grows."""
SHARE, FLAT = 0.2, 1.2
LABELS = {
    "dopri5": "DOPRI5, adjoint (torchdiffeq)",
    "dil": "implicit Euler, IFT (dil)",
    "dil_cg": "implicit Euler, IFT by CG (dil)",
}
IMPLICIT = ("implicit_euler", "sdirk2", "sdirk3")
CHUNK = 5
"""Initialisations in one call of the worker."""
Record = dict[str, Any]


# --- what is measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One method at one size and stiffness, over the initialisations: means and deviations in ms of the processor."""

    axis: str
    size: int
    stiffness: float
    method: str
    runs: int
    forward: tuple[float, float]
    backward: tuple[float, float]
    forward_ratio: float
    """The median over the initialisations of its time over that of DOPRI5."""
    backward_ratio: float
    error: float
    """The median of ||x_{k+1} - x(0.1)|| / (1 + ||x||)."""


@dataclass(frozen=True)
class CloseRow:
    """One method with the least work that brings x_{k+1} within 1e-3 of the ODE's: medians."""

    stiffness: float
    method: str
    runs: int
    """Of those tried, the ones in which it came within 1e-3."""
    tried: int
    work: float | None
    forward: float | None
    backward: float | None
    error: float | None


def chunk(size: int, stiffness: float, seeds: Sequence[int]) -> list[Record]:
    from _clock import Case, measure

    return [record("times", size, stiffness, seed, measure(Case(size, stiffness, seed), 1)) for seed in seeds]


def chunk_close(size: int, stiffness: float, seeds: Sequence[int], most: int) -> list[Record]:
    from _clock import Case, close

    cases = [Case(size, stiffness, seed) for seed in seeds]
    return [record("close", size, stiffness, case.seed, close(case, IMPLICIT, 1, most)) for case in cases]


def record(kind: str, size: int, stiffness: float, seed: int, found: dict[str, Any]) -> Record:
    return {"kind": kind, "size": size, "stiffness": stiffness, "seed": seed, "found": found}


def plain(x: Any) -> Any:
    """Return records as they come back from a file."""
    return json.loads(json.dumps(x))


def of_case(records: Sequence[Record], kind: str, size: int, stiffness: float) -> list[Any]:
    """Return what was found for one case, without the initialisations in which Newton's method failed."""
    case = {"kind": kind, "size": size, "stiffness": stiffness}
    return [r["found"] for r in records if r["found"] and all(r[key] == value for key, value in case.items())]


def summarised(axis: str, size: int, stiffness: float, found: Sequence[Any]) -> Iterator[Row]:
    for method in LABELS:
        mine = [(one[method], one["dopri5"]) for one in found]
        yield Row(
            axis,
            size,
            stiffness,
            method,
            len(mine),
            spread([a[0] for a, _ in mine]),
            spread([a[1] for a, _ in mine]),
            statistics.median(a[0] / b[0] for a, b in mine),
            statistics.median(a[1] / b[1] for a, b in mine),
            statistics.median(a[2] for a, _ in mine),
        )


def spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def summarised_close(stiffness: float, found: Sequence[Any]) -> Iterator[CloseRow]:
    for method in ("dopri5", *IMPLICIT):
        mine = [(work, *timed) for work, timed in (one[method] for one in found if method in one)]
        middle = [statistics.median(column) for column in zip(*mine, strict=True)] if mine else [None] * 4
        yield CloseRow(stiffness, method, len(mine), len(found), *middle)


@dataclass(frozen=True)
class Plan:
    """What to run, in rounds of CHUNK initialisations through all cases."""

    runs: int
    sizes: tuple[int, ...]
    stiffness: tuple[float, ...]
    close_runs: int
    most: int
    """Steps at most, at equal error."""

    @property
    def cases(self) -> list[tuple[str, int, float]]:
        """The axes, sizes and stiffnesses."""
        return [("size", n, STIFF) for n in self.sizes] + [("stiffness", SIZE, s) for s in self.stiffness]

    def jobs(self, done: Sequence[Record]) -> Iterator[tuple[str, int, float, list[int]]]:
        """Return what is left to measure, round by round."""
        there = {(r["kind"], r["size"], r["stiffness"], r["seed"]) for r in done}
        for begin in range(0, self.runs, CHUNK):
            seeds = range(begin, min(begin + CHUNK, self.runs))
            few = [seed for seed in range(begin // CHUNK, begin // CHUNK + 1) if seed < self.close_runs]
            work = [("times", n, s, seeds) for n, s in dict.fromkeys((n, s) for _, n, s in self.cases)]
            work += [("close", SIZE, s, few) for s in self.stiffness]
            for kind, n, s, wanted in work:
                if left := [seed for seed in wanted if (kind, n, s, seed) not in there]:
                    yield kind, n, s, left

    def rows(self, records: Sequence[Record]) -> list[Row]:
        """Return the rows of the cases that were measured."""
        found = [(case, of_case(records, "times", *case[1:])) for case in self.cases]
        return [row for case, those in found if those for row in summarised(*case, those)]

    def close_rows(self, records: Sequence[Record]) -> list[CloseRow]:
        """Return the rows at equal error."""
        found = [(s, of_case(records, "close", SIZE, s)) for s in self.stiffness]
        return [row for s, those in found if those for row in summarised_close(s, those)]


FULL = Plan(100, SIZES, STIFFNESS, 10, 64)
QUICK = Plan(2, (2, 200), (1.0, 100.0), 1, 8)


def measure_all(plan: Plan, done: list[Record], show_progress: Callable[[str, int], None]) -> Iterator[list[Record]]:
    """Measure what is left, and return all there is after each round."""
    jobs = list(plan.jobs(done))
    show_progress("", len(jobs))
    with Fresh(every_time=False) as run:
        run(chunk, SIZE, STIFF, range(1))  # what a framework does only once
        for i, (kind, size, stiffness, seeds) in enumerate(jobs):
            if kind == "times":
                done += plain(run(chunk, size, stiffness, seeds))
            else:
                done += plain(run(chunk_close, size, stiffness, seeds, plan.most))
            show_progress(f"{size} states, stiffness {stiffness:g}", 0)
            if i + 1 == len(jobs) or jobs[i + 1][:3] == jobs[0][:3]:
                yield done


# --- what it had to reach --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One claim of Figure 2, as the issue states it."""

    claim: str
    measured: str
    met: bool


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Judge the rows of dil's own choice of linear solver, and those of CG beside them."""
    out = []
    for method in ("dil", "dil_cg"):
        mine = [r for r in rows if r.method == method]
        growing = [r for r in mine if r.axis == "stiffness"]
        forward = [r.forward_ratio for r in growing]
        out.append(
            Claim(
                f"{LABELS[method]}: forward over DOPRI5 falls as the stiffness grows, below 1",
                ", ".join(f"{x:.2f}" for x in forward),
                forward[-1] < 1 and forward == sorted(forward, reverse=True),
            )
        )
        shares = [r.backward_ratio for r in mine]
        out.append(
            Claim(
                f"{LABELS[method]}: backward at most 1/5 of the adjoint's, at every size and stiffness",
                f"{min(shares):.3f} to {max(shares):.3f}",
                max(shares) <= SHARE,
            )
        )
        level = [r.backward[0] for r in growing]
        out.append(
            Claim(
                f"{LABELS[method]}: backward flat while the stiffness grows "
                f"{growing[-1].stiffness / growing[0].stiffness:g} times",
                f"largest mean over smallest: {max(level) / min(level):.2f}",
                max(level) / min(level) <= FLAT,
            )
        )
    return out


# --- telling ---------------------------------------------------------------------------------------------------------


def row_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    heads = ["states", "stiffness", "method", "runs", "forward [ms]", "backward [ms]", "/ DOPRI5", "/ adjoint", "error"]
    cells = [
        [
            *(str(r.size), f"{r.stiffness:g}", LABELS[r.method], str(r.runs)),
            *(f"{r.forward[0]:.1f} ± {r.forward[1]:.1f}", f"{r.backward[0]:.1f} ± {r.backward[1]:.1f}"),
            *(f"{r.forward_ratio:.2f}", f"{r.backward_ratio:.3f}", f"{r.error:.0e}"),
        ]
        for r in rows
    ]
    return heads, cells


def close_table(rows: Sequence[CloseRow]) -> tuple[list[str], list[list[str]]]:
    heads = ["stiffness", "method", "within 1e-3", "steps or evaluations", "forward [ms]", "backward [ms]", "error"]
    cells = [
        [
            *(f"{r.stiffness:g}", r.method, f"{r.runs} of {r.tried}", "-" if r.work is None else f"{r.work:g}"),
            *("-" if x is None else f"{x:.1f}" for x in (r.forward, r.backward)),
            "-" if r.error is None else f"{r.error:.0e}",
        ]
        for r in rows
    ]
    return heads, cells


def claim_table(found: Sequence[Claim]) -> tuple[list[str], list[list[str]]]:
    return ["claim", "measured", "met"], [[c.claim, c.measured, word(c.met)] for c in found]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw forward and backward times, over the state size and over the stiffness."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"dopri5": "#c44e52", "dil": "#4c72b0", "dil_cg": "#55a868"}
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), sharey="col", layout="constrained")
    for line, (axis, label) in enumerate((("size", f"states, stiffness {STIFF:g}"), ("stiffness", f"{SIZE} states"))):
        for column, part in enumerate(("forward", "backward")):
            ax = axes[line][column]
            for method, title in LABELS.items():
                mine = sorted(
                    (r for r in rows if r.axis == axis and r.method == method), key=lambda r: getattr(r, axis)
                )
                x = [getattr(r, axis) for r in mine]
                mean = [getattr(r, part)[0] for r in mine]
                low = [max(getattr(r, part)[0] - getattr(r, part)[1], 0.05) for r in mine]
                high = [sum(getattr(r, part)) for r in mine]
                ax.plot(x, mean, "o-", markersize=3, color=colours[method], label=title)
                ax.fill_between(x, low, high, color=colours[method], alpha=0.2, linewidth=0)
            ax.set(xscale="log", yscale="log", xlabel=label if axis == "size" else f"stiffness s, {label}")
            ax.grid(which="major", alpha=0.3)
            if line == 0:
                ax.set_title(f"({'ab'[column]}) {part} evaluation")
            if column == 0:
                ax.set_ylabel("time [ms], mean ± deviation")
    axes[0][1].legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write(out: Path, command: str, host: dict[str, str], plan: Plan, records: list[Record]) -> None:
    """Write figure2.md, figure2.json and figure2.png."""
    out.mkdir(parents=True, exist_ok=True)
    rows, closes = plan.rows(records), plan.close_rows(records)
    found = claims(rows)
    record = {
        "command": command,
        "machine": host,
        "measured": MEASURED,
        "claims": [asdict(c) for c in found],
        "times": [asdict(r) for r in rows],
        "measured_at_equal_error": MEASURED_CLOSE,
        "equal_error": [asdict(r) for r in closes],
        "records": records,
    }
    draw(rows, out / "figure2.png")
    parts = [
        "# Figure 2: an implicit Euler step against DOPRI5 and its adjoint",
        f"`{command}`",
        described(host) + ".",
        MEASURED,
        "![times over state size and stiffness](figure2.png)",
        markdown(*claim_table(found)),
        markdown(*row_table(rows)),
        "## At equal error",
        MEASURED_CLOSE,
        markdown(*close_table(closes)),
    ]
    write_results(out, "figure2", parts, record)


def load(path: Path | None, host: dict[str, str]) -> list[Record]:
    """Return what a file holds that was measured on this machine."""
    if path is None or not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["records"] if found["machine"] == host else []


MEASURED = (
    "From x_k to x_{k+1} = x(0.1) for dx/dt = s (net(x) - x), a network of 2 layers of 30 tanh units, float64, eager "
    "torch on one thread; x_k and the cotangent are normal. 'equal acceptance', as in the caption of the paper's "
    "figure: DOPRI5 and its adjoint accept a step by rtol = 1e-7 and atol = 1e-9, torchdiffeq's defaults, Newton's "
    "method x_{k+1}, and CG the gradient, by rtol = 1e-7. The implicit Euler method takes one step. Times are of the "
    "processor, the methods in turn on each initialisation, mean ± deviation over the initialisations; ratios are "
    "medians of pairs. 'error' is that of x_{k+1} against a tight solution of the ODE, relative to 1 + ||x||: the "
    "criterion bounds it for DOPRI5 only, since a step of order one also has its own error, which no solver of its "
    "equation sees. An initialisation in which Newton's method fails is left out of its case: see 'runs'."
)
MEASURED_CLOSE = (
    f"The same with {SIZE} states, where x_{{k+1}} must come within 1e-3 (1 + ||x||) of the ODE's: the implicit "
    "methods take the least power of two of steps that does it, up to a bound (64 in the full run), DOPRI5 the largest "
    "tolerance of 1e-1, 1e-2, ... that does. Medians. The gradient of the implicit methods is that of what they "
    "computed; that of the adjoint has the error of its way back beside."
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where figure2.{md,json,png} go.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two initialisations, the ends of the axes.")] = False,
) -> None:
    """Time an implicit Euler step against torchdiffeq's DOPRI5 and its adjoint, over state sizes and stiffness."""
    os.environ.update(ONE_THREAD)
    console, host, plan = Console(), {**machine(), "torchdiffeq": version("torchdiffeq")}, QUICK if quick else FULL
    command = shlex.join(["python", "benchmarks/paper/figure2.py", *sys.argv[1:]])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    records = load(None if out is None else out / "figure2.json", host)
    with Progress(*columns, console=console) as progress:
        job = progress.add_task("")

        def show_progress(what: str, total: int) -> None:
            progress.update(job, description=what, advance=0 if total else 1, total=total or None)

        for there in measure_all(plan, records, show_progress):
            if out is not None:
                write(out, command, host, plan, there)
    rows, closes = plan.rows(records), plan.close_rows(records)
    console.print(f"{command}\n{described(host)}\n\n{MEASURED}", highlight=False)
    show(console, "equal acceptance", *row_table(rows))
    show(console, "claims", *claim_table(claims(rows)))
    console.print(MEASURED_CLOSE, highlight=False)
    show(console, "equal error", *close_table(closes))


if __name__ == "__main__":
    app()
