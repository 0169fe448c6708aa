"""Continue a loose fixed-point iteration, so that its derivative is taken at a better point than y."""

from __future__ import annotations

from dil._base.arrays import array_namespace, factor_dtype, nonzero_or_one, norm
from dil._base.options import declares
from dil._base.scale import nonzero_scale
from dil._base.typing import Array, Arrays
from dil._diagnostics.newton_comparison import ACCEPTED_STEP
from dil._diagnostics.stationarity import least_step
from dil._frameworks.iteration import choose
from dil._layers.first_calls import is_readable
from dil._problem.anderson_memory import as_dtype, correction, nothing, remembered
from dil._problem.equation import Equation
from dil._problem.problem import Optimality
from dil.linear._solver import LinearSolver

MOST = 32
"""The most evaluations. A point that needs more is measured instead, which costs about as much."""
LEAST_GAIN = 0.5
"""Half of the residual must be gone after every fourth evaluation."""
MEMORY = 5
"""The differences that an iterate mixes, as in `Anderson`."""
REGULARISATION = 1e-10
"""As in `Anderson`."""
SHARE = 0.5
"""The predicted distance to the solution, as a share of the longest step that needs no measurement."""


def way_to_solution(F: Optimality, u: Array, Fu: Array, floats: Arrays, linear_solver: LinearSolver) -> Array | None:
    """Return the way from y to a point whose derivative needs no measurement, (*batch, n); None if y needs no better.

    It is zero for the problems of a batch that get no better point, as where the iteration does not contract.

    The error of y is that of its derivative, to first order. A measurement of it costs a Newton step, a second linear
    solve, and gradients of each problem of a batch at both points. Steps of Anderson's iteration on from y cost an
    evaluation each, no graph, and no linear solve, and they remove the error.

    Only a layer that follows a loose solver continues, and only where the host reads numbers: a compiled program
    measures, and on JAX every layer does, so that it has one derivative with `jit` and without.
    """
    condition, backend = F.problem.condition, F.problem.backend
    if not (isinstance(condition, Equation) and condition.kind == "step" and declares(linear_solver, "_continues")):
        return None
    if backend.compiler() is not None or not is_readable(backend, Fu):
        return None
    xp = array_namespace(Fu)
    u, Fu, floats = backend.constant(u), backend.constant(Fu), tuple(backend.constant(x) for x in floats)
    F = F.with_fixed([backend.constant(x) for x in F.fixed])
    size, limit = norm(Fu), SHARE * least_step(Fu) * norm(u)
    if bool(xp.all(size <= limit)):
        return None
    return _continued(F, u, Fu, floats, size, limit)


def _continued(F: Optimality, u: Array, Fu: Array, floats: Arrays, size: Array, limit: Array) -> Array | None:
    """Return the way to points that are predicted to be within `limit` of the solution, else zero; None if none is.

    The predicted distance is the residual, times the length of the way so far in units of the residual at y, if that
    is more than one.
    """
    xp, backend, dtype = array_namespace(Fu), F.problem.backend, factor_dtype(Fu)
    arrays, unit = F.arrays(floats), nonzero_or_one(size)

    def evaluated(v: Array) -> tuple[Array, Array]:
        image: Array = backend.constant(F.problem.image(v, *arrays))
        return image, as_dtype((image - v) / unit, dtype)

    image, f = u - Fu, as_dtype(-Fu / unit, dtype)
    memory = nothing(f, MEMORY, REGULARISATION)
    way, arrived = xp.zeros_like(u), size <= limit
    moved, mark, goal = False, 1.0, as_dtype(limit / unit, dtype)
    for count in range(1, MOST + 1):
        v = image - as_dtype(correction(memory, backend.dense.cholesky_solve), u.dtype)
        last_image, last_f, (image, f) = image, f, evaluated(v)
        left = xp.linalg.vector_norm(f, axis=-1, keepdims=True)
        new = ~arrived & (left <= goal)
        if bool(xp.any(new)):
            new = new & (left * as_dtype(norm(v - u) / unit, dtype) <= goal)
            way, arrived = choose(new, v - u, way, backend.loops), arrived | new
            moved = moved or bool(xp.any(new))
        if bool(xp.all(arrived)):
            break
        if count % 4 == 0:
            worst = float(xp.max(xp.where(arrived, 0.0 * left, left)))
            if not worst <= LEAST_GAIN * mark:
                break
            mark = worst
        memory = remembered(memory, as_dtype(image - last_image, dtype), f - last_f, f, backend.loops)
    return way if moved else None


def is_long(way: Array, b: Array, scale: Array, *, transposed: bool) -> Array:
    """Return whether the way from y is more than 1 percent of y, shape batch.

    The loss was differentiated at y. Thus each entry is weighted by its cotangent, b, in a pullback. In a pushforward
    each entry is compared in its own units.
    """
    xp = array_namespace(b)
    weight = xp.abs(b) if transposed else 1.0 / nonzero_scale(scale)
    accepted = max(ACCEPTED_STEP, 4 * float(xp.finfo(b.dtype).eps))  # 16 bits resolve no smaller change
    return xp.sum(weight * xp.abs(way), axis=-1) > accepted * xp.sum(weight * nonzero_scale(scale), axis=-1)  # type: ignore[no-any-return]
