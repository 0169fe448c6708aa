"""Everyday expressions that a tape cannot follow: an error says what to write instead, and what it says is right."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.sparse.linalg
import scipy.special
from numpy.polynomial import Polynomial
from numpy.polynomial.chebyshev import chebfit, chebvander

import dil

U = np.array([0.6, -1.1, 0.9, 0.4])
X = np.arange(4.0)
S = scipy.sparse.csc_matrix(np.diag([2.0, 3.0, 4.0, 5.0]) + np.eye(4, k=1))
AT = (np.array([0, 2, 1, 0]), np.array([1, 1, 3, 2]))

REFUSED = {
    "a bracketing solver": (lambda u: scipy.optimize.brentq(lambda t: t - u[0], -5, 5), r"scipy.optimize.brentq.*root"),
    "bisection": (lambda u: scipy.optimize.bisect(lambda t: t - u[0], -5, 5), r"scipy.optimize.bisect.*dil\.root"),
    "a diagonal matrix": (scipy.sparse.diags, r"`u \* v` for `diags\(u\) @ v`"),
    "a diagonal array": (scipy.sparse.diags_array, r"`u \* v` for `diags\(u\) @ v`"),
    "SuperLU": (scipy.sparse.linalg.splu(S).solve, r"np\.linalg\.solve\(S\.toarray\(\), u\)"),
    "a factorization": (scipy.sparse.linalg.factorized(S), r"np\.linalg\.solve\(S\.toarray\(\), u\)"),
    "a pickle": (pickle.dumps, r"pickle `dil\.constant\(u\)`"),
    "a fit": (lambda u: Polynomial.fit(X, u, 2)(0.5), r"np\.polyfit\(x, u, n\)\[::-1\]"),
    "a Chebyshev fit": (lambda u: chebfit(X, u, 2), r"chebvander\(x, n\), u\)"),
    "roots": (lambda u: Polynomial(u).roots(), r"np\.roots\(c\[::-1\]\)"),
    "binomial coefficients": (lambda u: scipy.special.comb(u, 2), r"scipy\.special\.comb.*gammaln"),
    "factorials": (lambda u: scipy.special.factorial(u), r"scipy\.special\.factorial.*gamma\(n \+ 1\)"),
    "random numbers": (lambda u: np.random.default_rng(0).normal(u), r"np\.random"),
    "another device": (lambda u: u.to_device("elsewhere"), "to another device"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_what_to_write(name):
    f, match = REFUSED[name]
    with pytest.raises(dil.UnsupportedFunctionError, match=match):
        dil.grad(lambda u: np.sum(f(u)))(U)


ADVICE = {
    "fit": (lambda u: np.polyfit(X, u, 2)[::-1], lambda u: Polynomial.fit(X, u, 2).convert().coef),
    "Chebyshev fit": (lambda u: np.linalg.lstsq(chebvander(X, 2), u)[0], lambda u: chebfit(X, u, 2)),
    "roots": (lambda u: np.sort(np.roots(u[::-1]).real), lambda u: np.sort(Polynomial(u).roots().real)),
    "diagonal": (lambda u: u * X, lambda u: scipy.sparse.diags([u], [0]) @ X),
    "entries of a sparse matrix": (
        lambda u: scipy.sparse.coo_matrix((np.ones(4), (AT[0], np.arange(4))), (5, 4)) @ (u * X[AT[1]]),
        lambda u: scipy.sparse.coo_matrix((u, AT), (5, 4)) @ X,
    ),
    "solve": (lambda u: np.linalg.solve(S.toarray(), u), scipy.sparse.linalg.splu(S).solve),
    "comb": (
        lambda u: np.exp(scipy.special.gammaln(u + 9.0) - scipy.special.gammaln(3.0) - scipy.special.gammaln(u + 7.0)),
        lambda u: scipy.special.comb(u + 8.0, 2),
    ),
    "device": (lambda u: u.to_device("cpu"), lambda u: u),
}


@pytest.mark.parametrize("name", ADVICE)
def test_what_is_advised_is_the_same(name):
    advised, refused = ADVICE[name]
    np.testing.assert_allclose(advised(U), refused(U), rtol=1e-10, atol=1e-12)
    weights = np.cos(np.arange(advised(U).size))
    found = dil.grad(lambda u: advised(u) @ weights)(U)
    steps = 1e-6 * np.eye(4)
    expected = [(advised(U + e) - advised(U - e)) @ weights / 2e-6 for e in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_an_attribute_of_memory_is_that_of_the_array():
    def score(u):
        assert not hasattr(u, "strides")
        with pytest.raises(AttributeError, match=r"`dil\.constant\(u\)\.strides`"):
            _ = u.strides
        with pytest.raises(AttributeError, match=r"no attribute `foo`$"):
            _ = u.foo
        assert dil.constant(u).strides == U.strides
        return np.sum(u * copy.deepcopy(u))

    np.testing.assert_array_equal(dil.grad(score)(U), 2 * U)


def test_an_error_of_the_user_stays():
    def score(u):
        return scipy.optimize.brentq(lambda t: t - missing(u), -5, 5)  # noqa: F821

    with pytest.raises(NameError, match="missing"):
        dil.grad(score)(U)


def test_a_namespace_can_be_pickled():
    xp = dil.backend("numpy").xp
    for original in (xp, xp.linalg):
        again = pickle.loads(pickle.dumps(original))
        assert repr(again) == repr(original)
    again = pickle.loads(pickle.dumps(xp.linalg))
    np.testing.assert_allclose(dil.grad(again.vector_norm)(U), U / np.linalg.norm(U), rtol=1e-15)
    np.testing.assert_array_equal(dil.grad(lambda u: copy.deepcopy(xp).sum(u))(U), np.ones(4))


@pytest.mark.parametrize("kind", ["MaskedArray", "matrix"])
def test_an_argument_whose_operators_are_its_own_is_refused(kind):
    masked = np.ma.array([[1.0, 2.0, 3.0]], mask=[[0, 1, 0]])
    x = masked if kind == "MaskedArray" else np.array([[1.0, 2.0]]).view(np.matrix)
    for attempt in (
        lambda: dil.grad(lambda x: np.sum(x**2))(x),
        lambda: dil.jvp(lambda x: np.sum(x**2), (x,), (np.ones(x.shape),)),
    ):
        with pytest.raises(dil.UnsupportedFunctionError, match=kind):
            attempt()


@pytest.mark.parametrize("f", [np.exp, np.tanh, lambda w: w], ids=["exp", "tanh", "w"])
@pytest.mark.parametrize("decomposition", ["eigh", "svd"])
def test_a_matrix_function_at_zero_is_refused(f, decomposition):
    W = np.arange(9.0).reshape(3, 3) + 1.0

    def by_eigh(A):
        w, V = np.linalg.eigh((A + A.T) / 2)
        return np.sum(W * ((V * f(w)) @ V.T))

    def by_svd(A):
        U, s, Vh = np.linalg.svd(A)
        return np.sum(W * ((U * f(s)) @ Vh))

    score = by_eigh if decomposition == "eigh" else by_svd
    with pytest.raises(dil.UnsupportedFunctionError, match="coincide"):
        dil.grad(score)(np.zeros((3, 3)))
    both = np.stack([np.diag([1.0, 2.0, 3.0]), np.zeros((3, 3))])
    with pytest.raises(dil.UnsupportedFunctionError, match="coincide"):
        dil.grad(lambda A: score(A[0]) + score(A[1]))(both)


def test_what_is_defined_at_zero_is_right():
    zero = np.zeros((3, 3))
    np.testing.assert_array_equal(dil.grad(lambda A: np.sum(np.linalg.eigvalsh(A)))(zero), np.eye(3))
    np.testing.assert_array_equal(dil.grad(lambda A: np.sum(np.linalg.svd(A)[1] ** 2))(zero), zero)
    with pytest.raises(dil.UnsupportedFunctionError, match="coincide"):
        dil.grad(lambda A: np.linalg.eigvalsh(A) @ np.arange(3.0))(zero)


OF_A_NUMBER = {
    **{name: lambda u, name=name: getattr(np, name)(u, axis=0) ** 2 for name in [
        *("sum", "prod", "max", "min", "nansum", "nanprod", "nanmax", "nanmin", "cumsum", "cumprod", "nancumprod"),
    ]},
    "last axis": lambda u: np.sum(u**2, axis=-1, keepdims=True),
    "ptp": lambda u: np.ptp(u, axis=0) + u**2,
    "repeat": lambda u: np.repeat(u, 3, axis=0) ** 2 / 3.0,
    "method": lambda u: u.max(0) * u.sum(-1),
    "logsumexp": lambda u: scipy.special.logsumexp(u, axis=0) ** 2,
    "broadcast_to": lambda u: np.broadcast_to(u, 2) * u / 2.0,
    "broadcast_arrays": lambda u: np.broadcast_arrays(u, 2.0)[0] * u,
}  # fmt: skip


@pytest.mark.parametrize("name", OF_A_NUMBER)
def test_the_axis_of_a_number_that_numpy_takes(name):
    f = lambda u: np.sum(OF_A_NUMBER[name](u))  # noqa: E731
    assert f(np.asarray(0.37)) == pytest.approx(0.37**2, rel=1e-14)
    assert dil.grad(f)(np.asarray(0.37)) == pytest.approx(0.74, rel=1e-14)
    assert dil.grad(dil.grad(f))(np.asarray(0.37)) == pytest.approx(2.0, rel=1e-14)


OF_LISTS = {
    "softmax": lambda u: scipy.special.softmax([u[0], u[1], 0.5]) @ np.arange(3.0),
    "log_softmax": lambda u: scipy.special.log_softmax([u, 2.0 * u], axis=0)[0] @ u,
    "logsumexp": lambda u: scipy.special.logsumexp([u[0], u[1], 0.0]),
    "polygamma": lambda u: np.sum(scipy.special.polygamma([1, 2], [u[0], u[1]])),
    "multigammaln": lambda u: np.sum(scipy.special.multigammaln([u[0] + 2.0, u[1] + 2.0], 2)),
}


@pytest.mark.parametrize("name", OF_LISTS)
def test_functions_of_scipy_take_lists(name):
    f, u, h = OF_LISTS[name], np.array([0.4, 0.7]), 1e-3
    for i, t in enumerate(np.eye(2)):
        expected = sum(w * (f(u + k * h * t) - f(u - k * h * t)) for k, w in [(1, 2 / 3), (2, -1 / 12)]) / h
        assert dil.grad(f)(u)[i] == pytest.approx(expected, rel=1e-8)
