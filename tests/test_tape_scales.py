"""Derivatives at very small and very large numbers: right, or not finite, and never another finite number.

A homogeneous function of degree d has f(s x) = s^d f(x), so its gradient at s x is s^(d - 1) times that at x.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special

import dil

U = np.array([0.6, -1.1, 0.9])


@pytest.fixture(autouse=True)
def quiet():
    """Squares overflow here on purpose."""
    with np.errstate(all="ignore"):
        yield


SCALES = (1e-300, 1e-200, 1e-161, 1e-100, 1e100, 1e155, 1e200, 1e300)
ROW = np.array([[1.0], [-2.0]])

DEGREE_ONE = {
    "norm": np.linalg.norm,
    "norm of order 3": lambda u: np.linalg.norm(u, 3),
    "norm of order 1/2": lambda u: np.linalg.norm(u, 0.5),
    "norm of order -2": lambda u: np.linalg.norm(u, -2),
    "norm of order 1": lambda u: np.linalg.norm(u, 1),
    "largest": lambda u: np.linalg.norm(u, np.inf),
    "norm of rows": lambda u: np.linalg.norm(u * ROW, axis=1)[1],
    "Frobenius norm": lambda u: np.linalg.norm(u * ROW),
    "spectral norm": lambda u: np.linalg.norm(np.stack([u, u[::-1]]), 2),
    "nuclear norm": lambda u: np.linalg.norm(np.stack([u, u[::-1]]), "nuc"),
    "hypot": lambda u: np.hypot(u[0], u[1]),
    "hypot of all": np.hypot.reduce,
    "absolute value": lambda u: np.abs(u[0] + 1j * u[1]),
    "complex norm": lambda u: np.linalg.norm(u[:2] + 1j * u[1:]),
    "std": np.std,
    "std of rows": lambda u: np.std(u * ROW, axis=1, keepdims=True, ddof=1)[1, 0],
    "std of a part": lambda u: np.std(u * ROW, where=np.array([True, False, True])),
    "nanstd": lambda u: np.nanstd(u * ROW * np.array([1.0, np.nan, 2.0])),
    "mean": np.mean,
    "median": np.median,
    "average": lambda u: np.average(u, weights=np.array([1.0, 2.0, 5.0])),
    "eigenvalue": lambda u: np.linalg.eigvalsh(np.stack([u[:2], u[1:]]))[0],
    "QR": lambda u: np.linalg.qr(np.stack([u, u[::-1]]).T)[1][0, 0],
}
DEGREE_ZERO = {
    "quotient": lambda u: u[0] / u[1],
    "atan2": lambda u: np.arctan2(u[0], u[1]),
    "angle": lambda u: np.angle(u[0] + 1j * u[1]),
    "logarithm": lambda u: np.log(np.abs(u[1])),
    "log-determinant": lambda u: np.linalg.slogdet(np.diag(u) + 0.1 * np.max(np.abs(u)))[1],
    "solution": lambda u: np.linalg.solve(np.diag(u) + 0.1 * np.max(np.abs(u)), u[::-1])[0],
    "normalised": lambda u: (u / np.linalg.norm(u))[0],
    "standardised": lambda u: ((u - np.mean(u)) / np.std(u))[0],
}
BOUNDED = {
    "logaddexp": lambda u: np.logaddexp(u[0], u[1]),
    "logsumexp": scipy.special.logsumexp,
    "softmax": lambda u: scipy.special.softmax(u)[0],
    "log_softmax": lambda u: scipy.special.log_softmax(u)[0],
    "expit": lambda u: scipy.special.expit(u[0]),
    "log_expit": lambda u: scipy.special.log_expit(u[1]),
    "tanh": lambda u: np.tanh(u[0]),
    "arctan": lambda u: np.arctan(u[0]),
}
"""Functions with a bounded gradient: it is that at 0 for small numbers, and has a limit for large ones."""


def is_right_or_not_finite(found, expected):
    """Whether found is as expected to 1e-7 of its size, or NaN or infinite."""
    return not np.all(np.isfinite(found)) or np.allclose(
        found, expected, rtol=1e-7, atol=1e-9 * np.max(np.abs(expected))
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", DEGREE_ONE)
def test_the_gradient_of_a_function_of_degree_one_does_not_depend_on_the_scale(name, scale):
    gradient = dil.grad(DEGREE_ONE[name])
    found = gradient(U * scale)
    if np.isinf(DEGREE_ONE[name](U * scale)):
        assert np.all(np.isnan(found[gradient(U) != 0.0]))
        return
    np.testing.assert_allclose(found, gradient(U), rtol=1e-7, atol=1e-9)
    v = np.array([0.3, -0.2, 0.7])
    second, expected = (dil.grad(lambda u: gradient(u) @ v)(U * s) for s in (scale, 1.0))
    if 1e-290 < 1.0 / scale < 1e290:
        assert is_right_or_not_finite(second * scale, expected)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", DEGREE_ZERO)
def test_the_gradient_of_a_function_of_degree_zero_is_right_or_not_finite(name, scale):
    f = DEGREE_ZERO[name]
    if name in ("normalised", "standardised") and scale < 1.0 and not np.isclose(f(U * scale), f(U), rtol=1e-7):
        return  # NumPy's norm has lost digits
    assert is_right_or_not_finite(dil.grad(f)(U * scale) * scale, dil.grad(f)(U))


@pytest.mark.parametrize("name", BOUNDED)
def test_a_bounded_gradient_is_its_limit(name):
    gradient = dil.grad(BOUNDED[name])
    for scale in SCALES:
        np.testing.assert_allclose(gradient(U * scale), gradient(U * (1e-30 if scale < 1 else 1e3)), atol=1e-5)


@pytest.mark.parametrize("name", ["norm", "norm of order 3", "std", "std of a part", "norm of rows"])
def test_float32(name):
    """A norm of 1e-20 is far from rare in single precision, and its square is not a number of it."""
    gradient = dil.grad(DEGREE_ONE[name])
    for scale in (1e-30, 1e-20, 1e20, 1e30):
        found = gradient((U * scale).astype(np.float32))
        if np.isinf(DEGREE_ONE[name]((U * scale).astype(np.float32))):
            assert np.all(np.isnan(found))
            continue
        np.testing.assert_allclose(found, gradient(U), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("x", [np.zeros(3), np.full(3, 0.1), np.zeros((0,))])
@pytest.mark.parametrize("name", ["norm", "norm of order 3", "std"])
def test_the_subgradient_is_zero_where_the_value_is_zero(name, x):
    f = DEGREE_ONE[name]
    assert name == "std" or np.all(dil.grad(f)(0.0 * x) == 0.0)
    assert name != "std" or x.size == 0 or np.all(dil.grad(f)(x) == 0.0)


def test_a_batch_of_all_scales():
    scales = SCALES[:5]
    rows = np.concatenate([*(U * s for s in scales), np.zeros(3)]).reshape(-1, 3)
    for f in (lambda x: np.linalg.norm(x, axis=1), lambda x: np.std(x, axis=1), lambda x: np.linalg.norm(x, 3, axis=1)):
        found = dil.grad(lambda x, f=f: np.sum(f(x)))(rows)
        expected = dil.grad(lambda x, f=f: np.sum(f(x)))(U[None])
        np.testing.assert_allclose(found[:-1], np.tile(expected, (len(scales), 1)), rtol=1e-7)
        np.testing.assert_array_equal(found[-1], np.zeros(3))
