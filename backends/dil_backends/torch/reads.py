"""The tensors that some code reads, and whether one of them has changed in place since."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

Tensor = torch.Tensor


class Reads(TorchFunctionMode):
    """A context that notes the tensors, also captured ones, that torch's functions are called with.

    It keeps none of them alive. torch counts the changes of a tensor, together with those of its views.
    """

    def __init__(self) -> None:
        super().__init__()
        self._versions: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._uncounted = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Note the tensors, and call the function."""
        kwargs = kwargs or {}
        for x in pytree.tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(x):
                self._note(x)
        return func(*args, **kwargs)

    def _note(self, x: Tensor) -> None:
        if x.is_inference():  # torch does not count its changes
            self._uncounted = True
        elif id(x) not in self._versions or self._versions[id(x)][0]() is not x:
            self._versions[id(x)] = weakref.ref(x), x._version

    def changed(self) -> bool:
        """Return whether a tensor that is still alive has changed since it was first read, as far as torch can tell.

        A tensor of inference mode counts as changed.
        """
        alive = ((ref(), version) for ref, version in self._versions.values())
        return self._uncounted or any(x is not None and x._version != version for x, version in alive)
