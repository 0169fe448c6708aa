"""Whether a score changes along its unknown as its gradient says: a gradient can lose a part without a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dil._base.arrays import array_namespace, dot, eps, full
from dil._base.scale import nonzero_scale
from dil._base.typing import Array, Arrays
from dil._frameworks.random_vectors import standard_normal
from dil._problem.problem import Problem

CLOSER = 4.0
"""The ratio of the two distances."""
LEAST_SHIFT = 0.01
"""The shift of the minimiser, relative to u, that a wrong slope must make to be told."""
LEAST_SLOPE = 0.02
"""The share of a wrong part in the change of the score."""
LEAST_BEND = 0.03
"""The share of a wrong part in the second difference of the score."""
NOISE = 8.0
"""What is told is so many times larger than the noise of the score and of its gradient."""
REACH = 3
"""The points on either side of u that show the noise of the score and of its gradient."""


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


class Suspicion(NamedTuple):
    """What is too large along a direction, to be confirmed closer to u; (*batch, 1)."""

    has_slope: Array
    has_bend: Array
    slope: Array
    """`Errors.slope`."""
    bend: Array
    """`Errors.bend`."""


def gradient_is_wrong(problem: Problem, u: Array, arrays: Arrays, scale: Array) -> Array:
    """Return whether the score changes in another way than its gradient says, shape batch.

    The differences of the score around u are compared with those that its gradient makes, by the trapezoidal rule,
    along a random direction in units of u, at the distance eps ** (1/3). The first difference shows a slope that is
    lost, the second one a curvature. A slope counts beside the curvature: by the shift of the minimiser that it makes.
    What is found must be the same at a quarter of the distance, which it is not at a kink, and larger than what several
    points in between show of noise. 16 bits resolve nothing. A gradient that the user gave is not compared. This costs
    three evaluations of the score and its gradient, and some fourteen more where something is found.
    """
    xp = array_namespace(u)
    if not is_comparable(problem, u):
        return full(u, 0, shape=u.shape[:-1]) != 0
    direction = nonzero_scale(scale) * standard_normal(problem.backend, u, 1, 0)[0, ...]
    found, _ = compared(problem, u, arrays, direction)
    suspected = found.has_slope | found.has_bend
    wrong: Array = problem.backend.loops.run_if(
        xp.any(suspected), lambda _: confirmed(problem, u, arrays, direction, found), suspected
    )
    return wrong[..., 0]


def is_comparable(problem: Problem, u: Array) -> bool:
    """Return whether differences of the score can be compared with its gradient."""
    return problem.score.derivatives is None and eps(array_namespace(u), u.dtype) <= 1e-4 and u.shape[-1] > 0


def compared(problem: Problem, u: Array, arrays: Arrays, direction: Array) -> tuple[Suspicion, Array]:
    """Return what is suspected along a direction, and twice the change of the gradient along it, (*batch, n)."""
    xp, h, machine = array_namespace(u), _distance(u), eps(array_namespace(u), u.dtype)
    d = h * direction
    values, gradients = _sampled(problem, u, arrays, d, [1.0, -1.0, 0.0], lambda gradient: gradient)
    ahead, behind = gradients[0, ...], gradients[1, ...]
    far = _errors(values[0, ...], values[1, ...], values[2, ...], dot(ahead, d), dot(behind, d))
    least = max(LEAST_SHIFT / u.shape[-1] ** 0.5, 4.0 * h) / h
    level = 64.0 * machine * far.size
    has_slope = _above(far.slope, xp.maximum(least * far.curved, LEAST_SLOPE * far.change), level)
    has_bend = _above(far.bend, LEAST_BEND * far.curved, level)
    return Suspicion(has_slope, has_bend, far.slope, far.bend), ahead - behind


def confirmed(problem: Problem, u: Array, arrays: Arrays, direction: Array, found: Suspicion) -> Array:
    """Return whether what is suspected is the same closer to u, and no noise; (*batch, 1)."""
    xp, h = array_namespace(u), _distance(u)
    parts, count = [k / REACH for k in range(-REACH, REACH + 1)], 2 * REACH + 1
    d, steps = h * direction, [*parts, *(part / CLOSER for part in parts)]
    values, slopes = _sampled(problem, u, arrays, d, steps, lambda gradient: dot(gradient, d))
    near = _errors(
        values[-1, ...], values[count, ...], values[REACH, ...], *(slopes[i, ...] / CLOSER for i in (-1, count))
    )
    slope = found.has_slope & _repeats(found.slope, CLOSER * near.slope)
    bend = found.has_bend & _repeats(found.bend, CLOSER**2 * near.bend)
    halves = (found.slope, found.bend, slice(None, count), 1.0), (near.slope, near.bend, slice(count, None), CLOSER)
    for of_slope, of_bend, half, closer in halves:
        noise = NOISE * (_noise(values[half, ...], bounded=True) + _noise(slopes[half, ...] / closer))
        slope, bend = slope & (xp.abs(of_slope) > noise), bend & (xp.abs(of_bend) > noise)
    return slope | bend


def _distance(u: Array) -> float:
    distance: float = eps(array_namespace(u), u.dtype) ** (1 / 3)
    return distance


def _above(error: Array, least: Array, level: Array) -> Array:
    xp = array_namespace(error)
    return (xp.abs(error) > least) & (xp.abs(error) > level)  # type: ignore[no-any-return]


def _repeats(far: Array, near: Array) -> Array:
    xp = array_namespace(far)
    return xp.abs(far - near) <= xp.abs(far) / 8  # type: ignore[no-any-return]


def _sampled(
    problem: Problem, u: Array, arrays: Arrays, d: Array, steps: list[float], seen: Callable[[Array], Array]
) -> Arrays:
    """Return the score, (k, *batch, 1), and what is seen of its gradient, (k, *batch, ...), at u + s d for each step s.

    A program maps the points one by one, so that it holds the score once, which may have no map.
    """
    backend = problem.backend

    def row(carry: Arrays, point: Arrays) -> tuple[Arrays, Arrays]:
        value, gradient = problem.value_and_gradient(point[0], *arrays)
        return carry, (backend.constant(value)[..., None], seen(backend.constant(gradient)))

    points = array_namespace(u).stack([u + s * d for s in steps])
    return backend.loops.scan(row, (), (points,))[1]


def _errors(right: Array, left: Array, here: Array, ahead: Array, behind: Array) -> Errors:
    """Return the errors from the score at u + d, u - d and u, and from <F, d> at the first two."""
    xp = array_namespace(here)
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


def _noise(values: Array, *, bounded: bool = False) -> Array:
    """Return the largest third difference of values at equal distances, (k, *batch, 1), shape (*batch, 1).

    `bounded`: it is infinite if the values do not change at all: then u moves them by less than their rounding.
    """
    xp = array_namespace(values)
    still = xp.max(values, axis=0) == xp.min(values, axis=0)
    for _ in range(3):
        values = values[1:, ...] - values[:-1, ...]
    noise = xp.max(xp.abs(values), axis=0)
    return xp.where(still, full(noise, float("inf")), noise) if bounded else noise  # type: ignore[no-any-return]
