"""Steps of two methods by turns: an explicit one, and an implicit one while stability would limit explicit steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dil._base.arrays import array_namespace, device, inner
from dil._base.scalars import any_of
from dil._base.typing import Array, Arrays
from dil._frameworks.loops import Loops
from dil.ode._adaptive import Attempts, Control, Search, StepMaker
from dil.ode._methods import Method
from dil.ode._simplified_newton import SimplifiedNewton
from dil.ode._step_stages import ExplicitStages, NoneSolved, no_solve

LIMIT = 3.0
"""h |lambda| from which stability limits an explicit step. "tsit5" is stable up to 3.5 on the negative axis."""


class Way(Protocol):
    """A method, with what its search needs, and the signs that the other method suits the problem better."""

    @property
    def method(self) -> Method: ...
    @property
    def steps(self) -> StepMaker: ...
    @property
    def control(self) -> Control: ...
    @property
    def patience(self) -> int:
        """The number of steps with such a sign after which the method changes."""
        ...

    @property
    def calm(self) -> int:
        """The number of steps in a row without a sign after which those before do not count."""
        ...

    def is_unsuited(self, s: Search) -> bool:
        """Return whether the last step has such a sign."""
        ...


@dataclass(frozen=True)
class ExplicitWay:
    """An explicit method. Problems whose last two stages tell a large h |lambda| are stiff.

    The estimate and the counts are those of Hairer and Wanner 1996, IV.2, in units of the error allowed.
    """

    method: Method
    steps: StepMaker
    control: Control
    patience: int = 15
    calm: int = 6

    def is_unsuited(self, s: Search) -> bool:
        """Return whether stability limited the last step."""
        change, distance = s.kept
        return bool(any_of(s.length * s.length * change > LIMIT * LIMIT * distance))


@dataclass(frozen=True)
class ImplicitWay:
    """An implicit method. A problem is not stiff where a norm of its Jacobian is small. A large state has none."""

    method: Method
    steps: StepMaker
    control: Control
    patience: int = 10
    calm: int = 1

    def is_unsuited(self, s: Search) -> bool:
        """Return whether an explicit step of the same length would be stable."""
        if not isinstance(self.steps, SimplifiedNewton):
            return False
        jacobian, xp = s.kept[0], array_namespace(s.y)
        unit = self.control.allowed(s.largest, s.largest)  # that of |y| is small where y crosses zero
        rows = xp.abs(jacobian) @ unit[..., None]  # the largest row sum in these units is a norm
        return bool(s.length * xp.max(rows[..., 0] / unit) < LIMIT)


@dataclass(frozen=True)
class Alternation:
    """Makes the attempts of a search by an explicit and an implicit method."""

    explicit: Way
    implicit: Way
    loops: Loops

    @property
    def stages(self) -> int:
        """The largest number of stages that a step keeps."""
        return self.implicit.method.stages

    def __call__(self, attempts: Attempts, s: Search) -> tuple[Search, Array]:
        """Make attempts until the end. Return the state and the numbers of steps after which the method changes."""
        changes, way, other = list[int](), self.explicit, self.implicit
        s = self._go(way, attempts(way.method, way.steps, way.control), s)
        while bool(s.active):
            changes.append(int(s.mesh.place))
            way, other = other, way
            s = self._go(way, attempts(way.method, way.steps, way.control), self._begun(way, s))
        xp = array_namespace(s.y)
        return s, xp.asarray(changes, dtype=s.y.dtype, device=device(s.y))

    def _begun(self, way: Way, s: Search) -> Search:
        """Return the state where a method begins. It knows nothing of the errors of the other one."""
        kept = way.steps.first(s.y, s.t, s.slope)
        # the slope of an implicit step is that of its last stage; the derivative evaluates it here, too
        (slope,) = way.steps.stages(s.t, s.y, s.slope, s.largest, kept).slope(s.t, (s.y,))
        error = 0.0 * s.mesh.taken + 1.0
        return s._replace(slope=slope, kept=kept, error=error, length=s.h, was_taken=s.active)

    def _go(self, way: Way, attempt: Callable[[Search], Search], s: Search) -> Search:
        """Make attempts until the end, or until the other method suits better."""
        signs = quiet = 0
        while bool(s.active) and signs < way.patience:
            before = s.mesh.place
            s = attempt(s)
            if not bool(s.mesh.place > before):
                continue
            if way.is_unsuited(s):
                signs, quiet = signs + 1, 0
            else:
                quiet += 1
                signs = 0 if quiet >= way.calm else signs
        return s


@dataclass(frozen=True)
class MeasuredSteps(NoneSolved):
    """Makes the stages of explicit steps, which measure how fast the slope changes."""

    def first(self, y: Array, t: Array, slope: Array) -> Arrays:
        """Return the measures before the first step."""
        zero = 0.0 * inner(y, y)
        return zero, zero

    def stages(self, t: Array, y: Array, slope: Array, allowed: Array, kept: Arrays) -> MeasuredStages:
        """Return the stages of a step from y at t. Its error may be `allowed`."""
        return MeasuredStages(self, slope, allowed)


class MeasuredStages(ExplicitStages):
    """The stages of an explicit step."""

    def __init__(self, maker: MeasuredSteps, slope: Array, allowed: Array) -> None:
        super().__init__(maker.field, no_solve, maker.arrays, (slope,))
        self.allowed = allowed
        self.points: list[tuple[Array, Array]] = []

    def slope(self, t: Array, y: Arrays) -> Arrays:
        """Return f(t, y)."""
        found = super().slope(t, y)
        self.points.append((y[0], found[0]))
        return found

    def after(self, taken: object) -> Arrays:
        """Return the squares of the changes of the slope and of the state, from the last stage but one to the last."""
        (y, k), (z, m) = self.points[-2:]
        change, distance = (m - k) / self.allowed, (z - y) / self.allowed
        number = self.field.backend.loops.number
        return number(inner(change, change)), number(inner(distance, distance))
