"""The default linear solver where it preconditions itself: large symmetric systems against dense solves."""

from __future__ import annotations

import numpy as np
import pytest

from dil import Status
from dil.linear import Auto, Operator

ONE_WAY = Auto(dense=0)
"""Without a dense solve after it, whose status would hide that of the race."""


def operator(H):
    return Operator(lambda p: (H @ p[..., None])[..., 0], symmetric=True)


def rotated(values, seed=0):
    Q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    H = (Q * values) @ Q.T
    return (H + H.T) / 2


def gaussian_kernel(n):
    x = np.arange(n)
    return np.exp(-0.5 * ((x[:, None] - x[None, :]) * 20 / n) ** 2) + 1e-5 * np.eye(n)


N = 200
SPECTRA = {
    "flat": np.linspace(1, 2, N),
    "wide": np.geomspace(1e-2, 1e2, N),
    "clusters": np.repeat([1.0, 1e2, 1e4, 1e6], N // 4) * (1 + 1e-6 * np.arange(N)),
    "large outliers": np.concatenate([np.linspace(1, 2, N - 5), np.geomspace(1e3, 1e7, 5)]),
    "small outliers": np.concatenate([np.linspace(1, 2, N - 5), np.geomspace(1e-6, 1e-2, 5)]),
}


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
@pytest.mark.parametrize("name", SPECTRA)
def test_spectra(name, scale):
    H, b = rotated(SPECTRA[name]), np.random.default_rng(1).standard_normal(N)
    solution = Auto()(operator(scale * H), b)
    assert int(solution.status) == Status.CONVERGED
    assert np.linalg.norm(H @ (scale * solution.value) - b) <= 1e-9 * np.linalg.norm(b)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("n", [60, 200, 300, 500])
def test_a_matrix_that_is_singular_to_rounding_is_not_called_an_overflow(n, seed):
    H = gaussian_kernel(n).astype(np.float32)
    b = np.random.default_rng(seed).standard_normal((2, n)).astype(np.float32)
    alone, together = ONE_WAY(operator(H), b[0]), ONE_WAY(operator(H), b)
    for status in (alone.status, *together.status):
        assert int(status) in (Status.STAGNATED, Status.SINGULAR, Status.MAX_ITER)


def test_a_nan_is_told_and_leaves_the_other_problem():
    H, b = rotated(SPECTRA["wide"]), np.ones((2, N))
    H = np.stack([H, H])
    H[1, 3, 3] = np.nan
    status = ONE_WAY(operator(H), b).status
    assert [int(s) for s in status] == [Status.CONVERGED, Status.NON_FINITE]
