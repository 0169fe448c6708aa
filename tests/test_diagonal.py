"""The diagonal of a matrix from products with random signs."""

from __future__ import annotations

import numpy as np
import pytest

from dil._frameworks.registry import common_owner
from dil.linear._diagonal import estimated_diagonal

N, PROBES = 50, 8


def estimated(plain, A, **options):
    """Return R and the difference as NumPy arrays, and the number of products; A: (*batch, n, n)."""
    matrix, like, calls = plain.asarray(A), plain.asarray(np.ones(A.shape[:-1])), []

    def product(p):
        calls.append(1)
        return (matrix @ p[..., None])[..., 0]

    backend = common_owner([like], ["like"], "the test")
    found = estimated_diagonal(product, like, backend, probes=PROBES, seed=0, loops=backend.loops, **options)
    assert int(found.products) == len(calls)
    return plain.to_numpy(found.root), plain.to_numpy(found.difference), len(calls)


def scaled_noise(size):
    """Return D (I + E) D with entries of E of a size beside the norm of its rows, and scales D^2 from 1 to 1e6."""
    draw = np.random.default_rng(0)
    E, d = draw.standard_normal((N, N)) * (size / N**0.5), draw.permutation(np.geomspace(1.0, 1e3, N))
    return d[:, None] * (np.eye(N) + (E + E.T) / 2) * d


@pytest.mark.parametrize("unit", [1.0, 1e-200, 1e200])
def test_a_diagonal_is_found_at_once(eager, unit):
    d = np.random.default_rng(0).permutation(np.geomspace(1.0, 1e6, N))
    for diagonal in (d, np.stack([d, d[::-1]])):
        A = unit * diagonal[..., None] * np.eye(N)
        root, difference, products = estimated(eager, A, goes_on=lambda k, _: k < 2)
        np.testing.assert_allclose(root * (unit * diagonal) ** 0.5, 1.0, rtol=1e-12)
        assert difference.shape == (*diagonal.shape[:-1], 1)
        assert np.all(difference <= 1e-12)
        assert products == 2


def test_each_round_comes_nearer_to_the_diagonal(eager):
    """The mean over the rounds is the diagonal itself, not a multiple of it."""
    A = scaled_noise(0.2)
    errors = []
    for most in (2, 4, 8):
        root, difference, products = estimated(eager, A, goes_on=lambda k, _, most=most: k < most)
        assert products == most
        errors.append(float(np.median(abs(np.log(root**2 * np.diag(A))))))
        assert 0.01 < float(difference[0]) < 0.5
    assert errors[2] < 0.15
    assert errors[2] < errors[1] < errors[0]


def test_entries_off_the_diagonal_show_as_a_difference(eager):
    flat = np.ones((N, N)) + np.eye(N)
    assert float(estimated(eager, flat)[1][0]) > 0.4


def test_it_is_positive_whatever_the_matrix(eager):
    draw = np.random.default_rng(0)
    A = draw.standard_normal((N, N))
    A = A + A.T
    A[3, :] = A[:, 3] = 0.0
    A[5, 5] = -1e3
    root = estimated(eager, A)[0]
    assert np.all(np.isfinite(root))
    assert np.all(root > 0)


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_a_few_large_eigenvalues_show_as_a_concentration(unit):
    """A chain has the mean 2 and the mean square 6. Four equal eigenvalues above zeros have n / 4."""
    n, backend = 400, common_owner([np.ones(1)], ["b"], "the test")
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((n, 4)))[0]
    chain = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    for A, expected in ((chain, 1.5), (Q @ Q.T, n / 4), (0 * chain, 1.0)):
        found = estimated_diagonal(
            lambda p, A=A: unit * (A @ p), np.ones(n), backend, probes=PROBES, seed=0, loops=backend.loops
        )
        np.testing.assert_allclose(found.concentration, [expected], rtol=0.2)
