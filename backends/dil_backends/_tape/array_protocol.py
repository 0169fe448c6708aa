"""What a box answers if a NumPy array is made of it: an error, except to a product with a sparse matrix of SciPy."""

from __future__ import annotations

from types import FrameType
from typing import Any, NoReturn

import numpy as np

from dil._base.errors import UnsupportedFunctionError
from dil_backends._tape.scipy_functions import accept_boxes

CUT = (
    "making a NumPy array of an array that is being differentiated would cut the derivative; keep it in array code: "
    "np.stack([...]) in the place of np.array([...]), X @ u in that of X.dot(u), u in that of np.asarray(u), or use "
    "dil's `constant` if it shall be cut"
)
WRITE = (
    "writing into an array that is being differentiated would cut the derivative; keep it in array code: join the "
    "entries by np.stack or np.concatenate, or use dil's `constant` if it shall be cut"
)
SPARSE = (
    "the tape knows the products `S @ u`, `u @ S` and `S.dot(u)` of a sparse matrix of SciPy, and no other function of "
    "scipy.sparse; write `S @ u` for `S * u` of a sparse matrix, and `S @ (v * u)` for `S.multiply(v) @ u`"
)
LATE = (
    "scipy.special was imported inside the function that is being differentiated; import it before, and call the "
    "function again"
)


def array_of_box(caller: FrameType | None) -> Any:
    """Return a stand-in for the array that `caller` makes of a box. Raises unless it is a product of SciPy."""
    if not module_of(caller).startswith("scipy.sparse."):
        raise UnsupportedFunctionError(LATE if accept_boxes() else CUT)
    array = stand_in(caller)
    if array is None:
        raise UnsupportedFunctionError(SPARSE)
    return array


def refuse_writing() -> NoReturn:
    """Raise, for a value that is written into a box. SciPy's functions do so under SCIPY_ARRAY_API=1."""
    raise UnsupportedFunctionError(LATE if accept_boxes() else WRITE)


def module_of(frame: FrameType | None) -> str:
    return "" if frame is None else str(frame.f_globals.get("__name__"))


def stand_in(caller: FrameType | None) -> Any:
    """Return the array that makes a product of SciPy's sparse matrices give way to the box; None for other callers.

    `S @ u` gives way to `__rmatmul__` if NumPy makes a 0-D object array of u. `S.dot(u)` of a COO matrix looks at the
    dimension of that array, and then calls `S @ u`. The arrays hold None, so arithmetic with them raises.
    """
    name, above = (caller.f_code.co_name, caller.f_back) if caller is not None else ("", None)
    if name == "_matmul_dispatch" and above is not None and above.f_code.co_name == "__matmul__":
        return np.asarray(None)  # `S * u` of a sparse matrix comes from `__mul__`
    return np.asarray([None]) if name == "dot" else None
