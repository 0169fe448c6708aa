"""A torch module as a function of its parameters and buffers. It serves one call of a layer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from operator import is_

import torch

import dil
from dil._base.typing import Tree
from dil_backends.torch.named_tensors import (
    named_tensors,
    random_state,
    refuse_devices,
    tensors_of_call,
    write_count,
)
from dil_backends.torch.stand_in import Template
from dil_backends.torch.tracking import is_differentiated

Tensor = torch.Tensor


class StatelessScore:
    """The score of one call as a function of the unknown, the arguments and the module's tensors."""

    def __init__(self, score: torch.nn.Module, written: dict[Hashable, frozenset[str]]) -> None:
        self.__name__, self.identity = type(score).__name__, score
        tensors = {**dict(score.named_parameters()), **dict(score.named_buffers())}
        for name, x in tensors.items():
            if torch.nn.parameter.is_lazy(x):
                message = f"parameter {name!r} of {self.__name__} has no shape yet; call the score once by itself"
                raise dil.OptionError(message)
        self.module = Template(score).copy()
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        self.template = Template(self.module)
        self._last: tuple[list[Tensor], torch.nn.Module] | None = None
        # its parts too: a user may put a module in the place of another, such as an adapter around a linear map
        self.modes = tuple((name, type(part), part.training) for name, part in self.module.named_modules())
        self.buffers = frozenset(name for name, _ in self.module.named_buffers())
        # functions of torch may refuse inputs that require a gradient, as BatchNorm does for its statistics
        self.fixed = frozenset(name for name, x in tensors.items() if not is_differentiated(x))
        self.known = written
        """Cache: parts of the module and their modes -> names of the buffers written. The first call fills it."""

    @property
    def written(self) -> frozenset[str] | None:
        """The buffers that the score writes; None until a score of these parts has been called in these modes."""
        return self.known.get(self.modes)

    @property
    def copied(self) -> frozenset[str]:
        """The buffers that the score may write."""
        return self.buffers if self.written is None else self.written

    def state(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the module, each shared tensor once."""
        state = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return {name: x.clone() if name in self.copied else x for name, x in state.items()}

    def __call__(self, u: Tree, *args: Tree, score_module: dict[str, Tensor], **kwargs: Tree) -> Tree:
        """Return the score at u, with the tensors `score_module` in place of the module's own."""
        first, copied = self.written is None, self.copied
        state = {name: x.detach() if x.requires_grad and name in self.fixed else x for name, x in score_module.items()}
        state |= {name: state[name].clone() for name in copied}
        handed = {**dict(named_tensors("the unknown", u)), **tensors_of_call(args, kwargs), **state}
        versions = {name: write_count(x) for name, x in handed.items()}
        chance = random_state(u) if first else None
        module = self._with_tensors(state)
        try:
            value = module(u, *args, **kwargs)
        except RuntimeError as error:
            refuse_devices(self.__name__, handed, error)
            raise
        changed = {name for name, x in handed.items() if write_count(x) != versions[name]}
        if chance is not None and not torch.equal(chance, random_state(u)):
            message = (
                f"the score {self.__name__!r} draws random numbers (by Dropout in training?), so it is another "
                f"function at every call and has no solution; put it in eval(), or draw them outside and pass them "
                f"as an argument"
            )
            raise dil.OptionError(message)
        self._refuse_changes(sorted(changed - copied))
        if first:
            # kernels of BatchNorm write its statistics without a version count, but its batch counter is counted
            parts = {name.rpartition(".")[0] for name in changed}
            self.known[self.modes] = frozenset(name for name in copied if name.rpartition(".")[0] in parts)
        return value

    def _with_tensors(self, state: dict[str, Tensor]) -> torch.nn.Module:
        """Return a copy of the module with these tensors. The evaluations of one solve share a copy."""
        tensors = list(state.values())
        if self._last is not None and all(map(is_, tensors, self._last[0])):
            return self._last[1]
        module = self.template.copy(state)
        # tensors with a graph are not kept, and buffers that the score may write are new at each call
        self._last = None if any(x.requires_grad for x in tensors) else (tensors, module)
        return module

    def _refuse_changes(self, names: Sequence[str]) -> None:
        if names:
            message = (
                f"the score {self.__name__!r} changed {', '.join(names)} in place; it must leave what it is given as "
                f"it is, so write u * 2 instead of u.mul_(2), or begin with u.clone()"
            )
            raise dil.UnsupportedFunctionError(message)
