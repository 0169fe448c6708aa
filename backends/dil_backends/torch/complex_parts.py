"""Complex tensors as real ones. Both ways are views where torch can make one."""

from __future__ import annotations

import torch

from dil._frameworks.complex_parts import ComplexParts

Tensor = torch.Tensor


def split(z: Tensor) -> Tensor:
    """Return the parts of a complex tensor. One that is conjugated lazily is copied."""
    return torch.view_as_real(z.resolve_conj() if z.is_conj() else z)


def split_beside(z: Tensor) -> Tensor:
    """Return the parts, with a derivative for cotangents that start at an odd place, which that of `split` refuses."""
    return split(z) * 1.0


def join(parts: Tensor) -> Tensor:
    """Return the complex tensor of real parts. Parts that do not lie side by side are copied."""
    *others, last = parts.stride()
    if last == 1 and parts.storage_offset() % 2 == 0 and all(stride % 2 == 0 for stride in others):
        return torch.view_as_complex(parts)
    # not `torch.complex`, whose derivative vmap cannot map where the cotangent is conjugated lazily
    return torch.view_as_complex(parts.clone(memory_format=torch.contiguous_format))


COMPLEX_PARTS = ComplexParts(split, join, split_beside)
