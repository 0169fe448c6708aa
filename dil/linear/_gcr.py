"""Generalised conjugate residuals: the least residual over directions that an approximation of A^-1 gives."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, dot, eps, full, norm
from dil._base.operator import Operator
from dil._base.typing import Array, Matvec
from dil._frameworks.iteration import repeat
from dil._frameworks.loops import Loops


class System(NamedTuple):
    """The systems A x = b of a batch, each b of norm one, and M, an approximation of A^-1."""

    A: Operator
    M: Matvec
    b: Array
    rtol: float
    loops: Loops


class Progress(NamedTuple):
    """The state of the iteration. Scalars of the problems: (*batch, 1)."""

    x: Array
    r: Array
    z: Array
    """The directions so far, (*batch, m, n)."""
    w: Array
    """Their images A z, orthonormal."""
    rr: Array
    broken: Array
    steps: Array
    count: Any
    """The rows of z and w in use: an int, or an array of shape () in a trace."""


class Found(NamedTuple):
    """The result, with the true residual."""

    x: Array
    residual: Array
    solved: Array
    steps: Array
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

    Sources: Eisenstat, Elman and Schultz 1983 (GCR); van der Vorst and Vuik 1994 (an M that changes).
    """
    b, xp = system.b, array_namespace(system.b)
    store = full(b, 0.0, shape=(*b.shape[:-1], rows, b.shape[-1]))
    rr = dot(b, b)
    none, no = full(rr, 0, dtype=xp.int32), rr != rr
    first = Progress(full(b, 0.0), b, store, 0.0 * store, rr, no, none, 0)
    how: Any = {"loops": system.loops, "steps_per_read": system.loops.steps_per_read(b)}
    last = repeat(partial(_step, system), partial(_going, system, rows, most), first, **how)
    r = b - system.A(last.x)
    residual = norm(r)
    return Found(last.x, residual, residual <= system.rtol, last.steps, last.z, last.w, last.count)


def _going(system: System, rows: int, most: Array, s: Progress) -> Any:
    """Return which problems go on. The target is below the tolerance, so that the true residual rarely misses it."""
    return (s.rr > (0.5 * system.rtol) ** 2) & ~s.broken & (s.count < rows) & (s.count < most)


def _step(system: System, s: Progress) -> Progress:
    if isinstance(s.count, int) and s.count >= s.z.shape[-2]:
        return s  # on a device the condition is read after some steps only
    xp, machine_eps = array_namespace(s.x), eps(array_namespace(s.x), s.x.dtype)
    active = (s.rr > (0.5 * system.rtol) ** 2) & ~s.broken
    z = system.M(s.r)
    w = system.A(z)
    length = norm(w)
    finite = xp.isfinite(length) & (length > 0)
    length = xp.where(finite, length, full(length, 1.0))
    z, w = (xp.where(finite, v, full(v, 0.0)) / length for v in (z, w))
    convex = dot(z, w) > 0 if system.A.symmetric else finite
    Z, W = (a[..., : s.count, :] if isinstance(s.count, int) else a for a in (s.z, s.w))
    for _ in range(2):  # the second time removes what rounding has left
        part = W @ w[..., None]
        w, z = w - (W.mT @ part)[..., 0], z - (Z.mT @ part)[..., 0]
    length = norm(w)
    takes = active & finite & convex & (length > machine_eps**0.5)
    length = xp.where(takes, length, full(length, 1.0))
    z, w = (xp.where(takes, v, full(v, 0.0)) / length for v in (z, w))
    step = dot(w, s.r)
    r = s.r - step * w
    return Progress(
        s.x + step * z,
        r,
        system.loops.set_row(s.z, s.count, z),
        system.loops.set_row(s.w, s.count, w),
        dot(r, r),
        s.broken | (active & ~takes),
        s.steps + xp.astype(active, s.steps.dtype),
        s.count + 1,
    )
