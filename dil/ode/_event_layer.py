"""The place of an event within its step as a layer: the zero of the function of the event along the dense output.

The unknown is u = 1 + the distance from the last sample before the crossing, in units of the distance of two samples.
The function is scaled so that its derivative in u is one if it is linear. So nothing depends on the units of a problem.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, full
from dil._base.operator import Operator, as_operator
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Arrays, Loop, Matvec
from dil._diagnostics.failure_policy import Policy
from dil._frameworks.arguments import split_arguments, with_complex_split
from dil._frameworks.protocol import Rule
from dil._layers.call import Call
from dil._layers.theorem import ImplicitRule
from dil._problem.equation import Equation
from dil._problem.space import space_of
from dil.ode._dense import Segment
from dil.ode._events import EventFunction
from dil.ode._stage_layer import StageFunction
from dil.ode._watch import SAMPLES

LARGEST_RTOL = 1e-3
"""Larger tolerances are taken for this one, where it is decided whether a slope is too small."""

IDLE = 1.5
"""The unknown where there is no event. A function is less likely to be singular there than at the start."""


class Place(NamedTuple):
    """Where an event is: the step, and a bracket within it. All but the step are constants of shape batch."""

    begin: Array
    """The time at which the step begins, shape batch. It may have a derivative."""
    step: Segment
    low: Array
    """The last sample before the crossing, as a fraction of the step."""
    unit: Array
    """1 / (the largest value of the function in the bracket), negative for a crossing downwards; zero for no event."""

    @property
    def arrays(self) -> Arrays:
        """The arrays in one tuple."""
        step = tuple(x for x in self.step if x is not None)
        return (self.begin, *step, self.low, self.unit)

    @staticmethod
    def of(arrays: Arrays) -> Place:
        """Return the place whose `arrays` these are."""
        begin, *step, low, unit = arrays
        return Place(begin, Segment(*step), low, unit)

    def at(self, u: Array) -> tuple[Array, Array]:
        """Return the times, shape batch, and the states at the unknown u, (*batch, 1)."""
        s = self.low[..., None] + (u - 1.0) / SAMPLES
        return self.begin + s[..., 0] * self.step.length, self._segment().at(s)

    def _segment(self) -> Segment:
        return self.step._replace(length=self.step.length[..., None])

    def value(self, function: EventFunction, u: Array, args: tuple[Any, ...]) -> Array:
        """Return the scaled function at u, (*batch, 1). It rises at a crossing; where there is none it is u - IDLE."""
        t, state = self.at(u)
        unit = self.unit[..., None]
        idle = array_namespace(unit).where(unit == 0, full(unit, 1.0), full(unit, 0.0))
        return unit * function(t, state, *args)[..., None] + idle * (u - IDLE)  # type: ignore[no-any-return]


def grazes(slope: Array, rtol: float) -> Array:
    """Return whether the time of a crossing has no derivative, from the derivative of the scaled function in u.

    An error of the state of rtol shifts the zero by rtol / |slope|, and changes the slope by as much where the function
    is curved. So the slope is not known if it is below rtol^(1/2).
    """
    xp = array_namespace(slope)
    return xp.abs(slope) <= max(min(rtol, LARGEST_RTOL), eps(xp, slope.dtype)) ** 0.5  # type: ignore[no-any-return]


@dataclass(frozen=True)
class OneUnknown:
    """Solves a system of one unknown for each problem. It ends GRAZING where the coefficient is too small."""

    rtol: float

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None
    ) -> Solution:
        """Return b / A, (*batch, 1)."""
        xp, slope = array_namespace(b), as_operator(A)(full(b, 1.0))
        zero = full(b[..., 0], 0, dtype=xp.int32)
        status = xp.where(grazes(slope[..., 0], self.rtol), full(zero, int(Status.GRAZING)), zero)
        return Solution(b / slope, status, zero)


@dataclass(frozen=True)
class EventLayer:
    """The layer of one event, ready for many places of one structure."""

    function: EventFunction
    call: Call
    rule: Rule

    def __call__(self, place: Place, arrays: Arrays, u: Array) -> Array:
        """Return u, (*batch, 1), which solves the equation already, with the derivative of the theorem."""
        backend = self.call.backend
        u = backend.constant(u)
        self.call.space = space_of(u, self.call.condition.batch_ndim, "the place of an event")[1]
        (found,) = backend.implicit(lambda *every: every[-1:], self.rule)(*place.arrays, *arrays, u)
        return found


def event_layer(function: EventFunction, like: Place, arrays: Arrays, rtol: float, policy: Policy) -> EventLayer:
    """Return the layer for places like this one."""
    field = function.field
    batch_ndim = len(field.space.batch)

    def residual(u: Array, *given: Any) -> Array:
        place, args = given[: len(like.arrays)], given[len(like.arrays) :]
        return Place.of(place).value(function, u, args)

    args, _ = field.arguments.call(arrays)
    _, arguments = with_complex_split(*split_arguments((*like.arrays, *args), {}))
    u = like.begin[..., None]
    _, start = split_arguments((u,), {})
    equation = Equation(StageFunction(residual, function.event.fn), batch_ndim, "residual")
    policy = replace(policy, layer=f"{policy.layer}: event {function.name!r}")
    call = Call(equation, _no_solver, OneUnknown(rtol), policy, 0, field.backend, arguments, start)
    return EventLayer(function, call, ImplicitRule(call.problem, call.linear_solver, policy))


def _no_solver(*args: Any) -> Any:
    """Raise an error: the place of an event is known before its layer is made.

    Raises
    ------
    AssertionError
        Always.
    """
    message = "the place of an event is known already"
    raise AssertionError(message)
