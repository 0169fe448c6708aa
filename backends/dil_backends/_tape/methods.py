"""The methods and attributes of NumPy's arrays, which a box has where the array in it has them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dil._base.errors import UnsupportedFunctionError


def reshape(tape: Any, x: Any, *shape: Any, order: str = "C", copy: bool | None = None) -> Any:
    """Return x in a shape that is given as one argument or as several."""
    return tape.dispatch("reshape", (x, shape[0] if len(shape) == 1 else shape), {"order": order})


def transpose(tape: Any, x: Any, *axes: Any) -> Any:
    """Return x with permuted axes, which are given as one argument or as several."""
    return tape.transpose(x, axes[0] if len(axes) == 1 else axes or None)


def to_device(tape: Any, x: Any, device: Any, /, *, stream: None = None) -> Any:
    """Return x, which is there already. Raises for another device."""
    return tape.asarray(x, device=device)


def compress(tape: Any, x: Any, condition: Any, axis: int | None = None, out: None = None) -> Any:
    return tape.dispatch("compress", (condition, x, axis), {"out": out})


SAME = (
    *("all", "any", "argmax", "argmin", "argpartition", "argsort", "astype", "clip", "conj", "conjugate", "copy"),
    *("cumprod", "cumsum", "diagonal", "dot", "max", "mean", "min", "nonzero", "prod", "ravel", "repeat", "round"),
    *("searchsorted", "squeeze", "std", "sum", "swapaxes", "take", "trace", "var"),
)
"""Methods that are NumPy's function of the same name with the array as its first argument."""


def function_of(name: str) -> Callable[..., Any]:
    def method(tape: Any, x: Any, *args: Any, **options: Any) -> Any:
        return tape.dispatch(name, (x, *args), options)

    return method


METHODS: dict[str, Callable[..., Any]] = {
    **{name: function_of(name) for name in SAME},
    "flatten": function_of("ravel"),
    "reshape": reshape,
    "transpose": transpose,
    "compress": compress,
    "to_device": to_device,
}

ATTRIBUTES: dict[str, Callable[[Any, Any], Any]] = {
    "real": lambda tape, x: tape.dispatch("real", (x,), {}),
    "imag": lambda tape, x: tape.dispatch("imag", (x,), {}),
    "flat": lambda tape, x: tape.dispatch("ravel", (x,), {}),
    "itemsize": lambda tape, x: x.dtype.itemsize,
    "nbytes": lambda tape, x: x.size * x.dtype.itemsize,
}

INSTEAD: dict[str, str] = {
    **dict.fromkeys(("item", "tolist", "tobytes", "dumps", "dump", "tofile"), "keep the array, or one entry as `u[i]`"),
    **dict.fromkeys(("data", "ctypes", "view", "getfield"), "keep the array; `astype` changes its dtype"),
    "fill": "write `np.full_like(u, value)`",
    "sort": "write `np.sort(u)`, which makes a new array",
    "partition": "write `np.partition(u, kth)`, which makes a new array",
    "resize": "write `np.reshape` or `np.tile`, which make new arrays",
    "put": "write `np.where` or `np.concatenate`, which make new arrays",
}
"""What to write in the place of a method that would cut the derivative or write in place."""


def of_ufunc(tape: Any, name: str, x: Any, *args: Any) -> Any:
    """Return a function of NumPy of an entry of an object array: there NumPy calls `x.exp()` for np.exp."""
    return tape.dispatch(name, (x, *args), {})


def attribute(x: Any, tape: Any, kind: type, name: str) -> Any:
    """Return an attribute of a box x, whose raw array has the type `kind`.

    Raises AttributeError if the raw array has none of that name, or the tape knows none.
    """
    if hasattr(kind, name):
        if name in METHODS:
            return partial(METHODS[name], tape, x)
        if name in ATTRIBUTES:
            return ATTRIBUTES[name](tape, x)
        if name in INSTEAD:
            return partial(refuse_method, name)
    elif x._trace.entries is not None and x.ndim == 0 and isinstance(getattr(np, name, None), np.ufunc):
        return partial(of_ufunc, tape, name, x)
    of_array = f"; `dil.constant(u).{name}` is that of the array in it" if hasattr(kind, name) else ""
    msg = f"an array that is being differentiated has no attribute `{name}`{of_array}"
    raise AttributeError(msg)


def refuse_method(name: str, *args: object, **options: object) -> Any:
    """Raise an error that says what to write instead of a method."""
    msg = (
        f"`{name}` of an array that is being differentiated would cut the derivative; {INSTEAD[name]}, or use dil's "
        "`constant` if it shall be cut"
    )
    raise UnsupportedFunctionError(msg)
