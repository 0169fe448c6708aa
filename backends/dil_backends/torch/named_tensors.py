"""The names of tensors, for error messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils import _pytree as pytree

import dil
from dil._base.typing import Tree
from dil_backends.torch.dtensors import is_dtensor, replication_allowed

Tensor = torch.Tensor


def named_tensors(name: str, tree: Tree) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the tensor of every leaf of a tree that is a tensor."""
    if isinstance(tree, Tensor):
        yield name, tree
        return
    for path, leaf in pytree.tree_leaves_with_path(tree):
        if isinstance(leaf, Tensor):
            yield name + pytree.keystr(path), leaf


def tensors_of_call(args: Sequence[Tree], kwargs: dict[str, Tree]) -> dict[str, Tensor]:
    """Return the tensors of the arguments of a call, by name."""
    named = [*enumerate(args), *kwargs.items()]
    return {name: x for key, tree in named for name, x in named_tensors(f"argument {key}", tree)}


def refuse_dtypes(name: str, state: dict[str, Tensor], args: dict[str, Tensor]) -> None:
    """Raise if two float tensors differ in dtype. A complex one has that of its parts."""
    floats = [(key, x) for key, x in (*state.items(), *args.items()) if is_inexact(x)]
    for key, x in floats:
        if x.dtype.to_real() != floats[0][1].dtype.to_real():
            message = (
                f"{floats[0][0]} of the score {name!r} is of {floats[0][1].dtype}, but {key} of {x.dtype}; they must "
                f"agree, so cast the argument, or the module by module.to({x.dtype})"
            )
            raise dil.DTypeError(message)


def refuse_devices(name: str, tensors: dict[str, Tensor], error: RuntimeError | None = None) -> None:
    """Raise an error with the names of the tensors if torch failed and they are on several devices.

    Raise as well, without `error`, if one of several devices is meta. Otherwise several devices are allowed, because a
    model may be spread over them.
    """
    places = {str(x.device): key for key, x in tensors.items()}
    if len(places) > 1 and (error is not None or "meta" in places):
        found = ", ".join(f"{key} on {place}" for place, key in places.items())
        message = (
            f"the score {name!r} cannot be computed: it has {found}; move them to one device, the module by "
            f"module.to(device), or move what it computes between them itself"
        )
        raise dil.BackendError(message) from error


def refuse_shards(name: str, tensors: dict[str, Tensor]) -> None:
    """Raise an error with the names of the tensors if some are shards and some are whole."""
    shards = [key for key, x in tensors.items() if is_dtensor(x)]
    if 0 < len(shards) < len(tensors) and not replication_allowed():
        message = (
            f"the score {name!r} cannot be computed: {', '.join(shards)} came as shards (DTensor), the rest as whole "
            f"tensors; call fully_shard on the ImplicitModule or the model around it, not on the score or a part of "
            f"it; without fully_shard, make all of them DTensors"
        )
        raise dil.BackendError(message)


def cast_like(like: Tensor, x: Tree) -> Tree:
    """Cast x to the precision of `like` if x is a float tensor, as autocast does."""
    if not isinstance(x, Tensor) or not is_inexact(x):
        return x
    precision = like.dtype.to_real()
    return x.to(precision.to_complex() if x.is_complex() else precision)


def is_inexact(x: Tensor) -> bool:
    """Whether a tensor has a derivative: whether its numbers are real or complex floating."""
    return x.is_floating_point() or x.is_complex()


def write_count(x: Tensor) -> int:
    """Return how often a tensor has been written; 0 for an inference tensor, whose writes torch does not count."""
    return 0 if x.is_inference() else x._version


def random_state(u: Tree) -> Tensor:
    """Return the state of torch's random number generator for the device of u."""
    device = next((x.device for _, x in named_tensors("", u)), torch.device("cpu"))
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).get_rng_state(device)  # type: ignore[no-any-return]
    return torch.get_rng_state()
