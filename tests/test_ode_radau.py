"""Radau IIA of order 5: its coefficients, its coupled stages, their derivative."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.ode import odeint, solve
from dil.ode._radau import BULGE, ESTIMATE, RADAU
from ode_helpers import close, decay, on
from test_ode_pairs import order_of
from test_ode_reference import CASES


def test_the_coefficients():
    """Hairer and Wanner 1996, table IV.5.6 and equations IV.8.17 to 19."""
    A, b = np.zeros((4, 4)), np.asarray(RADAU.inverse)
    A[1:, 1:], c = RADAU.matrix, np.asarray([0.0, *RADAU.nodes])
    assert abs(A[1, 1] - (88 - 7 * 6**0.5) / 360) < 1e-15
    close(A[1:, 1:] @ b, np.eye(3), 1e-14)
    close(np.sort_complex(np.linalg.eigvals(b)), np.sort_complex([RADAU.real, RADAU.pair, np.conj(RADAU.pair)]), 1e-13)
    estimate = RADAU.real * np.asarray(ESTIMATE)
    close(estimate[1:] @ b, np.asarray([-13 - 7 * 6**0.5, -13 + 7 * 6**0.5, -1]) / 3, 1e-14)
    assert order_of(A[-1], A, c, 1.0) == 5
    assert order_of(A[-1] - ESTIMATE, A, c, 1.0) == 3
    ends = 0.125 * np.asarray([1.0, 0.0, 0.0, -1.0])
    assert order_of(np.asarray(BULGE) + 0.5 * A[-1] + ends, A, c, 0.5) == 4


def test_the_inverse_of_the_stages():
    """A function of b is the sum over its eigenvalues."""
    P, Q, R = map(np.asarray, RADAU.projections)
    w = 1 / (RADAU.pair - 0.7)
    close(P / (RADAU.real - 0.7) + w.real * Q + w.imag * R, np.linalg.inv(np.asarray(RADAU.inverse) - 0.7 * np.eye(3)))


def test_it_is_stiffly_accurate_and_l_stable():
    """R(z) = (1 + 2 z / 5 + z^2 / 20) / (1 - 3 z / 5 + 3 z^2 / 20 - z^3 / 60), which is zero at infinity."""
    for z in (-0.5, -30.0, -1e12):
        y = odeint(decay, np.asarray(1.0), [0.0, 1.0], (np.asarray(-z),), method="radau")
        expected = (1 + 0.4 * z + 0.05 * z**2) / (1 - 0.6 * z + 0.15 * z**2 - z**3 / 60)
        assert abs(y[-1] - expected) < 1e-12
    # Prothero and Robinson's equation: the order of a stiff problem is that of the stages
    field = lambda t, y: -1e8 * (y - np.cos(t)) - np.sin(t)  # noqa: E731
    y = odeint(field, np.asarray(1.0), [0.0, 0.5, 1.0], method="radau")
    close(y, np.cos([0.0, 0.5, 1.0]), 1e-10)


@pytest.mark.parametrize("name", ["Van der Pol", "Robertson", "HIRES", "OREGO"])
def test_published_end_values(name):
    field, start, end, _, published, _ = CASES[name]
    atol = 1e-13 if name == "Robertson" else 1e-8
    found = solve(field, np.asarray(start, float), [0.0, end], method="radau", rtol=1e-5, atol=atol, max_steps=1000)
    assert Status(int(found.status)) is Status.CONVERGED
    error = np.sqrt(np.mean((found.value[-1] / np.asarray(published) - 1) ** 2))
    assert 1e-11 < error < 1e-5
    # most steps need two or three iterations
    assert int(found.iterations) < 4 * (int(found.steps) + int(found.rejected))


def brusselator(t, y, k):
    xp = array_namespace(y)
    fast = y[0] * y[0] * y[1]
    return xp.stack([1.0 + fast - (k + 1.0) * y[0], k * y[0] - fast])


@on("numpy", "array_api_strict", "torch:func", "torch:backward", "jax:jit")
@pytest.mark.parametrize("way", [{"steps": 3}, {"rtol": 1e-3}])
def test_gradients(engine, way):
    """Those of the discrete solution, whose mesh is held, in the start, the parameter and the times."""
    if engine.name != "numpy" and (engine.name == "torch:func") != ("steps" in way):
        pytest.skip("other engines run this one")
    start, k, times, v = np.asarray([1.2, 2.5]), 2.8, np.asarray([0.0, 0.3, 1.0]), np.asarray([[0, 0], [1, 2], [3, -1]])

    def states(start, k, times):
        return odeint(brusselator, start, times, (k,), method="radau", max_steps=50, on_failure="raise", **way)

    y, gradients = engine.gradients(states, (start, k, times), v.astype(float))
    tight = lambda *args: np.sum(v * odeint(brusselator, *args[::2], (args[1],), method="radau", rtol=1e-11))  # noqa: E731
    args = [start, np.asarray(k), times]
    close(np.sum(v * y), tight(*args), 1e-3)
    for i, found in enumerate(gradients):
        expected = np.zeros(args[i].shape)
        for place in np.ndindex(args[i].shape):
            h = np.zeros(args[i].shape)
            h[place] = 1e-4
            expected[place] = (tight(*_changed(args, i, h)) - tight(*_changed(args, i, -h))) / 2e-4
        close(found, expected, 5e-3)


def _changed(args, i, h):
    return [x + h if j == i else x for j, x in enumerate(args)]


def test_gradients_are_exact_for_the_discrete_solution():
    """One step of y' = -k y is R(-k h), whose derivatives are known; the ways to a gradient agree."""
    h, k = 0.5, 3.0

    def last(k, **way):
        return odeint(decay, np.asarray(1.0), [0.0, h], (k,), method="radau", on_failure="raise", **way)[-1]

    R = lambda z: (1 + 0.4 * z + 0.05 * z**2) / (1 - 0.6 * z + 0.15 * z**2 - z**3 / 60)  # noqa: E731
    f = [R(-(k + i * 1e-2) * h) for i in (-2, -1, 0, 1, 2)]
    slope, bend = (f[0] - 8 * f[1] + 8 * f[3] - f[4]) / 0.12, (-f[0] + 16 * f[1] - 30 * f[2] + 16 * f[3] - f[4]) / 12e-4
    k = np.asarray(k)
    close(dil.grad(last)(k), slope, 1e-8)
    close(dil.grad(dil.grad(last))(k), bend, 1e-7)
    close(dil.jvp(last, (k,), (np.asarray(2.0),))[1], 2 * slope, 1e-8)
    for way in ({"gradient": "naive"}, {"gradient": "unroll"}, {"layer": "argmin"}):
        close(dil.grad(lambda k, way=way: last(k, **way))(k), slope, 1e-7)
    # for a linear equation the adjoint method of the same nodes is the discrete adjoint
    close(dil.grad(lambda k: last(k, gradient="adjoint"))(k), slope, 2e-2)


@on("torch", slow=("jax:jit",))
def test_a_batch_and_a_solver_of_the_user(engine):
    """Each problem ends like one of its own; a solver by products takes the steps of the dense one."""
    rates = np.asarray([[1.0], [1e2], [1e4]])

    def field(t, y, k):
        return -k * (y - array_namespace(y).cos(t))

    options = {"method": "radau", "rtol": 1e-6}
    run = lambda k, **way: solve(field, 0.0 * k, [0.0, 1.0], (k,), **options, **way)  # noqa: E731
    found = run(engine.asarray(rates), batch_ndim=1)
    alone = [run(engine.asarray(k)) for k in rates]
    for i in range(3):
        close(engine.to_numpy(found.value)[-1, i], engine.to_numpy(alone[i].value)[-1], 1e-5)
    krylov = run(engine.asarray(rates[1]), solver=dil.ode.StepNewton(dil.linear.GMRES()))
    assert Status(int(krylov.status)) is Status.CONVERGED
    assert abs(int(krylov.steps) - int(alone[1].steps)) <= 2


def test_the_error_follows_rtol():
    """Its estimate follows rtol^(2/3), so that six decades of rtol take a tenth of the steps of the estimate alone."""
    field, options = (lambda t, y: np.stack([y[1], -y[0]])), {"method": "radau", "max_steps": 3000}
    found = [solve(field, np.asarray([1.0, 0.0]), [0.0, 10.0], rtol=rtol, **options) for rtol in (1e-4, 1e-10)]
    errors = [np.abs(each.value[-1] - [np.cos(10.0), -np.sin(10.0)]).max() for each in found]
    assert errors[0] < 1e-3
    assert errors[1] < 1e-9
    assert 6.0 < int(found[1].steps) / int(found[0].steps) < 16.0  # 10 for rtol^(1/6), and 32 for rtol^(1/4)


@on("numpy", "torch")
def test_an_empty_batch_has_an_empty_trajectory_and_gradient(engine):
    def last(y0):
        return odeint(lambda t, y: -y, y0, [0.0, 1.0], method="radau", rtol=1e-4, batch_ndim=1)

    y, (slope,) = engine.gradients(last, (np.ones((0, 2)),), np.ones((2, 0, 2)))
    assert y.shape == (2, 0, 2)
    assert slope.shape == (0, 2)


def relaxed(t, y, k):
    """The first unknown is bound to the second one, exp(-t)."""
    return array_namespace(y).stack([-k * (y[..., 0] - y[..., 1]), -y[..., 1]], axis=-1)


CROSSES = dil.ode.Event(lambda t, y, k: y[..., 0] - 0.3, terminal=True)
RATES, WEIGHTS = np.asarray([50.0, 5.0, 500.0]), np.asarray([1.0, -2.0, 0.5])


def crossing_times(rates):
    """Return the times at which k / (k - 1) exp(-t) + (k - 2) / (k - 1) exp(-k t) from the start 2 is 0.3."""
    low, high = np.full(rates.shape, 0.5), np.full(rates.shape, 3.0)
    for _ in range(60):
        t = 0.5 * (low + high)
        above = (rates * np.exp(-t) + (rates - 2.0) * np.exp(-rates * t)) / (rates - 1.0) > 0.3
        low, high = np.where(above, t, low), np.where(above, high, t)
    return low


def event_time(k, engine, batch=()):
    y0 = engine.asarray(np.broadcast_to([2.0, 1.0], (*batch, 2)).copy())
    options = {"method": "radau", "rtol": 1e-7, "events": CROSSES, "max_events": 2, "batch_ndim": len(batch)}
    return odeint(relaxed, y0, [0.0, 5.0], (k,), **options)[1][0].t[0, ...]


def slope_of_times():
    h = 1e-5 * RATES
    return (crossing_times(RATES + h) - crossing_times(RATES - h)) / (2 * h)


@on("numpy", "torch:backward", "torch:func", "array_api_strict", "jax:jit")
def test_times_of_events(engine):
    """Beside the closed form, of one problem and of a batch, whose problems end one by one."""
    found, (slope,) = engine.gradients(lambda k: event_time(k, engine), (RATES[0],), np.ones(()))
    close(np.asarray(found), crossing_times(RATES)[0], 1e-6)
    close(slope, slope_of_times()[0], 1e-5)
    found, (slope,) = engine.gradients(lambda k: event_time(k, engine, (3,)), (RATES,), WEIGHTS)
    close(np.asarray(found), crossing_times(RATES), 1e-6)
    close(slope, WEIGHTS * slope_of_times(), 1e-5)


@on("jax:jit")
def test_times_of_events_that_jax_maps(engine):
    import jax

    found = jax.vmap(jax.value_and_grad(lambda k: event_time(k, engine)))(engine.asarray(RATES))
    close(found[0], crossing_times(RATES), 1e-6)
    close(found[1], slope_of_times(), 1e-5)


@on("torch")
def test_times_of_events_that_torch_maps(engine):
    import torch

    found = torch.func.vmap(torch.func.grad(lambda k: event_time(k, engine)))(engine.asarray(RATES))
    close(found, slope_of_times(), 1e-5)
