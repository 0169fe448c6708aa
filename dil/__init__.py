"""Differentiable implicit layers: y = argmin_u f(u, *args), with exact gradients on NumPy, torch, JAX and CuPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from dil import control, kepler, linear, ode, solvers, testing
    from dil._base.errors import (
        BackendError,
        CapturedError,
        ConvergenceError,
        ConvergenceWarning,
        DilError,
        DTypeError,
        OptionError,
        SecondDerivativeError,
        ShapeError,
        UnsupportedFunctionError,
    )
    from dil._base.solution import Solution
    from dil._base.status import Status
    from dil._diagnostics.check_gradients import GradientReport, check_gradients
    from dil._diagnostics.record import Entry, Record, record
    from dil._diagnostics.report import Report
    from dil._frameworks.jacobians import jacobian
    from dil._frameworks.protocol import BackendInfo
    from dil._frameworks.registry import BackendHandle, backend, backends
    from dil._frameworks.transforms import constant, grad, jvp, value_and_grad, vjp
    from dil._layers.argmin import argmin
    from dil._layers.layer import Layer
    from dil._layers.root import fixed_point, root
    from dil._layers.value import Value, value
    from dil._problem.score import Derivatives
    from dil._problem.user_jacobian import Jacobian

__version__ = "0.1.0"

_MODULES = {
    "_base.errors": (
        "BackendError",
        "CapturedError",
        "ConvergenceError",
        "ConvergenceWarning",
        "DTypeError",
        "DilError",
        "OptionError",
        "SecondDerivativeError",
        "ShapeError",
        "UnsupportedFunctionError",
    ),
    "_base.solution": ("Solution",),
    "_base.status": ("Status",),
    "_diagnostics.check_gradients": ("GradientReport", "check_gradients"),
    "_diagnostics.record": ("Entry", "Record", "record"),
    "_diagnostics.report": ("Report",),
    "_frameworks.jacobians": ("jacobian",),
    "_frameworks.protocol": ("BackendInfo",),
    "_frameworks.registry": ("BackendHandle", "backend", "backends"),
    "_frameworks.transforms": ("constant", "grad", "jvp", "value_and_grad", "vjp"),
    "_layers.argmin": ("argmin",),
    "_layers.layer": ("Layer",),
    "_layers.root": ("fixed_point", "root"),
    "_layers.value": ("Value", "value"),
    "_problem.score": ("Derivatives",),
    "_problem.user_jacobian": ("Jacobian",),
}
"""The modules and their public names. A module is imported at the first use of a name, to keep `import dil` fast."""
_ELSEWHERE = {
    "ImplicitModule": "dil_backends.nn.ImplicitModule",
    "jax": "dil.backend('jax'); layers take the arrays of JAX as they are",
    "hessian": "dil.jacobian(dil.grad(fn))",
    "jacfwd": "dil.jacobian(fn), which takes the mode of fewer passes",
    "jacrev": "dil.jacobian(fn), which takes the mode of fewer passes",
    "minimize": "dil.argmin(score, dil.solvers.SciPy(), init=u0)",
    "mpc": "dil.control.mpc_rollout",
    "nn": "dil_backends.nn",
    "numpy": "dil.backend('numpy'); layers take the arrays of NumPy as they are",
    "optax": "dil_backends.optax",
    "optim": "dil_backends.optim",
    "optimistix": "dil_backends.optimistix",
    "vmap": "batch_ndim= of a layer; on torch and JAX, their own vmap",
    "torch": "dil.backend('torch'); layers take the tensors of torch as they are, and modules are dil_backends.nn",
}
"""Where names are that are looked for here."""
_PACKAGES = ("control", "kepler", "linear", "ode", "solvers", "testing")


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _PACKAGES:
        return import_module(f"dil.{name}")
    for module, names in _MODULES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"dil.{module}"), name)
            return found
    place = _ELSEWHERE.get(name)
    if place is None and not name.startswith("_"):
        homes = (import_module(f"dil.{package}") for package in ("control", "linear", "ode", "solvers"))
        place = next((f"{home.__name__}.{name}" for home in homes if name in home.__all__), None)
    message = f"module 'dil' has no attribute {name!r}" + (f"; it is {place}" if place else "")
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


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
    "Jacobian",
    "Layer",
    "OptionError",
    "Record",
    "Report",
    "SecondDerivativeError",
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
    "jacobian",
    "jvp",
    "kepler",
    "linear",
    "ode",
    "record",
    "root",
    "solvers",
    "testing",
    "value",
    "value_and_grad",
    "vjp",
]
