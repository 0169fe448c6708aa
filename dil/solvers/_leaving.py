"""The loop of a solver whose problems leave the batch when they have ended, so that none waits for the slowest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from dil._base.arrays import array_namespace, eps, max_abs, size
from dil._base.quasi_newton import Pairs
from dil._base.typing import Array
from dil._frameworks.iteration import repeat
from dil.solvers._progress import State, Watched, iterate_watched
from dil.solvers._start import Start

MANY = 2**10
"""The fewest unknowns of a batch whose problems leave. An operation on fewer costs about as much as one on a single."""
SAME = 256
"""The difference of F in units of the rounding of its terms that a sum in another order may make."""
NO_PART = (RuntimeError, ValueError, TypeError, LookupError, AssertionError)
"""What a function raises that needs the batch as it is: its code, or an array that it captures, names the size."""


class Iterate(State, Protocol):
    """A state with the iterate u, (*batch, n)."""

    @property
    def u(self) -> Array: ...


S = TypeVar("S", bound=Iterate)


@dataclass(frozen=True)
class Rows:
    """Some problems of a batch. Arrays whose shape begins with that of the batch count as having a part for each."""

    batch: tuple[int, ...]
    chosen: Array
    """Whether a problem is one of them, (size of the batch,)."""
    numbers: Array
    """Their numbers in the batch, (k,)."""

    @property
    def count(self) -> int:
        """The number of problems, k."""
        return self.numbers.shape[0]

    def take(self, x: Any) -> Any:
        """Return the parts of these problems, of shape (k, 1, ..., 1) in the place of that of the batch."""
        if not self._has_parts(x):
            return x
        xp, rest = array_namespace(x), tuple(x.shape[len(self.batch) :])
        some = xp.take(xp.reshape(x, (size(self.batch), *rest)), self.numbers, axis=0)
        return xp.reshape(some, (self.count, *(1,) * (len(self.batch) - 1), *rest))

    def put(self, old: Any, new: Any) -> Any:
        """Return an array of the batch with the parts of these problems replaced; `new` if it is no such array."""
        if not self._has_parts(old):
            return new
        xp, rest = array_namespace(old), tuple(old.shape[len(self.batch) :])
        place = xp.cumulative_sum(xp.astype(self.chosen, self.numbers.dtype)) - 1
        spread = xp.take(xp.reshape(new, (self.count, *rest)), xp.where(place < 0, 0, place), axis=0)
        return xp.where(xp.reshape(self.chosen, (*self.batch, *(1 for _ in rest))), xp.reshape(spread, old.shape), old)

    def _has_parts(self, x: Any) -> bool:
        return tuple(getattr(x, "shape", ())[: len(self.batch)]) == self.batch


def iterate_problems(
    solver: Watched,
    started: Start,
    step: Callable[[Start, S], S],
    first: S,
    *,
    max_iter: int,
    residual: Callable[[S], Array],
) -> tuple[S, dict[str, Array]]:
    """Run `state = step(started, state)` while a problem is going. The step must not change the others.

    Returns the last state, and entries for the `extra` of the solution, as `iterate_watched` does. Problems leave the
    batch only if nobody watches them.
    """
    if solver.history or solver.progress:
        some, backend = partial(step, started), started.problem.backend
        return iterate_watched(solver, backend, some, first, max_iter=max_iter, residual=residual)
    return iterate_leaving(started, step, first), {}


def iterate_leaving(started: Start, step: Callable[[Start, S], S], first: S) -> S:
    """Run the loop of `iterate_problems`.

    As soon as less than half of a large batch is going, the loop continues with these problems alone, if a program can
    know which these are while it runs.
    """
    loops, xp = started.problem.backend.loops, array_namespace(started.u)
    batch, some = started.problem.space.batch, partial(step, started)
    large = size(batch) > 1 and size(started.u.shape) >= MANY
    if not large or loops.places(xp.reshape(first.going, (-1,))) is None:
        return repeat(some, lambda s: s.going, first, loops=loops)
    half = repeat(some, lambda s: 2 * xp.count_nonzero(s.going) >= size(batch), first, loops=loops)
    chosen = xp.reshape(half.going, (-1,))
    numbers = loops.places(chosen)
    if numbers is None or numbers.shape[0] == 0:
        return half
    rows = Rows(batch, chosen, numbers)
    alone = problems_alone(started, rows, half.u)
    if alone is not None:
        last = iterate_leaving(alone.started, step, entrywise(rows.take, len(batch), half))
        if terms_if_same(started, alone.started, rows, rows.put(half.u, last.u), alone.terms) is not None:
            return entrywise(rows.put, len(batch), half, last)
    return repeat(some, lambda s: s.going, half, loops=loops)


class Alone(NamedTuple):
    """Some problems of a batch, without the others."""

    started: Start
    terms: Array
    """The size of the terms of F, (k, 1, ..., 1, n), as F shows it at the start and where the problems leave."""


def problems_alone(started: Start, rows: Rows, u: Array) -> Alone | None:
    """Return some problems of a batch, or None if F is another function for them alone, or cannot be evaluated.

    Only the shape of an argument says whether it has a part for each problem, and a shared one may have this shape by
    chance. A function may also count the problems. So F is compared at the start, where the problems leave the batch,
    which is u, and again where they end: an end that is none in the batch is thrown away.
    """
    problem = started.problem
    arrays = tuple(rows.take(x) for x in started.arrays)
    alone = Start(replace(problem, space=problem.space.rows(rows.count)), rows.take(started.u), arrays)
    terms: Array | None = array_namespace(u).zeros_like(alone.u)
    try:
        for point in (started.u, u):
            terms = None if terms is None else terms_if_same(started, alone, rows, point, terms)
    except NO_PART:
        return None
    return None if terms is None else Alone(alone, terms)


def terms_if_same(started: Start, alone: Start, rows: Rows, u: Array, terms: Array) -> Array | None:
    """Return the size of the terms of F, at least `terms`, or None if F of some problems at u is not the same alone."""
    xp, constant = array_namespace(u), started.problem.backend.constant
    whole = rows.take(constant(started.problem.residual(u, *started.arrays)))
    found = constant(alone.problem.residual(rows.take(u), *alone.arrays))
    here = xp.where(xp.isfinite(whole), xp.abs(whole), 0.0 * terms)
    terms = xp.maximum(terms, xp.maximum(here, eps(xp, u.dtype) ** 0.25 * max_abs(here)[..., None]))
    same = xp.abs(found - whole) <= SAME * eps(xp, u.dtype) * terms
    return terms if bool(xp.all(same | (~xp.isfinite(whole) & ~xp.isfinite(found)))) else None


def entrywise(fn: Callable[..., Any], batch_ndim: int, state: S, *others: S) -> S:
    """Return the state of fn(array, ...) of each array of a state and of others with the same structure.

    In the pairs of a quasi-Newton method, (m, *batch, n), the axis of the pairs comes after the batch for fn.
    """
    if isinstance(state, Pairs):
        parts = [[array_namespace(x).moveaxis(x, 0, batch_ndim) for x in pairs] for pairs in (state, *others)]
        found = (fn(*entries) for entries in zip(*parts, strict=True))
        return Pairs(*(array_namespace(x).moveaxis(x, batch_ndim, 0) for x in found))
    if isinstance(state, tuple):
        kind: Any = type(state)
        entries = [entrywise(fn, batch_ndim, *entry) for entry in zip(state, *others, strict=True)]
        return kind(*entries) if hasattr(kind, "_fields") else kind(entries)
    return fn(state, *others)  # type: ignore[no-any-return]
