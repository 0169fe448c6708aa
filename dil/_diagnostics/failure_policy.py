"""The user's choice of what happens after a failed solve, forward or backward."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from dil._base.arrays import array_namespace, full
from dil._base.errors import ConvergenceError, ConvergenceWarning, OptionError
from dil._base.status import Status
from dil._base.typing import Array, OnFailure
from dil._frameworks.protocol import Backend
from dil._frameworks.reports import WARN_AT, Listener, users_frame

WARNED: dict[str | tuple[str, type[Warning], int], int] = {}
"""What Python's filters remember of the warnings of programs, so that one line warns once where they say so."""


class Place(NamedTuple):
    """Where in each problem a matrix is singular, or shows that the solution is no minimum."""

    word: str
    """What is counted, such as "step"."""
    number: Array
    """The number for each problem, or -1 for none; shape batch."""


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

    def apply(
        self,
        backend: Backend,
        stage: str,
        status: Array,
        value: Array,
        said: object = None,
        place: Place | None = None,
    ) -> Array:
        """Apply the policy to the statuses of a solve, shape batch. Return its value, shape (*batch, n).

        `said` is the solver's own message, if it has one, and `place` says where in each problem it failed.
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
        if self.on_failure != "ignore" and place is not None:
            listener = self.listener("dil._diagnostics.failure_policy:report_places", backend, stage, place.word)
            xp = array_namespace(status)
            placed = (status == int(Status.SINGULAR)) | (status == int(Status.NOT_MINIMUM))
            number = xp.where(placed, xp.astype(place.number, status.dtype) + 1, full(status, 0))
            return backend.reports.failures(listener, xp.stack([status, number], axis=-1), value)
        if self.on_failure != "ignore":
            own = said if isinstance(said, str) else ""
            listener = self.listener("dil._diagnostics.failure_policy:report", backend, stage, own)
            return backend.reports.failures(listener, status, value)
        return value

    def listener(self, function: str, backend: Backend, *details: str) -> Listener:
        """Return the listener that calls `function(on_failure, layer, frameworks, *details, array)`."""
        return Listener(function, (self.on_failure, self.layer, frameworks_of(backend), *details))

    def warn_or_raise(self, frameworks: str, message: str) -> None:
        """Raise or warn; a warning points to the user's line, the first outside dil and the framework."""
        if self.on_failure == "raise":
            raise ConvergenceError(message)
        place = WARN_AT.get()
        if place is None:
            warnings.warn(message, ConvergenceWarning, stacklevel=users_frame(frameworks)[0])
        else:
            warnings.warn_explicit(message, ConvergenceWarning, *place, registry=WARNED)


def frameworks_of(backend: Backend) -> str:
    """Return the packages whose lines a warning does not point to: the framework and its backend."""
    return f"{backend.NATIVE} {getattr(backend, '__name__', '').partition('.')[0]}"


def without_approximate(status: Array) -> Array:
    """Replace APPROXIMATE by CONVERGED: the user asked for the approximation."""
    asked = status == int(Status.APPROXIMATE)
    return array_namespace(status).where(asked, full(status, int(Status.CONVERGED)), status)  # type: ignore[no-any-return]


def report(on_failure: OnFailure, layer: str, frameworks: str, stage: str, said: str, status: Any) -> None:
    """Tell of the failures of a solve by the policy. `said` is the solver's own message, or empty."""
    if not status.any():
        return
    own = f" (the solver's own message: {said})" if said else ""
    Policy(on_failure, layer).warn_or_raise(frameworks, f"{layer}: {stage}: {summary(status)}{own}")


def report_places(on_failure: OnFailure, layer: str, frameworks: str, stage: str, word: str, found: Any) -> None:
    """Tell of the failures of a solve, (*batch, 2): the status, and the place in the problem counted from one."""
    status, places = found.reshape(-1, 2).T  # a vmap adds dimensions
    if status.any():
        first = int(status.nonzero()[0][0])
        where = f" (at {word} {places[first] - 1})" if places[first] > 0 else ""
        Policy(on_failure, layer).warn_or_raise(frameworks, f"{layer}: {stage}: {summary(status)}{where}")


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
