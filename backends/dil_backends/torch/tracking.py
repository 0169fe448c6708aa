"""Tests whether a tensor is being differentiated, and which transforms of torch.func are active."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

Tensor = torch.Tensor


def transforming() -> bool:
    """Whether a transform of `torch.func` is active here. None is active inside `Implicit.forward`."""
    return torch._C._are_functorch_transforms_active()


def transforms() -> set[str]:
    """Return the kinds of the active transforms of torch.func."""
    if not transforming():
        return set()
    return {level.key().name for level in torch._C._functorch.get_interpreter_stack() or ()}


def has_tangent(x: Tensor) -> bool:
    """Whether x carries a tangent of forward-mode differentiation."""
    # almost all calls are outside any dual_level, where there is nothing to unpack
    if forward_ad._current_level < 0:
        return False
    while torch._C._functorch.is_batchedtensor(x):  # vmap has no rule for unpack_dual
        x = torch._C._functorch.get_unwrapped(x)
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def is_plain(*given: Tensor) -> bool:
    """Whether no derivative of a computation with the tensors is being recorded here."""
    return not (torch.is_grad_enabled() or transforming() or any(map(has_tangent, given)))


def is_tracked(x: Tensor) -> bool:
    """Whether a derivative with respect to x is being recorded here, or around the vmap that x belongs to."""
    while not ((torch.is_grad_enabled() and x.requires_grad) or has_tangent(x)):
        if not torch._C._functorch.is_functorch_wrapped_tensor(x):
            return False
        x = torch._C._functorch.get_unwrapped(x)
    return True


def is_differentiated(x: Tensor) -> bool:
    """Whether autograd or torch.func differentiates with respect to x."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_gradtrackingtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return x.requires_grad or has_tangent(x)
