"""Reverse mode: plain autograd, or `torch.func.vjp` inside a transform of torch.func."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dil._base.errors import SecondDerivativeError, UnsupportedFunctionError
from dil._frameworks.protocol import Pull, PullWithWork
from dil_backends.torch.block_matrices import refuse_blocks
from dil_backends.torch.dtensors import added_up, placed_like, users_own
from dil_backends.torch.isolation import without_hooks
from dil_backends.torch.reads import noted
from dil_backends.torch.rows import map_many
from dil_backends.torch.tracking import has_tangent, is_tracked, transforming, transforms
from dil_backends.torch.user_function import CLEAR, refuse_no_rows, refuse_transformed

Tensor = torch.Tensor
Tensors = tuple[Tensor, ...]

_grad = getattr(torch.ops.aten, "grad", torch.autograd.grad)
"""The operator enters the engine directly. `torch.autograd.grad` spends 20 us on checks in Python first."""

MISSING = (
    ("derivative for", "is not implemented"),
    ("once_differentiable",),
    ("not currently support double backward",),
)
"""Parts of the messages in which torch says that a function cannot be differentiated twice."""


def vjp(fn: Callable[..., Tensors], /, *primals: Tensor) -> tuple[Tensors, Pull]:
    """Return fn(*primals) and its pullback. The graph of fn is recorded once, and every pull reuses it.

    This is plain autograd, because it is faster than `torch.func`, and because a score may hold an `autograd.Function`
    that `torch.func` refuses.
    """
    if transforming():
        with without_hooks():  # which torch.func does not allow
            return _functional_vjp(fn, *primals)
    recording = torch.is_grad_enabled()
    kept = recording and any(x.requires_grad for x in primals)
    with autograd_on(), nullcontext() if kept else without_hooks(), noted():
        primals = tuple([x.clone() if x.is_inference() else x for x in primals])
        inputs = [_input(x, recording) for x in primals]
        out = tuple(added_up(y) for y in _evaluated(users_own(fn), inputs))
    for x in inputs:
        x._dil_evaluated = True  # type: ignore[attr-defined]
    again = kept or (recording and _captures(fn, inputs, out))
    again = again or any(has_tangent(y) for y in out)

    live = [i for i, y in enumerate(out) if y.requires_grad]
    roots = [out[i] for i in live]

    def pull(cotangents: Tensors, wrt: Sequence[int] | None = None, /) -> Tensors:
        wanted = inputs if wrt is None else [inputs[i] for i in wrt]
        if not roots or not wanted:
            return tuple(torch.zeros_like(x) for x in wanted)
        record = torch.is_grad_enabled() and (again or any(is_tracked(ct) for ct in cotangents))
        given = [placed_like(cotangents[i], out[i]) for i in live]
        if record:
            refuse_once(roots, wanted)
        try:
            found = _grad(roots, wanted, given, retain_graph=True, create_graph=record, allow_unused=True)
        except RuntimeError as error:
            refuse_blocks(error)
            refuse_missing(error)
            _refuse_donated(error)
            raise
        return tuple(
            [torch.zeros_like(x) if g is None else placed_like(g, x) for g, x in zip(found, wanted, strict=True)]
        )

    values = out if again else tuple(y.detach() for y in out)
    return values, PullWithWork(pull, cache(lambda: _work(roots, inputs)), map_many)


def _functional_vjp(fn: Callable[..., Tensors], /, *primals: Tensor) -> tuple[Tensors, Pull]:
    """Return the same inside a transform of `torch.func`, where plain autograd may not start a graph."""
    # an alias drops the wrapper of a finished transform, which remains if a pull is called after the transform ends
    primals = tuple(_alias(x) for x in primals)
    once: list[SecondDerivativeError] = []

    def watched(*inputs: Tensor) -> Tensors:
        out = fn(*inputs)
        try:
            _refuse_mapped_once(out)
        except SecondDerivativeError as error:
            once.append(error)
        return out

    twice = any(is_tracked(x) for x in primals)
    try:
        out, pull_all = torch.func.vjp(watched if twice else fn, *primals)[:2]  # a third part comes only if asked for
    except CLEAR:
        raise
    except Exception as error:  # the user's function may raise anything
        refuse_no_rows(error)
        refuse_transformed(fn, primals, error)
        raise

    def pull(cotangents: Tensors, wrt: Sequence[int] | None = None, /) -> Tensors:
        if once:
            raise once[0]
        try:
            every = pull_all(tuple(cotangents))
        except (RuntimeError, IndexError) as error:
            refuse_no_rows(error)
            refuse_blocks(error)
            refuse_missing(error)
            raise
        return every if wrt is None else tuple(every[i] for i in wrt)

    return out, PullWithWork(pull, lambda: primals[0].numel(), map_many)  # the graph is that of the transform


def autograd_on() -> AbstractContextManager[object]:
    """Return a context in which autograd records, even inside no_grad or inference mode."""
    # the state itself: `is_inference_mode_enabled` is False within a transform of torch.func in inference mode
    if torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.ADInplaceOrView):
        return torch.enable_grad()
    both = ExitStack()
    both.enter_context(torch.inference_mode(False))
    both.enter_context(torch.enable_grad())
    return both


def _evaluated(fn: Callable[..., Tensors], inputs: Sequence[Tensor]) -> Tensors:
    """Return fn(*inputs). If fn writes into an input, raise a clearer error than torch's."""
    try:
        return fn(*inputs)
    except RuntimeError as error:
        refuse_blocks(error)
        if "leaf Variable that requires grad" not in str(error):
            raise
        message = (
            f"a function of a layer changed one of its inputs in place; it must leave what it is given as it is, so "
            f"write u * 2 instead of u.mul_(2), or begin with u.clone() (torch: {error})"
        )
        raise UnsupportedFunctionError(message) from error


def _input(x: Tensor, recording: bool) -> Tensor:
    """Return the input to differentiate at: x with its history if autograd records, and with its tangent if it has one.

    It is an alias of x. fn may also depend on x through captured tensors, but the derivative is the partial one. A view
    drops the wrapper of a finished transform of torch.func, a detached tensor does not.
    """
    kept = (recording and x.requires_grad) or has_tangent(x)
    if kept or torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = _alias(x)
    return (x if kept else x.detach()).requires_grad_()


def _alias(x: Tensor) -> Tensor:
    """Return a view of x, or a copy of a sparse tensor, which has no views."""
    return x.view_as(x) if x.layout == torch.strided else x.clone()


def refuse_missing(error: Exception) -> None:
    """Raise a clearer error if torch's says that a function has no second derivative."""
    text = str(error)
    if any(all(part in text for part in parts) for parts in MISSING):
        raise _second_derivative_error(text) from error


def _second_derivative_error(text: str) -> SecondDerivativeError:
    return SecondDerivativeError(
        f"a function of a layer lacks a derivative that the layer needs; the derivative of a solution needs the second "
        f"one of its score: keep torch.compile outside of the function, take operations that torch differentiates "
        f"twice (for attention, sdpa_kernel(SDPBackend.MATH) inside the function), or pass "
        f"derivatives=dil.Derivatives(...) (torch: {text})"
    )


def _refuse_donated(error: RuntimeError) -> None:
    """Raise a clear error for the graph of a compiled function that can be walked only once."""
    if "donated buffer" in str(error):
        message = (
            "a function of a layer is compiled by torch.compile so that its graph can be walked only once, and a layer "
            "walks it for each product; put torch._functorch.config.donated_buffer = False before it is compiled, or "
            "keep torch.compile outside of the function"
        )
        raise UnsupportedFunctionError(message) from error


def _work(roots: Sequence[Tensor], inputs: Sequence[Tensor]) -> int:
    """Return how many numbers the results of the operations from the first input to the roots have."""
    start, *others = [torch.autograd.graph.get_gradient_edge(x).node for x in inputs]
    through = {start: True, **dict.fromkeys(others, False)}
    """Whether the first input is below a node."""
    todo = [root.grad_fn for root in roots if root.grad_fn is not None]
    total = 0
    while todo:
        node = todo[-1]
        below = [n for n, _ in node.next_functions if n is not None]
        new = [] if node in through else [n for n in below if n not in through]
        if new:
            todo += new
            continue
        todo.pop()
        if node not in through:
            through[node] = any(through[n] for n in below)
            if through[node]:
                total += sum([math.prod(m.shape) for m in node._input_metadata])
    return total


def _captures(fn: Callable[..., Tensors], inputs: Sequence[Tensor], out: Tensors) -> bool:
    """Whether fn captured a tensor that requires grad: the graph of `out`, fn(*inputs), has another leaf.

    A leaf that fn made itself, to differentiate in it, is another one each time that fn is called.
    """
    leaves = _leaves(out, inputs)
    if not leaves:
        return False
    with autograd_on(), without_hooks():
        again = _evaluated(users_own(fn), inputs)
    return not leaves.keys().isdisjoint(_leaves(again, inputs))


def _leaves(out: Tensors, inputs: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return the leaves of the graph of `out` that are no inputs, by their identity.

    The input of another `vjp` whose function has returned is none: only the pullback of that `vjp` differentiates in
    it, so it would make the graphs of the steps of a solver one. Within that pullback, if it is recorded, it is one.
    """
    ours, pulling = {id(x) for x in inputs}, torch._C._current_graph_task_id() >= 0
    leaves = [getattr(node, "variable", None) for node in _nodes([y.grad_fn for y in out])]
    others = [x for x in leaves if x is not None and id(x) not in ours]
    return {id(x): x for x in others if pulling or not hasattr(x, "_dil_evaluated")}


def _nodes(roots: Sequence[Any]) -> set[Any]:
    """Return the nodes of a graph below its roots, with the roots. A root may be None."""
    todo = [node for node in roots if node is not None]
    seen = set(todo)
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                todo.append(node)
    return seen


def refuse_once(roots: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """Raise if a function between the inputs and the roots has a first derivative only.

    torch returns a constant as its derivative, which silently counts as zero: code of torch.compile, and functions that
    are marked once_differentiable.
    """
    for node in _nodes([y.grad_fn for y in roots]):
        if _is_once(type(node)):
            ends = {torch.autograd.graph.get_gradient_edge(x).node for x in inputs}
            if not ends.isdisjoint(_nodes([node])):
                text = f"{node.name()} cannot be differentiated twice"
                raise _second_derivative_error(text)


def _is_once(kind: Any) -> bool:
    """Whether a node of a graph is compiled code, or a function that is marked once_differentiable."""
    function = getattr(kind, "_forward_cls", None)
    return kind.__name__ == "CompiledFunctionBackward" or (function is not None and _is_marked(function))


def _is_marked(function: Any) -> bool:
    backward = getattr(function.backward, "__func__", function.backward)
    return getattr(backward, "__code__", None) is _MARK


def _refuse_mapped_once(roots: Sequence[Tensor]) -> None:
    """Raise for a function that is marked once_differentiable and that torch maps by itself, inside torch.vmap.

    torch loses the mark there, and the second derivative is zero. For the others it raises where one is needed.
    """
    if "Vmap" not in transforms():
        return
    for node in _nodes([y.grad_fn for y in roots]):
        function = getattr(type(node), "_forward_cls", None)
        while function is not None:
            if _is_marked(function) and function.generate_vmap_rule:
                text = f"{function.__name__} cannot be differentiated twice"
                raise _second_derivative_error(text)
            function = _made_of(function)


def _made_of(function: Any) -> Any:
    """Return the function of which torch.func made this one, for one of its levels or for vmap; None for others."""
    backward = function.backward
    if backward.__module__ != torch._functorch.autograd_function.__name__:
        return None
    held = [cell.cell_contents for cell in backward.__closure__ or ()]
    functions = [x for x in held if isinstance(x, type) and issubclass(x, torch.autograd.Function)]
    return next((x for x in functions if x is not function), None)


_MARK = once_differentiable(lambda ctx: None).__code__
"""The code of every function that is marked."""
