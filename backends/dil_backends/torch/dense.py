"""Dense solves that raise no exception. A system that cannot be solved gives NaN."""

from __future__ import annotations

from typing import Any

import torch

from dil._frameworks.dense import Crossover, Dense

Tensor = torch.Tensor


def cholesky_solve(A: Any, b: Any, /) -> Any:
    """Solve by Cholesky. The result is NaN where A is not positive definite."""
    L, info = torch.linalg.cholesky_ex(_factorable(A))
    return torch.where((info == 0)[..., None, None], torch.cholesky_solve(_factorable(b), L), torch.nan).to(b.dtype)


def lu_solve(A: Any, b: Any, /) -> Any:
    """Solve by LU. The result is NaN where A is singular."""
    x, info = torch.linalg.solve_ex(_factorable(A), _factorable(b))
    return torch.where((info == 0)[..., None, None], x, torch.nan).to(b.dtype)


def triangular_solve(T: Any, b: Any, /, *, upper: bool) -> Any:
    """Solve by substitution."""
    return torch.linalg.solve_triangular(T, b, upper=upper)


def _factorable(x: Tensor) -> Tensor:
    """Return x in float32 if its dtype has 16 bits: torch cannot factorise 16-bit matrices."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


DENSE = Dense(cholesky_solve, lu_solve, triangular_solve, Crossover(symmetric=256, general=1024, trial=1 / 32))
