"""What to write in the place of SciPy's functions, which compute with NumPy arrays of numbers alone.

The function that the user called is found among the frames of the error: SciPy makes an array of its arguments far
within, or not at all.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import takewhile
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from dil._base.errors import UnsupportedFunctionError
from dil_backends._tape.array_protocol import CUT, module_of
from dil_backends._tape.box import holds_box
from dil_backends._tape.sparse import SPARSE

TEXT = (
    "`{}` computes with NumPy arrays of numbers, which would cut the derivative of an array that is being "
    "differentiated; {}, or use dil's `constant` if it shall be cut"
)
OTHERWISE = "write the score with the functions of NumPy and scipy.special"
MODULES = {
    "scipy.cluster": "keep the assignment to clusters constant, and write the rest with NumPy",
    "scipy.fft": "use np.fft, which has fft, rfft, fftn and their inverses; a cosine transform is a matrix, C @ u",
    "scipy.fftpack": "use np.fft, which has fft, rfft, fftn and their inverses; a cosine transform is a matrix, C @ u",
    "scipy.integrate": (
        "use dil.ode.odeint for an ODE, np.trapezoid for samples, and for an integral the sum over fixed nodes, "
        "x, w = np.polynomial.legendre.leggauss(n)"
    ),
    "scipy.interpolate": (
        "use np.interp; a spline is linear in its values, so that it is a matrix times u, made once of the columns of "
        "np.eye(n)"
    ),
    "scipy.linalg": "use the functions of np.linalg",
    "scipy.ndimage": (
        "a linear filter is np.convolve, a product of np.fft, or a sparse matrix, S @ u; others are slices of np.pad"
    ),
    "scipy.optimize": "use a layer, dil.argmin for a minimum, dil.root or dil.fixed_point for a solution",
    "scipy.signal": "use np.convolve, np.correlate or np.fft; a filter with feedback is a sparse matrix, S @ u",
    "scipy.sparse.linalg": (
        "solve with np.linalg.solve(S.toarray(), u), or by products alone with dil.root(lambda x, u: S @ x - u, ...); "
        "besides products such as S @ u, the tape knows no other function of scipy.sparse"
    ),
    "scipy.spatial": "a distance is np.linalg.norm(x[:, None, :] - y[None, :, :], axis=-1), or its square np.sum(...)",
    "scipy.spatial.transform": "write the rotation matrix with np.cos, np.sin and np.stack",
    "scipy.stats": (
        "write its formula with the functions of NumPy and of scipy.special (gammaln, betaln, xlogy, ndtr, ...)"
    ),
}
"""What to write in the place of the functions of a package."""
FUNCTIONS = {
    **dict.fromkeys(
        ("cho_solve", "lu_solve", "solve_banded", "solveh_banded", "solve_toeplitz"),
        "use np.linalg.solve(A, b) with the whole matrix A",
    ),
    "solve_triangular": "use np.linalg.solve(np.triu(A), b), or np.tril(A) for lower=True",
    **dict.fromkeys(("lu", "lu_factor", "cho_factor", "ldl"), "use np.linalg.cholesky, np.linalg.qr or, whole, solve"),
    **dict.fromkeys(
        ("expm", "logm", "sqrtm", "funm", "cosm", "sinm", "fractional_matrix_power"),
        "of a symmetric matrix it is (V * f(w)) @ V.T with w, V = np.linalg.eigh(A); torch and JAX have `matrix_exp` "
        "and `expm`",
    ),
    "block_diag": "use np.block",
    "toeplitz": "index the vector, u[np.abs(i[:, None] - i[None, :])] with i = np.arange(n)",
    "pinvh": "use np.linalg.pinv",
}
"""What to write in the place of functions of scipy.linalg that np.linalg does not have."""
OF_ANOTHER_DEFAULT = {"cholesky": "use np.linalg.cholesky(A, upper=True), or without `upper` for lower=True"}
"""What to write in the place of functions of scipy.linalg whose namesake in np.linalg gives another result."""
OF_GAMMA = {
    "comb": "write np.exp(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))",
    "perm": "write np.exp(gammaln(n + 1) - gammaln(n - k + 1))",
    "factorial": "write gamma(n + 1)",
}
"""What to write in the place of functions of scipy.special that are no ufuncs."""
OF_COMPILED = re.compile(r"must be numpy\.ndarray, not Box")
COMPILED = (
    "a compiled function takes no array that is being differentiated ({}); solve with np.linalg.solve(S.toarray(), u) "
    "in the place of splu(S).solve(u) and factorized(S)(u), or by products alone with "
    "dil.root(lambda x, u: S @ x - u, ...)"
)
"""What is said where no frame tells the function: SuperLU has none."""


def explain_scipy(error: Exception) -> None:
    """Raise an error that names the function of SciPy that the user called, if the error came out of one with a box."""
    if OF_COMPILED.search(str(error)):
        raise UnsupportedFunctionError(COMPILED.format(error)) from error
    # compiled code may go on after an error of a box, into the user's code, where Python notices it
    frames = library_frames(error.__traceback__, also_called=isinstance(error, SystemError))
    refused = isinstance(error, UnsupportedFunctionError) or isinstance(error.__cause__, UnsupportedFunctionError)
    if not frames or not (refused or any(map(has_box, frames))):
        return
    package, name = called(frames)
    if package == "scipy.sparse" and not refused:
        raise UnsupportedFunctionError(SPARSE) from error
    knows = package in ("scipy.special", "scipy.sparse") and str(error) != CUT  # it has a sentence of its own
    if not knows:
        raise UnsupportedFunctionError(TEXT.format(f"{package}.{name}", advice(package, name))) from error


def library_frames(traceback: TracebackType | None, *, also_called: bool = False) -> list[FrameType]:
    """Return the frames of SciPy in which an error was raised, the outermost first. NumPy and the tape may be within.

    They are empty if the error came from the user's code, such as the function that SciPy minimises, unless
    `also_called`.
    """
    found: list[FrameType] = []
    while traceback is not None:
        module = module_of(traceback.tb_frame)
        if module.startswith("scipy."):
            found.append(traceback.tb_frame)
        elif not also_called and not module.startswith(("numpy.", "dil_backends._tape.")):
            found = []
        traceback = traceback.tb_next
    return found


def has_box(frame: FrameType) -> bool:
    """Whether a variable of a frame holds a box, or a function among them captured one."""
    return any(holds_box(value) or any(map(holds_box, captured(value))) for value in frame.f_locals.values())


def captured(function: object) -> Iterator[object]:
    """Yield what a function captured by closure."""
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def called(frames: list[FrameType]) -> tuple[str, str]:
    """Return the package and the name of the function of SciPy that the user called."""
    for frame in frames:
        for module, name in names_in(frame):
            package = public(module)
            if package.startswith("scipy.") and hasattr(sys.modules.get(package), name.partition(".")[0]):
                return package, name
    found = [(public(module_of(frame)), frame.f_code.co_name) for frame in frames]
    return next((pair for pair in found if pair[0] != "scipy"), found[0])


def public(module: str) -> str:
    """Return the public package of a module: scipy.stats for scipy.stats._stats_py."""
    return ".".join(takewhile(lambda part: not part.startswith("_"), module.split(".")))


def names_in(frame: FrameType) -> Iterator[tuple[str, str]]:
    """Yield what may be the function, by module and name: that of the code, or what a decorator calls."""
    module, code = module_of(frame), frame.f_code.co_name
    owner = frame.f_locals.get("self", frame.f_locals.get("cls"))
    if owner is not None:
        kind = owner if isinstance(owner, type) else type(owner)
        name = named(owner) or named(getattr(owner, "dist", None)) or kind.__name__.removesuffix("_gen")
        yield module, name if code.startswith("_") else f"{name}.{code}"
    yield module, code
    for value in frame.f_locals.values():
        if callable(value):
            yield str(getattr(value, "__module__", "")), str(getattr(value, "__name__", ""))


def named(owner: Any) -> str:
    """Return the name that a distribution of scipy.stats has."""
    name = getattr(owner, "name", "")
    return name if isinstance(name, str) else ""


def advice(package: str, name: str) -> str:
    """Return what to write in the place of a function of SciPy."""
    if package == "scipy.special" and name in OF_GAMMA:
        return OF_GAMMA[name]
    if package == "scipy.linalg":
        if name in OF_ANOTHER_DEFAULT:
            return OF_ANOTHER_DEFAULT[name]
        if hasattr(np.linalg, name):
            return f"use np.linalg.{name}"
        if name in FUNCTIONS:
            return FUNCTIONS[name]
    while package not in MODULES and "." in package:
        package = package.rpartition(".")[0]
    return MODULES.get(package, OTHERWISE)
