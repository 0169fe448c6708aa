"""The spectrum of the Hessian, and what a preconditioner does to it.

The backward pass of a layer solves one system with the Hessian H, by products alone. How many products CG needs is
decided by the eigenvalues of H: here unknowns of very different scales spread them over four decades. Dividing by the
diagonal (Jacobi) pulls them together, and `layer.report` estimates both ends of the spectrum without forming H.

    python docs/examples/spectrum.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

import dil
from dil.linear import CG, Jacobi, Nystrom, Operator

torch.set_default_dtype(torch.float64)

# %% [markdown]
# The score pulls each unknown to its target with its own strength, and ties neighbours together by springs.


# %%
def score(u: Tensor, target: Tensor, strength: Tensor) -> Tensor:
    """Score u, (n,), with one strength for each unknown."""
    pull = 0.5 * (strength * (u - target) ** 2).sum()
    return pull + 0.25 * ((u[1:] - u[:-1]) ** 2).sum() + 0.1 * torch.log(torch.cosh(u)).sum()


PRECONDITIONERS = {"no preconditioner": None, "Nystrom, rank 15": Nystrom(15), "Jacobi": Jacobi()}


def residuals(A: Operator, b: Tensor, preconditioner: Jacobi | Nystrom | None, counts: range) -> list[float]:
    """Return ||b - A x|| / ||b|| after each number of iterations of CG."""
    answers = (CG(preconditioner=preconditioner, max_iter=count)(A, b).value for count in counts)
    return [float((b - A.matvec(x)).norm() / b.norm()) for x in answers]


# %% [markdown]
# `torch.func.hessian` forms H, only to look at it. The layer never does when its linear solver is CG.


# %%
def main(*, quick: bool = False, out: Path | None = None) -> dict[str, float]:
    """Draw spectra and residuals; return the extreme eigenvalues, and the estimates of `layer.report`."""
    n = 24 if quick else 48
    strength, target = torch.logspace(0, 4, n), torch.sin(0.3 * torch.arange(n))
    layer = dil.argmin(score, dil.solvers.Newton(), linear_solver=CG(preconditioner=Jacobi()))
    H = torch.func.hessian(score)(layer(target, strength, init=target), target, strength)
    scale = H.diagonal().rsqrt()
    spectrum, scaled = torch.linalg.eigvalsh(H), torch.linalg.eigvalsh(scale[:, None] * H * scale)
    seen = layer.report(target, strength, init=target).backward

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    left.semilogy(spectrum, "o", label="H")
    left.semilogy(scaled, "o", color="C2", label="H divided by its diagonal")
    for end in (seen.lowest, seen.highest):
        left.axhline(float(end), color="C1", linestyle="--", linewidth=1.2)
    left.plot([], [], "--", color="C1", label="ends, as layer.report estimates them")
    left.set(title="eigenvalues", xlabel="number", ylim=(None, float(spectrum[-1]) * 60))
    left.legend(loc="upper left")
    A, counts = Operator(lambda p: H @ p, symmetric=True), range(1, 4 * n, 12 if quick else 2)
    for number, (name, preconditioner) in enumerate(PRECONDITIONERS.items()):
        right.semilogy(counts, residuals(A, torch.ones(n), preconditioner, counts), color=f"C{number}", label=name)
    right.set(title="CG", xlabel="iterations", ylabel="relative residual", ylim=(1e-13, 1e3))
    right.legend(loc="upper right")
    if out is not None:
        figure.savefig(out / "spectrum.png")
    found = {"lowest": float(spectrum[0]), "highest": float(spectrum[-1])}
    found |= {"lowest seen": float(seen.lowest), "highest seen": float(seen.highest)}
    print(found)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer unknowns")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
