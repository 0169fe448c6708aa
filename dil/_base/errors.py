"""The errors and warnings of `dil`. Every message says what was expected, what came, and what to do."""

from __future__ import annotations


class DilError(Exception):
    """Base class of all errors that `dil` itself raises."""


class ConvergenceError(DilError, RuntimeError):
    """A forward or backward solve failed, and the layer was built with `on_failure="raise"`."""


class ConvergenceWarning(UserWarning):
    """A forward or backward solve failed, and the layer was built with `on_failure="warn"`."""


class ShapeError(DilError, ValueError):
    """An argument, or the result of a user's function or solver, has the wrong shape or structure."""


class DTypeError(DilError, TypeError):
    """An array has the wrong dtype, or arrays have mixed dtypes. A silent cast could hide a mistake."""


class BackendError(DilError, ValueError):
    """A backend is unknown, not installed, unusable or ambiguous, or arrays of two backends are mixed."""


class CapturedError(DilError, ValueError):
    """A function captured an array that is being differentiated. The captured array would get no gradient."""


class UnsupportedFunctionError(DilError, TypeError):
    """A function has no derivative rule on this backend."""


class UnmappableError(UnsupportedFunctionError):
    """The `vmap` of a framework cannot map a function. One row after the other still can be computed."""


class SecondDerivativeError(UnsupportedFunctionError):
    """A function has a first derivative only, and the derivative of a solution needs the second one of the score."""


class OptionError(DilError, TypeError, ValueError):
    """An option is unknown, or its value is out of range."""
