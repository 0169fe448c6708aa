"""Functions that the benchmarks share: environment, worker processes, alternating timing, tables."""

from __future__ import annotations

import gc
import importlib.metadata
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JAX_ENABLE_X64": "1",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}
"""What the workers find in their environment when they import the frameworks."""
BACKENDS = ("torch", "jax", "numpy")


def chosen_backends(names: str) -> tuple[str, ...]:
    """Return the backends that an option names."""
    chosen = tuple(name.strip() for name in names.split(","))
    if unknown := sorted(set(chosen) - set(BACKENDS)):
        message = f"unknown backend {unknown[0]!r}; expected some of {', '.join(BACKENDS)}"
        raise typer.BadParameter(message)
    return chosen


def one_thread(backend: str) -> None:
    """Keep a framework that does not look at its environment to one thread."""
    if backend == "torch":
        import torch

        torch.set_num_threads(1)


def one_core() -> None:
    """Keep this process to one core, so that the pools of threads of a framework that are idle take no time."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class Lap(NamedTuple):
    """The seconds of one call: by the clock on the wall, and of the processor, which other programs do not lengthen."""

    wall: float
    cpu: float


def in_turn(calls: Sequence[Callable[[], Any]], seconds: float, least: int, warm: int = 2) -> list[tuple[Lap, ...]]:
    """Time some calls in turn; the order alternates, and the first rounds are dropped."""
    repeat = max(1, int(1e-3 / lap(calls[0], 3 if warm else 1).wall))
    gc.collect()
    rounds: list[tuple[Lap, ...]] = []
    start = time.perf_counter()
    while len(rounds) < least + warm or time.perf_counter() - start < seconds:
        if len(rounds) % 2:
            laps = [lap(call, repeat) for call in reversed(calls)][::-1]
        else:
            laps = [lap(call, repeat) for call in calls]
        rounds.append(tuple(laps))
    return rounds[warm:]


def lap(call: Callable[[], Any], repeat: int) -> Lap:
    """Time one call, as the mean of some."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeat):
        call()
    return Lap((time.perf_counter() - wall) / repeat, (time.process_time() - cpu) / repeat)


def relative(a: Any, b: Any) -> float:
    """Return ||a - b|| / ||b||."""
    import numpy as np

    a, b = (np.asarray(x.detach() if hasattr(x, "detach") else x) for x in (a, b))
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-300))


class Fresh:
    """Runs functions in worker processes, one after the other; the parent imports no framework and stays small."""

    def __init__(self, *, every_time: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1 if every_time else None)

    def __call__(self, function: Callable[..., Any], *args: object, **options: object) -> Any:
        """Run one function in a worker."""
        return self.pool.submit(function, *args, **options).result()

    def __enter__(self) -> Fresh:
        return self

    def __exit__(self, *exception: object) -> None:
        self.pool.shutdown()


def machine() -> dict[str, str]:
    """Say what this ran on."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    packages = ("numpy", "torch", "jax", "jaxlib", "array-api-compat")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return {"cpu": f"{cpu}, {os.cpu_count()} cores", "system": platform.system(), **versions}


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def described(host: dict[str, str]) -> str:
    """Say on one line what `machine` found."""
    return "; ".join(f"{key}: {value}" for key, value in host.items())


def word(met: bool | None) -> str:
    return "-" if met is None else "yes" if met else "MISSED"


def show(console: Console, title: str, heads: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    table = Table(*heads, title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in cells:
        table.add_row(*row, style="red" if row[-1] == "MISSED" else None)
    console.print(table)


def markdown(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
