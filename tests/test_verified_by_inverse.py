"""A solution of few unknowns is verified with the inverse of its Hessian in numbers, as it is with arrays."""

import numpy as np
import pytest

import dil
from dil._frameworks.registry import owner
from dil.solvers._verify import Most, passes_by_inverse

BACKEND = owner(np.zeros(1))
SIZES = pytest.mark.parametrize("n", [1, 2, 5, 6, 20])


def quadratic(n, seed=0):
    rng = np.random.default_rng(seed)
    B, unit = rng.normal(size=(n, n)), 10.0 ** rng.uniform(-3, 3, n)
    return unit[:, None] * (B @ B.T + np.eye(n)) * unit, rng.normal(size=n) / unit


@SIZES
@pytest.mark.parametrize("seed", range(5))
def test_it_passes_a_short_step_and_a_small_promise_alone(n, seed):
    H, u = quadratic(n, seed)
    scale, step = np.abs(u), 1e-6 * u * np.linspace(0.5, 1.0, n)
    F, longest = H @ step, float(np.max(np.abs(step) / scale))
    promise = float(F @ step) / float(u @ H @ u)
    for share, passes in ((1.01, True), (0.99, False)):
        assert passes_by_inverse(H, F, u, scale, Most(share * longest, 0.0), BACKEND) is passes
        assert passes_by_inverse(H, F, u, scale, Most(0.0, share * promise), BACKEND) is passes


@SIZES
@pytest.mark.parametrize("least", [-1.0, 0.0])
def test_it_passes_no_hessian_that_is_not_positive_definite(n, least):
    Q = np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))[0]
    H = (Q * np.linspace(least, 1.0, n)) @ Q.T
    u = np.ones(n)
    assert not passes_by_inverse(0.5 * (H + H.T), 1e-12 * u, u, u, Most(1.0, 1.0), BACKEND)


def test_it_passes_no_gradient_that_is_not_finite():
    H, u = quadratic(3)
    assert not passes_by_inverse(H, np.asarray([0.0, np.nan, 0.0]), u, np.abs(u), Most(1.0, 1.0), BACKEND)


@pytest.mark.parametrize("rtol", [1e-3, 1e-6, None])
def test_few_unknowns_end_as_a_batch_of_one_does(rtol):
    H, u = quadratic(6)

    def score(v):
        return 0.5 * ((v - u) * ((v - u) @ H)).sum(-1)

    for solver in (dil.solvers.LBFGS(rtol=rtol), dil.solvers.GradientDescent(rtol=rtol, max_iter=50)):
        alone, batch = solver(score, np.zeros(6)), solver(score, np.zeros((1, 6)))
        assert int(alone.status) == int(batch.status[0])
