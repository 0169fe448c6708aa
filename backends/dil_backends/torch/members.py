"""The parameters and buffers of the modules that a function uses, as they are at one moment."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor


class Place(NamedTuple):
    """Where a module keeps a tensor."""

    members: Any
    """A dict by name, or the list from which an LSTM reads its weights."""
    key: Any
    tensor: Tensor


class Members:
    """The parameters and buffers of modules as they are now. A `functional_call` around may exchange them later."""

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        parts = {id(part): part for module in modules for part in module.modules()}
        self._places = [place for part in parts.values() for place in _places(part)]
        self.parameters = [x for part in parts.values() for x in part._parameters.values() if x is not None]
        self.identities = {id(place.tensor) for place in self._places}

    @contextmanager
    def replaced(self, table: Mapping[int, Tensor]) -> Iterator[None]:
        """Put other tensors in the place of some, by their identities, and the others as they were."""
        before: list[Place] = []
        try:
            for members, key, x in self._places:
                wanted, now = table.get(id(x), x), members[key]
                if now is not wanted:
                    before.append(Place(members, key, now))
                    members[key] = wanted
            yield
        finally:
            for members, key, x in before:
                members[key] = x


def _places(part: Any) -> Iterator[Place]:
    for members in (part._parameters, part._buffers):
        yield from (Place(members, name, x) for name, x in members.items() if x is not None)
    for i, x in enumerate(getattr(part, "_flat_weights", ())):
        if isinstance(x, Tensor):
            yield Place(part._flat_weights, i, x)


def modules_of(fn: Any) -> list[torch.nn.Module]:
    """Return the modules that a function is, is a method of, binds, or has among its variables."""
    found: list[torch.nn.Module] = []
    todo, seen = [fn], set[int]()
    while todo:
        x = todo.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, torch.nn.Module):
            found.append(x)
        elif isinstance(x, types.MethodType):
            todo += [x.__self__, x.__func__]
        elif isinstance(x, partial):
            todo += [x.func, *x.args, *x.keywords.values()]
        elif isinstance(x, types.FunctionType):
            todo += _variables(x)
    return found


def _variables(fn: types.FunctionType) -> list[Any]:
    """Return what a function captures, and its global variables that are modules or functions of the same file."""
    captured = []
    for cell in fn.__closure__ or ():
        try:
            captured.append(cell.cell_contents)
        except ValueError:  # a name that is not bound yet
            continue
    read = [fn.__globals__.get(name) for name in fn.__code__.co_names]
    ours = [x for x in read if isinstance(x, types.FunctionType) and x.__globals__ is fn.__globals__]
    return [*captured, *(fn.__defaults__ or ()), *ours, *(x for x in read if isinstance(x, torch.nn.Module))]
