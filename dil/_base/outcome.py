"""How the problems of a solve ended, in words."""

from __future__ import annotations

from dil._base.arrays import array_namespace
from dil._base.html import Mark
from dil._base.status import Status, name_of, sentence_of
from dil._base.typing import Array

QUIET = (Status.CONVERGED, Status.APPROXIMATE)
"""Statuses that are no failure: the user asked for the approximation."""


def counts(status: Array) -> dict[int, int]:
    """Return how many problems ended with each code, in the order of the codes. A status has any shape."""
    xp = array_namespace(status)
    flat = xp.reshape(status, (-1,))
    ordered, done, found = xp.sort(flat), 0, {}
    while done < ordered.shape[0]:
        code = int(ordered[done])
        found[code] = int(xp.sum(xp.astype(flat == code, xp.int32)))
        done += found[code]
    return found


def outcome(status: Array) -> Mark:
    """Return the names of the statuses, with their counts if there are several problems."""
    found = counts(status)
    if sum(found.values()) == 1:
        text = name_of(next(iter(found)))
    else:
        text = ", ".join(f"{count} {name_of(code)}" for code, count in found.items())
    return Mark(all(code in QUIET for code in found), text or "no problem")


def reasons(status: Array) -> list[str]:
    """Return a sentence for each failure, which says what to do."""
    return [f"{name_of(code)}: {sentence_of(code)}." for code in counts(status) if code not in QUIET]
