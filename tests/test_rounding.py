"""A fixed point whose residual is rounding is solved: no evaluation could make it smaller, whatever rtol asks."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil.solvers import Anderson, FixedPoint

SOLVERS = (Anderson(rtol=1e-6), FixedPoint(rtol=1e-6))
"""In float32, no residual of an entry that is a small difference of large terms is within 1e-6 of the entry."""

SOON = 100
"""The contractions reach rounding in about 32 steps. Then the least residual still falls by chance for some looks."""


def affine(u, A, b):
    return (A @ u[..., None])[..., 0] + b


def data(n, batch, scale, contraction=0.6):
    """Return a contraction whose fixed point has entries of all sizes near zero; float32."""
    rng = np.random.default_rng(n)
    A = contraction * np.linalg.qr(rng.standard_normal((n, n)))[0]
    b = rng.standard_normal((batch, n))
    u = rng.standard_normal((batch, n)) * 10.0 ** rng.uniform(-9, 0, (batch, n))
    b = u - u @ A.T
    return A.astype(np.float32), (scale * b).astype(np.float32)


def single(plain, x):
    """Return an array of the engine in float32."""
    x = plain.asarray(x)
    xp = array_namespace(x)
    return xp.astype(x, xp.float32)


def solved(plain, solver, step, A, b, **options):
    A, b = single(plain, A), single(plain, b)
    layer = dil.fixed_point(step, solver, init=lambda A, b: 0.0 * b, batch_ndim=1, **options)
    return layer.solve(A, b)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("n", "batch", "scale"), [(3, 1, 1.0), (40, 5, 1e-8), (40, 1, 1e8), (400, 2, 1.0)])
def test_entries_near_zero(plain, solver, scale, n, batch):
    A, b = data(n, batch, scale)
    found = solved(plain, solver, affine, A, b)
    assert np.all(plain.to_numpy(found.status) == int(dil.Status.CONVERGED))
    assert int(plain.to_numpy(found.iterations).max()) < SOON
    exact = np.linalg.solve(np.eye(n) - A.astype(float), b.astype(float).T).T
    error = np.linalg.norm(plain.to_numpy(found.value) - exact) / np.linalg.norm(exact)
    assert error < 1e-6


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_units_of_single_entries(plain, solver):
    A, b = data(40, 3, 1.0)
    units = (10.0 ** np.random.default_rng(1).uniform(-6, 6, 40)).astype(np.float32)
    found = solved(plain, solver, affine, (units[:, None] * A / units), units * b)
    assert np.all(plain.to_numpy(found.status) == int(dil.Status.CONVERGED))
    assert int(plain.to_numpy(found.iterations).max()) < SOON


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_slow_is_not_rounded(plain, solver):
    """A residual that falls by a thousandth a step is no rounding, although it is hardly halved in four steps."""
    A, b = np.full((1, 1), 0.999, dtype=np.float32), np.full((1, 1), 1.23e-3, dtype=np.float32)
    found = solved(plain, FixedPoint(rtol=1e-6, max_iter=200), affine, A, b, on_failure="ignore")
    assert np.all(plain.to_numpy(found.status) == int(dil.Status.MAX_ITER))
    A, b = data(100, 2, 1.0, contraction=0.999)
    found = solved(plain, type(solver)(rtol=1e-6, max_iter=60), affine, A, b, on_failure="ignore")
    assert np.all(plain.to_numpy(found.status) == int(dil.Status.MAX_ITER))


@pytest.mark.parametrize("solver", [FixedPoint(), Anderson()], ids=lambda s: type(s).__name__)
def test_a_step_that_is_sensitive_to_its_arguments_is_not_rounded(plain, solver):
    """A phase of 2 ** 12 turns changes by a share of itself in one rounding of its argument, which no step changes."""

    def step(u, x):
        xp = array_namespace(u)
        return 0.9 * u + 0.1 * xp.tanh(0.1 * xp.flip(u, axis=-1) + xp.sin(2**12 * np.pi * x))

    x = single(plain, np.random.default_rng(3).random((20, 6)))
    found = dil.fixed_point(step, solver, init=lambda x: 0.0 * x, batch_ndim=1).solve(x)
    assert np.all(plain.to_numpy(found.status) == int(dil.Status.CONVERGED))
    shift = plain.to_numpy(array_namespace(x).sin(2**12 * np.pi * x)).astype(float)
    exact = np.zeros((20, 6))
    for _ in range(100):
        exact = np.tanh(0.1 * exact[:, ::-1] + shift)  # the same fixed point, reached faster
    error = np.abs(plain.to_numpy(found.value) - exact)
    assert np.max(error / np.abs(exact)) < 1e-3


def test_a_small_entry_beside_a_large_one_goes_on(plain):
    h, small = 0.1, 1e-13

    def step(u, t):
        xp = array_namespace(u)
        return xp.stack([u[0] - h * (u[0] + u[1] - t - small), u[1] - h * (u[1] - t)])

    layer = dil.fixed_point(step, FixedPoint(), init=lambda t: array_namespace(t).stack([0.0 * t, 0.0 * t]))
    y = plain.to_numpy(layer.solve(plain.asarray(1.0)).value)
    assert abs(y[0] / small - 1) < 0.02


def test_an_entry_that_is_wrong_is_not_hidden_by_large_ones(plain):
    """The last entry creeps, and is as small beside the others as their rounding."""
    scale = np.asarray([1.0] * 30 + [1e-7])
    A, b = np.diag([0.1] * 30 + [0.9999]).astype(np.float32), (scale * 1.234567).astype(np.float32)[None]
    solver = FixedPoint(rtol=1e-6, max_iter=200)
    found = solved(plain, solver, affine, A, b, on_failure="ignore")
    assert np.all(plain.to_numpy(found.status) == int(dil.Status.MAX_ITER))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_a_cycle_is_not_rounded(plain, solver):
    b = single(plain, np.ones((1, 4)))
    found = dil.fixed_point(lambda u, b: b - u, FixedPoint(max_iter=50), init=lambda b: 0.0 * b, on_failure="ignore")
    assert int(found.solve(b).status) == int(dil.Status.MAX_ITER)
    wild = dil.fixed_point(
        lambda u, b: 4.0 * u * (b - u), type(solver)(max_iter=50), init=lambda b: 0.3 * b, on_failure="ignore"
    )
    x = wild.solve(b)
    status, u = int(x.status), plain.to_numpy(x.value)
    assert status != int(dil.Status.CONVERGED) or np.max(np.abs(4 * u * (1 - u) - u)) < 1e-5


def test_under_jit():
    jax = pytest.importorskip("jax")
    A, b = data(40, 5, 1e-8)
    for solver in SOLVERS:
        layer = dil.fixed_point(affine, solver, init=lambda A, b: 0.0 * b, batch_ndim=1)
        found = jax.jit(lambda A, b, layer=layer: layer.solve(A, b)[1:4])(A, b)
        assert np.all(np.asarray(found[0]) == int(dil.Status.CONVERGED))
        assert int(found[1].max()) < SOON
