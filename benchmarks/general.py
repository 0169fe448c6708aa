"""Products of `Auto` on random general matrices that it was not made for, against plain BiCGSTAB and GMRES.

    python benchmarks/general.py --out docs/results

`Auto` knows nothing of a matrix but its products and those of its transpose.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

import dil
from _common import machine, markdown, show, word
from _general_matrices import GROUPS, KINDS, matrices
from _results import write_results

LIMIT = 1_500
"""The iterations after which a solver counts as failed."""
FIRST = 40
"""The first seed. No rule of `Auto` was chosen on seeds 40 to 99."""
SINGLE: dict[str, Callable[..., Any]] = {
    "BiCGSTAB": dil.linear.BiCGSTAB(max_iter=LIMIT),
    "GMRES": dil.linear.GMRES(max_iter=LIMIT),
}
TARGETS = {("BiCGSTAB", "median"): 1.1, ("BiCGSTAB", "95 %"): 1.5, ("BiCGSTAB", "maximum"): 2.0}

NAMES = "; ".join(f"{group} ({', '.join(kinds)})" for group, kinds in GROUPS.items())
MEASURED = (
    f"For each seed, a random matrix of each kind with 100 to 300 unknowns, and its transpose: {NAMES}. Units lie over "
    "up to 5 decades. The right-hand side is normal. Each solver is run to the default tolerance on NumPy, at most "
    f"{LIMIT:,} iterations, and all products are counted by the matrix, those with the transpose among them. "
    "`Auto(dense=0)` builds no dense matrix. Ratios are those of Auto's products to the ones of a single solver where "
    "that converged; GMRES restarts after 30 steps. 'failed' counts the matrices on which a solver did not converge. "
    "'saved' is the share of the products of BiCGSTAB, over all matrices, that Auto does not take; where BiCGSTAB "
    "fails, those until it ends."
)


@dataclass(frozen=True)
class Row:
    """One matrix."""

    seed: int
    group: str
    kind: str
    unknowns: int
    products: dict[str, int]
    converged: dict[str, bool]
    choice: str

    def ratio(self, single: str) -> float | None:
        """Return Auto's products over those of a single solver, or None where that did not converge."""
        return self.products["Auto"] / self.products[single] if self.converged[single] else None


def counted(solver: Callable[..., Any], A: Any, b: Any) -> tuple[int, bool, str]:
    """Return the products that a solver asks for, whether it converged, and what it chose."""
    calls = [0]

    def product(p: Any, matrix: Any = A) -> Any:
        calls[0] += 1
        return matrix @ p

    found = solver(dil.linear.Operator(product, lambda p: product(p, A.T)), b)
    return calls[0], int(found.status) == dil.Status.CONVERGED, str((found.extra or {}).get("choice", ""))


def measured(seed: int, group: str, kind: str, A: Any) -> Row:
    """Solve with one matrix."""
    b = np.random.default_rng([seed, 1_000]).standard_normal(len(A))
    solvers: dict[str, Callable[..., Any]] = {"Auto": dil.linear.Auto(dense=0, max_iter=LIMIT), **SINGLE}
    found = {name: counted(solver, A, b) for name, solver in solvers.items()}
    products, converged = {name: f[0] for name, f in found.items()}, {name: f[1] for name, f in found.items()}
    return Row(seed, group, kind, len(A), products, converged, found["Auto"][2])


def numbers(rows: Sequence[Row], single: str) -> dict[str, float]:
    """Return the median, the 95 % quantile and the maximum of the ratios to a single solver."""
    ratios = [r for r in (row.ratio(single) for row in rows) if r is not None] or [float("nan")]
    return {"median": float(np.median(ratios)), "95 %": float(np.quantile(ratios, 0.95)), "maximum": max(ratios)}


def saved(rows: Sequence[Row]) -> float:
    """Return the share of the products of BiCGSTAB that Auto does not take."""
    return 1 - sum(row.products["Auto"] for row in rows) / sum(row.products["BiCGSTAB"] for row in rows)


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the lines of the table: all matrices, and each group."""
    parts = {"all": list(rows)} | {group: [r for r in rows if r.group == group] for group in GROUPS}
    names = ("Auto", *SINGLE)
    heads = ["matrices", "number", *(f"{name} failed" for name in names), "saved"]
    heads += [f"{key} over {single}" for single in SINGLE for key in numbers(rows, single)]
    cells = [
        [
            name,
            str(len(some)),
            *(str(sum(not r.converged[solver] for r in some)) for solver in names),
            f"{100 * saved(some):.0f} %",
            *(f"{x:.2f}" for single in SINGLE for x in numbers(some, single).values()),
        ]
        for name, some in parts.items()
        if some
    ]
    return heads, cells


def verdicts(rows: Sequence[Row]) -> list[list[str]]:
    """Return whether each target is met."""
    found = [(f"{key} over {single}", numbers(rows, single)[key], most) for (single, key), most in TARGETS.items()]
    lost = sum(not row.converged["Auto"] and any(row.converged[single] for single in SINGLE) for row in rows)
    found.append(("matrices that only a single solver solves", float(lost), 0.0))
    return [[name, f"{value:.2f}", f"{most:g}", word(value <= most)] for name, value, most in found]


def main(
    out: Annotated[Path | None, typer.Option(help="Directory for general.md and general.json.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, each of which draws all kinds.")] = 5,
    first: Annotated[int, typer.Option(min=0, help="The first seed.")] = FIRST,
    kinds: Annotated[str, typer.Option(help="Kinds of matrices, comma-separated; all by default.")] = "",
) -> None:
    """Compare the products of Auto with those of BiCGSTAB and GMRES on random general matrices."""
    dil.backend("numpy")
    chosen = tuple(kinds.split(",")) if kinds else KINDS
    if unknown := sorted(set(chosen) - set(KINDS)):
        message = f"unknown kind {unknown[0]!r}; expected some of {', '.join(KINDS)}"
        raise typer.BadParameter(message)
    drawn = {seed: matrices(seed, chosen) for seed in range(first, first + seeds)}
    systems = [(seed, *names, A) for seed, found in drawn.items() for names, A in found.items()]
    rows = [measured(*system) for system in track(systems, description="matrices", console=Console(stderr=True))]
    heads, cells = table(rows)
    goals = verdicts(rows)
    show(Console(), "Auto's products on general matrices", heads, cells)
    show(Console(), "targets", ["number", "measured", "at most", "met"], goals)
    command = f"python benchmarks/general.py --seeds {seeds} --first {first}"
    if out is not None:
        parts = [
            "# Random general matrices",
            f"`{command} --out docs/results`",
            MEASURED,
            markdown(heads, cells),
            markdown(["number", "measured", "at most", "met"], goals),
        ]
        record = {"command": command, "machine": machine(), "measured": MEASURED, "rows": [asdict(r) for r in rows]}
        write_results(out, "general", parts, record)
    sys.exit(any(goal[-1] == "MISSED" for goal in goals))


if __name__ == "__main__":
    typer.run(main)
