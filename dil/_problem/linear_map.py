"""A linear map on the host with its transpose, each the derivative of the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dil._base.arrays import array_namespace
from dil._base.errors import SecondDerivativeError
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Backend

SECOND = (
    "the second derivative of a layer with derivatives=dil.Jacobian(...) is needed, but only its first derivatives are "
    "given; write the function in array code, which the backend differentiates"
)


@dataclass(frozen=True)
class HostMap:
    """y = M(*fixed) x for tuples of arrays x and y. It has no derivative in the fixed arrays."""

    backend: Backend
    forward: Callable[..., Arrays]
    """`forward(*fixed, *x)` returns y."""
    backward: Callable[..., Arrays]
    """`backward(*fixed, *c)` returns M^T c."""
    fixed: int
    """The number of fixed arrays."""

    @property
    def T(self) -> HostMap:
        """The transpose."""
        return HostMap(self.backend, self.backward, self.forward, self.fixed)

    def __call__(self, like: Arrays, fixed: Arrays, x: Arrays) -> Arrays:
        """Return y, whose arrays are like `like`."""
        linear = self.backend.loops.linear
        if linear is not None:
            return linear(self.forward, self.backward, like, fixed, x)
        return self.backend.implicit(self.forward, self)(*fixed, *x)

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return M^T c."""
        if any(i < self.fixed for i in wrt):
            raise SecondDerivativeError(SECOND)
        fixed, x = args[: self.fixed], args[self.fixed :]
        found = self.T(x, fixed, _given(cotangents, y))
        return tuple(found[i - self.fixed] for i in wrt)

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return M t."""
        if any(t is not None for t in tangents[: self.fixed]):
            raise SecondDerivativeError(SECOND)
        fixed, x = args[: self.fixed], args[self.fixed :]
        return self(y, fixed, _given(tangents[self.fixed :], x))


def _given(parts: Sequence[Array | None], like: Arrays) -> Arrays:
    """Return the arrays, with zeros for None."""
    return tuple([array_namespace(v).zeros_like(v) if x is None else x for x, v in zip(parts, like, strict=True)])
