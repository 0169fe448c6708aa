"""The user's choice of what happens after a failed solve, forward or backward."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from dil._base.arrays import array_namespace, full
from dil._base.errors import ConvergenceError, ConvergenceWarning, OptionError
from dil._base.status import Status
from dil._base.typing import Array, OnFailure
from dil._frameworks.protocol import Backend


@dataclass(frozen=True)
class Policy:
    """Raise, warn, poison the failed problems with NaN, or ignore."""

    on_failure: OnFailure
    layer: str
    """The name of the layer, for messages."""

    def __post_init__(self) -> None:
        if self.on_failure not in get_args(OnFailure):
            message = f"on_failure={self.on_failure!r} is unknown; expected one of {', '.join(get_args(OnFailure))}"
            raise OptionError(message)

    def apply(self, backend: Backend, stage: str, status: Array, value: Array, said: object = None) -> Array:
        """Apply the policy to the statuses of a solve, shape batch. Return its value, shape (*batch, n).

        `said` is the solver's own message, if it has one.
        """
        code = backend.loops.number(status)
        if isinstance(code, int) and code in (Status.CONVERGED, Status.APPROXIMATE):
            return value
        status = without_approximate(status)
        if self.on_failure == "nan":
            xp = array_namespace(value)
            failed = (status != int(Status.CONVERGED))[..., None]
            poisoned: Array = xp.where(failed, full(value, float("nan")), value)
            return poisoned
        if self.on_failure != "ignore":
            return backend.reports.failures(partial(_report, self, stage, backend, said), status, value)
        return value

    def warn_or_raise(self, backend: Backend, message: str) -> None:
        """Raise or warn; a warning points to the user's line."""
        if self.on_failure == "raise":
            raise ConvergenceError(message)
        warnings.warn(message, ConvergenceWarning, stacklevel=_level_of_caller(backend))


def without_approximate(status: Array) -> Array:
    """Replace APPROXIMATE by CONVERGED: the user asked for the approximation."""
    asked = status == int(Status.APPROXIMATE)
    return array_namespace(status).where(asked, full(status, int(Status.CONVERGED)), status)  # type: ignore[no-any-return]


def _report(policy: Policy, stage: str, backend: Backend, said: object, status: Any) -> None:
    if not status.any():
        return
    own = f" (the solver's own message: {said})" if isinstance(said, str) and said else ""
    policy.warn_or_raise(backend, f"{policy.layer}: {stage}: {summary(status)}{own}")


def _level_of_caller(backend: Backend) -> int:
    """Return the stack level, as `_report` counts, of the user's own line: the first outside dil and the framework."""
    ours = {"dil", "dil_backends", backend.NATIVE, getattr(backend, "__name__", "").partition(".")[0]}
    level, frame = 0, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ours:
        level, frame = level + 1, frame.f_back
    return level + 1


def summary(status: Any) -> str:
    """Describe the statuses in words, with their counts in a batch."""
    codes = status.reshape(-1).tolist()
    met = sorted({code for code in codes if code != Status.CONVERGED})
    if len(codes) == 1:
        return _words(met[0])
    return "; ".join(
        f"{codes.count(code)} of {len(codes)} problems (the first at {codes.index(code)}) ended {_words(code)}"
        for code in met
    )


def _words(code: int) -> str:
    if code not in Status._value2member_map_:
        return f"{code}: a code that is not a dil.Status; the solver must return members of dil.Status"
    return f"{Status(code).name}: {Status(code).sentence}"
