"""The factors of a matrix serve the next one near by: the answer is that of the new matrix, to rounding."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import dil
from dil import Status
from dil.linear import Operator, SparseDirect

sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
FACTOR = importlib.import_module("dil.linear._sparse_factor")
N = 60


@pytest.fixture(autouse=True)
def factorised(monkeypatch):
    """Return the list that gets an item for each factorisation. No factors are kept from other tests."""
    done, splu = [], FACTOR.import_linalg().splu

    class Linalg:
        @staticmethod
        def splu(*args, **options):
            done.append(options.get("permc_spec", "COLAMD"))
            return splu(*args, **options)

    monkeypatch.setattr(FACTOR, "import_linalg", lambda: Linalg)
    monkeypatch.setattr(FACTOR, "LAST_FACTOR", FACTOR.LastFactor())
    return done


def chain(seed=0):
    draw = np.random.default_rng(seed)
    return np.diag(draw.uniform(3.0, 4.0, N)) + np.diag(draw.uniform(0, 1, N - 1), 1) + np.diag(np.ones(N - 1), -1)


def solved(A, b, **options):
    found = SparseDirect("tridiagonal")(Operator(lambda p: A @ p, lambda p: A.T @ p, **options), b)
    return found.value, Status(int(found.status)).name, found.extra


@pytest.mark.parametrize("change", [0.0, 1e-12, 1e-7, 1e-5])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_near_by(factorised, change, transposed):
    A, b = chain(), np.random.default_rng(1).standard_normal(N)
    B = A * (1.0 + change * np.random.default_rng(2).standard_normal((N, N)))
    solved(A, b)
    M = B.T if transposed else B
    x, name, _ = solved(M, b, transposed=transposed)
    assert (name, len(factorised)) == ("CONVERGED", 1)
    terms = np.abs(M).sum(-1).max() * np.abs(x).max() + np.abs(b).max()
    assert np.abs(M @ x - b).max() <= 16 * np.finfo(float).eps * terms
    np.testing.assert_allclose(x, np.linalg.solve(M, b), rtol=1e-13, atol=1e-14)


def test_a_matrix_far_away_gets_factors_of_its_own(factorised):
    b = np.ones(N)
    for k, A in enumerate([chain(0), chain(1), 2.0 * chain(1), chain(0)]):
        x, name, _ = solved(A, b)
        assert (name, len(factorised)) == ("CONVERGED", k + 1)
        np.testing.assert_allclose(A @ x, b, rtol=1e-13)


def test_a_singular_matrix_near_a_regular_one(factorised):
    L = np.diag(np.full(N, 2.0)) - np.eye(N, k=1) - np.eye(N, k=-1)
    L[0, 0] = L[-1, -1] = 1.0
    b = np.random.default_rng(0).standard_normal(N)
    assert solved(L + 1e-9 * np.eye(N), b)[1] == "CONVERGED"
    assert solved(L, b)[1] == "SINGULAR"
    assert solved(L + 1e-9 * np.eye(N), b)[1] == "CONVERGED"
    assert len(factorised) >= 3


def test_an_ill_conditioned_matrix_is_factorised_where_a_small_change_is_large(factorised):
    """The smallest eigenvalue changes its sign."""
    L = np.diag(np.full(N, 2.0)) - np.eye(N, k=1) - np.eye(N, k=-1)
    least = np.linalg.eigvalsh(L)[0]
    b = np.random.default_rng(0).standard_normal(N)
    signs = [
        bool(solved(L - share * least * np.eye(N), b, symmetric=True)[2]["indefinite"]) for share in (0.999, 1.001)
    ]
    assert signs == [False, True]
    again = solved(L - 1.001 * least * np.eye(N), b, symmetric=True)[2]
    assert bool(again["indefinite"])


def test_what_is_too_large_is_not_kept(factorised, monkeypatch):
    monkeypatch.setattr(FACTOR, "MOST_KEPT", 10)
    for _ in range(2):
        solved(chain(), np.ones(N))
    assert len(factorised) == 2


def test_the_backward_pass_takes_the_factors_of_the_last_step(eager, factorised):
    def F(u, t):
        return 3.0 * u + 0.1 * u**3 - eager.xp.roll(u, 1) - t

    solver = SparseDirect()
    layer = dil.root(F, dil.solvers.Newton(linear_solver=solver), linear_solver=solver, init=lambda t: 0.0 * t)
    t, v = np.random.default_rng(0).standard_normal((2, 50))
    y, pull = dil.vjp(layer, eager.asarray(t))
    steps = len(factorised)
    assert 1 <= steps <= 4
    g = eager.to_numpy(pull(eager.asarray(v))[0])
    assert len(factorised) == steps
    u = eager.to_numpy(y)
    J = np.diag(3.0 + 0.3 * u**2) - np.roll(np.eye(50), 1, axis=0)
    np.testing.assert_allclose(g, np.linalg.solve(J.T, v), rtol=1e-12)
