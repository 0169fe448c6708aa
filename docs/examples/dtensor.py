"""One problem whose unknown two processes share out, by torch's DTensor.

    python docs/examples/dtensor.py

Each process holds half of the unknown and of the data. No code of the layer knows of it: the arguments are DTensors,
and so are the solution and the gradients. They are held against those of one process that holds all.
"""

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

import dil

PROCESSES = 2
TOLERANCE = 1e-10
UNKNOWNS = 512


def well(u: torch.Tensor, x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Score one unknown whose entries all meet their mean, u and x: (n,); theta: (2,)."""
    apart = ((u - u.mean()) ** 2).sum()
    return 0.5 * theta[0] * apart + 0.25 * theta[1] * (u**4).sum() + 0.5 * ((u - x) ** 2).sum()


class Case(NamedTuple):
    """A forward solver."""

    title: str
    layer: dil.Layer


# CG never builds a matrix, as the default may, which no process would hold for a large problem
CASES = [
    Case("LBFGS", dil.argmin(well, dil.solvers.LBFGS(), linear_solver=dil.linear.CG())),
    Case("descent", dil.argmin(well, dil.solvers.GradientDescent(), linear_solver=dil.linear.CG())),
]


def make_arguments() -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and theta, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(UNKNOWNS, generator=generator, dtype=torch.float64)
    return x, torch.tensor([1.0, 0.5], dtype=torch.float64)


def gradients(layer: dil.Layer, x: torch.Tensor, theta: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return y, and the gradients of a loss of it."""
    x, theta = x.requires_grad_(), theta.requires_grad_()
    y = layer(x, theta, init=torch.zeros_like(x))
    gx, gtheta = torch.autograd.grad(torch.sin(y).sum(), (x, theta))
    return {"y": y.detach(), "dx": gx, "dtheta": gtheta}


def compare(case: Case, rank: int) -> bool:
    """Print how the solution and the gradients differ from those of one process, and where they are."""
    single = gradients(case.layer, *make_arguments())
    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    placements: list[list[Placement]] = [[Shard(0)], [Replicate()]]
    spread = [distribute_tensor(a, mesh, places) for a, places in zip(make_arguments(), placements, strict=True)]
    agree = True
    for name, found in gradients(case.layer, *spread).items():
        assert isinstance(found, DTensor)
        size = single[name].abs().max()
        difference = float((found.full_tensor() - single[name]).abs().max() / size)
        agree = agree and difference <= TOLERANCE
        if rank == 0:
            held = f"{found.to_local().numel()} of {found.numel()} numbers here"
            verdict = "agrees" if difference <= TOLERANCE else "DIFFERS"
            print(f"{case.title:7} {name:7} differs by {difference:.1e}, {verdict}; {held}")
    return agree


def work(rank: int, folder: str) -> None:
    """Do the work of one process."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), PROCESSES)  # needs no port; env:// serves on a cluster
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    agree = [compare(case, rank) for case in CASES]
    dist.destroy_process_group()
    if not all(agree):
        sys.exit(1)


def main() -> int:
    """Return the exit status: 1 if the gradients differ."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (folder,), PROCESSES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
