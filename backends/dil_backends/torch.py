"""torch: reverse mode by plain autograd, custom derivatives by `autograd.Function`, loops in Python."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache, partial
from typing import Any, cast

import torch
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from dil._base.errors import BackendError, CapturedError, UnsupportedFunctionError
from dil._frameworks.differentiable_solve import differentiable_solve
from dil._frameworks.loops import python_loop, python_run_if, python_scan
from dil._frameworks.protocol import Backend, LinearSystem, Pull, Rule

Tensor = torch.Tensor
Tensors = tuple[Tensor, ...]

NATIVE = "torch"
DENSE = 256
DENSE_GENERAL = 1024
TRIAL = 1 / 32
THIS = cast(Backend, sys.modules[__name__])

while_loop = python_loop
run_if = python_run_if
scan = python_scan

CHANGED = (
    "the function or the solver of a layer changed one of the layer's arguments in place; both must leave what they "
    "are given as it is, so write t * 2 instead of t.mul_(2), or begin with t.clone()"
)
_grad = getattr(torch.ops.aten, "grad", torch.autograd.grad)
"""The operator enters the engine at once, where the function of the same arguments spends 20 us on checks in Python."""


def owns(x: object, /) -> bool:
    """Whether x is a tensor."""
    return isinstance(x, Tensor)


def children(x: object, /) -> tuple[Sequence[Any], Callable[[Sequence[Any]], Any]] | None:
    """Take apart what torch has registered as a pytree node."""
    if type(x) not in pytree.SUPPORTED_NODES:
        return None
    parts, context = pytree.SUPPORTED_NODES[type(x)].flatten_fn(x)
    return parts, lambda new: pytree.SUPPORTED_NODES[type(x)].unflatten_fn(new, context)


def vjp(fn: Callable[..., Tensors], /, *primals: Tensor) -> tuple[Tensors, Pull]:
    """Record the graph of fn once; every pull goes through it again.

    Plain autograd, since a score may hold an `autograd.Function` that `torch.func` refuses, and since it is the faster.
    """
    if _transforming():
        return _functional_vjp(fn, *primals)
    recording = torch.is_grad_enabled()
    with _recording():
        primals = tuple([x.clone() if x.is_inference() else x for x in primals])
        inputs = [_input(x, recording) for x in primals]
        out = _evaluated(fn, inputs)
    again = recording and (any(x.requires_grad for x in primals) or _captures(out, inputs))
    again = again or any(_dual(y) for y in out)

    live = [i for i, y in enumerate(out) if y.requires_grad]
    roots = [out[i] for i in live]

    def pull(cotangents: Tensors, wrt: Sequence[int] | None = None, /) -> Tensors:
        wanted = inputs if wrt is None else [inputs[i] for i in wrt]
        if not roots or not wanted:
            return tuple(torch.zeros_like(x) for x in wanted)
        record = torch.is_grad_enabled() and (again or any(ct.requires_grad for ct in cotangents))
        given = [cotangents[i] for i in live]
        found = _grad(roots, wanted, given, retain_graph=True, create_graph=record, allow_unused=True)
        return tuple([torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)])

    return (out if again else tuple(y.detach() for y in out)), pull  # type: ignore[return-value]


def _recording() -> AbstractContextManager[object]:
    """Return a context in which autograd records, whatever is switched off around it."""
    if not torch.is_inference_mode_enabled():
        return torch.enable_grad()
    both = ExitStack()
    both.enter_context(torch.inference_mode(False))
    both.enter_context(torch.enable_grad())
    return both


def _pushing() -> AbstractContextManager[object]:
    """Return a context in which the tangents of an outer transform of torch.func are pushed through a rule.

    torch switches that off within the rule of an `autograd.Function`: a jvp of its jvp would be wrong without a word.
    """
    return forward_ad._set_fwd_grad_enabled(True) if _transforming() else nullcontext()


def _evaluated(fn: Callable[..., Tensors], inputs: Sequence[Tensor]) -> Tensors:
    """Return fn of the inputs; explain the error that torch raises where it writes into them."""
    try:
        return fn(*inputs)
    except RuntimeError as error:
        if "leaf Variable that requires grad" not in str(error):
            raise
        message = (
            f"a function of a layer changed one of its inputs in place; it must leave what it is given as it is, so "
            f"write u * 2 instead of u.mul_(2), or begin with u.clone() (torch: {error})"
        )
        raise UnsupportedFunctionError(message) from error


def _input(x: Tensor, recording: bool) -> Tensor:
    """Return what to differentiate at: x with its history where that is recorded, with its tangent if it has one.

    It is an alias, not x itself: fn may depend on x by other ways too, and this is the partial derivative. A view,
    unlike a detached tensor, sheds the wrapper that a finished transform of torch.func leaves behind.
    """
    kept = (recording and x.requires_grad) or _dual(x)
    if kept or torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = x.view_as(x)
    return (x if kept else x.detach()).requires_grad_()


def _dual(x: Tensor) -> bool:
    """Whether x carries a tangent of forward-mode differentiation."""
    # outside every dual_level, which is where almost all calls are, there is nothing to unpack
    if forward_ad._current_level < 0:
        return False
    while torch._C._functorch.is_batchedtensor(x):  # a vmap has no rule for unpacking what is differentiated around it
        x = torch._C._functorch.get_unwrapped(x)
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def _captures(out: Tensors, inputs: Sequence[Tensor]) -> bool:
    """Whether the graph of `out` ends in a leaf other than the inputs: a tensor that fn holds and others track."""
    ours = {id(x) for x in inputs}
    todo = [y.grad_fn for y in out if y.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in ours:
            return True
        fresh = {edge[0] for edge in node.next_functions if edge[0] is not None} - seen
        seen |= fresh
        todo.extend(fresh)
    return False


def _transforming() -> bool:
    """Whether a transform of `torch.func` is under way here; inside `Implicit.forward` none is."""
    return torch._C._are_functorch_transforms_active()


def _functional_vjp(fn: Callable[..., Tensors], /, *primals: Tensor) -> tuple[Tensors, Pull]:
    """Do the same inside a transform of `torch.func`, where plain autograd may not start a graph."""
    # aliases, which shed the wrappers that a transform leaves behind when its pull is called after its end
    primals = tuple(x.view_as(x) for x in primals)
    out, pull_all = torch.func.vjp(fn, *primals)[:2]  # a third, auxiliary part comes only if asked for

    def pull(cotangents: Tensors, wrt: Sequence[int] | None = None, /) -> Tensors:
        every = pull_all(tuple(cotangents))
        return every if wrt is None else tuple(every[i] for i in wrt)

    return out, pull  # type: ignore[return-value]


class Implicit(torch.autograd.Function):
    """A function of tensors whose derivative is a `Rule`."""

    @staticmethod
    def forward(solve: Callable[..., Tensors], rule: Rule, *args: Tensor) -> Tensors:
        """Solve; a user's solver may call backward() itself, so gradients are on."""
        with _recording():
            _refuse_no_numbers(args)
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
        _refuse_old_vmap(cotangents)
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
        _refuse_old_vmap(tangents)
        saved = ctx.saved_tensors
        with without_autocast(), _pushing():
            if _transforming():
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


def _refuse_no_numbers(args: Tensors) -> None:
    if any(x.is_meta for x in args):
        message = "a dil layer got a tensor on device meta, which holds no numbers to solve with; move it to another"
        raise BackendError(message)


def _refuse_old_vmap(given: Sequence[Any]) -> None:
    """Raise for the batched tensors of torch's first vmap, which has rules for few operations."""
    if any(isinstance(x, Tensor) and torch._C._functorch.is_legacy_batchedtensor(x) for x in given):
        message = (
            "a dil layer under is_grads_batched=True or vectorize=True of torch.autograd, whose vmap lacks what it "
            "needs; use torch.func.jacrev, jacfwd or hessian, or torch.func.vmap of the pullback of torch.func.vjp"
        )
        raise UnsupportedFunctionError(message)


def _row(args: Tensors, in_dims: Sequence[int | None], i: int) -> Tensors:
    return tuple(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True))


def implicit(solve: Callable[..., Tensors], rule: Rule, /) -> Callable[..., Tensors]:
    """Return `solve` with the derivative that `rule` gives."""
    return lambda *args: Implicit.apply(solve, rule, *map(_asked, args))  # type: ignore[no-untyped-call]


def _asked(x: Tensor) -> Tensor:
    """Return an alias of a leaf, so that the engine has a node that it can be asked about: see `_awaited`."""
    return x.view_as(x) if x.is_leaf and x.requires_grad and not _transforming() else x


def linear_solve(system: LinearSystem, b: Any, /) -> Any:
    """Solve a linear system; differentiable where autograd is recording."""
    if not (_transforming() or any(_tracked(x) for x in (b, *system.params))):
        return system.solve(system.A, b, *system.constants)
    return differentiable_solve(THIS, system, b)


def map_rows(fn: Callable[[Tensor], Tensor], rows: Tensor, /) -> Tensor:
    """Apply fn to all rows at once, or to one after the other where torch cannot.

    The graph of a score may hold what `torch.vmap` refuses with a RuntimeError: an `autograd.Function` that reads its
    tensors or leaves torch, nested layers. An error of fn itself comes again, as it would without vmap.
    """
    try:
        return torch.vmap(fn)(rows)
    except RuntimeError:
        return torch.stack([fn(row) for row in rows])


def cholesky_solve(A: Tensor, b: Tensor, /) -> Tensor:
    """Solve by Cholesky, without an exception where A is not positive definite."""
    L, info = torch.linalg.cholesky_ex(_factorable(A))
    return torch.where((info == 0)[..., None, None], torch.cholesky_solve(_factorable(b), L), torch.nan).to(b.dtype)


def lu_solve(A: Tensor, b: Tensor, /) -> Tensor:
    """Solve by LU, without an exception where A is singular."""
    x, info = torch.linalg.solve_ex(_factorable(A), _factorable(b))
    return torch.where((info == 0)[..., None, None], x, torch.nan).to(b.dtype)


def _factorable(x: Tensor) -> Tensor:
    """Return x in float32 if its dtype is one of 16 bits, for which torch has no factorisation."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def constant(x: Tensor, /) -> Tensor:
    """Return x detached from the graph."""
    return x.detach()


def assert_constant(x: Tensor, message: str, /) -> None:
    """Raise if autograd is recording x."""
    if _tracked(x):
        raise CapturedError(message)


def _tracked(x: Tensor) -> bool:
    return (torch.is_grad_enabled() and x.requires_grad) or _dual(x)


def moves(x: Tensor) -> bool:
    """Whether a derivative is being taken in x, by autograd or by torch.func."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_gradtrackingtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return x.requires_grad or _dual(x)


def tell(listener: Callable[[Any], None], status: Tensor, value: Tensor) -> Tensor:
    """Call the listener now."""
    listener(to_numpy(status))
    return value


def observe(listener: Callable[..., None], *arrays: Tensor) -> None:
    """Call the listener now."""
    listener(*(to_numpy(x) for x in arrays))


def observing() -> AbstractContextManager[None]:
    """Return a context that does nothing: what is eager observes at once."""
    return nullcontext()


def shield(fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
    """Return fn, run by Python where `torch.compile` looks on, without autocast if it is to be exact.

    A layer is a loop that ends by what it computes, around an autograd.Function: a compiled model leaves its graph
    there and takes up another behind. Autocast would take the digits that a solve needs.
    """
    call = partial(_shielded, fn, exact)
    return partial(_outside, call) if torch.compiler.is_compiling() else call


def _shielded(fn: Callable[..., Any], exact: bool, *args: Any, **kwargs: Any) -> Any:
    if not exact:
        return fn(*args, **kwargs)
    _refuse_tracers()
    with without_autocast():
        return fn(*args, **kwargs)


def _outside(call: Callable[..., Any], *args: Any) -> Any:
    """Call it where no compiler looks on."""
    return torch.compiler.disable(partial(_not_under_grad, call))(*args)  # type: ignore[no-untyped-call]


# what torch.compiler.disable does as well; it imports the compiler, which few programs need
_outside._torchdynamo_disable = True  # type: ignore[attr-defined]
_outside._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
    "a dil layer is a loop in Python outside of compiled graphs; use torch.compile without fullgraph=True"
)


def _not_under_grad(call: Callable[..., Any], *args: Any) -> Any:
    """Call it, unless torch is going to fail in compiling what comes behind it."""
    if _levels() & {"Grad", "Jvp"}:
        message = (
            "a dil layer in a derivative of torch.func inside torch.compile: torch cannot take up a graph there; put "
            "torch.compiler.disable on the function that takes the derivative, or take it by torch.autograd.grad"
        )
        raise UnsupportedFunctionError(message)
    return call(*args)


def _refuse_tracers() -> None:
    """Raise where torch records operations instead of computing, since a layer ends by what it computes."""
    found = None
    if torch._C._is_tracing():
        found = "torch.jit.trace", "torch.compile"
    elif torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        found = "torch.export, make_fx and torch.func.linearize", "torch.compile, and torch.func.jvp for a derivative"
    elif torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        found = "torch.export or a FakeTensorMode", "torch.compile"
    elif "Functionalize" in _levels():
        found = "torch.func.functionalize", "the function itself, whose layers write into nothing"
    if found is not None:
        message = f"a dil layer cannot be recorded by {found[0]}: how it runs depends on the numbers; use {found[1]}"
        raise UnsupportedFunctionError(message)


def _levels() -> set[str]:
    """Name the kinds of the transforms of torch.func under way."""
    if not _transforming():
        return set()
    return {level.key().name for level in torch._C._functorch.get_interpreter_stack() or ()}


def without_autocast() -> AbstractContextManager[object]:
    """Return a context in which operations keep the dtype of their tensors."""
    found = autocasts()
    if not found:
        return nullcontext()
    stack = ExitStack()
    for kind in found:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def autocasts() -> list[str]:
    """Return the kinds of devices for which autocast is on."""
    return [kind for kind in _kinds() if torch.is_autocast_enabled(kind)]


@cache
def _kinds() -> tuple[str, ...]:
    here = torch.accelerator.current_accelerator()
    return ("cpu",) if here is None else ("cpu", here.type)


def number(x: Tensor, /) -> Any:
    """Return a 0-D tensor on the CPU as a number; on a device, where reading it would wait, the tensor itself."""
    return x.item() if x.ndim == 0 and x.is_cpu and not torch._C._are_functorch_transforms_active() else x


def on_host(fn: Callable[..., Tensors], like: Tensors, *arrays: Tensor) -> Tensors:
    """Call fn now, with detached tensors."""
    return fn(*(x.detach() for x in arrays))


def to_numpy(x: Tensor, /) -> Any:
    """Copy a tensor to the host."""
    return x.detach().cpu().numpy()


def namespace() -> Any:
    """Return torch as an array API namespace."""
    import array_api_compat.torch as xp

    return xp


def devices() -> list[str]:
    """Name the CPU and each accelerator."""
    found = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        found += [f"{kind}:{i}" for i in range(torch.accelerator.device_count())]
    return found


def asarray(x: object, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Make a tensor."""
    try:
        return torch.asarray(x, dtype=dtype, device=device)
    except (RuntimeError, AssertionError) as error:
        message = f"torch cannot make a tensor of dtype {dtype} on device {device!r}: {error}"
        raise BackendError(message) from error


def unusable() -> str | None:
    """Torch always has its CPU."""
    return None
