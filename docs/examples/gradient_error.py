"""The error of a gradient against the tolerance of the solver.

No solver returns the exact solution, so no implicit gradient is exact. Its error is about that of the solution, and the
bound that `layer.report` computes lies above it. One Newton step in the layer, `refine=1`, squares the error: a loose
tolerance then costs no digits.

    python docs/examples/gradient_error.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

import dil

RNG = np.random.default_rng(0)
A, X = RNG.normal(size=(12, 6)), RNG.normal(size=12)

# %% [markdown]
# A robust fit: the residuals A u - t x are weighed by log cosh, and a small ridge keeps u bounded.


# %%
def score(u: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Score the coefficients u, (6,), for data of scale t."""
    return np.sum(np.log(np.cosh(A @ u - t * X))) + 0.05 * np.sum(u**2)


def layer(rtol: float | None, refine: int = 0) -> dil.Layer:
    """Return the layer with gradient descent of a tolerance; loose ones are wanted here, so nothing warns of them."""
    solver = dil.solvers.Newton() if rtol is None else dil.solvers.GradientDescent(rtol=rtol)
    return dil.argmin(score, solver, init=lambda t: np.zeros(6), refine=refine, on_failure="ignore")


def gradient(rtol: float | None, refine: int = 0) -> np.ndarray:
    """Return d sum(u) / dt at t = 1."""
    return dil.grad(lambda t: np.sum(layer(rtol, refine)(t)))(np.asarray(1.0))


# %% [markdown]
# The exact gradient is that of Newton's method run to rounding.


# %%
def main(*, quick: bool = False, out: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Draw; return the relative errors with refine = 0, 1, 2, (3, tolerances), and the bounds, (tolerances,)."""
    rtols = np.geomspace(0.3, 1e-10, 6 if quick else 16)
    exact = gradient(None)
    errors = np.asarray([[abs(gradient(r, k) - exact) / abs(exact) for r in rtols] for k in (0, 1, 2)])
    bounds = np.asarray([float(layer(r).report(np.asarray(1.0)).backward.bound) for r in rtols])

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    for refine, row in enumerate(errors):
        left.loglog(rtols, np.maximum(row, 1e-16), "o-", label=f"refine={refine}")
    left.set(title="Newton steps in the layer", xlabel="rtol of gradient descent", ylabel="error of the gradient")
    left.legend(loc="upper left")
    right.loglog(rtols, errors[0], "o-", label="error")
    right.loglog(rtols, bounds, "v--", color="C4", label="bound of layer.report")
    right.fill_between(rtols, errors[0], bounds, color="C4", alpha=0.15)
    right.set(title="the bound holds", xlabel="rtol of gradient descent")
    right.legend(loc="upper left")
    if out is not None:
        figure.savefig(out / "gradient_error.png")
    for rtol, error, bound in zip(rtols, errors[0], bounds, strict=True):
        print(f"rtol {rtol:.1e}: error {error:.1e}, bound {bound:.1e}")
    return errors, bounds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer tolerances")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
