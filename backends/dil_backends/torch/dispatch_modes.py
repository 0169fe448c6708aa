"""Dispatch modes of torch that must not see the operations of a solve."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils import _python_dispatch as dispatch


def without_selective_checkpoints() -> AbstractContextManager[object]:
    """Return a context in which selective activation checkpointing keeps and replays no result of an operation.

    It counts the operations. A solve writes into its memory in place, which it refuses, and the first call of a layer
    checks more than the replay does.
    """
    checkpoints = sys.modules.get("torch.utils.checkpoint")
    if checkpoints is None or not torch._C._len_torch_dispatch_stack():
        return nullcontext()
    kinds = (checkpoints._CachingTorchDispatchMode, checkpoints._CachedTorchDispatchMode)
    modes = dispatch._get_current_dispatch_mode_stack()
    others = [mode for mode in modes if not isinstance(mode, kinds)]
    return nullcontext() if len(others) == len(modes) else _modes(modes, others)


@contextmanager
def _modes(modes: list[Any], wanted: list[Any]) -> Iterator[None]:
    _exchange(modes, wanted)
    try:
        yield
    finally:
        _exchange(wanted, modes)


def _exchange(old: list[Any], new: list[Any]) -> None:
    for _ in old:
        dispatch._pop_mode()
    for mode in new:
        dispatch._push_mode(mode)
