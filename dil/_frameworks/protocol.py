"""The Protocol of a backend: a module that differentiates, loops and registers derivatives for one framework.

Array functions belong to the array API namespace. A backend supplies only what its framework alone can do. Backends see
flat tuples of arrays; the core flattens and rebuilds trees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from dil._base.errors import UnsupportedFunctionError
from dil._base.operator import Operator
from dil._base.typing import Array, Arrays, Device, DType, Tree
from dil._frameworks.dense import Dense
from dil._frameworks.loops import Loops
from dil._frameworks.reports import Reports


class Pull(Protocol):
    """The transposed derivative of a function at a point: linear, and callable any number of times."""

    def __call__(self, cotangents: Arrays, wrt: Sequence[int] | None = None, /) -> Arrays:
        """Return one cotangent for each primal in `wrt` (all of them if None), and compute no others."""
        ...


class Rule(Protocol):
    """The derivative of y = solve(*args), in both directions, written in differentiable array code."""

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Sequence[Array | None]:
        """Return the cotangents of `args[i]` for i in `wrt`; None stands for the zero cotangent."""
        ...

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return the tangents of y; None stands for the zero tangent."""
        ...


class ReverseRule:
    """A rule with a pullback only."""

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Raise an error: there is no forward mode.

        Raises
        ------
        UnsupportedFunctionError
            Always.
        """
        message = f"{type(self).__name__} has a derivative in reverse mode only, not in forward mode"
        raise UnsupportedFunctionError(message)


@dataclass(frozen=True)
class LinearSystem:
    """The system A(params) x = b, with the functions that solve it and differentiate its solution."""

    operator: Callable[..., Operator]
    """`operator(*params)` builds A, its products differentiable in the parameters."""
    params: Arrays
    A: Operator
    """`operator(*params)`, already built."""
    solve: Callable[..., Array]
    """A black box: `solve(A, b, *constants)` returns x."""
    constants: Arrays = ()
    """The other arrays that `solve` needs. They are passed explicitly, since a transform may have to see them."""

    @property
    def T(self) -> LinearSystem:
        """The system with the transpose of A."""
        return replace(self, operator=lambda *params: self.operator(*params).T, A=self.A.T)


@dataclass(frozen=True)
class BackendInfo:
    """One line of `dil.backends()`: a backend, and whether it can be used here."""

    name: str
    version: str | None
    devices: tuple[str, ...]
    """The devices that `asarray` accepts."""
    reason: str | None
    """Why the framework cannot compute here (no GPU, say) and what to do; None if it can."""

    @property
    def usable(self) -> bool:
        """Whether arrays can be made and computed with here."""
        return self.reason is None


class Backend(Protocol):
    """The contract of a backend module. `dil.testing.LAWS` test it."""

    NATIVE: str
    """Root module of the framework's array types, such as "torch"."""

    loops: Loops
    dense: Dense
    reports: Reports

    def owns(self, x: object, /) -> bool:
        """Whether x is an array of this framework: also a tracer, a box or a subclass."""
        ...

    def children(self, x: object, /) -> tuple[Sequence[Tree], Callable[[Sequence[Tree]], Tree]] | None:
        """Split one level of a pytree of the framework. Return None if x is not one."""
        ...

    def vjp(self, fn: Callable[..., Arrays], /, *primals: Array) -> tuple[Arrays, Pull]:
        """Evaluate fn at float arrays. The pull is differentiable."""
        ...

    def implicit(self, solve: Callable[..., Arrays], rule: Rule, /) -> Callable[..., Arrays]:
        """Return `solve` with the derivative of `rule` in the place of that of its operations."""
        ...

    def linear_solve(self, system: LinearSystem, b: Array, /) -> Array:
        """Solve a linear system so that the solution is differentiable in b and in the parameters."""
        ...

    def constant(self, x: Array, /) -> Array:
        """Return x cut off from every derivative."""
        ...

    def assert_constant(self, x: Array, message: str, /) -> None:
        """Raise `CapturedError(message)` if x carries a derivative: now, or when its program is differentiated."""
        ...

    def guard(self, fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
        """Return fn, protected from changes by the framework, such as compilation.

        With `exact`, operations keep the dtype of their arrays, and numbers that are not finite give no warning.
        """
        ...

    def asarray(self, x: object, *, dtype: DType | None = None, device: Device | None = None) -> Array:
        """Make an array. An unavailable dtype is an error, never a silent cast."""
        ...

    def to_numpy(self, x: Array, /) -> Any:
        """Copy a concrete array to a NumPy array."""
        ...

    def info(self) -> BackendInfo:
        """Describe the framework: version, devices, and why it cannot compute here, if so."""
        ...
