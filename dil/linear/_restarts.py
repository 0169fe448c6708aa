"""Solve by passes of a recurrence, each of which starts from the true residual. Several linear solvers use this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

from dil._base.arrays import array_namespace, eps, full, norm
from dil._base.operator import Operator
from dil._base.options import LinearOptions
from dil._base.solution import Solution
from dil._base.status import Status, first_of
from dil._base.typing import Array, Loop
from dil._frameworks.iteration import iterate
from dil._frameworks.loops import Loops, with_loop
from dil.linear._right_hand_side import backend_of_system

S = TypeVar("S", bound=tuple[Any, ...])

TRIAL_SHARE = 2 / 7
"""The share of the digits that a trial must reach. On the systems of benchmarks/linear.py, trials that reached less
took more products than a dense solve."""

Measure: TypeAlias = Callable[[Array, Array], Array]
"""A function that returns the error of x, (*batch, 1), from x and b - A x."""


@dataclass(frozen=True)
class Task:
    """A batch of systems A x = b, each b of norm one, and the options of the iteration."""

    A: Operator
    b: Array
    damping: float
    rtol: float
    max_iter: int
    loops: Loops
    measure: Measure | None = None
    """The error of x if it is not ||b - A x||. It costs one product."""
    trial: int | None = None
    """The number of steps after which a problem whose error is above rtol ** TRIAL_SHARE ends."""

    @property
    def check_products(self) -> int:
        """The number of products that a check of the true residual costs."""
        return 1 if self.measure is None else 2

    def error(self, x: Array, r: Array) -> Array:
        """Return the error of x, (*batch, 1), from x and r = b - A x."""
        return norm(r) if self.measure is None else self.measure(x, r)

    def iterate(self, step: Callable[[S], S], active: Callable[[S], Array], first: S) -> S:
        """Run a recurrence on the active problems. The other problems keep their state."""
        steps_per_read = self.loops.steps_per_read(self.b)
        return iterate(step, active, first, batch_ndim=self.b.ndim - 1, loops=self.loops, steps_per_read=steps_per_read)

    @property
    def eps(self) -> float:
        """The machine epsilon of the dtype."""
        return eps(array_namespace(self.b), self.b.dtype)


class Progress(NamedTuple):
    """The state between two passes. Vectors: (*batch, n); scalars: (*batch, 1)."""

    x: Array
    """The x of least error so far."""
    r: Array
    """The true residual b - A x, not that of a recurrence."""
    error: Array
    """The quantity that must fall to rtol: ||r||, or `measure(x, r)` if the task has a measure."""
    active: Array
    steps: Array
    products: Array
    passes: Array
    passes_without_gain: Array
    """The number of passes since the last one that lowered the error enough."""
    singular: Array
    finite: Array


class Pass(NamedTuple):
    """The result of a recurrence. Inactive problems are unchanged. Counts include earlier passes."""

    x: Array
    steps: Array
    products: Array
    singular: Array
    finite: Array
    norm_A: Array
    """A lower estimate of the norm of A."""


Recurrence: TypeAlias = Callable[[Task, Progress], Pass]


def restarted(
    recurrence: Recurrence,
    options: LinearOptions,
    A: Operator,
    b: Array,
    *,
    loop: Loop | None,
    x0: Array | None,
    measure: Callable[[Task], Measure] | None = None,
    gain: float = 0.5,
    patience: int = 1,
    trial: int | None = None,
) -> Solution:
    """Solve A x = b, b: (*batch, n), by passes of a recurrence. The true residual decides when each problem ends.

    A pass gains if it multiplies the error by `gain` or less. A problem ends after `patience` passes without gain.
    """
    name = f"dil.linear.{type(options).__name__}"
    backend = backend_of_system(b, name, x0)
    xp, n = array_namespace(b), b.shape[-1]
    finite_b = xp.all(xp.isfinite(b), axis=-1, keepdims=True)
    b = xp.where(finite_b, b, xp.zeros_like(b))
    size = norm(b)  # (*batch, 1); squares of tiny and huge entries would underflow or overflow
    unit = xp.where(size > 0, size, full(size, 1.0))
    task = Task(
        A,
        b / unit,
        options.damping,
        eps(xp, b.dtype) ** 0.75 if options.rtol is None else options.rtol,
        max(100, 10 * n) if options.max_iter is None else options.max_iter,
        with_loop(backend.loops, loop),
        trial=trial,
    )
    if measure is not None:
        task = replace(task, measure=measure(task))
    first = _from_zero(task, size > 0, finite_b)
    if x0 is not None:
        first = _from_guess(task, first, _scaled_guess(x0, b, unit))

    def advance(s: Progress) -> Progress:
        return _update(task, s, recurrence(task, s), gain, patience)

    last = iterate(advance, lambda s: s.active, first, batch_ndim=b.ndim - 1, loops=task.loops)
    return _solution(task, last, unit, finite_b)


def _from_zero(task: Task, nonzero: Array, finite_b: Array) -> Progress:
    """Return the state at x = 0, which is the solution where b = 0."""
    xp, b = array_namespace(task.b), task.b
    no_steps = xp.zeros_like(nonzero, dtype=xp.int32)
    error = xp.astype(nonzero, b.dtype)
    # the measure costs one product with b
    products = no_steps + xp.astype(nonzero, no_steps.dtype) * (task.check_products - 1)
    return Progress(xp.zeros_like(b), b, error, nonzero, no_steps, products, no_steps, no_steps, ~finite_b, finite_b)


def _scaled_guess(x0: Array, b: Array, unit: Array) -> Array:
    """Return x0 / unit, or zero for a problem in which x0 / unit is not finite."""
    xp = array_namespace(b)
    finite = xp.isfinite(x0)
    magnitude = xp.abs(xp.where(finite, x0, xp.zeros_like(x0)))
    limit = xp.where(unit < 1, unit, full(unit, 1.0)) * float(xp.finfo(b.dtype).max)
    fits = xp.all(finite & (magnitude < limit), axis=-1, keepdims=True)
    return xp.where(fits, x0, xp.zeros_like(x0)) / unit  # type: ignore[no-any-return]


def _from_guess(task: Task, s: Progress, x0: Array) -> Progress:
    """Return the state at x0, or at x = 0 for a problem in which the error at x0 is larger."""
    xp = array_namespace(x0)

    def at_guess(s: Progress) -> Progress:
        r = task.b - task.A(x0)
        error = task.error(x0, r)
        use_guess = s.active & (error <= 1)  # False for NaN
        error = xp.where(use_guess, error, s.error)
        return s._replace(
            x=xp.where(use_guess, x0, s.x),
            r=xp.where(use_guess, r, s.r),
            error=error,
            active=s.active & ((error > task.rtol) | ~use_guess),
            products=s.products + task.check_products * xp.astype(s.active, xp.int32),
        )

    # a loop that runs once, so that a backend treats overflow here as in any other loop
    return task.loops.while_loop(lambda s: xp.any(s.active & (s.products < task.check_products)), at_guess, s)  # type: ignore[no-any-return]


def _update(task: Task, s: Progress, new: Pass, gain: float, patience: int) -> Progress:
    """Return the state after a pass: keep the x of lower error, and decide by the true residuals which problems end."""
    xp = array_namespace(new.x)
    r = task.b - task.A(new.x)
    error = task.error(new.x, r)
    # if x is so large that b is below the rounding of A x, the residual means nothing
    below_rounding = task.eps * new.norm_A * norm(new.x) > 0.1
    better = (error < s.error) & ~below_rounding  # False for NaN
    gained = better & (error <= gain * s.error)
    passes_without_gain = xp.where(gained, xp.zeros_like(s.passes_without_gain), s.passes_without_gain + 1)
    finite = new.finite & xp.isfinite(error)
    best_error = xp.where(better, error, s.error)
    active = finite & (best_error > task.rtol) & (passes_without_gain < patience) & (new.steps < task.max_iter)
    if task.trial is not None:
        active = active & ((new.steps < task.trial) | (best_error <= task.rtol**TRIAL_SHARE))
    return Progress(
        xp.where(better, new.x, s.x),
        xp.where(better, r, s.r),
        best_error,
        active,
        new.steps,
        new.products + task.check_products,
        s.passes + 1,
        passes_without_gain,
        new.singular | below_rounding,
        finite,
    )


def _solution(task: Task, s: Progress, unit: Array, finite_b: Array) -> Solution:
    """Return the unscaled x and the status of each problem. The first condition that holds decides."""
    xp = array_namespace(s.x)
    x_max = float(xp.finfo(s.x.dtype).max) / xp.where(unit > 1, unit, full(unit, 1.0))
    fits = xp.all(xp.abs(s.x) <= x_max, axis=-1, keepdims=True)
    x = xp.where(fits, s.x, xp.zeros_like(s.x)) * unit
    finite = fits & s.finite & finite_b
    solved = s.error <= task.rtol
    reasons = [
        (~(fits & finite_b), Status.NON_FINITE),
        (solved, Status.CONVERGED),
        (~finite, Status.NON_FINITE),
        (s.singular, Status.SINGULAR),
        (s.steps >= task.max_iter, Status.MAX_ITER),
    ]
    code = first_of(reasons, Status.STAGNATED)
    error = xp.where(fits & finite_b, s.error, full(s.error, float("nan")))
    return Solution(x, code[..., 0], s.steps[..., 0], error[..., 0], {"products": s.products[..., 0]})
