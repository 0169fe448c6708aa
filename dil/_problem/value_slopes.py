"""Whether a score changes along its unknown as its gradient says: a gradient can lose a part without a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dil._base.arrays import array_namespace, dot, eps, full
from dil._base.scale import nonzero_scale
from dil._base.typing import Array, Arrays
from dil._frameworks.loops import runs_later
from dil._frameworks.random_vectors import standard_normal
from dil._problem.problem import Problem

CLOSER = 4.0
"""The ratio of the two distances."""
LEAST_SHIFT = 0.01
"""The shift of the minimiser, relative to u, that a wrong slope must make to be told."""
LEAST_SLOPE = 0.02
"""The share of a wrong part in the change of the score."""
LEAST_BEND = 0.1
"""The share of a wrong part in the second difference of the score."""
NOISE = 8.0
"""What is told is so many times larger than the noise of the score."""
REACH = 3
"""The points on either side of u that show the noise of the score."""


class Errors(NamedTuple):
    """The changes of the score from -d to d around u that its gradient does not explain; (*batch, 1)."""

    slope: Array
    """(f(u + d) - f(u - d)) / 2 - <F(u + d) + F(u - d), d> / 2."""
    bend: Array
    """f(u + d) - 2 f(u) + f(u - d) - <F(u + d) - F(u - d), d> / 2."""
    change: Array
    """The size of the first difference."""
    curved: Array
    """The size of the second difference."""
    size: Array
    """The size of the score."""


def gradient_is_wrong(problem: Problem, u: Array, arrays: Arrays, scale: Array) -> Array:
    """Return whether the score changes in another way than its gradient says, shape batch.

    The differences of the score around u are compared with those that its gradient makes, by the trapezoidal rule,
    along a random direction in units of u, at the distance eps ** (1/3). The first difference shows a slope that is
    lost, the second one a curvature. A slope counts beside the curvature: by the shift of the minimiser that it makes.
    What is found must be the same at a quarter of the distance, which it is not at a kink, and larger than what several
    points in between show of noise. 16 bits resolve nothing. A gradient that the user gave is not compared. This costs
    three evaluations of the score and its gradient, and some twenty more where something is found.
    """
    xp, machine = array_namespace(u), eps(array_namespace(u), u.dtype)
    none = full(u, 0, shape=u.shape[:-1]) != 0
    if problem.score.derivatives is not None or machine > 1e-4 or u.shape[-1] == 0:
        return none
    backend, h = problem.backend, machine ** (1 / 3)
    direction = nonzero_scale(scale) * standard_normal(backend, u, 1, 0)[0, ...]

    def look(h: float) -> Errors:
        return _errors(problem, u, arrays, h * direction)

    far = look(h)
    least = max(LEAST_SHIFT / u.shape[-1] ** 0.5, 4.0 * h) / h
    level = 64.0 * machine * far.size
    slope = _above(far.slope, xp.maximum(least * far.curved, LEAST_SLOPE * far.change), level)
    bend = _above(far.bend, LEAST_BEND * far.curved, level)

    def closer(slope: Array, bend: Array) -> Array:
        near = look(h / CLOSER)
        slope, bend = slope & _repeats(far.slope, CLOSER * near.slope), bend & _repeats(far.bend, CLOSER**2 * near.bend)
        for errors, length in ((far, h), (near, h / CLOSER)):
            noise = NOISE * _noise(problem, u, arrays, length * direction)
            slope, bend = slope & (xp.abs(errors.slope) > noise), bend & (xp.abs(errors.bend) > noise)
        return slope | bend

    found = slope | bend
    wrong: Array = backend.loops.run_if(xp.any(found), lambda _: closer(slope, bend), found)
    return wrong[..., 0]


def _above(error: Array, least: Array, level: Array) -> Array:
    xp = array_namespace(error)
    return (xp.abs(error) > least) & (xp.abs(error) > level)  # type: ignore[no-any-return]


def _repeats(far: Array, near: Array) -> Array:
    xp = array_namespace(far)
    return xp.abs(far - near) <= xp.abs(far) / 8  # type: ignore[no-any-return]


def _errors(problem: Problem, u: Array, arrays: Arrays, d: Array) -> Errors:
    xp, backend = array_namespace(u), problem.backend

    def row(point: Array) -> Array:
        value, gradient = problem.value_and_gradient(point, *arrays)
        # the products in one array, so that a compiled program holds the score once
        along = dot(backend.constant(gradient), d)
        return xp.concat([backend.constant(value)[..., None], along], axis=-1)  # type: ignore[no-any-return]

    found = _at_each(problem, row, xp.stack([u + d, u - d, u]))
    (right, left, here), (ahead, behind) = (found[i, ..., :1] for i in range(3)), (found[i, ..., 1:] for i in range(2))
    rise, fall = right - here, here - left
    change, turned = 0.5 * (rise + fall), 0.5 * (ahead + behind)
    curved, bent = rise - fall, 0.5 * (ahead - behind)
    return Errors(
        change - turned,
        curved - bent,
        xp.maximum(xp.abs(change), xp.abs(turned)),
        xp.maximum(xp.abs(curved), xp.abs(bent)),
        xp.maximum(xp.abs(here), xp.maximum(xp.abs(left), xp.abs(right))),
    )


def _noise(problem: Problem, u: Array, arrays: Arrays, d: Array) -> Array:
    """Return the largest third difference of the score between u - d and u + d, (*batch, 1).

    It is infinite for a score that does not change at all: then u moves it by less than its rounding.
    """
    xp, backend = array_namespace(u), problem.backend
    points = xp.stack([u + (k / REACH) * d for k in range(-REACH, REACH + 1)])
    values = _at_each(problem, lambda x: backend.constant(problem.value(x, *arrays))[..., None], points)
    still = xp.max(values, axis=0) == xp.min(values, axis=0)
    for _ in range(3):
        values = values[1:, ...] - values[:-1, ...]
    noise = xp.max(xp.abs(values), axis=0)
    return xp.where(still, full(noise, float("inf")), noise)  # type: ignore[no-any-return]


def _at_each(problem: Problem, row: Callable[[Array], Array], points: Array) -> Array:
    """Return `row` of each point, (k, *batch, n), at once in a program, which then holds the score once.

    Elsewhere the score meets plain arrays alone: a framework may not be able to map it, or run it otherwise from then.
    """
    if runs_later(problem.backend.loops, points):
        return problem.backend.loops.map_rows(row, points, 1)  # the score itself, which may have no map
    return array_namespace(points).stack([row(points[i, ...]) for i in range(points.shape[0])])  # type: ignore[no-any-return]
