"""Products of Krylov solvers on twenty matrices that are not symmetric: what restarts lose, and who keeps it.

    python benchmarks/nonsymmetric.py --out docs/results

It needs SciPy, whose LGMRES and GCROT(m, k) run beside the solvers of `dil`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import scipy.sparse as sparse
import typer
from rich.console import Console
from rich.progress import track
from scipy.sparse.linalg import LinearOperator, gcrotmk, lgmres

import dil
from _common import machine, markdown, show
from _general_matrices import matrices
from _results import write_results

LIMIT = 6_000
"""The products after which a solver counts as failed."""
RTOL = float(np.finfo(float).eps) ** 0.75
SEED = 7
DRAWN = (
    "contrasts",
    "both",
    "few stiff rows",
    "disc",
    "diagonal",
    "indefinite",
    "saddle",
    "rotations",
    "tanh",
    "Gaussian",
    "to 0.001",
    "and skew",
)
"""The kinds of `_general_matrices` that are among the twenty."""

MEASURED = (
    "Relative residuals of eps ** 0.75 are asked of each solver, on NumPy, and all products with the matrix are "
    f"counted. 'failed' is a residual that is not within twice that, or more than {LIMIT:,} products. The right-hand "
    "sides are normal. Eight matrices are convection and diffusion on a square grid, central differences, with the "
    "given Peclet number of the square; 'turning' is a wind around its middle, and 'shifted' subtracts a multiple of "
    f"the identity. The others are drawn as for `benchmarks/general.py`, seed {SEED}. GMRES restarts after 30 steps, "
    "LGMRES keeps 3 vectors of 33 and GCROT(m, k) 10 beside 30 (both by SciPy). The last lines are the products over "
    "the fewest of all solvers, infinite where a solver fails: the median, and the 90 % quantile."
)
Solve: TypeAlias = "Callable[[Callable[[Any], Any], Any], Any]"


def convection(m: int, peclet: float, *, turning: bool = False, shift: float = 0.0) -> Any:
    """Return -lap + w . grad - shift on m x m points of the unit square, times h^2."""
    h, one = 1 / (m + 1), np.ones(m - 1)
    second = sparse.diags_array([-one, 2 * np.ones(m), -one], offsets=[-1, 0, 1])
    first = sparse.diags_array([-one, one], offsets=[-1, 1]) * (h / 2)
    identity, x = sparse.eye_array(m), (np.arange(m) + 1) * h
    X, Y = np.meshgrid(x, x, indexing="ij")
    wind = (2 * Y - 1, 1 - 2 * X) if turning else (0.8 + 0 * X, 0.6 + 0 * X)
    along, across = (sparse.diags_array(peclet * w.ravel()) for w in wind)
    A = sparse.kron(second, identity) + sparse.kron(identity, second)
    A = A + along @ sparse.kron(first, identity) + across @ sparse.kron(identity, first)
    return (A - shift * h**2 * sparse.eye_array(m * m)).tocsr()


def systems() -> dict[str, Any]:
    """Return the twenty matrices by name."""
    grids = {f"convection {m} x {m}, Pe {peclet}": convection(m, peclet) for m in (30, 60) for peclet in (1, 20, 100)}
    grids["convection 60 x 60, Pe 100, turning"] = convection(60, 100, turning=True)
    grids["convection 60 x 60, Pe 20, shifted by 50"] = convection(60, 20, shift=50)
    return grids | {f"{group}: {kind}": A for (group, kind), A in matrices(SEED, DRAWN).items() if kind in DRAWN}


def by_dil(solver: Any) -> Solve:
    """Return a solver of `dil` as a function of the product and b."""
    return lambda product, b: solver(product, b).value


def by_scipy(solver: Callable[..., Any], **options: Any) -> Solve:
    """Return a solver of SciPy as a function of the product and b."""

    def solve(product: Callable[[Any], Any], b: Any) -> Any:
        A = LinearOperator((len(b), len(b)), matvec=product, dtype=float)
        return solver(A, b, rtol=RTOL, atol=0.0, **options)[0]

    return solve


SOLVERS: dict[str, Solve] = {
    "BiCGSTAB": by_dil(dil.linear.BiCGSTAB(max_iter=LIMIT // 2)),
    "GMRES(30)": by_dil(dil.linear.GMRES(max_iter=LIMIT)),
    "LGMRES": by_scipy(lgmres, inner_m=30, outer_k=3, maxiter=LIMIT // 33),
    "GCROT": by_scipy(gcrotmk, m=30, k=10, maxiter=LIMIT // 30),
    "IDR(2)": by_dil(dil.linear.IDR(2, max_iter=LIMIT)),
    "IDR(4)": by_dil(dil.linear.IDR(4, max_iter=LIMIT)),
    "IDR(8)": by_dil(dil.linear.IDR(8, max_iter=LIMIT)),
}


@dataclass
class Row:
    """One matrix, with the products of each solver that reached the tolerance."""

    matrix: str
    unknowns: int
    products: dict[str, int | None] = field(default_factory=dict)

    def over_best(self, solver: str) -> float:
        """Return the products over the fewest of all solvers."""
        own = self.products[solver]
        return float("inf") if own is None else own / min(k for k in self.products.values() if k is not None)


def counted(solve: Solve, A: Any, b: Any) -> int | None:
    """Return the products that a solver asks for, or None if it failed."""
    calls = [0]

    def product(p: Any) -> Any:
        calls[0] += 1
        return A @ p

    x = solve(product, b)
    reached = float(np.linalg.norm(b - A @ x)) <= 2 * RTOL * float(np.linalg.norm(b))
    return calls[0] if reached and calls[0] <= LIMIT + 2 else None


def measured(name: str, A: Any) -> Row:
    """Solve with one matrix by each solver."""
    b = np.random.default_rng([SEED, 1_000]).standard_normal(A.shape[0])
    return Row(name, A.shape[0], {solver: counted(solve, A, b) for solver, solve in SOLVERS.items()})


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the lines of the table."""
    lines = [
        [row.matrix, f"{row.unknowns:,}", *("failed" if k is None else str(k) for k in row.products.values())]
        for row in rows
    ]
    for name, share in (("median over the best", 0.5), ("90 % over the best", 0.9)):
        ratios = [sorted(row.over_best(solver) for row in rows) for solver in SOLVERS]
        lines.append([name, "", *(f"{r[min(int(share * len(r)), len(r) - 1)]:.2f}" for r in ratios)])
    return ["matrix", "unknowns", *SOLVERS], lines


def main(
    out: Annotated[Path | None, typer.Option(help="Directory for nonsymmetric.md and nonsymmetric.json.")] = None,
    only: Annotated[str, typer.Option(help="A part of the names of the matrices.")] = "",
) -> None:
    """Compare the products of Krylov solvers on matrices that are not symmetric."""
    dil.backend("numpy")
    chosen = {name: A for name, A in systems().items() if only in name}
    if not chosen:
        message = f"no matrix has {only!r} in its name; expected a part of {', '.join(systems())}"
        raise typer.BadParameter(message)
    bar = track(chosen.items(), description="matrices", console=Console(stderr=True))
    rows = [measured(name, A) for name, A in bar]
    heads, cells = table(rows)
    show(Console(), "products on matrices that are not symmetric", heads, cells)
    command = "python benchmarks/nonsymmetric.py"
    if out is not None:
        parts = [
            "# Matrices that are not symmetric",
            f"`{command} --out docs/results`",
            MEASURED,
            markdown(heads, cells),
        ]
        record = {"command": command, "machine": machine(), "measured": MEASURED, "rows": [asdict(r) for r in rows]}
        write_results(out, "nonsymmetric", parts, record)


if __name__ == "__main__":
    typer.run(main)
