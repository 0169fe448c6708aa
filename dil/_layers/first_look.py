"""A look at the numbers of a call, within all transforms of a framework, for the checks of first calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from dil._base.arrays import full
from dil._base.typing import Array, Arrays
from dil._frameworks.constants import ZeroRule, as_constant
from dil._frameworks.protocol import Compile, Vectorise
from dil._layers.batched_call import batched_call
from dil._layers.call import Call
from dil._layers.first_calls import is_readable


class Seen(NamedTuple):
    """What a look has found, and said."""

    factor: Array | None = None
    """What the policy makes of one, (*batch, 1), if a problem was told."""

    @property
    def told(self) -> bool:
        """Whether a problem was told."""
        return self.factor is not None


Look = Callable[[Call, Compile, Array, Arrays], Seen]
"""`look(call, compile, y, arrays)`: look at the problems of a call. y, (*batch, n), and the arrays are numbers."""


@dataclass(frozen=True)
class FirstLook(ZeroRule):
    """One look at the numbers of a call, or of the rows of a call under a `vmap` that cannot trace a solver."""

    call: Call
    look: Look
    found: list[bool] = field(default_factory=list)
    """Whether something was told, for each time that numbers were seen."""

    def passed(self) -> bool:
        """Return whether numbers were seen, and no row was told."""
        return bool(self.found) and not self.told()

    def told(self) -> bool:
        """Return whether a row was told."""
        return any(self.found)

    def factor(self, y: Array, arrays: Sequence[Array]) -> Array | None:
        """Look. Return what the policy makes of one, (*batch, 1); None if nothing was told."""
        backend, compiler = self.call.backend, self.call.backend.compiler()
        if compiler is None:  # the numbers are those within all transforms
            (factor,) = as_constant(backend, self.at_numbers, y, *arrays, rule=self)
            return factor if self.told() else None
        y = backend.constant(y)
        if compiler.is_traced(y):
            return None
        compiled = compiler.compiled
        return self._seen(lambda fn: partial(as_constant, backend, compiled(fn)), y, tuple(arrays))

    def at_numbers(self, y: Array, *arrays: Array) -> Arrays:
        """Look at plain arrays. Return what the policy makes of one."""
        factor = self._seen(lambda fn: fn, y, arrays) if is_readable(self.call.backend, y) else None
        return (full(y, 1.0, shape=(*y.shape[:-1], 1)) if factor is None else factor,)

    def batched(
        self, axes: Sequence[bool], size: int, vectorise: Vectorise
    ) -> tuple[Callable[..., Arrays], FirstLook] | None:
        """Return the look at `size` calls at once, or None if they are looked at one after the other."""
        y_has_axis, *rest = axes
        call = batched_call(self.call, rest, size, vectorise) if y_has_axis else None
        if call is None:
            return None
        call.space = self.call.problem().space.many(size)
        many = replace(self, call=call)
        return many.at_numbers, many

    def _seen(self, compiled: Compile, y: Array, arrays: Arrays) -> Array | None:
        seen = self.look(self.call, compiled, y, arrays[: len(self.call.arguments.arrays)])
        self.found.append(seen.told)
        return seen.factor
