"""Layers of dil in JAX beside those of jaxopt and optimistix: compile time, time of a call, size of the program.

    pip install jaxopt optimistix
    python benchmarks/jax_peers.py --out docs/results

Each library computes the value and the gradient of the same loss through the same problem, in float64. The times to
trace, lower and compile come from fresh processes. Compiled calls run in turn in one process, and the ratio to the best
peer is taken for each round. A second call of `jax.grad` without `jit` shows what is compiled anew.
"""

from __future__ import annotations

import os
import shlex
import statistics
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from _common import ONE_THREAD, Fresh, described, in_turn, machine, markdown, one_core, version, word
from _results import write_results

PROBLEMS = ("logistic", "root", "fixed point", "batch")
PEERS = ("jaxopt", "optimistix")
DEFAULTS = ("dil, LBFGS", "dil, Newton", "dil, Anderson")
"""The layers with the defaults of dil, to which the targets apply."""
EQUATIONS, LOOPS, EAGER_MS = 800, 3, 10.0
"""The targets for the logistic problem."""


@dataclass(frozen=True)
class Row:
    """One problem through one library."""

    problem: str
    library: str
    equations: int
    loops: int
    trace_s: float
    compile_s: float
    eager_ms: float
    error: float
    """The largest relative difference of the gradient from that of dil with Newton's method or its only solver."""
    call_ms: float = 0.0
    ratio: float = 0.0
    """The time of a call over that of the best peer, the median of rounds."""
    quartiles: tuple[float, float] = (0.0, 0.0)


# --- this runs in workers --------------------------------------------------------------------------------------------


def started() -> Any:
    """Return JAX, in float64."""
    import jax

    jax.config.update("jax_enable_x64", True)
    return jax


def compiled(name: str, library: str) -> dict[str, Any]:
    """Trace and compile in a fresh process, and time a second eager gradient."""
    jax = started()
    from _jax_peers import loss, problem

    found = problem(name)
    function = loss(found.losses[library]())
    program = jax.jit(jax.value_and_grad(function))
    begin = time.perf_counter()
    lowered = program.lower(found.point)
    middle = time.perf_counter()
    lowered.compile()
    end = time.perf_counter()
    count = counted(jax.make_jaxpr(jax.value_and_grad(function))(found.point).jaxpr)
    eager, other = jax.grad(function), jax.block_until_ready(found.point + 0.01)
    jax.block_until_ready(eager(found.point))
    again = time.perf_counter()
    jax.block_until_ready(eager(other))
    return {
        "equations": sum(count.values()),
        "loops": count["while"] + count["scan"],
        "trace_s": middle - begin,
        "compile_s": end - middle,
        "eager_ms": 1e3 * (time.perf_counter() - again),
    }


def counted(jaxpr: Any) -> Counter[str]:
    """Count the equations of a program by their primitive, those of inner programs too."""
    count: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        count[equation.primitive.name] += 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    count += counted(inner)
    return count


def called(name: str, seconds: float) -> dict[str, dict[str, Any]]:
    """Time compiled calls of all libraries in turn, on one core."""
    one_core()
    jax = started()
    import numpy as np

    from _jax_peers import loss, problem

    found = problem(name)
    programs = {key: jax.jit(jax.value_and_grad(loss(make()))) for key, make in found.losses.items()}
    gradients = {key: np.asarray(program(found.point)[1]) for key, program in programs.items()}
    calls = [lambda program=program: jax.block_until_ready(program(found.point)) for program in programs.values()]
    rounds = in_turn(calls, seconds, 10)
    names = list(programs)
    right = gradients[next(key for key in reversed(names) if key in DEFAULTS)]
    peers = [i for i, key in enumerate(names) if not key.startswith("dil")]
    medians = [statistics.median(r[i].cpu for r in rounds) for i in range(len(names))]
    best = min(peers, key=lambda i: medians[i])
    rows = {}
    for i, key in enumerate(names):
        low, ratio, high = statistics.quantiles([r[i].cpu / r[best].cpu for r in rounds], n=4)
        error = float(np.abs(gradients[key] - right).max() / np.abs(right).max())
        rows[key] = {"call_ms": 1e3 * medians[i], "ratio": ratio, "quartiles": (low, high), "error": error}
    return rows


def libraries(name: str) -> list[str]:
    """Return the names of the libraries that solve a problem."""
    started()
    from _jax_peers import problem

    return list(problem(name).losses)


# --- the command -----------------------------------------------------------------------------------------------------


def measured(name: str, seconds: float) -> list[Row]:
    """Return the rows of one problem."""
    with Fresh(every_time=True) as fresh:
        calls = fresh(called, name, seconds)
        return [Row(name, key, **fresh(compiled, name, key), **calls[key]) for key in fresh(libraries, name)]


def cells(rows: list[Row]) -> list[list[str]]:
    """Return the cells of the table."""
    return [
        [
            row.problem,
            row.library,
            str(row.equations),
            str(row.loops),
            f"{row.trace_s:.1f}",
            f"{row.compile_s:.1f}",
            f"{row.call_ms:.3f}",
            f"{row.ratio:.2f} ({row.quartiles[0]:.2f} to {row.quartiles[1]:.2f})",
            f"{row.eager_ms:.1f}",
            f"{row.error:.0e}",
        ]
        for row in rows
    ]


HEADS = (
    "problem",
    "library",
    "equations",
    "loops",
    "trace, s",
    "compile, s",
    "call, ms",
    "call / best peer",
    "eager, ms",
    "error",
)


def targets(rows: list[Row]) -> list[list[str]]:
    """Return what was to be reached, and what was."""
    found = []

    def target(row: Row, what: str, value: float, limit: float) -> None:
        found.append([row.problem, row.library, what, f"{value:.4g}", f"{limit:.4g}", word(value <= limit)])

    for name in dict.fromkeys(row.problem for row in rows):
        ours = [row for row in rows if row.problem == name and row.library in DEFAULTS]
        peer = next(row for row in rows if row.problem == name and row.library.startswith("optimistix"))
        for row in ours:
            target(row, "trace + compile, s", row.trace_s + row.compile_s, peer.trace_s + peer.compile_s)
            target(row, "call / best peer", row.ratio, 1.0)
            target(row, "eager, ms", row.eager_ms, EAGER_MS)
        if name == "logistic":
            target(ours[0], "equations", ours[0].equations, EQUATIONS)
            target(ours[0], "loops", ours[0].loops, LOOPS)
    return found


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(help="Folder for jax_peers.md and jax_peers.json.")] = None,
    seconds: Annotated[float, typer.Option(help="Seconds for the calls of one problem.")] = 10.0,
    problems: Annotated[str, typer.Option(help="Names of problems, with commas.")] = ",".join(PROBLEMS),
) -> None:
    """Measure layers of dil in JAX beside those of jaxopt and optimistix."""
    os.environ.update(ONE_THREAD)
    console = Console()
    rows: list[Row] = []
    for name in problems.split(","):
        rows += measured(name, seconds)
        console.print(markdown(HEADS, cells(rows)))
    command = shlex.join(["python", *sys.argv])
    host = {**machine(), **{peer: version(peer) for peer in PEERS}}
    parts = [
        "# Layers in JAX beside jaxopt and optimistix",
        f"Written by `{command}`. {described(host)}. One thread.",
        "Value and gradient of the sum of squares of the solution. 'logistic' has 31 unknowns and 569 rows, 'root' and "
        "'fixed point' 20 unknowns, 'batch' 64 logistic problems of 5 unknowns under `jax.vmap`. Equations and loops "
        "are those of the traced program, inner ones included. 'eager' is the second call of `jax.grad` without "
        "`jit`. 'call / best peer' is the median over rounds, and its quartiles. The peers have a tolerance of 1e-8, "
        "dil its default; 'error' is the difference of the gradient from that of the last default solver "
        "of dil. 'unchecked' is a layer with `on_failure='ignore'` and one linear solver (`CG` or `BiCGSTAB`) in the "
        "place of `Auto`: the compiler then drops the checks of the gradient, but not those of the solver. Calls run "
        "on one core.",
        markdown(HEADS, cells(rows)),
        "## Targets",
        markdown(("problem", "library", "what", "found", "at most", "reached"), targets(rows)),
    ]
    if out is not None:
        write_results(out, "jax_peers", parts, {"host": host, "command": command, "rows": [asdict(r) for r in rows]})
    else:
        console.print(parts[-1])


if __name__ == "__main__":
    app()
