"""Forward solvers: they find the minimum, say how they ended, and treat each problem of a batch by itself."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.solvers import LBFGS, GradientDescent, Newton, SciPy


def wells(u, t):
    """Two minima, near t = +-1 for small tilt."""
    xp = array_namespace(u)
    return xp.sum(0.25 * (u**2 - 1.0) ** 2 - 0.05 * t * u, axis=-1)


def bowl(u, t):
    xp = array_namespace(u)
    return xp.sum(xp.exp(u) - t * u)


SOLVERS = [
    GradientDescent(),
    LBFGS(),
    Newton(),
    Newton("normal"),
    Newton("truncated"),
    SciPy(tol=1e-10),
    SciPy("trust-exact", tol=1e-10),
    SciPy("Newton-CG", tol=1e-12),
    SciPy("L-BFGS-B", tol=1e-14),
    SciPy("Nelder-Mead", tol=1e-12),
]

OURS = [GradientDescent(), LBFGS(), Newton(), Newton("truncated")]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: f"{type(s).__name__}-{getattr(s, 'method', '')}")
def test_finds_the_minimum(plain, solver):
    if isinstance(solver, SciPy):
        pytest.importorskip("scipy", reason="SciPy is not installed")
        if plain.backend == "jax" and solver.method != "BFGS":
            pytest.skip("JAX is tried with one of SciPy's methods, the others differ on the host alone")
    t = np.asarray([0.5, 1.0, 3.0])
    sol = solver(bowl, plain.asarray(np.zeros(3)), plain.asarray(t))
    np.testing.assert_allclose(plain.to_numpy(sol.value), np.log(t), rtol=1e-5, atol=1e-6)
    assert Status(int(sol.status)) is Status.CONVERGED
    assert int(sol.iterations) >= 1


@pytest.mark.parametrize("solver", OURS, ids=lambda s: type(s).__name__)
def test_each_problem_by_itself(plain, solver):
    t, u0 = np.ones((3, 2)), np.asarray([[0.8, 1.2], [np.nan, 1.0], [1.1, 0.9]])
    layer = dil.argmin(wells, solver, batch_ndim=1)
    sol = layer.solve(plain.asarray(t), init=plain.asarray(u0))
    names = [Status(int(s)).name for s in plain.to_numpy(sol.status)]
    assert names == ["CONVERGED", "NON_FINITE", "CONVERGED"]
    values = plain.to_numpy(sol.value)
    np.testing.assert_allclose(values[0] ** 3 - values[0], 0.05 * np.ones(2), rtol=1e-6)
    np.testing.assert_allclose(values[2], values[0], rtol=1e-6)


@pytest.mark.parametrize(
    "solver", [GradientDescent(max_iter=2), LBFGS(max_iter=2), Newton(max_iter=1)], ids=lambda s: type(s).__name__
)
def test_says_that_it_ran_out(plain, solver):
    sol = solver(bowl, plain.asarray(np.full(3, 4.0)), plain.asarray(np.ones(3)))
    assert Status(int(sol.status)) is Status.MAX_ITER


@pytest.mark.parametrize("solver", OURS, ids=lambda s: type(s).__name__)
def test_starting_at_the_solution_is_no_failure(plain, solver):
    t = np.asarray([0.5, 1.0, 3.0])
    for start in (np.log(t), np.log(t) + 1e-15):
        sol = solver(bowl, plain.asarray(start), plain.asarray(t))
        assert Status(int(sol.status)) is Status.CONVERGED


def test_newton_leaves_a_region_of_negative_curvature(plain):
    sol = Newton()(wells, plain.asarray([0.1, -0.1]), plain.asarray([0.0, 0.0]))
    np.testing.assert_allclose(plain.to_numpy(sol.value), [1.0, -1.0], rtol=1e-6)


def test_scipy_in_float32(plain):
    handle = dil.backend(plain.backend, dtype="float32")
    sol = SciPy()(bowl, handle.asarray([0.0, 0.0]), handle.asarray([1.0, 2.0]))
    assert sol.value.dtype == handle.xp.float32
    np.testing.assert_allclose(handle.to_numpy(sol.value), [0.0, np.log(2)], atol=1e-3)


def test_scipy_carries_its_message():
    sol = SciPy(options={"maxiter": 1})(bowl, np.full(3, 4.0), np.ones(3))
    assert Status(int(sol.status)) is Status.MAX_ITER
    assert "iterations" in sol.extra["message"].lower()
