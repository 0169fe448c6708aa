"""A user's function as a function of the tensors that it captures: of a module, a closure, a partial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch.autograd import forward_ad
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from dil._base.errors import CapturedError, OptionError
from dil._base.typing import Arrays
from dil._frameworks.fixed import with_variables_of_now
from dil._frameworks.lifted import Lifted
from dil._frameworks.registry import leaves_of
from dil_backends.torch.members import Members, modules_of
from dil_backends.torch.named_tensors import random_state
from dil_backends.torch.tracking import is_differentiated, transforming
from dil_backends.torch.vjp import autograd_on

Tensor = torch.Tensor
Tree = Any


def lifted(fn: Callable[..., Tree], /, *args: Tree) -> Lifted:
    """Return fn as a function of the tensors with a derivative that it reads at these constant arguments.

    All parameters of its modules are among them, also those that it does not read now.

    Raises
    ------
    OptionError
        If fn draws random numbers and may be differentiated.
    """
    fn = with_variables_of_now(fn)
    held, found = Members(modules_of(fn)), dict[int, Tensor]()
    if torch.is_grad_enabled() or transforming() or forward_ad._current_level >= 0:
        found = {id(x): x for x in held.parameters if _can_be_lifted(x)}
        search = _Search(found, [x for x in leaves_of(args)[0] if isinstance(x, Tensor)])
        chance = random_state(args)
        with autograd_on(), search:
            fn(*args)
        if not torch.equal(chance, drawn := random_state(args)):
            with autograd_on():
                fn(*args)
            if not torch.equal(drawn, random_state(args)):  # a function that sets the seed draws the same numbers
                _refuse_chance(fn)
    elsewhere = found.keys() - held.identities

    def call(arrays: Sequence[Tensor], *args: Tree) -> Tree:
        table = dict(zip(found, arrays, strict=True))
        with held.replaced(table), _Exchange(table, fn) if elsewhere else nullcontext():
            return fn(*args)

    return Lifted(call, cast(Arrays, tuple(found.values())))


def _refuse_chance(fn: Callable[..., Tree]) -> None:
    """Raise for a function that draws random numbers: a pass back would draw others, and its gradient be wrong."""
    layers = {type(part).__name__ for module in modules_of(fn) for part in module.modules() if _draws(part)}
    by = f" ({', '.join(sorted(layers))} in training)" if layers else ""
    name = getattr(fn, "__name__", type(fn).__name__)
    message = (
        f"the function {name!r} draws random numbers{by}, so it is another function at every call and its gradient "
        f"would be wrong; put its modules in eval(), or draw the numbers outside and pass them as an argument"
    )
    raise OptionError(message)


def _draws(part: torch.nn.Module) -> bool:
    """Whether a layer is known to draw random numbers in its mode."""
    return part.training and isinstance(part, _DropoutNd | torch.nn.RReLU)


def _can_be_lifted(x: Tensor) -> bool:
    return (x.is_floating_point() or x.is_complex()) and (
        is_differentiated(x) or torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


class _Search(TorchFunctionMode):
    """Finds the tensors with a derivative that were there before a function read them."""

    def __init__(self, found: dict[int, Tensor], given: Sequence[Tensor]) -> None:
        super().__init__()
        self.found, self.made = found, {id(x): x for x in given}

    def __torch_function__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        """Look at the tensors that an operation reads, and remember those that it makes."""
        kwargs = kwargs or {}
        for x in pytree.tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and id(x) not in self.made and _can_be_lifted(x):
                self.found[id(x)] = x
        value = func(*args, **kwargs)
        self.made.update({id(x): x for x in pytree.tree_leaves(value) if isinstance(x, Tensor)})
        return value


class _Exchange(TorchFunctionMode):
    """Gives operations other tensors in the place of some."""

    def __init__(self, table: dict[int, Tensor], fn: Any) -> None:
        super().__init__()
        self.table, self.fn = table, fn

    def __torch_function__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation with the tensors that stand in the place of its own."""
        args = [self._exchanged(x) for x in args]
        if not kwargs:
            return func(*args)
        return func(*args, **{name: self._exchanged(x) for name, x in kwargs.items()})

    def _exchanged(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            other = self.table.get(id(x))
            if other is None:
                self._refuse_late(x)
                return x
            return other
        if isinstance(x, list | tuple) and any(isinstance(part, Tensor) for part in x):
            return type(x)(map(self._exchanged, x)) if type(x) in (list, tuple) else pytree.tree_map(self._exchanged, x)
        return x

    def _refuse_late(self, x: Tensor) -> None:
        """Raise for a parameter that the function did not read at its first call: it would silently get no gradient."""
        if isinstance(x, torch.nn.Parameter) and x.requires_grad:
            name = getattr(self.fn, "__name__", type(self.fn).__name__)
            message = (
                f"the function {name!r} reads a parameter of shape {tuple(x.shape)} that it did not read at its first "
                f"call, so it would silently get no gradient; pass the module itself as the function or bind it by "
                f"functools.partial, so that all its parameters are known"
            )
            raise CapturedError(message)
