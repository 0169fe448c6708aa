"""Why a gradient may be wrong: failed solves, rough solvers, kinks and random values."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from dil._base.errors import ConvergenceWarning
from dil._base.status import Status
from dil._diagnostics.failure_policy import summary
from dil._diagnostics.finite_differences import Line
from dil._diagnostics.record import Entry, Record

NEARBY = (-(2.0**-4), 2.0**-5)
"""Steps at which the layers are asked for their accuracy once more."""
BENT_FUNCTION = (
    "the function: KINK: its slope differs on the two sides of this point (|x|, max, relu, clip), so it has no "
    "derivative here; check another point"
)
RANDOM_FUNCTION = (
    "the function: RANDOM: it has another value at each call; draw the random numbers once and pass them as an argument"
)
UNKNOWN = (
    "the function: every solve in it converged, and it has no kink here; look for a derivative rule that is wrong, or "
    "for detach, stop_gradient and dil.constant"
)


@dataclass(frozen=True)
class Finding:
    """What may be wrong with a gradient, and what to do: one sentence, and the backends on which it was found."""

    text: str
    backends: tuple[str, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.backends)}: {self.text}"


@dataclass(frozen=True)
class Causes:
    """Why the gradient on one backend may be wrong, and how inaccurate its solvers are."""

    texts: tuple[str, ...]
    """What a layer or the function said. Empty if nothing is known to be wrong."""
    rough: str
    """The text for the least accurate layer."""
    tolerance: float
    """The bound of the relative error of the layers' gradients."""
    noise: float
    """The relative error of the layers' solutions."""


@contextmanager
def without_failure_warnings(texts: list[str]) -> Iterator[None]:
    """Append the text of every `ConvergenceWarning` in this context, each once, in place of the warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        yield
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif str(warning.message) not in texts:
            texts.append(str(warning.message))


def causes(line: Line) -> Causes:
    """Return why the derivative of v^T f at x may be wrong. The layers within f report on their solves."""
    record = _recorded(line, 0.0)
    failed = [_text(entry.layer, entry.stage, summary(entry.status)) for entry in record.entries if entry.status.any()]
    nearby = [entry for h in NEARBY for entry in _recorded(line, h).backward]
    if line.is_random():
        texts = [*(text for text in failed if "RANDOM" in text), RANDOM_FUNCTION][:1]
    elif failed:
        texts = failed
    else:
        texts = [BENT_FUNCTION] if line.has_kink() else []
    every = [*record.backward, *nearby]
    tolerance, noise = (_largest([read(e) for e in every]) for read in (_bound, _error))
    least = max(every, key=_error, default=None)
    said = f"{Status.NOT_STATIONARY.name}: {Status.NOT_STATIONARY.sentence}"
    rough = UNKNOWN if least is None else _text(least.layer, "backward", said)
    return Causes(tuple(dict.fromkeys(texts)), rough, tolerance, noise)


def _recorded(line: Line, h: float) -> Record:
    """Return what the layers report on the gradient of v^T f at x + h t."""
    with Record() as record:
        line.backend.vjp(line.f, *line.point(h))[1](line.v)
    return record


def merged(findings: list[Finding]) -> tuple[Finding, ...]:
    """Return the findings, those with the same text as one."""
    found: dict[str, Finding] = {}
    for one in findings:
        known = found.get(one.text, replace(one, backends=()))
        found[one.text] = replace(known, backends=tuple(dict.fromkeys((*known.backends, *one.backends))))
    return tuple(found.values())


def _text(layer: str, stage: str, said: str) -> str:
    return f"{layer}: {stage} solve: {said}"


def _bound(entry: Entry) -> float:
    """Return the largest bound of an entry. That of forward mode, NaN, counts as zero."""
    return 0.0 if entry.bound is None else max(0.0, float(entry.bound.max(initial=0.0)))


def _error(entry: Entry) -> float:
    """Return the largest relative error of a solution: the Newton step that is left."""
    return 0.0 if entry.stationarity is None else max(0.0, float(entry.stationarity.max(initial=0.0)))


def _largest(values: list[float]) -> float:
    """Return the largest finite value, or zero."""
    return max((x for x in values if x < float("inf")), default=0.0)
