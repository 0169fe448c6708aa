"""A layer in a model that two processes train together, by torch's DistributedDataParallel.

    python docs/examples/ddp.py

Each process holds the whole model and half of the batch; DDP averages the gradients while the backward pass runs.
They are held against those of one process with the whole batch.
"""

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import dil
from dil_backends.nn import ImplicitModule

PROCESSES = 2
TOLERANCE = 1e-10


class Energy(torch.nn.Module):
    """A convex energy of each row of u, given a row of features."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.stiffness = torch.nn.Linear(4, 6), torch.nn.Parameter(torch.ones(4))

    def forward(self, u: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return one number for each row."""
        spring = 0.5 * (self.stiffness**2 * (u - features) ** 2).sum(-1)
        return torch.nn.functional.softplus(self.mix(u)).sum(-1) + spring


def make_model() -> torch.nn.Module:
    """Return an encoder, a layer whose output is the least of the energy, and a read-out."""
    torch.manual_seed(0)
    layer = ImplicitModule(Energy(), dil.solvers.Newton(), batch_ndim=1, init=torch.zeros_like)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), layer, torch.nn.Linear(4, 1)).double()


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs and targets of the whole batch."""
    generator = torch.Generator().manual_seed(1)
    shapes = (16, 3), (16, 1)
    x, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x, target


def gradients(model: torch.nn.Module, x: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient in each parameter, by its name in the model without the wrapper of DDP."""
    torch.nn.functional.mse_loss(model(x), target).backward()
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {name: grad for name, grad in found.items() if grad is not None}


def work(rank: int, folder: str) -> None:
    """Do the work of one process; the first writes down the gradients."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), PROCESSES)  # needs no port; env:// serves on a cluster
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    model = DistributedDataParallel(make_model())
    x, target = (part.chunk(PROCESSES)[rank] for part in make_batch())
    found = gradients(model, x, target)
    if rank == 0:
        torch.save(found, Path(folder) / "gradients.pt")
    dist.destroy_process_group()


def main() -> int:
    """Return the exit status: 1 if the gradients differ."""
    single = gradients(make_model(), *make_batch())
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (folder,), PROCESSES)
        shared = torch.load(Path(folder) / "gradients.pt")
    print(f"Gradients of {PROCESSES} processes, half of the batch each, and of one with all of it")
    print(f"{'parameter':20} {'largest entry':>13} {'difference':>10}")
    agree = single.keys() == shared.keys()
    for name, expected in single.items():
        size, difference = float(expected.abs().max()), float((shared[name] - expected).abs().max())
        agree = agree and difference <= TOLERANCE * size
        print(f"{name:20} {size:13.1e} {difference:10.1e} {'agrees' if difference <= TOLERANCE * size else 'DIFFERS'}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
