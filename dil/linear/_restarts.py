"""Solve by passes of a recurrence, each of which starts from the true residual. Several linear solvers use this."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

from dil._base.arrays import array_namespace, eps, logical_not, select
from dil._base.operator import Operator
from dil._base.options import LinearOptions
from dil._base.rows import Rows, entrywise
from dil._base.scalars import Scalar, Scalars, count, count_from_zero, either, greater, is_finite
from dil._base.solution import Solution
from dil._base.status import Status, first_of
from dil._base.typing import Array, Loop
from dil._frameworks.iteration import choose, repeat
from dil._frameworks.leaving import LEAVING, Part, Run, iterate
from dil._frameworks.loops import Loops, with_loop
from dil.linear._backward_error import is_rounding
from dil.linear._part import matrix_of_part
from dil.linear._right_hand_side import backend_of_system
from dil.linear._tolerance import Tolerance, tolerance_of_call

S = TypeVar("S", bound=tuple[Any, ...])
G = TypeVar("G", bound=tuple[Any, ...])

TRIAL_SHARE = 2 / 7
"""The share of the digits that a trial must reach. On the systems of benchmarks/linear.py, trials that reached less
took more products than a dense solve."""

Step: TypeAlias = "Callable[[Task, G, S], S]"
Active: TypeAlias = "Callable[[Task, G, S], Scalar]"
Measure: TypeAlias = Callable[[Array, Array], Scalar]
"""A function that returns the error of x from x and b - A x."""


@dataclass(frozen=True)
class Task:
    """A batch of systems A x = b, each b of norm one, and the options of the iteration."""

    A: Operator
    b: Array
    damping: float
    rtol: Scalar
    max_iter: int
    loops: Loops
    scalars: Scalars
    measure: Measure | None = None
    """The error of x if it is not ||b - A x||. It costs one product."""
    trial: int | None = None
    """The number of steps after which a problem whose error is above rtol ** TRIAL_SHARE ends."""

    @property
    def check_products(self) -> int:
        """The number of products that a check of the true residual costs."""
        return 1 if self.measure is None else 2

    def error(self, x: Array, r: Array) -> Scalar:
        """Return the error of x from x and r = b - A x."""
        return self.scalars.norm(r) if self.measure is None else self.measure(x, r)

    def run(self, steps_per_read: int = 1, price: float = 0.0) -> Run:
        """Return how a loop over the systems runs."""
        return Run(tuple(self.b.shape[:-1]), self.b.shape[-1], self.loops, steps_per_read, price)

    def part(self, rows: Rows) -> Task | None:
        """Return some systems of the batch, or None if they cannot be solved alone. They have no measure."""
        A = matrix_of_part(self.A, rows, self.b)
        return None if A is None else replace(self, A=A, b=rows.take(self.b), rtol=rows.take(self.rtol), measure=None)

    def iterate(self, given: G, step: Step[G, S], active: Active[G, S], first: S) -> S:
        """Run a recurrence on the active problems. The other problems keep their state.

        `step(task, given, state)` and `active(task, given, state)` get the part of the arrays of `given`,
        (*batch, ...), that belongs to the problems in the loop.
        """
        run = self.run(self.loops.steps_per_read(self.b), LEAVING)
        return iterate(
            (self, given),
            lambda now, state: step(*now, state),
            lambda now, state: active(*now, state),
            first,
            run=run,
            part=_part,
        )

    @property
    def eps(self) -> float:
        """The machine epsilon of the dtype."""
        return eps(array_namespace(self.b), self.b.dtype)


class Progress(NamedTuple):
    """The state between two passes. Vectors: (*batch, n)."""

    x: Array
    """The x of least error so far."""
    r: Array
    """The true residual b - A x, not that of a recurrence."""
    error: Scalar
    """The quantity that must fall to rtol: ||r||, or `measure(x, r)` if the task has a measure."""
    active: Scalar
    steps: Scalar
    products: Scalar
    passes: Scalar
    passes_without_gain: Scalar
    """The number of passes since the last one that lowered the error enough."""
    singular: Scalar
    finite: Scalar
    norm_A: Scalar
    """The largest estimate of the norm of A so far."""


class Pass(NamedTuple):
    """The result of a recurrence. Inactive problems are unchanged. Counts include earlier passes."""

    x: Array
    steps: Scalar
    products: Scalar
    singular: Scalar
    finite: Scalar
    norm_A: Scalar
    """A lower estimate of the norm of A."""


def _part(now: tuple[Task, G], rows: Rows, _: S) -> Part[tuple[Task, G], S] | None:
    task = now[0].part(rows)
    return None if task is None else Part((task, entrywise(rows.take, len(rows.batch), now[1])), lambda _: True)


Recurrence: TypeAlias = Callable[[Task, Progress], Pass]


def restarted(
    recurrence: Recurrence,
    options: LinearOptions,
    A: Operator,
    b: Array,
    *,
    loop: Loop | None,
    x0: Array | None,
    rtol: Tolerance = None,
    measure: Callable[[Task], Measure] | None = None,
    gain: float = 0.5,
    patience: int = 1,
    trial: int | None = None,
) -> Solution:
    """Solve A x = b, b: (*batch, n), by passes of a recurrence. The true residual decides when each problem ends.

    A pass gains if it multiplies the error by `gain` or less. A problem ends after `patience` passes without gain.
    """
    start = prepared(options, A, b, loop=loop, x0=x0, rtol=rtol, measure=measure, trial=trial)

    def advance(task: Task, s: Progress) -> Progress:
        return updated(task, s, recurrence(task, s), gain, patience)

    def part(task: Task, rows: Rows, _: Progress) -> Part[Task, Progress] | None:
        alone = None if task.measure is not None else task.part(rows)
        return None if alone is None else Part(alone, lambda _: True)

    last = iterate(start.task, advance, lambda _, s: s.active, start.first, run=start.task.run(), part=part)
    return start.solution(last)


class Prepared(NamedTuple):
    """Systems whose right-hand sides have norm one, and the state before the first pass."""

    task: Task
    first: Progress
    unit: Scalar
    """The norm of the right-hand side that was given, or one."""
    finite_b: Scalar

    def solution(self, last: Progress) -> Solution:
        """Return the solution of the systems that were given."""
        return _solution(self.task, last, self.unit, self.finite_b)


def prepared(
    options: LinearOptions,
    A: Operator,
    b: Array,
    *,
    loop: Loop | None,
    x0: Array | None = None,
    rtol: Tolerance = None,
    measure: Callable[[Task], Measure] | None = None,
    trial: int | None = None,
) -> Prepared:
    """Return the systems A x = b, b: (*batch, n), with the scale of b taken out. `rtol` is that of the call."""
    name = f"dil.linear.{type(options).__name__}"
    backend = backend_of_system(b, name, x0)
    xp, n = array_namespace(b), b.shape[-1]
    scalars = Scalars(backend.loops.number, backend.loops.numbers, b.ndim == 1)
    finite_b = scalars.read(xp.all(xp.isfinite(b), axis=-1))
    b = either(finite_b, lambda: b, lambda: xp.zeros_like(b))
    size = scalars.norm(b)  # squares of tiny and huge entries would underflow or overflow
    nonzero = size > 0
    unit = select(nonzero, size, 1.0)
    task = Task(
        A,
        b / unit,
        options.damping,
        tolerance_of_call(rtol, options.rtol, b, backend),
        max(100, 10 * n) if options.max_iter is None else options.max_iter,
        with_loop(backend.loops, loop),
        scalars,
        trial=trial,
    )
    if measure is not None:
        task = replace(task, measure=measure(task))
    first = _from_zero(task, nonzero, size / unit, finite_b)
    if x0 is not None:
        first = _from_guess(task, first, _scaled_guess(scalars, x0, unit))

    return Prepared(task, first, unit, finite_b)


def _from_zero(task: Task, nonzero: Scalar, error: Scalar, finite_b: Scalar) -> Progress:
    """Return the state at x = 0, which is the solution where b = 0. The error there is one, or zero where b = 0."""
    no_steps = count_from_zero(error)
    products = no_steps if task.measure is None else count(nonzero)  # the measure costs one product with b
    zero, norm_A = array_namespace(task.b).zeros_like(task.b), 0.0 * error
    counts, singular = (no_steps, products, no_steps, no_steps), logical_not(finite_b)
    return Progress(zero, task.b, error, nonzero, *counts, singular, finite_b, norm_A)


def _scaled_guess(scalars: Scalars, x0: Array, unit: Scalar) -> Array:
    """Return x0 / unit, or zero for a problem in which x0 / unit is not finite."""
    xp = array_namespace(x0)
    limit = select(unit < 1, unit, 1.0) * float(xp.finfo(x0.dtype).max)
    # NaN and infinity are not below the limit
    fits = scalars.read(xp.all(xp.abs(x0) < limit, axis=-1))
    return either(fits, lambda: x0, lambda: xp.zeros_like(x0)) / unit  # type: ignore[no-any-return]


def _from_guess(task: Task, s: Progress, x0: Array) -> Progress:
    """Return the state at x0, or at x = 0 for a problem in which the error at x0 is larger."""

    def at_guess(s: Progress) -> Progress:
        r = task.b - task.A(x0)
        error = task.error(x0, r)
        use_guess = s.active & (error <= 1)  # False for NaN
        error = select(use_guess, error, s.error)
        return s._replace(
            x=select(use_guess, x0, s.x),
            r=select(use_guess, r, s.r),
            error=error,
            active=s.active & ((error > task.rtol) | logical_not(use_guess)),
            products=s.products + task.check_products * count(s.active),
        )

    # a loop that runs once, so that a backend treats overflow here as in any other loop
    return repeat(at_guess, lambda s: s.active & (s.products < task.check_products), s, loops=task.loops)


def updated(task: Task, s: Progress, new: Pass, gain: float, patience: int) -> Progress:
    """Return the state after a pass: keep the x of lower error, and decide by the true residuals which problems end."""
    r = task.b - task.A(new.x)
    error = task.error(new.x, r)
    # if x is so large that b is below the rounding of A x, the residual means nothing
    norm_A = greater(new.norm_A, s.norm_A)
    norm_x = task.scalars.norm(new.x)
    below_rounding = task.eps * norm_A * norm_x > 0.1
    better = (error < s.error) & logical_not(below_rounding)  # False for NaN
    gained = better & (error <= gain * s.error)
    passes_without_gain = select(gained, 0, s.passes_without_gain + 1)
    finite = new.finite & is_finite(error)
    best_error = select(better, error, s.error)
    # another pass would gain nothing
    rounded = logical_not(gained) & _is_rounded(task, best_error, norm_A, norm_x)
    active = finite & (best_error > task.rtol) & (passes_without_gain < patience) & (new.steps < task.max_iter)
    active = active & logical_not(rounded)
    if task.trial is not None:
        active = active & ((new.steps < task.trial) | (best_error <= task.rtol**TRIAL_SHARE))
    return Progress(
        choose(better, new.x, s.x, task.loops),
        choose(better, r, s.r, task.loops),
        best_error,
        active,
        new.steps,
        new.products + task.check_products,
        s.passes + 1,
        passes_without_gain,
        new.singular | below_rounding,
        finite,
        norm_A,
    )


def _is_rounded(task: Task, error: Scalar, norm_A: Scalar, norm_x: Scalar) -> Scalar:
    """Return whether the residual is rounding. A measure is no residual."""
    return False if task.measure is not None else is_rounding(error, norm_A, norm_x, 1.0, task.eps)


def _solution(task: Task, s: Progress, unit: Scalar, finite_b: Scalar) -> Solution:
    """Return the unscaled x and the status of each problem. The first condition that holds decides."""
    xp, scalars = array_namespace(s.x), task.scalars
    x_max = float(xp.finfo(s.x.dtype).max) / greater(unit, 1.0)
    fits = scalars.read(xp.all(xp.abs(s.x) <= x_max, axis=-1))
    x = either(fits, lambda: s.x, lambda: xp.zeros_like(s.x)) * unit
    meaningful = fits & finite_b
    rounded = _is_rounded(task, s.error, s.norm_A, scalars.norm(s.x))
    reasons = [
        (logical_not(meaningful), Status.NON_FINITE),
        (s.error <= task.rtol, Status.CONVERGED),
        (logical_not(s.finite), Status.NON_FINITE),
        (s.singular, Status.SINGULAR),
        (rounded, Status.CONVERGED),
        (s.steps >= task.max_iter, Status.MAX_ITER),
    ]
    code, steps, products = (
        scalars.array(k, x, xp.int32) for k in (first_of(reasons, Status.STAGNATED), s.steps, s.products)
    )
    error = scalars.array(select(meaningful, s.error, math.nan), x, x.dtype)
    return Solution(x, code, steps, error, {"products": products})
