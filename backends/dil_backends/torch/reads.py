"""The tensors that some code reads, and whether one of them has changed in place since."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

Tensor = torch.Tensor


class Reads:
    """The tensors, also captured ones, that functions under differentiation read while `noting` is on.

    It keeps none of them alive. torch counts the changes of a tensor, together with those of its views.
    """

    def __init__(self) -> None:
        self._versions: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._uncounted = False

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what functions read where `noted` is entered."""
        token = _NOTING.set(self)
        try:
            yield
        finally:
            _NOTING.reset(token)

    def note(self, x: Tensor) -> None:
        """Note a tensor and how often it has changed."""
        if x.is_inference():  # torch does not count its changes
            self._uncounted = True
        elif id(x) not in self._versions or self._versions[id(x)][0]() is not x:
            self._versions[id(x)] = weakref.ref(x), x._version

    def changed(self) -> bool:
        """Return whether a tensor that is still alive has changed since it was first read, as far as torch can tell.

        A tensor of inference mode counts as changed.
        """
        alive = {}
        for ref, version in self._versions.values():
            x = ref()
            if x is not None:  # most of them are intermediate results, which nobody can change any more
                alive[id(x)] = ref, version
                if x._version != version:
                    return True
        self._versions = alive
        return self._uncounted


_NOTING: ContextVar[Reads | None] = ContextVar("noting", default=None)


def noted() -> AbstractContextManager[object]:
    """Return a context around a user's function, in which the tensors that torch's functions are called with are noted.

    The solve around the function has many more operations, and to look at each of them is slow.
    """
    reads = _NOTING.get()
    return nullcontext() if reads is None else _Noting(reads)


class _Noting(TorchFunctionMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Note the tensors, and call the function."""
        kwargs = kwargs or {}
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor):
                self._note(x)
            elif isinstance(x, (list, tuple, dict)):
                for leaf in pytree.tree_leaves(x):
                    if isinstance(leaf, Tensor):
                        self._note(leaf)
        return func(*args, **kwargs)

    def _note(self, x: Tensor) -> None:
        if not torch._C._functorch.is_functorch_wrapped_tensor(x):
            self.reads.note(x)
