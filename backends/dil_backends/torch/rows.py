"""A function of one row, applied to many rows at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._functorch.vmap import lazy_load_decompositions  # type: ignore[attr-defined]

from dil._base.errors import UnsupportedFunctionError
from dil_backends.torch.tracking import transforming

Tensor = torch.Tensor

FEW_ROWS = 1
"""The most rows for which a loop costs less than a map."""
_FUNCTORCH: Any = torch._C._functorch


def map_rows(fn: Callable[[Any], Any], rows: Any, at_once: int | None = None, /) -> Any:
    """Apply fn to many rows at once by vmap. If torch cannot, apply fn to one row after the other.

    vmap raises RuntimeError for some graphs: an `autograd.Function` that reads its tensors or leaves torch, or
    nested layers. If fn itself raises, the loop raises the same error again.
    """
    if (at_once == 1 or rows.shape[0] <= FEW_ROWS) and not transforming():
        return torch.stack([fn(row) for row in rows.unbind()])
    # else torch warns to standard error, past the filters of Python, where it takes the rows of one operation one by
    # one, as it does for the derivative of `conj` of the array API
    _FUNCTORCH._set_vmap_fallback_warning_enabled(False)
    try:
        if at_once is not None and at_once < rows.shape[0]:
            return _with_memory(torch.vmap(fn, chunk_size=at_once)(rows))
        return _vmap(fn, rows)
    except (RuntimeError, UnsupportedFunctionError):
        return torch.stack([fn(row) for row in rows])
    finally:
        _FUNCTORCH._set_vmap_fallback_warning_enabled(True)


def map_many(fn: Callable[..., Any], stacked: tuple[Any, ...], /) -> tuple[Any, ...]:
    """Apply fn, which returns a tuple, to the rows of several tensors at once, or to one after the other as above."""
    _FUNCTORCH._set_vmap_fallback_warning_enabled(False)
    try:
        if stacked[0].shape[0] > FEW_ROWS or transforming():
            return tuple(map(_with_memory, torch.vmap(fn)(*stacked)))
    except (RuntimeError, UnsupportedFunctionError):
        pass  # what fn itself raises, the loop raises again
    finally:
        _FUNCTORCH._set_vmap_fallback_warning_enabled(True)
    found = [fn(*row) for row in zip(*(x.unbind() for x in stacked), strict=True)]
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


def _vmap(fn: Callable[[Any], Any], rows: Tensor) -> Any:
    """Return `torch.vmap(fn)(rows)` of a function of one tensor, without its handling of trees, which takes 40 us."""
    _load_rules()
    level = _FUNCTORCH._vmap_increment_nesting(rows.shape[0], "error")
    try:
        found = fn(_FUNCTORCH._add_batch_dim(rows, 0, level))
        return _with_memory(_FUNCTORCH._remove_batch_dim(found, level, rows.shape[0], 0))
    finally:
        _FUNCTORCH._vmap_decrement_nesting()


def _with_memory(x: Any) -> Any:
    """Return x with numbers that can be read: torch keeps none of the zeros that a linear function has as Hessian."""
    return x.clone() if x._is_zerotensor() else x


@cache
def _load_rules() -> None:
    """Load the rules of vmap that are written in Python."""
    lazy_load_decompositions()
