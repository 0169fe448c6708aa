"""Modules whose `forward` was replaced by a function that computes with the tensors of the module itself."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dil._base.errors import CapturedError

OTHER_KIND = "; a score that is a torch.nn.Module belongs into dil_backends.nn.ImplicitModule"
"""The advice to a layer that is no ImplicitModule."""


@contextmanager
def naming_patches(score: torch.nn.Module) -> Iterator[None]:
    """Say which `forward` was replaced, in an error about a captured tensor in the score of an ImplicitModule.

    Raises
    ------
    CapturedError
        The error of the layer, with what to do about the score.
    """
    try:
        yield
    except CapturedError as error:
        text = str(error)
        if not text.endswith(OTHER_KIND):  # of a layer within the score, or of torch.vmap
            raise
        patched = [name for name, part in score.named_modules() if _is_patched(part)]
        raise CapturedError(text.removesuffix(OTHER_KIND) + "".join(map(_advice, patched[:1]))) from error


def _is_patched(part: torch.nn.Module) -> bool:
    """Whether an instance has a function as its `forward`. A method of it, also in a partial, moves to its copies."""
    return isinstance(vars(part).get("forward"), types.FunctionType)


def _advice(name: str) -> str:
    where = f"its part {name!r}" if name else "the module"
    return (
        f"; the forward of {where} was replaced by a function, which keeps the module itself or its tensors, but a "
        f"layer runs copies of the module: override forward in a subclass, or bind a function of (self, ...) by "
        f"types.MethodType"
    )
