"""Products of `Auto` on random spectra that it was not made for, against the best choice in hindsight.

    python benchmarks/spectra.py --out docs/results

Each matrix is symmetric positive definite with a random spectrum, in a random basis. `Auto` knows nothing of it.
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
from _results import write_results

UNKNOWNS = 400
KINDS = ("clustered", "geometric", "one outlier", "two scales", "low rank plus floor")
BASES = ("unrotated", "reflected", "densely rotated", "scaled", "densely rotated")
"""Scaled is D M D with a densely rotated M. Two in five are densely rotated."""
LIMIT = 6_000
"""The iterations after which a solver counts as failed."""
TARGETS = {"median": 1.5, "95 %": 3.0, "maximum against CG": 2.0}

MEASURED = (
    f"Symmetric positive definite matrices of {UNKNOWNS} unknowns with condition numbers from 1e1 to 1e6, uniform in "
    "the logarithm, and a normal right-hand side. Spectra: 2 to 7 clusters; geometric; 1 to 10 and one outlier; two "
    "scales, the larger of a tenth to a half of the eigenvalues; 5 to 59 large eigenvalues over a floor of 1 to 2. "
    "Bases: unrotated, one reflection, a dense rotation (two in five), and D M D with a densely rotated M and random "
    "scales D. Each solver is run to the default tolerance on NumPy, and the products with the matrix are counted by "
    "the matrix. `Auto(dense=0)` builds no dense matrix. The best is the one of CG, CG(Jacobi()), CG(Nystrom(16)), "
    "CG(Nystrom(60)) and CG(Nystrom(16 to 128)) that converged with the fewest products on that matrix; nobody knows "
    "it beforehand. 'against CG' is the ratio to plain CG where that converged. 'none' counts the matrices on which no "
    "single solver converged, because the tolerance is below the rounding of a product: they have no ratio. 'failed' "
    "counts those on which a single solver converged and Auto did not; their ratio is that of the products it took."
)


@dataclass(frozen=True)
class Row:
    """One matrix."""

    kind: str
    basis: str
    condition: float
    auto: int
    status: str
    products: dict[str, int | None]
    """Products of each single solver, None where it did not converge."""

    @property
    def best(self) -> int | None:
        """The products of the best single solver, or None if none converged."""
        return min((k for k in self.products.values() if k is not None), default=None)

    @property
    def ratio(self) -> float | None:
        """Auto over the best."""
        return None if self.best is None else self.auto / self.best

    @property
    def against_cg(self) -> float | None:
        """Auto over plain CG."""
        plain = self.products["CG"]
        return None if plain is None else self.auto / plain


def solvers() -> dict[str, Callable[..., Any]]:
    """Return the single solvers by name."""
    L = dil.linear
    preconditioners = {
        "Jacobi()": L.Jacobi(),
        "Nystrom(16)": L.Nystrom(16),
        "Nystrom(60)": L.Nystrom(60),
        "Nystrom(16 to 128)": L.Nystrom(16, adaptive=True, max_rank=128),
    }
    found: dict[str, Callable[..., Any]] = {"CG": L.CG(max_iter=LIMIT)}
    return found | {f"CG, {name}": L.CG(preconditioner=M, max_iter=LIMIT) for name, M in preconditioners.items()}


def spectrum(kind: str, n: int, condition: float, draw: np.random.Generator) -> Any:
    """Return random eigenvalues of a kind, from about one to the condition number."""
    if kind == "clustered":
        count = int(draw.integers(2, 8))
        centres = np.exp(draw.uniform(0, np.log(condition), count))
        centres[0], centres[-1] = 1.0, condition
        return centres[draw.integers(0, count, n)] * np.exp(0.01 * draw.standard_normal(n))
    if kind == "geometric":
        return np.geomspace(1, condition, n)
    if kind == "one outlier":
        return np.concatenate([draw.uniform(1, 10, n - 1), [condition]])
    if kind == "two scales":
        large = int(draw.integers(n // 10, n // 2))
        return np.concatenate([draw.uniform(1, 3, n - large), condition * draw.uniform(0.3, 1, large)])
    large, least = int(draw.integers(5, 60)), condition / 1e3 if condition > 1e4 else 10.0
    return np.concatenate([np.geomspace(least, condition, large), draw.uniform(1, 2, n - large)])


def matrix(kind: str, basis: str, condition: float, draw: np.random.Generator) -> Callable[[Any], Any]:
    """Return the product with a random matrix."""
    n = UNKNOWNS
    if basis == "scaled":
        scales = np.exp(draw.uniform(0, np.log(condition) / 2, n))
        d = draw.permutation(spectrum(kind, n, 10 ** draw.uniform(1, 2.5), draw))
        Q = np.linalg.qr(draw.standard_normal((n, n)))[0]
        scaled = scales[:, None] * ((Q * d) @ Q.T) * scales
        return lambda p: scaled @ p
    d = draw.permutation(spectrum(kind, n, condition, draw))
    if basis == "densely rotated":
        Q = np.linalg.qr(draw.standard_normal((n, n)))[0]
        dense = (Q * d) @ Q.T
        return lambda p: dense @ p
    if basis == "unrotated":
        return lambda p: d * p
    v = draw.standard_normal(n)
    v = v / np.linalg.norm(v)

    def product(p: Any) -> Any:
        p = d * (p - 2 * v * (v @ p))
        return p - 2 * v * (v @ p)

    return product


def counted(solver: Callable[..., Any], product: Callable[[Any], Any], b: Any) -> tuple[int, str]:
    """Return the products that a solver asks for, and the name of its status."""
    calls = [0]

    def one_more(p: Any) -> Any:
        calls[0] += 1
        return product(p)

    found = solver(dil.linear.Operator(one_more, symmetric=True), b)
    return calls[0], dil.Status(int(found.status)).name


def measured(seed: int) -> Row:
    """Solve with one random matrix."""
    draw = np.random.default_rng(seed)
    kind, basis = KINDS[seed % 5], BASES[seed // 5 % 5]
    condition = float(10 ** draw.uniform(1, 6))
    product, b = matrix(kind, basis, condition, draw), draw.standard_normal(UNKNOWNS)
    auto, status = counted(dil.linear.Auto(dense=0, max_iter=LIMIT), product, b)
    singles = {name: counted(solver, product, b) for name, solver in solvers().items()}
    products = {name: calls if status == "CONVERGED" else None for name, (calls, status) in singles.items()}
    return Row(kind, basis, condition, auto, status, products)


def numbers(rows: Sequence[Row]) -> dict[str, float]:
    """Return the median, the 95 % quantile and the maximum of the ratios."""
    ratios = [row.ratio for row in rows if row.ratio is not None]
    against = [row.against_cg for row in rows if row.against_cg is not None]
    return {
        "median": float(np.median(ratios)) if ratios else float("nan"),
        "95 %": float(np.quantile(ratios, 0.95)) if ratios else float("nan"),
        "maximum": max(ratios, default=float("nan")),
        "maximum against CG": max(against, default=float("nan")),
    }


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the lines of the table: all matrices, each kind and each basis."""
    groups = {"all": list(rows)}
    groups |= {kind: [r for r in rows if r.kind == kind] for kind in KINDS}
    groups |= {basis: [r for r in rows if r.basis == basis] for basis in dict.fromkeys(BASES)}
    cells = [
        [
            name,
            str(len(some)),
            str(sum(r.best is None for r in some)),
            str(sum(r.best is not None and r.status != "CONVERGED" for r in some)),
        ]
        + [f"{x:.2f}" for x in numbers(some).values()]
        for name, some in groups.items()
        if some
    ]
    return ["matrices", "number", "none", "failed", "median", "95 %", "maximum", "maximum against CG"], cells


def verdicts(rows: Sequence[Row]) -> list[list[str]]:
    """Return whether each target is met."""
    found = numbers(rows)
    return [[name, f"{found[name]:.2f}", f"{most:g}", word(found[name] <= most)] for name, most in TARGETS.items()]


def main(
    out: Annotated[Path | None, typer.Option(help="Directory for spectra.md and spectra.json.")] = None,
    matrices: Annotated[int, typer.Option(min=1, help="Matrices to draw.")] = 200,
    first: Annotated[int, typer.Option(min=0, help="The seed of the first matrix.")] = 0,
) -> None:
    """Compare the products of Auto with those of the best single solver on random spectra."""
    dil.backend("numpy")
    bar = Console(stderr=True)
    rows = [measured(seed) for seed in track(range(first, first + matrices), description="matrices", console=bar)]
    heads, cells = table(rows)
    goals = verdicts(rows)
    show(Console(), "Auto's products over the best in hindsight", heads, cells)
    show(Console(), "targets", ["ratio", "measured", "at most", "met"], goals)
    command = f"python benchmarks/spectra.py --matrices {matrices} --first {first}"
    if out is not None:
        parts = [
            "# Random spectra",
            f"`{command} --out docs/results`",
            MEASURED,
            markdown(heads, cells),
            markdown(["ratio", "measured", "at most", "met"], goals),
        ]
        record = {"command": command, "machine": machine(), "measured": MEASURED, "rows": [asdict(r) for r in rows]}
        write_results(out, "spectra", parts, record)
    sys.exit(any(goal[-1] == "MISSED" for goal in goals))


if __name__ == "__main__":
    typer.run(main)
