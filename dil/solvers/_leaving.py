"""The loop of a solver whose problems leave the batch when they have ended, so that none waits for the slowest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from dil._base.arrays import array_namespace, eps, max_abs, size
from dil._base.rows import NO_PART, Rows
from dil._base.typing import Array
from dil._frameworks.leaving import LEAVING, Part, Run, repeat_leaving
from dil.solvers._linearised import residual_at
from dil.solvers._progress import State, Watched, iterate_watched
from dil.solvers._start import Start

SAME = 256
"""The difference of F in units of the rounding of its terms that a sum in another order may make."""


class Iterate(State, Protocol):
    """A state with the iterate u, (*batch, n)."""

    @property
    def u(self) -> Array: ...


S = TypeVar("S", bound=Iterate)


def iterate_problems(
    solver: Watched,
    started: Start,
    step: Callable[[Start, S], S],
    first: S,
    *,
    max_iter: int,
    residual: Callable[[S], Array],
    evaluations: float = 1.0,
) -> tuple[S, dict[str, Array]]:
    """Run `state = step(started, state)` while a problem is going. The step must not change the others.

    Returns the last state, and entries for the `extra` of the solution, as `iterate_watched` does. Problems leave the
    batch only if nobody watches them. `evaluations` is about how many evaluations of F a step takes.
    """
    if solver.history or solver.progress:
        some, backend = partial(step, started), started.problem.backend
        return iterate_watched(solver, backend, some, first, max_iter=max_iter, residual=residual)
    return iterate_leaving(started, step, first, LEAVING / evaluations), {}


def iterate_leaving(started: Start, step: Callable[[Start, S], S], first: S, price: float) -> S:
    """Run the loop of `iterate_problems`."""
    space, loops = started.problem.space, started.problem.backend.loops
    run = Run(space.batch, size(started.u.shape) // max(size(space.batch), 1), loops, price=price)
    return repeat_leaving(started, step, lambda s: s.going, first, run=run, part=part_of)


def part_of(started: Start, rows: Rows, state: S) -> Part[Start, S] | None:
    """Return some problems of a batch, or None if F is another function for them alone. F is looked at again there."""
    alone = problems_alone(started, rows, state.u)
    if alone is None:
        return None
    part, terms = alone
    return Part(part, lambda end: terms_if_same(started, part, rows, end.u, terms) is not None)


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
        for point in (u, started.u):
            terms = None if terms is None else terms_if_same(started, alone, rows, point, terms)
    except NO_PART:
        return None
    return None if terms is None else Alone(alone, terms)


def terms_if_same(started: Start, alone: Start, rows: Rows, u: Array, terms: Array) -> Array | None:
    """Return the size of the terms of F, at least `terms`, or None if F of some problems at u is not the same alone."""
    xp, constant = array_namespace(u), started.problem.backend.constant
    whole = rows.take(constant(residual_at(started, u)))
    found = constant(alone.problem.residual(rows.take(u), *alone.arrays))
    here = xp.where(xp.isfinite(whole), xp.abs(whole), 0.0 * terms)
    terms = xp.maximum(terms, xp.maximum(here, eps(xp, u.dtype) ** 0.25 * max_abs(here)[..., None]))
    same = xp.abs(found - whole) <= SAME * eps(xp, u.dtype) * terms
    return terms if bool(xp.all(same | (~xp.isfinite(whole) & ~xp.isfinite(found)))) else None
