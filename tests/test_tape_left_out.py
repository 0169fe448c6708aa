"""Entries that a function leaves out, such as those that are NaN: no derivative passes through them, and no NaN."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special

import dil

NAN = np.nan
U = np.array([0.3, 0.7, 1.4, -0.2])
Y = np.array([1.0, NAN, 2.0, 0.5])
THERE = ~np.isnan(Y)

MODELS = {
    "difference": lambda u, y: u - y,
    "square": lambda u, y: (u - y) ** 2,
    "product": lambda u, y: u * y,
    "quotient": lambda u, y: np.exp(u) / y,
    "one number": lambda u, y: u[0] * y + u[1] * y**2 + u[2],
    "likelihood": lambda u, y: y * np.log(1.0 + u**2) - np.log1p(np.exp(u * y)),
    "rows": lambda u, y: np.sqrt(np.sum((u[:, None] - np.stack([y, 2 * y], axis=1)) ** 2, axis=1)),
    "matrix": lambda u, y: np.abs(np.vander(THERE * 1.0, 4) @ u - y) ** 1.5,
}
REDUCTIONS = {
    **{
        n: getattr(np, n) for n in ("nansum", "nanmean", "nanmax", "nanmin", "nanprod", "nanvar", "nanstd", "nanmedian")
    },
    "nancumsum": lambda x: np.nansum(np.nancumsum(x) * np.arange(4.0)),
    "nancumprod": lambda x: np.nansum(np.nancumprod(x) * np.arange(4.0)),
    "nanquantile": lambda x: np.nanquantile(x, 0.3),
    "nan_to_num": lambda x: np.sum(np.nan_to_num(x)),
    "fmax": lambda x: np.sum(np.fmax(x, 0.1) * THERE),
    "where=": lambda x: np.sum(x, where=THERE),
    "mean where=": lambda x: np.mean(x, where=THERE),
    "max where=": lambda x: np.max(x, where=THERE, initial=-9.0),
}
"""Functions of the entries, each with the value of the entries that are there alone."""


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("model", MODELS)
def test_the_gradient_is_that_of_the_entries_that_are_there(model, reduction):
    f, g = MODELS[model], REDUCTIONS[reduction]
    kept = np.flatnonzero(THERE)

    def ours(u):
        return g(f(u, Y))

    def theirs(u):
        """The same without NaN: the value of the missing entry does not count."""
        x = f(u, np.where(THERE, Y, 0.25))
        return g(np.stack([x[i] if i in kept else np.asarray(NAN) for i in range(4)]))

    first, expected = dil.grad(ours), dil.grad(theirs)
    assert ours(U) == theirs(U)
    scale = np.max(np.abs(expected(U)))
    assert np.all(np.isfinite(expected(U)))
    np.testing.assert_allclose(first(U), expected(U), rtol=1e-12, atol=1e-14 * scale)
    v = np.cos(U)
    second, wanted = (dil.grad(lambda u, d=d: d(u) @ v)(U) for d in (first, expected))
    np.testing.assert_allclose(second, wanted, rtol=1e-10, atol=1e-13 * max(scale, np.max(np.abs(wanted))))
    np.testing.assert_allclose(dil.jvp(ours, (U,), (v,))[1], expected(U) @ v, rtol=1e-10, atol=1e-13 * scale)


def test_the_gradient_of_a_sum_is_one_where_there_is_a_number_and_zero_elsewhere():
    np.testing.assert_array_equal(dil.grad(lambda u: np.nansum(u + Y))(U), THERE * 1.0)
    np.testing.assert_array_equal(dil.grad(np.nansum)(Y), THERE * 1.0)
    np.testing.assert_array_equal(dil.grad(lambda u: np.nansum(u * Y))(U), np.where(THERE, Y, 0.0))


def test_an_entry_that_is_used_elsewhere_keeps_its_nan():
    def score(u):
        x = u * Y
        return np.nansum(x) + np.sum(x)

    np.testing.assert_array_equal(np.isnan(dil.grad(score)(U)), ~THERE)


def test_a_function_without_missing_entries_beside_it_keeps_its_nan():
    gradient = dil.grad(lambda u: np.nansum(u[:2]) + np.sum(u[2:] * np.array([NAN, 1.0])))(U)
    np.testing.assert_array_equal(gradient, [1.0, 1.0, NAN, 1.0])


def test_an_entry_whose_residual_is_zero_keeps_its_second_derivative():
    """Its cotangent is zero too, but it is not left out."""
    u = np.where(THERE, Y, 0.3)
    hessian = np.stack(
        [dil.grad(lambda u, i=i: dil.grad(lambda w: np.nansum((w - Y) ** 2))(u)[i])(u) for i in range(4)]
    )
    np.testing.assert_array_equal(hessian, np.diag(2.0 * THERE))


def test_a_layer_fits_data_with_gaps():
    X = np.vander(np.arange(4.0), 2)
    layer = dil.argmin(lambda w, y: np.nansum((X @ w - y) ** 2), dil.solvers.Newton(), init=lambda y: np.zeros(2))
    expected = np.linalg.pinv(X[THERE])
    np.testing.assert_allclose(layer(Y), expected @ Y[THERE], rtol=1e-10)
    gradient = dil.grad(lambda y: layer(y)[0])(Y)
    np.testing.assert_allclose(gradient[THERE], expected[0], rtol=1e-10, atol=1e-14)
    assert gradient[~THERE] == 0.0


X = np.array([[NAN, 0.5, 2.0], [1.0, -0.7, 0.4], [0.3, 1.6, -1.1]])
MIXING = {
    "matrix @ vector": lambda w: X @ w,
    "matrix @ matrix": lambda w: X @ (w[:, None] * np.ones(3)),
    "dot": lambda w: np.dot(X, w),
    "einsum": lambda w: np.einsum("ij,j->i", X, w),
    "inner": lambda w: np.inner(w, X),
    "solve": lambda w: np.linalg.solve(np.where(np.isnan(X), 1.0, X), w) * X[0],
}
"""Functions of a square matrix with a NaN: their gradients have the shape of their values, and mix its entries."""


@pytest.mark.parametrize("name", MIXING)
def test_a_nan_of_a_matrix_is_never_a_gradient_of_zero(name):
    w = np.array([0.3, -1.2, 0.8])

    def score(w):
        return np.nansum(MIXING[name](w) ** 2)

    found = dil.grad(score)(w)
    expected = np.array([score(w + e) - score(w - e) for e in 1e-6 * np.eye(3)]) / 2e-6
    assert np.all(np.isnan(found) | np.isclose(found, expected, rtol=1e-6))
    assert not np.all(np.isnan(found))


def test_special_functions_of_entries_that_are_left_out():
    def score(u):
        return np.nansum(scipy.special.expit(u * Y) + scipy.special.xlogy(u, Y) + np.exp2(u * Y))

    assert np.all((dil.grad(score)(U) == 0.0) == ~THERE)
