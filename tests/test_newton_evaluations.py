"""Newton's method evaluates F once a step, and holds the graph of one point."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import dil
from dil.solvers import Newton

STEPS_AND_MORE = 4
"""Evaluations besides those of the steps: the start, and the looks at the end."""


def made(backend, *values):
    if backend == "numpy":
        return [np.asarray(x) for x in values]
    torch = pytest.importorskip("torch")
    return [torch.asarray(np.asarray(x)) for x in values]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("n", [1, 5, 12])
def test_a_step_towards_a_root_evaluates_the_residual_once(backend, n):
    calls = []

    def residual(u, t):
        calls.append(u)
        return u**5 + u - t

    start, t = made(backend, np.full(n, 50.0), np.linspace(1e4, 2e4, n))
    found = dil.root(residual, Newton(), init=start).solve(t)
    steps = int(found.iterations)
    assert int(found.status) == 0
    assert steps >= 8, "few steps tell nothing"
    assert steps <= len(calls) <= steps + STEPS_AND_MORE


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("n", [1, 5, 12])
@pytest.mark.parametrize("equations", ["hessian", "truncated"])
def test_a_step_towards_a_minimum_evaluates_the_score_once(backend, n, equations):
    calls = []

    def score(u, t):
        calls.append(u)
        return (u**6 / 6 + u**2 / 2 - t * u).sum()

    start, t = made(backend, np.full(n, 50.0), np.linspace(1e4, 2e4, n))
    found = dil.argmin(score, Newton(equations), init=start).solve(t)
    steps = int(found.iterations)
    assert int(found.status) == 0
    assert steps >= 8, "few steps tell nothing"
    assert steps <= len(calls) <= steps + STEPS_AND_MORE


@pytest.mark.parametrize("n", [5, 12])
def test_a_solve_holds_the_graph_of_one_point(n):
    torch = pytest.importorskip("torch")
    alive, most = [], [0]

    def residual(u, t):
        gc.collect()
        # the solver differentiates at u, so it holds u as long as the graph that starts there
        most[0] = max(most[0], sum(ref() is not None for ref in alive))
        if u.requires_grad:
            alive.append(weakref.ref(u))
        return u**5 + u - t

    start, t = made("torch", np.full(n, 50.0), np.linspace(1e4, 2e4, n))
    with torch.no_grad():
        found = Newton()(dil.root(residual, Newton(), init=start).condition, start, t)
    assert int(found.status) == 0
    assert len(alive) >= 7
    assert most[0] <= 1


def test_a_step_that_is_cut_ends_where_it_ended_without_the_memory_of_a_point():
    """arctan, from where a full step of Newton's method overshoots: some trials are refused."""
    points = []

    def residual(u, t):
        points.append(np.asarray(dil.constant(u)).item())
        return np.arctan(u - t)

    found = dil.root(residual, Newton(), init=np.asarray([10.0])).solve(np.asarray([1.0]))
    assert int(found.status) == 0
    np.testing.assert_allclose(found.value, 1.0, rtol=1e-12)
    assert min(points) < -50, "no trial was refused"
    assert len(points) > int(found.iterations) + STEPS_AND_MORE
