"""Events: functions of the state whose zeros mark or end a solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dil._base.arrays import array_namespace, full
from dil._base.errors import BackendError, DTypeError, OptionError, ShapeError
from dil._base.in_words import in_words
from dil._base.options import check_integer, is_number
from dil._base.typing import Array, Arrays
from dil._frameworks.registry import adopted, owner
from dil._frameworks.reports import Listener
from dil.ode._field import Field
from dil.ode._mass import along_algebraic
from dil.ode._verdict import report_if_nonzero


@dataclass(frozen=True)
class Event:
    """A function of time and state that is watched during a solve: an event is where it crosses zero.

    Parameters
    ----------
    fn : callable
        `fn(t, y, *args)` returns a float array of shape batch, one number for each problem, as differentiable array
        code. t has shape batch, too: it is an array of shape () where there is no batch.
    terminal : bool or int
        Whether the first event ends the solve. A number k > 0 ends it at the k-th event.
    direction : {0, 1, -1}
        1 counts only crossings from below zero to above, in the direction of the integration; -1 only those from above
        to below; 0 counts both.

    Raises
    ------
    OptionError
        If a field is out of range.

    Notes
    -----
    The attributes `terminal` and `direction` of a plain function mean the same, as in SciPy's `solve_ivp`.

    Examples
    --------
    >>> import numpy as np, dil
    >>> ground = dil.ode.Event(lambda t, y: y[0], terminal=True, direction=-1)
    >>> fall = lambda t, y: np.stack([y[1], -9.81 + 0 * t])
    >>> found = dil.ode.solve(fall, np.asarray([1.0, 0.0]), [0.0, 9.0], method="tsit5", rtol=1e-6, events=ground)
    >>> bool(np.allclose(found.events[0].t, (2 / 9.81) ** 0.5))
    True
    """

    fn: Callable[..., Any]
    terminal: bool | int = False
    direction: float = 0.0

    def __post_init__(self) -> None:
        if not callable(self.fn):
            message = f"the function of an event is {self.fn!r}; expected a callable, event(t, y, *args)"
            raise OptionError(message)
        if not isinstance(self.terminal, bool):
            check_integer(f"terminal of the event {_name(self.fn)!r}", self.terminal, 0)
        if not (is_number(self.direction) and self.direction == self.direction):
            message = f"direction={self.direction!r} of the event {_name(self.fn)!r}; expected 0, 1 or -1"
            raise OptionError(message)


def events_of(given: Any) -> tuple[Event, ...]:
    """Return the events of a call: one, or a sequence of them, or None. Each is an `Event` or a function.

    Raises
    ------
    OptionError
        If one is neither.
    """
    if given is None:
        return ()
    if not isinstance(given, list | tuple):
        given = (given,)
    for i, event in enumerate(given):
        if not callable(event) and not isinstance(event, Event):
            message = (
                f"events[{i}] is {event!r} of type {type(event).__name__}; expected a function event(t, y, *args) "
                f"or a dil.ode.Event"
            )
            raise OptionError(message)
    return tuple(map(_as_event, given))


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


def _as_event(given: Any) -> Event:
    """Return an event. The attributes of a plain function are those of SciPy."""
    if isinstance(given, Event):
        return given
    return Event(given, getattr(given, "terminal", False), getattr(given, "direction", 0))


@dataclass(frozen=True)
class EventFunction:
    """The function of an event as a function of vectors and flat arrays, with the structure of a call."""

    event: Event
    field: Field
    which: str
    """The name of the event in messages."""

    @property
    def name(self) -> str:
        """The name of the function."""
        return _name(self.event.fn)

    @property
    def last(self) -> int | None:
        """The number of the event that ends the solve, from 1; None if none does."""
        return int(self.event.terminal) or None

    @property
    def signs(self) -> tuple[bool, bool]:
        """Whether crossings upwards and downwards count."""
        return self.event.direction >= 0, self.event.direction <= 0

    def at(self, t: Array, u: Array, arrays: Arrays) -> Array:
        """Return its values at the times t, shape batch, and the vectors u, (*batch, n)."""
        args, _ = self.field.arguments.call(arrays)
        return self(t, u, *args)

    def __call__(self, t: Array, u: Array, *args: Any) -> Array:
        """Return its values from trees of arguments."""
        t = t if self.field.sign > 0 else -t
        return self._checked(self.event.fn(t, self.field.space.unravel(u), *self.field.of_user(args)), u)

    def _checked(self, value: Any, u: Array) -> Array:
        """Return the values, shape batch.

        Raises
        ------
        ShapeError, DTypeError, BackendError
            If they are not one float of the dtype of the state for each problem.
        """
        batch, own = tuple(u.shape[:-1]), owner(value)
        if own is self.field.backend and value.dtype == u.dtype and tuple(value.shape) == batch:
            return value  # type: ignore[no-any-return]
        if is_number(value) and own is None:
            return full(u[..., 0], value)
        value = adopted((value,), (u,))[0]
        own = owner(value)
        if own is None:
            message = f"{self.which} returned {in_words(value)} of type {type(value).__name__}; expected a float array"
            raise DTypeError(message)
        if own is not self.field.backend:
            message = f"{self.which} returned an array of {own.NATIVE}, but y0 is of {self.field.backend.NATIVE}"
            raise BackendError(message)
        if tuple(value.shape) != batch:
            message = (
                f"{self.which} returned shape {tuple(value.shape)}; expected {batch}, one number for each problem: "
                f"return one entry of the state, such as y[..., 0], and take one event for each condition"
            )
            raise ShapeError(message)
        if value.dtype != u.dtype:
            message = (
                f"{self.which} returned dtype {value.dtype}, but y0 has {u.dtype}; return a number that crosses zero, "
                f"such as y[0] - 1 and not y[0] < 1"
            )
            raise DTypeError(message)
        return value  # type: ignore[no-any-return]


def functions_of(events: tuple[Event, ...], field: Field) -> tuple[EventFunction, ...]:
    """Return the functions of the events as they are at the call."""
    fixed = [replace(event, fn=field.backend.fixed(event.fn)) for event in events]
    names = [f"the function of events[{i}], {_name(event.fn)!r}," for i, event in enumerate(events)]
    return tuple(EventFunction(event, field, name) for event, name in zip(fixed, names, strict=True))


def without_algebraic(functions: tuple[EventFunction, ...], t: Array, y: Array, arrays: Arrays) -> Array:
    """Return y. If the function of an event depends on unknowns without a derivative there, raise.

    The dense output of those unknowns is of a low order (Hairer and Wanner 1996, VI.1), so the time would be, too.
    """
    for function in functions:
        field, plain = function.field, function.field.backend.constant
        if field.mass_arrays:
            fixed = tuple(map(plain, arrays))
            now = full(y[..., 0], 0.0) + plain(t)
            (value,), pull = field.backend.vjp(lambda w: (function.at(now, w, fixed),), plain(y))  # noqa: B023
            mass = field.mass(field.arguments.call(fixed)[0])
            wrong = along_algebraic(mass.matrix, pull((full(value, 1.0),))[0])
            listener = Listener("dil.ode._events:refuse_algebraic", (function.which,))
            y = y + report_if_nonzero(field.backend, listener, array_namespace(y).astype(wrong, y.dtype))
    return y


def refuse_algebraic(which: str, wrong: Any) -> None:
    """Raise if the function of an event depends on an algebraic unknown."""
    if wrong.any():
        message = (
            f"{which} depends on unknowns without a derivative in M y' = f, which are known to a low order between "
            f"two steps; write it in terms of the other unknowns, by the algebraic equations"
        )
        raise OptionError(message)


def refuse_captured_events(functions: tuple[EventFunction, ...], t: Array, u: Array, arrays: Arrays) -> None:
    """Raise if the function of an event depends on an array that is being differentiated but is no argument.

    This is the first evaluation. It also raises if a result is not one number for each problem.
    """
    for function in functions:
        backend = function.field.backend
        t, u, *constants = (backend.constant(x) for x in (t, u, *arrays))
        copy = array_namespace(u).asarray(u, copy=True)
        now = full(u[..., 0], 0.0) + t
        (value,), _ = backend.vjp(lambda w: (function.at(now, w, tuple(constants)),), copy)  # noqa: B023
        message = (
            f"{function.which} uses an array that takes part in a differentiation but is not among its arguments, and "
            f"in a way that cannot be followed, such as in a custom function of its framework; so it would silently "
            f"get no gradient; pass it in args, or detach it"
        )
        backend.assert_constant(value, message)
