"""A linear solver that starts from the last solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from dil._base.arrays import array_namespace, dot, full, nonzero_max_abs
from dil._base.errors import OptionError
from dil._base.operator import Operator, as_operator
from dil._base.options import declares
from dil._base.solution import Solution
from dil._base.typing import Array, Loop
from dil.linear._kept import Kept
from dil.linear._right_hand_side import backend_of_system
from dil.linear._tolerance import Tolerance


@dataclass(frozen=True, eq=False)  # equality is identity, because each instance remembers its own solutions
class WarmStart:
    """Start a solver from its last solution, for calls that change little from one to the next, as in training.

    Parameters
    ----------
    solver : callable
        A linear solver that takes `x0`, such as `dil.linear.CG`.

    Notes
    -----
    An instance keeps one solution for each framework, device, shape and dtype of b, so use one instance for each layer.
    The start of each problem is scaled to the least residual, x0 <A x0, b> / <A x0, A x0>, so only the direction of b
    matters. The scaling costs one product. If the start does not help, the solver starts from zero. The solution is the
    same to the tolerance of the solver. Its digits below the tolerance depend on earlier calls. `forget()` deletes the
    solutions.

    Raises
    ------
    OptionError
        If `solver` is not a linear solver, or takes no start x0.

    Examples
    --------
    >>> import numpy as np, dil
    >>> H = np.asarray([[4.0, 1.0], [1.0, 3.0]])
    >>> solver = dil.linear.WarmStart(dil.linear.CG())
    >>> [int(solver(lambda p: p @ H, scale * np.asarray([1.0, 2.0])).iterations) for scale in (1.0, -7.0)]
    [2, 0]
    """

    solver: Callable[..., Solution]
    _solutions: Kept = field(default_factory=Kept, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.solver) or isinstance(self.solver, type):
            hint = f"; did you mean {self.solver.__name__}()?" if isinstance(self.solver, type) else ""
            message = f"solver={self.solver!r}; expected a linear solver that takes x0, such as CG(){hint}"
            raise OptionError(message)
        if "x0" not in signature(self.solver).parameters or not getattr(self.solver, "_takes_start", True):
            message = f"solver={self.solver!r} takes no start x0=; expected a linear solver that takes x0, such as CG()"
            raise OptionError(message)

    @property
    def _takes_tolerance(self) -> bool:
        """Whether its call takes a tolerance `rtol`: where `solver` does."""
        return declares(self.solver, "_takes_tolerance")

    def __call__(self, A: Operator, b: Array, /, *, loop: Loop | None = None, rtol: Tolerance = None) -> Solution:
        """Solve each problem of a batch; b and the value: (*batch, n), float; status: batch.

        `rtol` is the tolerance of this call, which `solver` takes: a number, or one for each problem, (*batch, 1).

        Raises
        ------
        OptionError
            If `solver` takes no tolerance in a call.
        """
        backend = backend_of_system(b, "dil.linear.WarmStart")
        if rtol is not None and not self._takes_tolerance:
            message = f"solver={self.solver!r} takes no tolerance rtol= in a call; set it in the solver"
            raise OptionError(message)
        options: dict[str, Any] = {} if rtol is None else {"rtol": rtol}
        loop = backend.loops.while_loop if loop is None else loop
        (start,), absent = self._solutions.read(backend, b, lambda: (b,))
        if absent:
            solution, extra_products = self.solver(A, b, loop=loop, **options), 0
        else:
            x0 = _scaled(as_operator(A), start, b)
            solution, extra_products = self.solver(A, b, loop=loop, x0=x0, **options), 1
        extra = dict(solution.extra or {})
        if "products" in extra:
            extra["products"] = extra["products"] + extra_products
        return solution._replace(value=self._solutions.write(backend, b, solution.value), extra=extra)

    @property
    def uses_pairs(self) -> bool:
        """Whether the layer must keep the pairs of its forward solver. `solver` decides."""
        return getattr(self.solver, "uses_pairs", False)

    def forget(self) -> None:
        """Forget every solution."""
        self._solutions.clear()


def _scaled(A: Operator, x: Array, b: Array) -> Array:
    """Return the multiple of x that has the least residual, for each problem."""
    xp, size_x = array_namespace(b), nonzero_max_abs(x)
    finite = xp.isfinite(size_x) & xp.isfinite(nonzero_max_abs(b))
    x = xp.where(finite, x, full(x, 0.0)) / xp.where(finite, size_x, full(size_x, 1.0))
    b = xp.where(finite, b, full(b, 0.0))
    Ax = A(x)
    size_b, size_Ax = nonzero_max_abs(b), nonzero_max_abs(Ax)
    b, Ax = b / size_b, Ax / size_Ax
    squared = dot(Ax, Ax)
    factor = xp.where(squared > 0, dot(Ax, b) / xp.where(squared > 0, squared, full(squared, 1.0)), 0.0 * squared)
    return x * (factor * size_b / size_Ax)  # type: ignore[no-any-return]
