"""Logging every solve of a training run with `dil.record`.

A loss alone does not show how hard the equations behind it are. `dil.record` observes every forward and backward
solve: its entries hold the iterations, the condition of the system and a bound on the error of the gradient, and go to
TensorBoard, or to a file as here, a number at a time.

    python docs/examples/training_log.py --out out
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor

import dil

DOUBLE = torch.float64

# %% [markdown]
# The model is a small deep equilibrium network: the state h solves h = tanh(W h + U x).


# %%
def step(h: Tensor, W: Tensor, U: Tensor, x: Tensor) -> Tensor:
    """Return the next states, (batch, 8)."""
    return torch.tanh(h @ W.T + x @ U.T)


def contracted(W: Tensor) -> Tensor:
    """Return W scaled to a norm of at most 0.98, so that there is one fixed point for every input."""
    return W * (0.98 / torch.linalg.matrix_norm(W, 2).clamp(min=0.98))


equilibrium = dil.fixed_point(
    step, dil.solvers.Anderson(), batch_ndim=1, init=lambda W, U, x: torch.zeros(len(x), 8, dtype=DOUBLE)
)

# %% [markdown]
# A writer with the method of TensorBoard's, `add_scalar(tag, value, step)`. With TensorBoard installed, put
# `torch.utils.tensorboard.SummaryWriter()` in its place.


# %%
class Writer:
    """Keeps scalars as (tag, step, value), and writes them to a file."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, float]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add one number."""
        self.rows.append((tag, step, float(value)))

    def save(self, path: Path) -> None:
        """Write all rows as CSV."""
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("tag", "step", "value"), *self.rows])

    def values(self, tag: str) -> list[float]:
        """Return the numbers of one tag, in order."""
        return [value for name, _, value in self.rows if name == tag]


def log(record: dil.Record, writer: Writer, number: int) -> None:
    """Write the median over the batch of each number that the solves of one step left."""
    for entry in record.entries:
        for name in ("iterations", "condition", "bound"):
            if (numbers := getattr(entry, name)) is not None:
                writer.add_scalar(f"{entry.stage}/{name}", np.median(numbers), number)
        writer.add_scalar(f"{entry.stage}/failed", (entry.status != dil.Status.CONVERGED).sum(), number)


# %%
def main(*, quick: bool = False, out: Path | None = None) -> Writer:
    """Train, log and draw; return the log."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 3, generator=generator, dtype=DOUBLE)
    target = torch.sin(2.0 * x[:, 0]) * x[:, 1]
    W, U, v = (0.2 * torch.randn(*shape, generator=generator, dtype=DOUBLE) for shape in ((8, 8), (8, 3), (8,)))
    parameters = [p.requires_grad_() for p in (W, U, v)]
    optimiser, writer = torch.optim.Adam(parameters, lr=0.03), Writer()
    for number in range(8 if quick else 80):
        optimiser.zero_grad()
        with dil.record() as record:
            loss = ((equilibrium(contracted(W), U, x) @ v - target) ** 2).mean()
            loss.backward()
        optimiser.step()
        writer.add_scalar("loss", loss.item(), number)
        log(record, writer, number)

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    left.semilogy(writer.values("loss"), label="loss")
    left.semilogy(writer.values("forward/iterations"), color="C1", label="forward iterations")
    left.semilogy(writer.values("backward/condition"), color="C2", label="condition number")
    left.set(title="the loss, and the equations behind it", xlabel="step of Adam")
    left.legend()
    right.semilogy(writer.values("backward/bound"), color="C3", label="bound on the gradient's error")
    right.set(title="how far to trust the gradient", xlabel="step of Adam", ylabel="relative error")
    right.legend()
    if out is not None:
        writer.save(out / "training_log.csv")
        figure.savefig(out / "training_log.png")
    print(record)
    return writer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps")
    parser.add_argument("--out", type=Path, help="a folder for the picture and the log")
    main(**vars(parser.parse_args()))
