"""A linear solver that starts from its last solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from dil._base.arrays import array_namespace, device, dot, full, nonzero_max_abs
from dil._base.errors import OptionError
from dil._base.operator import Operator, as_operator
from dil._base.solution import Solution
from dil._base.typing import Array, Arrays, Loop
from dil._frameworks.protocol import Backend
from dil.linear._right_hand_side import backend_of_system


@dataclass(frozen=True, eq=False)  # by identity: what it remembers is its own
class WarmStart:
    """Start a solver from its last solution: for calls that change little from one to the next, as in training.

    Parameters
    ----------
    solver : callable
        A linear solver that takes `x0`, such as `dil.linear.CG`.

    Notes
    -----
    One solution is kept for each framework, device, shape and dtype of b: take one instance for each layer. It is
    scaled to leave the least residual, per problem, by one product more: x0 <A x0, b> / <A x0, A x0>, so that only the
    direction of b matters. Where it is of no use the solver starts from zero. The answer is the same to the solver's
    tolerance; its digits below that depend on the calls before. `forget()` forgets them.

    Raises
    ------
    OptionError
        If the solver is not one.

    Examples
    --------
    >>> import numpy as np, dil
    >>> H = np.asarray([[4.0, 1.0], [1.0, 3.0]])
    >>> solver = dil.linear.WarmStart(dil.linear.CG())
    >>> [int(solver(lambda p: p @ H, scale * np.asarray([1.0, 2.0])).iterations) for scale in (1.0, -7.0)]
    [2, 0]
    """

    solver: Callable[..., Solution]
    _kept: dict[Any, Array] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.solver) or isinstance(self.solver, type):
            hint = f"; did you mean {self.solver.__name__}()?" if isinstance(self.solver, type) else ""
            message = f"solver={self.solver!r}; expected a linear solver that takes x0, such as CG(){hint}"
            raise OptionError(message)
        if "x0" not in signature(self.solver).parameters:
            message = f"solver={self.solver!r} takes no start x0=, so there is nothing to warm; take CG(), say"
            raise OptionError(message)

    def __call__(self, A: Operator, b: Array, /, *, loop: Loop | None = None) -> Solution:
        """Solve for each problem of a batch; b and the value: (*batch, n), float."""
        backend = backend_of_system(b, "dil.linear.WarmStart")
        loop = backend.loops.while_loop if loop is None else loop
        key = (backend.NATIVE, tuple(b.shape), str(b.dtype), str(device(b)))
        start, absent = self._read(backend, key, b)
        if absent:
            solution, spent = self.solver(A, b, loop=loop), 0
        else:
            solution, spent = self.solver(A, b, loop=loop, x0=_scaled(as_operator(A), start, b)), 1
        extra = dict(solution.extra or {})
        if "products" in extra:
            extra["products"] = extra["products"] + spent
        return solution._replace(value=self._write(backend, key, solution.value), extra=extra)

    @property
    def uses_pairs(self) -> bool:
        """Whether the layer has to keep the pairs of its forward solver, as the solver within says."""
        return getattr(self.solver, "uses_pairs", False)

    def forget(self) -> None:
        """Forget every solution."""
        self._kept.clear()

    # Under a compiler the last solution is read and written by pure callbacks, though neither is pure: the compiler
    # may run them twice, in another order or not at all. It does no harm, since any start leads to the same answer.
    # Reading takes b and writing returns x for the same reason: what depends on nothing is run when the program is
    # built, and what nothing depends on is dropped. One entry of a dict is read and written at once, whatever the
    # thread.

    def _read(self, backend: Backend, key: Any, b: Array) -> tuple[Array, bool]:
        """Return the last solution, or b if there is none, and whether it is known that there is none."""
        absent: dict[str, bool] = {}

        def read(b: Array) -> Arrays:
            kept = self._kept.get(key)
            absent["now"] = kept is None
            return (b if kept is None else kept,)

        (start,) = backend.loops.on_host(read, (b,), backend.constant(b))
        return start, absent.get("now", False)

    def _write(self, backend: Backend, key: Any, x: Array) -> Array:
        """Keep x, and return it."""

        def write(x: Array) -> Arrays:
            self._kept[key] = x
            return (x,)

        return backend.loops.on_host(write, (x,), backend.constant(x))[0]


def _scaled(A: Operator, x: Array, b: Array) -> Array:
    """Return the multiple of x with the least residual, each problem by itself."""
    xp, size = array_namespace(b), nonzero_max_abs(x)
    usable = xp.isfinite(size) & xp.isfinite(nonzero_max_abs(b))
    x = xp.where(usable, x, full(x, 0.0)) / xp.where(usable, size, full(size, 1.0))
    b = xp.where(usable, b, full(b, 0.0))
    Ax = A(x)
    top, large = nonzero_max_abs(b), nonzero_max_abs(Ax)
    b, Ax = b / top, Ax / large
    squared = dot(Ax, Ax)
    length = xp.where(squared > 0, dot(Ax, b) / xp.where(squared > 0, squared, full(squared, 1.0)), 0.0 * squared)
    return x * (length * top / large)  # type: ignore[no-any-return]
