"""The user's function inside torch.vmap and other transforms of torch.func, which refuse some functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from dil._base.errors import DilError, UnmappableError, UnsupportedFunctionError
from dil_backends.torch.tracking import transforms

Tensor = torch.Tensor

WHAT_TO_DO = (
    "keep Python branches, .item() and in-place changes (such as those of the statistics of a BatchNorm, which are off "
    "after eval()) out of it"
)


CLEAR = (DilError, MemoryError, torch.OutOfMemoryError)
"""The errors that one row alone does not explain."""


class VmapOfFunction:
    """`torch.vmap` of functions of the user, with one row alone to tell their own errors from those of torch."""

    def __init__(self, size: int, randomness: str) -> None:
        self.size = size
        self.randomness = randomness
        self.of_the_user: Exception | None = None
        """The error that the user's function raises for one row alone."""
        self.captures = False
        """Whether the function failed with a tensor of a transform that is not among its arguments."""

    def __call__(self, fn: Callable[..., Any], axes: Sequence[bool]) -> Callable[..., Any]:
        """Return fn mapped over the first axis of the tensors where `axes` is true."""
        in_dims = tuple(0 if axis else None for axis in axes)
        vectorised = torch.vmap(fn, in_dims, randomness=self.randomness)

        def run(*tensors: Tensor) -> Any:
            try:
                return vectorised(*tensors)
            except CLEAR:
                raise
            except Exception as error:  # the user's function may raise anything
                if self.size == 0:
                    raise _no_rows(error) from error
                refuse_no_rows(error)
                self._explain(fn, axes, tensors, error)
                raise

        return run

    def _explain(
        self, fn: Callable[..., Any], axes: Sequence[bool], tensors: Sequence[Tensor], error: Exception
    ) -> None:
        """Raise the error of one row alone, or else name torch.vmap as the cause."""
        row = [x[0] if axis else x for x, axis in zip(tensors, axes, strict=True)]
        alone = OutsideTransforms(row)
        try:
            alone(fn)
        except Exception as own:
            self.of_the_user = own
            raise own from None
        if not alone.captures:
            raise _refused(error, mapped=True) from error
        self.captures = True


class OutsideTransforms(TorchFunctionMode):
    """A call of a function of tensors on plain ones, one row of those that are mapped, outside of all transforms."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.tensors = [_plain(x) for x in tensors]
        self.captures = False
        """Whether the function used a tensor of a transform that is not among its arguments."""

    def __call__(self, fn: Callable[..., Any]) -> Any:
        """Return fn of the plain tensors."""
        with _no_transforms(), self:
            return fn(*self.tensors)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*pytree.tree_map(self._seen, args), **pytree.tree_map(self._seen, kwargs or {}))

    def _seen(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not torch._C._functorch.is_functorch_wrapped_tensor(x):
            return x
        self.captures = True
        return _plain(x)


def refuse_no_rows(error: Exception) -> None:
    """Name an active torch.vmap over no rows as the cause of an error. Some operations of torch fail there."""
    functorch = torch._C._functorch
    levels = functorch.get_interpreter_stack() or ()
    sizes = [functorch.CVmapInterpreterPtr(x).batchSize() for x in levels if x.key() == functorch.TransformType.Vmap]
    if 0 in sizes:
        raise _no_rows(error) from error


def refuse_transformed(fn: Callable[..., Any], tensors: Sequence[Tensor], error: Exception) -> None:
    """Name the transforms of torch.func as the cause of an error of fn(*tensors), if fn works outside of them."""
    try:
        OutsideTransforms(tensors)(fn)
    except Exception:  # fn itself fails: its own error is the one to tell
        return
    raise _refused(error, mapped="Vmap" in transforms()) from error


def _refused(error: Exception, *, mapped: bool) -> UnsupportedFunctionError:
    """Return the error for a function of the user that works, but not inside a transform of torch."""
    what = "torch.vmap cannot map" if mapped else "torch.func cannot differentiate"
    if mapped and "randomness" in str(error):
        return UnsupportedFunctionError(
            f"{what} the function of a layer, which draws random numbers; pass randomness='same' or 'different' to "
            f"torch.vmap (torch: {_first_line(error)})"
        )
    instead = "write it for a batch and set batch_ndim=1, or call the layer in a loop"
    if not mapped:
        instead = "or call backward() or torch.autograd.grad"
    kind = UnmappableError if mapped else UnsupportedFunctionError
    return kind(f"{what} the function of a layer; {WHAT_TO_DO}, {instead} (torch: {_first_line(error)})")


def _no_rows(error: Exception) -> UnsupportedFunctionError:
    return UnsupportedFunctionError(
        f"torch.vmap cannot map the function of a layer over no rows; do not call the layer for an empty batch "
        f"(torch: {_first_line(error)})"
    )


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


def _plain(x: Tensor) -> Tensor:
    """Return a tensor outside of all transforms and derivatives, the first row of a mapped one."""
    functorch = torch._C._functorch
    mapped = []
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            mapped.append(functorch.maybe_get_bdim(x))
        x = functorch.get_unwrapped(x)
    for dim in reversed(mapped):
        x = x.select(dim, 0)
    return x.detach()


@contextmanager
def _no_transforms() -> Iterator[None]:
    """Leave all transforms of torch.func for a while."""
    functorch = torch._C._functorch
    layers: list[Any] = []
    try:
        while functorch.peek_interpreter_stack() is not None:
            layers.append(functorch.pop_dynamic_layer_stack())
        yield
    finally:
        while layers:
            functorch.push_dynamic_layer_stack(layers.pop())
