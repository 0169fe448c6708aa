"""Roots of Laplacians that are smooth and cross zero: the terms of an equation are large beside J u and the arguments.

The unknown that is zero by symmetry never has a step that is short beside it, so the residual alone tells the end.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.linear import CG, GMRES, MINRES, Auto, BiCGSTAB, Direct, NormalCG, SparseDirect
from dil.solvers import Newton

SHIFT = 1e-6


def periodic(u, k):
    xp = array_namespace(u)
    return 2.0 * u - xp.roll(u, 1) - xp.roll(u, -1) + SHIFT * u - k


def windy(u, k):
    """Return the same with convection, where J is not symmetric."""
    return periodic(u, k) + 0.01 * (u - array_namespace(u).roll(u, 1))


def closed(u, k):
    """Return the Laplacian between walls that let nothing through, along each axis."""
    xp = array_namespace(u)
    found = SHIFT * u - k
    for axis in range(u.ndim):
        before = xp.concat([_part(u, axis, 0, 1), _part(u, axis, 0, -1)], axis=axis)
        after = xp.concat([_part(u, axis, 1, None), _part(u, axis, -1, None)], axis=axis)
        found = found + (u - before) + (u - after)
    return found


def graph(u, k):
    """Return the Laplacian of a circulant graph: u_i against u_(i +- 1) and u_(i +- 5)."""
    xp = array_namespace(u)
    return SHIFT * u - k + sum(u - xp.roll(u, step) for step in (1, -1, 5, -5))


def _part(u, axis, first, last):
    return u[(*[slice(None)] * axis, slice(first, last))]


def wave(n):
    return np.sin(2 * np.pi * np.arange(n) / n)


def half_wave(n):
    return np.cos(np.pi * (np.arange(n) + 0.5) / n)


class Case(NamedTuple):
    residual: Callable[..., object]
    y: np.ndarray


CASES = {
    "periodic": Case(periodic, 1e3 * wave(300)),
    "windy": Case(windy, 1e3 * wave(400)),
    "closed": Case(closed, 1e-3 * half_wave(151)),
    "closed, 2-D": Case(closed, half_wave(51)[:, None] + np.zeros(20)),
    "graph": Case(graph, wave(800)),
}
SOLVERS = [Auto(), CG(), MINRES(), GMRES(), BiCGSTAB(), NormalCG(), Direct(), SparseDirect()]


def solved(engine, residual, k, linear=None):
    """Return a root and its gradient for the cotangent k, their statuses, and the number of steps."""
    given = {} if linear is None else {"linear_solver": linear}
    layer = dil.root(residual, Newton(linear_solver=linear), init=lambda k: 0.0 * k, on_failure="ignore", **given)
    k = engine.asarray(k)
    found = layer.solve(k)
    with dil.record() as record:
        _, pull = dil.vjp(layer, k)
        pull(k)
    statuses = [Status(int(s)).name for s in (found.status, record.backward[0].status)]
    return engine.to_numpy(found.value), statuses, int(found.iterations)


def check(engine, case, linear=None):
    k = case.residual(case.y, 0.0)
    y, statuses, steps = solved(engine, case.residual, k, linear)
    assert statuses == ["CONVERGED", "CONVERGED"]
    assert steps <= 8  # some took 35, each from one rounding to another
    assert np.max(np.abs(y - case.y)) <= 1e-11 * np.max(np.abs(case.y))


def test_a_wave_on_a_ring(eager):
    check(eager, CASES["periodic"])


@pytest.mark.slow
def test_a_wave_on_a_ring_in_jax():
    pytest.importorskip("jax", reason="JAX is not installed")
    check(dil.backend("jax", dtype="float64"), CASES["periodic"])


@pytest.mark.parametrize("linear", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("case", CASES)
def test_smooth_solutions_by_each_linear_solver(case, linear):
    if case == "windy" and isinstance(linear, CG | MINRES):
        pytest.skip("its matrix is not symmetric")
    if isinstance(linear, GMRES | NormalCG) and case in ("windy", "closed, 2-D"):
        pytest.skip("seconds, and the other cases hold it")
    check(dil.backend("numpy", dtype="float64"), CASES[case], linear)


@pytest.mark.parametrize("unit", [1e-12, 1e-3, 1.0, 1e12])
def test_a_wave_beside_equations_in_another_unit(unit):
    """Neither hides the other: what is called converged is solved in both units."""
    y, n = CASES["periodic"].y, 300

    def both(u, k):
        return np.concatenate([periodic(u[:n], k[:n]), unit * (u[n:] ** 3 - k[n:])])

    k, start = np.concatenate([periodic(y, 0.0), np.full(3, 2.0)]), np.concatenate([np.zeros(n), np.ones(3)])
    found = dil.root(both, Newton(), init=lambda k: start, on_failure="ignore").solve(k)
    right = np.allclose(found.value[n:], 2.0 ** (1 / 3), rtol=1e-14, atol=0.0)
    # equations of 1e-12 beside the rounding of others have no steps of their own: STAGNATED, and they are wrong
    assert (Status(int(found.status)) is Status.CONVERGED) == (unit > 1e-12) == right
    assert np.max(np.abs(found.value[:n] - y)) <= 1e-11 * np.max(np.abs(y))


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_false_root_is_told_in_any_order_of_the_equations(order):
    """No unknown solves the second equation, beside one in units of 1e12; an equation need not hold its own unknown."""

    def equations(u, c):
        rows = [1e-12 * u[2] - c, u[0] + 1e-3 * (u[1] ** 2 + 1.0), 5.0 * u[0]]
        return np.stack([rows[i] for i in order])

    layer = dil.root(equations, Newton(), init=lambda c: np.asarray([0.3, 0.5, 3e11]), on_failure="ignore")
    found = layer.solve(np.asarray(1.0))
    assert abs(equations(found.value, 1.0)).max() > 1e-4
    assert Status(int(found.status)) != Status.CONVERGED
