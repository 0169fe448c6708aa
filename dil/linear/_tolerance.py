"""The relative tolerance of one call of a linear solver."""

from __future__ import annotations

from numbers import Real
from typing import Any, TypeAlias

from dil._base.arrays import array_namespace, eps
from dil._base.errors import ShapeError
from dil._base.options import check_rtol
from dil._base.scalars import Scalar
from dil._base.typing import Array
from dil._frameworks.protocol import Backend

Tolerance: TypeAlias = float | Array | None
"""A number between 0 and 1, or an array of them, (*batch, 1), one for each problem. None: that of the solver."""


def tolerance_of_call(rtol: Tolerance, option: float | None, b: Array, backend: Backend) -> Scalar:
    """Return the tolerance of a call, else the option of the solver, else eps ** 0.75 of the dtype; b: (*batch, n).

    That of a single problem is a scalar, as the other scalars of its solve are.

    Raises
    ------
    OptionError
        If it is a number that is not between 0 and 1.
    ShapeError
        If it is an array of another shape than (*batch, 1), or of another dtype than b.
    """
    if rtol is None:
        return eps(array_namespace(b), b.dtype) ** 0.75 if option is None else option
    if isinstance(rtol, Real) or not hasattr(rtol, "shape"):  # NumPy numbers have a shape, too
        check_rtol(rtol)
        return rtol
    given: Any = rtol
    expected = (*b.shape[:-1], 1)
    if tuple(given.shape) != expected or given.dtype != b.dtype:
        message = (
            f"rtol has shape {tuple(given.shape)} and dtype {given.dtype}; expected a number, or an array of shape "
            f"{expected} and dtype {b.dtype}: a tolerance for each problem of b"
        )
        raise ShapeError(message)
    return backend.loops.number(given[0]) if b.ndim == 1 else given
