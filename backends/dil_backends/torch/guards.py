"""Guards of a layer against torch: compilers, autocast, tracing, and tensors without numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

from dil._base.errors import BackendError, UnsupportedFunctionError
from dil._frameworks.registry import leaves_of
from dil_backends.torch.dispatch_modes import without_selective_checkpoints
from dil_backends.torch.dtensors import distributed, together
from dil_backends.torch.isolation import above_autograd, autocasts, isolated
from dil_backends.torch.tracking import transforms

Tensor = torch.Tensor
Tensors = tuple[Tensor, ...]


def guard(fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
    """Wrap fn so that torch.compile skips it. With `exact`, autocast and caches of weights are off inside fn.

    The tensors of 16 bits that autocast has made become float32. A layer contains a data-dependent loop, so
    torch.compile breaks the graph at the layer. Autocast would lose digits that a solve needs.
    """
    call = partial(_guarded, fn, exact)
    if torch.compiler.is_compiling():
        return partial(_uncompiled, call)
    return torch.compiler.disable(call) if _compiles_frames() else call  # type: ignore[no-untyped-call]


def _compiles_frames() -> bool:
    """Whether torch.compile looks at every function that is called from here on.

    `is_compiling` is False where it has given up a graph, as it does around a break within a transform of torch.func.
    It would then compile the solver function by function, and lose the graph that the transform differentiates.
    """
    return callable(torch._C._dynamo.eval_frame.get_eval_frame_callback())


def _guarded(fn: Callable[..., Any], exact: bool, *args: Any, **kwargs: Any) -> Any:
    if not exact:
        with above_autograd(), without_selective_checkpoints():
            return fn(*args, **kwargs)
    refuse_tracers()
    kinds = autocasts()
    if kinds:
        args, kwargs = pytree.tree_map(partial(_widened, kinds), (args, kwargs))
    shards = together(leaves_of((args, kwargs))[0] if distributed() else ())
    with isolated(), without_selective_checkpoints(), shards:
        return fn(*args, **kwargs)


def _widened(kinds: Sequence[str], x: Any) -> Any:
    """Return a tensor of 16 bits as float32, as torch.amp.custom_fwd(cast_inputs=torch.float32) does; else x."""
    half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) and x.device.type in kinds
    return x.float() if half else x


def _uncompiled(call: Callable[..., Any], *args: Any) -> Any:
    """Call `call` outside of compiled graphs."""
    return torch.compiler.disable(partial(_not_under_grad, call))(*args)  # type: ignore[no-untyped-call]


# torch.compiler.disable sets the same attributes, but it imports the compiler, which few programs need
_uncompiled._torchdynamo_disable = True  # type: ignore[attr-defined]
_uncompiled._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
    "a dil layer is a loop in Python outside of compiled graphs; use torch.compile without fullgraph=True, or put the "
    "layer into a torch.library.custom_op"
)


def _not_under_grad(call: Callable[..., Any], *args: Any) -> Any:
    """Call `call`. Raise inside a reverse derivative of torch.func, whose code after the call torch fails to compile.

    Other backends than "eager" compile nothing inside a transform of torch.func, and do not come here.
    """
    if "Grad" in transforms():
        message = (
            "a dil layer in a reverse derivative of torch.func inside torch.compile(backend='eager'): torch cannot "
            "take up a graph there; take another backend, such as 'aot_eager', put torch.compiler.disable on the "
            "function that takes the derivative, or take it by torch.autograd.grad"
        )
        raise UnsupportedFunctionError(message)
    return call(*args)


def refuse_tracers() -> None:
    """Raise if torch records operations instead of computing them. The loop of a layer depends on computed values."""
    found = None
    if torch._C._is_tracing():
        found = "torch.jit.trace", "torch.compile"
    elif torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        found = "torch.export, make_fx and torch.func.linearize", "torch.compile, and torch.func.jvp for a derivative"
    elif torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        found = "torch.export or a FakeTensorMode", "torch.compile"
    elif "Functionalize" in transforms():
        found = "torch.func.functionalize", "the function itself, whose layers write into nothing"
    if found is not None:
        message = f"a dil layer cannot be recorded by {found[0]}: how it runs depends on the numbers; use {found[1]}"
        raise UnsupportedFunctionError(message)


def refuse_no_numbers(args: Tensors) -> None:
    """Raise for tensors on the device meta."""
    if any(x.is_meta for x in args):
        message = "a dil layer got a tensor on device meta, which holds no numbers to solve with; move it to another"
        raise BackendError(message)


def old_vmap_level(given: Sequence[Any]) -> int | None:
    """Return the level of torch's legacy vmap if some of the tensors belong to it."""
    if not any(is_old_batch(x) for x in given):
        return None
    level: int = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


def taken_apart(x: Any, level: Any, size: int) -> Any:
    """Return the rows of a tensor of the legacy vmap, first axis; `size` copies of another tensor."""
    return torch._remove_batch_dim(x, level, size, 0)


def is_old_batch(x: Any) -> bool:
    """Whether x is a batched tensor of torch's legacy vmap."""
    return isinstance(x, Tensor) and torch._C._functorch.is_legacy_batchedtensor(x)


def refuse_old_vmap(given: Sequence[Any]) -> None:
    """Raise for the batched tensors of torch's legacy vmap, which has rules for few operations."""
    if any(is_old_batch(x) for x in given):
        message = (
            "a dil layer under vectorize=True of torch.autograd in forward mode, whose vmap lacks what it needs; use "
            "torch.func.jacfwd, jacrev or hessian"
        )
        raise UnsupportedFunctionError(message)
