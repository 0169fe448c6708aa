"""Second derivatives of functions that saturate, near 0 and in their tails, to the last digits."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special

import dil

pytestmark = pytest.mark.filterwarnings("error")

POINTS = np.array([0.0, 1e-200, 1e-12, 1e-8, 1e-3, 0.3, 1.0, 5.0, 10.0, 19.0, 40.0, 300.0])


def slope(x):
    """The derivative of tanh. The square of cosh has not overflowed at these points."""
    return 1.0 / np.cosh(x) ** 2


def bend(x):
    return -2.0 * np.tanh(x) * slope(x)


EXACT = {
    "tanh": (np.tanh, slope, bend),
    "expit": (scipy.special.expit, lambda x: 0.25 * slope(0.5 * x), lambda x: 0.125 * bend(0.5 * x)),
}


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", EXACT)
def test_derivatives_to_the_last_digits(name, sign):
    f, first, second = EXACT[name]
    gradient = dil.grad(lambda u: np.sum(f(u)))
    np.testing.assert_allclose(gradient(sign * POINTS), first(sign * POINTS), rtol=1e-14)
    found = dil.grad(lambda u: np.sum(gradient(u)))(sign * POINTS)
    np.testing.assert_allclose(found, second(sign * POINTS), rtol=1e-14)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("x", [1e4, -1e4, np.inf, -np.inf, np.array([1e4, -np.inf])])
def test_tails_that_underflow(name, x):
    """The derivative at a huge number is zero, without a warning of an overflow."""
    gradient = dil.grad(lambda u: np.sum(EXACT[name][0](u)))
    np.testing.assert_array_equal(gradient(np.asarray(x)), 0.0)


def test_a_complex_tanh_on_both_sides():
    z = np.array([0.3 + 0.2j, -0.3 + 0.2j, 300.0 + 1.0j, -300.0 + 1.0j, 1e-9 + 1e-9j])
    gradient = dil.grad(lambda u: np.sum(np.real(np.tanh(u))))
    np.testing.assert_allclose(np.conj(gradient(z)), slope(z), rtol=1e-13)
    second = dil.grad(lambda u: np.sum(np.real(gradient(u))))(z)
    np.testing.assert_allclose(np.conj(second), bend(z), rtol=1e-13)
