"""Cost of linear solvers and preconditioners on the systems of layers, and sizes where a dense solve is faster.

    python benchmarks/linear.py --out docs/results

Each system is the system of a layer with a known solution: A = dF/du of a score or of a residual, by the backend's
vector-Jacobian products. Solvers are compared by processor time. `Auto` is timed in turn with the best of the others.
"""

from __future__ import annotations

import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from _common import (
    BACKENDS,
    ONE_THREAD,
    Fresh,
    Lap,
    chosen_backends,
    described,
    in_turn,
    lap,
    machine,
    markdown,
    one_thread,
    relative,
    show,
    word,
)
from _results import write_results

DENSE_AT_MOST = 2**22
"""Numbers that the dense matrices of a system may take to be tried: 32 MiB."""
TARGETS = {("scales", "Jacobi"): 0.1, ("stiff", "Nystrom"): 0.2, ("scales", "LBFGSPairs"): 0.5}
TARGETS |= {("stiff", "LBFGSPairs"): 0.5}
"""Products at most, as a share of those of plain CG, at 10,000 unknowns."""
AUTO = 1.2
SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)


# --- what is measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One system solved by one solver."""

    problem: str
    backend: str
    n: int
    solver: str
    iterations: int
    products: int | None
    """Counted by the solver, those of the preconditioner included; for plain CG the calls, where they can be seen."""
    ms: float
    error: float
    status: str
    share: float | None = None
    """Products over those of plain CG; for Auto its time over that of the best single solver."""
    quartiles: tuple[float, float] | None = None
    against: str | None = None
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        return None if self.target is None or self.share is None else self.share <= self.target


@dataclass(frozen=True)
class Crossing:
    """A dense solve against CG on one system."""

    backend: str
    kind: str
    n: int
    iterations: int
    direct_ms: float
    cg_ms: float
    ratio: float
    """The median over the pairs of direct / CG."""
    quartiles: tuple[float, float]
    pairs: int
    auto_ms: float
    auto_ratio: float
    """The median over pairs of Auto / the better of the two."""


# --- this runs in a worker, one for each backend ---------------------------------------------------------------------


class Bench:
    """One system in the arrays of one backend."""

    def __init__(self, backend: str, system: Any) -> None:
        import _systems
        import dil
        from dil._frameworks.registry import common_owner

        one_thread(backend)
        self.system, self.name, self.systems = system, backend, _systems
        self.handle = dil.backend(backend, dtype="float64")
        self.u, self.x = (self.handle.asarray(x) for x in (system.u, system.solution()))
        self.params = [self.handle.asarray(x) for x in system.params]
        self.backend = common_owner([self.u], ["u"], "benchmark")
        self.A = _systems.operator(self.backend, system, self.u, self.params)
        self.b = self.A(self.x)

    def runner(self, solver: Callable[..., Any], pairs: Any = None) -> Callable[[], Any]:
        """Return a call that solves, as (value, status, iterations, products); compiled under JAX."""
        from dataclasses import replace

        if self.name == "jax":
            import jax

            @jax.jit
            def program(params: Any, u: Any, b: Any, pairs: Any) -> Any:
                A = self.systems.operator(self.backend, self.system, u, params)
                return told(solver(replace(A, pairs=pairs), b))

            return lambda: jax.block_until_ready(program(self.params, self.u, self.b, pairs))
        A = replace(self.A, pairs=pairs)
        return lambda: told(solver(A, self.b))

    def calls(self, solver: Callable[..., Any]) -> int:
        """Count the products that an eager solve asks for."""
        from dataclasses import replace

        met = [0]

        def product(p: Any) -> Any:
            met[0] += 1
            return self.A(p)

        solver(replace(self.A, matvec=product), self.b)
        return met[0]


def told(solution: Any) -> tuple[Any, ...]:
    return solution.value, solution.status, solution.iterations, (solution.extra or {}).get("products")


def candidates(bench: Bench) -> dict[str, tuple[Any, Any]]:
    """Return the single solvers to try by name, each with the pairs it gets."""
    import dil

    system, L = bench.system, dil.linear
    found: dict[str, tuple[Any, Any]] = {}
    heavy = bool(system.goals) and system.n >= 10_000
    names = ["CG"] if heavy else ["CG", "MINRES"] if system.symmetric else ["GMRES", "BiCGSTAB", "NormalCG"]
    if system.u.size * system.n <= DENSE_AT_MOST:
        names.append("Direct")
    found |= {name: (getattr(L, name)(), None) for name in names}
    if "Jacobi" in system.goals:
        found["CG, Jacobi(8 probes)"] = L.CG(preconditioner=L.Jacobi(probes=8)), None
    if "Nystrom" in system.goals:
        found["CG, Nystrom(60)"] = L.CG(preconditioner=L.Nystrom(60)), None
        adaptive = L.Nystrom(16, adaptive=True, max_rank=64)  # which is the rank under jit
        found["CG, Nystrom(16 to 64)"] = L.CG(preconditioner=adaptive), None
    if "LBFGSPairs" in system.goals:
        memory = 30 if system.name == "scales" else 100  # twice the number of large eigenvalues of 'stiff'
        pairs = bench.systems.learned_pairs(system, bench.handle, memory)
        found[f"CG, LBFGSPairs({memory} pairs)"] = L.CG(preconditioner=L.LBFGSPairs()), pairs
    return found


def measure(backend: str, system: Any, seconds: float) -> list[Row]:
    """Solve one system by every solver; time Auto and the best of the plain ones in turn."""
    import dil

    bench = Bench(backend, system)
    rows, runners = [], {}
    for name, (solver, pairs) in candidates(bench).items():
        run = bench.runner(solver, pairs)
        counted = bench.calls(solver) if name == "CG" and backend != "jax" else None
        runners[name], row = run, observed(bench, name, run, seconds, counted)
        rows.append(judged(row, rows))
    auto = bench.runner(dil.linear.Auto())
    last = observed(bench, "Auto", auto, seconds, None)
    plain = [r for r in rows if r.status == "CONVERGED" and "," not in r.solver]
    if plain:
        best = min(plain, key=lambda r: r.ms)
        slow = best.ms > 500
        ratios = compared(runners[best.solver], auto, seconds, 3 if slow else 7, 0 if slow else 2)
        low, middle, high = statistics.quantiles(ratios, n=4)
        more = {"share": middle, "quartiles": (low, high), "against": best.solver, "target": AUTO}
        last = Row(**{**asdict(last), **more})
    return [*rows, last]


def observed(bench: Bench, name: str, run: Callable[[], Any], seconds: float, counted: int | None) -> Row:
    """Run a solver a few times."""
    import numpy as np

    import dil

    run()
    x, status, iterations, products = run()
    laps: list[Lap] = [lap(run, 1)]
    end = time.perf_counter() + seconds
    while len(laps) < 3 or time.perf_counter() < end:
        if laps[0].wall > 1:
            break
        laps.append(lap(run, 1))
    codes = [int(s) for s in np.unique(bench.handle.to_numpy(status))]
    spent = counted if products is None else int(np.max(bench.handle.to_numpy(products)))
    return Row(
        problem=bench.system.name,
        backend=bench.name,
        n=bench.system.n,
        solver=name,
        iterations=int(np.max(bench.handle.to_numpy(iterations))),
        products=spent,
        ms=1e3 * statistics.median(one.cpu for one in laps),
        error=relative(x, bench.x),
        status=", ".join(dil.Status(code).name for code in codes),
    )


def judged(row: Row, before: Sequence[Row]) -> Row:
    """Return a row of a preconditioner with its products over those of plain CG."""
    if not row.solver.startswith("CG, "):
        return row
    (plain,) = (r for r in before if r.solver == "CG")
    usual = plain.iterations if plain.products is None else plain.products
    kind = row.solver.removeprefix("CG, ").partition("(")[0]
    goal = TARGETS.get((row.problem, kind)) if row.n == 10_000 else None
    share = None if row.products is None or row.status != "CONVERGED" else row.products / usual
    return Row(**{**asdict(row), "share": share, "target": goal, "against": "CG"})


def compared(first: Callable[[], Any], second: Callable[[], Any], seconds: float, least: int, warm: int) -> list[float]:
    """Return the ratios of the second's processor time to the first's, pair by pair."""
    return [b.cpu / max(a.cpu, 1e-9) for a, b in in_turn((first, second), seconds, least, warm)]


def cross(backend: str, kind: str, n: int, seconds: float) -> Crossing:
    """Time a dense solve and CG in turn, then Auto and the better of the two."""
    import _systems
    import dil

    bench = Bench(backend, _systems.crossing(kind, n))
    direct, cg, auto = (bench.runner(s) for s in (dil.linear.Direct(), dil.linear.CG(), dil.linear.Auto()))
    iterations = int(bench.handle.to_numpy(cg()[2]))
    direct(), auto()
    pairs = in_turn((cg, direct), seconds, 5)
    ratios = [b.cpu / max(a.cpu, 1e-9) for a, b in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    seen = in_turn((direct if middle < 1 else cg, auto), seconds, 5)
    return Crossing(
        backend,
        kind,
        n,
        iterations,
        1e3 * statistics.median(b.cpu for _, b in pairs),
        1e3 * statistics.median(a.cpu for a, _ in pairs),
        middle,
        (low, high),
        len(pairs),
        1e3 * statistics.median(b.cpu for _, b in seen),
        statistics.median(b.cpu / max(a.cpu, 1e-9) for a, b in seen),
    )


# --- running and telling ---------------------------------------------------------------------------------------------

ShowProgress = Callable[[str], None]


def measure_all(backends: Sequence[str], quick: bool, show_progress: ShowProgress) -> Iterator[Row]:
    from _systems import systems

    for backend in backends:
        with Fresh(every_time=False) as run:
            for system in systems(quick=quick):
                show_progress(f"{backend}: {system.name}, {system.n:,} unknowns")
                yield from run(measure, backend, system, 0.02 if quick else 0.3)


def measure_crossings(backends: Sequence[str], quick: bool, show_progress: ShowProgress) -> Iterator[Crossing]:
    for backend in backends:
        with Fresh(every_time=False) as run:
            for kind in ("few", "many"):
                for n in (4, 16) if quick else SIZES:
                    show_progress(f"{backend}: crossover, {kind} iterations, {n} unknowns")
                    yield run(cross, backend, kind, n, 0.02 if quick else 0.5)


MEASURED = (
    "Systems A x = b of layers (float64): A = dF/du by the backend's vector-Jacobian products, x known. 'network' and "
    "'chain': the scores of backward.py; 'scales': diagonal scales 1 to 1e6 and springs between neighbours; 'stiff': "
    "50 eigenvalues 1e2 to 1e6 over a floor of 1 to 2, reflected; 'saddle': a Lagrangian, indefinite; 'contraction': "
    "a fixed point of spectral radius 0.9; 'convection': reaction, diffusion and convection; 'batch of 100': chains of "
    "10 unknowns at once. 'products': those that the solver counts, sketches and probes among them; the calls for "
    "plain CG, where they can be seen (under JAX its iterations stand for them). Times are medians of the processor's, "
    "without building A (numpy, torch) or with it (jax, jitted, compilation excluded). 'ratio': of a preconditioner, "
    "its products over those of plain CG; of Auto, its time over that of the fastest single solver that converged, "
    "without preconditioners, timed in turn, with quartiles. A dense solve is tried up to 2^22 numbers."
)
MEASURED_CROSSING = (
    "Direct against CG, in turn, as medians of the processor's time; 'few': chain, well conditioned; 'many': scales 1 "
    "to 1e6 with a dense coupling. Its crossover is the largest size of the table up to which Direct takes at "
    "most 1.2 times as long as CG in both columns, tiny sizes apart (below 8 both take the time of a few calls). 'Auto "
    "/ better' times Auto and the better of the two in turn."
)


def row_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    heads = ["problem", "backend", "n", "solver", "iterations", "products", "time [ms]", "error", "status"]
    heads += ["ratio", "quartiles", "to", "target", "met"]
    cells = [
        [
            *(r.problem, r.backend, f"{r.n:,}", r.solver, f"{r.iterations:,}"),
            "-" if r.products is None else f"{r.products:,}",
            *(f"{r.ms:.3f}", f"{r.error:.0e}", r.status),
            "-" if r.share is None else f"{r.share:.3f}",
            "-" if r.quartiles is None else f"{r.quartiles[0]:.2f}-{r.quartiles[1]:.2f}",
            *(r.against or "-", "-" if r.target is None else f"<= {r.target}"),
            "MISSED" if r.target is not None and r.share is None else word(r.met),
        ]
        for r in rows
    ]
    return heads, cells


def crossing_table(rows: Sequence[Crossing]) -> tuple[list[str], list[list[str]]]:
    heads = ["backend", "iterations are", "n", "iterations", "Direct [ms]", "CG [ms]", "Direct / CG", "quartiles"]
    heads += ["pairs", "Auto [ms]", "Auto / better"]
    cells = [
        [
            *(r.backend, r.kind, str(r.n), f"{r.iterations:,}", f"{r.direct_ms:.3f}", f"{r.cg_ms:.3f}"),
            *(f"{r.ratio:.2f}", f"{r.quartiles[0]:.2f}-{r.quartiles[1]:.2f}", str(r.pairs)),
            *(f"{r.auto_ms:.3f}", f"{r.auto_ratio:.2f}"),
        ]
        for r in rows
    ]
    return heads, cells


def verdict(cells: Sequence[Sequence[str]]) -> str:
    judged = [line[-1] for line in cells if line[-1] != "-"]
    return f"{judged.count('yes')} of {len(judged)} targets met"


def write(out: Path, command: str, host: dict[str, str], rows: Sequence[Row], crossings: Sequence[Crossing]) -> None:
    """Write linear.md and linear.json."""
    record = {
        "command": command,
        "machine": host,
        "measured": MEASURED,
        "solvers": [{**asdict(r), "met": r.met} for r in rows],
        "measured_crossover": MEASURED_CROSSING,
        "crossover": [asdict(r) for r in crossings],
    }
    heads, cells = row_table(rows)
    parts = [
        "# Linear solvers and preconditioners",
        f"`{command}`",
        described(host) + ".",
        "## Solvers",
        MEASURED,
        markdown(heads, cells),
        verdict(cells) + ".",
        "## Crossover",
        MEASURED_CROSSING,
        markdown(*crossing_table(crossings)),
    ]
    write_results(out, "linear", parts, record)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where linear.md and linear.json go.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small systems, few repetitions.")] = False,
    backends: Annotated[str, typer.Option(metavar="NAMES", help="Which to measure.")] = ",".join(BACKENDS),
) -> None:
    """Measure the linear solvers on the systems of layers, and where a dense solve pays."""
    chosen = chosen_backends(backends)
    os.environ.update(ONE_THREAD)
    console, host = Console(), machine()
    command = shlex.join(["python", "benchmarks/linear.py", *sys.argv[1:]])
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        job = progress.add_task("")

        def show_progress(what: str) -> None:
            progress.update(job, description=what)

        crossings = list(measure_crossings(chosen, quick, show_progress))
        rows = list(measure_all(chosen, quick, show_progress))
        show_progress("done")
    heads, cells = row_table(rows)
    console.print(f"{command}\n{described(host)}\n", highlight=False)
    console.print(MEASURED, highlight=False)
    show(console, "solvers", heads, cells)
    console.print(f"{verdict(cells)}\n\n{MEASURED_CROSSING}", highlight=False)
    show(console, "crossover", *crossing_table(crossings))
    if out is not None:
        write(out, command, host, rows, crossings)


if __name__ == "__main__":
    app()
