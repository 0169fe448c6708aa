"""Cost of a batch: the backward pass of 256 problems with 50 unknowns, by conjugate gradients.

    python benchmarks/batched.py --out docs/results

torch: a layer with `batch_ndim=1` is compared with a Python loop over single problems, written by hand or with a layer.
JAX: the layer is compared with `jax.vmap` of a single solve written by hand. The versions run in turn, and the ratio of
times is taken for each pair.
"""

from __future__ import annotations

import os
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from _common import (
    ONE_THREAD,
    Fresh,
    chosen_backends,
    described,
    in_turn,
    machine,
    markdown,
    one_thread,
    relative,
    show,
    word,
)
from _results import write_results

PROBLEMS = 256
SIZE = 50
BATCHED = ("torch", "jax")
CASES = ("network", "chain")
FASTER = 30.0
"""On torch, how many times faster than a loop a batch must be."""
NO_SLOWER = 1.0
"""On JAX, the least ratio within the spread must not be above."""


@dataclass(frozen=True)
class Row:
    """One way against the layer with batch_ndim=1, by the processor's time."""

    backend: str
    score: str
    against: str
    iterations: int
    """Of the problem that takes the most."""
    other_ms: float
    layer_ms: float
    ratio: tuple[float, float, float]
    """Quartiles over the pairs: the other way over the layer on torch, the layer over the other way on JAX."""
    pairs: int
    difference: float
    """Between the gradients, relative, the largest over the parameters."""
    target: float | None

    @property
    def met(self) -> bool | None:
        """Whether the target is met: on torch by the median, on JAX within the spread; None where there is none."""
        if self.target is None:
            return None
        return self.ratio[1] >= self.target if self.backend == "torch" else self.ratio[0] <= self.target


# --- scores of one problem, or of as many as u has rows --------------------------------------------------------------


def network(u: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any, w3: Any) -> Any:
    """Return a network of two hidden layers, shared by the problems, plus 1/2 ||u - x||^2."""
    from array_api_compat import array_namespace

    xp = array_namespace(u)
    hidden = xp.tanh(xp.tanh(u @ w1 + b1) @ w2 + b2)
    return hidden @ w3 + 0.5 * xp.sum((u - x) ** 2, axis=-1)


def chain(u: Any, theta: Any) -> Any:
    """Return a softplus of each entry, 1/2 ||u||^2, and a spring between neighbours; theta is each problem's own."""
    from array_api_compat import array_namespace

    xp = array_namespace(u)
    stretch = u[..., 1:] - u[..., :-1]
    bent = xp.sum(xp.logaddexp(theta * u, xp.zeros_like(u)), axis=-1)
    return bent + 0.5 * xp.sum(u**2, axis=-1) + 0.5 * xp.sum(stretch**2, axis=-1)


SCORES: dict[str, Callable[..., Any]] = {"network": network, "chain": chain}


class Case(NamedTuple):
    """A batch at its solution; the first parameter has a row for each problem, the others are shared."""

    score: Callable[..., Any]
    params: Sequence[Any]
    y: Any
    v: Any
    tol: float
    cap: int

    def single(self, i: int) -> Any:
        """Return one problem as a task of its own."""
        import _hand

        return _hand.Task(self.score, [self.params[0][i], *self.params[1:]], self.y[i], self.v[i], self.tol, self.cap)


def make_case(backend: str, score: str, problems: int, size: int) -> Case:
    import numpy as np

    import _hand
    import dil

    rng = np.random.default_rng(size)
    shared = _hand.parameters(score, size, rng)
    own = rng.uniform(0.5, 3.0, (problems, size)) if score == "chain" else rng.standard_normal((problems, size))
    params = [own] if score == "chain" else [own, *shared]
    fun = SCORES[score]
    y = dil.argmin(fun, dil.solvers.Newton(), batch_ndim=1)(*params, init=np.zeros((problems, size)))
    v = rng.standard_normal((problems, size))
    handle = dil.backend(backend, dtype="float64")
    arrays = [handle.asarray(x) for x in params]
    if backend == "torch":
        arrays = [x.requires_grad_() for x in arrays]
    tol = 0.5 * np.finfo(np.float64).eps ** 0.75  # what the layer's loop aims at
    return Case(fun, arrays, handle.asarray(y), handle.asarray(v), float(tol), max(100, 10 * size))


# --- the ways: this runs in a worker, one for each backend -----------------------------------------------------------


def layer_of(score: Callable[..., Any], y: Any, **options: Any) -> Callable[..., Any]:
    """Return a layer whose solver costs nothing: it hands back the solution."""
    import dil

    return dil.argmin(score, lambda fun, init, *params: y, **options)


def loop_by_hand(case: Case) -> Callable[[], Sequence[Any]]:
    """Return a loop over the problems, each solved by plain autograd and Algorithm 1 of the paper."""
    import torch

    import _hand

    def backward() -> Sequence[Any]:
        rows, totals = [], [torch.zeros_like(x) for x in case.params[1:]]
        for i in range(case.y.shape[0]):
            (row, *rest), _ = _hand.by_torch(case.single(i))()
            rows.append(row)
            totals = [a + b for a, b in zip(totals, rest, strict=True)]
        return [torch.stack(rows), *totals]

    return backward


def loop_by_layer(case: Case) -> Callable[[], Sequence[Any]]:
    """Return a loop of the engine over the layers of single problems, their forward passes done."""
    import torch

    import dil

    tasks = [case.single(i) for i in range(case.y.shape[0])]
    ys = [layer_of(case.score, t.y, linear_solver=dil.linear.CG())(*t.params) for t in tasks]
    return lambda: torch.autograd.grad(ys, list(case.params), [t.v for t in tasks], retain_graph=True)


def batch_in_torch(case: Case, **options: Any) -> Callable[[], Sequence[Any]]:
    """Return the backward pass of a layer with batch_ndim=1, its forward pass done."""
    import torch

    y = layer_of(case.score, case.y, batch_ndim=1, **options)(*case.params)
    return lambda: torch.autograd.grad(y, list(case.params), case.v, retain_graph=True)


def vmap_by_hand(case: Case, *, careful: bool = False) -> Callable[[], Sequence[Any]]:
    """Return `jax.vmap` of a single solve; the gradient of what the problems share is taken of all at once."""
    import jax

    import _hand

    F, axes = jax.grad(case.score), (0, *[None] * (len(case.params) - 1))

    def solve(y: Any, v: Any, *params: Any) -> Any:
        Fy, pull = jax.vjp(lambda u: F(u, *params), y)
        if careful:
            return _hand.careful_gradients_in_jax(lambda p: pull(p)[0], Fy, y, v, case.tol, case.cap)
        return _hand.conjugate_gradients_in_jax(lambda p: pull(p)[0], v, case.tol, case.cap)[0]

    @jax.jit
    def program(params: Sequence[Any], y: Any, v: Any) -> Sequence[Any]:
        g = jax.vmap(solve, (0, 0, *axes))(y, v, *params)
        return jax.vjp(lambda *params: jax.vmap(F, (0, *axes))(y, *params), *params)[1](-g)

    return lambda: jax.block_until_ready(program(case.params, case.y, case.v))


def batch_in_jax(case: Case, **options: Any) -> Callable[[], Sequence[Any]]:
    """Return the jitted program of a layer with batch_ndim=1, its free forward pass in it."""
    import jax

    @jax.jit
    def program(params: Sequence[Any], y: Any, v: Any) -> Sequence[Any]:
        return jax.vjp(layer_of(case.score, y, batch_ndim=1, **options), *params)[1](v)

    return lambda: jax.block_until_ready(program(case.params, case.y, case.v))


def measure(backend: str, score: str, problems: int, size: int, seconds: float, least: int) -> list[Row]:
    """Time every way in turn with the layer."""
    import dil

    one_thread(backend)
    case = make_case(backend, score, problems, size)
    batch = batch_in_torch if backend == "torch" else batch_in_jax
    layer = batch(case, linear_solver=dil.linear.CG())
    targets: dict[str, float | None]
    if backend == "torch":
        others = {"loop by hand": loop_by_hand(case), "loop of layers": loop_by_layer(case)}
        targets = {"loop by hand": FASTER, "loop of layers": FASTER}
    else:
        others = {"vmap by hand": vmap_by_hand(case), "vmap by hand, judged": vmap_by_hand(case, careful=True)}
        targets = {"vmap by hand": NO_SLOWER}
        for policy in ("nan", "ignore"):
            others[f"layer, {policy!r}"] = batch(case, linear_solver=dil.linear.CG(), on_failure=policy)
    others["layer, Auto"] = batch(case)
    found, steps = layer(), iterations(case)
    rows = []
    for name, other in others.items():
        difference = max(relative(a, b) for a, b in zip(found, other(), strict=True))
        times = in_turn((other, layer), seconds, least, 1)
        slower = [a.cpu / max(b.cpu, 1e-9) if backend == "torch" else b.cpu / max(a.cpu, 1e-9) for a, b in times]
        low, middle, high = statistics.quantiles(slower, n=4)
        other_ms, layer_ms = (1e3 * statistics.median(t[i].cpu for t in times) for i in (0, 1))
        rows.append(
            Row(
                *(backend, score, name, steps, other_ms, layer_ms, (low, middle, high), len(times), difference),
                targets.get(name),
            )
        )
    return rows


def iterations(case: Case) -> int:
    """Return the most that a problem of the batch takes, by the layer's linear solver."""
    import dil
    from dil._frameworks.registry import common_owner

    backend = common_owner([case.y], ["y"], "benchmark")
    params = [backend.constant(x) for x in case.params]

    def gradient(u: Any) -> tuple[Any]:
        (value,), pull = backend.vjp(lambda w: (case.score(w, *params),), u)
        return (pull((0 * value + 1,))[0],)

    _, pull = backend.vjp(gradient, case.y)
    return int(dil.linear.CG()(lambda p: pull((p,))[0], case.v).iterations.max())


# --- running and telling ---------------------------------------------------------------------------------------------


def measure_all(backends: Sequence[str], quick: bool, show_progress: Callable[[str], None]) -> Iterator[Row]:
    problems, size, seconds, least = (8, 10, 0.05, 3) if quick else (PROBLEMS, SIZE, 6.0, 9)
    for backend in backends:
        with Fresh(every_time=False) as run:
            for score in CASES:
                show_progress(f"{backend}: {score}, {problems} problems of {size} unknowns")
                for row in run(measure, backend, score, problems, size, seconds, least):
                    yield Row(**{**asdict(row), "target": None}) if quick else row  # the targets are of the full size


MEASURED = (
    "Backward pass of {problems} problems of {size} unknowns (float64): a dil.argmin layer with batch_ndim=1 and "
    "linear_solver=dil.linear.CG() against other ways to the same gradients. 'loop by hand': a Python loop over the "
    "problems, each by Algorithm 1 of Look et al. 2020 in eager autograd; 'loop of layers': layers of single problems, "
    "one after the other; 'vmap by hand': jax.vmap of a single solve around lax.while_loop, jitted, compilation "
    "excluded; 'judged': the same with a test of each curvature and of how stationary y is, the least that says "
    "whether a gradient can be trusted, NaN where it cannot; 'layer, 'nan'': the layer with on_failure=\"nan\", which "
    "calls nobody; 'layer, 'ignore'': the statuses are dead code to XLA, so that only the solve is left; "
    "'layer, Auto': the layer with the linear solver that it takes when none is given. 'network': two "
    "hidden layers of 30 units shared by the problems, plus 1/2 |u - x|^2; 'chain': softplus, 1/2 |u|^2 and springs, "
    "each problem with its own weights. Times are medians of the processor's; linear algebra in one thread. The ratio "
    "is the median over pairs run in turn, with its quartiles: other / layer on torch, layer / other on JAX, where the "
    "target counts as met if the first quartile meets it."
)


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    heads = ["backend", "score", "against", "iterations", "other [ms]", "layer [ms]", "ratio", "quartiles", "pairs"]
    heads += ["gradients differ", "target", "met"]
    cells = [
        [
            *(r.backend, r.score, r.against, str(r.iterations), f"{r.other_ms:.3f}", f"{r.layer_ms:.3f}"),
            *(f"{r.ratio[1]:.2f}", f"{r.ratio[0]:.2f}-{r.ratio[2]:.2f}", str(r.pairs), f"{r.difference:.0e}"),
            "-" if r.target is None else f"{'>=' if r.backend == 'torch' else '<='} {r.target:.1f}",
            word(r.met),
        ]
        for r in rows
    ]
    return heads, cells


def verdict(rows: Sequence[Row]) -> str:
    judged = [r.met for r in rows if r.met is not None]
    return f"{judged.count(True)} of {len(judged)} targets met"


def write(out: Path, command: str, host: dict[str, str], measured: str, rows: Sequence[Row]) -> None:
    """Write batched.md and batched.json."""
    times = [{**asdict(r), "met": r.met} for r in rows]
    record = {"command": command, "machine": host, "measured": measured, "times": times}
    head = ["# A batch against its problems one by one", f"`{command}`", described(host) + "."]
    parts = [*head, measured, markdown(*table(rows)), verdict(rows) + "."]
    write_results(out, "batched", parts, record)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where batched.md and batched.json go.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small batch, few pairs, no targets.")] = False,
    backends: Annotated[str, typer.Option(metavar="NAMES", help="Which to measure.")] = ",".join(BATCHED),
) -> None:
    """Measure the backward pass of a batch against loops and vmaps over its problems."""
    chosen = chosen_backends(backends)
    if set(chosen) - set(BATCHED):
        message = f"expected some of {', '.join(BATCHED)}"
        raise typer.BadParameter(message)
    os.environ.update(ONE_THREAD)
    console, host = Console(), machine()
    command = shlex.join(["python", "benchmarks/batched.py", *sys.argv[1:]])
    measured = MEASURED.format(problems=8 if quick else PROBLEMS, size=10 if quick else SIZE)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        job = progress.add_task("")
        rows = list(measure_all(chosen, quick, lambda what: progress.update(job, description=what)))
        progress.update(job, description="done")
    console.print(f"{command}\n{described(host)}\n\n{measured}", highlight=False)
    show(console, "times", *table(rows))
    console.print(verdict(rows), highlight=False)
    if out is not None:
        write(out, command, host, measured, rows)


if __name__ == "__main__":
    app()
