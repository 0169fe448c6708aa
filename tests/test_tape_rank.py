"""The pseudoinverse where the rank of a matrix may change: it jumps there, and has a derivative only along its rank."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest

import dil
from dil._base.errors import UnsupportedFunctionError
from dil_backends._tape import namespace, vjp

pytestmark = pytest.mark.filterwarnings("error")

RNG = np.random.default_rng(0)
G = RNG.normal(size=(5, 5))
RANK_ONE = np.array([[1.0, 2.0], [2.0, 4.0]])
EDGES = np.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0], [1.0, 0.0, -1.0]])

JUMPS = {
    "rank one": (lambda A: np.linalg.pinv(A), RANK_ONE),
    "zeros": (lambda A: np.linalg.pinv(A), np.zeros((2, 2))),
    "tall": (lambda A: np.linalg.pinv(A), np.ones((3, 2))),
    "complex": (lambda A: np.real(np.linalg.pinv(A)), RANK_ONE * (1.0 + 2.0j)),
    "turned by i": (lambda t: np.real(np.linalg.pinv(RANK_ONE + 1j * t * np.eye(2))), np.asarray(0.0)),
    "one of a batch": (lambda A: np.linalg.pinv(A), np.stack([np.eye(2), RANK_ONE])),
    "diagonal": (lambda d: np.linalg.pinv(np.diag(d)), np.array([1.0, 0.0])),
    "hermitian": (lambda A: np.linalg.pinv(A, hermitian=True), RANK_ONE),
    "an rtol of rounding": (lambda A: np.linalg.pinv(A, rtol=1e-16), RANK_ONE),
    "least squares": (lambda A: np.linalg.lstsq(A, np.ones(2), rcond=None)[0], RANK_ONE),
}
KEEPS = {
    "outer product": (lambda u: np.linalg.pinv(np.outer(u, u)) * G[:2, :2], np.array([1.0, 2.0])),
    "laplacian": (lambda w: np.linalg.pinv((EDGES.T * w) @ EDGES) * G[:3, :3], np.array([1.0, 2.0, 3.0])),
    "laplacian with scales": (lambda w: np.linalg.pinv((EDGES.T * w) @ EDGES), np.array([1e5, 1.0, 1e-4])),
    "few rows": (lambda X: np.linalg.pinv(X.T @ X) * G, G[:2]),
    "centred": (lambda X: np.linalg.pinv(X - np.mean(X, axis=0)) * G[:4, :4], G[:4, :4]),
    "scaled": (lambda t: np.linalg.pinv(RANK_ONE * t), np.asarray(3.0)),
    "complex": (lambda t: np.real(np.linalg.pinv(RANK_ONE * (t + 2.0j * t * t))), np.asarray(3.0)),
    "an rtol": (lambda A: np.linalg.pinv(A, rtol=1e-6), RANK_ONE),
    "the right side": (lambda b: np.linalg.lstsq(RANK_ONE, b, rcond=None)[0] * b, np.array([1.0, 3.0])),
    "full rank": (lambda A: np.linalg.pinv(A), G),
}


def squares(f):
    """A score of order two or more, whose gradient depends on the argument."""
    return lambda x: np.sum(f(x) + f(x) ** 2)


def twice(f):
    return lambda x: np.sum(np.abs(dil.grad(f)(x)) ** 2)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", JUMPS)
def test_where_the_rank_can_rise_there_is_no_derivative(name, order):
    f, x = squares(JUMPS[name][0]), JUMPS[name][1]
    f = twice(f) if order == 2 else f
    with pytest.raises(UnsupportedFunctionError, match="can raise its rank; an rtol above rounding"):
        dil.grad(f)(x)
    with pytest.raises(UnsupportedFunctionError, match="can raise its rank"):
        dil.jvp(f, (x,), (np.ones_like(x),))


@pytest.mark.parametrize("name", KEEPS)
def test_a_matrix_that_keeps_its_rank_has_the_derivative(name):
    f, x = squares(KEEPS[name][0]), KEEPS[name][1]
    t = np.asarray(RNG.normal(size=x.shape)) * np.abs(x)
    for g in (f, twice(f)):
        h = 1e-3 if name != "an rtol" else 1e-8  # below the rtol
        expected = sum(w * (g(x + k * h * t) - g(x - k * h * t)) for k, w in [(1, 2 / 3), (2, -1 / 12)]) / h
        found = np.sum(dil.grad(g)(x) * t)
        assert abs(found - expected) <= 1e-6 * (abs(expected) + abs(g(x)))


def test_a_layer_of_a_laplacian():
    """The potentials u of currents in a network, of a layer whose score has the pseudoinverse."""
    b = np.array([1.0, 0.0, -1.0])
    inverse = lambda w: np.linalg.pinv((EDGES.T * w) @ EDGES)  # noqa: E731
    layer = dil.argmin(lambda u, w: 0.5 * np.sum((u - inverse(w) @ b) ** 2), dil.solvers.Newton())
    w = np.array([1.0, 2.0, 3.0])
    found = dil.grad(lambda w: layer(w, init=np.zeros(3)) @ b)(w)
    potentials = np.linalg.pinv((EDGES.T * w) @ EDGES) @ b
    np.testing.assert_allclose(found, -((EDGES @ potentials) ** 2), rtol=1e-9)


def test_complex_matrices_of_a_strict_namespace():
    """It compares no complex numbers, and makes no range of them."""

    def pull(A):
        xp = namespace(A)
        return vjp(lambda A: (xp.tanh(xp.linalg.pinv(A)),), A)[1]((xp.ones(A.shape[::-1], dtype=xp.complex128),))[0]

    wide = G[:2, :3] + 1j * G[2:4, :3]
    np.testing.assert_allclose(np.asarray(pull(array_api_strict.asarray(wide))), pull(wide), rtol=1e-13)
    with pytest.raises(UnsupportedFunctionError, match="can raise its rank"):
        pull(array_api_strict.asarray(RANK_ONE * (1.0 + 2.0j)))
