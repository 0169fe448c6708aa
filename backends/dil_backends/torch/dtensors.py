"""Arguments that are DTensors: arrays over many processes, which take every step of a solve together."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils import _pytree as pytree

from dil._base.errors import BackendError, UnsupportedFunctionError
from dil_backends.torch.tracking import transforming

Tensor = torch.Tensor

REMEDY = (
    "make it a DTensor by torch.distributed.tensor.distribute_tensor(x, mesh, [Replicate()]), or call the layer within "
    "torch.distributed.tensor.experimental.implicit_replication() if it is equal in all processes"
)

_here = threading.local()
"""`_here.allowed`: whether the user entered `implicit_replication()`, while a layer computes with DTensors."""


def distributed() -> bool:
    """Whether there may be DTensors, which need a process group.

    torch.distributed is large, and is not imported to ask. torch.optim and torch.vmap import it in every program.
    """
    return "torch.distributed.tensor" in sys.modules and torch.distributed.is_initialized()


def is_dtensor(x: object) -> bool:
    """Whether x is a DTensor."""
    if type(x) is Tensor:  # almost all are
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def replication_allowed() -> bool:
    """Whether the user counts plain tensors as equal in all processes, by torch's `implicit_replication()`."""
    allowed = getattr(_here, "allowed", None)
    return distributed() and _flag() if allowed is None else allowed


def together(tensors: Sequence[Any]) -> AbstractContextManager[object]:
    """Return a context for computations with some tensors, which does nothing if none is a DTensor.

    In it, torch counts the plain tensors that dil makes, such as zeros, as replicated, and adds up a sum over shards at
    once. So every number that Python reads is the same in all processes, which therefore take the same branch.

    Raises
    ------
    BackendError
        If the DTensors have two meshes, or a plain tensor is among them, which may differ between the processes.
    UnsupportedFunctionError
        If a transform of torch.func is active.
    """
    shards = [x for x in tensors if is_dtensor(x)] if distributed() else []
    if distributed() and transforming() and any(map(_wraps_dtensor, tensors)):
        message = (
            "a layer of DTensors inside a transform of torch.func, whose tensors show no shards; take backward(), "
            "torch.autograd.grad, dil.vjp or dil.jvp"
        )
        raise UnsupportedFunctionError(message)
    if not shards:
        return nullcontext()
    allowed = replication_allowed()
    _check(shards, [] if allowed or _active() else [x for x in tensors if isinstance(x, Tensor) and not is_dtensor(x)])
    return nullcontext() if _active() else _together(allowed)


def _wraps_dtensor(x: Any) -> bool:
    while isinstance(x, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return is_dtensor(x)


def still_together(tensors: Any, allowed: bool | None = None) -> AbstractContextManager[object]:
    """Return the same context for what follows, whose tensors, in a tree, may also be plain ones that dil made.

    `allowed` is `replication_allowed()` at the forward call.
    """
    shared = distributed() and not _active() and any(map(is_dtensor, pytree.tree_leaves(tensors)))
    return _together(replication_allowed() if allowed is None else allowed) if shared else nullcontext()


def _check(shards: Sequence[Any], plain: Sequence[Tensor]) -> None:
    if plain:
        message = (
            f"a layer got DTensors, {_shapes(shards)}, and plain tensors, {_shapes(plain)}, which may differ between "
            f"the processes; {REMEDY}"
        )
        raise BackendError(message)
    meshes = list(dict.fromkeys(x.device_mesh for x in shards))
    if len(meshes) > 1:
        found = " and ".join(map(str, meshes))
        message = f"a layer got DTensors of different meshes, {found}; distribute all of its arguments over one mesh"
        raise BackendError(message)


def _shapes(tensors: Sequence[Tensor]) -> str:
    shapes = ", ".join(dict.fromkeys(str(tuple(x.shape)) for x in tensors))
    return f"of shape {shapes}"


def _active() -> bool:
    """Whether `together` is on. It is off in a function of the user, and in a backward pass that torch runs for it."""
    if not (distributed() and _flag()):
        return False
    return any(isinstance(mode, _AddedUp) for mode in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]


@contextmanager
def _together(allowed: bool) -> Iterator[None]:
    outer = getattr(_here, "allowed", None)
    _here.allowed = allowed
    try:
        with _clearer(), _flagged(True), _AddedUp():
            yield
    finally:
        _here.allowed = outer


@contextmanager
def _clearer() -> Iterator[None]:
    """Replace torch's error for a plain tensor beside a DTensor by one that says where it comes from."""
    try:
        yield
    except RuntimeError as error:
        if "got mixed torch.Tensor and DTensor" not in str(error):
            raise
        message = (
            f"a function, a start or a solver of a layer with DTensors makes or captures a plain tensor, which may "
            f"differ between the processes; {REMEDY} (torch: {str(error).partition(', need')[0]})"
        )
        raise BackendError(message) from error


def users_own(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the user, in which a captured tensor that is no DTensor stays an error of torch."""
    if not _active():
        return fn

    def run(*args: Any) -> Any:
        with _clearer(), _flagged(_here.allowed):
            return fn(*args)

    return run


def _flag() -> bool:
    return torch._C._get_dtensor_allow_implicit_replication()


@contextmanager
def _flagged(value: bool) -> Iterator[None]:
    """Set whether torch counts plain tensors as replicated. `implicit_replication` of torch cannot be nested."""
    before = _flag()
    torch._C._set_dtensor_allow_implicit_replication(value)
    try:
        yield
    finally:
        torch._C._set_dtensor_allow_implicit_replication(before)


ENGINE = {torch.autograd.grad, torch.autograd.backward, getattr(torch.ops.aten, "grad", None), Tensor.backward}
"""Functions that need the tensors themselves, and not others with their values."""


class _AddedUp(TorchFunctionMode):
    """Add the parts of each sum over shards at once.

    torch adds them when another operation needs the sum, so anew for each of them, and `item()` reads the part alone.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in ENGINE and _flag() and (mesh := _mesh_in((args, *kwargs.values()))) is not None:
            args, kwargs = _replicated(args, mesh), {name: _replicated(x, mesh) for name, x in kwargs.items()}
        found = _computed(func, args, kwargs)
        if isinstance(found, Tensor):
            return added_up(found)
        if isinstance(found, tuple) and any(is_partial(x) for x in found):
            return type(found)([added_up(x) for x in found])
        return found


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return func(*args, **kwargs). torch reshapes no shards of different lengths, so a reshape gathers them first."""
    try:
        return func(*args, **kwargs)
    except RuntimeError as error:
        if not ("evenly" in str(error) and is_dtensor(args[0])):
            raise
    return func(gathered(args[0]), *args[1:], **kwargs)


def _mesh_in(x: Any) -> Any:
    """Return the mesh of the first DTensor in nested lists and tuples, or None."""
    if isinstance(x, list | tuple):
        return next((mesh for part in x if (mesh := _mesh_in(part)) is not None), None)
    return x.device_mesh if is_dtensor(x) else None


def _replicated(x: Any, mesh: Any) -> Any:
    """Return x with DTensors in the place of the plain tensors in nested lists and tuples."""
    if type(x) in (list, tuple):
        return type(x)([_replicated(part, mesh) for part in x])
    return replicated(x, mesh) if type(x) is Tensor else x


def replicated(x: Tensor, mesh: Any) -> Any:
    """Return a tensor that is equal in all processes as a DTensor."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim, run_check=False)


def is_partial(x: object) -> bool:
    """Whether x is a DTensor whose processes hold parts of a sum, or of another reduction."""
    return is_dtensor(x) and any(place.is_partial() for place in x.placements)  # type: ignore[attr-defined]


class Placed(torch.autograd.Function):
    """The identity, with other placements.

    The derivative of torch's own `redistribute` goes back to the placements from which it came, which torch cannot do
    for an average whose cotangent is a sum.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, placements: tuple[Any, ...]) -> Any:
        """Return x with the placements."""
        return x.redistribute(placements=placements)

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        """Return the cotangent, added up."""
        return added_up(cotangent), None


def placed(x: Any, placements: Sequence[Any]) -> Any:
    """Return a DTensor with other placements."""
    placements = tuple(placements)
    return x if x.placements == placements else Placed.apply(x, placements)  # type: ignore[no-untyped-call]


def added_up(x: Any) -> Any:
    """Return a DTensor with the same placements where they are shards, and replicated where they are parts of a sum."""
    return placed(x, _final(x)) if is_partial(x) else x


def gathered(x: Any) -> Any:
    """Return a DTensor with all of its entries in every process."""
    from torch.distributed.tensor import Replicate

    return placed(x, [Replicate()] * x.device_mesh.ndim)


def placed_like(x: Any, like: Any) -> Any:
    """Return x with the placements of another tensor of its shape; a plain tensor if this one is."""
    if not is_dtensor(like):
        return whole(x)
    if not is_dtensor(x):
        if not _flag():
            _check([like], [x])
        x = replicated(x, like.device_mesh)
    return placed(x, _final(like))


def replicated_beside(tensors: Sequence[Any], others: Sequence[Any]) -> tuple[Any, ...]:
    """Return tensors that dil made: as DTensors, equal in all processes, if DTensors are among the others."""
    mesh = _mesh_in(list(others)) if distributed() else None
    return tuple(tensors) if mesh is None else tuple(x if is_dtensor(x) else replicated(x, mesh) for x in tensors)


def _final(x: Any) -> list[Any]:
    """Return the placements of x, replicated where they are parts of a sum."""
    from torch.distributed.tensor import Replicate

    return [Replicate() if place.is_partial() else place for place in x.placements]


def whole(x: Any) -> Any:
    """Return x as a plain tensor, with all of its entries in every process."""
    return gathered(x).to_local() if is_dtensor(x) else x
