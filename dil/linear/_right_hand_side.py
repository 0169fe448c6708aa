"""Check the right-hand side of a linear system, for every linear solver."""

from __future__ import annotations

from dil._base.arrays import array_namespace, is_complex, is_float
from dil._base.errors import DTypeError, ShapeError
from dil._base.typing import Array
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import common_owner


def backend_of_system(b: Array, solver: str, x0: Array | None = None) -> Backend:
    """Return the backend of b: (*batch, n), real floating. A start x0 must have the shape and dtype of b.

    Raises
    ------
    ShapeError
        If b is a scalar, or the shape or dtype of x0 differs from that of b.
    DTypeError
        If b is not real floating.
    """
    backend = common_owner([b], ["b"], solver) if x0 is None else common_owner([b, x0], ["b", "x0"], solver)
    if b.ndim == 0:
        message = f"{solver} got b of shape (); expected (*batch, n), the last axis counts unknowns: reshape it to (1,)"
        raise ShapeError(message)
    if not is_float(array_namespace(b), b.dtype):
        message = f"{solver} got b of dtype {b.dtype}; expected real floating numbers; cast it, for example to float64"
        if is_complex(array_namespace(b), b.dtype):
            message += "; a complex system is a real one of twice the size, of its real and its imaginary parts"
        raise DTypeError(message)
    if x0 is not None and (tuple(x0.shape) != tuple(b.shape) or x0.dtype != b.dtype):
        message = (
            f"{solver}: x0 has shape {tuple(x0.shape)} and dtype {x0.dtype}; expected those of b, "
            f"{tuple(b.shape)} and {b.dtype}"
        )
        raise ShapeError(message)
    return backend
