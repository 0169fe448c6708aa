"""The contract of a backend: a module that differentiates, loops and registers derivatives for one framework.

The array API namespace has the functions of arrays. A backend has only the functions that need its framework. Backends
take and return flat tuples of arrays: `dil` splits and rebuilds the trees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

from dil._base.errors import UnsupportedFunctionError
from dil._base.operator import Operator
from dil._base.typing import Array, Arrays, Device, DType, Namespace, Tree
from dil._frameworks.complex_parts import ComplexParts
from dil._frameworks.dense import Dense
from dil._frameworks.lifted import Lifted
from dil._frameworks.loops import Loops
from dil._frameworks.reports import Reports

Vectorise: TypeAlias = Callable[[Callable[..., Arrays], Sequence[bool]], Callable[..., Arrays]]
"""`vectorise(fn, axes)`: return fn mapped over the first axis of the arrays where `axes` is true, as `vmap` does."""


class Pull(Protocol):
    """The pullback of a function at a point. It is linear, and can be called any number of times."""

    def __call__(self, cotangents: Arrays, wrt: Sequence[int] | None = None, /) -> Arrays:
        """Return one cotangent for each primal in `wrt` (all primals if None), and compute no others."""
        ...

    def many(self, cotangents: Arrays, wrt: Sequence[int] | None = None, /) -> Arrays:
        """Return the pullback of each row of the cotangents, (k, *shape), stacked. A linear solve meets all at once."""
        ...

    def work(self) -> int:
        """Return how many intermediate numbers a pull to the first primal makes, at least."""
        ...


@dataclass(frozen=True, slots=True)
class PullWithWork:
    """A pullback that is given by a function, with its work."""

    pull: Callable[[Any, Sequence[int] | None], Any]
    work: Callable[[], int]
    map_rows: Callable[[Callable[..., Any], Any], Any]
    """`map_rows(fn, stacked)`: return fn of each row of the stacked arrays, stacked."""

    def __call__(self, cotangents: Arrays, wrt: Sequence[int] | None = None, /) -> Arrays:
        """Return the cotangents of the primals."""
        return self.pull(cotangents, wrt)  # type: ignore[no-any-return]

    def many(self, cotangents: Arrays, wrt: Sequence[int] | None = None, /) -> Arrays:
        """Return the cotangents of the primals for each row, stacked."""
        return self.map_rows(lambda *row: self.pull(row, wrt), cotangents)  # type: ignore[no-any-return]


class Rule(Protocol):
    """The derivative of y = solve(*args) in both modes, written in differentiable array code."""

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Sequence[Array | None]:
        """Return the cotangents of `args[i]` for i in `wrt`; None stands for the zero cotangent."""
        ...

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return the tangents of y; None stands for the zero tangent."""
        ...


@runtime_checkable
class BatchedRule(Rule, Protocol):
    """A rule that knows how to do many calls at once. A framework whose `vmap` cannot trace a solve asks it."""

    def batched(
        self, axes: Sequence[bool], size: int, vectorise: Vectorise
    ) -> tuple[Callable[..., Arrays], Rule] | None:
        """Return `solve` and the rule of `size` calls, or None if they have to be done one by one.

        The arguments where `axes` is true, and all results, have a new first axis.
        """
        ...


class RepeatedPull(Protocol):
    """The pullback at one point, for many vectors."""

    def __call__(self, v: Array, wrt: Sequence[int]) -> Arrays | None:
        """Return the cotangents of `args[i]` for i in `wrt`, or None if v needs the rule itself."""
        ...

    def product(self, v: Array, wrt: Sequence[int]) -> Arrays | None:
        """Return the same by products with matrices at hand, or None. It calls no function of the user."""
        ...


@runtime_checkable
class RepeatedRule(Rule, Protocol):
    """A rule that knows how to do many pullbacks at one point for less than the first one costs."""

    def has_looked(self, args: Arrays, y: Arrays, wrt: Sequence[int]) -> bool:
        """Return whether a pullback to these arguments has nothing to look at but its system."""
        ...

    def repeated(self, args: Arrays, y: Arrays) -> RepeatedPull | None:
        """Return the pullback of cotangents of `y[0]`, without a derivative of its own, or None if there is none."""
        ...


@runtime_checkable
class StackedRule(Rule, Protocol):
    """A rule that knows how to do many pullbacks at one point at once. A framework without `vmap` asks it."""

    def pullbacks(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Sequence[Array | None]:
        """Return the pullback of each row of the cotangents, (k, *shape), stacked; None stands for zeros."""
        ...


class ReverseRule:
    """A rule with a pullback only. It has no pushforward."""

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Raise an error, since there is no pushforward.

        Raises
        ------
        UnsupportedFunctionError
            Always.
        """
        message = f"{type(self).__name__} has a derivative in reverse mode only, not in forward mode"
        raise UnsupportedFunctionError(message)


@dataclass(frozen=True)
class LinearSystem:
    """The system A(params) x = b, with a solver and all that the derivative of the solution needs."""

    operator: Callable[..., Operator]
    """`operator(*params, *fixed)` builds A. The products of A are differentiable in the parameters."""
    params: Arrays
    A: Operator
    """The matrix, already built. Only `linear_solve` of a backend reads it."""
    solve: Callable[..., Array]
    """`solve(A, b, *constants)` returns x. It is a black box, which no derivative passes through."""
    constants: Arrays = ()
    """Further arrays that `solve` needs. They are arguments, because a transform may have to see them."""
    fixed: Arrays = ()
    """Arrays without a derivative that `operator` takes after the parameters."""
    many: Callable[..., Array | None] | None = None
    """`many(A, B, *constants)` returns the solutions for many right-hand sides, (k, *batch, n), or None.

    `A.one` is the matrix of one. None says that they have to be solved one by one.
    """
    batched: Callable[[LinearSystem, Sequence[bool], Sequence[bool], int, Vectorise], LinearSystem | None] | None = None
    """`batched(system, params, fixed, size, vectorise)` returns `size` systems as one, or None if that cannot be done.

    The parameters and the fixed arrays have a new first axis where the flags are true. All constants have it, or the
    parameters that they are copies of.
    """

    @property
    def T(self) -> LinearSystem:
        """The system with the transpose of A."""
        return replace(self, operator=lambda *arrays: self.operator(*arrays).T, A=self.A.T)


@dataclass(frozen=True)
class BackendInfo:
    """One entry of `dil.backends()`: a backend, and whether it can be used here.

    Examples
    --------
    >>> import dil
    >>> dil.BackendInfo("numpy", "2.0", ("cpu",), None).usable
    True
    """

    name: str
    version: str | None
    devices: tuple[str, ...]
    """The devices that `asarray` accepts."""
    reason: str | None
    """Why the framework cannot compute here (no GPU, for example) and what to do; None if it can."""

    @property
    def usable(self) -> bool:
        """Whether the framework can make arrays and compute with them here."""
        return self.reason is None


Compile = Callable[[Callable[..., Arrays]], Callable[..., Arrays]]
"""Return a function of arrays, compiled where the framework gains by it."""


@dataclass(frozen=True)
class Compiler:
    """How a framework compiles a function of arrays, for a framework that gains by it."""

    compiled: Compile
    """`compiled(fn)`: return fn, which is traced once for each structure of its arrays. It can be differentiated."""
    is_traced: Callable[[object], bool]
    """Whether an object belongs to a trace, so that it may not be kept."""
    packages: frozenset[str] = frozenset()
    """The packages of the framework. Their compiled objects, such as devices, do not change."""


class Autodiff(Protocol):
    """The derivatives of a backend."""

    def vjp(self, fn: Callable[..., Arrays], /, *primals: Array) -> tuple[Arrays, Pull]:
        """Return fn(*primals) at float arrays, and its pullback, which is itself differentiable."""
        ...

    def implicit(self, solve: Callable[..., Arrays], rule: Rule, /) -> Callable[..., Arrays]:
        """Return `solve` with the derivative that `rule` gives, instead of the derivative of its operations."""
        ...

    def linear_solve(self, system: LinearSystem, b: Array, /) -> Array:
        """Solve a linear system. The solution is differentiable in b and in the parameters."""
        ...


class Backend(Autodiff, Protocol):
    """The contract of a backend module. `dil.testing.LAWS` check that a module keeps it."""

    NATIVE: str
    """Root module of the framework's array types, such as "torch"."""
    FLOAT_CUTS: bool
    """Whether float() of an array that is being differentiated is a number. Elsewhere it raises, so that a function
    that returns a Python number does not depend on the array."""

    loops: Loops
    dense: Dense
    complex_parts: ComplexParts
    reports: Reports

    def owns(self, x: object, /) -> bool:
        """Return whether x is an array of this framework. Tracers, boxes and subclasses are arrays too."""
        ...

    def children(self, x: object, /) -> tuple[Sequence[Tree], Callable[[Sequence[Tree]], Tree]] | None:
        """Split one level of the framework's own pytrees. Return None if x is not a pytree."""
        ...

    def adopt(self, x: object, /, dtype: DType | None = None) -> Any:
        """Return x as an array of this framework, if the framework computes with it as with one of its own.

        Any other x is returned as it is. JAX adopts NumPy arrays beside its own, and NumPy its object arrays of arrays
        that are being differentiated; torch adopts nothing. With `dtype`, x is an array of the framework, and gets this
        wider dtype if the framework promotes dtypes by itself.
        """
        ...

    def constant(self, x: Array, /) -> Array:
        """Return x as a constant: no derivative passes through it."""
        ...

    def assert_constant(self, x: Array, message: str, /) -> None:
        """Raise `CapturedError(message)` if x carries a derivative, now or when its program is differentiated later."""
        ...

    def compiler(self) -> Compiler | None:
        """Return how to compile a call of a layer. Return None where operations run at once, or are traced already."""
        ...

    def fixed(self, fn: Callable[..., Any], /) -> Callable[..., Any]:
        """Return fn as it is at its first call, or earlier: a derivative is computed later than the value.

        `identity` of the result is fn itself, unless the result is fn.
        """
        ...

    def once(self, fn: Callable[..., Any], /) -> Callable[..., Any]:
        """Return fn as a function that a program, if one is being recorded, holds once for all its calls.

        Return fn itself where operations run at once. `identity` is as for `fixed`.
        """
        ...

    def lifted(self, fn: Callable[..., Any], /, *args: Tree) -> Lifted:
        """Return fn as a function of the arrays that it captures and that may be differentiated.

        They are those that it uses at these arguments, whose arrays are constants: of a closure, of a global variable,
        or of an object that fn holds, such as a module.
        """
        ...

    def guard(self, fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
        """Wrap fn so that the framework does not change it, for example by compiling it.

        With `exact`, operations keep the dtype of their arrays, and numbers that are not finite give no warning.
        """
        ...

    def asarray(self, x: object, *, dtype: DType | None = None, device: Device | None = None) -> Array:
        """Make an array. A dtype that the framework does not have is an error, and is never silently narrowed."""
        ...

    def to_numpy(self, x: Array, /) -> Any:
        """Copy a concrete array to a NumPy array."""
        ...

    def namespace(self) -> Namespace:
        """Return the array API namespace. Its functions take all that `owns` calls an array of this framework."""
        ...

    def info(self) -> BackendInfo:
        """Return the version and the devices of the framework, and the reason if it cannot compute here."""
        ...
