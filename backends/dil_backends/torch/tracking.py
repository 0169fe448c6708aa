"""Whether a tensor takes part in a differentiation, and which transforms of torch.func are under way."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

Tensor = torch.Tensor


def transforming() -> bool:
    """Whether a transform of `torch.func` is under way here; inside `Implicit.forward` none is."""
    return torch._C._are_functorch_transforms_active()


def transforms() -> set[str]:
    """Name the kinds of the transforms of torch.func under way."""
    if not transforming():
        return set()
    return {level.key().name for level in torch._C._functorch.get_interpreter_stack() or ()}


def has_tangent(x: Tensor) -> bool:
    """Whether x carries a tangent of forward-mode differentiation."""
    # outside every dual_level, which is where almost all calls are, there is nothing to unpack
    if forward_ad._current_level < 0:
        return False
    while torch._C._functorch.is_batchedtensor(x):  # a vmap has no rule for unpacking what is differentiated around it
        x = torch._C._functorch.get_unwrapped(x)
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def is_tracked(x: Tensor) -> bool:
    """Whether a derivative with respect to x is being recorded here."""
    return (torch.is_grad_enabled() and x.requires_grad) or has_tangent(x)


def is_differentiated(x: Tensor) -> bool:
    """Whether a derivative is being taken in x, by autograd or by torch.func."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_gradtrackingtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return x.requires_grad or has_tangent(x)
