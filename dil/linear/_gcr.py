"""Generalised conjugate residuals: the least residual over directions that an approximation of A^-1 gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, full, logical_not, select
from dil._base.operator import Operator
from dil._base.scalars import Scalar, Scalars, any_of, count, count_from_zero, filled, sqrt
from dil._base.typing import Array, Matvec
from dil._frameworks.iteration import choose, repeat
from dil._frameworks.loops import Loops, runs_later
from dil.linear._thin import along, combined

GROWS_BY = 16
"""The directions for which room is made at a time, where arrays may grow."""


@dataclass(frozen=True)
class System:
    """The systems A x = b of a batch, each b of norm one, and M, an approximation of A^-1."""

    A: Operator
    M: Matvec
    b: Array
    rtol: Scalar
    loops: Loops

    @property
    def scalars(self) -> Scalars:
        """How the scalars of the problems are made."""
        return Scalars(self.loops.number, self.loops.numbers, self.b.ndim == 1)

    @property
    def target(self) -> Scalar:
        """<r, r> at which the recurrence stops. It is below the tolerance, so that the true residual rarely misses."""
        return (0.5 * self.rtol) ** 2


class Progress(NamedTuple):
    """The state of the iteration."""

    x: Array
    r: Array
    z: Array
    """The directions so far, (*batch, m, n)."""
    w: Array
    """Their images A z, orthonormal."""
    rr: Scalar
    broken: Scalar
    steps: Scalar
    count: Any
    """The rows of z and w in use: an int, or an array of shape () in a trace."""


class Found(NamedTuple):
    """The result, with the true residual of each problem."""

    x: Array
    residual: Scalar
    steps: Scalar
    z: Array
    w: Array
    count: Any


def gcr(system: System, rows: int, most: Array) -> Found:
    """Return x with A x = b after at most `most` steps, (*batch, n), and the directions of the steps.

    There is room for `rows` directions, which also bounds the steps. `most`: shape ().

    The direction of a step is z = M r. Its image w = A z is made orthogonal to the earlier ones, and x moves along z
    until r is orthogonal to w. If M is A^-1, the first step is the last. A problem that ends before the others has
    directions of zero from there on. A problem breaks down if A z is in the span of the earlier images, or, for a
    symmetric A, if <z, A z> <= 0: then A may be indefinite, and who solves it must say so.

    Sources: Eisenstat, Elman and Schultz 1983 (GCR); van der Vorst and Vuik 1994 (an M that changes); Daniel, Gragg,
    Kaufman and Stewart 1976 (when a vector is made orthogonal a second time).
    """
    b, loops, scalars = system.b, system.loops, system.scalars
    room = rows if runs_later(loops, b) else min(GROWS_BY, rows)
    none = full(b, 0.0, shape=(*b.shape[:-1], room, b.shape[-1]))
    rr = scalars.dot(b, b)
    first = Progress(full(b, 0.0), b, none, 0.0 * none, rr, rr != rr, count_from_zero(rr), 0)
    how: Any = {"loops": loops, "steps_per_read": loops.steps_per_read(b)}
    limit = loops.number(most)
    last = repeat(partial(_step, system, rows), partial(_going, system, rows, limit), first, **how)
    r = b - system.A(last.x)
    return Found(last.x, scalars.norm(r), last.steps, last.z, last.w, last.count)


def _going(system: System, rows: int, most: Any, s: Progress) -> Any:
    """Return whether any problem goes on."""
    return any_of((s.rr > system.target) & logical_not(s.broken)) & (s.count < rows) & (s.count < most)


def _step(system: System, rows: int, s: Progress) -> Progress:
    known, loops, scalars = isinstance(s.count, int), system.loops, system.scalars
    if known and s.count >= rows:
        return s  # on a device the condition is read after some steps only
    s = _with_room(s, rows) if known else s
    Z, W = (a[..., : s.count, :] if known else a for a in (s.z, s.w))
    machine_eps = eps(array_namespace(s.x), s.x.dtype)
    active = (s.rr > system.target) & logical_not(s.broken)
    z = system.M(s.r)
    w = system.A(z)
    ww = scalars.dot(w, w)
    upward = scalars.dot(z, w) > 0 if system.A.symmetric else True
    w, z, left = _orthogonal(system, W, w, Z, z, ww, active)
    takes = active & upward & (left > machine_eps * ww) & (ww < math.inf)  # False for NaN
    length = sqrt(select(takes, left, filled(left, 1.0)))
    z, w = (choose(takes, v / length, full(v, 0.0), loops) for v in (z, w))
    step = scalars.dot(w, s.r)
    r = s.r - step * w
    return Progress(
        s.x + step * z,
        r,
        loops.set_row(s.z, s.count, z),
        loops.set_row(s.w, s.count, w),
        scalars.dot(r, r),
        s.broken | (active & logical_not(takes)),
        s.steps + count(active),
        s.count + 1,
    )


def _orthogonal(
    system: System, W: Array, w: Array, Z: Array, z: Array, ww: Scalar, active: Scalar
) -> tuple[Array, Array, Scalar]:
    """Return w made orthogonal to the rows of W, the z whose image it is, and <w, w>. Before, it was `ww`."""
    if W.shape[-2] == 0:
        return w, z, ww
    part = along(W, w)
    w = w - combined(part, W)
    left = system.scalars.dot(w, w)
    # if half is left, rounding is at most doubled
    if system.scalars.none(active & logical_not(left > 0.5 * ww)):
        return w, z - combined(part, Z), left
    again = along(W, w)
    w, z = w - combined(again, W), z - combined(part + again, Z)
    return w, z, system.scalars.dot(w, w)


def _with_room(s: Progress, rows: int) -> Progress:
    """Return the state with room for one more direction."""
    xp, room = array_namespace(s.z), s.z.shape[-2]
    if s.count < room:
        return s
    more = full(s.z, 0.0, shape=(*s.x.shape[:-1], min(GROWS_BY, rows - room), s.x.shape[-1]))
    return s._replace(z=xp.concat([s.z, more], axis=-2), w=xp.concat([s.w, more], axis=-2))
