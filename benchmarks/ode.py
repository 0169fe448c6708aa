"""Differential equations beside diffrax, SciPy and torchdiffeq: error against time, and ratios at equal error.

    python benchmarks/ode.py --out docs/results

It needs SciPy; torch with torchdiffeq and JAX with diffrax run where they are installed.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from _common import (
    BACKENDS,
    ONE_THREAD,
    Fresh,
    chosen_backends,
    described,
    in_turn,
    machine,
    markdown,
    one_core,
    show,
    version,
    word,
)
from _ode_problems import Problem, problems
from _ode_ways import measured
from _results import commands_of, earlier, write_results

NEEDS = {"jax": "diffrax", "torch": "torchdiffeq", "numpy": "scipy"}
MEASURED = (
    "Each problem is solved at relative tolerances of 1e-4, 1e-6 and 1e-8, with the same absolute tolerance for all. "
    "The error is the root mean square of the relative errors of all entries of the last state, against the end values "
    "of the test set for IVP solvers where it has them, and else against SciPy at 1e-12. dil takes 'kvaerno5' on stiff "
    "problems and 'tsit5' on the others. A ratio is the time of dil over that of the other at equal error: the "
    "logarithm of the time is interpolated in the logarithm of the error, and the mean is taken over the errors that "
    "both reach ('extrapolated': there are none, so between them). All ways of a framework run in turn on "
    "one core; processor time, the median of the rounds, and the quartiles of the ratio. diffrax has the controller "
    "that it advises for stiff problems, pcoeff 0.3 and icoeff 0.4. The gradient is that of the sum of the last state "
    "in the start and the parameters, with the solution that it needs: on JAX, and on torch beside torchdiffeq. On JAX "
    "all is under `jit`; 'compile' is the first call without its run, in ms. The batch has 1,000 problems of two "
    "unknowns: `vmap` on JAX, and one system elsewhere."
)
HEADS = ["problem", "unknowns", "backend", "pass", "beside", "ms", "ratio", "quartiles", "limit", "met", "note"]
POINT_HEADS = ["problem", "way", "rtol", "error", "forward, ms", "gradient, ms", "steps", "rejected"]


def run(name: str, framework: str, seconds: float, tolerances: int) -> dict[str, Any]:
    """Measure one problem on one framework, in a worker."""
    one_core()
    p = problems()[name]
    return measured(replace(p, tolerances=p.tolerances[:tolerances]), framework, seconds, in_turn)


def limit_of(p: Problem, framework: str, row: dict[str, Any]) -> float | None:
    """Return the ratio that is allowed, if the peer is the one to reach."""
    if framework == "jax":
        return 1.0 if row["pass"].startswith("compile") else 1.2
    if framework == "torch":
        return 1.0
    if row["peer"] != "SciPy Radau" or not p.stiff:
        return None
    return 8.0 if p.unknowns <= 8 else 2.0


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the lines of the table of ratios."""
    return [
        [
            row["problem"],
            f"{row['unknowns']}",
            row["backend"],
            row["pass"],
            row["peer"],
            "-" if row["ms"] is None else f"{row['ms']:,.3g}",
            "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
            "-" if row["spread"] is None else " to ".join(f"{x:.2f}" for x in row["spread"]),
            "-" if row["limit"] is None else f"{row['limit']:g}",
            word(row["met"]),
            row.get("note", ""),
        ]
        for row in rows
    ]


def cells_of_points(points: list[dict[str, Any]]) -> list[list[str]]:
    """Return the lines of the table of points."""
    return [
        [
            q["problem"],
            q["way"],
            f"{q['rtol']:.0e}",
            f"{q['error']:.1e}" if q["reached"] else "not reached",
            f"{q['forward_ms']:,.3g}",
            "-" if q["gradient_ms"] is None else f"{q['gradient_ms']:,.3g}",
            "-" if q["steps"] < 0 else f"{q['steps']:,}",
            "-" if q["rejected"] < 0 else f"{q['rejected']:,}",
        ]
        for q in points
    ]


def main(
    out: Annotated[Path | None, typer.Option(help="Directory for ode.md and ode.json.")] = None,
    backends: Annotated[str, typer.Option(help="Backends, comma-separated.")] = ",".join(BACKENDS),
    only: Annotated[str, typer.Option(help="Parts of the names of problems, separated by semicolons.")] = "",
    seconds: Annotated[float, typer.Option(min=0.0, help="Seconds for the rounds of each table entry.")] = 2.0,
    quick: Annotated[bool, typer.Option(help="Two tolerances and two rounds.")] = False,
    note: Annotated[str, typer.Option(help="What to say about the conditions of the run.")] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the rows of earlier runs that this one lacks.")] = False,
) -> None:
    """Compare the solution of initial value problems and its gradient with other libraries."""
    os.environ.update(ONE_THREAD)
    chosen = [b for b in chosen_backends(backends) if find_spec(b) is not None and find_spec(NEEDS[b]) is not None]
    every, parts = problems(), [part for part in only.split(";") if part]
    names = [name for name in every if not parts or any(part in name for part in parts)]
    if not names:
        message = f"no problem has {only!r} in its name; expected parts of {', '.join(every)}"
        raise typer.BadParameter(message)
    before = earlier(out, "ode", keep=keep)
    commands = commands_of(before, shlex.join(["python", "benchmarks/ode.py", *sys.argv[1:]]))
    rows, points = (
        [row for row in before.get(kind, []) if row["problem"] not in names or row["backend"] not in chosen]
        for kind in ("rows", "points")
    )
    peers = {name: version(name) for name in ("scipy", "diffrax", "torchdiffeq")}
    host = {**machine(), **peers}
    record = {"command": "\n".join(commands), "machine": host, "measured": MEASURED, "note": note}
    text = ["# Differential equations", *(f"`{command}`" for command in commands), described(host), MEASURED]
    text += [note] if note else []
    with Fresh(every_time=True) as fresh:
        plan = [(name, framework) for name in names for framework in chosen]
        for name, framework in track(plan, description="problems", console=Console(stderr=True)):
            found, p = fresh(run, name, framework, *((0.0, 2) if quick else (seconds, 3))), every[name]
            points += [{"problem": name, "backend": framework, **q} for q in found["points"]]
            rows += [_judged(p, framework, row) for row in found["rows"]]
            if out is not None:  # a run that is cut short leaves the problems that were measured
                tables = [
                    markdown(HEADS, cells(rows)),
                    "## Error and time",
                    markdown(POINT_HEADS, cells_of_points(points)),
                ]
                write_results(out, "ode", [*text, *tables], {**record, "rows": rows, "points": points})
    show(Console(), "ratios at equal error", HEADS, cells(rows))
    show(Console(), "error and time", POINT_HEADS, cells_of_points(points))


def _judged(p: Problem, framework: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the problem, its limit, and whether that is met."""
    limit = limit_of(p, framework, row)
    met = None if limit is None or row["ratio"] is None else row["ratio"] <= limit
    common = {"problem": p.name, "unknowns": p.unknowns, "backend": framework}
    return {**common, **row, "limit": limit, "met": met}


if __name__ == "__main__":
    typer.run(main)
