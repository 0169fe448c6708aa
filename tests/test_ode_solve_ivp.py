"""`dil.ode.solve_ivp` has the signature and the result of SciPy's, and is differentiable."""

from __future__ import annotations

import numpy as np
import pytest

import dil
from engines import Engine

scipy_ivp = pytest.importorskip("scipy.integrate", reason="SciPy is not installed").solve_ivp


def decay(t, y):
    return -0.5 * y


def lotka_volterra(t, z, a, b, c, d):
    x, y = z[0], z[1]
    return np.stack([a * x - b * x * y, -c * y + d * x * y])


def thrown(t, y):
    return np.stack([y[1], -0.5 + 0 * t])


def hit_ground(t, y):
    return y[0]


hit_ground.terminal = True
hit_ground.direction = -1


def apex(t, y):
    return y[1]


def close(a, b, rtol):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.max(np.abs(b)))


def both(fun, *args, **options):
    """Return the results of dil and of SciPy, whose local errors differ by rtol at most."""
    return dil.ode.solve_ivp(fun, *args, **options), scipy_ivp(fun, *args, **options)


def test_the_same_call_gives_the_same_states():
    ours, theirs = both(
        lotka_volterra, [0, 15], [10, 5], args=(1.5, 1, 3, 1), t_eval=np.arange(16), rtol=1e-8, atol=1e-10
    )
    assert ours.y.shape == theirs.y.shape
    close(ours.t, theirs.t, 1e-15)
    close(ours.y, theirs.y, 1e-6)
    assert ours.success
    assert int(ours.status) == theirs.status == 0
    assert ours.sol is ours.t_events is ours.y_events is None


def test_the_default_times_are_those_of_the_steps():
    found = dil.ode.solve_ivp(decay, [0, 10], [2.0, 4.0, 8.0])
    assert found.t.shape == (int(found.steps) + 1,)
    assert found.y.shape == (3, int(found.steps) + 1)
    assert (found.t[0], found.t[-1]) == (0, 10)
    close(found.y, np.asarray([[2.0], [4.0], [8.0]]) * np.exp(-0.5 * found.t), 1e-2)


def test_time_runs_backwards():
    ours, theirs = both(decay, (10, 0), np.asarray([0.5]), t_eval=[9.0, 5.0, 0.0], rtol=1e-8, atol=1e-10)
    close(ours.t, theirs.t, 1e-15)
    close(ours.y, theirs.y, 1e-6)
    steps = dil.ode.solve_ivp(decay, (10, 0), np.asarray([0.5]))
    assert np.all(np.diff(steps.t) < 0)
    assert str(steps.t[-1]) == "0.0"


def test_an_event_that_ends_the_solve():
    ours, theirs = both(thrown, [0, 100], [0.0, 10.0], events=(hit_ground, apex), rtol=1e-8)
    for found, expected in zip(ours.t_events, theirs.t_events, strict=True):
        close(found, expected, 1e-10)
    for found, expected in zip(ours.y_events, theirs.y_events, strict=True):
        close(found, expected, 1e-7)
    assert int(ours.status) == theirs.status == 1
    assert ours.message == "event 0 ended the solve"
    close(ours.t[-1], 40.0, 1e-10)
    close(ours.y[1, -1], -10.0, 1e-9)
    at = dil.ode.solve_ivp(thrown, [0, 100], [0.0, 10.0], t_eval=np.arange(0, 101, 9), events=hit_ground)
    assert at.t.tolist() == [0, 9, 18, 27, 36]


def test_dense_output():
    ours, theirs = both(thrown, [0, 3], [0.0, 10.0], dense_output=True)
    for t in (0.3, np.asarray([0.0, 1.0, 2.9, 3.0])):
        close(ours.sol(t), theirs.sol(t), 1e-10)
    assert ours.sol([1.0, 2.0]).shape == (2, 2)
    back = dil.ode.solve_ivp(decay, (1, 0), [1.0], dense_output=True, rtol=1e-8)
    close(back.sol(0.5), np.exp([0.25]), 1e-6)


@pytest.mark.parametrize("method", ["RK45", "tsit5", "kvaerno5", "sdirk3", "Radau"])
def test_methods(method):
    found = dil.ode.solve_ivp(decay, [0, 2], [1.0], method, rtol=1e-6, atol=1e-9, max_steps=2000)
    close(found.y[:, -1], np.exp([-1.0]), 1e-4)


def test_gradients_on_every_engine(engine: Engine):
    xp = engine.xp
    given = ([2.0, 1.0], 0.7, [0.5, 2.0])

    def last(y0, k, times):
        found = dil.ode.solve_ivp(lambda t, y, k: -k * y, (0.0, 3.0), y0, t_eval=times, args=k, rtol=1e-8, atol=1e-11)
        return xp.sum(found.y[:, 1])

    expected = 3.0 * np.exp(-1.4)
    _, found = engine.gradients(last, given)
    for g, e in zip(found, (np.exp(-1.4) * np.ones(2), -2.0 * expected, [0.0, -0.7 * expected]), strict=True):
        close(g, e, 1e-6)


def test_the_time_of_the_end_has_a_derivative():
    def duration(v):
        y0 = np.stack([0.0 * v, v])
        return dil.ode.solve_ivp(thrown, (0.0, 100.0), y0, events=hit_ground, rtol=1e-8).t[-1]

    close(dil.grad(duration)(np.asarray(10.0)), 4.0, 1e-8)


def test_jax():
    pytest.importorskip("jax", reason="JAX is not installed")
    import jax
    import jax.numpy as jnp

    eager = dil.ode.solve_ivp(decay, (0.0, 1.0), jnp.asarray([1.0]))
    assert eager.t.shape == (int(eager.steps) + 1,)

    @jax.jit
    def ends(y0):
        found = dil.ode.solve_ivp(decay, (0.0, 1.0), y0, t_eval=jnp.asarray([0.5, 1.0]), rtol=1e-8, dense_output=True)
        return found.y, found.status, found.success, found.sol(0.5)

    y, status, success, middle = ends(jnp.asarray([1.0]))
    close(y[0], np.exp([-0.25, -0.5]), 1e-7)
    close(middle, np.exp([-0.25]), 1e-7)
    assert (int(status), bool(success)) == (0, True)
    with pytest.raises(dil.OptionError, match="give t_eval="):
        jax.jit(lambda y0: dil.ode.solve_ivp(decay, (0.0, 1.0), y0).y)(jnp.asarray([1.0]))


def test_a_failure_is_told():
    with pytest.warns(dil.ConvergenceWarning, match="DIVERGED"):
        found = dil.ode.solve_ivp(lambda t, y: y * y, [0, 5], [1.0], t_eval=[0.5, 2.0])
    assert int(found.status) == -1
    assert not found.success
    assert found.t.tolist() == [0.5]
    assert found.message.startswith("DIVERGED at t = 0.99")
    with pytest.raises(dil.ConvergenceError, match="DIVERGED"):
        dil.ode.solve_ivp(lambda t, y: y * y, [0, 5], [1.0], on_failure="raise")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"method": "BDF"}, dil.OptionError, "take method='Radau' or 'kvaerno5'"),
        ({"method": "RK54"}, dil.OptionError, "expected one of RK45, "),
        ({"method": "euler"}, dil.OptionError, "has no estimate of its error"),
        ({"t_span": 3.0}, dil.OptionError, "expected a pair"),
        ({"t_eval": [0.0, 0.5, 0.2]}, dil.OptionError, r"t_eval\[2\] is outside of t_span, or t_eval is not sorted"),
        ({"t_eval": [0.0, 2.0]}, dil.OptionError, r"t_eval\[1\] is outside"),
        ({"t_eval": [np.nan]}, dil.OptionError, r"t_eval\[0\] is outside"),
        ({"y0": np.ones((2, 2))}, dil.ShapeError, r"y0 is of shape \(2, 2\); expected an array of shape \(n,\)"),
        ({"y0": 1.0}, dil.ShapeError, "y0 is of type float"),
        ({"dense_output": 1}, dil.OptionError, "expected True or False"),
    ],
)
def test_misuse(change, error, words):
    with pytest.raises(error, match=words):
        dil.ode.solve_ivp(**{"fun": decay, "t_span": (0.0, 1.0), "y0": [1.0], **change})


def test_counts_that_are_not_there():
    found = dil.ode.solve_ivp(decay, [0, 1], [1.0])
    with pytest.raises(AttributeError, match="nfev is not counted; steps, rejected and iterations are"):
        _ = found.nfev
    with pytest.raises(AttributeError, match="no attribute 'foo'"):
        _ = found.foo


def test_the_end_of_the_span_has_a_derivative():
    """y = 2 exp(-sin(T) / 2)."""

    def end(last, *options):
        found = dil.ode.solve_ivp(lambda t, y: -0.5 * y * np.cos(t), [0.0, last], [2.0], rtol=1e-9, atol=1e-12)
        return found.y[0, -1] + found.t[-1]

    expected = 1.0 - np.cos(3.0) * np.exp(-0.5 * np.sin(3.0))
    close(dil.grad(end)(np.asarray(3.0)), expected, 1e-6)


def test_the_last_time_is_that_of_the_span():
    """The lengths of the steps add up to the span to rounding alone."""
    a, b = 751.3591337718093, -7.905670713802439

    def fun(t, y):
        return -y / abs(b - a)

    assert dil.ode.solve_ivp(fun, [a, b], [1.0], t_eval=np.linspace(a, b, 5)).y.shape == (1, 5)
    assert dil.ode.solve_ivp(fun, [a, b], [1.0]).t[-1] == b


def test_a_complex_state():
    ours, theirs = both(lambda t, y: 1j * y, [0, 1], [1.0 + 0j, 2.0], t_eval=[0.0, 1.0], dense_output=True)
    assert (ours.y.dtype, ours.y.shape) == (theirs.y.dtype, theirs.y.shape)
    close(ours.y, theirs.y, 1e-3)
    close(ours.sol(0.5), theirs.sol(0.5), 1e-3)


def test_dense_output_goes_on_outside_of_the_span():
    ours, theirs = both(decay, [0, 3], [2.0], dense_output=True, rtol=1e-8, atol=1e-10)
    for t in (-0.1, 3.1):
        close(ours.sol(t), theirs.sol(t), 1e-4)
    with pytest.raises(dil.ShapeError, match=r"t has shape \(1, 1\)"):
        ours.sol(np.ones((1, 1)))


def test_times_of_numpy_beside_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    found = dil.ode.solve_ivp(
        decay, [0, 1], torch.ones(1, dtype=torch.float64), t_eval=np.linspace(0, 1, 3), dense_output=True
    )
    close(found.sol(np.asarray([1.0])), np.exp([[-0.5]]), 1e-3)
    close(found.sol([torch.tensor(1.0, dtype=torch.float64), 0.0]), np.exp([[-0.5, 0.0]]), 1e-3)


def test_the_longest_step_and_a_jacobian_that_is_not_used():
    ours, theirs = both(decay, [0, 10], [1.0], max_step=0.5)
    assert len(ours.t) == len(theirs.t) == 1 + 20 + (theirs.t[1] < 0.5)
    assert dil.ode.solve_ivp(decay, [0, 10], [1.0], max_step=np.inf).t.shape[0] < 20
    with pytest.warns(UserWarning, match="jac= is not used by the explicit method 'RK45'"):
        dil.ode.solve_ivp(decay, [0, 1], [1.0], jac=-0.5 * np.eye(1))
    found = dil.ode.solve_ivp(decay, [0, 1], [1.0], "Radau", jac=-0.5 * np.eye(1), atol=[1e-6])
    close(found.y[:, -1], np.exp([-0.5]), 1e-3)
