"""What `Auto` tells of its products after a fallback, and the random signs that its probes take."""

from __future__ import annotations

import numpy as np
import pytest

from dil import Status
from dil._frameworks import random_vectors
from dil._frameworks.registry import common_owner
from dil.linear import Auto, Operator


def counted(A):
    """Return a symmetric or general operator with its calls."""
    calls = []

    def product(p):
        calls.append(1)
        return (A @ p[..., None])[..., 0]

    return Operator(product, symmetric=bool(np.allclose(A, np.swapaxes(A, -1, -2)))), calls


def test_products_of_all_methods_are_added():
    indefinite = np.diag(np.r_[np.linspace(1, 2, 150), -1.0])
    turned = np.roll(np.eye(200), 1, axis=0)  # BiCGSTAB breaks down
    for A, followed in ((indefinite, "MINRES"), (turned, "IDR")):
        operator, calls = counted(A)
        found = Auto(dense=0)(operator, np.arange(1.0, len(A) + 1))
        assert followed in str(found.extra["choice"])
        assert int(found.extra["products"]) == len(calls)


def test_products_of_a_batch_are_those_of_its_problems():
    n = 150
    A = np.stack([np.diag(np.linspace(1, 2, n)), np.diag(np.r_[np.linspace(1, 2, n - 1), -1.0])])
    b = np.random.default_rng(0).standard_normal((2, n))
    together = Auto(dense=0)(counted(A)[0], b)
    alone = [Auto(dense=0)(counted(A[i])[0], b[i]) for i in range(2)]
    assert together.status.tolist() == [Status.CONVERGED] * 2
    for i in range(2):
        assert abs(int(together.extra["products"][i]) - int(alone[i].extra["products"])) <= 1


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_random_signs_are_drawn_once(plain, monkeypatch, shape):
    drawn, draw = [], random_vectors._signs
    monkeypatch.setattr(random_vectors, "_signs", lambda *args: drawn.append(args) or draw(*args))
    random_vectors._cached_signs.cache_clear()
    like = plain.asarray(np.zeros(shape))
    backend = common_owner([like], ["like"], "the test")
    found = [plain.to_numpy(random_vectors.random_signs(backend, like, 4, seed)) for seed in (0, 0, 1)]
    assert len(drawn) == 2
    assert found[0].shape == (4, *(1,) * (len(shape) - 1), 7)
    assert set(found[0].reshape(-1)) == {-1.0, 1.0}
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[0].reshape(4, 7), np.random.default_rng(0).choice([-1.0, 1.0], (4, 7)))


def test_a_draw_that_is_changed_leaves_the_next_one():
    like = np.zeros(7)
    backend = common_owner([like], ["like"], "the test")
    random_vectors.random_signs(backend, like, 4, 0)[...] = 0.0
    assert np.all(random_vectors.random_signs(backend, like, 4, 0) != 0)
