"""method="auto": explicit and implicit steps by turns, the choice between them, and the derivative."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.ode import odeint, solve, solve_ivp
from dil.ode._options import FEW
from ode_helpers import close, decay, on
from test_ode_reference import CASES, pleiades


def stiff_between(t, y, rate):
    """The first unknown is bound to cos t by a rate that is large around t = 2 alone."""
    xp = array_namespace(y)
    bound = 1.0 + rate * xp.exp(-8.0 * (t - 2.0) ** 2)
    return xp.stack([-bound * (y[0] - xp.cos(t)) + y[1], -y[0] - 0.1 * y[1]])


START, RATE, TIMES = np.asarray([1.0, 0.5]), np.asarray(1e4), np.asarray([0.0, 1.0, 2.0, 5.0, 12.0])


def test_what_is_not_stiff_is_solved_by_explicit_steps():
    _, start, end, *_ = CASES["Pleiades"]
    found, explicit = (
        solve(pleiades, np.asarray(start, float), [0.0, end], method=method, rtol=1e-4, atol=1e-7)
        for method in ("auto", "tsit5")
    )
    assert (int(found.implicit_steps), found.changed_at.shape) == (0, (0,))
    assert explicit.implicit_steps is explicit.changed_at is None
    np.testing.assert_array_equal(found.value, explicit.value)


@pytest.mark.parametrize("name", ["Van der Pol", "Robertson", "HIRES"])
def test_what_is_stiff_is_solved_by_implicit_steps(name):
    field, start, end, _, published, _ = CASES[name]
    atol = 1e-13 if name == "Robertson" else 1e-8
    found, radau = (
        solve(field, np.asarray(start, float), [0.0, end], method=method, rtol=1e-5, atol=atol)
        for method in ("auto", "radau")
    )
    assert Status(int(found.status)) is Status.CONVERGED
    assert np.sqrt(np.mean((found.value[-1] / np.asarray(published) - 1) ** 2)) < 1e-3
    assert 0 < int(found.implicit_steps) < int(found.steps)
    assert int(found.steps) < 1.5 * int(radau.steps)
    assert 0 < found.changed_at[0] < 0.1 * end


@on("numpy", "torch:backward")
def test_it_changes_both_ways(engine):
    start, times = engine.asarray(START), engine.asarray(TIMES)
    found = solve(stiff_between, start, times, (engine.asarray(RATE),), method="auto", rtol=1e-5)
    there, back = np.asarray(found.changed_at)
    assert 1.0 < there < 2.0 < back < 5.0
    assert 10 < int(found.implicit_steps) < int(found.steps) - 20
    tight = solve(stiff_between, START, TIMES, (RATE,), method="radau", rtol=1e-9)
    close(np.asarray(found.value), tight.value, 1e-4)


def test_a_solve_without_steps():
    for y0, times in ((np.ones((0, 2)), [0.0, 1.0]), (np.ones((3, 2)), [0.0])):
        found = solve(decay, y0, times, (1.0,), method="auto", rtol=1e-3, batch_ndim=1)
        np.testing.assert_array_equal(found.value, np.ones((len(times), *y0.shape)))
        assert (int(found.implicit_steps), found.changed_at.shape) == (0, (0,))


def test_a_time_that_decreases():
    back = lambda t, y, rate: -stiff_between(-t, y, rate)  # noqa: E731
    found = solve(back, START, -TIMES, (RATE,), method="auto", rtol=1e-5)
    forward = solve(stiff_between, START, TIMES, (RATE,), method="auto", rtol=1e-5)
    np.testing.assert_array_equal(found.changed_at, -forward.changed_at)
    np.testing.assert_array_equal(found.value, forward.value)


@on("numpy", "torch:backward")
def test_gradients(engine):
    """In the start, the parameter and the times, against differences of a tight solution."""
    v = np.random.default_rng(0).standard_normal((5, 2))

    def states(start, rate, times):
        return odeint(stiff_between, start, times, (rate,), method="auto", rtol=1e-6, on_failure="raise")

    def tight(start, rate, times):
        return np.sum(v * solve(stiff_between, start, times, (rate,), method="radau", rtol=1e-9, max_steps=4000).value)

    args = [START, RATE, TIMES]
    y, gradients = engine.gradients(states, args, v)
    close(np.sum(v * np.asarray(y)), tight(*args), 1e-5)
    for i, found in enumerate(gradients):
        expected = np.zeros(args[i].shape)
        for place in np.ndindex(args[i].shape):
            h = np.zeros(args[i].shape)
            h[place] = 1e-4 * max(1.0, abs(args[i][place]))
            moved = ([x + s * h if j == i else x for j, x in enumerate(args)] for s in (1, -1))
            expected[place] = np.subtract(*(tight(*x) for x in moved)) / (2 * h[place])
        close(found, expected, 1e-4)


def test_both_modes_agree_and_go_to_second_order():
    """In the logarithm of the rate. The method changes once."""

    def last(s, method):
        rate = array_namespace(s).exp(s)
        return odeint(stiff_between, START, [0.0, 2.2], (rate,), method=method, rtol=1e-5)[-1, 1]

    s, slopes = np.log(RATE), [dil.grad(lambda s, m=m: last(s, m)) for m in ("auto", "radau")]
    _, moved = dil.jvp(lambda s: last(s, "auto"), (s,), (np.asarray(1.0),))
    close(moved, slopes[0](s), 1e-9)
    bend, other = (dil.grad(slope)(s) for slope in slopes)
    close(bend, other, 1e-2)


def test_a_large_state_takes_the_other_implicit_method():
    rates = np.geomspace(1.0, 1e5, FEW + 1)
    found = solve(decay, np.ones(FEW + 1), [0.0, 3.0], (rates,), method="auto", rtol=1e-4, atol=1e-6)
    assert int(found.implicit_steps) > 5
    close(found.value[-1], np.exp(-3.0 * rates), 1e-3)


def test_events():
    """The time of an event is differentiable across a change of the method."""
    event = dil.ode.Event(lambda t, y, rate: y[1] + 0.8, terminal=True)

    def time(rate, method):
        _, (found,) = odeint(stiff_between, START, [0.0, 12.0], (rate,), method=method, rtol=1e-7, events=event)
        return found.t[0]

    (auto, slope), (radau, other) = (
        dil.value_and_grad(lambda rate, m=method: time(rate, m))(RATE) for method in ("auto", "radau")
    )
    assert 6.0 < auto < 8.0  # after both changes
    close(auto, radau, 1e-5)
    close(slope, other, 1e-3)


def test_a_batch_changes_at_once():
    y0, rates = np.asarray([[1.0], [1.0]]), np.asarray([[1.0], [1e4]])
    found = solve(decay, y0, [0.0, 2.0], (rates,), method="auto", rtol=1e-5, atol=1e-8, batch_ndim=1)
    assert int(found.implicit_steps) > 0
    close(found.value[-1], np.exp(-2.0 * rates), 1e-4)


@pytest.mark.parametrize(("most", "changes"), [(10, 0), (25, 1)])
def test_too_few_steps_are_told(most, changes):
    """The report, and the gradient of the steps that were taken."""
    field = lambda t, y, k: -k * (y - np.cos(t))  # noqa: E731
    found = solve(field, np.ones(1), [0.0, 20.0], (RATE,), method="auto", rtol=1e-4, max_steps=most)
    assert Status(int(found.status)) is Status.MAX_ITER
    assert (int(found.steps), found.changed_at.shape) == (most, (changes,))
    assert (int(found.implicit_steps) > 0) == (changes > 0)

    def last(k):
        options = {"rtol": 1e-4, "max_steps": most, "on_failure": "ignore"}
        return odeint(field, np.ones(1), [0.0, found.failed_at], (k,), method="auto", **options)[-1, 0]

    assert abs(dil.grad(last)(RATE)) < 1e-6


def test_lsoda_of_scipy_is_this_choice():
    args = {"t_eval": TIMES, "args": (RATE,), "rtol": 1e-5}
    found = solve_ivp(stiff_between, [0.0, 12.0], START, method="LSODA", **args)
    close(found.y.T, odeint(stiff_between, START, TIMES, (RATE,), method="auto", rtol=1e-5, atol=1e-6), 1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2}, "give rtol= or atol=, or take 'tsit5' or 'radau'"),
        ({"rtol": 1e-3, "gradient": "adjoint"}, "not 'adjoint'; take 'tsit5' or 'radau'"),
        ({"rtol": 1e-3, "solver": dil.ode.StepNewton()}, "drop solver= and layer="),
        ({"rtol": 1e-3, "checkpoints": 3}, "drop checkpoints="),
        ({"rtol": 1e-3, "own_steps": True}, "drop own_steps=True"),
        ({"rtol": 1e-3, "mass": [1.0]}, "take 'radau' or 'kvaerno5'"),
    ],
)
def test_what_it_cannot_have_is_refused(options, message):
    with pytest.raises(dil.OptionError, match=f"method='auto' .*{message}"):
        odeint(decay, np.ones(1), [0.0, 1.0], (1.0,), method="auto", **options)


@on("jax:jit", "array_api_strict", "torch:func")
def test_a_program_that_is_traced_refuses_it(engine):
    """The eager arrays of the standard say that they run later."""
    states = lambda y0: odeint(decay, y0, [0.0, 1.0], (1.0,), method="auto", rtol=1e-3)  # noqa: E731
    with pytest.raises(dil.OptionError, match=r"method='auto' .*; take 'tsit5', or 'radau' or 'kvaerno5'"):
        engine.gradients(states, (np.ones(1),), np.ones((2, 1)))


def test_events_that_end_a_batch_are_refused():
    event = dil.ode.Event(lambda t, y, rate: y[:, 0] - 0.5, terminal=True)
    with pytest.raises(dil.OptionError, match="end problems of a batch"):
        solve(decay, np.ones((2, 1)), [0.0, 1.0], (1.0,), method="auto", rtol=1e-3, events=event, batch_ndim=1)
