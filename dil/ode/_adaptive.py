"""Adaptive steps: the mesh is found first, from estimates of the local error and without derivatives.

The gradient is that of the method on the mesh that was found. The mesh itself is held constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, eps, full, max_abs, nonzero_max_abs, nonzero_or_one
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil.ode._methods import Method
from dil.ode._step_stages import VectorStages


@dataclass(frozen=True)
class Control:
    """The options of adaptive steps.

    A step may have an error of rtol |y| + atol, in the root mean square over the entries of each problem.
    """

    rtol: float
    atol: float | None
    """None: 1e-3 rtol times the largest value that each entry has had, and 4 eps times the largest of all."""
    first_step: float | None
    max_steps: int

    def allowed(self, y: Array, largest: Array) -> Array:
        """Return the error that each entry of y may have; never zero. `largest` are the largest values so far."""
        if self.atol is not None:
            return self.atol + self.rtol * y
        noise = 4 * eps(array_namespace(y), y.dtype) * max_abs(largest)[..., None]
        return nonzero_or_one(self.rtol * (y + 1e-3 * largest) + noise)


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
    """The state of the search after an attempt at a step."""

    t: Array
    h: Array
    y: Array
    slope: Array
    memory: Arrays
    mesh: Mesh
    largest: Array
    """The largest |y| so far, entry by entry."""
    was_taken: Array
    """Whether the last attempt was taken. After a rejected one the step does not grow."""
    active: Array


def find_mesh(
    method: Method,
    stages: Callable[[Arrays], VectorStages],
    loop: Callable[..., Search],
    control: Control,
    y: Array,
    t: tuple[Array, Array],
) -> Mesh:
    """Return the mesh from t[0] to t[1].

    All problems of a batch share each step. The problem with the largest error sets the step size. A step is taken if
    every stage converged and every error is allowed. If a problem fails at a step within rounding, it ends there and
    the others go on. The factor of the step size is that of Hairer, Nørsett and Wanner 1993, II.4.
    """
    xp, (start, end) = array_namespace(y), t
    first = method.starter or method
    slope = stages((full(y, 0.0),)).slope(start, (y,))[0]
    h = _first_step(control, y, slope, end - start) if control.first_step is None else full(start, control.first_step)
    zeros, zero = full(start, 0.0, shape=(control.max_steps,)), full(y[..., 0], 0.0)
    mesh = Mesh(zeros + end, zeros, full(start, 0.0), full(start, 0.0), zero, zero + float("inf"), zero, zero)
    active = end > start
    state = Search(start, h, y, slope, first.begin(stages((slope,)), (y,), start), mesh, abs(y), active, active)
    attempt = _Attempt(stages, control, end)
    if method.starter is not None:
        state = loop(lambda s: s.active & (s.mesh.taken < 1), lambda s: attempt(first, s), state)
        state = state._replace(memory=(y, state.t - start))
    last: Search = loop(lambda s: s.active, lambda s: attempt(method, s), state)
    incomplete = (last.t < end) & (last.mesh.status == 0)
    return last.mesh._replace(
        status=xp.where(incomplete, full(zero, float(Status.MAX_ITER)), last.mesh.status),
        failed=xp.where(incomplete, zero + last.t, last.mesh.failed),
    )


def _first_step(control: Control, y: Array, slope: Array, span: Array) -> Array:
    """Return 0.01 |y| / |dy/dt|, at most the span. The norms are relative to the error allowed."""
    xp = array_namespace(y)
    scale = control.allowed(xp.abs(y), xp.abs(y))
    size, speed = xp.max(nonzero_max_abs(y / scale)), xp.max(max_abs(slope / scale))
    h = 0.01 * size / nonzero_or_one(speed)
    h = xp.where((size > 1e-5) & (speed > 1e-5) & xp.isfinite(h), h, 1e-6 * span)
    return xp.where(h < span, h, span)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Attempt:
    """An attempt at a step, as a function of the state of the search."""

    stages: Callable[[Arrays], VectorStages]
    control: Control
    end: Array

    def __call__(self, method: Method, s: Search) -> Search:
        xp, control = array_namespace(s.y), self.control
        shortest = 16 * eps(xp, s.y.dtype) * (abs(s.t) + 1e-3 * abs(self.end - s.t))
        final = s.t + s.h >= self.end - shortest
        h = xp.where(final, self.end - s.t, s.h)
        stages = self.stages((s.slope,))
        new = method.advance(stages, (s.y,), s.memory, s.t, h)
        assert new.error is not None
        (y,), (stage_status, iterations, linear) = new.y, stages.outcome
        larger = xp.where(abs(y) > abs(s.y), abs(y), abs(s.y))
        largest = xp.where(abs(larger) > s.largest, abs(larger), s.largest)
        scaled = new.error()[0] / control.allowed(abs(larger), largest)
        error = xp.sqrt(xp.mean(scaled * scaled, axis=-1))
        solved = stage_status == 0
        allowed = solved & (error <= 1)  # False for NaN
        ended, tiny = s.mesh.status != 0, h <= shortest
        finite_error = xp.where(solved & xp.isfinite(error), error, full(error, 1e10))
        finite_error = xp.where(ended, full(error, 0.0), finite_error)
        # near a pole the allowed steps may shrink without end: stop if t + h rounds to t
        stuck = (s.t + h == s.t) & (finite_error == xp.max(finite_error))
        fails = ((tiny & ~allowed) | stuck) & ~ended
        code = xp.where(solved, full(stage_status, float(Status.STAGNATED)), stage_status)
        status = xp.where(fails, code, s.mesh.status)
        taken = xp.all(allowed | (status != 0))
        largest_error = xp.max(xp.where(status != 0, full(error, 0.0), finite_error))
        mesh = s.mesh._replace(
            rejected=s.mesh.rejected + xp.astype(~taken, s.t.dtype),
            status=status,
            failed=xp.where(fails, s.t + 0.0 * error, s.mesh.failed),
            iterations=s.mesh.iterations + iterations,
            linear=s.mesh.linear + linear,
        )
        t = xp.where(final, self.end, s.t + h)
        t = xp.where(taken, t, s.t)
        mesh = _append(mesh, taken, s.t, h)
        active = (t < self.end) & (mesh.taken < control.max_steps) & xp.any(status == 0)
        return Search(
            t,
            h * self._factor(method, largest_error, s.was_taken),
            xp.where(taken, y, s.y),
            xp.where(taken, stages.last[0], s.slope),
            tuple(xp.where(taken, a, b) for a, b in zip(new.memory, s.memory, strict=True)),
            mesh,
            xp.where(taken, largest, s.largest),
            taken,
            active,
        )

    def _factor(self, method: Method, error: Array, was_taken: Array) -> Array:
        """Return the factor of the step size. Two-step methods are stable only up to 2.4."""
        assert method.error_order is not None
        xp, largest = array_namespace(error), 5.0 if method.starter is None else 2.0
        factor = 0.9 * xp.where(error > 1e-6, error, full(error, 1e-6)) ** (-1.0 / method.error_order)
        largest = xp.where(was_taken, full(factor, largest), full(factor, 1.0))
        factor = xp.where(factor > largest, largest, factor)
        return xp.where(factor < 0.2, full(factor, 0.2), factor)  # type: ignore[no-any-return]


def _append(mesh: Mesh, taken: Array, t: Array, h: Array) -> Mesh:
    """Return the mesh with one more step if it was taken."""
    xp = array_namespace(t)
    indices = xp.astype(xp.arange(mesh.begins.shape[0], device=device(t)), t.dtype)
    slot = taken & (indices == mesh.taken)
    return mesh._replace(
        begins=xp.where(slot, t, mesh.begins),
        lengths=xp.where(slot, h, mesh.lengths),
        taken=mesh.taken + xp.astype(taken, t.dtype),
    )
