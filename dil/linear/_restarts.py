"""Passes of a recurrence, each from the true residual that the last one left: what the linear solvers share."""

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

Measure: TypeAlias = Callable[[Array, Array], Array]
"""The error of x, (*batch, 1), from x and b - A x."""


@dataclass(frozen=True)
class Task:
    """A batch of systems A x = b, each b of norm one, and how to iterate."""

    A: Operator
    b: Array
    damping: float
    rtol: float
    max_iter: int
    loops: Loops
    measure: Measure | None = None
    """The error of x where it is not ||b - A x||; costs one product."""

    @property
    def check_products(self) -> int:
        """The number of products that a check of the true residual takes."""
        return 1 if self.measure is None else 2

    def error(self, x: Array, r: Array) -> Array:
        """Return the error of x, (*batch, 1), from x and r = b - A x."""
        return norm(r) if self.measure is None else self.measure(x, r)

    def iterate(self, step: Callable[[S], S], going: Callable[[S], Array], first: S) -> S:
        """Run a recurrence on the problems that are going; the others keep their state."""
        every = self.loops.steps_per_read(self.b)
        return iterate(step, going, first, batch_ndim=self.b.ndim - 1, loops=self.loops, steps_per_read=every)

    @property
    def eps(self) -> float:
        """The machine epsilon of the dtype."""
        return eps(array_namespace(self.b), self.b.dtype)


class Progress(NamedTuple):
    """The problems between two passes; vectors (*batch, n), the rest (*batch, 1)."""

    x: Array
    """The best point so far, by its true residual."""
    r: Array
    """b - A x, computed, not carried on by a recurrence."""
    error: Array
    """What is to fall to rtol: ||r||, where the solver has no measure of its own."""
    going: Array
    steps: Array
    products: Array
    passes: Array
    fruitless: Array
    """Passes since the last that brought the problem nearer."""
    singular: Array
    finite: Array


class Pass(NamedTuple):
    """What a recurrence made of the problems that were going, the others as they were; counts include earlier ones."""

    x: Array
    steps: Array
    products: Array
    singular: Array
    finite: Array
    size: Array
    """An estimate of the norm of A, at most the norm."""


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
) -> Solution:
    """Solve A x = b, (*batch, n), by passes of a recurrence, until the true residual of every problem tells the end.

    A problem goes on while a pass multiplies its error by `gain` or less, or for `patience` passes that do not.
    """
    name = f"dil.linear.{type(options).__name__}"
    backend = backend_of_system(b, name, x0)
    xp, n = array_namespace(b), b.shape[-1]
    usable = xp.all(xp.isfinite(b), axis=-1, keepdims=True)
    b = xp.where(usable, b, xp.zeros_like(b))
    size = norm(b)  # (*batch, 1); squares of tiny and huge entries would under- and overflow
    unit = xp.where(size > 0, size, full(size, 1.0))
    task = Task(
        A,
        b / unit,
        options.damping,
        eps(xp, b.dtype) ** 0.75 if options.rtol is None else options.rtol,
        max(100, 10 * n) if options.max_iter is None else options.max_iter,
        with_loop(backend.loops, loop),
    )
    if measure is not None:
        task = replace(task, measure=measure(task))
    first = _from_zero(task, size > 0, usable)
    if x0 is not None:
        first = _from_guess(task, first, _scaled_guess(x0, b, unit))

    def advance(s: Progress) -> Progress:
        return _judge(task, s, recurrence(task, s), gain, patience)

    last = iterate(advance, lambda s: s.going, first, batch_ndim=b.ndim - 1, loops=task.loops)
    return _solution(task, last, unit, usable)


def _from_zero(task: Task, some: Array, usable: Array) -> Progress:
    """Return the start at x = 0, which is the answer where b = 0."""
    xp, b = array_namespace(task.b), task.b
    none = xp.zeros_like(some, dtype=xp.int32)
    error = xp.astype(some, b.dtype)
    products = none + xp.astype(some, none.dtype) * (task.check_products - 1)  # the measure looks at b once
    return Progress(xp.zeros_like(b), b, error, some, none, products, none, none, ~usable, usable)


def _scaled_guess(x0: Array, b: Array, unit: Array) -> Array:
    """Return x0 / unit; zero for a problem where that is not finite."""
    xp = array_namespace(b)
    finite = xp.isfinite(x0)
    top = xp.abs(xp.where(finite, x0, xp.zeros_like(x0)))
    small = xp.where(unit < 1, unit, full(unit, 1.0)) * float(xp.finfo(b.dtype).max)
    fits = xp.all(finite & (top < small), axis=-1, keepdims=True)
    return xp.where(fits, x0, xp.zeros_like(x0)) / unit  # type: ignore[no-any-return]


def _from_guess(task: Task, s: Progress, x0: Array) -> Progress:
    """Return the start at x0 for the problems that it brings no farther away than x = 0."""
    xp = array_namespace(x0)

    def at_guess(s: Progress) -> Progress:
        r = task.b - task.A(x0)
        error = task.error(x0, r)
        near = s.going & (error <= 1)  # False for NaN
        error = xp.where(near, error, s.error)
        return s._replace(
            x=xp.where(near, x0, s.x),
            r=xp.where(near, r, s.r),
            error=error,
            going=s.going & ((error > task.rtol) | ~near),
            products=s.products + task.check_products * xp.astype(s.going, xp.int32),
        )

    # a loop that runs once, so that a backend treats overflow here as in any other
    return task.loops.while_loop(lambda s: xp.any(s.going & (s.products < task.check_products)), at_guess, s)  # type: ignore[no-any-return]


def _judge(task: Task, s: Progress, new: Pass, gain: float, patience: int) -> Progress:
    """Look at the true residuals after a pass; keep what came nearer, and say who goes on."""
    xp = array_namespace(new.x)
    r = task.b - task.A(new.x)
    error = task.error(new.x, r)
    # where x is so large that b is below the rounding of A x, a residual says nothing
    drowned = task.eps * new.size * norm(new.x) > 0.1
    better = (error < s.error) & ~drowned  # False for NaN
    gained = better & (error <= gain * s.error)
    fruitless = xp.where(gained, xp.zeros_like(s.fruitless), s.fruitless + 1)
    finite = new.finite & xp.isfinite(error)
    kept = xp.where(better, error, s.error)
    going = finite & (kept > task.rtol) & (fruitless < patience) & (new.steps < task.max_iter)
    return Progress(
        xp.where(better, new.x, s.x),
        xp.where(better, r, s.r),
        kept,
        going,
        new.steps,
        new.products + task.check_products,
        s.passes + 1,
        fruitless,
        new.singular | drowned,
        finite,
    )


def _solution(task: Task, s: Progress, unit: Array, usable: Array) -> Solution:
    """Scale back, and say how each problem ended: the first word that fits counts."""
    xp = array_namespace(s.x)
    most = float(xp.finfo(s.x.dtype).max) / xp.where(unit > 1, unit, full(unit, 1.0))
    fits = xp.all(xp.abs(s.x) <= most, axis=-1, keepdims=True)
    x = xp.where(fits, s.x, xp.zeros_like(s.x)) * unit
    finite = fits & s.finite & usable
    solved = s.error <= task.rtol
    reasons = [
        (~(fits & usable), Status.NON_FINITE),
        (solved, Status.CONVERGED),
        (~finite, Status.NON_FINITE),
        (s.singular, Status.SINGULAR),
        (s.steps >= task.max_iter, Status.MAX_ITER),
    ]
    code = first_of(reasons, Status.STAGNATED)
    error = xp.where(fits & usable, s.error, full(s.error, float("nan")))
    return Solution(x, code[..., 0], s.steps[..., 0], error[..., 0], {"products": s.products[..., 0]})
