"""Copies of a module with other tensors, which a score may run without a trace on the module itself."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

Tensor = torch.Tensor
Module = torch.nn.Module


class Template:
    """A module of which copies are made: the same attributes, and tensors of their own.

    A part that torch.compile has wrapped is copied as it was before: a compiled function has no second derivative.
    """

    def __init__(self, module: Module) -> None:
        self.parts: list[Any] = [part for part in module.modules() if not _is_compiled(part)]
        self._number = {id(part): i for i, part in enumerate(self.parts)}
        self._root = self._number[id(_plain(module))]
        self._children = [
            [(name, self._number.get(id(_plain(child)))) for name, child in part._modules.items()]
            for part in self.parts
        ]
        others: list[Any] = [object()] * len(self.parts)
        self._bound = [
            [name for name, value in vars(part).items() if self._rebound(value, others) is not value]
            for part in self.parts
        ]
        self.names = self._names_of_tensors()
        """The name of every tensor: its places, then the first place of the same tensor."""

    def _names_of_tensors(self) -> dict[tuple[int, str, str], str]:
        """Return the name of each place of a tensor, (number of the part, "_parameters" or "_buffers", key)."""
        first: dict[int, str] = {}
        paths: dict[int, str] = {}
        for path, part in self.parts[self._root].named_modules():
            paths.setdefault(self._number[id(_plain(part))], path)
        return {
            (i, own, key): first.setdefault(id(x), f"{path}.{key}".lstrip("."))
            for own in ("_parameters", "_buffers")
            for i, path in paths.items()
            for key, x in getattr(self.parts[i], own).items()
            if x is not None
        }

    def copy(self, tensors: Mapping[str, Tensor] | None = None) -> Module:
        """Return a copy with the tensors of these names, or with the same tensors.

        The copy keeps them: an activation checkpoint in a module runs a part of it again, in the backward pass.
        """
        # this method also copies modules that keep their tensors in other attributes, such as an LSTM
        copies = [part._replicate_for_data_parallel() for part in self.parts]
        for part, new, children, bound in zip(self.parts, copies, self._children, self._bound, strict=True):
            new._parameters = dict(part._parameters)
            new._modules = {name: None if i is None else copies[i] for name, i in children}
            new.__dict__.pop("_compiled_call_impl", None)
            for name in bound:
                new.__dict__[name] = self._rebound(new.__dict__[name], copies)
        for (i, own, key), name in self.names.items() if tensors is not None else ():
            _place(copies[i], own, key, tensors[name])  # type: ignore[index]
        return copies[self._root]  # type: ignore[no-any-return]

    def _rebound(self, value: Any, copies: list[Any]) -> Any:
        """Return an attribute of a part, with the methods and parts that it holds exchanged for those of the copies."""
        if isinstance(value, types.MethodType):
            i = self._number.get(id(_plain(value.__self__)))
            return value if i is None else types.MethodType(value.__func__, copies[i])
        if type(value) is partial:
            exchange: Callable[[Any], Any] = lambda x: self._rebound(x, copies)  # noqa: E731
            return partial(exchange(value.func), *map(exchange, value.args), **value.keywords)
        if isinstance(value, Module):
            i = self._number.get(id(_plain(value)))
            return value if i is None else copies[i]
        return value


def _place(part: Any, own: str, key: str, x: Tensor) -> None:
    getattr(part, own)[key] = x
    if key in getattr(part, "_flat_weights_names", ()):  # an LSTM reads its weights from a list
        part._flat_weights[part._flat_weights_names.index(key)] = x


def _is_compiled(module: object) -> bool:
    """Whether a module is the wrapper that torch.compile returns."""
    return type(module).__name__ == "OptimizedModule"


def _plain(module: Any) -> Any:
    """Return the module within the wrapper of torch.compile, or the module."""
    return module._orig_mod if _is_compiled(module) else module
