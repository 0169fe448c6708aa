"""The linear solve of a fixed-point layer follows the tolerance of a loose forward solver."""

from __future__ import annotations

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


def backward(eager, solver, **options):
    """Return the record of the backward solve and the gradient."""
    layer = dil.fixed_point(step, solver, init=lambda t, slopes: 0.0 * t, **options)
    t, slopes = eager.asarray(SHIFT), eager.asarray(SLOPES)
    with dil.record() as rec:
        _, pull = dil.vjp(lambda t: layer(t, slopes), t)
        (gradient,) = pull(eager.asarray(np.cos(np.arange(N))))
    (found,) = rec.backward
    return found, eager.to_numpy(gradient)


@pytest.mark.parametrize("solver", [Anderson(rtol=1e-4), FixedPoint(rtol=1e-4)], ids=lambda s: type(s).__name__)
def test_a_loose_solver_gets_a_loose_linear_solve(eager, solver):
    _, exact = backward(eager, type(solver)())
    tight, _ = backward(eager, solver, linear_solver=Auto())
    loose, gradient = backward(eager, solver)
    assert int(np.max(loose.iterations)) < 0.6 * int(np.max(tight.iterations))
    assert 1e-9 < float(np.max(loose.residual)) <= 1e-5
    assert np.linalg.norm(gradient - exact) <= 1e-4 * np.linalg.norm(exact)
    assert int(np.max(loose.status)) == 0


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
