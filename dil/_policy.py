"""What becomes of a solve that failed: the user's choice, the same for forward and backward solves."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from dil._arrays import array_namespace, full
from dil._errors import ConvergenceError, ConvergenceWarning, OptionError
from dil._protocol import Backend
from dil._status import Status
from dil._typing import Array, OnFailure


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

    def settle(self, backend: Backend, stage: str, status: Array, value: Array) -> Array:
        """Act on the statuses, shape batch, of a solve; return its value, shape (*batch, n)."""
        if self.on_failure == "nan":
            xp = array_namespace(value)
            failed = (status != int(Status.CONVERGED))[..., None]
            poisoned: Array = xp.where(failed, full(value, float("nan")), value)
            return poisoned
        if self.on_failure != "ignore":
            backend.tell(partial(_report, self, stage), status)
        return value


def _report(policy: Policy, stage: str, status: Any) -> None:
    if not status.any():
        return
    message = f"{policy.layer}: {stage}: {_summary(status)}"
    if policy.on_failure == "raise":
        raise ConvergenceError(message)
    warnings.warn(message, ConvergenceWarning, stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """Return the stack level, as seen by `_report`, of the first frame that is not of dil: the line of the user's."""
    level, frame = 0, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("dil", "dil_backends"):
        level, frame = level + 1, frame.f_back
    return level + 1


def _summary(status: Any) -> str:
    """Say which statuses were met, in words, and how often in a batch."""
    codes = status.reshape(-1).tolist()
    met = sorted({code for code in codes if code != Status.CONVERGED})
    if len(codes) == 1:
        return f"{Status(met[0]).name}: {Status(met[0]).sentence}"
    return "; ".join(
        f"{codes.count(code)} of {len(codes)} problems (the first at {codes.index(code)}) ended "
        f"{Status(code).name}: {Status(code).sentence}"
        for code in met
    )
