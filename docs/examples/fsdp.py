"""A layer in a model whose parameters two processes share out, by torch's `fully_shard` (FSDP2).

    python docs/examples/fsdp.py

Each process keeps half of every parameter, and gathers the rest for as long as a module needs it. The backward pass of
a layer calls the score again, so it needs the parameters again; FSDP gathers them for the module that it shards. Shard
the whole model, or the ImplicitModule as well; not the score in it, whose forward the layer calls many times.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

import dil
from dil_backends.nn import ImplicitModule

PROCESSES = 2
TOLERANCE = 1e-10
Solver = dil.solvers.Newton | dil.solvers.GradientDescent


class Energy(torch.nn.Module):
    """A convex energy of each row of u, given a row of features."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.stiffness = torch.nn.Linear(4, 6), torch.nn.Parameter(torch.ones(4))

    def forward(self, u: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return one number for each row."""
        spring = 0.5 * (self.stiffness**2 * (u - features) ** 2).sum(-1)
        return torch.nn.functional.softplus(self.mix(u)).sum(-1) + spring


class Model(torch.nn.Module):
    """An encoder, a layer whose output is the least of the energy, and a read-out."""

    def __init__(self, solver: Solver) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(3, 4)
        self.layer = ImplicitModule(Energy(), solver, batch_ndim=1, init=torch.zeros_like)
        self.readout = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a prediction for each row."""
        return self.readout(self.layer(torch.tanh(self.encoder(x))))


def whole(model: Model) -> None:
    """Shard the model as one."""
    fully_shard(model)


def by_layer(model: Model) -> None:
    """Shard the layer by itself: outside of its own forward and backward pass its parameters are given up again."""
    fully_shard(model.layer)
    fully_shard(model)


def score_alone(model: Model) -> None:
    """Shard the score, which is wrong: the layer meets its parameters before they are gathered."""
    fully_shard(model.layer.score)
    fully_shard(model)


class Case(NamedTuple):
    """A way to shard, and a forward solver."""

    title: str
    shard: Callable[[Model], None]
    solver: Solver


NEWTON, DESCENT = dil.solvers.Newton(), dil.solvers.GradientDescent(rtol=1e-14)
CASES = [
    Case("fully_shard(model), Newton", whole, NEWTON),
    Case("fully_shard(model.layer) too, Newton", by_layer, NEWTON),
    Case("fully_shard(model.layer) too, gradient descent", by_layer, DESCENT),
]


class Sent(TorchDispatchMode):
    """Count the collectives. CommDebugMode of torch does so too, but its hooks refuse the gradients within a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operator of torch.distributed."""
        if func.namespace == "c10d":
            self.counts[func.overloadpacket.__name__.strip("_")] += 1
        return func(*args, **(kwargs or {}))


def make_model(solver: Solver) -> Model:
    """Return the same model in every process."""
    torch.manual_seed(0)
    return Model(solver).double()


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs and targets of the whole batch."""
    generator = torch.Generator().manual_seed(1)
    shapes = (16, 3), (16, 1)
    x, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x, target


def backward(model: Model, x: torch.Tensor, target: torch.Tensor) -> None:
    """Do a forward and a backward pass."""
    torch.nn.functional.mse_loss(model(x), target).backward()


def compare(case: Case, rank: int) -> bool:
    """Print how the gradients differ from those of one process, and the collectives of both passes."""
    single, model = make_model(case.solver), make_model(case.solver)
    backward(single, *make_batch())
    case.shard(model)
    x, target = (part.chunk(PROCESSES)[rank] for part in make_batch())
    with Sent() as sent:
        backward(model, x, target)
    worst = 0.0
    for p, q in zip(single.parameters(), model.parameters(), strict=True):
        worst = max(worst, float((p.grad - q.grad.full_tensor()).abs().max() / p.grad.abs().max()))
    if rank == 0:
        said = ", ".join(f"{n} x {name}" for name, n in sent.counts.items())
        print(f"{case.title}\n  gradients differ by {worst:.1e}, {'agree' if worst <= TOLERANCE else 'DIFFER'}; {said}")
    return worst <= TOLERANCE


def work(rank: int, folder: str) -> None:
    """Do the work of one process."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), PROCESSES)  # needs no port; env:// serves on a cluster
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    dist.init_device_mesh("cpu", (PROCESSES,))
    agree = [compare(case, rank) for case in CASES]
    try:
        compare(Case("", score_alone, NEWTON), rank)
    except dil.BackendError as error:
        if rank == 0:
            print(f"fully_shard(model.layer.score), which is an error\n  {error}")
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
