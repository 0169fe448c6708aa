"""Dense solves that raise no exception. A system that cannot be solved gives NaN."""

from __future__ import annotations

from typing import Any

import torch

from dil._frameworks.dense import Crossover, Dense, Host, Overheads
from dil_backends.torch.tracking import is_tracked, transforming

Tensor = torch.Tensor


def cholesky_solve(A: Any, b: Any, /) -> Any:
    """Solve by Cholesky. The result is NaN where A is not positive definite."""
    L, info = torch.linalg.cholesky_ex(_factorable(A))
    return torch.cholesky_solve(_factorable(b), L).masked_fill((info != 0)[..., None, None], torch.nan).to(b.dtype)


def lu_solve(A: Any, b: Any, /) -> Any:
    """Solve by LU. The result is NaN where A is singular."""
    x, info = torch.linalg.solve_ex(_factorable(A), _factorable(b))
    return x.masked_fill((info != 0)[..., None, None], torch.nan).to(b.dtype)


def triangular_solve(T: Any, b: Any, /, *, upper: bool) -> Any:
    """Solve by substitution."""
    return torch.linalg.solve_triangular(T, b, upper=upper)


def _factorable(x: Tensor) -> Tensor:
    """Return x in float32 if its dtype has 16 bits: torch cannot factorise 16-bit matrices."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def host(*arrays: Any) -> Host | None:
    """Return NumPy for plain tensors on the CPU: its operations on few numbers take a third of the time."""
    if not all(type(x) is Tensor and x.is_cpu and x.dtype in SHARED and not x.requires_grad for x in arrays):
        return None
    if transforming() or any(is_tracked(x) for x in arrays):
        return None
    from dil_backends import numpy

    return Host(numpy, _as_numpy, _as_tensor, numpy.quietly)


def _as_numpy(x: Any) -> Any:
    return x.numpy()


def _as_tensor(x: Any) -> Any:
    return torch.from_numpy(x)


SHARED = (torch.float32, torch.float64)
"""The dtypes that NumPy can factorise."""
DENSE = Dense(
    cholesky_solve,
    lu_solve,
    triangular_solve,
    Crossover(symmetric=256, general=1024),
    Overheads(symmetric_step=6e4, general_step=1.6e5, dense=8e5, row=0.0, read_by_row=1 / 32, alone=2**15),
    host,
)
