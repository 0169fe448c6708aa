"""Adaptive steps: the mesh is found first, from estimates of the local error and without derivatives.

The gradient is that of the method on the mesh that was found. The mesh itself is held constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, eps, full, nonzero_max_abs
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil.ode._methods import Method
from dil.ode._step_stages import VectorStages


@dataclass(frozen=True)
class Control:
    """The error allowed in a step: rtol |y| + atol, in the root mean square over the entries of each problem."""

    rtol: float
    atol: float
    first_step: float | None
    max_steps: int


class Mesh(NamedTuple):
    """The steps that were found, and counts of the search."""

    begins: Array
    """Shape (max_steps,); the last time for unused steps."""
    lengths: Array
    """Shape (max_steps,); zero for unused steps."""
    taken: Array
    rejected: Array
    status: Array
    """Shape batch, like the fields below."""
    failed: Array
    """Where the failed step begins; infinity if none failed."""
    iterations: Array
    linear: Array


class Search(NamedTuple):
    """One attempt at a step."""

    t: Array
    h: Array
    y: Array
    slope: Array
    memory: Arrays
    mesh: Mesh
    fresh: Array
    """Whether the last attempt was taken. After a rejected one the step does not grow."""
    going: Array


def find_mesh(
    method: Method,
    stages: Callable[[Arrays], VectorStages],
    loop: Callable[..., Search],
    control: Control,
    y: Array,
    t: tuple[Array, Array],
) -> Mesh:
    """Step from t[0] to t[1]; all problems of a batch share each step, whose size suits the worst of them.

    A step is taken if every stage converged and the error is allowed. A problem that fails at a step within rounding
    ends there, and the others go on without it. The factor of the step size is that of Hairer,
    Nørsett and Wanner 1993, II.4.
    """
    xp, (start, end) = array_namespace(y), t
    first = method.starter or method
    slope = stages((full(y, 0.0),)).slope(start, (y,))[0]
    h = _first_step(control, y, slope, end - start) if control.first_step is None else full(start, control.first_step)
    none, zero = full(start, 0.0, shape=(control.max_steps,)), full(y[..., 0], 0.0)
    mesh = Mesh(none + end, none, full(start, 0.0), full(start, 0.0), zero, zero + float("inf"), zero, zero)
    going = end > start
    state = Search(start, h, y, slope, first.begin(stages((slope,)), (y,), start), mesh, going, going)
    attempt = _Attempt(stages, control, end)
    if method.starter is not None:
        state = loop(lambda s: s.going & (s.mesh.taken < 1), lambda s: attempt(first, s), state)
        state = state._replace(memory=(y, state.t - start))
    last: Search = loop(lambda s: s.going, lambda s: attempt(method, s), state)
    short = (last.t < end) & (last.mesh.status == 0)
    return last.mesh._replace(
        status=xp.where(short, full(zero, float(Status.MAX_ITER)), last.mesh.status),
        failed=xp.where(short, zero + last.t, last.mesh.failed),
    )


def _first_step(control: Control, y: Array, slope: Array, span: Array) -> Array:
    """Return a hundredth of the time in which y changes by itself, in units of the error allowed."""
    xp = array_namespace(y)
    scale = control.atol + control.rtol * xp.abs(y)
    size, speed = xp.max(nonzero_max_abs(y / scale)), xp.max(nonzero_max_abs(slope / scale))
    h = 0.01 * size / speed
    h = xp.where((size > 1e-5) & (speed > 1e-5) & xp.isfinite(h), h, 1e-6 * span)
    return xp.where(h < span, h, span)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Attempt:
    """The attempt at one step."""

    stages: Callable[[Arrays], VectorStages]
    control: Control
    end: Array

    def __call__(self, method: Method, s: Search) -> Search:
        xp, control = array_namespace(s.y), self.control
        least = 16 * eps(xp, s.y.dtype) * (abs(s.t) + 1e-3 * abs(self.end - s.t))
        final = s.t + s.h >= self.end - least
        h = xp.where(final, self.end - s.t, s.h)
        here = self.stages((s.slope,))
        new = method.advance(here, (s.y,), s.memory, s.t, h)
        assert new.error is not None
        (y,), (said, iterations, linear) = new.y, here.told
        larger = xp.where(abs(y) > abs(s.y), abs(y), abs(s.y))
        off = new.error()[0] / (control.atol + control.rtol * larger)
        error = xp.sqrt(xp.mean(off * off, axis=-1))
        solved = said == 0
        fine = solved & (error <= 1)  # False for NaN
        out, tiny = s.mesh.status != 0, h <= least
        known = xp.where(solved & xp.isfinite(error), error, full(error, 1e10))
        known = xp.where(out, full(error, 0.0), known)
        # steps that are allowed may shrink for ever, towards a pole: they end where time stands still
        stuck = (s.t + h == s.t) & (known == xp.max(known))
        ends = ((tiny & ~fine) | stuck) & ~out
        code = xp.where(solved, full(said, float(Status.STAGNATED)), said)
        status = xp.where(ends, code, s.mesh.status)
        taken = xp.all(fine | (status != 0))
        worst = xp.max(xp.where(status != 0, full(error, 0.0), known))
        mesh = s.mesh._replace(
            rejected=s.mesh.rejected + xp.astype(~taken, s.t.dtype),
            status=status,
            failed=xp.where(ends, s.t + 0.0 * error, s.mesh.failed),
            iterations=s.mesh.iterations + iterations,
            linear=s.mesh.linear + linear,
        )
        t = xp.where(final, self.end, s.t + h)
        t = xp.where(taken, t, s.t)
        mesh = _noted(mesh, taken, s.t, h)
        going = (t < self.end) & (mesh.taken < control.max_steps) & xp.any(status == 0)
        return Search(
            t,
            h * self._factor(method, worst, s.fresh),
            xp.where(taken, y, s.y),
            xp.where(taken, here.last[0], s.slope),
            tuple(xp.where(taken, a, b) for a, b in zip(new.memory, s.memory, strict=True)),
            mesh,
            taken,
            going,
        )

    def _factor(self, method: Method, worst: Array, fresh: Array) -> Array:
        """Return the factor of the step size. Two-step methods are stable only up to 2.4."""
        assert method.error_order is not None
        xp, most = array_namespace(worst), 5.0 if method.starter is None else 2.0
        factor = 0.9 * xp.where(worst > 1e-6, worst, full(worst, 1e-6)) ** (-1.0 / method.error_order)
        most = xp.where(fresh, full(factor, most), full(factor, 1.0))
        factor = xp.where(factor > most, most, factor)
        return xp.where(factor < 0.2, full(factor, 0.2), factor)  # type: ignore[no-any-return]


def _noted(mesh: Mesh, taken: Array, t: Array, h: Array) -> Mesh:
    """Write one step into the mesh if it was taken."""
    xp = array_namespace(t)
    numbers = xp.astype(xp.arange(mesh.begins.shape[0], device=device(t)), t.dtype)
    here = taken & (numbers == mesh.taken)
    return mesh._replace(
        begins=xp.where(here, t, mesh.begins),
        lengths=xp.where(here, h, mesh.lengths),
        taken=mesh.taken + xp.astype(taken, t.dtype),
    )
