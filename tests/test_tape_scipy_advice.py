"""A function of SciPy that gets a box is refused by its own name, with what to write instead."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import scipy.cluster.vq
import scipy.fft
import scipy.integrate
import scipy.interpolate
import scipy.linalg
import scipy.ndimage
import scipy.optimize
import scipy.signal
import scipy.spatial
import scipy.spatial.distance
import scipy.special
import scipy.stats

import dil
from dil_backends._tape import scipy_advice

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

U = np.array([0.3, 0.7, 1.4])
M = np.array([[2.0, 0.3, 0.1], [0.3, 1.5, 0.4], [0.1, 0.4, 3.0]])
T = np.arange(3.0)

CALLS = {
    "stats.norm.logpdf": lambda f, u: f(u),
    "stats.multivariate_normal.logpdf": lambda f, u: f(u, np.zeros(3)),
    "stats.gamma.cdf": lambda f, u: f(1.0, u[0]),
    "stats.zscore": lambda f, u: f(u),
    "stats.pearsonr": lambda f, u: f(u, u),
    "stats.gmean": lambda f, u: f(u),
    "stats.skew": lambda f, u: f(u),
    "stats.entropy": lambda f, u: f(u),
    "stats.gaussian_kde": lambda f, u: f(u),
    **{
        f"linalg.{name}": lambda f, u: f(M * u)
        for name in ("inv", "det", "pinv", "cholesky", "svd", "svdvals", "eigh", "eigvalsh", "eig", "eigvals", "qr")
    },
    **{f"linalg.{name}": lambda f, u: f(M * u) for name in ("expm", "logm", "sqrtm", "lu", "lu_factor", "cho_factor")},
    "linalg.solve": lambda f, u: f(M, u),
    "linalg.lstsq": lambda f, u: f(M, u),
    "linalg.solve_triangular": lambda f, u: f(M, u),
    "linalg.cho_solve": lambda f, u: f((M, True), u),
    "linalg.toeplitz": lambda f, u: f(u),
    "linalg.block_diag": lambda f, u: f(u, u),
    "optimize.minimize": lambda f, u: f(lambda x: np.sum((x - u) ** 2), np.zeros(3)),
    "optimize.minimize_scalar": lambda f, u: f(lambda x: (x - u[0]) ** 2),
    "optimize.root": lambda f, u: f(lambda x: x - u, np.zeros(3)),
    "optimize.fsolve": lambda f, u: f(lambda x: x - u, np.zeros(3)),
    "optimize.least_squares": lambda f, u: f(lambda x: x - u, np.zeros(3)),
    "optimize.nnls": lambda f, u: f(M, u),
    "interpolate.interp1d": lambda f, u: f(T, u),
    "interpolate.CubicSpline": lambda f, u: f(T, u),
    "interpolate.make_interp_spline": lambda f, u: f(T, u, k=1),
    "signal.convolve": lambda f, u: f(u, u),
    "signal.fftconvolve": lambda f, u: f(u, u),
    "signal.lfilter": lambda f, u: f([1.0, 1.0], [1.0], u),
    "spatial.distance.cdist": lambda f, u: f(u[:, None], u[:, None]),
    "spatial.distance.euclidean": lambda f, u: f(u, T),
    "spatial.KDTree": lambda f, u: f(u[:, None]),
    "integrate.quad": lambda f, u: f(lambda x: x * u[0], 0, 1),
    "integrate.solve_ivp": lambda f, u: f(lambda t, y: -y, (0.0, 1.0), u),
    "integrate.odeint": lambda f, u: f(lambda y, t: -y, u, [0.0, 1.0]),
    "integrate.trapezoid": lambda f, u: f(u),
    "ndimage.gaussian_filter": lambda f, u: f(u, 1.0),
    "ndimage.convolve": lambda f, u: f(u, [1.0, 1.0]),
    "fft.fft": lambda f, u: f(u),
    "fft.dct": lambda f, u: f(u),
    "cluster.vq.kmeans": lambda f, u: f(u[:, None], 2),
}


def function(name):
    found = scipy
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", CALLS)
def test_it_names_the_function_and_what_to_write(name, capfd):
    package = f"scipy.{name}"
    while package not in scipy_advice.MODULES:
        package = package.rpartition(".")[0]
    with pytest.raises(dil.UnsupportedFunctionError) as caught:
        dil.grad(lambda u: np.sum(CALLS[name](function(name), u)))(U)
    text = str(caught.value)
    assert text.startswith(f"`scipy.{name}` computes with NumPy arrays of numbers")
    assert scipy_advice.advice(package, name.rpartition(".")[2]) in text
    assert "dil's `constant`" in text


@pytest.mark.parametrize("name", ["solve", "inv", "det", "cholesky", "eigh", "svd", "qr", "pinv", "lstsq", "norm"])
def test_linalg_names_the_function_of_numpy(name):
    assert scipy_advice.advice("scipy.linalg", name).startswith(f"use np.linalg.{name}")


def test_the_advice_is_about_things_that_exist():
    for package in scipy_advice.MODULES:
        importlib.import_module(package)
    for name in scipy_advice.FUNCTIONS:
        assert hasattr(scipy.linalg, name), name
        assert not hasattr(np.linalg, name), name


def test_an_error_of_the_users_own_function_stays():
    def objective(x):
        msg = "an error of the user"
        raise ValueError(msg)

    with pytest.raises(ValueError, match=r"^an error of the user$"):
        dil.grad(lambda u: np.sum(u) * scipy.optimize.minimize(objective, np.zeros(1)).x[0])(U)


def test_an_error_of_scipy_without_a_box_stays():
    with pytest.raises(ValueError, match=r"square|dimension"):
        dil.grad(lambda u: np.sum(u) * scipy.linalg.det(T))(U)


def test_scipy_beside_boxes_runs():
    gradient = dil.grad(lambda u: np.sum(u * scipy.linalg.solve(M, T)) + scipy.special.gammaln(u[0]))(U)
    expected = np.linalg.solve(M, T) + np.array([scipy.special.digamma(U[0]), 0.0, 0.0])
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_the_score_of_a_layer():
    layer = dil.argmin(lambda u, t: -np.sum(scipy.stats.norm.logpdf(u - t)), dil.solvers.SciPy(), init=lambda t: t)
    with pytest.raises(dil.UnsupportedFunctionError, match=r"`scipy\.stats\.norm\.logpdf`.*scipy\.special"):
        layer(U)


def test_the_advice_for_triangles_gives_the_same_numbers():
    A, b = np.array([[4.0, 1.0], [1.0, 3.0]]), np.array([1.0, 2.0])
    for lower, triangle in [(False, np.triu), (True, np.tril)]:
        expected = np.linalg.cholesky(A, **({} if lower else {"upper": True}))
        np.testing.assert_allclose(scipy.linalg.cholesky(A, lower=lower), expected)
        solution = scipy.linalg.solve_triangular(A, b, lower=lower)
        np.testing.assert_allclose(solution, np.linalg.solve(triangle(A), b))
    with pytest.raises(dil.UnsupportedFunctionError, match=r"use np\.linalg\.cholesky\(A, upper=True\)"):
        dil.grad(lambda A: np.sum(scipy.linalg.cholesky(A)))(A)
    with pytest.raises(dil.UnsupportedFunctionError, match=r"np\.triu\(A\), b\), or np\.tril\(A\) for lower=True"):
        dil.grad(lambda A: np.sum(scipy.linalg.solve_triangular(A, b)))(A)
