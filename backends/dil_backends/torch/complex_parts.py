"""Complex tensors as real ones. Both ways are views where torch can make one."""

from __future__ import annotations

from typing import Any

import torch

from dil._frameworks.complex_parts import ComplexParts


def split(z: Any) -> Any:
    """Return the parts of a complex tensor. One that is conjugated lazily is copied."""
    return torch.view_as_real(z.resolve_conj() if z.is_conj() else z)


def join(parts: Any) -> Any:
    """Return the complex tensor of real parts. Parts that do not lie side by side are copied."""
    *others, last = parts.stride()
    if last == 1 and parts.storage_offset() % 2 == 0 and all(stride % 2 == 0 for stride in others):
        return torch.view_as_complex(parts)
    # not `torch.complex`, whose derivative vmap cannot map where the cotangent is conjugated lazily
    return torch.view_as_complex(parts.clone(memory_format=torch.contiguous_format))


def aligned(parts: Any) -> Any:
    """Return a copy. Its cotangents are copies too, and so begin at an even place, as the views of torch require."""
    return parts * 1.0


COMPLEX_PARTS = ComplexParts(split, join, aligned)
