"""Relaxing a cluster of atoms, and how the shape answers to one swollen atom.

The positions of least energy are an argmin layer over the coordinates. Its derivative in the size of the atom in the
middle is the strain that this atom puts on the others. The least energy itself is `dil.value`, and its slope needs no
linear solve at all (the Hellmann-Feynman theorem).

    python docs/examples/cluster.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

import dil

DOUBLE = torch.float64

# %% [markdown]
# Atoms attract and repel by the potential of Lennard-Jones. The energy does not change when the cluster moves or turns,
# so three coordinates are fixed: without that the Hessian is singular.


# %%
def positions(u: Tensor) -> Tensor:
    """Return the atoms, (n, 2): the first at the origin, the second on the first axis, the others free."""
    return torch.cat([torch.zeros(3, dtype=u.dtype)[:2], u[:1], torch.zeros(1, dtype=u.dtype), u[1:]]).reshape(-1, 2)


def energy(u: Tensor, size: Tensor) -> Tensor:
    """Score the free coordinates u, (2 n - 3,), for atoms of size one but the first."""
    atoms = positions(u)
    i, j = torch.triu_indices(len(atoms), len(atoms), 1)
    distance = ((atoms[i] - atoms[j]) ** 2).sum(-1).sqrt()
    reach = torch.where(i == 0, 0.5 * (1.0 + size), 1.0)  # of a pair: the mean of the two sizes
    return (4.0 * ((reach / distance) ** 12 - (reach / distance) ** 6)).sum()


relax = dil.argmin(energy, dil.solvers.LBFGS())
least = dil.value(energy, dil.solvers.LBFGS())


def hexagon(rings: int) -> Tensor:
    """Return the free coordinates of rings of atoms about the first, uneven at the edge; a guess for the relaxation."""
    steps = range(-rings, rings + 1)
    cells = sorted((a * a + a * b + b * b, b, -a) for a in steps for b in steps if abs(a + b) <= rings)
    cells = [(0, 0, 0), (1, 0, -1), *(c for c in cells[1:] if c != (1, 0, -1))][: 5 if rings == 1 else 15]
    flat = 1.12 * torch.tensor([(0.5 * b - a, 0.75**0.5 * b) for _, b, a in cells], dtype=DOUBLE).reshape(-1)
    return torch.cat([flat[2:3], flat[4:]])


# %% [markdown]
# `dil.jvp` pushes a change of the size through the layer: the displacement of every atom, by one linear solve.


# %%
def main(*, quick: bool = False, out: Path | None = None) -> tuple[Tensor, Tensor, float]:
    """Draw; return the atoms, their displacements, and the error of the displacements against a difference."""
    guess, one = hexagon(1 if quick else 2), torch.ones((), dtype=DOUBLE)
    u, moved = dil.jvp(lambda size: relax(size, init=guess), (one,), (one,))
    h = 1e-4
    quotient = (relax(one + h, init=guess) - relax(one - h, init=guess)) / (2 * h)
    error = float((moved - quotient).abs().max() / quotient.abs().max())
    sizes = torch.linspace(0.85, 1.2, 8, dtype=DOUBLE)
    lines = [dil.value_and_grad(lambda size: least(size, init=guess))(size) for size in sizes]
    print(f"{len(positions(u))} atoms; displacements differ from a difference quotient by {error:.1e}")

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    atoms, arrows = positions(u), positions(moved)
    for number, atom in enumerate(atoms):
        left.add_patch(plt.Circle(atom, 0.5, color="C1" if number == 0 else "C5", alpha=0.6))
    left.quiver(*atoms.T, *arrows.T, angles="xy", scale_units="xy", scale=1, width=0.009, zorder=3)
    reach = float(atoms.abs().max()) + 0.9
    left.set(title="displacement per size of the middle", xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    left.axis("off")
    right.plot(sizes, [line[0] for line in lines], "o", label="least energy")
    for size, (height, slope) in zip(sizes, lines, strict=True):
        near = torch.stack([size - 0.02, size + 0.02])
        right.plot(near, height + slope * (near - size), color="C1")
    right.plot([], [], color="C1", label="its slope")
    right.set(title="energy", xlabel="size of the atom in the middle")
    right.legend()
    if out is not None:
        figure.savefig(out / "cluster.png")
    return atoms, arrows, error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer atoms")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
