"""A rule under torch.vmap, one row after the other, where torch cannot map the function of a layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from dil._base.errors import CapturedError, UnmappableError
from dil._frameworks.protocol import Rule
from dil._frameworks.reports import users_line
from dil_backends.torch.tracking import transforming
from dil_backends.torch.vjp import vjp

Tensor = torch.Tensor
Tensors = tuple[Any, ...]
Directions = Sequence[Any]
"""Cotangents or tangents. None stands for zero."""
Apply = Callable[..., Tensors]
"""`apply(solve, rule, *tensors)` returns solve(*tensors) with the derivative of a rule, row by row under vmap."""

FOREIGN = (
    "the function or the solver of a layer uses a tensor of a transform of torch.func that is not among the arguments "
    "(captured by a closure), so it would silently get no gradient; pass it as an argument, or detach it"
)

_REFUSING: ContextVar[bool] = ContextVar("dil_refusing_foreign", default=False)
_TOLD: dict[str | tuple[str, type[Warning], int], int] = {}
"""What Python's filters remember, so that one line warns once where they say so."""


def stack_of_rows(fn: Callable[..., Tensors], info: Any, dims: Sequence[int | None], args: Tensors) -> Tensors:
    """Return fn of each row, stacked. With randomness="same" all rows draw the same random numbers."""
    found = []
    for i in range(info.batch_size):
        again = info.randomness == "same" and i + 1 < info.batch_size
        with _restored_generators(args) if again else nullcontext():
            found.append(fn(*(x if d is None else x.select(d, i) for x, d in zip(args, dims, strict=True))))
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


def _restored_generators(args: Tensors) -> AbstractContextManager[object]:
    kinds = {x.device for x in args if x.device.type != "cpu"}
    kind = next((device.type for device in kinds), "cuda")
    return torch.random.fork_rng([device.index for device in kinds], device_type=kind)


@contextmanager
def refusing_foreign() -> Iterator[None]:
    """Refuse tensors that a function captured, in all rows that are solved here.

    Such a tensor belongs to a transform of torch.func that is not active there, and torch would take its numbers
    without its derivative. Where torch cannot map the function, no evaluation within the transforms shows it.
    """
    token = _REFUSING.set(True)
    try:
        yield
    finally:
        _REFUSING.reset(token)


def foreign_refused() -> AbstractContextManager[object]:
    """Return the mode for the solve of one row. torch drops modes on the way to it."""
    return _RefuseForeign() if _REFUSING.get() else nullcontext()


class _RefuseForeign(TorchFunctionMode):
    """A mode that refuses tensors of transforms of torch.func where none is active."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not transforming() and any(map(_is_wrapped, pytree.tree_leaves((args, kwargs)))):
            raise CapturedError(FOREIGN)
        return func(*args, **(kwargs or {}))


def _is_wrapped(x: Any) -> bool:
    return isinstance(x, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(x)


def tell_of_rows(error: UnmappableError) -> None:
    """Warn that a layer takes one row after the other."""
    message = f"a layer under torch.vmap takes its rows one after the other, which is slow: {error}"
    warnings.warn_explicit(message, UserWarning, *users_line("torch"), registry=_TOLD)


def pulled_by_rows(
    apply: Apply, rule: Rule, args: Tensors, y: Tensors, cotangents: Directions, wrt: Sequence[int]
) -> Directions:
    """Return the pullback of a rule, of one row after the other if torch cannot map the rule's function."""
    try:
        return rule.pullback(args, y, tuple(cotangents), wrt)
    except UnmappableError as error:
        tell_of_rows(error)
    pull = Pullback(rule, len(args), len(y), tuple(ct is not None for ct in cotangents), tuple(wrt))
    return apply(pull, RowRule(apply, pull), *args, *y, *_given(cotangents))


def pushed_by_rows(apply: Apply, rule: Rule, args: Tensors, y: Tensors, tangents: Directions) -> Sequence[Any]:
    """Return the pushforward of a rule, of one row after the other if torch cannot map the rule's function."""
    try:
        return rule.pushforward(args, y, tangents)
    except UnmappableError as error:
        tell_of_rows(error)
    push = Pushforward(rule, len(args), len(y), tuple(t is not None for t in tangents))
    return apply(push, RowRule(apply, push), *args, *y, *_given(tangents))


def _given(directions: Directions) -> Tensors:
    return tuple(x for x in directions if x is not None)


@dataclass(frozen=True)
class Pullback:
    """The pullback of a rule as a function of (*args, *y, *cotangents). It has no cotangents that are None."""

    rule: Rule
    args: int
    outputs: int
    given: tuple[bool, ...]
    wrt: tuple[int, ...]

    def __call__(self, *tensors: Tensor) -> Tensors:
        """Return the cotangents of the arguments."""
        args, y, cotangents = _split(tensors, self.args, self.outputs, self.given)
        found = self.rule.pullback(args, y, cotangents, self.wrt)
        return tuple(torch.zeros_like(args[i]) if x is None else x for i, x in zip(self.wrt, found, strict=True))


@dataclass(frozen=True)
class Pushforward:
    """The pushforward of a rule as a function of (*args, *y, *tangents). It has no tangents that are None."""

    rule: Rule
    args: int
    outputs: int
    given: tuple[bool, ...]

    def __call__(self, *tensors: Tensor) -> Tensors:
        """Return the tangents of the outputs."""
        args, y, tangents = _split(tensors, self.args, self.outputs, self.given)
        return tuple(self.rule.pushforward(args, y, tangents))


def _split(tensors: Tensors, args: int, outputs: int, given: Sequence[bool]) -> tuple[Tensors, Tensors, Tensors]:
    rest = iter(tensors[args + outputs :])
    return tensors[:args], tensors[args : args + outputs], tuple(next(rest) if there else None for there in given)


@dataclass(frozen=True)
class RowRule:
    """The derivative of a function of one row, made of derivatives of one row."""

    apply: Apply
    fn: Callable[..., Tensors]

    def pullback(self, args: Tensors, y: Tensors, cotangents: Directions, wrt: Sequence[int]) -> Tensors:
        """Return the cotangents of the arguments in `wrt`, one row after the other."""
        given = [i for i, ct in enumerate(cotangents) if ct is not None]
        count = len(args)

        def pull(*tensors: Any) -> Tensors:
            _, back = _vjp_at(self.fn, tensors[:count], wrt, given)
            return back(tensors[count:])

        return self.apply(pull, RowRule(self.apply, pull), *args, *_given(cotangents))

    def pushforward(self, args: Tensors, y: Tensors, tangents: Directions) -> Tensors:
        """Return the tangents of all results, one row after the other."""
        wrt = [i for i, t in enumerate(tangents) if t is not None]
        count, every = len(args), range(len(y))

        def push(*tensors: Any) -> Tensors:
            out, back = _vjp_at(self.fn, tensors[:count], wrt, every)
            # w -> J^T w is linear, and its own pullback is t -> J t
            forward = vjp(lambda *w: back(w), *(torch.zeros_like(x) for x in out))[1]
            return forward(tensors[count:])

        return self.apply(push, RowRule(self.apply, push), *args, *_given(tangents))


def _vjp_at(
    fn: Callable[..., Tensors], args: Tensors, wrt: Sequence[int], outputs: Sequence[int]
) -> tuple[Tensors, Callable[[Tensors], Tensors]]:
    """Return some outputs of fn(*args) and their pullback to the arguments in `wrt`."""

    def some(*values: Tensor) -> Tensors:
        merged = dict(zip(wrt, values, strict=True))
        out = fn(*(merged.get(i, x) for i, x in enumerate(args)))
        return tuple(out[i] for i in outputs)

    return vjp(some, *(args[i] for i in wrt))
