"""The custom derivative: an `autograd.Function` whose derivative is a rule."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.autograd import forward_ad

from dil._base.errors import CapturedError, DilError, ShapeError, UnmappableError, UnsupportedFunctionError
from dil._frameworks.protocol import BatchedRule, RepeatedPull, Rule
from dil._frameworks.reports import users_line
from dil_backends.torch.block_matrices import refuse_gradient_of_blocks
from dil_backends.torch.dtensors import (
    added_up,
    is_dtensor,
    placed_like,
    replicated_beside,
    replication_allowed,
    still_together,
    together,
)
from dil_backends.torch.guards import is_old_batch, old_vmap_level, refuse_no_numbers, refuse_old_vmap, taken_apart
from dil_backends.torch.isolation import (
    allowing,
    attention_kernels,
    autocasts,
    isolated,
    outside_of_compilers,
    without_hooks,
)
from dil_backends.torch.passes import Passes
from dil_backends.torch.row_by_row import (
    foreign_refused,
    pulled_by_rows,
    pushed_by_rows,
    refusing_foreign,
    stack_of_rows,
    tell_of_rows,
)
from dil_backends.torch.tracking import is_plain, transforming
from dil_backends.torch.user_function import VmapOfFunction
from dil_backends.torch.vjp import autograd_on

Tensor = torch.Tensor
Tensors = tuple[Tensor, ...]

NO_ROWS = (
    "torch.vmap of a layer over no rows: its solver takes one problem after the other, so nothing says what shape the "
    "solution has; do not call the layer for an empty batch, or use a solver of dil.solvers"
)
CHANGED = (
    "the function or the solver of a layer changed one of the layer's arguments in place; both must leave what they "
    "are given as it is, so write t * 2 instead of t.mul_(2), or begin with t.clone()"
)


def implicit(solve: Callable[..., Tensors], rule: Rule, /) -> Callable[..., Tensors]:
    """Return `solve` with the derivative that `rule` gives."""
    return lambda *args: Implicit.apply(solve, rule, *map(_with_node, args))  # type: ignore[no-untyped-call]


class Implicit(torch.autograd.Function):
    """A function of tensors whose derivative is a `Rule`."""

    @staticmethod
    def forward(solve: Callable[..., Tensors], rule: Rule, *args: Tensor) -> Tensors:
        """Solve. Autograd is on, because a user's solver may call backward()."""
        with autograd_on(), without_hooks(), together(args), foreign_refused():
            refuse_no_numbers(args)
            plain = [x.clone() if x.is_inference() else x.detach() for x in args]
            versions = [x._version for x in plain]
            found = tuple(added_up(y.detach()) for y in _solved(solve, plain))
            if versions != [x._version for x in plain]:
                raise UnsupportedFunctionError(CHANGED)
            return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep the arguments and the solution."""
        ctx.rule, args = inputs[1], inputs[2:]
        ctx.kernels = attention_kernels()
        ctx.replicating = replication_allowed()
        ctx.count, ctx.passes = len(args), Passes()
        ctx.set_materialize_grads(False)  # an output that nothing depends on, such as the solver's pairs, costs nothing
        ctx.save_for_backward(*args, *output)
        ctx.save_for_forward(*args, *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the cotangents of the arguments whose gradient is needed, None for the others."""
        # a compiler would trace into it, and meets a value that Python reads
        found = None if torch.compiler.is_compiling() else _product(ctx, cotangents)
        return outside_of_compilers(_pulled, ctx, cotangents) if found is None else found

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        """Return the tangents of the outputs."""
        refuse_old_vmap(tangents)
        saved = ctx.saved_tensors
        with isolated(), still_together(saved, ctx.replicating), allowing(ctx.kernels), _forward_mode_on():
            if transforming():
                saved = tuple(forward_ad.unpack_dual(x).primal for x in saved)  # type: ignore[no-untyped-call]
            args = saved[: ctx.count]
            y = replicated_beside(saved[ctx.count :], args)
            return pushed_by_rows(Implicit.apply, ctx.rule, args, y, tangents[2:])

    @staticmethod
    def vmap(info: Any, in_dims: Any, solve: Callable[..., Tensors], rule: Rule, *args: Tensor) -> Any:
        """Solve all problems at once if the rule knows how, and one after the other otherwise."""
        dims, refused = in_dims[2:], not isinstance(rule, BatchedRule)
        try:
            together = _together(info, dims, rule, args)
        except UnmappableError as error:
            tell_of_rows(error)
            together, refused = None, True
        if together is not None:
            return together, (0,) * len(together)
        if info.batch_size == 0:
            raise ShapeError(NO_ROWS)
        with refusing_foreign() if refused else nullcontext():
            stacked = stack_of_rows(partial(Implicit.apply, solve, rule), info, dims, args)
        return stacked, (0,) * len(stacked)


def _together(info: Any, dims: Sequence[int | None], rule: Rule, args: Tensors) -> Tensors | None:
    """Return the results of all rows at once, or None if the rule or torch.vmap cannot. The second is told."""
    if not isinstance(rule, BatchedRule):
        return None

    vectorise = VmapOfFunction(info.batch_size, info.randomness)
    many = rule.batched([dim is not None for dim in dims], info.batch_size, vectorise)
    if many is None:
        return None
    moved = [x if dim is None else x.movedim(dim, 0) for x, dim in zip(args, dims, strict=True)]
    try:
        return Implicit.apply(*many, *moved)  # type: ignore[no-untyped-call, no-any-return]
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, DilError) or vectorise.of_the_user is not None:
            raise
        if vectorise.captures:  # which is refused by name, with the layer's, where one row is solved
            return None
        reason = str(error).split("\n", 1)[0]
    message = (
        f"the problems of a layer under torch.vmap are solved one after the other, which is slow, because solving them "
        f"together failed; batch_ndim=1 with a function of a batch is fast ({reason})"
    )
    warnings.warn_explicit(message, UserWarning, *users_line("torch"))
    return None


def _product(ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[Tensor | None, ...] | None:
    """Return the cotangents of the arguments if a product with a matrix at hand gives them, or None."""
    shared, v = ctx.passes.pull, cotangents[0]
    if shared is None or type(v) is not Tensor or is_old_batch(v) or autocasts():
        return None
    # torch raises here if one of the saved tensors has changed in place
    if not is_plain(v, *ctx.saved_tensors) or not ctx.passes.shares(v):
        return None
    wrt = _wanted(ctx)
    pulled = shared.product(v, wrt)
    if pulled is None:
        return None
    found = dict(zip(wrt, pulled, strict=True))
    ctx.passes.end_with_graph()
    return (None, None, *map(found.get, range(ctx.count)))


def _wanted(ctx: Any) -> list[int]:
    """Return the arguments whose cotangents this backward pass needs."""
    needed = zip(ctx.needs_input_grad[2:], ctx.next_functions, strict=True)
    return [i for i, (able, (node, _)) in enumerate(needed) if able and _will_run(node)]


def _pulled(ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return the cotangents of the arguments, for one cotangent of the solution or for many."""
    pull = _pulled_back if old_vmap_level(cotangents) is None else _pulled_back_together
    return pull(ctx, cotangents)


def _pulled_back_together(ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return the cotangents for the many of `is_grads_batched` or `vectorize`, which share one factorisation.

    The legacy vmap behind them lacks rules that a solve needs, so the new one does the work.
    """
    level: Any = old_vmap_level(cotangents)
    given = [i for i, ct in enumerate(cotangents) if ct is not None]
    kept: list[int] = []

    def pull(*values: Tensor) -> tuple[Tensor, ...]:
        one = list(cotangents)
        for i, value in zip(given, values, strict=True):
            one[i] = value
        found = _pulled_back(ctx, one)
        kept[:] = [i for i, x in enumerate(found) if x is not None]
        return tuple(found[i] for i in kept)  # type: ignore[misc]

    size = next(x.shape[0] for x in (taken_apart(cotangents[i], level, 1) for i in given) if x is not None)
    found = torch.vmap(pull)(*(taken_apart(cotangents[i], level, size) for i in given))
    every: list[Tensor | None] = [None] * (2 + ctx.count)
    for i, x in zip(kept, found, strict=True):
        every[i] = torch._add_batch_dim(x, 0, level)
    return tuple(every)


def _pulled_back(ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    if all(ct is None for ct in cotangents):
        return (None, None, *(None for _ in range(ctx.count)))
    saved = ctx.saved_tensors
    args = saved[: ctx.count]
    y = replicated_beside(saved[ctx.count :], args)
    wrt = _wanted(ctx)
    with isolated(), still_together(saved, ctx.replicating), allowing(ctx.kernels):
        cotangents = [ct if ct is None else placed_like(ct, out) for ct, out in zip(cotangents, y, strict=True)]
        shared = _shared_pull(ctx, args, y, cotangents[0], wrt)
        pulled: Any = None if shared is None else shared(cotangents[0], wrt)  # type: ignore[arg-type]
        if pulled is None:
            pulled = pulled_by_rows(Implicit.apply, ctx.rule, args, y, cotangents, wrt)
        found = {i: x if x is None else placed_like(x, args[i]) for i, x in zip(wrt, pulled, strict=True)}
    ctx.passes.end_with_graph()
    return (None, None, *(found.get(i) for i in range(ctx.count)))


def _shared_pull(ctx: Any, args: Any, y: Any, v: Any, wrt: list[int]) -> RepeatedPull | None:
    """Return the pullback that passes of this node share, or None if this one solves by itself or is recorded."""
    if v is None or not is_plain(v, *args):
        return None
    return None if is_dtensor(v) else ctx.passes.shared_pull(ctx.rule, args, y, v, wrt)


def _forward_mode_on() -> AbstractContextManager[object]:
    """Return a context in which a rule also propagates the tangents of an outer transform of torch.func.

    torch switches forward mode off inside the rule of an `autograd.Function`. A jvp of the rule's jvp would then be
    wrong, and torch would not report it.
    """
    return forward_ad._set_fwd_grad_enabled(True) if transforming() else nullcontext()


def _solved(solve: Callable[..., Tensors], args: Sequence[Tensor]) -> Tensors:
    """Return solve(*args). If a captured tensor is mapped by vmap, replace torch's error by a clear one."""
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


def _will_run(node: Any) -> bool:
    """Return whether this backward pass will run a node. `needs_input_grad` says only whether some pass may."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # torch raises for a leaf whose gradient is asked for
        return True


def _with_node(x: Tensor) -> Tensor:
    """Return an alias of a leaf. The engine answers `_will_run` for the node of the alias, not for a leaf."""
    if x.layout != torch.strided:
        refuse_gradient_of_blocks(x)
        return x
    plain = x.is_leaf and x.requires_grad and not transforming()
    # not `view_as`, whose derivative refuses the sparse gradient of an embedding
    return torch.ops.aten.alias.default(x) if plain else x
