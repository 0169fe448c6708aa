"""The right-hand side of a linear system, as every linear solver is given it."""

from __future__ import annotations

from dil._arrays import array_namespace, is_float
from dil._errors import DTypeError, ShapeError
from dil._protocol import Backend
from dil._registry import common_owner
from dil._typing import Array


def owner_of_right(b: Array, solver: str) -> Backend:
    """Return the backend of b: (*batch, n), real floating.

    Raises
    ------
    ShapeError
        If b is a scalar.
    DTypeError
        If b is not real floating.
    """
    backend = common_owner([b], ["b"], solver)
    if b.ndim == 0:
        message = f"{solver} got b of shape (); expected (*batch, n), the last axis counts unknowns: reshape it to (1,)"
        raise ShapeError(message)
    if not is_float(array_namespace(b), b.dtype):
        message = f"{solver} got b of dtype {b.dtype}; expected real floating numbers, so cast it, to float64 say"
        raise DTypeError(message)
    return backend
