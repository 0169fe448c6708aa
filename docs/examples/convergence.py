"""How solvers converge: Newton, L-BFGS and gradient descent in a curved valley.

Every solver of a layer is replaced by changing one word, and `history=True` keeps the residual after each of its steps.
In Rosenbrock's valley Newton's method doubles its digits at the end, L-BFGS needs some more steps, and gradient descent
ten times as many. The gradient of the layer depends only on the point where they end, so it is the same.

    python docs/examples/convergence.py --out out
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

import dil

# %% [markdown]
# The valley bends along v = u^2, and its floor falls to the minimum at u = v = 1.


# %%
def valley(u: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Score a point u, (2,), in the valley of Rosenbrock 1960 whose minimum is at (floor, floor^2)."""
    return (floor - u[0]) ** 2 + 30.0 * (u[1] - u[0] ** 2) ** 2


START, FLOOR = np.asarray([-1.2, 1.0]), np.asarray(1.0)

# %% [markdown]
# A layer is made of the same score with each solver. To see the path of a solver, we stop it after 1, 2, 3, ... steps.


# %%
def path(solver: dil.solvers.Newton, steps: int) -> np.ndarray:
    """Return the points after 0, 1, 2, ... steps of a solver, (steps + 1, 2)."""
    ends = [dil.argmin(valley, replace(solver, max_iter=k)).solve(FLOOR, init=START) for k in range(1, steps + 1)]
    return np.stack([START, *(end.value for end in ends)])


def main(*, quick: bool = False, out: Path | None = None) -> dict[str, tuple[int, np.ndarray]]:
    """Draw the paths and the residuals; return the steps and the gradient of u[0] + u[1] of each solver."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    u, v = np.meshgrid(np.linspace(-1.6, 1.5, 120), np.linspace(-0.5, 2.0, 120))
    left.contourf(u, v, np.log10(valley(np.stack([u, v]), FLOOR) + 1e-3), 14, cmap="Blues_r", alpha=0.6)
    found = {}
    for number, name in enumerate(("GradientDescent", "LBFGS", "Newton")):
        solver = getattr(dil.solvers, name)(history=True)
        layer = dil.argmin(valley, solver)
        solution = layer.solve(FLOOR, init=START)
        steps = int(solution.iterations)
        walked = path(solver, min(steps, 10 if quick else 30))
        left.plot(*walked.T, "o-", color=f"C{number}", linewidth=1.2, markersize=3)
        right.loglog(np.arange(1, steps + 1), solution.extra["history"][:steps], color=f"C{number}", label=name)
        slope = dil.grad(lambda floor, layer=layer: np.sum(layer(floor, init=START)))(FLOOR)
        found[name] = (steps, slope)
        print(f"{name:15} {steps:6} steps, gradient {slope:.10f}")
    left.plot(1, 1, "*", color="black", markersize=14)
    left.set(title="paths to the minimum", xlabel="u", ylabel="v")
    right.set(title="residual after each step", xlabel="step", ylabel="||gradient of the score||")
    right.legend()
    if out is not None:
        figure.savefig(out / "convergence.png")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shorter paths")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
