"""What a backend is: a module that differentiates, loops and registers derivatives for one framework.

Everything that concerns arrays belongs to the array API namespace; only what a framework alone can do is asked of
a backend. Backends see flat tuples of arrays: trees are taken apart and put together again in the core.
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
        """Return one cotangent for each primal in `wrt` (all of them if None), and work for no other."""
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
    """A rule that has a pullback alone, because that is no transpose of anything at hand."""

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Refuse.

        Raises
        ------
        UnsupportedFunctionError
            In any case.
        """
        message = f"{type(self).__name__} has a derivative in reverse mode only, not in forward mode"
        raise UnsupportedFunctionError(message)


@dataclass(frozen=True)
class LinearSystem:
    """The system A(params) x = b, with what is needed to solve it and to differentiate its solution."""

    operator: Callable[..., Operator]
    """`operator(*params)` builds A, its products differentiable in the parameters."""
    params: Arrays
    A: Operator
    """`operator(*params)`, already built."""
    solve: Callable[..., Array]
    """A black box: `solve(A, b, *constants)` returns x."""
    constants: Arrays = ()
    """What `solve` needs to know besides, handed to it as arrays since a transform may have to see them."""

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
    """The contract of a backend module; `dil.testing.LAWS` check that a module keeps it."""

    NATIVE: str
    """Root module of the framework's array types, such as "torch"."""

    loops: Loops
    dense: Dense
    reports: Reports

    def owns(self, x: object, /) -> bool:
        """Whether x is an array of this framework: also a tracer, a box or a subclass."""
        ...

    def children(self, x: object, /) -> tuple[Sequence[Tree], Callable[[Sequence[Tree]], Tree]] | None:
        """Take apart one level of what the framework itself calls a pytree; None if x is not one."""
        ...

    def vjp(self, fn: Callable[..., Arrays], /, *primals: Array) -> tuple[Arrays, Pull]:
        """Evaluate fn at float arrays; the pull differentiates again."""
        ...

    def implicit(self, solve: Callable[..., Arrays], rule: Rule, /) -> Callable[..., Arrays]:
        """Return `solve` with the derivative that `rule` gives, instead of that of its operations."""
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
        """Return fn, protected from what the framework would do to it: compile it, say.

        With `exact`, operations keep the dtype of their arrays, and numbers that are not finite give no warning.
        """
        ...

    def asarray(self, x: object, *, dtype: DType | None = None, device: Device | None = None) -> Array:
        """Make an array; a dtype that cannot be had is an error, never a silent narrowing."""
        ...

    def to_numpy(self, x: Array, /) -> Any:
        """Copy a concrete array to a NumPy array."""
        ...

    def info(self) -> BackendInfo:
        """Describe the framework: version, devices, and why it cannot compute here, if so."""
        ...
