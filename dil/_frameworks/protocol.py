"""What a backend is: a module that differentiates, loops and registers derivatives for one framework.

Everything that concerns arrays belongs to the array API namespace; only what a framework alone can do is asked of
a backend. Backends see flat tuples of arrays: trees are taken apart and put together again in the core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from dil._base.errors import UnsupportedFunctionError
from dil._base.operator import Operator
from dil._base.typing import Array, Arrays, Device, DType, Namespace, Tree


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


class Backend(Protocol):
    """The contract of a backend module; `dil.testing.LAWS` check that a module keeps it."""

    NATIVE: str
    """Root module of the framework's array types, such as "torch"."""

    DENSE: int
    """Up to this number of unknowns a dense solve is the fastest as a rule; measured by benchmarks/linear.py."""

    DENSE_GENERAL: int
    """The same where the matrix is not symmetric, or proves indefinite, and where a step of an iteration costs more."""

    TRIAL: float
    """For each unknown, the steps in which CG has to prove fast, or a dense solve is the faster; measured there too."""

    def owns(self, x: object, /) -> bool:
        """Whether x is an array of this framework: also a tracer, a box or a subclass."""
        ...

    def children(self, x: object, /) -> tuple[Sequence[Tree], Callable[[Sequence[Tree]], Tree]] | None:
        """Take apart one level of what the framework itself calls a pytree; None if x is not one."""
        ...

    def vjp(self, fn: Callable[..., Arrays], /, *primals: Array) -> tuple[Arrays, Pull]:
        """Evaluate fn at float arrays; the pull differentiates again."""
        ...

    def while_loop(self, cond: Callable[[Any], Array], body: Callable[[Any], Any], state: Any, /) -> Any:
        """Run `while cond(state): state = body(state)`, with no host transfer other than of the condition."""
        ...

    def run_if(self, condition: Array, fn: Callable[[Any], Any], state: Any, /) -> Any:
        """Return fn of the state if the condition, shape (), holds, else the state, at the cost of that alone."""
        ...

    def scan(
        self, step: Callable[[Arrays, Arrays], tuple[Arrays, Arrays]], carry: Arrays, xs: Arrays, /
    ) -> tuple[Arrays, Arrays]:
        """Run `carry, out = step(carry, x)` for the rows x of `xs`, one or more; return the last carry, outs stacked.

        Differentiable by the operations of its steps, in both modes.
        """
        ...

    def implicit(self, solve: Callable[..., Arrays], rule: Rule, /) -> Callable[..., Arrays]:
        """Return `solve` with its derivative given by `rule` instead of by its operations."""
        ...

    def linear_solve(self, system: LinearSystem, b: Array, /) -> Array:
        """Solve a linear system so that the solution is differentiable in b and in the parameters."""
        ...

    def map_rows(self, fn: Callable[[Array], Array], rows: Array, /) -> Array:
        """Return fn of each of the arrays stacked in `rows`, (k, ...), all at once where the framework can."""
        ...

    def cholesky_solve(self, A: Array, b: Array, /) -> Array:
        """Solve symmetric systems A x = b, (*batch, n, n) and (*batch, n, k); NaN where A is not positive definite."""
        ...

    def lu_solve(self, A: Array, b: Array, /) -> Array:
        """Solve systems A x = b, (*batch, n, n) and (*batch, n, k); not finite where A is singular."""
        ...

    def constant(self, x: Array, /) -> Array:
        """Return x cut off from every derivative."""
        ...

    def assert_constant(self, x: Array, message: str, /) -> None:
        """Raise `CapturedError(message)` if x carries a derivative: now, or when its program is differentiated."""
        ...

    def tell(self, listener: Callable[[Any], None], status: Array, value: Array) -> Array:
        """Call `listener` with the statuses, as NumPy's, when the program runs, if one is not zero; return value."""
        ...

    def observe(self, listener: Callable[..., None], *arrays: Array) -> None:
        """Call `listener` with the arrays, as NumPy's: now, or each time that the program gets here."""
        ...

    def observing(self) -> AbstractContextManager[object]:
        """Return a context in which programs are compiled anew, and whose end waits for all that they observe."""
        ...

    def shield(self, fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
        """Return fn, unseen by compilers of Python code, and in the dtype of its arrays if it is to be exact."""
        ...

    def number(self, x: Array, /) -> Any:
        """Return a 0-D array as a number of Python where reading it costs nothing; else x itself."""
        ...

    def on_host(self, fn: Callable[..., Arrays], like: Arrays, *arrays: Array) -> Arrays:
        """Call fn with concrete arrays, outside any trace; its results have the shapes and dtypes of `like`."""
        ...

    def to_numpy(self, x: Array, /) -> Any:
        """Copy a concrete array to a NumPy array."""
        ...

    def namespace(self) -> Namespace:
        """Return the framework's array API namespace."""
        ...

    def devices(self) -> list[str]:
        """Name the devices that `asarray` accepts here."""
        ...

    def asarray(self, x: object, *, dtype: DType | None = None, device: Device | None = None) -> Array:
        """Make an array; a dtype that cannot be had is an error, never a silent narrowing."""
        ...

    def unusable(self) -> str | None:
        """Return why the framework cannot compute here (no GPU, say) and what to do, or None."""
        ...
