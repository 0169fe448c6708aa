"""The derivative of a function along one direction, by difference quotients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Backend

STEPS = tuple(2.0**-k for k in range(4, 17))
"""Steps of the differences, in units of t. The one with the least error estimate is taken."""
FAR, CLOSE = 2.0**-8, 2.0**-12
"""The steps at which the slopes on the two sides are compared."""
BEND = 0.05
"""A difference of these slopes that is a kink, relative to their size."""


@dataclass(frozen=True)
class Line:
    """The function v^T f(x + h t) of one number h. Each array of t has the size of that of x, or one if it is zero."""

    backend: Backend
    f: Callable[..., Arrays]
    x: Arrays
    t: Arrays
    v: Arrays
    machine: float
    """The rounding unit of x."""
    known: dict[float, Arrays]
    """Values of f that were computed before: at 0, at least."""

    def point(self, h: float) -> Arrays:
        """Return x + h t."""
        return tuple(a + h * b for a, b in zip(self.x, self.t, strict=True))

    def at(self, h: float) -> Arrays:
        """Return f(x + h t). Each point is evaluated once."""
        if h not in self.known:
            self.known[h] = self.f(*self.point(h))
        return self.known[h]

    def along_v(self, upper: Arrays, lower: Arrays) -> float:
        """Return v^T (upper - lower)."""
        pairs = zip(self.v, upper, lower, strict=True)
        return sum(float(terms(self.backend, w, p - q).sum()) for w, p, q in pairs)

    def value_size(self) -> float:
        """Return the sum of the magnitudes of the terms of v^T f(x)."""
        return sum(float(abs(terms(self.backend, v, y)).sum()) for v, y in zip(self.v, self.at(0.0), strict=True))

    def derivative(self, noise: float = 0.0) -> tuple[float, float]:
        """Return the derivative at h = 0 and an estimate of its error.

        Richardson's extrapolation of central differences, at the best of a ladder of steps. The noise is the error of
        the values of f, relative to them, that solvers make in addition to rounding.
        """
        steps = [s for s in STEPS if s**3 > self.machine / 8]
        values = [self.along_v(self.at(h), self.at(-h)) / (2 * h) for h in steps]
        extrapolated = [(4 * b - a) / 3 for a, b in pairwise(values)]
        error = noise * self.value_size() if noise else 0.0
        spreads = [abs(b - a) + error / h for (a, b), h in zip(pairwise(extrapolated), steps[2:], strict=True)]
        finite = [s if s == s else float("inf") for s in spreads]
        best = finite.index(min(finite))
        return extrapolated[best + 1], finite[best]

    def has_kink(self) -> bool:
        """Return whether the slopes on the two sides of h = 0 differ by the same at two distances, or f steps there."""
        here = self.at(0.0)

        def changes(h: float) -> tuple[float, float]:
            return self.along_v(self.at(h), here), self.along_v(here, self.at(-h))

        (right, left), (near_right, near_left) = changes(FAR), changes(CLOSE)
        bend, near_bend = (right - left) / FAR, (near_right - near_left) / CLOSE
        bends = abs(bend) > BEND * (abs(right) + abs(left)) / FAR and abs(bend - near_bend) <= abs(bend) / 4
        sides = ((right, near_right), (left, near_left))
        noise = self.machine**0.5 * self.value_size()
        steps = any(abs(far) > noise and abs(far - near) <= abs(far) / 4 for far, near in sides)
        return bends or steps

    def is_random(self) -> bool:
        """Return whether f has another value at a second call."""
        values = zip(self.at(0.0), self.f(*self.x), strict=True)
        return any(bool((self.backend.to_numpy(a) != self.backend.to_numpy(b)).any()) for a, b in values)


def largest(backend: Backend, x: Array) -> float:
    """Return the largest magnitude of the entries, or one if all are zero."""
    return float(abs(backend.to_numpy(x)).max(initial=0.0)) or 1.0


def terms(backend: Backend, a: Array, b: Array) -> Any:
    """Return the products whose sum is <a, b>, in double precision on the host."""
    return backend.to_numpy(a).astype("float64") * backend.to_numpy(b).astype("float64")


def length(backend: Backend, arrays: Arrays) -> float:
    """Return the norm of all entries, in double precision on the host."""
    largest = max((float(abs(backend.to_numpy(x)).max(initial=0.0)) for x in arrays), default=0.0)
    if not 0 < largest < float("inf"):
        return largest
    squares = (float(((backend.to_numpy(x).astype("float64") / largest) ** 2).sum()) for x in arrays)
    return largest * math.sqrt(sum(squares))
