"""What NumPy and CuPy share beyond the standard, and the functions of the standard with NumPy's arguments.

* `NUMPY_RULES`  formulas, as `RULES`
* `NUMPY_OWN`    how to compute the primitives among them that NumPy lacks
* `NUMPY`        functions in NumPy's spelling, written with functions of the tape

A namespace that lacks the name, such as array_api_strict, does not get it from the tape either.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.elementwise import SEVERAL
from dil_backends._tape.rules.numpy_own import (
    diagonals,
    differences,
    distinct,
    einsum,
    elementwise,
    joining,
    missing,
    numbers,
    padding,
    polynomials,
    products,
    scans,
    selection,
    shapes,
    statistics,
)
from dil_backends._tape.rules.numpy_own.arrays import as_array
from dil_backends._tape.rules.numpy_own.constants import CONSTANT, INSTEAD
from dil_backends._tape.rules.numpy_own.statistics import cast
from dil_backends._tape.rules.rule import Axis, Rule, Value

__all__ = ["CONSTANT", "INSTEAD", "NUMPY", "NUMPY_ALIASES", "NUMPY_OWN", "NUMPY_RULES"]

NUMPY_RULES: dict[str, Rule] = {
    **{name: Rule((formula,), holomorphic=True, elementwise=True) for name, formula in elementwise.UNARY.items()},
    **{name: Rule(formulas, holomorphic=True, elementwise=True) for name, formulas in elementwise.BINARY.items()},
    "convolution": Rule(products.CONVOLUTION),
    "contract": Rule((), each=einsum.contracted),
    **missing.MASKED_RULES,
}

NUMPY_OWN: dict[str, Callable[..., Value]] = {
    "convolution": lambda xp, a, v: xp.convolve(a, v),
    "contract": einsum.contract,
    **missing.MASKED_OWN,
}

NUMPY_ALIASES: dict[str, str] = {
    "radians": "deg2rad",
    "degrees": "rad2deg",
    "row_stack": "vstack",
}


def outer_of(name: str, xp: Namespace, a: Value, b: Value) -> Value:
    """Return a function of two arguments at all pairs of entries, as `np.subtract.outer`."""
    a, b = as_array(xp, a), as_array(xp, b)
    return getattr(xp, name)(xp.reshape(a, (*a.shape, *(1,) * b.ndim)), b)


def reduced(function: Callable[..., Value]) -> Callable[..., Value]:
    """Return a reduction with the arguments of `ufunc.reduce`: the first axis by default."""

    def reduce(xp: Namespace, array: Value, axis: Axis = 0, dtype: Any = None, out: None = None,
               keepdims: bool = False, initial: Value = None, where: Value = None) -> Value:  # fmt: skip
        return function(xp, cast(xp, array, dtype), axis=axis, keepdims=keepdims, initial=initial, where=where)

    return reduce


def accumulated(function: Callable[..., Value]) -> Callable[..., Value]:
    """Return a cumulative function with the arguments of `ufunc.accumulate`."""

    def accumulate(xp: Namespace, array: Value, axis: int = 0, dtype: Any = None, out: None = None) -> Value:
        return function(xp, cast(xp, array, dtype), axis=axis)

    return accumulate


NUMPY: dict[str, Callable[..., Value]] = {
    **{
        function.__name__: function
        for function in (
            einsum.einsum,
            *(diagonals.diagonal, diagonals.trace, diagonals.diag, diagonals.diagflat, diagonals.tril, diagonals.triu),
            *(products.dot, products.inner, products.vdot, products.outer, products.tensordot, products.kron),
            *(products.cross, products.convolve, products.correlate),
            *(joining.concatenate, joining.stack, joining.hstack, joining.vstack, joining.dstack, joining.column_stack),
            *(joining.append, joining.insert, joining.delete, joining.block, joining.split, joining.array_split),
            *(joining.hsplit, joining.vsplit, joining.dsplit),
            *(shapes.reshape, shapes.ravel, shapes.copy, shapes.astype, shapes.rollaxis, shapes.tile),
            *(shapes.atleast_1d, shapes.atleast_2d, shapes.atleast_3d, shapes.flipud, shapes.fliplr, shapes.rot90),
            *(shapes.roll, shapes.repeat, shapes.swapaxes, shapes.meshgrid, padding.pad),
            *(shapes.broadcast_to, shapes.broadcast_arrays),
            *(elementwise.fmax, elementwise.fmin, elementwise.nan_to_num, elementwise.select, elementwise.where),
            *(elementwise.clip, elementwise.polyval, elementwise.float_power),
            elementwise.real_if_close,
            *(statistics.sum, statistics.prod, statistics.max, statistics.min, statistics.ptp, statistics.mean),
            *(statistics.var, statistics.std, statistics.average, statistics.nansum, statistics.nanprod),
            *(statistics.nanmean, statistics.nanvar, statistics.nanstd, statistics.nanmax, statistics.nanmin),
            *(statistics.cumsum, statistics.cumprod, statistics.sort, statistics.partition, statistics.median),
            *(statistics.percentile, statistics.quantile, statistics.cov, statistics.corrcoef, statistics.compress),
            *(missing.nancumsum, missing.nancumprod, missing.nanmedian, missing.nanpercentile, missing.nanquantile),
            *(selection.take, selection.choose, selection.extract, selection.trim_zeros, selection.resize),
            *(selection.bincount, numbers.divmod, numbers.modf, numbers.ldexp, numbers.matvec, numbers.vecmat),
            *(numbers.unwrap, distinct.unique, distinct.union1d, distinct.intersect1d, distinct.setdiff1d),
            *(distinct.setxor1d, polynomials.vander, polynomials.poly, polynomials.polyadd, polynomials.polysub),
            *(polynomials.polymul, polynomials.polyder, polynomials.polyint, polynomials.polyfit, polynomials.roots),
            *(differences.diff, differences.ediff1d, differences.gradient, differences.trapezoid),
            *(differences.interp, differences.linspace, differences.logspace, differences.geomspace),
        )
    },
    **{f"{name}.outer": partial(outer_of, name) for name in SEVERAL if name != "where"},
    "add.reduce": reduced(statistics.sum),
    "multiply.reduce": reduced(statistics.prod),
    "maximum.reduce": reduced(statistics.max),
    "minimum.reduce": reduced(statistics.min),
    "add.accumulate": accumulated(statistics.cumsum),
    "multiply.accumulate": accumulated(statistics.cumprod),
    **{f"{name}.accumulate": scans.accumulate_by(name) for name in scans.ASSOCIATIVE},
    **{f"{name}.reduce": scans.reduce_by(name) for name in scans.REDUCED},
}
