"""Contexts of torch that a user puts around a layer, and that must not reach into its computations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch


def isolated() -> AbstractContextManager[object]:
    """Return a context in which operations keep their dtype, weights are computed anew, and solves record graphs.

    Compiled autograd is off, since it would record the gradients within a solve and compute them later.
    """
    kinds, parametrize = autocasts(), sys.modules.get("torch.nn.utils.parametrize")
    caching = parametrize is not None and parametrize._cache_enabled
    engine = sys.modules.get("torch._dynamo.compiled_autograd")
    compiling = engine is not None and (engine.compiled_autograd_enabled or engine.in_compiled_autograd_region)
    if not kinds and not caching and not compiling:
        return above_autograd()
    stack = ExitStack()
    stack.enter_context(above_autograd())
    for kind in kinds:
        stack.enter_context(torch.autocast(kind, enabled=False))
    if compiling:
        stack.enter_context(engine._disable())  # type: ignore[union-attr]
    if caching:
        stack.enter_context(_without_cache(parametrize))
    return stack


KERNELS = ("flash", "mem_efficient", "math", "cudnn")
"""The kernels of scaled dot-product attention."""

Kernels = tuple[bool, ...]
_is_allowed = [getattr(torch._C, f"_get_{name}_sdp_enabled") for name in KERNELS]


def attention_kernels() -> Kernels:
    """Return which kernels of attention are allowed here."""
    return tuple([is_allowed() for is_allowed in _is_allowed])


def allowing(kernels: Kernels) -> AbstractContextManager[object]:
    """Allow the kernels of attention that were allowed at the forward call: others may have no second derivative."""
    here = attention_kernels()
    return nullcontext() if kernels == here else _allowing(kernels, here)


@contextmanager
def _allowing(kernels: Kernels, here: Kernels) -> Iterator[None]:
    _allow(kernels)
    try:
        yield
    finally:
        _allow(here)


def _allow(kernels: Kernels) -> None:
    for name, allowed in zip(KERNELS, kernels, strict=True):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(allowed)


def outside_of_compilers(fn: Callable[..., Any], *args: Any) -> Any:
    """Call fn as it is. Compiled autograd would compile a linear solve, whose loop depends on computed values."""
    return torch.compiler.disable(fn)(*args) if "torch._dynamo" in sys.modules else fn(*args)  # type: ignore[no-untyped-call]


outside_of_compilers._torchdynamo_disable = True  # type: ignore[attr-defined]


def autocasts() -> list[str]:
    """Return the kinds of devices for which autocast is on."""
    return [kind for kind in _kinds() if torch.is_autocast_enabled(kind)]


@cache
def _kinds() -> tuple[str, ...]:
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ("cpu",) if here is None else ("cpu", here.type)


@contextmanager
def _without_cache(parametrize: object) -> Iterator[None]:
    """Switch off `parametrize.cached()`. A solver would fill the cache with weights that have no derivative."""
    depth, parametrize._cache_enabled = parametrize._cache_enabled, 0  # type: ignore[attr-defined]
    try:
        yield
    finally:
        parametrize._cache_enabled = depth  # type: ignore[attr-defined]


BELOW = torch._C.DispatchKey.AutogradFunctionality


def is_below_autograd() -> bool:
    """Whether operations record no graph, whatever enable_grad says: so it is in the kernel of a custom operator.

    So it is in inference mode, too, which `autograd_on` leaves in its own way.
    """
    keys, inplace = torch._C, torch._C.DispatchKey.ADInplaceOrView
    return keys._dispatch_tls_is_dispatch_key_excluded(BELOW) and keys._dispatch_tls_is_dispatch_key_included(inplace)


def above_autograd() -> AbstractContextManager[object]:
    """Return a context in which a solve can record graphs of its own, in the kernel of a custom operator too."""
    return _above_autograd() if is_below_autograd() else nullcontext()


@contextmanager
def _above_autograd() -> Iterator[None]:
    torch._C._dispatch_tls_set_dispatch_key_excluded(BELOW, False)
    try:
        with torch.no_grad():  # as the operator itself, the result has no graph
            yield
    finally:
        torch._C._dispatch_tls_set_dispatch_key_excluded(BELOW, True)


def without_hooks() -> AbstractContextManager[object]:
    """Return a context without saved-tensor hooks, for graphs that are thrown away.

    Hooks that offload tensors, and activation checkpointing, would keep or replay every step of a solver.
    """
    return nullcontext() if _top_hooks() is None else _suspended_hooks()


@contextmanager
def _suspended_hooks() -> Iterator[None]:
    kept = []
    while (pair := _top_hooks()) is not None:
        kept.append(pair)
        torch._C._autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(kept):
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)


def _top_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)
