"""A reactor in SciPy's sparse matrices, and its adjoint on NumPy, torch and JAX.

    python docs/examples/reactor.py --out out
    python docs/examples/reactor.py --backend torch     # or jax, under jit; the same numbers

A gas flows around in a square box, diffuses, and reacts. The code is one of finite volumes, as it might be found: it
makes sparse matrices with `scipy.sparse`, and no framework can trace it. Still the steady state is a layer, on every
backend: the code has its residual and the Jacobian of that, and `dil.Jacobian` hands them on. The layer factorises the
sparse Jacobian, and its transpose gives the gradient.

The question: how much more gas is left in the box, if the catalyst is weaker at one place? The answer is one gradient,
in as many rates as there are cells, and it is compared with the adjoint by hand.

Needs SciPy.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sparse
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

import dil

Array = Any
Numbers = NDArray[np.float64]

# %% [markdown]
# The code: the flux through each face, by diffusion and by the flow (upwind), and a reaction of second order in a cell.


# %%
def transport(n: int, diffusion: float = 0.02, speed: float = 4.0) -> sparse.csr_array:
    """Return the matrix of diffusion and flow on n x n cells. The box gives off gas to the left alone."""
    h = 1.0 / n
    faces = np.arange(1, n) * h
    centre = (np.arange(n) + 0.5) * h
    cell = np.arange(n * n).reshape(n, n)
    # the flow turns around the centre: its stream function is sin(pi x) sin(pi y)
    right = speed * np.sin(np.pi * faces)[None, :] * np.cos(np.pi * centre)[:, None] * h
    up = -speed * np.cos(np.pi * centre)[None, :] * np.sin(np.pi * faces)[:, None] * h
    A = sparse.csr_array((n * n, n * n))
    for flow, here, there in ((right, cell[:, :-1], cell[:, 1:]), (up, cell[:-1], cell[1:])):
        q, i, j = flow.reshape(-1), here.reshape(-1), there.reshape(-1)
        out, back = diffusion + np.maximum(q, 0.0), diffusion + np.maximum(-q, 0.0)  # from i to j, and from j to i
        entries = np.concatenate([out, -back, -out, back])
        A += sparse.csr_array((entries, (np.concatenate([i, i, j, j]), np.concatenate([i, j, i, j]))), A.shape)
    wall = np.zeros(n * n)
    wall[cell[:, 0]] = 2.0 * diffusion
    return (A + sparse.diags_array(wall)) / h**2


def residual(A: sparse.csr_array, u: Numbers, source: Numbers, rate: Numbers) -> Numbers:
    """Return what each cell loses, less what it gets."""
    return A @ u + rate * u**2 - source


def jacobian(A: sparse.csr_array, u: Numbers, source: Numbers, rate: Numbers) -> sparse.csr_array:
    """Return d residual / du."""
    return A + sparse.diags_array(2.0 * rate * u)


def by_arguments(u: Numbers, w: Numbers, source: Numbers, rate: Numbers) -> tuple[Numbers, Numbers]:
    """Return w^T d residual / d source and w^T d residual / d rate."""
    return -w, w * u**2


# %% [markdown]
# The layer. Its functions get NumPy arrays on every backend, and under `jax.jit`.


# %%
def steady_state(A: sparse.csr_array) -> Any:
    """Return the layer (source, rate) -> u."""
    given = dil.Jacobian(partial(jacobian, A), mixed=by_arguments)
    start = lambda source, rate: 0.0 * source  # noqa: E731
    return dil.root(partial(residual, A), dil.solvers.Newton(), init=start, derivatives=given, on_failure="raise")


def adjoint_by_hand(A: sparse.csr_array, u: Numbers, source: Numbers, rate: Numbers) -> Numbers:
    """Return d mean(u) / d rate."""
    g = splu(sparse.csc_array(jacobian(A, u, source, rate))).solve(np.full(u.size, 1.0 / u.size), trans="T")
    return -g * u**2


# %%
def main(backend: str = "numpy", *, quick: bool = False, out: Path | None = None) -> tuple[float, Numbers]:
    """Draw; return the largest difference from the adjoint by hand, relative to it, and the gradient by dil."""
    if backend == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    b = dil.backend(backend, dtype="float64")
    n = 16 if quick else 80
    A, h = transport(n), 1.0 / n
    x, y = np.meshgrid((np.arange(n) + 0.5) * h, (np.arange(n) + 0.5) * h)
    source = 40.0 * np.exp(-((x - 0.7) ** 2 + (y - 0.3) ** 2) / 0.01).reshape(-1)
    layer, rate = steady_state(A), np.ones(n * n)

    def both(source: Array, rate: Array) -> tuple[Array, Array]:
        """Return the gas in each cell, and the gradient of its mean."""
        u, pull = dil.vjp(lambda rate: layer(source, rate), rate)
        return u, pull(b.xp.ones_like(u) / n**2)[0]

    run: Any = jax.jit(both) if backend == "jax" else both
    u, gradient = map(b.to_numpy, run(b.asarray(source), b.asarray(rate)))
    by_hand = adjoint_by_hand(A, u, source, rate)
    error = float(np.max(np.abs(gradient - by_hand)) / np.max(np.abs(by_hand)))
    print(f"{backend}: {n * n} cells; the gradient differs from the adjoint by hand by {error:.1e} of it")

    figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    fields = (u, n * n * gradient)
    for ax, field, title in zip(axes, fields, ("gas", "d mean gas / d rate of a place"), strict=True):
        image = ax.imshow(field.reshape(n, n), origin="lower", extent=(0, 1, 0, 1), cmap="viridis")
        ax.set(title=title, xlabel="x", ylabel="y")
        ax.grid(visible=False)
        figure.colorbar(image, ax=ax, shrink=0.8)
    if out is not None:
        figure.savefig(out / "reactor.png")
    return error, gradient


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", default="numpy", choices=("numpy", "torch", "jax"))
    parser.add_argument("--quick", action="store_true", help="a coarse grid")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
