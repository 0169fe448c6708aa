"""Sparse matrices of blocks (BSR, BSC), for which torch lacks derivatives, and the products of the second kind."""

from __future__ import annotations

import torch

from dil._base.errors import UnsupportedFunctionError
from dil_backends.torch.tracking import transforming

Tensor = torch.Tensor

NAMES = ("SparseBsr", "SparseBsc", "Sparse BSR", "Sparse BSC")
"""How torch names such a matrix in its errors."""
INSTEAD = "take one of the layout COO or CSR instead; of the numbers of a matrix S of blocks S.to_sparse() makes one"


def refuse_blocks(error: Exception) -> None:
    """Raise a clearer error if torch's says that it cannot compute with a sparse matrix of blocks."""
    text = str(error)
    if any(name in text for name in NAMES):
        message = (
            f"torch lacks an operation that a layer needs of a sparse matrix of blocks (BSR or BSC); {INSTEAD} "
            f"(torch: {text})"
        )
        raise UnsupportedFunctionError(message) from error


def refuse_gradient_of_blocks(x: Tensor) -> None:
    """Raise if the gradient in a sparse matrix of blocks is asked for, or a transform of torch.func is to take it."""
    if x.layout not in (torch.sparse_bsr, torch.sparse_bsc):
        return
    found = "requires a gradient" if x.requires_grad and torch.is_grad_enabled() else ""
    if transforming():
        found = "is within a transform of torch.func"
    if found:
        message = (
            f"an argument of a layer {found} and is a sparse matrix of blocks (BSR or BSC), which torch cannot "
            f"differentiate; {INSTEAD}, before its gradient is asked for"
        )
        raise UnsupportedFunctionError(message)
