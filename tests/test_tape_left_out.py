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
    unsure = np.isnan(found) if name == "solve" else False  # its rule is not that of a product of entries
    assert np.all(unsure | np.isclose(found, expected, rtol=1e-6))
    assert not np.all(unsure)


W = np.array([[1.0, -2.0], [3.0, 1.0]])
M = np.array([[1.0, NAN], [2.0, 3.0]])
FACTORS = {
    "constant matrix": (lambda u: np.nansum(M @ u), W),
    "matrix": (lambda u: np.nansum((u - M) @ u), W),
    "dot": (lambda u: np.nansum(np.dot(u - M, u)), W),
    "tensordot": (lambda u: np.nansum(np.tensordot(u - M, u, 1)), W),
    "vecdot": (lambda u: np.nansum(np.linalg.vecdot(u - M, u)), W),
    "outer": (lambda u: np.nansum(np.einsum("i,j->ij", np.exp(u[:, 0] - M[:, 1]), np.sin(u[:, 1]))), W),
    "two factors": (lambda u: np.nansum(np.einsum("ij,jk->ik", u - M, np.sin(u))), W),
    "three factors": (lambda u: np.nansum(np.einsum("ij,jk,kl->il", u - M, u, u)), W),
    "a complex factor": (lambda u: np.nansum(np.real((u - M) @ (u * (1.0 + 2.0j)))), W),
    "sorted products": (lambda u: np.nansum(np.sort(u * M, axis=1) ** 2), W),
    "partition": (lambda u: np.nansum(np.partition((u * M).ravel(), 1) ** 2), W),
    "smallest": (lambda u: np.fmin.reduce((u * M).ravel()) ** 2, W),
    "largest of columns": (lambda u: np.sum(np.fmax.reduce((u * M) ** 2, axis=0)), W),
    "without a row": (lambda u: np.nansum((u * M)[1:] ** 2) + np.nansum(M * u), W),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_of_what_is_left_out_brings_no_nan(name):
    """A cotangent of zero times the NaN of the other factor is no derivative. To second order, in both modes."""
    f, x = FACTORS[name]
    t = np.array([[0.3, -0.4], [0.6, 0.7]])
    gradient = dil.grad(f)
    for g in (f, lambda u: np.sum(gradient(u) * np.cos(u))):
        expected = sum(w * (g(x + k * 1e-3 * t) - g(x - k * 1e-3 * t)) for k, w in [(1, 2 / 3), (2, -1 / 12)]) / 1e-3
        assert abs(np.sum(dil.grad(g)(x) * t) - expected) <= 1e-8 * (1.0 + abs(expected))
        assert abs(dil.jvp(g, (x,), (t,))[1] - expected) <= 1e-8 * (1.0 + abs(expected))


def test_special_functions_of_entries_that_are_left_out():
    def score(u):
        return np.nansum(scipy.special.expit(u * Y) + scipy.special.xlogy(u, Y) + np.exp2(u * Y))

    assert np.all((dil.grad(score)(U) == 0.0) == ~THERE)


ROOTS = {
    "sqrt": lambda u: np.sqrt(u) ** 2,
    "power": lambda u: (u**0.5) ** 2,
    "log": lambda u: np.exp(np.log(u)),
    "product": lambda u: np.sqrt(u * 3.0) * np.sqrt(u),
    "turned": lambda u: (np.sqrt(u)[::-1] ** 2)[::-1],
    "row": lambda u: np.stack([np.sqrt(u), 1.0 + u]) ** 2,
}


READING = ("nansum", "nanmean", "nanmin", "nanvar", "nanstd", "nancumsum", "nan_to_num", "where=", "mean where=")


@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("reduction", READING)
def test_an_entry_that_is_used_is_never_taken_for_one_that_is_left_out(name, reduction):
    """Its cotangent is zero and its derivative infinite: 0 times infinity is not known, and not zero."""

    def score(u):
        x = ROOTS[name](u)
        return REDUCTIONS[reduction]((x[0] if x.ndim > 1 else x) * np.where(THERE, 1.0, NAN))

    with np.errstate(all="ignore"):
        gradient = dil.grad(score)(np.array([0.0, 0.7, 1.4, 0.2]))
    assert np.isnan(gradient[0])
    assert gradient[1] == 0.0


BEFORE = {
    "product with a matrix": lambda y: np.tanh(np.stack([y, y * 2.0], axis=1)) @ np.array([[0.3], [1.2]]),
    "einsum": lambda y: np.einsum("ij,jk->ik", np.sin(np.stack([y, y * 2.0], axis=1)), np.ones((2, 2))),
    "vecdot": lambda y: np.linalg.vecdot(np.stack([y, y**2], axis=1), np.array([0.3, 1.2])),
    "mean of rows": lambda y: np.mean(np.exp(np.stack([y, y**2], axis=1)), axis=1),
    "largest of rows": lambda y: np.max(np.sin(np.stack([y, y**2], axis=1)), axis=1),
    "norm of rows": lambda y: np.linalg.norm(np.stack([y, y**2], axis=1), axis=1),
    "deviation of rows": lambda y: np.std(np.stack([y, y**2, np.cos(y)], axis=1), axis=1),
    "product of rows": lambda y: np.prod(np.stack([y, y**2], axis=1), axis=1),
    "running sum": lambda y: np.cumsum(np.sin(np.stack([y, y**2], axis=1)), axis=1)[:, 1:],
    "running product": lambda y: np.cumprod(np.sin(np.stack([y, y**2], axis=1)), axis=1)[:, 1:],
    "iteration": lambda y: np.stack([np.sin(entry) for entry in y**2]),
    "roll": lambda y: np.roll(np.sin(np.roll(y, 1)), -1),
    "rows by index": lambda y: np.exp(y)[np.array([3, 1, 1, 0, 2])],
    "by mask": lambda y: np.exp(y)[np.array([True, True, False, True])],
    "twice": lambda y: np.exp(y) * np.concatenate([y[:2], np.flip(y[2:][::-1])]),
    "triangle": lambda y: np.tril(np.sin(y)[:, None] * np.ones(4)),
}
"""Functions of data with a NaN, each of which mixes entries of one problem alone."""


@pytest.mark.parametrize("name", BEFORE)
def test_data_that_are_left_out_have_the_gradient_zero(name):
    f = BEFORE[name]
    gradient = dil.grad(lambda y: np.nansum(f(y) * 1.5))
    expected = dil.grad(lambda y: 1.5 * np.sum(f(y)[~np.isnan(f(Y))]))(np.where(THERE, Y, 0.0))
    np.testing.assert_allclose(gradient(Y), np.where(THERE, expected, 0.0), rtol=1e-14)


def test_data_of_which_a_part_is_used_keep_their_nan():
    """The third entry of a value is left out, and its argument is used by the fourth."""
    gradient = dil.grad(lambda u: np.nansum(np.sqrt(u)[np.array([0, 1, 2, 2])] * np.array([1.0, 1.0, NAN, 0.0])))
    with np.errstate(all="ignore"):
        found = gradient(np.array([1.0, 2.0, 0.0, 3.0]))
    np.testing.assert_array_equal(np.isnan(found), [False, False, True, False])


READ = {
    **BEFORE,
    "matmul": lambda y: np.exp(np.outer(y, y)) @ np.exp(y),
    "vector @ matrix": lambda y: np.exp(y) @ np.sin(np.outer(y, y)),
    "batch @ matrix": lambda y: np.exp(np.ones((2, 4, 1)) * y) @ np.sin(np.outer(y, y)),
    "contraction": lambda y: np.einsum("i,ij,kj->ik", np.exp(y), np.outer(y, y), np.sin(np.outer(y, y))),
    "solve": lambda y: np.linalg.solve(np.eye(4) * 9.0 + np.outer(y, y), np.exp(y)),
    "fft": lambda y: np.real(np.fft.fft(np.exp(y))),
    "sort": lambda y: np.sort(np.exp(y)),
    "columns": lambda y: np.sin(np.outer(y, y)).sum(axis=0),
    "running product of all": lambda y: np.cumprod(np.exp(y)),
    "running sum with a start": lambda y: np.cumsum(np.concatenate([[0.0], np.exp(y)])),
    "transpose": lambda y: np.moveaxis(np.exp(y)[:, None, None] * np.ones((1, 2, 3)), 0, 1).T,
    "repeat": lambda y: np.tile(np.repeat(np.exp(y), 2), (2, 1)),
    "scatter of a gather": lambda y: dil.grad(lambda x: np.sum(x[np.array([0, 2, 2])] ** 3))(np.exp(y)),
    "kron": lambda y: np.kron(np.exp(y), np.sin(y)),
    "convolution": lambda y: np.convolve(np.exp(y), np.sin(y)),
    "pad": lambda y: np.pad(np.exp(y), 2, mode="reflect"),
    "parts": lambda y: np.stack(np.split(np.exp(y), 2)[::-1]),
    "order p": lambda y: np.linalg.norm(np.exp(np.outer(y, y)), 3, axis=0),
    "special": lambda y: scipy.special.logsumexp(np.outer(y, y), axis=1),
}


@pytest.mark.parametrize("name", READ)
def test_an_entry_that_is_read_is_never_left_out(name):
    """The mask is a product with 0 and 1, if nothing is NaN."""
    y = np.array([0.4, -1.1, 0.9, 1.7])
    v = np.array([0.3, 1.0, -0.6, 0.8])
    shape = READ[name](y).shape
    draws = np.random.default_rng(7)
    for _ in range(5):
        mask, weights = draws.random(shape) < 0.4, draws.normal(size=shape)

        def left_out(y, mask=mask, weights=weights):
            return np.sum(READ[name](np.sinh(y)) * weights, where=mask)

        def product(y, mask=mask, weights=weights):
            return np.sum(READ[name](np.sinh(y)) * weights * mask)

        for derivative in (dil.grad, lambda f: dil.grad(lambda y: dil.grad(f)(y) @ v)):
            expected = derivative(product)(y)
            found = derivative(left_out)(y)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * np.max(np.abs(expected), initial=0.0))
