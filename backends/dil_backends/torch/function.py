"""The custom derivative: an `autograd.Function` whose derivative is a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad

from dil._base.errors import CapturedError, UnsupportedFunctionError
from dil._frameworks.protocol import Rule
from dil_backends.torch.guards import refuse_no_numbers, refuse_old_vmap, without_autocast
from dil_backends.torch.tracking import transforming
from dil_backends.torch.vjp import autograd_on

Tensor = torch.Tensor
Tensors = tuple[Tensor, ...]

CHANGED = (
    "the function or the solver of a layer changed one of the layer's arguments in place; both must leave what they "
    "are given as it is, so write t * 2 instead of t.mul_(2), or begin with t.clone()"
)


def implicit(solve: Callable[..., Tensors], rule: Rule, /) -> Callable[..., Tensors]:
    """Return `solve` with the derivative that `rule` gives."""
    return lambda *args: Implicit.apply(solve, rule, *map(_asked, args))  # type: ignore[no-untyped-call]


class Implicit(torch.autograd.Function):
    """A function of tensors whose derivative is a `Rule`."""

    @staticmethod
    def forward(solve: Callable[..., Tensors], rule: Rule, *args: Tensor) -> Tensors:
        """Solve; a user's solver may call backward() itself, so gradients are on."""
        with autograd_on():
            refuse_no_numbers(args)
            plain = [x.clone() if x.is_inference() else x.detach() for x in args]
            versions = [x._version for x in plain]
            found = tuple(y.detach() for y in _solved(solve, plain))
            if versions != [x._version for x in plain]:
                raise UnsupportedFunctionError(CHANGED)
            return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep the arguments and the solution."""
        ctx.rule, args = inputs[1], inputs[2:]
        ctx.count = len(args)
        ctx.set_materialize_grads(False)  # what nothing depends on, such as what a solver remembers, costs nothing
        ctx.save_for_backward(*args, *output)
        ctx.save_for_forward(*args, *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """Pull back to the arguments whose gradient is asked for."""
        refuse_old_vmap(cotangents)
        if all(ct is None for ct in cotangents):
            return (None, None, *(None for _ in range(ctx.count)))
        saved = ctx.saved_tensors
        args, y = saved[: ctx.count], saved[ctx.count :]
        needed = zip(ctx.needs_input_grad[2:], ctx.next_functions, strict=True)
        wrt = [i for i, (able, (node, _)) in enumerate(needed) if able and _awaited(node)]
        with without_autocast():
            found = dict(zip(wrt, ctx.rule.pullback(args, y, cotangents, wrt), strict=True))
        return (None, None, *(found.get(i) for i in range(ctx.count)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        """Push tangents forward."""
        refuse_old_vmap(tangents)
        saved = ctx.saved_tensors
        with without_autocast(), _pushing():
            if transforming():
                saved = tuple(forward_ad.unpack_dual(x).primal for x in saved)  # type: ignore[no-untyped-call]
            return ctx.rule.pushforward(saved[: ctx.count], saved[ctx.count :], tangents[2:])

    @staticmethod
    def vmap(info: Any, in_dims: Any, solve: Callable[..., Tensors], rule: Rule, *args: Tensor) -> Any:
        """Solve one after the other: the rule of a vmap is a loop; `batch_ndim` is the faster way to many problems."""
        found = [
            Implicit.apply(solve, rule, *_row(args, in_dims[2:], i))  # type: ignore[no-untyped-call]
            for i in range(info.batch_size)
        ]
        stacked = tuple(torch.stack(parts) for parts in zip(*found, strict=True))
        return stacked, (0,) * len(stacked)


def _pushing() -> AbstractContextManager[object]:
    """Return a context in which the tangents of an outer transform of torch.func are pushed through a rule.

    torch switches that off within the rule of an `autograd.Function`: a jvp of its jvp would be wrong without a word.
    """
    return forward_ad._set_fwd_grad_enabled(True) if transforming() else nullcontext()


def _solved(solve: Callable[..., Tensors], args: Sequence[Tensor]) -> Tensors:
    """Return solve of the arguments; explain the error that torch raises where it holds rows that a vmap maps over."""
    try:
        return solve(*args)
    except RuntimeError as error:
        if "escaped from inside a function being vmapped" not in str(error):
            raise
        message = (
            "the function or the solver of a layer uses a tensor that torch.func.vmap maps over but that is not among "
            "the arguments (captured by a closure), so a layer cannot take its rows; pass it as an argument"
        )
        raise CapturedError(message) from error


def _awaited(node: Any) -> bool:
    """Whether this backward pass goes on to a node; `needs_input_grad` says only whether another one could."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # torch does not say it of a leaf whose gradient is asked for
        return True


def _row(args: Tensors, in_dims: Sequence[int | None], i: int) -> Tensors:
    return tuple(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True))


def _asked(x: Tensor) -> Tensor:
    """Return an alias of a leaf, so that the engine has a node that it can be asked about: see `_awaited`."""
    return x.view_as(x) if x.is_leaf and x.requires_grad and not transforming() else x
