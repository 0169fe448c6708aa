"""Differentiable implicit layers: y = argmin_u f(u, *args), with exact gradients on NumPy, torch, JAX and CuPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dil import linear
from dil._argmin import argmin
from dil._errors import (
    BackendError,
    CapturedError,
    ConvergenceError,
    ConvergenceWarning,
    DilError,
    DTypeError,
    OptionError,
    ShapeError,
    UnsupportedFunctionError,
)
from dil._layer import Layer
from dil._record import Entry, Record, record
from dil._registry import BackendHandle, BackendInfo, backend, backends
from dil._root import fixed_point, root
from dil._score import Derivatives
from dil._solution import Solution
from dil._status import Status
from dil._transforms import constant, grad, jvp, value_and_grad, vjp
from dil._value import Value, value

if TYPE_CHECKING:
    from dil import ode, solvers
    from dil._check import GradientReport, check_gradients
    from dil._report import Report

__version__ = "0.1.0"

LATER = {
    "ode": "dil.ode",
    "solvers": "dil.solvers",
    "GradientReport": "dil._check",
    "Report": "dil._report",
    "check_gradients": "dil._check",
}
"""Imported at first use: not every program needs them, and every program waits for its imports."""


def __getattr__(name: str) -> Any:
    if name not in LATER:
        message = f"module 'dil' has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    module = import_module(LATER[name])
    return module if LATER[name] == f"dil.{name}" else getattr(module, name)


__all__ = [
    "BackendError",
    "BackendHandle",
    "BackendInfo",
    "CapturedError",
    "ConvergenceError",
    "ConvergenceWarning",
    "DTypeError",
    "Derivatives",
    "DilError",
    "Entry",
    "GradientReport",
    "Layer",
    "OptionError",
    "Record",
    "Report",
    "ShapeError",
    "Solution",
    "Status",
    "UnsupportedFunctionError",
    "Value",
    "argmin",
    "backend",
    "backends",
    "check_gradients",
    "constant",
    "fixed_point",
    "grad",
    "jvp",
    "linear",
    "ode",
    "record",
    "root",
    "solvers",
    "value",
    "value_and_grad",
    "vjp",
]
