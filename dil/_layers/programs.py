"""The programs of a layer: what a framework compiles for one call serves every later call of the same structure."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from dil._base.cache import Cache
from dil._base.options import declares
from dil._base.typing import Array, Arrays
from dil._diagnostics.failure_policy import frameworks_of
from dil._diagnostics.record import recording
from dil._frameworks.reports import users_line
from dil._layers.call import Call, SolvedCall, Solver
from dil._layers.captured import Key, UnknownStateError, homes_of

MOST_PROGRAMS = 32
"""The largest number of programs of one layer. The one that was used least recently goes first."""


@dataclass(frozen=True)
class Program:
    """A compiled call."""

    call: Call
    """The call that was compiled. It knows the shape of the unknown once it has run."""
    run: Callable[..., Arrays]
    held: Sequence[Any]
    """Objects that the key knows by their identity."""


class Programs(Cache):
    """The compiled calls of one layer."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Program] = OrderedDict()
        self._lock = Lock()
        self._unknown = 0

    def need_the_solution(self, call: Call, arrays: list[Array]) -> bool:
        """Return whether the solver must run first, because it cannot be compiled, and all else can."""
        compiler = call.backend.compiler()
        if compiler is None or recording() or _is_array_code(call.solver):
            return False
        return not any(compiler.is_traced(call.backend.constant(x)) for x in arrays)

    def find(self, call: Call, arrays: list[Array], make: Callable[[Call], Callable[..., Arrays]]) -> Program | None:
        """Return the program of a call. Return None if the framework runs operations at once, or the call is traced.

        None is also returned if the call captures what may change unnoticed.
        """
        compiler = call.backend.compiler()
        if compiler is None or recording() or not (isinstance(call, SolvedCall) or _is_array_code(call.solver)):
            return None
        built = Key(
            compiler.is_traced,
            homes_of(call.condition.fn, call.condition.derivatives, *call.start.statics, *call.arguments.statics)
            - compiler.packages,
            compiler.packages,
        )
        try:
            key = _key(call, arrays, built)
            with self._lock:
                found = self._kept.pop(key, None) or Program(call, compiler.compiled(make(call)), built.held)
                self._kept[key] = found
                if len(self._kept) > MOST_PROGRAMS:
                    self._kept.popitem(last=False)
        except UnknownStateError as error:
            self._tell(call, *error.args)
            return None
        except TypeError:  # a part has no hash
            return None
        return found

    def _tell(self, call: Call, what: str = "") -> None:
        """Warn at the second call that each call is compiled anew, and never again."""
        self._unknown += bool(what)
        if what and self._unknown == 2:
            message = (
                f"{call.policy.layer} is compiled at every call, because its functions hold {what}, which may change "
                "unnoticed; take what you need out of it before you make the layer, or call the layer in a compiled "
                "function of your own (jax.jit), which reads it once"
            )
            warnings.warn_explicit(message, UserWarning, *users_line(frameworks_of(call.backend)))


def _is_array_code(solver: Solver) -> bool:
    return declares(solver, "_array_code") and not getattr(solver, "progress", False)


def _key(call: Call, arrays: list[Array], built: Key) -> Hashable:
    shapes = tuple((tuple(x.shape), str(x.dtype)) for x in arrays)
    parts = (call.condition, call.linear_solver, call.start.statics, call.arguments.statics)
    captured = tuple(built.of(part) for part in parts)
    captured += (call.has_start, call.space) if isinstance(call, SolvedCall) else (built.of(call.solver),)
    places = (call.arguments.arrays, call.start.arrays, call.arguments.split, call.start.split)
    return call.arguments.structure, call.start.structure, places, shapes, captured
