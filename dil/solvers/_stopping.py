"""The stopping test of the fixed-point solvers: what of step(u) - u is compared with what of u."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dil._base.arrays import array_namespace, eps, norm, size
from dil._base.errors import OptionError
from dil._base.scale import is_short
from dil._base.typing import Array, Norm
from dil._problem.space import Space


class StoppingTest(NamedTuple):
    """A test whether a vector, (*batch, n), is short, for each problem of a batch."""

    leaves: Sequence[int] | None
    """The number of entries of each leaf of one problem, whose norms are compared. None: every entry is compared."""

    @property
    def is_whole(self) -> bool:
        """Whether one norm, that of the whole vector, is compared."""
        return self.leaves is not None and len(self.leaves) == 1

    def is_short(self, step: Array, u: Array, start: Array, rtol: float) -> Array:
        """Return whether a step is within rtol of u, or within the rounding of the way from the start; (*batch, 1)."""
        if self.leaves is None:
            return is_short(step, u, start, rtol)
        rounding = 4 * eps(array_namespace(u), u.dtype)
        short = None
        for f, v, way in zip(self._parts(step), self._parts(u), self._parts(u - start), strict=True):
            length = norm(f)
            passed = (length <= rtol * norm(v)) | (length <= rounding * norm(way))
            short = passed if short is None else short & passed
        assert short is not None
        return short

    def is_within(self, f: Array, limit: Array) -> Array:
        """Return whether f is as small as a limit >= 0 for each of its entries, (*batch, 1)."""
        xp = array_namespace(f)
        if self.leaves is None:
            within: Array = xp.max(xp.abs(f) - limit, axis=-1, keepdims=True) <= 0
            return within
        passed = [norm(a) <= norm(b) for a, b in zip(self._parts(f), self._parts(limit), strict=True)]
        return xp.all(xp.concat(passed, axis=-1), axis=-1, keepdims=True)  # type: ignore[no-any-return]

    def _parts(self, vector: Array) -> Iterator[Array]:
        assert self.leaves is not None
        if len(self.leaves) == 1:
            yield vector
            return
        first = 0
        for count in self.leaves:
            yield vector[..., first : first + count]
            first += count


def stopping_test(norm: Norm, space: Space) -> StoppingTest:
    """Return the test that an option `norm` asks for."""
    if norm == "entries":
        return StoppingTest(None)
    return StoppingTest(tuple(size(shape[len(space.batch) :]) for shape in space.shapes))


def check_norm(norm: object) -> None:
    """Refuse other values of an option `norm`.

    Raises
    ------
    OptionError
        If the value is neither "entries" nor "leaves".
    """
    if norm not in ("entries", "leaves"):
        message = (
            f'norm={norm!r}; expected "entries" (each entry of step(u) - u beside that of u) or "leaves" (the norm of '
            f"each leaf beside that of the leaf of u)"
        )
        raise OptionError(message)
