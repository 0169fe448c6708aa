"""torch: reverse mode by plain autograd, custom derivatives by `autograd.Function`, loops in Python."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from dil._errors import BackendError, CapturedError
from dil._linear_solve import differentiable_solve
from dil._loops import python_loop
from dil._protocol import Backend, LinearSystem, Pull, Rule

Tensor = torch.Tensor
Tensors = tuple[Tensor, ...]

NATIVE = "torch"
DENSE = 256
THIS = cast(Backend, sys.modules[__name__])

while_loop = python_loop

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
    with torch.inference_mode(False), torch.enable_grad():
        primals = tuple(x.clone() if x.is_inference() else x for x in primals)
        # an alias, not the tensor itself: fn may depend on it by other ways too, and this is the partial derivative;
        # the wrapper that a finished transform of torch.func leaves behind is also shed by it
        aliases = [x.view_as(x) for x in primals]
        inputs = [_leaf(x, recording) for x in aliases]
        out = fn(*inputs)
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


def _leaf(x: Tensor, recording: bool) -> Tensor:
    """Return what to differentiate at: x with its history where that is recorded, with its tangent if it has one."""
    if recording and x.requires_grad:
        return x
    return (x if _dual(x) else x.detach()).requires_grad_()


def _dual(x: Tensor) -> bool:
    """Whether x carries a tangent of forward-mode differentiation."""
    return torch.autograd.forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


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
        with torch.inference_mode(False), torch.enable_grad():
            plain = (x.clone() if x.is_inference() else x.detach() for x in args)
            return tuple(y.detach() for y in solve(*plain))

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
        if all(ct is None for ct in cotangents):
            return (None, None, *(None for _ in range(ctx.count)))
        saved = ctx.saved_tensors
        args, y = saved[: ctx.count], saved[ctx.count :]
        wrt = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        found = dict(zip(wrt, ctx.rule.pullback(args, y, cotangents, wrt), strict=True))
        return (None, None, *(found.get(i) for i in range(ctx.count)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        """Push tangents forward."""
        saved = ctx.saved_tensors
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


def _row(args: Tensors, in_dims: Sequence[int | None], i: int) -> Tensors:
    return tuple(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True))


def implicit(solve: Callable[..., Tensors], rule: Rule, /) -> Callable[..., Tensors]:
    """Return `solve` with the derivative that `rule` gives."""
    return lambda *args: Implicit.apply(solve, rule, *args)  # type: ignore[no-untyped-call]


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
    L, info = torch.linalg.cholesky_ex(A)
    return torch.where((info == 0)[..., None, None], torch.cholesky_solve(b, L), torch.nan)


def lu_solve(A: Tensor, b: Tensor, /) -> Tensor:
    """Solve by LU, without an exception where A is singular."""
    x, info = torch.linalg.solve_ex(A, b)
    return torch.where((info == 0)[..., None, None], x, torch.nan)


def constant(x: Tensor, /) -> Tensor:
    """Return x detached from the graph."""
    return x.detach()


def assert_constant(x: Tensor, message: str, /) -> None:
    """Raise if autograd is recording x."""
    if _tracked(x):
        raise CapturedError(message)


def _tracked(x: Tensor) -> bool:
    return (torch.is_grad_enabled() and x.requires_grad) or _dual(x)


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
