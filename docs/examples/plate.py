"""The conductivity of a plate from temperatures on its rim.

    python docs/examples/plate.py --out out
    python docs/examples/plate.py --backend torch     # or jax; the same numbers

A plate has a piece that conducts heat well and one that conducts it badly, and both are hidden. Its rim is heated in
eight patterns, one after the other, and the temperatures on the rim are measured each time, with noise. What is inside?

The unknown is the conductivity of every cell of a grid, 10,000 numbers on 100 x 100. The temperature is the root of a
residual, a layer with a batch of eight problems. The misfit on the rim is differentiated through it: the gradient in
all 10,000 conductivities costs one sparse solve for each pattern. L-BFGS goes down that gradient, and total variation
(Rudin, Osher and Fatemi 1992) chooses among the many plates that explain the data as well. What is deep inside stays
blurred: the rim hardly feels it.

The physics is written once, against the array API: NumPy, torch and JAX run the same lines. Needs SciPy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sparse
from array_api_compat import array_namespace
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse.linalg import splu

import dil

Array = Any
Numbers = NDArray[np.float64]

PATTERNS, LOSS, NOISE = 8, 1.0, 0.001
"""The number of heatings, the heat that the rim loses per degree, and the noise as a share of the temperatures."""
WEIGHT, LENGTH = 0.15, 0.05
"""The weight of the total variation, and the length over which steps are smoothed."""

# %% [markdown]
# What flows through the faces of each cell, with the harmonic mean of the conductivities on both sides.


# %%
def outflow(u: Array, conductivity: Array, axis: int) -> Array:
    """Return the heat that leaves each cell along an axis of u: (patterns, n, n)."""
    xp = array_namespace(u)
    u, k = (xp.moveaxis(x, axis, -1) for x in (u, conductivity))
    here, there = k[..., :-1], k[..., 1:]
    flux = 2.0 * here * there / (here + there) * (u[..., :-1] - u[..., 1:])
    none = 0.0 * u[..., :1]
    return xp.moveaxis(xp.concat([flux, none], axis=-1) - xp.concat([none, flux], axis=-1), -1, axis)


def balance(u: Array, log_conductivity: Array, heating: Array, rim: Array) -> Array:
    """Return what each cell loses less what it gets; rim: the length of the rim of each cell."""
    k = array_namespace(u).exp(log_conductivity)
    return outflow(u, k, -1) + outflow(u, k, -2) + LOSS * rim * u - heating


# %% [markdown]
# The layer. The residual is linear in the temperature, so one Newton step from anywhere solves it: `refine=1` takes
# that step, and the solver has nothing to do. Each cell depends on itself and its four neighbours.


# %%
def stencil(unknowns: int) -> sparse.coo_array:
    """Return the pattern of dF/du: each cell and its neighbours."""
    n = round(unknowns**0.5)
    line = sparse.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(n, n))
    return sparse.kron(line, sparse.eye_array(n)) + sparse.kron(sparse.eye_array(n), line)


temperature = dil.root(
    balance,
    lambda balance, start, *arguments: start,
    refine=1,
    linear_solver=dil.linear.SparseDirect(stencil),
    init=lambda log_conductivity, heating, rim: 0.0 * heating,
    batch_ndim=1,
    on_failure="raise",
)

# %% [markdown]
# The misfit of the rim in units of the noise, and the total variation of the log conductivity.


# %%
def on_rim(u: Array) -> Array:
    """Return the temperatures of the four sides, (patterns, 4 n)."""
    xp = array_namespace(u)
    return xp.concat([u[:, 0, :], u[:, -1, :], u[:, :, 0], u[:, :, -1]], axis=-1)


def variation(m: Array) -> Array:
    """Return the total variation, rounded off where the field is flat."""
    xp = array_namespace(m)
    down, right = m[1:, :-1] - m[:-1, :-1], m[:-1, 1:] - m[:-1, :-1]
    flat = 0.3 / m.shape[0]
    return xp.sum(xp.sqrt(down**2 + right**2 + flat**2) - flat) / m.shape[0]


def misfit(m: Array, heating: Array, rim: Array, measured: Array, noise: float) -> Array:
    """Return the mean square of the differences, in units of the noise: one where the plate explains the data."""
    xp = array_namespace(m)
    return xp.mean(((on_rim(temperature(m, heating, rim)) - measured) / noise) ** 2)


# %%
class Plate(NamedTuple):
    """A plate with its heatings and its measurements."""

    truth: Numbers
    """The log conductivity, (n, n)."""
    heating: Numbers
    rim: Numbers
    measured: Numbers
    noise: float


def hidden_plate(n: int) -> Plate:
    """Return a plate with two pieces in it, and what is measured on its rim."""
    x, y = np.meshgrid((np.arange(n) + 0.5) / n, (np.arange(n) + 0.5) / n)
    good = (x - 0.3) ** 2 + (y - 0.68) ** 2 < 0.17**2
    bad = (abs(x - 0.68) < 0.17) & (abs(y - 0.3) < 0.13)
    truth = np.log(np.where(good, 3.0, np.where(bad, 1 / 3, 1.0)))
    rim = np.zeros((n, n))
    for side in (rim[0], rim[-1], rim[:, 0], rim[:, -1]):
        side += 1.0 / n
    angle = np.arctan2(y - 0.5, x - 0.5)
    waves = [wave(order * angle) for order in range(1, PATTERNS // 2 + 1) for wave in (np.cos, np.sin)]
    heating = (1.0 + np.stack(waves)) * rim
    exact = on_rim(temperature(truth, heating, rim))
    noise = NOISE * float(np.sqrt(np.mean(exact**2)))
    return Plate(truth, heating, rim, exact + noise * np.random.default_rng(0).normal(size=exact.shape), noise)


def smoothing(n: int) -> Any:
    """Return the factors of I - LENGTH^2 lap on the grid, so that L-BFGS begins with smooth steps."""
    line = sparse.diags_array([-np.ones(n - 1), np.full(n, 2.0), -np.ones(n - 1)], offsets=[-1, 0, 1]).tolil()
    line[0, 0] = line[-1, -1] = 1.0  # nothing beyond the rim
    laplacian = sparse.kron(line, sparse.eye_array(n)) + sparse.kron(sparse.eye_array(n), line)
    return splu(sparse.csc_array(sparse.eye_array(n * n) + (LENGTH * n) ** 2 * laplacian))


def objective(plate: Plate, weight: float, backend: str) -> Callable[[Numbers], tuple[float, Numbers]]:
    """Return the function that L-BFGS of SciPy lowers: its value and gradient, computed on a backend."""
    b = dil.backend(backend, dtype="float64")
    heating, rim, measured = map(b.asarray, (plate.heating, plate.rim, plate.measured))

    def total(m: Array) -> Array:
        return 0.5 * misfit(m, heating, rim, measured, plate.noise) + weight * variation(m)

    both: Any = dil.value_and_grad(total)
    if backend == "jax":
        import jax

        both = jax.jit(both)

    def evaluate(m: Numbers) -> tuple[float, Numbers]:
        value, slope = both(b.asarray(m.reshape(plate.truth.shape)))
        return float(value), b.to_numpy(slope).reshape(-1)

    return evaluate


# %%
class Found(NamedTuple):
    """What came of it."""

    m: Numbers
    misfit: float
    """In units of the noise."""
    error: float
    """The root mean square of the difference from the truth, beside that of the plate without pieces."""
    path: list[float]
    """The objective after each iteration."""


def main(backend: str = "numpy", *, quick: bool = False, out: Path | None = None) -> Found:
    """Reconstruct the plate, and draw it beside the truth."""
    if backend == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    n, steps = (16, 12) if quick else (100, 60)
    plate, path = hidden_plate(n), list[float]()
    evaluate, smooth = objective(plate, WEIGHT, backend), smoothing(n)

    def of_rough(p: Numbers) -> tuple[float, Numbers]:
        """Return the objective of the field that comes of smoothing p, and its gradient."""
        value, slope = evaluate(smooth.solve(p))
        return value, smooth.solve(slope)

    best = minimize(
        of_rough,
        np.zeros(n * n),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxcor": 20},
        callback=lambda intermediate_result: path.append(float(intermediate_result.fun)),
    )
    m = smooth.solve(best.x).reshape(n, n)
    of_data = float(misfit(m, *plate[1:]))
    error = float(np.sqrt(np.mean((m - plate.truth) ** 2) / np.mean(plate.truth**2)))
    print(f"{backend}: {n * n} unknowns, {best.nfev} gradients; misfit {of_data:.2f} of the noise, error {error:.2f}")

    figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    for ax, field, title in zip(axes, (plate.truth, m), ("the plate", "found from its rim"), strict=True):
        image = ax.imshow(
            np.exp(field), origin="lower", extent=(0, 1, 0, 1), cmap="RdBu_r", norm="log", vmin=0.3, vmax=3.3
        )
        ax.set(title=title, xticks=(), yticks=())
        ax.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="conductivity", ticks=[1 / 3, 1, 3], format="%.2g")
    bar.minorticks_off()
    if out is not None:
        figure.savefig(out / "plate.png")
    return Found(m, of_data, error, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", default="numpy", choices=("numpy", "torch", "jax"))
    parser.add_argument("--quick", action="store_true", help="a coarse grid")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
