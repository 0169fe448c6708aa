"""Arrays that the functions of a call capture, such as the parameters of a module, as further arguments of the call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dil._base.arrays import full
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.fixed import identity_of
from dil._frameworks.lifted import Lifted
from dil._frameworks.protocol import Backend
from dil._problem.space import Space
from dil.ode._options import Options


class Functions(NamedTuple):
    """The functions of a call. They take the captured arrays after the user's arguments."""

    func: Callable[..., Tree]
    options: Options
    captured: tuple[Arrays, ...]
    """One argument for each function, or none."""
    names: list[str]
    """The name of each captured array in messages."""


class Start(NamedTuple):
    """The first time, and the state there as a vector."""

    t: Array
    y: Array
    space: Space


@dataclass(frozen=True, eq=False)
class WithCaptured:
    """A function of the user's arguments and of the arrays that functions have captured."""

    call: Callable[..., Tree]
    count: int
    """The number of the user's arguments."""
    place: int
    """The place of the arrays of this function among the arguments."""
    identity: Callable[..., Tree]
    """The user's function."""

    @property
    def __name__(self) -> str:
        """The name of the user's function in messages."""
        return getattr(self.identity, "__name__", type(self.identity).__name__)

    def __call__(self, t: Array, y: Tree, *args: Tree) -> Tree:
        """Return the value of the user's function."""
        return self.call(args[self.place], t, y, *args[: self.count])


def with_captured(
    func: Callable[..., Tree], options: Options, backend: Backend, start: Start, args: Sequence[Tree]
) -> Functions:
    """Return the functions of a call with what they capture. All arrays that are given are constants."""
    (t, y, space), events, jac = start, options.watched, options.jac
    state, times = space.unravel(y), full(y[..., 0], 0.0) + t
    t = times if options.own_steps else t
    found: list[tuple[Callable[..., Any], Lifted]] = [(func, backend.lifted(func, t, state, *args))]
    found += [(event.fn, backend.lifted(event.fn, times, state, *args)) for event in events]
    if callable(jac):
        found.append((jac, backend.lifted(jac, t, state, *args)))
    if not any(lift.arrays for _, lift in found):
        return Functions(func, options, (), [])
    count = len(args)
    func, *others = (WithCaptured(x.call, count, count + i, identity_of(fn)) for i, (fn, x) in enumerate(found))
    watched = tuple(replace(event, fn=fn) for event, fn in zip(events, others, strict=False))
    names = [f"an array that {_name(fn)!r} captures" for fn, lift in found for _ in lift.arrays]
    used = others[-1] if callable(jac) else jac
    options = replace(options, events=watched if options.events is not None else None, jac=used)
    return Functions(func, options, tuple(lift.arrays for _, lift in found), names)


def _name(fn: object) -> str:
    return getattr(fn, "__name__", type(fn).__name__)
