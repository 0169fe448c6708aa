"""The methods: each a chain of implicit stages z = base + gh f(t, z), and what it carries from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from dil._typing import Array, Arrays
from dil.ode._state import plus, slope_between


class Stages(Protocol):
    """What a method may ask for within one step."""

    def solve(self, base: Arrays, t: Array, gh: Array) -> Arrays:
        """Return z = base + gh f(t, z)."""
        ...

    def slope(self, t: Array, y: Arrays) -> Arrays:
        """Return f(t, y)."""
        ...


class Advanced(NamedTuple):
    """One step: the new state, and what the next step has to know."""

    y: Arrays
    memory: Arrays


@dataclass(frozen=True)
class Method:
    """A method of integration.

    The coefficients are those of the sources named; a slope is never evaluated where a stage gives it, since a stiff f
    would multiply the error that the stage's solver leaves.
    """

    name: str
    order: int
    advance: Callable[[Stages, Arrays, Arrays, Array, Array], Advanced]
    """`advance(stages, y, memory, t, h)` takes a step from t to t + h."""
    begin: Callable[[Stages, Arrays, Array], Arrays] = lambda stages, y, t: ()
    """`begin(stages, y, t)` returns the memory of the first step."""
    starter: Method | None = None
    """Takes the first step of a method whose memory is the state before and the step from there."""
    implicit: bool = True


def explicit_euler(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
    """Y + h f(t, y)."""
    return Advanced(plus(y, (h, stages.slope(t, y))), ())


def implicit_euler(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
    """Z = y + h f(t + h, z) (Look et al. 2020, section 3.1)."""
    return Advanced(stages.solve(y, t + h, h), ())


def implicit_midpoint(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
    """Z = y + h/2 f(t + h/2, z), and as far again (Hairer, Nørsett and Wanner 1993, II.7)."""
    z = stages.solve(y, t + 0.5 * h, 0.5 * h)
    return Advanced(plus(z, (1.0, z), (-1.0, y)), ())


def trapezoid(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
    """Z = y + h/2 (f(t, y) + f(t + h, z)); the slope at y is that of the stage before."""
    base = plus(y, (0.5 * h, memory))
    z = stages.solve(base, t + h, 0.5 * h)
    return Advanced(z, slope_between(z, base, 0.5 * h))


def bdf2(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
    """Two-step backward differentiation for steps h after h' (Hairer, Nørsett and Wanner 1993, III.5).

    With w = h / h': z = ((1 + w)^2 y - w^2 y') / (1 + 2 w) + h (1 + w) / (1 + 2 w) f(t + h, z).
    """
    *before, last = memory
    w = h / last
    shift = w * w / (1.0 + 2.0 * w)
    base = plus(y, (shift, y), (-shift, tuple(before)))
    z = stages.solve(base, t + h, h * (1.0 + w) / (1.0 + 2.0 * w))
    return Advanced(z, (*y, h))


def sdirk(A: Sequence[Sequence[float]]) -> Callable[[Stages, Arrays, Arrays, Array, Array], Advanced]:
    """Return a stiffly accurate diagonally implicit method: its last stage is the new state."""

    def advance(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
        slopes: list[Arrays] = []
        z = y
        for row in A:
            base = plus(y, *((a * h, k) for a, k in zip(row, slopes, strict=False)))
            gh = row[-1] * h
            z = stages.solve(base, t + sum(row) * h, gh)
            slopes.append(slope_between(z, base, gh))
        return Advanced(z, ())

    return advance


G2 = 1.0 - 0.5**0.5
"""Alexander 1977, Theorem 5 of order 2: a root of x^2 - 2 x + 1/2."""
G3 = 0.43586652150845899942
"""Alexander 1977, of order 3: the root of x^3 - 3 x^2 + 3/2 x - 1/6 between 1/6 and 1/2."""
C3 = 0.5 * (1.0 + G3)
B1 = -0.25 * (6.0 * G3**2 - 16.0 * G3 + 1.0)
B2 = 0.25 * (6.0 * G3**2 - 20.0 * G3 + 5.0)

SDIRK2 = Method("sdirk2", 2, sdirk(((G2,), (1.0 - G2, G2))))
METHODS = {
    method.name: method
    for method in (
        Method("euler", 1, explicit_euler, implicit=False),
        Method("implicit_euler", 1, implicit_euler),
        Method("implicit_midpoint", 2, implicit_midpoint),
        Method("trapezoid", 2, trapezoid, begin=lambda stages, y, t: stages.slope(t, y)),
        Method("bdf2", 2, bdf2, starter=SDIRK2),
        SDIRK2,
        Method("sdirk3", 3, sdirk(((G3,), (C3 - G3, G3), (B1, B2, G3)))),
    )
}
