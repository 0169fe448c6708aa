"""Values of the score without derivatives, for solvers that only compare them: at one point or at many."""

from __future__ import annotations

import math
from dataclasses import replace

from dil._base.arrays import array_namespace, device, full
from dil._base.typing import Array
from dil._frameworks.fixed import identity_of
from dil.solvers._start import Start


def evaluate(started: Start, u: Array) -> Array:
    """Return the score, (*batch, 1), with infinity in the place of values that are not finite."""
    problem, _, arrays = started
    return _or_infinite(problem.backend.constant(problem.value(u, *arrays))[..., None])


def broadcasts(started: Start) -> bool:
    """Whether the score takes unknowns with more leading dimensions than its arguments, as that of a plan does."""
    return bool(getattr(identity_of(started.problem.score.fn), "broadcasts", False))


def evaluate_rows(started: Start, rows: Array) -> Array:
    """Return the score of each row, (k, *batch, n) -> (k, *batch, 1), at once if the score or the framework can."""
    problem, _, arrays = started
    if not broadcasts(started):
        return _or_infinite(problem.backend.loops.map_rows(lambda u: problem.value(u, *arrays)[..., None], rows))
    space, count = problem.space, rows.shape[0]
    shapes = tuple((count, *shape) for shape in space.shapes)
    many = replace(problem, space=replace(space, shapes=shapes, batch=(count, *space.batch)))
    return _or_infinite(problem.backend.constant(many.value(rows, *arrays))[..., None])


def _or_infinite(value: Array) -> Array:
    xp = array_namespace(value)
    return xp.where(xp.isfinite(value), value, full(value, math.inf))  # type: ignore[no-any-return]


def best_row(rows: Array, values: Array) -> tuple[Array, Array]:
    """Return for each problem the row with the least value, (*batch, n), and that value, (*batch, 1)."""
    xp = array_namespace(values)
    number = xp.reshape(xp.arange(rows.shape[0], device=device(values)), (-1, *(1 for _ in values.shape[1:])))
    chosen = number == xp.argmin(values, axis=0)[None, ...]
    zero = full(values, 0.0)
    return xp.sum(xp.where(chosen, rows, full(rows, 0.0)), axis=0), xp.sum(xp.where(chosen, values, zero), axis=0)
