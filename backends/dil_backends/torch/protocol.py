"""The functions of the torch backend that `dil._frameworks.protocol.Backend` requires."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from dil._base.arrays import array_namespace
from dil._base.errors import BackendError, CapturedError
from dil._base.typing import Namespace
from dil._frameworks.differentiable_solve import differentiable_solve
from dil._frameworks.fixed import called as once
from dil._frameworks.fixed import with_variables_of_now as fixed
from dil._frameworks.loops import EAGER, masked, write_row, write_rows_at_once
from dil._frameworks.protocol import Backend, BackendInfo, LinearSystem
from dil._frameworks.reports import eager_reports
from dil_backends.torch.complex_parts import COMPLEX_PARTS as complex_parts
from dil_backends.torch.dense import DENSE as dense
from dil_backends.torch.dtensors import added_up, is_dtensor, still_together, whole
from dil_backends.torch.function import implicit
from dil_backends.torch.guards import guard
from dil_backends.torch.lifted import lifted
from dil_backends.torch.patched_forward import OTHER_KIND
from dil_backends.torch.rows import map_rows
from dil_backends.torch.tracking import has_tangent, is_tracked, transforming
from dil_backends.torch.vjp import vjp

__all__ = ["complex_parts", "dense", "fixed", "guard", "implicit", "lifted", "once", "vjp"]

Tensor = torch.Tensor

NATIVE = "torch"
FLOAT_CUTS = True
THIS = cast(Backend, sys.modules[__name__])


def owns(x: object, /) -> bool:
    """Whether x is a tensor."""
    return isinstance(x, Tensor)


def adopt(x: object, /, dtype: object = None) -> Any:
    """Return x: torch mixes its tensors with no other arrays, and a layer not with other dtypes."""
    return x


def children(x: object, /) -> tuple[Sequence[Any], Callable[[Sequence[Any]], Any]] | None:
    """Split one level of a pytree that torch has registered."""
    if type(x) not in pytree.SUPPORTED_NODES:
        return None
    parts, context = pytree.SUPPORTED_NODES[type(x)].flatten_fn(x)
    return parts, lambda new: pytree.SUPPORTED_NODES[type(x)].unflatten_fn(new, context)


def linear_solve(system: LinearSystem, b: Any, /) -> Any:
    """Solve a linear system; differentiable where autograd is recording."""
    if not (transforming() or any(is_tracked(x) for x in (b, *system.params))):
        return system.solve(system.A, b, *system.constants)
    return differentiable_solve(THIS, system, b)


def constant(x: Tensor, /) -> Tensor:
    """Return x detached from the graph, as a tensor that a graph may hold: one of inference mode is copied."""
    if not x.is_inference():
        return x.detach()
    with torch.inference_mode(False):
        return x.clone()


def compiler() -> None:
    """Return None: operations run at once."""


def assert_constant(x: Tensor, message: str, /) -> None:
    """Raise if a derivative with respect to x is being recorded."""
    if is_tracked(x):
        raise CapturedError(message + OTHER_KIND)


def asarray(x: object, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Make a tensor."""
    try:
        return torch.asarray(x, dtype=dtype, device=device)
    except (RuntimeError, AssertionError) as error:
        message = f"torch cannot make a tensor of dtype {dtype} on device {device!r}: {error}"
        raise BackendError(message) from error


def to_numpy(x: Any, /) -> Any:
    """Copy a tensor to the host. NumPy has no bfloat16, so such a tensor becomes float32."""
    x = whole(x.detach()).cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def namespace() -> Namespace:
    """Return the array API namespace."""
    return array_namespace(asarray(0.0))


def info() -> BackendInfo:
    """Describe torch. The CPU is always among its devices."""
    found = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        found += [f"{kind}:{i}" for i in range(torch.accelerator.device_count())]
    return BackendInfo(NATIVE, torch.__version__, tuple(found), None)


def _number(x: Any, /) -> Any:
    """Return a 0-D CPU tensor as a Python number.

    Other tensors are returned as they are: reading them would wait, or lose their gradient.
    """
    readable = x.ndim == 0 and x.is_cpu and not x.requires_grad and not transforming()
    return whole(x).item() if readable else added_up(x)


def _numbers(x: Any, /) -> Any:
    """Return a CPU tensor as a list of Python numbers, under the conditions of `_number`."""
    readable = x.is_cpu and not x.requires_grad and not transforming() and not has_tangent(x)
    return whole(x).tolist() if readable else added_up(x)


def _steps_per_read(x: Any, /) -> int:
    """Return 1 on the CPU, where a read costs nothing, and in a transform, where none is possible; else EAGER's."""
    return 1 if x.is_cpu or transforming() else EAGER.steps_per_read(x)


def _places(mask: Any, /) -> Any:
    """Return the places of the true entries of a mask, which no transform can read. Rows of DTensors stay in place."""
    return None if transforming() or is_dtensor(mask) else torch.nonzero(mask)[:, 0]


def _while_loop(cond: Callable[[Any], Any], body: Callable[[Any], Any], state: Any, /) -> Any:
    """Run a while loop in Python. A solver of DTensors that is called outside of a layer meets them here first."""
    with still_together(state):
        return EAGER.while_loop(cond, body, state)


def _set_row(memory: Any, i: Any, row: Any, /) -> Any:
    """Write a row into a memory.

    It is written into a copy where autograd needs the old memory, and where the memory is shared out: its rows need not
    be placed as `row` is.
    """
    if not is_dtensor(row):
        return write_row(memory.clone() if memory.requires_grad or row.requires_grad else memory, i, row)
    here = torch.arange(memory.shape[-2], device=memory.device)[:, None] == i
    return torch.where(here, row[..., None, :], memory)


def _set_rows(memory: Any, places: Any, rows: Any, /) -> Any:
    """Write a row into each memory of a batch. Memories that are shared out are written as a whole."""
    if not is_dtensor(rows):
        recorded = memory.requires_grad or rows.requires_grad
        return write_rows_at_once(memory.clone() if recorded else memory, places, rows)
    here = torch.arange(memory.shape[-2], device=memory.device) == places[..., None]
    return torch.where(here[..., None], rows[..., None, :], memory)


def _on_host(fn: Callable[..., Any], like: Any, /, *arrays: Any) -> Any:
    """Call fn. Refuse DTensors, whose numbers no process has together."""
    if any(map(is_dtensor, arrays)):
        message = (
            "this solver computes in NumPy on the host, with all numbers in one process, and it got a DTensor, whose "
            "numbers are shared out; take LBFGS, Newton, GradientDescent, FixedPoint or Anderson of dil.solvers, or "
            "pass x.full_tensor()"
        )
        raise BackendError(message)
    return EAGER.on_host(fn, like, *arrays)


def _scan(step: Any, carry: Any, xs: Any, count: Any = None, /) -> Any:
    """Run a scan in Python. Under vmap, as many steps as the longest of the scans takes."""
    most, batched = count, False
    while most is not None and torch._C._functorch.is_functorch_wrapped_tensor(most):
        batched = batched or torch._C._functorch.is_batchedtensor(most)
        most = torch._C._functorch.get_unwrapped(most)
    if batched:
        step, xs = masked(step), (*xs, torch.arange(xs[0].shape[0], device=xs[0].device) < count)
    return EAGER.scan(step, carry, xs, None if most is None else most.max())


loops = replace(
    EAGER,
    scan=_scan,
    while_loop=_while_loop,
    map_rows=map_rows,
    set_row=_set_row,
    set_rows=_set_rows,
    on_host=_on_host,
    number=_number,
    numbers=_numbers,
    places=_places,
    steps_per_read=_steps_per_read,
)
reports = eager_reports(to_numpy)
