"""The linear solve of a fixed-point layer follows the tolerance of a loose forward solver."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil._layers.following import FollowingAuto, following
from dil.linear import Auto
from dil.solvers import Anderson, FixedPoint, Newton

N = 1200
"""More unknowns than a dense solve serves on any backend."""
SHIFT = np.linspace(0.5, 1.5, N)
SLOPES = np.linspace(0.2, 0.9, N)


def step(u, t, slopes):
    xp = array_namespace(u)
    return xp.concat([u[1:], u[:1]]) * slopes * 0.8 + 0.1 * xp.sin(u) + t


class Spy:
    """A linear solver that keeps what the inner one returned."""

    def __init__(self, inner):
        self.inner, self.found = inner, []

    def __call__(self, A, b, /, *, loop, x0=None):
        self.found.append(self.inner(A, b, loop=loop, x0=x0))
        return self.found[-1]


@pytest.fixture(autouse=True)
def iterates(monkeypatch):
    """A sparse factorisation would be exact, whatever the tolerance."""
    monkeypatch.setattr(importlib.import_module("dil.linear._sparse_choice"), "FEWEST_UNKNOWNS", N + 1)


def backward(eager, solver, **options):
    """Return the linear solve of the backward pass, and the gradient."""
    layer = dil.fixed_point(step, solver, init=lambda t, slopes: 0.0 * t, on_failure="raise", **options)
    spy = Spy(layer.linear_solver)
    layer = replace(layer, linear_solver=spy, check_smoothness="never")
    t, slopes = eager.asarray(SHIFT), eager.asarray(SLOPES)
    _, pull = dil.vjp(lambda t: layer(t, slopes), t)
    (gradient,) = pull(eager.asarray(np.cos(np.arange(N))))
    return spy.found[0], eager.to_numpy(gradient)


@pytest.mark.parametrize("solver", [Anderson(rtol=1e-4), FixedPoint(rtol=1e-4)], ids=lambda s: type(s).__name__)
def test_a_loose_solver_gets_a_loose_linear_solve(eager, solver):
    _, exact = backward(eager, type(solver)())
    tight, _ = backward(eager, solver, linear_solver=Auto())
    loose, gradient = backward(eager, solver)
    assert int(loose.iterations) < 0.6 * int(tight.iterations)
    assert 1e-9 < float(loose.residual) <= 1e-5
    assert np.linalg.norm(gradient - exact) <= 1e-4 * np.linalg.norm(exact)


def test_a_tight_solver_is_left_alone(eager):
    default, gradient = backward(eager, Anderson())
    given, same = backward(eager, Anderson(), linear_solver=Auto())
    assert int(default.iterations) == int(given.iterations)
    np.testing.assert_array_equal(gradient, same)


def test_who_is_followed():
    assert following(Anderson(rtol=1e-4), 0) == FollowingAuto(1e-5)
    assert following(FixedPoint(rtol=0.5), 0) == FollowingAuto(1e-3)  # never looser than what a layer tells of
    for solver, refine in ((Anderson(), 0), (Anderson(rtol=1e-4), 1), (Newton(rtol=1e-4), 0), (abs, 0)):
        assert following(solver, refine) == Auto()
