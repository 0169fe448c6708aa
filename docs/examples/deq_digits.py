"""A deep equilibrium block in a convolutional network for handwritten digits.

    python docs/examples/deq_digits.py --out out

A residual block computes z = block(z, x) a few times over. A deep equilibrium block (Bai, Kolter and Koltun 2019) goes
on until nothing changes any more: its output is the fixed point z = block(z, x), which a solver finds however it likes.
The gradient is that of the fixed point, so that training keeps none of the iterations in memory.

In a torch model it is a change of a few lines, marked below: the block is wrapped in an `ImplicitModule`, which finds
its parameters and takes its step from here. What the block has to promise is that there is a fixed point to be found;
`Block` is a contraction by its weights, divided by a bound of their norm.

Two networks are trained on the digits of scikit-learn, 8 x 8 pixels each: one with the block and one without it, which
are otherwise the same, and their accuracies on images held back are printed side by side. So easy a task needs no such
block: the comparison shows what it costs and that it trains, not that it is the better network.

Needs torch and scikit-learn.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import dil
from dil_backends.nn import ImplicitModule

CHANNELS = 8
BATCH = 64
HELD = 500
"""Images held back."""
CONTRACTION = 0.9
"""The most that the block may stretch a difference of two states by."""
RTOL = 1e-6
"""Of the fixed point."""

# %% [markdown]
# The block, and the network around it.


# %%
class Block(nn.Module):
    """z -> tanh(W z + x), with a convolution W whose norm stays below one.

    z, x: (batch, CHANNELS, height, width).
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(CHANNELS, CHANNELS, 3, 3))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the next state."""
        # a convolution stretches by at most the sum of |w|, over what a pixel takes and over what it gives
        size = self.weight.abs()
        bound = (size.sum((1, 2, 3)).max() * size.sum((0, 2, 3)).max()).sqrt()
        weight = self.weight * (CONTRACTION / bound.clamp(min=CONTRACTION))
        return torch.tanh(functional.conv2d(z, weight, padding=1) + x)


class Net(nn.Module):
    """Two convolutions and a linear layer, with an equilibrium block between them or without."""

    def __init__(self, equilibrium: bool) -> None:
        super().__init__()
        self.encode = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.decode = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * CHANNELS, 10))
        self.block: nn.Module = nn.Tanh()
        if equilibrium:  # the change: this, and nothing in `forward`
            self.block = ImplicitModule(
                Block(),
                dil.solvers.Anderson(rtol=RTOL, norm="leaves"),
                kind="fixed_point",
                batch_ndim=1,
                init=torch.zeros_like,
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (batch, 10), of images, (batch, 1, 8, 8)."""
        return self.decode(self.block(self.encode(images)))


# %% [markdown]
# Training, as of any network of torch.


# %%
class Figures(NamedTuple):
    """What came of one network."""

    accuracy: float
    """On the images held back."""
    loss: float
    """Of the last epoch."""
    seconds: float
    path: list[float]
    """The accuracy after each epoch."""


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return images and labels for training, and those held back."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)[order] / 16
    y = torch.tensor(labels)[order]
    return (x[HELD:], y[HELD:]), (x[:HELD], y[:HELD])


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of the images that are told right."""
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


def train(net: nn.Module, epochs: int) -> Figures:
    """Train as any network of torch is trained."""
    (x, y), held = digits()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    begun, path = time.perf_counter(), []
    for epoch in range(epochs):
        batches = torch.randperm(len(y)).split(BATCH)
        losses = 0.0
        for batch in batches:
            optimiser.zero_grad()
            loss = functional.cross_entropy(net(x[batch]), y[batch])
            loss.backward()
            optimiser.step()
            losses += float(loss.detach()) / len(batches)
        path.append(accuracy(net, *held))
        print(f"{epoch:7d}  {losses:.4f}    {path[-1]:.3f}")
    return Figures(path[-1], losses, time.perf_counter() - begun, path)


def draw(net: nn.Module, figures: dict[str, Figures], out: Path) -> None:
    """Draw images held back with what the network takes them for, and the accuracies."""
    _, (x, y) = digits()
    with torch.no_grad():
        told = net(x).argmax(1)
    order = torch.argsort((told == y).int(), stable=True)[:4].tolist()  # those told wrong come first
    figure = plt.figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subfigures(1, 2)
    for number, axes in zip(order + list(range(12)), left.subplots(4, 4).flat, strict=True):
        axes.imshow(x[number, 0].numpy(), cmap="Greys")
        axes.set_title(str(told[number].item()), color="C0" if told[number] == y[number] else "C1", pad=2)
        axes.axis("off")
    axes = right.subplots()
    for name, found in figures.items():
        axes.plot(range(1, len(found.path) + 1), found.path, "o-", label=name)
    axes.set(title="accuracy on images held back", xlabel="epoch")
    axes.legend()
    figure.savefig(out / "deq_digits.png")


# %%
def main(*, quick: bool = False, out: Path | None = None) -> dict[str, Figures]:
    """Train both networks, `quick` for fewer epochs. Return what came of each, by its name."""
    figures: dict[str, Figures] = {}
    with torch.random.fork_rng(devices=[]):
        for name, equilibrium in (("without the block", False), ("with the block", True)):
            torch.manual_seed(0)
            print(f"{name}\n  epoch    loss  held out")
            net = Net(equilibrium)
            figures[name] = train(net, 3 if quick else 6)
    print("\n                   held out  seconds")
    for name, found in figures.items():
        print(f"{name:17}  {found.accuracy:8.3f}  {found.seconds:7.1f}")
    (x, _), _ = digits()
    assert isinstance(net.block, ImplicitModule)
    solution = net.block.solve(net.encode(x[:BATCH]).detach())
    print(f"\nthe last network's fixed points take {solution.iterations.float().mean():.1f} steps on average")
    if out is not None:
        draw(net, figures, out)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
