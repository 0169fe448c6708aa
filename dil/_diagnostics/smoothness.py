"""Check that F is a smooth function at a point: no kink there, its own derivative, and the same value at each call."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, eps, full, max_abs
from dil._base.operator import Operator
from dil._base.scale import nonzero_scale
from dil._base.status import Status
from dil._base.typing import Array
from dil._diagnostics.failure_policy import without_approximate
from dil._diagnostics.newton_comparison import Point
from dil._frameworks.random_vectors import standard_normal
from dil._problem.problem import Optimality

JUMP = 1.0
"""A change that the linear model of F does not explain, and that is so many times larger than the model's, may jump."""
BEND = 0.25
"""A difference of the slopes on the two sides of this share may be a bend."""
MISMATCH = 0.01
"""A difference of the slopes of F and of J, the same on both sides, that is an error of J if it has this share."""
CLOSER = 64.0
"""The ratio of the two distances."""


class Change(NamedTuple):
    """How F changes on one side of u, at two distances, without the change of the linear model; (*batch, n)."""

    far: Array
    close: Array


def check_smoothness(status: Array, F: Optimality, J: Operator, Fu: Array, here: Point, *, bends: bool = True) -> Array:
    """Return the statuses, with KINK, WRONG_DERIVATIVE or RANDOM where the theorem does not hold for F and J at u.

    F is compared with its linear model at the distances eps ** (1/2) and eps ** (1/2) / 64 on both sides of u, along
    a random direction in units of u. At a smooth point they differ by a small share of the change. A jump of F is a
    kink of the score, such as |u|: the difference is the same at both distances. A bend of F, such as relu in a
    residual, is a change of its slope; it is a kink only if `bends`. A slope that is the same on both sides, and not
    that of J, shows a derivative that is cut off or wrong; 16 bits do not resolve it. Other values of F at the same u
    show random numbers. A kink is seen if u is on it, or nearly so. Jumps and random numbers explain every other
    failure, so they replace its status.
    """
    xp, u = array_namespace(here.u), here.u
    h = eps(xp, u.dtype) ** 0.5
    step = h * nonzero_scale(here.scale) * standard_normal(F.problem.backend, u, 1, 0)[0, ...]
    linear = J(step)
    (again,) = F(u, *here.floats)
    size = max_abs(linear)[..., None]
    right, left = _changes(F, again, step, linear, here, min(JUMP, BEND / 4, MISMATCH) * size)
    kink = _jumps(right, size) | _jumps(left, size)
    converged = without_approximate(status) == int(Status.CONVERGED)
    bent = converged & _bends(right, left, size)
    if h < 1e-2:
        wrong = converged & ~(kink | bent) & _mismatches(right, left, linear, max(MISMATCH, 4 * CLOSER * h) * size)
        status = xp.where(wrong, full(status, int(Status.WRONG_DERIVATIVE)), status)
    if bends:
        kink = kink | bent
    # F may be evaluated in another order the second time, and its terms are as large as J u
    rounding = 64 * eps(xp, u.dtype) * xp.maximum(max_abs(again), size[..., 0] / h)
    random = max_abs(again - Fu) > rounding
    status = xp.where(kink, full(status, int(Status.KINK)), status)
    return xp.where(random, full(status, int(Status.RANDOM)), status)  # type: ignore[no-any-return]


def _changes(F: Optimality, Fu: Array, step: Array, linear: Array, here: Point, least: Array) -> tuple[Change, Change]:
    """Return the changes to the right and to the left of u.

    Nothing is found where all changes at the far distance are below `least`. Those at the close one are then zeros, and
    F is not evaluated for them.
    """
    xp = array_namespace(Fu)

    def change(share: float) -> Array:
        (there,) = F(here.u + share * step, *here.floats)
        return there - Fu - share * linear

    far = change(1.0), change(-1.0)

    def closer(_: tuple[Array, Array]) -> tuple[Array, Array]:
        return change(1 / CLOSER), change(-1 / CLOSER)

    doubted = xp.any((xp.abs(far[0]) > least) | (xp.abs(far[1]) > least))
    close = F.problem.backend.loops.run_if(doubted, closer, (xp.zeros_like(Fu), xp.zeros_like(Fu)))
    return Change(far[0], close[0]), Change(far[1], close[1])


def _jumps(change: Change, size: Array) -> Array:
    """Return whether an entry of F jumps: the change is the same at both distances, and large; shape batch."""
    return _repeats(change.far, change.close, JUMP * size)


def _bends(right: Change, left: Change, size: Array) -> Array:
    """Return whether the slope of an entry differs on the two sides, by the same at both distances; shape batch."""
    return _repeats(right.far + left.far, CLOSER * (right.close + left.close), BEND * size)


def _mismatches(right: Change, left: Change, linear: Array, least: Array) -> Array:
    """Return whether the slope of an entry differs from that of J, on both sides and at both distances; shape batch.

    F itself must change linearly between the distances. Where rounding hides its change, nothing can be said.
    """
    far, close = 0.5 * (right.far - left.far), 0.5 * CLOSER * (right.close - left.close)
    return _any_entry(_agrees(far, close, least) & _agrees(far + linear, close + linear, 0.0 * linear))


def _repeats(far: Array, close: Array, least: Array) -> Array:
    return _any_entry(_agrees(far, close, least))


def _agrees(far: Array, close: Array, least: Array) -> Array:
    xp = array_namespace(far)
    return (xp.abs(far) > least) & (xp.abs(far - close) <= xp.abs(far) / 8)  # type: ignore[no-any-return]


def _any_entry(holds: Array) -> Array:
    """Return whether one holds for an entry of each problem, (*batch, n) -> batch."""
    return array_namespace(holds).any(holds, axis=-1)  # type: ignore[no-any-return]
