"""The times of a call: their direction, and those that are the same."""

from __future__ import annotations

from typing import Any, NamedTuple

from dil._base.errors import OptionError
from dil._base.options import is_number
from dil._base.typing import Array
from dil._frameworks.loops import runs_later
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import owner


class Times(NamedTuple):
    """What is known of the times of a call: sign * t does not decrease."""

    sign: float = 1.0
    first: tuple[int, ...] = ()
    """The places of the first of those that are the same; empty if all differ."""
    which: tuple[int, ...] = ()
    """For each time, which of those in `first` it is the same as."""


def times_of(t: Array, given: Any, backend: Backend) -> Times | None:
    """Return what is known of the times t, which were `given` so; None if a program is traced that gets them later.

    Raises
    ------
    OptionError
        If the times neither increase nor decrease.
    """
    known = _numbers(t, given, backend)
    if known is None:
        return None
    backwards = len(known) > 0 and known[-1] < known[0]
    sign = -1.0 if backwards else 1.0
    s = [sign * x for x in known]
    wrong = [i for i in range(len(s) - 1) if not s[i + 1] >= s[i]]
    if wrong or s[0] != s[0]:
        i = wrong[0] if wrong else 0
        words = "fall" if backwards else "increase"
        message = (
            f"t does not {words} from t[{i}] = {known[i]} to t[{i + 1}] = {known[min(i + 1, len(s) - 1)]}; expected "
            f"times that all increase or all fall, which may be the same"
        )
        raise OptionError(message)
    first = tuple(i for i in range(len(s)) if i == 0 or s[i] != s[i - 1])
    if len(first) == len(s) > 1:
        return Times(sign)
    return Times(sign, first, tuple(sum(1 for j in first if j <= i) - 1 for i in range(len(s))))


def _numbers(t: Array, given: Any, backend: Backend) -> list[float] | None:
    """Return the times as numbers, if they can be read."""
    if isinstance(given, list | tuple):
        if all(map(is_number, given)):
            return [float(x) for x in given]
    elif (own := owner(given)) is not None:  # NumPy's times of a state of JAX are known, too
        listed = own.loops.numbers(own.constant(given))
        if isinstance(listed, list):
            return listed
    plain: Any = backend.constant(t)
    if runs_later(backend.loops, plain):
        compiler = backend.compiler()
        if compiler is None or compiler.is_traced(plain):
            return None
    return [float(x) for x in backend.to_numpy(plain)]
