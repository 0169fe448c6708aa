"""The errors and warnings of `dil`. Each message says what was expected, what came, and what to do."""

from __future__ import annotations


class DilError(Exception):
    """Base class of all errors of `dil`."""


class ConvergenceError(DilError, RuntimeError):
    """A forward or backward solve failed and the layer was built with `on_failure="raise"`."""


class ConvergenceWarning(UserWarning):
    """A forward or backward solve failed and the layer was built with `on_failure="warn"`."""


class ShapeError(DilError, ValueError):
    """A user's function or solver returned a value of the wrong shape or structure."""


class DTypeError(DilError, TypeError):
    """Arrays of the wrong or of mixed dtypes, where a silent cast would hide a mistake."""


class BackendError(DilError, ValueError):
    """A backend is unknown, absent, unusable, mixed with another, or ambiguous."""


class CapturedError(DilError, ValueError):
    """A function captured an array that takes part in a differentiation and would get no gradient."""


class UnsupportedFunctionError(DilError, TypeError):
    """A function was met that the backend has no derivative rule for."""


class OptionError(DilError, TypeError, ValueError):
    """An option is unknown or its value is out of range."""
