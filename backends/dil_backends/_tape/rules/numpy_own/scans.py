"""`reduce` and `accumulate` of ufuncs that are associative, such as `np.logaddexp.reduce`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.axes import axes_of
from dil_backends._tape.rules.numpy_own.statistics import cast
from dil_backends._tape.rules.rule import Axis, Value

ASSOCIATIVE = ("maximum", "minimum", "fmax", "fmin", "logaddexp", "logaddexp2", "hypot")
REDUCED = ("fmax", "fmin", "logaddexp", "logaddexp2", "hypot")
"""Those whose `reduce` is not a function of its own, as `np.maximum.reduce` is `np.max`."""


def accumulate_by(name: str) -> Callable[..., Value]:
    """Return `ufunc.accumulate`. Windows of the entries are joined by doubling, in log2(n) passes."""

    def accumulate(xp: Namespace, array: Value, axis: int = 0, dtype: Any = None, out: None = None) -> Value:
        join, x, step = getattr(xp, name), xp.moveaxis(cast(xp, array, dtype), axis, 0), 1
        while step < x.shape[0]:
            x = xp.concat([x[:step, ...], join(x[:-step, ...], x[step:, ...])], axis=0)
            step *= 2
        return xp.moveaxis(x, 0, axis)

    return accumulate


def reduce_by(name: str) -> Callable[..., Value]:
    """Return `ufunc.reduce`. The halves of the entries are joined until one is left."""

    def reduce(xp: Namespace, array: Value, axis: Axis = 0, dtype: Any = None, out: None = None,
               keepdims: bool = False) -> Value:  # fmt: skip
        array, shape = cast(xp, array, dtype), array.shape
        along = axes_of(axis, len(shape))
        rest = tuple(k for k in range(len(shape)) if k not in along)
        join, x = getattr(xp, name), xp.permute_dims(array, (*along, *rest))
        x = xp.reshape(x, (math.prod(shape[k] for k in along), *(shape[k] for k in rest)))
        x = abs(x) if name == "hypot" else x  # that of one entry, too
        if not x.shape[0]:
            msg = f"{name}.reduce: there is no entry along the axes"
            raise ValueError(msg)
        while (n := x.shape[0]) > 1:
            half = join(x[: n // 2, ...], x[n // 2 : 2 * (n // 2), ...])
            x = xp.concat([half, x[2 * (n // 2) :, ...]], axis=0)
        left = tuple(1 if k in along else m for k, m in enumerate(shape))
        return xp.reshape(x, left if keepdims else x.shape[1:])

    return reduce
