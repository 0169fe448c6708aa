"""Scores whose minimum cannot be found: cut from the unknown, without a lower bound, or random."""

from __future__ import annotations

from dil._base.arrays import array_namespace, dot, eps, max_abs, nonzero_max_abs, norm, size
from dil._base.scale import scale_of
from dil._base.typing import Array
from dil._frameworks.loops import runs_later
from dil._frameworks.random_vectors import standard_normal
from dil._problem.value_slopes import gradient_is_wrong
from dil.solvers._start import Start


def is_cut(started: Start, flat: Array) -> Array:
    """Return whether the score was cut from the unknown, among the problems with a gradient of zero at the start.

    Shape (*batch, 1). The gradient is exactly zero near and far from the start, too, along a random direction: the
    score was cut off, or it does not depend on the unknown.
    """
    backend, u = started.problem.backend, started.u
    xp = array_namespace(u)

    def look(flat: Array) -> Array:
        machine = eps(xp, u.dtype)
        unit = nonzero_max_abs(u) * standard_normal(backend, u, 1, 0)[0, ...]
        lengths = (machine**0.25, -(machine**0.25), 1.0, machine**-0.5)
        _, gradients = _at(started, xp.stack([u + length * unit for length in lengths]))
        return flat & xp.all(xp.all(gradients == 0, axis=0), axis=-1, keepdims=True)  # type: ignore[no-any-return]

    found: Array = backend.loops.run_if(xp.any(flat), look, flat) if u.shape[-1] else flat & ~flat
    return found


def is_unbounded(started: Start, u: Array, steep: Array) -> Array:
    """Return whether the score has fallen to u as fast as at the start, and still falls there; (*batch, 1).

    Only problems that are `steep` at the end, whose gradient is not much smaller than at the start, can be. A minimum
    is different: the slope along the way from the start vanishes there, so that the mean slope is less.
    """
    start, backend, xp = started.u, started.problem.backend, array_namespace(u)
    way = u - start

    def long(steep: Array) -> Array:
        far = steep & (norm(way) > max_abs(start)[..., None])
        return backend.loops.run_if(xp.any(far), look, far)  # type: ignore[no-any-return]

    def look(far: Array) -> Array:
        values, gradients = _at(started, xp.stack([start, u]))
        length = norm(way)
        slope, last_slope = (-dot(gradients[i, ...], way / length) for i in range(2))
        fallen = values[0, ...] - values[1, ...]
        return far & (last_slope > 0.5 * slope) & (fallen > 0.75 * slope * length)

    found: Array = backend.loops.run_if(xp.any(steep), long, steep)
    return found


def is_wrong(started: Start, u: Array, failed: Array) -> Array:
    """Return whether the score changes in another way than its gradient says, among the failed problems; (*batch, 1).

    No solver that uses both can find a minimum then. A compiled program would hold the score three times more, so it
    does not look: the first call of a layer does.
    """
    problem, _, arrays = started
    if size(u.shape) == 0 or runs_later(problem.backend.loops, u):
        return failed & ~failed

    def look(failed: Array) -> Array:
        return failed & gradient_is_wrong(problem, u, arrays, scale_of(u, started.u))[..., None]

    found: Array = problem.backend.loops.run_if(array_namespace(u).any(failed), look, failed)
    return found


def is_random(started: Start, u: Array, failed: Array) -> Array:
    """Return whether the score has another value and another gradient at the same point; (*batch, 1).

    Only the failed problems are looked at, and none in a compiled program, which would hold the score twice more.
    """
    problem, xp = started.problem, array_namespace(u)
    if size(u.shape) == 0 or runs_later(problem.backend.loops, u):
        return failed & ~failed

    def look(failed: Array) -> Array:
        # one after the other: a map may give all rows the same random numbers
        (value, gradient), (again, turned) = (_at(started, u[None, ...]) for _ in range(2))
        many = eps(xp, u.dtype) ** 0.5  # the sums of a device may change by rounding
        other = xp.abs(again - value) > many * xp.abs(value)
        bent = max_abs(turned - gradient) > many * max_abs(gradient)
        return failed & (other & bent[..., None])[0, ...]  # type: ignore[no-any-return]

    found: Array = problem.backend.loops.run_if(xp.any(failed), look, failed)
    return found


def _at(started: Start, points: Array) -> tuple[Array, Array]:
    """Return the score, (k, *batch, 1), and its gradient, (k, *batch, n), at points (k, *batch, n).

    The score is written once into a program that is compiled.
    """
    problem, _, arrays = started
    backend, xp = problem.backend, array_namespace(points)

    def row(u: Array) -> Array:
        value, gradient = problem.value_and_gradient(u, *arrays)
        return xp.concat([backend.constant(value)[..., None], backend.constant(gradient)], axis=-1)  # type: ignore[no-any-return]

    found = backend.loops.map_rows(row, points)
    return found[..., :1], found[..., 1:]
