"""What becomes of an integration in which a step failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dil._arrays import array_namespace, full
from dil._errors import OptionError
from dil._protocol import Backend
from dil._typing import Array, Arrays


@dataclass(frozen=True)
class Still:
    """The rule of a function whose derivative is zero."""

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> list[Array | None]:
        """Return nothing."""
        return [None for _ in wrt]

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return zeros."""
        return tuple(full(x, 0.0) for x in y)


def tell(backend: Backend, listener: Callable[[Any], None], told: Array) -> Array:
    """Call the listener with an array if it is not zero all over; return a zero that waits for that, shape ().

    It goes through `implicit`, where every framework hands over plain arrays.
    """

    def listen(told: Array) -> Arrays:
        xp = array_namespace(told)
        return (xp.sum(backend.tell(listener, told, full(told, 0.0, shape=(*told.shape, 1)))),)

    return backend.implicit(listen, Still())(backend.constant(told))[0]


def increasing(t: Array, backend: Backend) -> Array:
    """Return the times; raise, when the program runs, if they do not increase."""
    xp = array_namespace(t)
    plain = backend.constant(t)
    wrong = ~(plain[1:] > plain[:-1])  # True for NaN
    return t + tell(backend, _refuse, xp.astype(wrong, t.dtype))


def _refuse(wrong: Any) -> None:
    if wrong.any():
        place = int(wrong.argmax())
        message = (
            f"t does not increase from t[{place}] to t[{place + 1}]; expected times that increase, without one twice. "
            f"To go back in time, put s = -t and integrate -func(-s, y)"
        )
        raise OptionError(message)
