"""A batch with one bad problem: eight fits go on, the ninth says what is wrong.

Nine logistic regressions are one batch. In one of them a threshold separates the two classes without an error, so its
best slope is infinite. That problem alone gets a status, and with `on_failure="nan"` its gradient alone is NaN; the
others are what they would be without it.

    python docs/examples/bad_problem.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

import dil

torch.set_default_dtype(torch.float64)
BAD = 4

# %% [markdown]
# Each row of u holds slope and intercept of one fit, each row of x its data. The score returns one number a row.


# %%
def logistic(u: Tensor, x: Tensor, label: Tensor) -> Tensor:
    """Score the fits u, (fits, 2), to x, (fits, samples), with labels of -1 and 1."""
    return torch.nn.functional.softplus(-label * (u[:, :1] * x + u[:, 1:])).sum(-1)


fit = dil.argmin(
    logistic, dil.solvers.Newton(), batch_ndim=1, on_failure="nan", init=lambda x, label: torch.zeros(len(x), 2)
)


def data(samples: int) -> tuple[Tensor, Tensor]:
    """Draw nine data sets, one of them separable."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(9, samples, generator=generator)
    noise = torch.randn(9, samples, generator=generator)
    noise[BAD] = 0.0
    return x, torch.where(x + noise > 0, 1.0, -1.0)


# %% [markdown]
# `layer.solve` returns the status of every problem. `backward` goes through the whole batch.


# %%
def main(*, quick: bool = False, out: Path | None = None) -> tuple[list[str], Tensor]:
    """Fit and draw; return the names of the statuses, and the gradient of the slopes in the data."""
    x, label = data(16 if quick else 40)
    solution = fit.solve(x, label)
    names = [dil.Status(int(code)).name for code in solution.status]
    x.requires_grad_()
    u = fit(x, label)
    (gradient,) = torch.autograd.grad(u[:, 0].sum(), x)
    print(*names, sep="\n")

    figure = plt.figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subfigures(1, 2)
    grid = torch.linspace(-2.5, 2.5, 100)
    for row, axes in enumerate(left.subplots(3, 3, sharex=True, sharey=True).flat):
        good = names[row] == "CONVERGED"
        shape = solution.value[row].detach()
        axes.plot(grid, torch.sigmoid(shape[0] * grid + shape[1]), color="C0" if good else "C1")
        axes.plot(x[row].detach(), (label[row] + 1) / 2, "|", color="black", alpha=0.5)
        axes.set(xticks=[], yticks=[], facecolor="white" if good else "#fdeee6")
    left.suptitle("nine fits, one without a minimum", fontsize=11, fontweight="bold")
    axes = right.subplots()
    sizes = gradient.norm(dim=1).numpy()
    axes.bar(range(9), sizes, color="C0")
    axes.text(BAD, 0.04 * sizes[0], f"NaN, {names[BAD]}", color="C1", ha="center", va="bottom", rotation=90)
    axes.set(title="gradient of the slope in the data", xlabel="problem", ylabel="norm", xticks=range(9))
    if out is not None:
        figure.savefig(out / "bad_problem.png")
    return names, gradient


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
