"""Checks of numbers and of the options of linear solvers. True and False are not accepted as numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Protocol, TypeGuard

from dil._base.errors import OptionError


def is_integer(value: object, least: int) -> TypeGuard[int]:
    """Return whether a value is an integer >= `least`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a real number < infinity."""
    return isinstance(value, Real) and not isinstance(value, bool) and float(value) < float("inf")


def declares(solver: object, flag: str) -> bool:
    """Return whether a solver sets a flag, in the class that defines its call: a subclass may have another call."""
    owner = next((kind for kind in type(solver).__mro__ if "__call__" in vars(kind)), None)
    return owner is not None and flag in vars(owner) and bool(getattr(solver, flag))


def check_callable(name: str, value: object) -> None:
    """Check that a value is a callable, and not a class of them.

    Raises
    ------
    OptionError
        If the value is neither.
    """
    if not callable(value) or isinstance(value, type):
        hint = f"; did you mean {value.__name__}()?" if isinstance(value, type) else ""
        message = f"{name}={value!r} of type {type(value).__name__}; expected a callable{hint}"
        raise OptionError(message)


def check_integer(name: str, value: object, least: int) -> None:
    """Check that a value is an integer >= `least`.

    Raises
    ------
    OptionError
        If the value is not such an integer.
    """
    if not is_integer(value, least):
        message = f"{name}={value!r}; expected an integer >= {least}"
        raise OptionError(message)


def check_parameters(name: str, fn: Callable[..., Any], expected: tuple[str, ...]) -> None:
    """Check that a function can be called with the expected positional arguments.

    A callable that does not tell its parameters, as some built-in ones, passes.

    Raises
    ------
    OptionError
        If it takes more or fewer.
    """
    try:
        signature = inspect.signature(fn)
    except ValueError:
        return
    try:
        signature.bind(*expected)
    except TypeError:
        called = getattr(fn, "__name__", type(fn).__name__)
        message = (
            f"{name}={called}{signature}; expected a function that can be called as {name}({', '.join(expected)}). It "
            "takes all of them, also one that it does not use"
        )
        raise OptionError(message) from None


class LinearOptions(Protocol):
    """The options that every linear solver has."""

    @property
    def damping(self) -> float: ...
    @property
    def rtol(self) -> float | None: ...
    @property
    def max_iter(self) -> int | None: ...


def check_linear_options(options: LinearOptions, units: str = "A") -> None:
    """Check that the options of a linear solver are in range.

    Raises
    ------
    OptionError
        If an option is out of range.
    """
    damping, rtol, max_iter = options.damping, options.rtol, options.max_iter
    if not (is_number(damping) and damping >= 0):
        message = f"damping={damping!r}; expected a number >= 0, in the units of {units}"
        raise OptionError(message)
    check_rtol(rtol)
    if not (max_iter is None or is_integer(max_iter, 1)):
        message = f"max_iter={max_iter!r}; expected at least 1, or None for max(100, 10 n)"
        raise OptionError(message)


def check_rtol(rtol: object) -> None:
    """Check that a tolerance is a number between 0 and 1, or None.

    Raises
    ------
    OptionError
        If the tolerance is neither.
    """
    if rtol is not None and not (is_number(rtol) and 0 < rtol < 1):
        message = f"rtol={rtol!r}; expected a number between 0 and 1, or None for the default of the dtype"
        raise OptionError(message)
