"""Time and memory of one backward pass through a plan, compared with unrolling the solver that found the plan.

    python benchmarks/plan.py --out docs/results

The plan has 50 steps of 4 controls. Its dynamics are a network of two layers of 64 units. The solver is gradient
descent with a fixed number of steps, so both versions differentiate the same solution: by the implicit function
theorem, or by autograd through every step.
"""

from __future__ import annotations

import os
import shlex
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

from _common import ONE_THREAD, Fresh, described, machine, markdown, one_thread, relative, show
from _results import write_results
from dil.control import plan

STATE, CONTROLS, HORIZON, WIDTH = 6, 4, 50, 64
STEPS = (10, 20, 50)
RATE = 0.2
REPEATS = 3

MEASURED = (
    f"The plan: {HORIZON} steps, {CONTROLS} controls, {STATE} states, a network of two layers of {WIDTH} units with "
    f"tanh, cost sum |u|^2 + |x - goal|^2 / 20, torch on the CPU with one thread, float64. Both ways run the same "
    f"gradient descent: 'layer' differentiates its solution by `dil.control.plan`, 'unrolled' by autograd through all "
    f"its steps. A backward pass is that of a random cotangent of the controls to network, goal and state. Times are "
    f"of the processor, medians of {REPEATS}, of backward alone; memory is by how much forward and backward together "
    f"raise the peak of a process of their own that has run both with two steps before. 'apart' is the relative "
    f"distance of the two gradients in the network, which falls as the solver gets nearer to the solution: that of "
    f"unrolling is the derivative of the steps."
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

    steer = plan(cost, network, HORIZON, controls=CONTROLS, solver=solver, on_failure="ignore")
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


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where plan.md and plan.json go.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One number of steps alone.")] = False,
) -> None:
    """Measure one backward pass through a plan, by the implicit function theorem and by unrolling."""
    os.environ.update(ONE_THREAD)
    console, command = Console(), shlex.join(["python", "benchmarks/plan.py", *sys.argv[1:]])
    rows = [measure(steps) for steps in track(STEPS[1:2] if quick else STEPS, "plans", console=console, transient=True)]
    console.print(f"{command}\n\n{MEASURED}", highlight=False)
    show(console, "plan", *table(rows))
    if out is not None:
        record = {"command": command, "machine": machine(), "measured": MEASURED, "rows": [asdict(row) for row in rows]}
        parts = ["# A backward pass through a plan", f"`{command}`", f"{described(machine())}.", MEASURED]
        write_results(out, "plan", [*parts, markdown(*table(rows))], record)


if __name__ == "__main__":
    app()
