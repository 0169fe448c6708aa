"""What a box answers if a NumPy array is made of it: its entries as objects, or an error where they would be cut.

A product with a sparse matrix of SciPy gets a stand-in, which makes it give way to the box.
"""

from __future__ import annotations

from types import FrameType
from typing import Any, NoReturn

import numpy as np

from dil._base.errors import UnsupportedFunctionError
from dil_backends._tape import entries
from dil_backends._tape.scipy_functions import accept_boxes
from dil_backends._tape.sparse import SPARSE

CUT = (
    "making a NumPy array of an array that is being differentiated would cut the derivative; keep it in array code: "
    f"{entries.INSTEAD}, or use dil's `constant` if it shall be cut"
)
OF_DTYPE = (
    "making a NumPy array of dtype {} of an array that is being differentiated would cut the derivative, as "
    "np.array([...], dtype=float) does, F[:] = u, a function of SciPy or of np.random, and np.mean, np.std or "
    f"np.median of np.array([...]) or of a list; leave out dtype=, and keep it in array code: {entries.INSTEAD}, or "
    "use dil's `constant` if it shall be cut"
)
WRITE = (
    "writing into an array that is being differentiated would cut the derivative; keep it in array code: join the "
    "entries by np.stack or np.concatenate, or use dil's `constant` if it shall be cut"
)
OF_COMPAT = (
    "`{}` of array_api_compat got an array that is being differentiated, and would make a NumPy array of it; take the "
    "functions from that array, xp = array_namespace(u), from the handle, xp = dil.backend('numpy').xp, or from NumPy"
)
ITEM = (
    "NumPy could not write an entry of an array, as in v.flat[0] = u[0]; an array that is being differentiated is not "
    "written into another one: join the entries by np.stack or np.concatenate"
)
LATE = (
    "scipy.special was imported inside the function that is being differentiated; import it before, and call the "
    "function again"
)


def array_of_box(x: Any, dtype: Any, caller: FrameType | None) -> Any:
    """Return the array that `caller` makes of a box x. Raises where its derivative would be cut.

    Functions of SciPy make an array of numbers of it, sooner or later, and only NumPy's arrays hold objects.
    """
    module = module_of(caller)
    refuse_compat(caller)
    if not module.startswith("scipy.sparse."):
        if accept_boxes():
            raise UnsupportedFunctionError(LATE)
        if module.startswith("scipy.") or x._trace.tape.__name__ != "array_api_compat.numpy":
            raise UnsupportedFunctionError(CUT)
        kind = "O" if dtype is None else np.dtype(dtype).kind
        if kind in "iub":  # its derivative is zero, as that of `u.astype(int)`
            return np.asarray(x._trace.tape.unboxed(x, "np.array"), dtype)
        if kind != "O":
            raise UnsupportedFunctionError(OF_DTYPE.format(dtype))
        return entries.split(x)
    array = stand_in(caller)
    if array is None:
        raise UnsupportedFunctionError(SPARSE)
    return array


def refuse_compat(frame: FrameType | None) -> None:
    """Raise, if a function of array_api_compat makes an array of a box or writes into one, itself or by NumPy."""
    while frame is not None and module_of(frame).startswith(("numpy.", "dil_backends._tape.")):
        frame = frame.f_back
    name = "" if frame is None else frame.f_code.co_name
    if module_of(frame).startswith("array_api_compat.") and name != "asarray":
        raise UnsupportedFunctionError(OF_COMPAT.format(name))


def explain_item(error: Exception) -> None:
    """Raise an error that says what to write for `v.flat[0] = u[0]`, where NumPy drops the error of the box."""
    if str(error) == "Error setting single item of array.":
        raise UnsupportedFunctionError(ITEM) from error


def refuse_writing() -> NoReturn:
    """Raise, for a value that is written into a box. SciPy's functions do so under SCIPY_ARRAY_API=1."""
    raise UnsupportedFunctionError(LATE if accept_boxes() else WRITE)


def module_of(frame: FrameType | None) -> str:
    return "" if frame is None else str(frame.f_globals.get("__name__"))


def stand_in(caller: FrameType | None) -> Any:
    """Return the array that makes a product of SciPy's sparse matrices give way to the box; None for other callers.

    `S @ u` gives way to `__rmatmul__`, and `S * u` to `__rmul__`, if NumPy makes a 0-D object array of u. `S.dot(u)` of
    a COO matrix looks at the dimension of that array, and then calls `S @ u`. The arrays hold None, so arithmetic with
    them raises.
    """
    name, above = (caller.f_code.co_name, caller.f_back) if caller is not None else ("", None)
    if name == "_matmul_dispatch" and above is not None and above.f_code.co_name in ("__matmul__", "__mul__"):
        return np.asarray(None)  # that of a sparse matrix is `S * u` too
    return np.asarray([None]) if name == "dot" else None
