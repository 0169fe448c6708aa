"""Times that decrease, that are the same, and that end at a pole; a single argument."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

import dil
from dil import Status
from dil.ode import odeint, solve
from ode_helpers import close, on

K = 1.5


def growth(t, y, k):
    """y' = -k t y: y = y0 exp(k (t0^2 - t^2) / 2)."""
    return -k * t * y


WAYS = {
    "fixed": {"method": "sdirk3", "steps": 20},
    "two-step": {"method": "bdf2", "steps": 200},
    "adaptive": {"method": "kvaerno5", "rtol": 1e-6},
    "explicit": {"method": "tsit5", "rtol": 1e-6},
    "adjoint": {"method": "tsit5", "rtol": 1e-6, "gradient": "adjoint"},
}


@pytest.mark.parametrize("way", WAYS)
def test_times_that_decrease_and_times_that_are_the_same(way):
    """The states, and their gradients in the state, the parameter and each of the times."""
    times, v = np.asarray([1.0, 0.5, 0.5, 0.0, 0.0]), np.asarray([1.0, -2.0, 0.5, 3.0, 1.5])

    def total(start, t, k):
        return np.sum(v * odeint(growth, start, t, k, **WAYS[way]))

    expected = 2.0 * np.exp(K * (1 - times**2) / 2)
    rtol = 3e-4 if way == "two-step" else 2e-5
    close(odeint(growth, np.asarray(2.0), times, np.asarray(K), **WAYS[way]), expected, rtol)
    _, pull = dil.vjp(total, np.asarray(2.0), times, np.asarray(K))
    of_start, of_times, of_k = pull(np.asarray(1.0))
    close(of_start, np.sum(v * expected) / 2.0, 5 * rtol)
    close(of_k, np.sum(v * expected * (1 - times**2) / 2), 5 * rtol)
    slopes = -K * times * expected * v
    slopes[0] = np.sum(v[1:] * K * expected[1:])
    close(of_times, slopes, 2e-3)


@on("torch", "torch:func", "jax:jit")
def test_a_list_of_times_that_decrease(engine):
    def last(start):
        return odeint(growth, start, [1.0, 0.5, 0.5], (engine.asarray(K),), method="tsit5", rtol=1e-6)[-1]

    y, (slope,) = engine.gradients(last, (2.0,))
    close(y, 2.0 * np.exp(K * 0.375), 1e-5)
    close(slope, np.exp(K * 0.375), 1e-5)


@pytest.mark.parametrize("times", [[0.7], [0.7, 0.7]])
def test_a_start_that_is_the_end(times):
    start = np.asarray([1.0, 2.0])
    found = solve(growth, start, times, np.asarray(K), rtol=1e-3)
    close(found.value, np.stack([start] * len(times)))
    assert (Status(int(found.status)), int(found.steps)) == (Status.CONVERGED, 0)
    ends = lambda y, t: odeint(growth, y, t, np.asarray(K))[-1, 0]  # noqa: E731
    _, pull = dil.vjp(ends, start, np.asarray(times))
    of_start, of_times = pull(np.asarray(1.0))
    close(of_start, [1.0, 0.0])
    close(of_times, [0.0] if len(times) == 1 else [K * 0.7, -K * 0.7])


def test_a_failure_backwards_is_told_in_the_time_of_the_user():
    """y = 1 / t from t = 1 has a pole at zero."""
    found = solve(lambda t, y: -y * y, np.asarray(1.0), [1.0, -1.0], method="tsit5", rtol=1e-6)
    assert Status(int(found.status)) is Status.DIVERGED
    np.testing.assert_allclose(found.failed_at, 0.0, atol=1e-4)
    with pytest.raises(dil.ConvergenceError, match=r"step \d+, from t = -?\d\.\d+e-\d+"):
        odeint(lambda t, y: -y * y, np.asarray(1.0), [1.0, -1.0], method="tsit5", rtol=1e-6, on_failure="raise")


@pytest.mark.parametrize("method", ["kvaerno5", "tsit5"])
def test_a_pole_is_told_with_its_time(method):
    """y = tan(t + pi / 4)."""
    found = solve(lambda t, y: 1 + y * y, np.asarray(1.0), [0.0, 2.0], method=method, rtol=1e-6)
    assert Status(int(found.status)) is Status.DIVERGED
    np.testing.assert_allclose(found.failed_at, np.pi / 4, rtol=1e-4)
    assert int(found.steps) < 400
    with pytest.raises(
        dil.ConvergenceError,
        match=r"DIVERGED: .* the solution of a differential equation has a pole.* from t = 0\.7853",
    ):
        odeint(lambda t, y: 1 + y * y, np.asarray(1.0), [0.0, 2.0], method=method, rtol=1e-6, on_failure="raise")


class Parameters(NamedTuple):
    rate: np.ndarray
    target: np.ndarray


def test_a_single_argument_needs_no_tuple():
    times, start, k = [0.0, 0.5], np.asarray([1.0]), np.asarray(K)
    close(odeint(growth, start, times, k), odeint(growth, start, times, (k,)))
    field = lambda t, y, p: -p.rate * (y - p.target)  # noqa: E731
    close(odeint(field, start, times, Parameters(k, start)), [[1.0], [1.0]])
    close(odeint(lambda t, y, p: -p["k"] * y, start, times, {"k": k})[-1], start / (1 + 0.5 * K))


def test_a_jacobian_of_the_user_is_used_and_changes_no_result():
    """Also backwards in time, where the sign changes. A wrong one costs iterations."""
    field = lambda t, y, k: np.stack([-k * (y[0] - y[1]), -y[1] * y[1]])  # noqa: E731
    start, rate, counts = np.asarray([2.0, 1.0]), np.asarray(30.0), []

    def jac(t, y, k):
        counts.append(float(t))
        return np.asarray([[-k, k], [0.0, -2.0 * y[1]]])

    for times in ([0.0, 1.0], [0.0, -0.2]):
        options = {"method": "sdirk3", "rtol": 1e-5}
        plain, ours = solve(field, start, times, rate, **options), solve(field, start, times, rate, jac=jac, **options)
        close(ours.value, plain.value, 1e-9)
        assert int(ours.iterations) == int(plain.iterations)
        assert min(times) <= min(counts) <= max(counts) <= max(times)
        counts.clear()
        wrong = solve(field, start, times, rate, jac=lambda t, y, k: -jac(t, y, k), **options)
        assert int(wrong.iterations) > int(ours.iterations)
        counts.clear()


@pytest.mark.parametrize("second", [0.0, 1e-12, 0.5])
def test_the_derivative_in_the_first_time_of_a_method_of_two_steps(second):
    """The first step is tiny where an entry of the state is. The derivative must not divide rounding by its length."""
    times, start = np.asarray([0.0, 0.3, 1.0]), np.asarray([1.25, second])

    def last(t, **options):
        return np.sum(dil.ode.odeint(lambda t, y: -3.0 * (y - np.cos(t)) - 0.1 * y * y, start, t, **options)[1:])

    tight = dil.grad(lambda t: last(t, method="tsit5", rtol=1e-9))(times)
    for gradient in ("implicit", "unroll"):
        options = {"method": "bdf2", "rtol": 1e-4, "gradient": gradient}
        slopes = dil.grad(lambda t, given=options: last(t, **given))(times)
        moved = dil.jvp(lambda t, given=options: last(t, **given), (times,), (np.asarray([1.0, 0.0, 0.0]),))[1]
        assert abs(slopes[0] - moved) <= 1e-12 * abs(moved)
        assert np.max(np.abs(slopes - tight) / np.abs(tight)) <= 5e-3
