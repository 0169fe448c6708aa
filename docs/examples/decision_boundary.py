"""A decision boundary, learned by hyper-gradients.

A kernel classifier has two hyper-parameters, the width of its kernel and its penalty. Both are tuned by the exact
gradient of the loss on held-out points, through the fit, which is a layer. The boundary that they give follows the
two moons, where the first guess drew nearly a straight line.

    python docs/examples/decision_boundary.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor
from torch.nn.functional import softplus

import dil

DOUBLE = torch.float64

# %% [markdown]
# The fit: coefficients u of kernels at the training points, least in -log P of the labels and a penalty.


# %%
def kernel(a: Tensor, b: Tensor, log_width: Tensor) -> Tensor:
    """Return exp(-|a - b|^2 / (2 width^2)) of all pairs of points."""
    squares = ((a[:, None] - b[None]) ** 2).sum(-1)
    return torch.exp(-0.5 * squares * torch.exp(-2.0 * log_width))


def score(u: Tensor, points: Tensor, label: Tensor, log_width: Tensor, log_penalty: Tensor) -> Tensor:
    """Score the coefficients u, one for each training point; labels are -1 and 1."""
    K = kernel(points, points, log_width)
    return softplus(-label * (K @ u)).mean() + 0.5 * torch.exp(log_penalty) * (u @ K @ u + 1e-3 * u @ u)


fit = dil.argmin(score, dil.solvers.Newton(), init=lambda points, *_: torch.zeros(len(points), dtype=DOUBLE))

# %% [markdown]
# The outer loss is the same -log P on points held back. `backward` goes through the fit, by one linear solve.


# %%
def moons(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw points on two moons, and their labels."""
    angle = torch.pi * torch.rand(count, generator=generator, dtype=DOUBLE)
    label = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0).to(DOUBLE)
    x, y = torch.cos(angle) - 0.5 * label, label * (torch.sin(angle) - 0.25)
    return torch.stack([x, y], 1) + 0.2 * torch.randn(count, 2, generator=generator, dtype=DOUBLE), label


def main(*, quick: bool = False, out: Path | None = None) -> list[float]:
    """Tune and draw; return the held-out loss of every step."""
    generator = torch.Generator().manual_seed(1)
    (points, label), (held, truth) = (moons(30 if quick else 60, generator) for _ in range(2))
    hyper = torch.tensor([1.0, -2.0], dtype=DOUBLE, requires_grad=True)  # log width, log penalty
    optimiser, losses, seen = torch.optim.Adam([hyper], lr=0.2), [], [hyper.detach().clone()]
    for _ in range(15 if quick else 40):
        optimiser.zero_grad()
        u = fit(points, label, *hyper)
        loss = softplus(-truth * (kernel(held, points, hyper[0]) @ u)).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        seen.append(hyper.detach().clone())
    print(f"held-out loss {losses[0]:.3f}, then {losses[-1]:.3f}; width {hyper[0].exp().item():.2f}")

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    span = torch.linspace(-2.2, 2.2, 60, dtype=DOUBLE)
    grid = torch.cartesian_prod(span, span)
    for values, style in ((seen[0], "--"), (seen[-1], "-")):
        level = (kernel(grid, points, values[0]) @ fit(points, label, *values)).reshape(60, 60).T
        if style == "-":
            left.contourf(span, span, level.sigmoid(), 12, cmap="RdBu", alpha=0.7, vmin=0, vmax=1)
        left.contour(span, span, level, [0.0], colors="black", linestyles=style)
    left.scatter(*points.T, c=label, cmap="RdBu", edgecolor="black", s=22)
    left.set(title="boundary before (dashed) and after", xticks=[], yticks=[])
    right.plot(losses, label="held-out loss")
    right.plot(torch.stack(seen).exp()[:-1, 0], color="C2", label="kernel width")
    right.plot(torch.stack(seen).exp()[:-1, 1], color="C1", label="penalty")
    right.set(title="tuning", xlabel="step of Adam", yscale="log")
    right.legend()
    if out is not None:
        figure.savefig(out / "decision_boundary.png")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer points and steps")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
