"""Products of the backward passes of training loops, with and without a memory of earlier systems.

    python benchmarks/training.py --out docs/results

It needs torch and scikit-learn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits

import dil
from _common import machine, markdown, one_core, show, word
from _results import write_results
from dil_backends.nn import ImplicitModule

MOST, CLOSE = 1 / 3, 1e-6
"""The target of the products beside those of `Auto`, and of the difference of the losses."""

MEASURED = (
    "Each loop runs once with `Auto()` and once with `Recycle()`, from the same start. 'products' counts those of the "
    "linear solves of all backward passes, a batch as one problem. 'time' is the processor time of the linear solves "
    "alone. 'difference' is the largest difference of two losses of the same step, relative to the first loss. The "
    "target of the products is a third. Softmax regression: 640 weights for 1,000 digits of 8 x 8 pixels, and a "
    "penalty of its own for each pixel, chosen by Adam (rate 0.05) so that 797 other digits have the least loss; "
    "backward through `dil.argmin` with `LBFGS(max_iter=20_000)`. Blocks: z = tanh(W z + U x + c) with 48 or 256 "
    "units for 64 digits, and two convolutions of 16 channels on 8 x 8 for 4 random images (1,024 unknowns each), "
    "trained by Adam (rate "
    "1e-3) with all data in each step; backward through `dil.fixed_point` with `Anderson()`."
)


@dataclass
class Counted:
    """A linear solver whose products and whose time are added up."""

    solver: Callable[..., Any]
    products: int = 0
    seconds: float = 0.0

    def __call__(self, A: Any, b: Any, /, *, loop: Any) -> Any:
        """Solve A x = b."""
        start = time.process_time()
        found = self.solver(A, b, loop=loop)
        self.seconds += time.process_time() - start
        self.products += int(found.extra["products"].max())
        return found


@dataclass
class Row:
    """One loop, with `Auto` and with `Recycle`."""

    loop: str
    steps: int
    products: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    difference: float = 0.0

    @property
    def share(self) -> float:
        """The products with a memory over those without."""
        return self.products[1] / max(self.products[0], 1)

    @property
    def time_share(self) -> float:
        """The time with a memory over that without."""
        return self.seconds[1] / self.seconds[0]

    @property
    def end(self) -> list[str]:
        """The last cells of the table."""
        return [f"{self.difference:.0e}", word(self.met)]

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.share <= MOST and self.difference <= CLOSE


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pixels, (1797, 64), and the labels."""
    X, y = load_digits(return_X_y=True)
    return torch.as_tensor(X / 16.0), torch.as_tensor(y)


def softmax(linear_solver: Any) -> Iterator[float]:
    """Choose the penalties of a softmax regression by the gradient of the loss on other digits."""
    X, y = digits()
    entropy = torch.nn.functional.cross_entropy
    fitted, other = (X[:1000], y[:1000]), (X[1000:], y[1000:])

    def score(w: Any, log_penalty: Any, X: Any, y: Any) -> Any:
        W = w.reshape(64, 10)
        return entropy(X @ W, y) + 0.5 * torch.sum(torch.exp(log_penalty)[:, None] * W**2)

    layer = dil.argmin(score, dil.solvers.LBFGS(max_iter=20_000), linear_solver=linear_solver)
    log_penalty, w = torch.full((64,), -6.0, requires_grad=True), torch.zeros(640)
    optimizer = torch.optim.Adam([log_penalty], lr=0.05)
    while True:
        optimizer.zero_grad()
        found = layer(log_penalty, *fitted, init=w)
        loss = entropy(other[0] @ found.reshape(64, 10), other[1])
        loss.backward()
        optimizer.step()
        w = found.detach()
        yield float(loss.detach())


def block(units: int) -> Callable[[Any], Iterator[float]]:
    """Return the training of a deep equilibrium block of some units."""

    def train(linear_solver: Any) -> Iterator[float]:
        X, y = digits()
        X, y, draw = X[:64], y[:64], torch.Generator().manual_seed(0)

        def parameter(*shape: int, scale: float) -> Any:
            return (scale * torch.randn(*shape, generator=draw)).requires_grad_()

        W, U = parameter(units, units, scale=0.9 / units**0.5), parameter(units, 64, scale=1 / 8)
        c, R = parameter(units, scale=0.0), parameter(10, units, scale=units**-0.5)

        def F(z: Any, W: Any, x: Any) -> Any:
            return torch.tanh(z @ W.T + x)

        layer = dil.fixed_point(F, dil.solvers.Anderson(), batch_ndim=1, linear_solver=linear_solver)
        optimizer = torch.optim.Adam([W, U, c, R], lr=1e-3)
        z = torch.zeros(64, units)
        while True:
            optimizer.zero_grad()
            found = layer(W, X @ U.T + c, init=z)
            loss = torch.nn.functional.cross_entropy(found @ R.T, y)
            loss.backward()
            optimizer.step()
            z = found.detach()
            yield float(loss.detach())

    return train


def convolutions(linear_solver: Any) -> Iterator[float]:
    """Train a deep equilibrium block of two convolutions."""
    torch.manual_seed(0)
    x, target = torch.randn(4, 16, 8, 8), 0.5 * torch.randn(4, 16, 8, 8)
    first, second, head = (torch.nn.Conv2d(16, 16, k, padding=k // 2) for k in (3, 3, 1))

    class Block(torch.nn.Module):
        """z -> tanh(second(relu(first(z))) + x)."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, z: Any, x: Any) -> Any:
            """Return the next z."""
            return torch.tanh(self.second(torch.relu(self.first(z))) + x)

    solver = dil.solvers.Anderson()
    layer = ImplicitModule(Block(), solver, kind="fixed_point", batch_ndim=1, linear_solver=linear_solver)
    optimizer, z = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=1e-3), torch.zeros_like(x)
    while True:
        optimizer.zero_grad()
        found = layer(x, init=z)
        loss = torch.mean((head(found) - target) ** 2)
        loss.backward()
        optimizer.step()
        z = found.detach()
        yield float(loss.detach())


LOOPS: dict[str, Callable[[Any], Iterator[float]]] = {
    "softmax regression, 640 weights": softmax,
    "block of 48 units": block(48),
    "block of 256 units": block(256),
    "block of two convolutions": convolutions,
}


def measured(name: str, steps: int) -> Row:
    """Run a loop with and without a memory."""
    row, losses = Row(name, steps), []
    for solver in (dil.linear.Auto(), dil.linear.Recycle()):
        counted = Counted(solver)
        training = LOOPS[name](counted)
        losses.append([next(training) for _ in track(range(steps), description=name, console=Console(stderr=True))])
        row.products.append(counted.products)
        row.seconds.append(counted.seconds)
    row.difference = float(np.max(np.abs(np.subtract(*losses)))) / abs(losses[0][0])
    return row


def main(
    out: Annotated[Path | None, typer.Option(help="Directory for training.md and training.json.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each loop.")] = 200,
    only: Annotated[str, typer.Option(help="A part of the names of the loops to run.")] = "",
) -> None:
    """Compare the products of training loops with and without a memory."""
    one_core()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rows = [measured(name, steps) for name in LOOPS if only in name]
    heads = ["loop", "steps", "products, Auto", "Recycle", "share", "time of the solves", "difference", "met"]
    cells = [
        [r.loop, str(r.steps), *(f"{k:,}" for k in r.products), f"{r.share:.2f}", f"{r.time_share:.2f}", *r.end]
        for r in rows
    ]
    show(Console(), "products of the backward passes", heads, cells)
    command = f"python benchmarks/training.py --steps {steps}"
    if out is not None:
        parts = ["# Training loops with a memory", f"`{command} --out docs/results`", MEASURED, markdown(heads, cells)]
        record = {"command": command, "machine": machine(), "measured": MEASURED, "rows": [asdict(r) for r in rows]}
        write_results(out, "training", parts, record)


if __name__ == "__main__":
    typer.run(main)
