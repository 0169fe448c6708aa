"""Large roots and their gradients beside SciPy's sparse matrices by hand, newton_krylov, and single Krylov solvers.

    python benchmarks/large.py --out docs/results

It needs SciPy; torch and JAX run where they are installed.
"""

from __future__ import annotations

import os
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
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
    one_thread,
    relative,
    show,
    word,
)
from _large_problems import PROBLEMS, Problem, bratu, ops
from _results import commands_of, earlier, write_results

SPARSE, DEFAULT = "SparseDirect", "default"
SMALL = 10_000
"""The unknowns up to which twice the time by hand is allowed; above, 1.5 times."""
JIT = 3.0
"""The share that is allowed under `jax.jit`."""
KRYLOV = 1.5
"""The share of newton_krylov, and of the best single Krylov solver, that the default may take."""
CLOSE = 1e-8
"""The difference of the gradient from the adjoint by hand that is allowed, relative to its norm."""
NEAR = 1e-10
"""The residual that newton_krylov is asked for, relative to the largest at the start."""
LONGEST = 2_000
"""The iterations after which a Krylov solver counts as failed."""
SIZES = (50, 100, 200, 300, 400, 500)
"""The sides of the squares of the sweep."""

MEASURED = (
    "u solves F(u; k) = 0 from u = 0, and the gradient is that of sum(u) in the field k. By hand: Newton's method with "
    "scipy.sparse.linalg.splu until a step is below 1e-10 of u, and one solve with the transpose. 'SparseDirect' is "
    "`dil.root(F, Newton(linear_solver=s), linear_solver=s)` with s = `SparseDirect(pattern)`; 'default' is "
    "`dil.root(F, Newton())`, whose forward pass stands beside scipy.optimize.newton_krylov (to 1e-10 of the residual "
    "at the start), and whose backward pass beside the fastest of CG, MINRES, BiCGSTAB, GMRES, IDR(4) and IDR(8) that "
    f"converges in {LONGEST:,} iterations. The backward pass starts from a solution that is given; under `jax.jit` it "
    "holds that solution too. "
    "Each pair runs in turn on one core; processor time, the median of the ratios, and a ratio below one where dil "
    "is the faster one. The first call, which compiles and finds the pattern, is not counted. dil keeps the last "
    "factors, so a pass that is repeated at one point does not factorise again, as the code by hand does: the first "
    "backward pass after a forward one is the nearest to that (see the sweep). 'error': of the solution or the "
    "gradient, relative to that by hand."
)


@dataclass(frozen=True)
class Row:
    """One pass beside its reference."""

    problem: str
    unknowns: int
    backend: str
    way: str
    stage: str
    ms: float
    beside: str
    ratio: float
    limit: float
    error: float
    status: str
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.ratio <= self.limit and self.error <= CLOSE and self.status == "CONVERGED"


# --- this runs in a worker -------------------------------------------------------------------------------------------


def by_hand(p: Problem) -> Any:
    """Return u by Newton's method."""
    from scipy.sparse.linalg import splu

    u = np.zeros(p.unknowns)
    for _ in range(50):
        step = splu(p.J(u, p.k)).solve(p.F(u, p.k))
        u = u - step
        if np.linalg.norm(step) <= 1e-10 * np.linalg.norm(u):
            return u
    message = f"Newton's method by hand does not converge on {p.name}"
    raise RuntimeError(message)


def adjoint(p: Problem, u: Any) -> Any:
    """Return the gradient of sum(u) in k."""
    from scipy.sparse.linalg import splu

    return -p.pull(u, p.k, splu(p.J(u, p.k)).solve(np.ones(p.unknowns), trans="T"))


def newton_krylov(p: Problem) -> Any:
    """Return u by SciPy's Newton-Krylov solver, or None if it fails."""
    from scipy.optimize import NoConvergence
    from scipy.optimize import newton_krylov as solve

    start = np.zeros(p.unknowns)
    try:
        return solve(lambda u: p.F(u, p.k), start, f_tol=NEAR * float(np.max(np.abs(p.F(start, p.k)))))
    except NoConvergence:
        return None


@dataclass(frozen=True)
class Layers:
    """The layers of one problem on one backend, with the field as its array."""

    k: Any
    solve: Callable[[], Any]
    """The forward pass. Returns a Solution."""
    backward: Callable[[], Any]
    """The gradient at the solution that is given."""
    status: Callable[[], str]
    """How the linear solve of the backward pass ended."""


def layers(p: Problem, backend: str, u: Any, linear: Any, newton: Any) -> Layers:
    """Return what is measured. `u` is the solution."""
    import dil

    one_thread(backend)
    framework, op = dil.backend(backend), ops(backend)
    k, known = framework.asarray(p.k), framework.asarray(u)
    ones = framework.asarray(np.ones(p.unknowns))
    start = framework.asarray(np.zeros(p.unknowns))
    options: dict[str, Any] = {} if linear is None else {"linear_solver": linear}

    def F(u: Any, k: Any) -> Any:
        return p.residual(op, u, k)

    forward = dil.root(F, newton, init=lambda _: start, **options)
    # a solver that is too slow is left out by its gradient
    options["on_failure"] = "ignore"
    layer = dil.root(F, lambda fun, init, *args: known, init=lambda _: start, **options)

    def status() -> str:
        report = layer.report(k)
        return "no backward pass" if report.backward is None else dil.Status(int(report.backward.status)).name

    if backend == "jax":
        import jax

        solve = jax.jit(lambda k: tuple(forward.solve(k))[:2])
        gradient = jax.jit(lambda k: dil.vjp(layer, k)[1](ones)[0])
        return Layers(k, lambda: jax.block_until_ready(solve(k)), lambda: gradient(k).block_until_ready(), status)
    pull = dil.vjp(layer, k)[1]
    return Layers(k, lambda: forward.solve(k), lambda: pull(ones)[0], status)


def measured(name: str, backend: str, way: str, seconds: float) -> list[dict[str, Any]]:
    """Time both passes of a way beside their references."""
    one_core()
    if backend == "jax":
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)  # one core would wait for its own callback
    import dil

    p = PROBLEMS[name]()
    u = by_hand(p)
    linear = dil.linear.SparseDirect(p.J(u, p.k)) if way == SPARSE else None
    newton = dil.solvers.Newton() if linear is None else dil.solvers.Newton(linear_solver=linear)
    built = layers(p, backend, u, linear, newton)
    value, status = tuple(built.solve())[:2]
    gradient = built.backward()
    limit = JIT if backend == "jax" else 2.0 if p.unknowns <= SMALL else 1.5
    common = {"problem": p.name, "unknowns": p.unknowns, "backend": backend, "way": way}
    if way == SPARSE:
        pairs = (("by hand", partial(by_hand, p), limit), ("by hand", partial(adjoint, p, u), limit))
        note = ("", "")
    else:
        found = newton_krylov(p)
        error = float("inf") if found is None else relative(found, u)
        best, call = fastest(p, backend, u)
        pairs = (("newton_krylov", partial(newton_krylov, p), KRYLOV), (best, call, KRYLOV))
        note = (f"error of newton_krylov {error:.0e}", "")
    rows = []
    for stage, run, (beside, reference, most), error, ended, text in zip(
        ("forward", "backward"),
        (built.solve, built.backward),
        pairs,
        (relative(value, u), relative(gradient, adjoint(p, u))),
        (dil.Status(int(status)).name, built.status()),
        note,
        strict=True,
    ):
        ms, ratio = timed(run, reference, seconds)
        times = {"ms": ms, "beside": beside, "ratio": ratio, "limit": most}
        rows.append({**common, "stage": stage, **times, "error": error, "status": ended, "note": text})
    return rows


def fastest(p: Problem, backend: str, u: Any) -> tuple[str, Callable[[], Any]]:
    """Return the Krylov solver with the fastest backward pass that is right, and its call."""
    import dil

    exact, found = adjoint(p, u), []
    linear = dil.linear
    most = {"max_iter": LONGEST}
    kinds = (linear.CG, linear.MINRES, linear.BiCGSTAB, linear.GMRES, partial(linear.IDR, 4), partial(linear.IDR, 8))
    for solver in (kind(**most) for kind in kinds):
        call = layers(p, backend, u, solver, dil.solvers.Newton()).backward
        start = time.process_time()
        gradient = call()
        spent = time.process_time() - start
        if relative(gradient, exact) <= CLOSE:
            name = type(solver).__name__ + (f"({solver.s})" if isinstance(solver, linear.IDR) else "")
            found.append((spent, name, call))
    if not found:
        return "none converges", lambda: time.sleep(0)
    _, name, call = min(found, key=lambda f: f[0])
    return name, call


def timed(call: Callable[[], Any], reference: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Return the milliseconds of a call, and its time over that of the reference, medians of rounds."""
    start = time.perf_counter()
    call()
    long = time.perf_counter() - start > seconds
    rounds = in_turn([call, reference], seconds, 2 if long else 5, warm=0 if long else 2)
    milliseconds = 1e3 * statistics.median(a.cpu for a, _ in rounds)
    return milliseconds, statistics.median(a.cpu / max(b.cpu, 1e-9) for a, b in rounds)


def of_size(n: int, backend: str) -> dict[str, Any]:
    """Return the seconds and the memory of Bratu's equation and its gradient on n x n points: by hand, or by dil."""
    one_core()
    p = bratu(n)
    if backend == "by hand":

        def run() -> Any:
            return adjoint(p, by_hand(p))
    else:
        import dil

        one_thread(backend)
        solver = dil.linear.SparseDirect(p.J(np.zeros(p.unknowns), p.k))
        framework, op = dil.backend(backend), ops(backend)
        k, ones = framework.asarray(p.k), framework.asarray(np.ones(p.unknowns))
        newton = dil.solvers.Newton(linear_solver=solver)
        layer = dil.root(lambda u, k: p.residual(op, u, k), newton, init=lambda k: 0 * k, linear_solver=solver)

        def run() -> Any:
            return dil.vjp(layer, k)[1](ones)[0]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    run()
    first = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    start = time.process_time()
    run()
    return {"n": n, "way": backend, "first": first, "seconds": time.process_time() - start, "megabytes": memory / 1024}


# --- the parent -----------------------------------------------------------------------------------------------------

HEADS = ["problem", "unknowns", "backend", "way", "pass", "ms", "beside", "ratio", "limit", "error", "status", "met"]
SWEEP_HEADS = ["points", "way", "s", "first call, s", "MB"]


def cells(rows: list[Row]) -> list[list[str]]:
    """Return the lines of the table."""
    return [
        [
            row.problem,
            f"{row.unknowns:,}",
            row.backend,
            row.way,
            row.stage,
            f"{row.ms:,.1f}",
            row.beside,
            f"{row.ratio:.2f}",
            f"{row.limit:g}",
            f"{row.error:.0e}",
            row.status,
            word(row.met),
        ]
        for row in rows
    ]


def cells_of_sweep(sweep: list[dict[str, Any]]) -> list[list[str]]:
    """Return the lines of the table of the sweep."""
    return [
        [f"{r['n']} x {r['n']}", r["way"], f"{r['seconds']:.2f}", f"{r['first']:.2f}", f"{r['megabytes']:.0f}"]
        for r in sweep
    ]


def main(
    out: Annotated[Path | None, typer.Option(help="Directory for large.md and large.json.")] = None,
    backends: Annotated[str, typer.Option(help="Backends, comma-separated.")] = ",".join(BACKENDS),
    only: Annotated[str, typer.Option(help="Problems, comma-separated; all by default.")] = "",
    ways: Annotated[str, typer.Option(help="Ways, comma-separated.")] = f"{SPARSE},{DEFAULT}",
    seconds: Annotated[float, typer.Option(min=0.0, help="Seconds for each pair.")] = 3.0,
    largest: Annotated[int, typer.Option(min=0, help="The largest side of the sweep; 0 leaves it out.")] = SIZES[-1],
    note: Annotated[str, typer.Option(help="What to say about the conditions of the run.")] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the rows of earlier runs that this one lacks.")] = False,
) -> None:
    """Compare large roots and their gradients with sparse matrices by hand."""
    os.environ.update(ONE_THREAD)
    chosen = [b for b in chosen_backends(backends) if find_spec(b) is not None]
    if unknown := sorted(set(ways.split(",")) - {SPARSE, DEFAULT}):
        message = f"unknown way {unknown[0]!r}; expected some of {SPARSE}, {DEFAULT}"
        raise typer.BadParameter(message)
    names = only.split(",") if only else list(PROBLEMS)
    if unknown := sorted(set(names) - set(PROBLEMS)):
        message = f"unknown problem {unknown[0]!r}; expected some of {', '.join(PROBLEMS)}"
        raise typer.BadParameter(message)
    # the default is measured on the first backend alone: its solvers are the same on all
    kinds = [(b, way) for b in chosen for way in ways.split(",") if way == SPARSE or b == chosen[0]]
    plan = [(name, *kind) for name in names for kind in kinds]
    sides = [n for n in SIZES if n <= largest]
    before = earlier(out, "large", keep=keep)
    commands = commands_of(before, shlex.join(["python", "benchmarks/large.py", *sys.argv[1:]]))
    measured_now = {(PROBLEMS[name]().name, *kind) for name, *kind in plan}
    rows = [
        Row(**{key: value for key, value in row.items() if key != "met"})
        for row in before.get("rows", [])
        if (row["problem"], row["backend"], row["way"]) not in measured_now
    ]
    sweep = [row for row in before.get("sweep", []) if row["n"] not in sides]
    console = Console(stderr=True)
    with Fresh(every_time=True) as fresh:
        for name, backend, way in track(plan, description="problems", console=console):
            rows += [Row(**found) for found in fresh(measured, name, backend, way, seconds)]
            write(out, rows, sweep, commands, note)  # a run that is cut short leaves what was measured
        runs = [(n, who) for n in sides for who in ("by hand", *(b for b in chosen if b != "jax"))]
        for n, way in track(runs, description="sweep", console=console):
            sweep.append(fresh(of_size, n, way))
            write(out, rows, sweep, commands, note)
    show(Console(), "large roots", HEADS, cells(rows))
    show(Console(), "Bratu's equation and its gradient", SWEEP_HEADS, cells_of_sweep(sweep))


def write(out: Path | None, rows: list[Row], sweep: list[dict[str, Any]], commands: list[str], note: str) -> None:
    """Write the tables so far, if a directory is given."""
    if out is None:
        return
    host = machine()
    tables = [markdown(HEADS, cells(rows))]
    if sweep:
        tables += ["Forward and backward of Bratu's equation, a fresh process each:"]
        tables += [markdown(SWEEP_HEADS, cells_of_sweep(sweep))]
    parts = ["# Large roots", *(f"`{command}`" for command in commands), described(host), MEASURED]
    parts += [*([note] if note else []), *tables]
    record = {"command": "\n".join(commands), "machine": host, "measured": MEASURED, "note": note, "sweep": sweep}
    write_results(out, "large", parts, {**record, "rows": [{**asdict(r), "met": r.met} for r in rows]})


if __name__ == "__main__":
    typer.run(main)
