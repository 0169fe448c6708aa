"""The methods of integration: each is a chain of implicit stages z = base + gh f(t, z)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from dil._base.arrays import full, nonzero_or_one
from dil._base.typing import Array, Arrays
from dil.ode._collocation import Collocation
from dil.ode._in_turn import Tableau
from dil.ode._state import plus, scaled, slope_between, stepped


class Stages(Protocol):
    """The operations that a method uses within one step."""

    last: Arrays
    """The slope of the stage before. At the start of a step it is the slope at the end of the last step."""

    def solve(self, base: Arrays, t: Array, gh: Array) -> Arrays:
        """Return z = base + gh f(t, z)."""
        ...

    def solve_rows(self, tableau: Tableau, y: Arrays, first: Arrays, t: Array, h: Array) -> tuple[Arrays, list[Arrays]]:
        """Return the last stage of a tableau and all slopes, from the slope at the start."""
        ...

    def slope(self, t: Array, y: Arrays) -> Arrays:
        """Return f(t, y)."""
        ...


class StagesTogether(Stages, Protocol):
    """Stages that can be solved together, too."""

    def solve_collocation(
        self, nodes: Collocation, y: Arrays, first: Arrays, t: Array, h: Array
    ) -> tuple[Arrays, list[Arrays]]:
        """Return the last stage of a step of collocation and the slopes at its nodes, from the slope at the start."""
        ...


class Advanced(NamedTuple):
    """One step: the new state, the memory for the next step, and an estimate of the local error."""

    y: Arrays
    memory: Arrays
    error: Callable[[], Arrays] | None = None
    """Computed only for adaptive steps. It needs the slope at the start in `stages.last`."""
    slope: Arrays | None = None
    """The slope at the end, if it is not that of the last implicit stage."""
    bulge: Callable[[], Arrays] | None = None
    """How far the state at t + h / 2 is from the cubic through states and slopes at both ends."""


@dataclass(frozen=True)
class Method:
    """A method of integration.

    A slope is taken from its stage and not evaluated again: a stiff f would amplify the error of the stage.
    """

    name: str
    order: int
    advance: Callable[[Stages, Arrays, Arrays, Array, Array], Advanced]
    """`advance(stages, y, memory, t, h)` takes a step from t to t + h."""
    begin: Callable[[Stages, Arrays, Array], Arrays] = lambda stages, y, t: ()
    """`begin(stages, y, t)` returns the memory of the first step."""
    starter: Method | None = None
    """The method of the first step, if the memory holds the state before the last step and the length of that step."""
    implicit: bool = True
    error_order: int | None = None
    """The power of h in the estimate of the local error; None for a method without an estimate."""
    stages: int = 1
    """The number of implicit stages."""
    continues: bool = False
    """Whether the memory is the slope at the end of the last step."""
    bulges: bool = False
    """Whether its steps have a bulge, so that dense output is of order 4."""
    estimates_all: bool = False
    """Whether the estimate is the difference of two stages, so that it holds for algebraic unknowns, too."""
    keeps_constraints: bool = True
    """Whether the new state is a stage, so that it satisfies the algebraic equations."""
    collocation: Collocation | None = None
    """The nodes, if the stages are coupled."""
    is_sharper: bool = False
    """Whether the error is of an order that is higher by two than that of the estimate."""
    predicts: bool = False
    """Whether Gustafsson's control of the step size is better than a PI control."""
    steady: float = 1.0
    """A step that may grow by at most this factor keeps its length, and the stages of a small state their inverse."""


def explicit_euler(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
    """Return y + h f(t, y)."""
    return Advanced(plus(y, (h, stages.slope(t, y))), ())


def implicit_euler(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
    """Return z = y + h f(t + h, z) (Look et al. 2020, section 3.1)."""
    before = stages.last
    z = stages.solve(y, t + h, h)
    return Advanced(z, (), lambda: scaled(0.5 * h, (1.0, stages.last), (-1.0, before)))


def implicit_midpoint(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
    """Return 2 z - y with z = y + h/2 f(t + h/2, z) (Hairer, Nørsett and Wanner 1993, II.7)."""
    z = stages.solve(y, t + 0.5 * h, 0.5 * h)
    return Advanced(plus(z, (1.0, z), (-1.0, y)), ())


def trapezoid(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
    """Return z = y + h/2 (f(t, y) + f(t + h, z)), with the slope at y from the stage before.

    The error is h^3/12 d3y/dt3 (Hairer, Nørsett and Wanner 1993, III.2). Three slopes give the derivative.
    """
    *slopes, last = memory
    now, before = tuple(slopes[: len(y)]), tuple(slopes[len(y) :])
    base = plus(y, (0.5 * h, now))
    z = stages.solve(base, t + h, 0.5 * h)
    new = slope_between(z, base, 0.5 * h)

    def error() -> Arrays:
        r = h / nonzero_or_one(last)
        return scaled(h * h / (6.0 * (h + last)), (1.0, new), (-1.0 - r, now), (r, before))

    return Advanced(z, (*new, *now, h), error)


def bdf2(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
    """Return z by two-step backward differentiation (Hairer, Nørsett and Wanner 1993, III.5).

    The last step had length h' and started from y'. With w = h / h',
    z = ((1 + w)^2 y - w^2 y') / (1 + 2 w) + h (1 + w) / (1 + 2 w) f(t + h, z). Its local error is e h^3 d3y/dt3 with
    e = (1 + w)^2 / (6 w (1 + 2 w)). The estimate is found from
    h (f(t, y) + f(t + h, z)) - 2 (z - y) = (1/6 - 2 e) h^3 d3y/dt3.
    """
    *before, last = memory
    w = h / nonzero_or_one(last)
    shift = w * w / (1.0 + 2.0 * w)
    base, slope = plus(y, (shift, y), (-shift, tuple(before))), stages.last
    z = stages.solve(base, t + h, h * (1.0 + w) / (1.0 + 2.0 * w))

    def error() -> Arrays:
        e = (1.0 + w) * (1.0 + w) / (6.0 * w * (1.0 + 2.0 * w))
        return scaled(e / (1.0 / 6.0 - 2.0 * e), (h, slope), (h, stages.last), (-2.0, z), (2.0, y))

    return Advanced(z, (*y, h), error)


def sdirk(
    A: Sequence[Sequence[float]], estimate: Sequence[float]
) -> Callable[[Stages, Arrays, Arrays, Array, Array], Advanced]:
    """Return a stiffly accurate diagonally implicit method: its last stage is the new state.

    `estimate` holds the weights of the error estimate, for the slope at the start and the slopes of the stages. The
    estimate is zero if the slope is linear in time.
    """

    def advance(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
        slopes, before, z = list[Arrays](), stages.last, y
        multiples = {g: g * h for g in {row[-1] for row in A}}  # stages with the same gh share the inverse of I - gh J
        for row in A:
            base = stepped(y, h, row[:-1], slopes)
            gh = multiples[row[-1]]
            z = stages.solve(base, t + sum(row) * h, gh)
            slopes.append(slope_between(z, base, gh))
        return Advanced(z, (), lambda: scaled(h, *zip(estimate, (before, *slopes), strict=True)))

    return advance


G2 = 1.0 - 0.5**0.5
"""Alexander 1977, Theorem 5 of order 2: a root of x^2 - 2 x + 1/2."""
G3 = 0.43586652150845899942
"""Alexander 1977, of order 3: the root of x^3 - 3 x^2 + 3/2 x - 1/6 between 1/6 and 1/2."""
C3 = 0.5 * (1.0 + G3)
B1 = -0.25 * (6.0 * G3**2 - 16.0 * G3 + 1.0)
B2 = 0.25 * (6.0 * G3**2 - 20.0 * G3 + 5.0)

# the weights of the method minus those of a quadrature of order 3 at 0, G2 and 1
E1 = (1.0 / 3.0 - G2 - (1.0 - G2) * G2**2) / (G2 * (1.0 - G2))
E2 = -G2 * E1
SDIRK2 = Method("sdirk2", 2, sdirk(((G2,), (1.0 - G2, G2)), (-E1 - E2, E1, E2)), error_order=3, stages=2)
# the same with a quadrature of order 4 at 0, G3, C3 and 1; both integrate 1, c and c^2 exactly
R3 = B1 * G3**3 + B2 * C3**3 + G3 - 0.25
E3 = tuple(
    R3 / w for w in (-G3 * C3, G3 * (G3 - C3) * (G3 - 1.0), C3 * (C3 - G3) * (C3 - 1.0), (1.0 - G3) * (1.0 - C3))
)
METHODS = {
    method.name: method
    for method in (
        Method("euler", 1, explicit_euler, implicit=False, stages=0),
        Method("implicit_euler", 1, implicit_euler, error_order=2),
        Method("implicit_midpoint", 2, implicit_midpoint, keeps_constraints=False),
        Method(
            "trapezoid",
            2,
            trapezoid,
            begin=lambda stages, y, t: (*(stages.slope(t, y) * 2), full(t, 0.0)),
            error_order=3,
        ),
        Method("bdf2", 2, bdf2, starter=SDIRK2, error_order=3),
        SDIRK2,
        Method(
            "sdirk3",
            3,
            sdirk(((G3,), (C3 - G3, G3), (B1, B2, G3)), E3),
            error_order=4,
            stages=3,
        ),
    )
}
