"""Data of less precision than the unknowns: derivatives have the precision of the value."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special

import dil

pytestmark = pytest.mark.filterwarnings("error")

U = np.array([0.31, 0.72, 0.55, 0.17])
SINGLE = np.array([0.3, 0.2, 0.7, 0.5], np.float32)
NODES = np.array([0.1, 0.35, 0.6, 1.3], np.float32)
COUNTS = np.array([3, 2, 7, 5], np.int8)
LABELS = np.array([True, False, True, True])
MATRIX = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
sp = scipy.special

FUNCTIONS = {
    "exponent": (lambda u, a: u**a, SINGLE),
    "unsigned exponent": (lambda u, a: u**a, COUNTS.astype(np.uint8)),
    "a number of NumPy": (lambda u, a: u ** a[0], SINGLE),
    "base": (lambda u, a: a**u, COUNTS),
    "half precision": (lambda u, a: np.hypot(u, a) * np.logaddexp(u, a), SINGLE.astype(np.float16)),
    "complex": (lambda u, a: np.real((u + 1j) ** a), SINGLE),
    "interp, nodes": (lambda u, a: np.interp(u, a, a), NODES),
    "interp, values": (lambda u, a: np.interp(a, U.cumsum(), u * a), SINGLE),
    "lstsq": (lambda u, a: np.linalg.lstsq(a, u, rcond=None)[0], MATRIX),
    "betainc": (lambda u, a: sp.betainc(a, 2.0 * a, u), SINGLE),
    "gammainc": (lambda u, a: sp.gammainc(a, u), SINGLE),
    "iv": (lambda u, a: sp.iv(a, u), SINGLE),
    "stdtr": (lambda u, a: sp.stdtr(a, u), NODES),
    "rel_entr": (lambda u, a: sp.rel_entr(u, a), COUNTS),
    "kl_div": (lambda u, a: sp.kl_div(u, a), COUNTS),
    "boxcox": (lambda u, a: sp.boxcox(a, u) + sp.boxcox(u, a), COUNTS),
    "boxcox1p": (lambda u, a: sp.boxcox1p(a, u), LABELS),
    "xlogy": (lambda u, a: sp.xlogy(a, u) + sp.xlog1py(1 - a.astype(np.int8), -u), LABELS),
}


def slope(f):
    """The sum of the entries of the gradient."""
    return lambda u: np.sum(dil.grad(f)(u))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_data_of_less_precision_give_the_derivatives_of_the_same_data_in_double_precision(name):
    f, data = FUNCTIONS[name]
    weights = np.arange(1.0, 1.0 + np.size(f(U, data)))
    raw = lambda u: np.sum(weights * f(u, data))  # noqa: E731
    exact = lambda u: np.sum(weights * f(u, data.astype(np.float64)))  # noqa: E731
    recorded = []
    dil.grad(lambda u: recorded.append(dil.constant(raw(u))) or raw(u))(U)
    np.testing.assert_allclose(recorded, raw(U), rtol=1e-13)
    np.testing.assert_allclose(dil.grad(raw)(U), dil.grad(exact)(U), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(dil.grad(slope(raw))(U), dil.grad(slope(exact))(U), rtol=1e-11, atol=1e-12)


def test_the_gradient_of_an_argument_of_less_precision_has_its_precision():
    f = lambda a: np.sum(U**a)  # noqa: E731
    g = dil.grad(f)(SINGLE)
    assert g.dtype == np.float32
    np.testing.assert_array_equal(g, dil.grad(f)(SINGLE.astype(np.float64)).astype(np.float32))
