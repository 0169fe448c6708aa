"""The backward pass of a layer with the defaults of dil, beside other libraries with their defaults.

    pip install jaxopt optimistix torchopt xitorch
    python benchmarks/peers.py --out docs/results

The problems are quadratic, so the solution and the gradient are known. Each library gets the solution, and computes the
gradient of <v, y> with respect to a parameter of the score. The libraries run in turn, and the ratio of times is taken
for each round. A library that is not installed is left out.
"""

from __future__ import annotations

import os
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from _common import ONE_THREAD, Fresh, described, in_turn, lap, machine, markdown, one_core, one_thread, word
from _results import write_results

SIZES = (100, 1_000, 10_000, 100_000)
CONDITIONS = (10.0, 1e4, 1e6)
ACCURATE = 1e-2
"""A gradient with a larger relative error is not counted."""
LONGEST = 20.0
"""A library that takes more seconds than this for one pass is not timed again."""
MOST_DENSE = 1_000
"""The most unknowns for which optimistix, which builds the Jacobian, is tried."""


@dataclass(frozen=True)
class Row:
    """One problem through one library."""

    problem: str
    framework: str
    n: int
    condition: float
    library: str
    ms: float
    error: float
    """Of the gradient, relative to its norm."""
    ratio: float | None = None
    """The time of dil over that of the library, the median of rounds."""
    quartiles: tuple[float, float] | None = None


# --- the problems ----------------------------------------------------------------------------------------------------


def spectrum(problem: str, n: int, condition: float) -> Any:
    """Return the eigenvalues of the Hessian: scales spread evenly, or a few that are far from the others."""
    if problem == "scales":
        return np.random.default_rng(0).permutation(np.geomspace(1.0, condition, n))
    few = min(50, n // 4)
    rest = 1 + min(1.0, condition - 1) * np.random.default_rng(0).random(n - few)
    return np.concatenate([np.geomspace(condition**0.5, condition, few), rest])


def product(problem: str, d: Any, mirror: Any, p: Any) -> Any:
    """Return H p, with springs between neighbours, or in the basis of a reflection."""
    if problem == "scales":
        stretch = np.diff(p, prepend=p[:1], append=p[-1:])
        return d * p + 0.5 * (stretch[:-1] - stretch[1:])
    q = p - 2 * mirror * (mirror @ p)
    q = d * q
    return q - 2 * mirror * (mirror @ q)


def score(problem: str, u: Any, t: Any, d: Any, mirror: Any) -> Any:
    """Return 1/2 <u, H u> - <t, u>."""
    if problem == "scales":
        stretch = u[1:] - u[:-1]
        return 0.5 * ((d * u) @ u) + 0.25 * (stretch @ stretch) - t @ u
    q = u - 2 * mirror * (mirror @ u)
    return 0.5 * ((d * q) @ q) - t @ u


@dataclass(frozen=True)
class Problem:
    """A score, its minimum y at t = H y, a cotangent v = H g, and the gradient g of <v, y> in t; NumPy's arrays."""

    name: str
    d: Any
    mirror: Any
    y: Any
    t: Any
    v: Any
    g: Any

    @staticmethod
    def make(name: str, n: int, condition: float) -> Problem:
        """Return a problem."""
        rng = np.random.default_rng(1)
        d, mirror = spectrum(name, n, condition), rng.standard_normal(n)
        mirror /= np.linalg.norm(mirror)
        y, g = rng.standard_normal(n), rng.standard_normal(n)
        return Problem(name, d, mirror, y, product(name, d, mirror, y), product(name, d, mirror, g), g)


# --- the libraries ---------------------------------------------------------------------------------------------------


def torch_calls(problem: Problem) -> dict[str, Callable[[], Any]]:
    """Return the backward pass of each library on torch."""
    import torch

    import dil

    one_thread("torch")
    d, mirror, y, v = (torch.asarray(x) for x in (problem.d, problem.mirror, problem.y, problem.v))
    t = torch.asarray(problem.t).requires_grad_()

    def fn(u: Any, t: Any) -> Any:
        return score(problem.name, u, t, d, mirror)

    def gradient(out: Any) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(out, t, v, retain_graph=True)[0]

    layer = dil.argmin(fn, lambda score, init, t: y, init=y, on_failure="ignore")
    calls = {"dil": gradient(layer(t)), "by hand, CG": lambda: torch_by_hand(fn, y, t, v)}
    try:
        import torchopt

        for name in ("solve_normal_cg", "solve_cg"):
            solve = getattr(torchopt.linear_solve, name)()
            decorated = torchopt.diff.implicit.custom_root(torch.func.grad(fn), argnums=1, solve=solve)(
                lambda u, t: y.clone()
            )
            calls[f"torchopt, {name}"] = gradient(decorated(y, t))
    except ImportError:
        pass
    try:
        from xitorch.optimize import minimize

        calls["xitorch"] = gradient(minimize(fn, y, params=(t,), maxiter=1, verbose=False))
    except ImportError:
        pass
    return calls


def torch_by_hand(fn: Callable[..., Any], y: Any, t: Any, v: Any) -> Any:
    """Return the gradient by the paper's Algorithm 1."""
    import torch

    from _hand import conjugate_gradients

    u = y.detach().requires_grad_()
    slope = torch.autograd.grad(fn(u, t), u, create_graph=True)[0]
    g, _ = conjugate_gradients(
        lambda p: torch.autograd.grad(slope, u, p, retain_graph=True)[0], v, 1.8e-12, 10 * len(y)
    )
    return -torch.autograd.grad(slope, t, g)[0]


def jax_calls(problem: Problem) -> dict[str, Callable[[], Any]]:
    """Return the compiled backward pass of each library on JAX."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp

    import dil

    d, mirror, y, v, t = (jnp.asarray(x) for x in (problem.d, problem.mirror, problem.y, problem.v, problem.t))

    def fn(u: Any, t: Any) -> Any:
        return score(problem.name, u, t, d, mirror)

    def compiled(run: Callable[[Any], Any]) -> Callable[[], Any]:
        program = jax.jit(lambda t, v: jax.vjp(run, t)[1](v)[0])
        return lambda: jax.block_until_ready(program(t, v))

    layer = dil.argmin(fn, lambda score, init, t: y, init=y, on_failure="ignore")
    calls = {"dil": compiled(layer)}
    try:
        import jaxopt

        root = jaxopt.implicit_diff.custom_root(jax.grad(fn))
        calls["jaxopt"] = compiled(lambda t: root(lambda init, t: y)(None, t))
        cg = jaxopt.implicit_diff.custom_root(jax.grad(fn), solve=jaxopt.linear_solve.solve_cg)
        calls["jaxopt, solve_cg"] = compiled(lambda t: cg(lambda init, t: y)(None, t))
    except ImportError:
        pass
    if problem.y.size <= MOST_DENSE:
        try:
            import optimistix

            newton = optimistix.Newton(rtol=1e-8, atol=1e-8)
            calls["optimistix"] = compiled(
                lambda t: optimistix.root_find(lambda u, t: jax.grad(fn)(u, t), newton, y, t, throw=False).value
            )
        except ImportError:
            pass
    return calls


FRAMEWORKS = {"torch": torch_calls, "jax": jax_calls}


def measure(framework: str, name: str, n: int, condition: float, seconds: float) -> list[Row]:
    """Run the backward pass of each library in turn with that of dil."""
    problem = Problem.make(name, n, condition)
    calls, rows = FRAMEWORKS[framework](problem), []
    for library, call in calls.items():
        found = call()
        error = float(np.linalg.norm(np.asarray(found) - problem.g) / np.linalg.norm(problem.g))
        error = error if np.isfinite(error) else 1e300
        first = lap(call, 1)
        ratio = quartiles = None
        if library != "dil" and first.wall < LONGEST:
            rounds = in_turn((call, calls["dil"]), seconds, 3 if first.wall > 1 else 5, 0 if first.wall > 1 else 1)
            low, ratio, high = statistics.quantiles([b.cpu / max(a.cpu, 1e-9) for a, b in rounds], n=4)
            quartiles = (low, high)
            first = first._replace(cpu=statistics.median(a.cpu for a, _ in rounds))
        rows.append(Row(name, framework, n, condition, library, 1e3 * first.cpu, error, ratio, quartiles))
    return rows


# --- running and telling ---------------------------------------------------------------------------------------------

MEASURED = (
    "Backward passes of quadratic problems with a known gradient, in float64: 'scales': a diagonal from 1 to the "
    "condition number, with springs between neighbours; 'few': up to 50 large eigenvalues over a floor of 1 to 2,"
    " in the basis of a reflection. Each library has its own default solver and tolerance, so the errors differ; "
    "torchopt and jaxopt are shown with CG, too. 'by hand': the paper's Algorithm 1. optimistix builds the "
    "Jacobian, and is tried up to 1,000 unknowns. Times are medians of the processor's; JAX is compiled, and "
    "compilation excluded. 'ratio': the time of dil over that of the library, in turn, with quartiles."
)


def targets(rows: list[Row]) -> Iterator[tuple[list[Row], Row, float, float]]:
    """Yield the rows of each problem, with the best peer that is accurate, the ratio to it and the target."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.problem, row.framework, row.n, row.condition), []).append(row)
    for group in groups.values():
        peers = [r for r in group if r.library != "dil" and r.error <= ACCURATE and r.ratio is not None]
        if peers:
            best = min(peers, key=lambda r: r.ms)
            yield group, best, best.ratio or 0.0, 0.1 if group[0].condition >= 1e6 else 1.1


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    heads = ["problem", "framework", "n", "condition", "library", "time [ms]", "error", "ratio", "quartiles"]
    heads += ["target", "met"]
    best = {id(peer): (ratio, target) for _, peer, ratio, target in targets(rows)}
    cells = []
    for r in rows:
        ratio, target = best.get(id(r), (None, None))
        met = None if ratio is None or target is None else ratio <= target
        cells.append(
            [
                *(r.problem, r.framework, f"{r.n:,}", f"{r.condition:.0e}", r.library),
                *(f"{r.ms:.2f}", "wrong" if r.error > 1e100 else f"{r.error:.0e}"),
                "-" if r.ratio is None else f"{r.ratio:.2f}",
                "-" if r.quartiles is None else f"{r.quartiles[0]:.2f}-{r.quartiles[1]:.2f}",
                "-" if target is None else f"<= {target}",
                word(met),
            ]
        )
    return heads, cells


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where peers.md and peers.json go.")] = None,
    seconds: Annotated[float, typer.Option(help="How long each pair of libraries runs.")] = 0.5,
    sizes: Annotated[str, typer.Option(help="The numbers of unknowns.")] = ",".join(map(str, SIZES)),
    frameworks: Annotated[str, typer.Option(help="Which to measure.")] = "torch,jax",
) -> None:
    """Time the backward pass of dil's defaults beside that of other libraries."""
    os.environ.update(ONE_THREAD)
    one_core()
    console, host, rows = Console(), machine(), []
    command = shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]])
    with Fresh(every_time=False) as run:
        for framework in frameworks.split(","):
            for n in map(int, sizes.split(",")):
                for name in ("scales", "few"):
                    for condition in CONDITIONS:
                        rows += run(measure, framework, name, n, condition, seconds)
                        console.print(f"{framework}, {n:,}, {name}, {condition:.0e}")
    heads, cells = table(rows)
    verdict = f"{sum(c[-1] == 'yes' for c in cells)} of {sum(c[-1] != '-' for c in cells)} targets met."
    parts = ["# The backward pass beside other libraries", f"`{command}`", described(host) + ".", MEASURED]
    parts += [markdown(heads, cells), verdict]
    console.print(markdown(heads, cells))
    console.print(verdict)
    if out is not None:
        write_results(out, "peers", parts, {"command": command, "machine": host, "rows": [asdict(r) for r in rows]})


if __name__ == "__main__":
    app()
