"""Plans beside other ways to the same gradients: unrolling the solver, mpc.pytorch, and its algorithm by hand.

    pip install --no-deps mpc
    python benchmarks/plan.py --out docs/results

The first plan has 50 steps of 4 controls. Its dynamics are a network of two layers of 64 units. The solver is gradient
descent with a fixed number of steps, so both versions differentiate the same solution: by the implicit function
theorem, or by autograd through every step. The second is a linear quadratic plan of 20 steps, forward and backward, for
a batch of 128 problems: see `_plan_peers.py`.
"""

from __future__ import annotations

import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from _common import (
    ONE_THREAD,
    Fresh,
    described,
    in_turn,
    machine,
    markdown,
    one_core,
    one_thread,
    relative,
    show,
    version,
    word,
)
from _results import write_results
from dil.control import Riccati, plan

STATE, CONTROLS, HORIZON, WIDTH = 6, 4, 50, 64
STEPS = (10, 20, 50)
RATE = 0.2
REPEATS = 3

MEASURED = (
    f"The plan: {HORIZON} steps, {CONTROLS} controls, {STATE} states, a network of two layers of {WIDTH} units with "
    "tanh, cost sum |u|^2 + |x - goal|^2 / 20, torch on the CPU with one thread, float64. Both ways run the same "
    "gradient descent: 'layer' differentiates its solution by `dil.control.plan` with `Riccati`, 'unrolled' by "
    "autograd through all its steps. A backward pass is that of a random cotangent of the controls to network, goal "
    f"and state. Times are of the processor, medians of {REPEATS}, of backward alone; memory is by how much forward "
    "and backward together raise the peak of a process of their own that has run both with two steps before. "
    "'apart' is the relative distance of the two gradients in the network, which falls as the solver gets nearer to "
    "the solution: that of unrolling is the derivative of the steps."
)


@dataclass(frozen=True)
class Row:
    """One number of solver steps, both ways."""

    steps: int
    layer: float
    """Seconds of the processor for backward."""
    unrolled: float
    layer_memory: float
    """MiB that forward and backward add at their peak."""
    unrolled_memory: float
    apart: float


def problem() -> tuple[Any, ...]:
    """Return the state, the goal, the flat weights of the network, and a cotangent, as torch tensors."""
    import torch

    one_thread("torch")
    draw = np.random.default_rng(0)
    sizes = (STATE + CONTROLS, WIDTH, WIDTH, STATE)
    flat: list[Any] = []
    for a, b in pairwise(sizes):
        flat += [draw.standard_normal((a, b)) / a**0.5, 0.1 * draw.standard_normal(b)]
    arrays = (draw.standard_normal(STATE), draw.standard_normal(STATE), *flat)
    leaves = [torch.tensor(x, requires_grad=True) for x in arrays]
    return leaves[0], leaves[1], leaves[2:], torch.tensor(draw.standard_normal((HORIZON, CONTROLS)))


def network(x: Any, u: Any, flat: Any) -> Any:
    import torch

    z = torch.cat([x, u], dim=-1)
    z = torch.tanh(z @ flat[0] + flat[1])
    z = torch.tanh(z @ flat[2] + flat[3])
    return x + 0.1 * (z @ flat[4] + flat[5])


def cost(x: Any, u: Any, goal: Any) -> Any:
    return 0.05 * ((x - goal) ** 2).sum(-1) + (u**2).sum(-1)


def descend(fun: Callable[..., Any], u: Any, steps: int, *args: Any, keep: bool) -> Any:
    """Return u after some steps of gradient descent, differentiable in the arguments if the graph is kept."""
    import torch

    with torch.enable_grad():
        u = u.detach().requires_grad_()
        for _ in range(steps):
            (g,) = torch.autograd.grad(fun(u, *args), u, create_graph=keep)
            u = u - RATE * g
            if not keep:
                u = u.detach().requires_grad_()
    return u


def forward(way: str, steps: int, x0: Any, goal: Any, flat: Any) -> Any:
    """Return the controls, by a layer or by a loop that autograd sees."""
    import torch

    def solver(fun: Callable[..., Any], init: Any, *args: Any) -> Any:
        return descend(fun, init, steps, *args, keep=False)

    # the network takes all times at once, which Riccati needs
    steer = plan(cost, network, HORIZON, controls=CONTROLS, solver=solver, linear_solver=Riccati(), on_failure="ignore")
    if way == "layer":
        return steer(x0, goal, flat)
    begin = torch.zeros((HORIZON, CONTROLS), dtype=x0.dtype)
    return descend(steer.score, begin, steps, x0, goal, flat, keep=True)


def backward_of(way: str, steps: int) -> tuple[float, list[Any]]:
    """Return the seconds of the processor for one backward pass, and its gradients."""
    import torch

    x0, goal, flat, v = problem()
    u = forward(way, steps, x0, goal, flat)
    begin = time.process_time()
    found = torch.autograd.grad(u, [x0, goal, *flat], v)
    return time.process_time() - begin, [g.numpy() for g in found]


def timed(way: str, steps: int) -> tuple[float, list[Any]]:
    """Return the median of some passes; the first is dropped."""
    runs = [backward_of(way, steps) for _ in range(REPEATS + 1)][1:]
    return float(np.median([seconds for seconds, _ in runs])), runs[0][1]


def remembered(way: str, steps: int) -> float:
    """Return the MiB by which forward and backward raise the peak of this process, which has run with two steps."""
    import resource

    backward_of(way, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    backward_of(way, steps)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure(steps: int) -> Row:
    with Fresh(every_time=True) as fresh:
        (layer, g), (unrolled, h) = (fresh(timed, way, steps) for way in ("layer", "unrolled"))
        memory = [fresh(remembered, way, steps) for way in ("layer", "unrolled")]
    apart = relative(np.concatenate([x.ravel() for x in g[2:]]), np.concatenate([x.ravel() for x in h[2:]]))
    return Row(steps, layer, unrolled, *memory, apart)


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    heads = ["steps", "layer", "unrolled", "ratio", "layer MiB", "unrolled MiB", "apart", "met"]
    cells = [
        [
            *(str(row.steps), f"{1e3 * row.layer:.0f} ms", f"{1e3 * row.unrolled:.0f} ms"),
            *(f"{row.layer / row.unrolled:.2f}", f"{row.layer_memory:.1f}", f"{row.unrolled_memory:.1f}"),
            f"{row.apart:.1e}",
            "yes" if row.layer < row.unrolled and row.layer_memory < row.unrolled_memory else "MISSED",
        ]
        for row in rows
    ]
    return heads, cells


# --- a linear quadratic plan beside its peers ------------------------------------------------------------------------

BATCH = 128
PEER, HAND, OURS = "mpc.pytorch", "by hand", "dil, DDP"
LINEAR_QUADRATIC = (
    "The cost is sum 1/2 x^T Q x + 1/2 u^T R u + c^T (x, u), the dynamics A x + B u, over 20 steps with 8 states and "
    "4 controls, float64, on one core. Each problem of the batch has matrices of its own. A call is one plan, and the "
    "gradient of its product with a cotangent in A, B, Q, R, c and x0. 'mpc.pytorch' and 'by hand' know that the "
    "problem is linear quadratic; dil gets cost and dynamics as functions, and finds that out. 'by hand' is the "
    "algorithm of Amos et al. 2018 for matrices that are the same at all times: a Riccati recursion back and a "
    "roll-out forth, whose gradient is a second regulator with the factors of the first; in JAX each loop is a scan, "
    "and all is one compiled program. Times are of the processor, medians of rounds in which all ways of a framework "
    "take turns; a ratio is the median of that of each round, with its quartiles. 'apart' is the largest relative "
    "distance of a gradient from that by hand. The target is the time of mpc.pytorch."
)


@dataclass(frozen=True)
class PeerRow:
    """One way to the plan and its gradient in one framework."""

    framework: str
    way: str
    ms: float
    over_peer: tuple[float, float, float] | None
    """The time over that of mpc.pytorch: lower quartile, median, upper quartile."""
    over_hand: tuple[float, float, float]
    apart: float


def beside(framework: str, batch: int, seconds: float) -> list[PeerRow]:
    """Time all ways of a framework in turn, on one core."""
    one_core()
    import _plan_peers

    ways = _plan_peers.in_torch(batch) if framework == "torch" else _plan_peers.in_jax(batch)
    gradients = {name: way()[1] for name, way in ways.items()}
    rounds = [dict(zip(ways, r, strict=True)) for r in in_turn(list(ways.values()), seconds, 5)]

    def over(name: str, other: str) -> tuple[float, float, float]:
        low, middle, high = statistics.quantiles([r[name].cpu / r[other].cpu for r in rounds], n=4)
        return low, middle, high

    return [
        PeerRow(
            framework,
            name,
            1e3 * statistics.median(r[name].cpu for r in rounds),
            over(name, PEER) if PEER in ways else None,
            over(name, HAND),
            max(relative(a, b) for a, b in zip(gradients[name], gradients[HAND], strict=True)),
        )
        for name in ways
    ]


def peer_table(rows: list[PeerRow]) -> tuple[list[str], list[list[str]]]:
    def told(ratio: tuple[float, float, float] | None) -> str:
        return "-" if ratio is None else "{1:.2f} ({0:.2f} to {2:.2f})".format(*ratio)

    heads = ["framework", "way", "ms", "over mpc.pytorch", "over by hand", "apart", "met"]
    cells = [
        [
            *(row.framework, row.way, f"{row.ms:.1f}", told(row.over_peer), told(row.over_hand), f"{row.apart:.1e}"),
            word(None if row.way != OURS or row.over_peer is None else row.over_peer[1] <= 1.0),
        ]
        for row in rows
    ]
    return heads, cells


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where plan.md and plan.json go.")] = None,
    seconds: Annotated[float, typer.Option(help="Seconds for the linear quadratic plans of one framework.")] = 20.0,
    frameworks: Annotated[str, typer.Option(help="Those of the linear quadratic plans, with commas.")] = "torch,jax",
    quick: Annotated[bool, typer.Option("--quick", help="One number of steps, and few problems, alone.")] = False,
) -> None:
    """Measure plans beside unrolling, mpc.pytorch and code by hand."""
    os.environ.update(ONE_THREAD)
    console, command = Console(), shlex.join(["python", "benchmarks/plan.py", *sys.argv[1:]])
    rows = [measure(steps) for steps in track(STEPS[1:2] if quick else STEPS, "plans", console=console, transient=True)]
    console.print(f"{command}\n\n{MEASURED}", highlight=False)
    show(console, "plan", *table(rows))
    batch, seconds = (2, 0.0) if quick else (BATCH, seconds)
    with Fresh(every_time=True) as fresh:
        peers = [row for framework in frameworks.split(",") for row in fresh(beside, framework, batch, seconds)]
    title = f"A linear quadratic plan, {batch} problems"
    console.print(LINEAR_QUADRATIC, highlight=False)
    show(console, title, *peer_table(peers))
    if out is not None:
        host = {**machine(), "mpc": version("mpc")}
        record = {"command": command, "machine": host, "measured": MEASURED, "rows": [asdict(row) for row in rows]}
        record |= {"linear_quadratic": LINEAR_QUADRATIC, "batch": batch, "peers": [asdict(row) for row in peers]}
        parts = ["# A backward pass through a plan", f"`{command}`", f"{described(host)}.", MEASURED]
        parts += [markdown(*table(rows)), f"## {title}", LINEAR_QUADRATIC, markdown(*peer_table(peers))]
        write_results(out, "plan", parts, record)


if __name__ == "__main__":
    app()
