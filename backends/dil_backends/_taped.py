"""What the tape gives to a backend of eager arrays without a derivative of their own: all but the arrays themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

from dil._errors import CapturedError
from dil._linear_solve import differentiable_solve
from dil._loops import python_loop as while_loop
from dil._protocol import Backend, LinearSystem
from dil._typing import Array, Arrays
from dil_backends._tape import constant, implicit, is_box, value_type, vjp

__all__ = [
    "assert_constant",
    "children",
    "constant",
    "implicit",
    "linear_solve",
    "number",
    "on_host",
    "value_type",
    "vjp",
    "while_loop",
]


def children(x: object, /) -> None:
    """Arrays of this kind come without pytrees of their own."""


def linear_solve(system: LinearSystem, b: Array, /) -> Array:
    """Solve a linear system; differentiable where the tape is recording."""
    if not any(is_box(x) for x in (b, *system.params)):
        return system.solve(system.matvec, b, *system.constants)
    return differentiable_solve(cast(Backend, sys.modules[__name__]), system, b)


def assert_constant(x: Array, message: str, /) -> None:
    """Raise if the tape is recording x."""
    if is_box(x):
        raise CapturedError(message)


def number(x: Array, /) -> Any:
    """Return x: a scalar stays on its device."""
    return x


def on_host(fn: Callable[..., Arrays], like: Arrays, *arrays: Array) -> Arrays:
    """Call fn now, with plain arrays."""
    return fn(*(constant(x) for x in arrays))
