"""NumPy's functions that are written in Python and take no object arrays, so that they take those of boxes.

NumPy asks a box before a function runs, but not the boxes in `np.mean([u[0], u[1]])` or in
`np.linalg.solve(A, np.array([u[0], u[1]]))`. Many functions compute with objects and need nothing. These do not, or
return a number of Python where the entries that are left are constant, as the sum of `np.maximum(np.array([...]), 0)`.
"""

from __future__ import annotations

import threading
from functools import partial, reduce
from types import FunctionType
from typing import Any

import numpy as np

from dil_backends._tape.box import holds_box
from dil_backends._tape.replacement import add_branch

LOCK = threading.Lock()
WAITING = {
    *("max", "min", "amax", "amin"),
    *("mean", "std", "var", "median", "average", "percentile", "quantile", "cov", "corrcoef"),
    *("interp", "gradient", "nan_to_num", "isclose", "allclose"),
    *(f"linalg.{name}" for name in ("solve", "inv", "pinv", "lstsq", "det", "slogdet", "cholesky", "qr")),
    *(f"linalg.{name}" for name in ("svd", "svdvals", "eig", "eigh", "eigvals", "eigvalsh", "cond", "matrix_rank")),
    *(f"linalg.{name}" for name in ("norm", "tensorsolve", "tensorinv")),
    *(f"fft.{name}" for name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft", "fft2", "ifft2", "rfft2", "irfft2")),
    *(f"fft.{name}" for name in ("fftn", "ifftn", "rfftn", "irfftn")),
}
"""The functions whose code is still NumPy's own."""
WAITING_FOR_ENTRIES = {"sum", "prod"}
"""Those that are called often, and wait for the first object array of boxes."""


def accept_entries(waiting: set[str] = WAITING) -> None:
    """Let the functions accept object arrays and lists of boxes."""
    if not waiting:
        return
    with LOCK:  # another thread waits until the code is replaced
        for name in waiting:
            function = getattr(reduce(getattr, name.split("."), np), "__wrapped__", None)
            if isinstance(function, FunctionType) and function.__closure__ is None:
                add_branch(function, partial(of_box, name))
        waiting.clear()


def of_box(name: str, tape: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Call the tape's function. Lists of boxes become boxes."""
    arrays = (tape.asarray(a) if isinstance(a, list | tuple) and holds_box(a) else a for a in args)
    return tape.dispatch(name, tuple(arrays), options)
