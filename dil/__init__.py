"""Differentiable implicit layers: y = argmin_u f(u, *args), with exact gradients on NumPy, torch, JAX and CuPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dil import control, linear, ode, solvers
    from dil._argmin import argmin
    from dil._check import GradientReport, check_gradients
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
    from dil._report import Report
    from dil._root import fixed_point, root
    from dil._score import Derivatives
    from dil._solution import Solution
    from dil._status import Status
    from dil._transforms import constant, grad, jvp, value_and_grad, vjp
    from dil._value import Value, value

__version__ = "0.1.0"

PACKAGES = ("control", "linear", "ode", "solvers")
MODULES = {
    "_argmin": ("argmin",),
    "_check": ("GradientReport", "check_gradients"),
    "_errors": (
        "BackendError",
        "CapturedError",
        "ConvergenceError",
        "ConvergenceWarning",
        "DTypeError",
        "DilError",
        "OptionError",
        "ShapeError",
        "UnsupportedFunctionError",
    ),
    "_layer": ("Layer",),
    "_record": ("Entry", "Record", "record"),
    "_registry": ("BackendHandle", "BackendInfo", "backend", "backends"),
    "_report": ("Report",),
    "_root": ("fixed_point", "root"),
    "_score": ("Derivatives",),
    "_solution": ("Solution",),
    "_status": ("Status",),
    "_transforms": ("constant", "grad", "jvp", "value_and_grad", "vjp"),
    "_value": ("Value", "value"),
}
HOMES = {name: module for module, names in MODULES.items() for name in names}
"""Where each public name is found at its first use: few programs need all, and every program waits for its imports."""


def __getattr__(name: str) -> Any:
    if name not in PACKAGES and name not in HOMES:
        message = f"module 'dil' has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    if name in PACKAGES:
        return import_module(f"dil.{name}")
    found = globals()[name] = getattr(import_module(f"dil.{HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
    "control",
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
