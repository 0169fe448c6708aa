"""Whether a score changes as its gradient says along several directions, of which some are soft."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from dil._base.arrays import array_namespace, dot, eps, max_abs, nonzero_max_abs
from dil._base.scale import nonzero_scale, scale_of
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Compile
from dil._frameworks.random_vectors import standard_normal
from dil._problem.problem import Problem
from dil._problem.value_slopes import Suspicion, compared, confirmed, is_comparable

MOST = 10
"""The most directions."""


class Probe(NamedTuple):
    """The state of conjugate gradients on H x = z, in units of u; (*batch, n)."""

    direction: Array
    residual: Array
    drawn: Array
    """A random vector. The search starts again with it where it ends."""


def gradient_is_wrong_somewhere(
    problem: Problem, u: Array, arrays: Arrays, compiled: Compile, most: int = MOST
) -> Array | None:
    """Return whether the score changes in another way than its gradient says, shape batch; None if it never does.

    As `gradient_is_wrong`, along the directions of conjugate gradients (Hestenes and Stiefel 1952) from a random one.
    Along a random direction the stiff parts of a score hide the soft ones. Conjugate directions have one curvature
    after the other: the shares of a lost part in n of them sum up to its share in the curvature of its own direction.
    Where H has no positive curvature, and where the search has ended, the next direction is random.

    A product with H is the change of the gradient that the comparison takes anyway. So each direction costs three
    evaluations of the score and its gradient. Numbers must be readable. `most`: the largest number of directions.
    """
    if not is_comparable(problem, u):
        return None
    xp, probe = array_namespace(u), Probe(*[standard_normal(problem.backend, u, 1, 0)[0, ...]] * 3)
    compare, confirm = compiled(partial(_compared, problem)), compiled(partial(_confirmed, problem))
    wrong: Array | None = None
    for _ in range(min(most, 2 * u.shape[-1] - 1)):
        suspected, *found = compare(u, *probe, *arrays)
        if bool(suspected):
            (here,) = confirm(u, probe.direction, *found[3:], *arrays)
            wrong = here if wrong is None else wrong | here
            if bool(xp.all(wrong)):
                break
        probe = Probe(*found[:3])
    return wrong


def _compared(problem: Problem, u: Array, direction: Array, residual: Array, drawn: Array, *arrays: Array) -> Arrays:
    """Return whether something is suspected along a direction, the next probe, and what is suspected."""
    xp, scale = array_namespace(u), nonzero_scale(scale_of(u, None))
    found, change = compared(problem, u, arrays, scale * direction)
    probe = _next(Probe(direction, residual, drawn), scale * change)
    return (xp.any(found.has_slope | found.has_bend), *probe, *found)


def _confirmed(problem: Problem, u: Array, direction: Array, *rest: Array) -> Arrays:
    found, arrays = Suspicion(*rest[:4]), rest[4:]
    return (confirmed(problem, u, arrays, nonzero_scale(scale_of(u, None)) * direction, found)[..., 0],)


def _next(probe: Probe, image: Array) -> Probe:
    """Return the probe after one step. `image` is a multiple of H p in units of u."""
    p, r, drawn = probe
    xp, one = array_namespace(p), 1.0
    image = image / nonzero_max_abs(image)
    squares, curvature = dot(r, r), dot(p, image)
    bends = curvature > 0
    rest = r - squares / xp.where(bends, curvature, one) * image
    left = dot(rest, rest)
    goes_on = bends & (left > eps(xp, p.dtype) * squares)
    p = rest + left / xp.where(squares > 0, squares, one) * p
    drawn = xp.roll(drawn, 1, axis=-1)
    # a common factor of p and r changes nothing; entries of the size of random ones are as good a step as those
    size = max_abs(drawn)[..., None] / nonzero_max_abs(p)
    return Probe(xp.where(goes_on, size * p, drawn), xp.where(goes_on, size * rest, drawn), drawn)
