"""Tell that an equation has no root near the point where a solver stopped."""

from __future__ import annotations

from dil._base.arrays import array_namespace
from dil._base.operator import Operator
from dil._base.typing import Array
from dil._frameworks.random_vectors import standard_normal
from dil._problem.jacobian import operator
from dil.solvers._start import Start

PROBES = 8
"""The number of random directions along which the equations are compared with their linear models."""
MARGIN = 4.0
"""How many times the reach of its linear model an equation must exceed. Probes see about half of the reach."""


def has_no_root(started: Start, u: Array, stopped: Array) -> Array:
    """Return where a solver has stopped at a minimum of ||F|| that is not zero; (*batch, 1), like `stopped`.

    There the linear model of an equation does not reach zero, although every unknown moves by its size, or as far as it
    came from the start: |F_i| > 4 |J (way * p)|_i for random p. No unit of an unknown or of an equation matters. A
    point that never left its start is not judged.
    """
    problem, start, arrays = started
    backend, xp = problem.backend, array_namespace(u)

    def judged(stopped: Array) -> Array:
        (F,), pull = backend.vjp(lambda w: (problem.residual(w, *arrays),), u)
        J: Operator = operator(problem, lambda p: pull((p,))[0], u)
        drawn = standard_normal(backend, u, PROBES, 0)
        way = xp.maximum(xp.abs(u), xp.abs(u - start))
        reach = xp.abs(J(way * drawn[0, ...]))
        for k in range(1, PROBES):
            reach = xp.maximum(reach, xp.abs(J(way * drawn[k, ...])))
        moved = xp.any(u != start, axis=-1, keepdims=True)
        return stopped & moved & xp.any(xp.abs(F) > MARGIN * reach, axis=-1, keepdims=True)  # type: ignore[no-any-return]

    return backend.loops.run_if(xp.any(stopped), judged, stopped)  # type: ignore[no-any-return]
