"""Differentiable implicit layers: y = argmin_u f(u, *args), with exact gradients on NumPy, torch, JAX and CuPy."""

from __future__ import annotations

from dil import linear, solvers
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
from dil._layer import Layer, argmin
from dil._registry import BackendHandle, BackendInfo, backend, backends
from dil._score import Derivatives
from dil._solution import Solution
from dil._status import Status
from dil._transforms import constant, grad, jvp, value_and_grad, vjp

__version__ = "0.1.0"

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
    "GradientReport",
    "Layer",
    "OptionError",
    "ShapeError",
    "Solution",
    "Status",
    "UnsupportedFunctionError",
    "argmin",
    "backend",
    "backends",
    "check_gradients",
    "constant",
    "grad",
    "jvp",
    "linear",
    "solvers",
    "value_and_grad",
    "vjp",
]
