"""dil.linear.spectrum: its Ritz values against the eigenvalues of the dense Hessian."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil.linear import Spectrum, spectrum
from engines import engines

N = 24
Q = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
SPECTRA = {
    "scales": np.geomspace(1.0, 1e6, N),
    "stiff": np.r_[np.linspace(1.0, 2.0, N - 3), 1e2, 1e4, 1e6],
    "repeated": np.r_[np.ones(N - 4), 2.0, 2.0, 7.0, 7.0],
    "indefinite": np.linspace(-3.0, 5.0, N),
    "zero": np.zeros(N),
    "tiny": 1e-200 * np.linspace(1.0, 2.0, N),
}


def matrix(kind):
    return (Q * SPECTRA[kind]) @ Q.T


@pytest.fixture(params=[e for e in engines() if ":" not in e.name], ids=lambda e: e.name)
def plain(request):
    if request.param.reason is not None:
        pytest.skip(request.param.reason)
    return request.param


def quadratic(u, A):
    """The terms of fourth order vanish at the solution, zero."""
    xp = array_namespace(u)
    return xp.sum(0.5 * u * xp.matmul(A, u[..., None])[..., 0] + u**4, axis=-1)


def layer_of(batch_ndim=0):
    return dil.argmin(
        quadratic, lambda fun, init, A: init, init=lambda A: 0.0 * A[..., 0], batch_ndim=batch_ndim, on_failure="ignore"
    )


def numbers(engine, found):
    return tuple(engine.to_numpy(x) for x in (found.values, found.weights, found.condition))


@pytest.mark.parametrize("kind", SPECTRA)
def test_all_steps_find_all_eigenvalues(plain, kind):
    A = matrix(kind)
    values, weights, condition = numbers(plain, spectrum(layer_of(), plain.asarray(A)))
    exact = np.unique(np.round(SPECTRA[kind], 12)) if kind in ("repeated", "zero") else np.linalg.eigvalsh(A)
    found = values[~np.isnan(values)]
    scale = np.max(np.abs(exact))
    assert values.shape == weights.shape == (N,)
    assert np.all(np.diff(found) >= 0)
    np.testing.assert_array_equal(np.isnan(values), np.arange(N) >= len(found))
    np.testing.assert_allclose(np.nansum(weights), 1.0, rtol=1e-12)
    if kind == "repeated":  # what rounding brings in besides has no weight
        found = found[weights[~np.isnan(weights)] > 1e-12]
    np.testing.assert_allclose(found, exact, atol=1e-12 * scale)
    expected = {"indefinite": np.nan, "zero": np.inf}.get(kind) or exact[-1] / exact[0]
    np.testing.assert_allclose(condition, expected, rtol=1e-7)


def test_weights_are_those_of_the_start(plain):
    """Gauss quadrature: the moments of the values are <v, A^k v> for the start v."""
    A = matrix("scales") / 1e6
    found = spectrum(layer_of(), plain.asarray(A), steps=5)
    values, weights, _ = numbers(plain, found)
    v = np.random.default_rng(0).standard_normal((1, N))[0]
    v = v / np.linalg.norm(v)
    for k in range(10):
        exact = v @ np.linalg.matrix_power(A, k) @ v
        np.testing.assert_allclose(np.sum(weights * values**k), exact, rtol=1e-10)


def test_few_steps_stay_within_and_find_the_ends(plain):
    values, _, condition = numbers(plain, spectrum(layer_of(), plain.asarray(matrix("stiff")), steps=10))
    exact = SPECTRA["stiff"]
    assert values.shape == (10,)
    assert values[0] >= 1.0 - 1e-9
    np.testing.assert_allclose(values[-3:], exact[-3:], rtol=1e-9)
    assert 0.8e6 <= condition <= 1e6 * (1 + 1e-9)


def test_problems_of_a_batch_are_as_alone(plain):
    kinds = ["scales", "repeated", "stiff"]
    found = numbers(plain, spectrum(layer_of(1), plain.asarray(np.stack([matrix(k) for k in kinds]))))
    for k, kind in enumerate(kinds):
        exact = np.unique(SPECTRA[kind])
        values = found[0][k][found[1][k] > 1e-12]
        np.testing.assert_allclose(values, exact, atol=1e-11 * exact[-1])
        np.testing.assert_allclose(found[2][k], exact[-1] / exact[0], rtol=1e-6)


def test_a_matrix_that_is_not_finite_spoils_no_other_problem(plain):
    A = np.stack([matrix("scales"), np.full((N, N), np.nan)])
    layer = dil.argmin(
        quadratic, lambda fun, init, A: init, init=plain.asarray(np.zeros((2, N))), batch_ndim=1, on_failure="ignore"
    )
    values, _, condition = numbers(plain, spectrum(layer, plain.asarray(A)))
    np.testing.assert_allclose(values[0], SPECTRA["scales"], rtol=1e-7)
    assert np.all(np.isnan(values[1]))
    assert np.isnan(condition[1])


def test_float32(plain):
    handle = dil.backend(plain.backend, dtype="float32")
    found = spectrum(layer_of(), handle.asarray(matrix("stiff").astype(np.float32)))
    assert str(found.values.dtype).endswith("float32")
    values = handle.to_numpy(found.values)
    np.testing.assert_allclose(values[~np.isnan(values)][-3:], SPECTRA["stiff"][-3:], rtol=1e-3)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_no_unknown(shape):
    layer = dil.argmin(
        lambda u, t: np.sum(t * u**2, axis=-1), lambda fun, init, t: init, init=np.zeros_like, batch_ndim=len(shape) - 1
    )
    found = spectrum(layer, np.ones(shape))
    assert found.values.shape == shape
    assert found.condition.shape == shape[:-1]
    assert np.all(np.isnan(found.condition))


def test_products_and_repeats():
    """One product for each step, and the same numbers in each run."""
    calls = []

    def product(u, v, t):
        calls.append(v)
        return t * v

    given = dil.Derivatives(gradient=lambda u, t: t * u, hvp=product)
    layer = dil.argmin(lambda u, t: 0.5 * np.sum(t * u**2), lambda f, u, t: u, init=np.zeros_like, derivatives=given)
    first = spectrum(layer, np.linspace(1.0, 2.0, N), steps=7)
    assert len(calls) == 7
    again = spectrum(layer, np.linspace(1.0, 2.0, N), steps=7)
    np.testing.assert_array_equal(first.values, again.values)


def test_what_is_refused():
    root = dil.root(lambda u, t: u - t, lambda f, u, t: t, init=np.zeros_like)
    with pytest.raises(dil.OptionError, match=r"need not be symmetric.*layer\.report\(\.\.\.\)\.backward"):
        spectrum(root, np.ones(3))
    with pytest.raises(dil.OptionError, match=r"is no layer; expected one that dil\.argmin returned"):
        spectrum(lambda t: t, np.ones(3))
    for steps in (0, -1, 2.0, True):
        with pytest.raises(dil.OptionError, match="steps="):
            spectrum(layer_of(), np.eye(3), steps=steps)


def test_plot(plain):
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    found = spectrum(layer_of(1), plain.asarray(np.stack([matrix("scales"), matrix("stiff")])))
    ax = found.plot()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_title() == "2 problems"
    drawn = [line.get_xdata() for line in ax.get_lines()]
    np.testing.assert_allclose(drawn[0], SPECTRA["scales"], rtol=1e-7)
    assert len(drawn) == 2
    assert found.plot(ax) is ax
    plt.close("all")


def test_plot_of_both_signs_is_linear():
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    values = np.asarray([-1.0, 2.0, np.nan])
    ax = Spectrum(values, np.asarray([0.5, 0.5, np.nan])).plot()
    assert ax.get_xscale() == "linear"
    plt.close("all")
