"""Events: where a function of the state crosses zero. Times and states have closed forms or are those of SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil._frameworks.loops import python_while
from dil.ode import Event, odeint, solve, solve_ivp
from dil.ode._bracket import crossing
from ode_helpers import close, on

OPTIONS = {"method": "tsit5", "rtol": 1e-6, "max_steps": 100, "max_events": 2}
G = np.asarray(9.81)


def fall(t, y, g):
    """A body that falls: (height, speed)."""
    xp = array_namespace(y)
    return xp.stack([y[..., 1], -g + 0.0 * y[..., 0]], axis=-1)


def height(t, y, g):
    return y[..., 0]


GROUND = Event(height, terminal=True, direction=-1)


def oscillate(t, y):
    xp = array_namespace(y)
    return xp.stack([y[..., 1], -y[..., 0]], axis=-1)


@on("numpy", "torch", "jax:jit")
def test_time_of_flight(engine):
    """A body thrown up at speed v lands at t = 2 v / g with speed -v; later outputs hold that state."""

    def landing(v, g, start):
        xp = array_namespace(v)
        times = [start, 1.0, 6.0]
        y, (ground,) = odeint(fall, xp.stack([0.0 * v, v]), times, g, events=GROUND, **OPTIONS)
        return xp.stack([ground.t[0], ground.y[0, 1], y[1, 0], y[2, 0], y[2, 1]])

    v, g, weights = 10.0, 9.81, np.asarray([1.0, 0.5, 2.0, 3.0, -1.0])
    found, (of_v, of_g, of_start) = engine.gradients(landing, (v, g, 0.0), weights)
    close(found, [2 * v / g, -v, v - 0.5 * g, 0.0, -v], 1e-12)
    close(of_v, weights @ [2 / g, -1, 1, 0, -1], 1e-10)
    close(of_g, weights @ [-2 * v / g**2, 0, -0.5, 0, 0], 1e-10)
    close(of_start, weights @ [1, 0, g - v, 0, 0], 1e-10)
    if engine.name != "torch":
        moved = engine.tangent(landing, (v, g, 0.0), (1.0, 2.0, 0.0))
        close(moved, [2 / g - 4 * v / g**2, -1, 1 - 1.0, 0, -1], 1e-10)


@on("numpy", slow=("torch", "jax:jit"))
def test_second_derivatives(engine):
    def slope(v, g):
        xp = array_namespace(v)
        time = lambda g: odeint(fall, xp.stack([0.0 * v, v]), [0.0, 6.0], g, events=GROUND, **OPTIONS)[1][0].t[0]  # noqa: E731
        return dil.grad(time)(g)

    _, (of_v, of_g) = engine.gradients(slope, (10.0, 9.81))
    close(of_v, -2 / 9.81**2, 1e-10)
    close(of_g, 4 * 10.0 / 9.81**3, 1e-10)


@pytest.mark.parametrize(("method", "rtol", "bound"), [("tsit5", 1e-7, 1e-6), ("kvaerno5", 1e-7, 1e-5)])
def test_period_of_an_orbit(method, rtol, bound):
    """Kepler's third law: T = 2 pi (a^3 / mu)^(1/2), so dT/da = 3/2 T / a and dT/dmu = -1/2 T / mu.

    The error of the derivative is that of dy/da, which "kvaerno5" has larger.
    """

    def orbit(t, y, mu):
        force = -mu / (y[0] ** 2 + y[1] ** 2) ** 1.5
        return np.stack([y[2], y[3], force * y[0], force * y[1]])

    def state(a, mu, times, **events):
        y0 = np.stack([0.7 * a, 0.0 * a, 0.0 * a, (mu * 1.3 / (0.7 * a)) ** 0.5])
        return odeint(orbit, y0, times, mu, method=method, rtol=rtol, **events)

    def period(a, mu):
        return state(a, mu, [0.0, 20.0], events=Event(lambda t, y, mu: y[1], terminal=True, direction=1))[1][0].t[0]

    one = np.asarray(1.0)
    T, pull = dil.vjp(period, one, one)
    of_a, of_mu = pull(one)
    close(T, 2 * np.pi, 10 * rtol)
    close(of_a, 3 * np.pi, bound)
    close(of_mu, -np.pi, bound)
    # the theorem by hand: dT = -(dy1/da) / (dy1/dt) at this time, of the same steps
    _, pull = dil.vjp(lambda a, t: state(a, one, np.stack([0.0, t, 20.0]))[1, 1], one, T)
    by_a, by_t = pull(one)
    close(of_a, -by_a / by_t, 1e-9)


def bounces(restitution, count):
    """Return the time of the last of some bounces of a ball that is dropped from the height 1."""
    y, t = np.asarray([1.0, 0.0]), 0.0
    for _ in range(count):
        _, (ground,) = odeint(fall, y, [0.0, 2.0], G, events=GROUND, method="tsit5", rtol=1e-6)
        t = t + ground.t[0]
        y = np.stack([0.0 * ground.y[0, 0], -restitution * ground.y[0, 1]])
    return t


def test_ten_bounces():
    """The k-th flight takes 2 r^k (2 h / g)^(1/2), the first one half of that."""
    r, k = 0.8, np.arange(1, 10)
    found, slope = dil.value_and_grad(lambda r: bounces(r, 10))(np.asarray(r))
    first = (2 / float(G)) ** 0.5
    close(found, first * (1 + 2 * np.sum(r**k)), 1e-12)
    close(slope, first * 2 * np.sum(k * r ** (k - 1)), 1e-11)


@pytest.mark.slow
@on("jax:jit")
def test_ten_bounces_in_one_program(engine):
    """A `lax.scan` over the flights, and its derivatives."""
    import jax

    def last(r):
        def bounce(y, _):
            _, (ground,) = odeint(fall, y, [0.0, 2.0], engine.asarray(G), events=GROUND, **OPTIONS)
            return engine.xp.stack([0.0 * r, -r * ground.y[0, 1]]), ground.t[0]

        return engine.xp.sum(jax.lax.scan(bounce, engine.asarray([1.0, 0.0]), None, length=10)[1])

    r, k, first = 0.8, np.arange(1, 10), (2 / float(G)) ** 0.5
    found, slope = jax.jit(jax.value_and_grad(last))(engine.asarray(r))
    close(found, first * (1 + 2 * np.sum(r**k)), 1e-12)
    close(slope, first * 2 * np.sum(k * r ** (k - 1)), 1e-11)
    curvature = jax.jit(jax.hessian(last))(engine.asarray(r))
    close(curvature, first * 2 * np.sum(k * (k - 1) * r ** np.maximum(k - 2, 0)), 1e-10)


def test_events_are_those_of_scipy():
    """Directions, a number of events that ends the solve, and what is dropped after the end."""
    integrate = pytest.importorskip("scipy.integrate", reason="SciPy is not installed")

    def pendulum(t, y):
        return np.stack([y[1], -np.sin(y[0])])

    def bottom(t, y):
        return y[0]

    def rising(t, y):
        return y[1] - 0.3 * np.cos(t)

    def third(t, y):
        return y[0] - 0.5

    rising.direction, third.terminal = 1, 3
    options = {"rtol": 1e-9, "atol": 1e-12, "events": [bottom, rising, third]}
    theirs = integrate.solve_ivp(pendulum, (0.0, 30.0), [1.0, 0.0], method="DOP853", **options)
    options = {"rtol": 1e-8, "events": (bottom, rising, third), "method": "tsit5"}
    ours = solve(pendulum, np.asarray([1.0, 0.0]), [0.0, 30.0], **options)
    assert int(ours.ended_by) == 2
    assert [int(x.counts) for x in ours.events] == [len(t) for t in theirs.t_events] == [2, 1, 3]
    for t, y, their_t, their_y in zip(ours.t_events, ours.y_events, theirs.t_events, theirs.y_events, strict=True):
        close(t, their_t, 1e-7)
        np.testing.assert_allclose(y, their_y, atol=1e-6)
    close(ours.value[-1], ours.y_events[2][-1], 1e-14)


def test_an_event_at_the_start_is_none_and_backwards_in_time_directions_turn():
    start = np.asarray([0.0, 1.0])
    found = solve(oscillate, start, [0.0, 7.0], rtol=1e-8, events=lambda t, y: y[0])
    close(found.t_events[0], [np.pi, 2 * np.pi], 1e-7)
    for nearly in (1e-18, -1e-18):
        found = solve(oscillate, start + nearly, [0.0, 1.0], rtol=1e-8, events=lambda t, y: y[0])
        assert int(found.events[0].counts) == 0
    events = Event(lambda t, y: y[1], direction=1), Event(lambda t, y: y[1], 2)
    found = solve(oscillate, start, [0.0, -9.0], rtol=1e-8, events=events)
    close(found.t_events[0], [-1.5 * np.pi], 1e-7)
    close(found.t_events[1], [-0.5 * np.pi, -1.5 * np.pi], 1e-7)


def test_an_event_that_is_never_reached():
    event = Event(lambda t, y: y[0] - 2.0, terminal=True)
    y, (found,) = odeint(oscillate, np.asarray([0.0, 1.0]), [0.0, 1.0, 3.0], rtol=1e-8, events=event)
    close(y[:, 0], np.sin([0.0, 1.0, 3.0]), 1e-7)
    assert (found.t.shape, found.y.shape, int(found.counts)) == ((0,), (0, 2), 0)
    report = solve(oscillate, np.asarray([0.0, 1.0]), [0.0, 1.0], rtol=1e-3, events=event)
    assert (int(report.ended_by), Status(int(report.status))) == (-1, Status.CONVERGED)
    y, none = odeint(oscillate, np.asarray([0.0, 1.0]), [0.0, 1.0], rtol=1e-3, events=[])
    assert (y.shape, none) == ((2, 2), ())
    alone = solve(oscillate, np.asarray([0.0, 1.0]), [0.0], rtol=1e-3, events=event)
    assert (int(alone.ended_by), int(alone.events[0].counts)) == (-1, 0)


def test_several_events_in_one_step():
    """y = (t - 1)^2 - 0.01 in one step: twice through zero between two samples of one step, and in order."""
    events = (
        Event(lambda t, y: y),
        Event(lambda t, y: y - 0.5, terminal=True, direction=1),
        Event(lambda t, y: y - 0.7),
    )
    options = {"method": "tsit5", "rtol": 1e-2, "atol": 1e2, "first_step": 2.0, "events": events}
    found = solve(lambda t, y: 2 * (t - 1.0), np.asarray(0.99), [0.0, 1.9, 2.0], **options)
    assert (int(found.steps), int(found.ended_by)) == (1, 1)
    close(found.t_events[0], [0.9, 1.1], 1e-12)
    close(found.t_events[1], [1 + 0.51**0.5], 1e-12)
    close(found.t_events[2], [1 - 0.71**0.5], 1e-12)  # the second one is after the end
    close(found.value[1:], [0.5, 0.5], 1e-12)


@pytest.mark.parametrize("method", ["tsit5", "kvaerno5", "bdf2"])
def test_each_problem_of_a_batch_ends_by_itself(method):
    """y' = -k y^(1/2), y^(1/2) = y0^(1/2) - k t / 2, has no solution long after the event; the others go on."""

    def shrink(t, y, k):
        return -k * array_namespace(y).sqrt(y)

    def both(y0, k):
        event = Event(lambda t, y, k: y[..., 0] - 0.25, terminal=True)
        options = {"method": method, "rtol": 1e-5, "batch_ndim": 1, "on_failure": "raise"}
        y, (end,) = odeint(shrink, y0, [0.0, 2.0, 10.0], k, events=event, **options)
        return end.t[0], y[1], y[2]

    y0, k, v = np.asarray([[1.0], [4.0], [9.0]]), np.asarray(1.0), np.asarray([1.0, -2.0, 3.0])
    (t, middle, last), pull = dil.vjp(both, y0, k)
    close(t, [1.0, 3.0, 5.0], 1e-5)
    close(middle, [[0.25], [1.0], [4.0]], 1e-5)
    close(last, [[0.25]] * 3, 1e-12)
    of_y0, of_k = pull((v, np.zeros((3, 1)), np.ones((3, 1))))
    close(of_y0[:, 0], v / np.asarray([1.0, 2.0, 3.0]), 1e-4)
    close(of_k, -v @ [1.0, 3.0, 5.0], 1e-4)


def test_problems_of_a_batch_have_their_own_events():
    """y = a cos t crosses cos(3 t) / 2, and the time of a function of time is that of each problem."""
    a = np.asarray([1.0, 0.1, 5.0])
    event = Event(lambda t, y: y[..., 0] - 0.5 * np.cos(3 * t))
    options = {"rtol": 1e-8, "batch_ndim": 1, "events": event}
    found = solve(oscillate, np.stack([a, 0 * a], axis=-1), [0.0, 4.0], **options).events[0]
    alone = [solve(oscillate, np.asarray([x, 0.0]), [0.0, 4.0], events=event, rtol=1e-8).events[0] for x in a]
    assert found.counts.tolist() == [len(x.t) for x in alone] == [1, 4, 1]
    for i, x in enumerate(alone):
        close(found.t[: len(x.t), i], x.t, 1e-6)
        assert np.all(np.isnan(found.t[len(x.t) :, i]))
        assert np.all(np.isnan(found.y[len(x.t) :, i]))


def test_a_function_that_is_singular_at_the_start():
    """The derivative of t^(1/2) is infinite there. A problem without an event does not make the others NaN."""
    event = Event(lambda t, y, k: array_namespace(t).sqrt(t * k) - y[..., 0] / 2)

    def times(a, k):
        y0 = array_namespace(a).stack([a, a + 50.0])[:, None]
        options = {"method": "tsit5", "rtol": 1e-6, "batch_ndim": 1, "events": event}
        return odeint(lambda t, y, k: 0.0 * y, y0, [0.0, 4.0], k, **options)[1][0].t[0, 0]

    found, pull = dil.vjp(times, np.asarray(2.0), np.asarray(1.0))
    close(found, 1.0)
    close(pull(np.asarray(1.0)), [1.0, -1.0])


GRAZES = Event(lambda t, y, a: y)


def contact(a, on_failure="warn"):
    """Return the events of y = (t - a)^3."""
    field = lambda t, y, a: 3 * (t - a) ** 2 + 0 * y  # noqa: E731
    options = {"method": "tsit5", "rtol": 1e-6, "on_failure": on_failure}
    return odeint(field, -(a**3), [0.0, 2.0], a, events=GRAZES, **options)[1][0]


@pytest.mark.parametrize("unit", [1.0, 1e-9])
def test_a_grazing_event_has_no_derivative_and_says_so(unit):
    a = np.asarray(1.0)
    found = contact(a)
    assert [Status(int(x)) for x in found.status] == [Status.GRAZING]
    np.testing.assert_allclose(found.t, [1.0], rtol=1e-2)
    with pytest.warns(dil.ConvergenceWarning, match=r"event '<lambda>': backward solve: GRAZING: .* lower rtol"):
        dil.grad(lambda a: contact(a).t[0])(a)
    assert np.isnan(dil.grad(lambda a: contact(a, "nan").t[0])(a))
    with pytest.raises(dil.ConvergenceError, match="GRAZING"):
        dil.jvp(lambda a: contact(a, "raise").t[0], (a,), (a,))
    # a crossing at an angle is none, in any unit
    field = lambda t, y, k: -k * y  # noqa: E731
    options = {"method": "tsit5", "rtol": 1e-6, "events": Event(lambda t, y, k: 1e3 * (y - 0.5 * unit))}
    plain = odeint(field, np.asarray(unit), [0.0, 2.0 / unit], np.asarray(unit), **options)[1][0]
    assert plain.status.tolist() == [0]
    close(plain.t, [np.log(2.0) / unit], 1e-6)


def test_a_function_that_touches_zero_at_a_sample_is_told():
    """(t - 1)^2 is zero in the middle of the step, and has no sign before."""
    options = {"method": "tsit5", "rtol": 1e-2, "first_step": 2.0, "events": lambda t, y: (t - 1.0) ** 2}
    found = solve(lambda t, y: 0 * y, np.asarray(1.0), [0.0, 2.0], **options).events[0]
    close(found.t, [1.0, 1.0], 1e-12)
    assert {Status(int(x)) for x in found.status} == {Status.GRAZING}


def test_a_function_that_is_not_finite_is_told():
    half = Event(lambda t, y: np.sqrt(y - 1.0))
    found = solve(lambda t, y: -y, np.asarray(2.0), [0.0, 3.0], method="tsit5", rtol=1e-5, events=half)
    assert Status(int(found.status)) is Status.EVENT_NON_FINITE
    assert 0.0 < float(found.failed_at) < np.log(2.0)
    with pytest.raises(
        dil.ConvergenceError, match=r"EVENT_NON_FINITE: .* in it; the first failure is in step \d+, from"
    ):
        odeint(lambda t, y: -y, np.asarray(2.0), [0.0, 3.0], rtol=1e-5, events=half, on_failure="raise")


@pytest.mark.parametrize(
    ("events", "options", "error", "words"),
    [
        (lambda t, y: y, {}, dil.ShapeError, r"events\[0\], '<lambda>', returned shape \(2,\); expected \(\)"),
        (lambda t, y: y[:1], {}, dil.ShapeError, r"returned shape \(1,\); expected \(\), one number for each problem"),
        (lambda t, y: y[0] < 1, {}, dil.DTypeError, r"returned dtype bool, .* such as y\[0\] - 1 and not y\[0\] < 1"),
        (lambda t, y: None, {}, dil.DTypeError, "returned None of type NoneType; expected a float array"),
        (lambda t, y: np.float32(1.0), {}, dil.DTypeError, "returned dtype float32, but y0 has float64"),
        (3, {}, dil.OptionError, r"events\[0\] is 3 of type int; expected a function event\(t, y, \*args\)"),
        (lambda t, y: y[0], {"rtol": None}, dil.OptionError, "found on steps that adapt, .* give rtol= or atol="),
        (lambda t, y: y[0], {"gradient": "adjoint"}, dil.OptionError, "with gradient='implicit' or 'naive'"),
        (lambda t, y: y[0], {"max_events": 0}, dil.OptionError, "max_events=0; expected an integer >= 1"),
    ],
)
def test_bad_events(events, options, error, words):
    with pytest.raises(error, match=words):
        solve(oscillate, np.asarray([0.0, 1.0]), [0.0, 1.0], events=events, **{"rtol": 1e-3, **options})


def test_bad_fields_of_an_event():
    with pytest.raises(dil.OptionError, match=r"terminal of the event 'height'=-1; expected an integer >= 0"):
        Event(height, terminal=-1)
    with pytest.raises(dil.OptionError, match="direction='up' of the event 'height'; expected 0, 1 or -1"):
        Event(height, direction="up")
    with pytest.raises(dil.OptionError, match="the function of an event is 3; expected a callable"):
        Event(3)


def test_repeated_times_after_the_end_depend_on_no_time():
    def late(times):
        y, _ = odeint(fall, np.asarray([0.0, 10.0]), times, G, events=GROUND, **OPTIONS)
        return y[2, 0] + y[3, 0] + y[1, 0]

    slopes = dil.grad(late)(np.asarray([0.0, 1.0, 4.0, 4.0]))
    close(slopes[2:], [0.0, 0.0])
    close(slopes[1], 10.0 - float(G), 1e-9)


@on("jax:jit")
def test_a_program_keeps_so_many_events(engine):
    """Three crossings, two of them kept; a program has room for the event that ends it."""
    import jax

    start = engine.asarray([0.0, 1.0])
    run = lambda y0, **more: solve(oscillate, y0, [0.0, 10.0], **OPTIONS, **more)  # noqa: E731
    found = jax.jit(lambda y0: run(y0, events=[lambda t, y: y[0], Event(lambda t, y: y[0] - 2.0, True)]))(start)
    close(engine.to_numpy(found.events[0].t), [np.pi, 2 * np.pi], 1e-5)
    assert [int(x.counts) for x in found.events] == [3, 0]
    assert np.all(np.isnan(engine.to_numpy(found.events[1].t)))
    assert int(found.ended_by) == -1
    with pytest.raises(dil.OptionError, match=r"ends the solve at event number 3, .* keeps max_events=2; raise it"):
        jax.jit(lambda y0: run(y0, events=Event(lambda t, y: y[0], 3)))(start)


@on("numpy", "torch", "jax:jit")
def test_events_that_are_lost_are_told(engine):
    """A program of JAX has room for two, with `jit` and without. Elsewhere, all are kept."""
    start, jax = engine.asarray([0.0, 1.0]), engine.backend == "jax"
    crosses, seldom = (lambda t, y: y[0]), (lambda t, y: y[0] - 0.999)
    for sign in (1.0, -1.0):
        field = lambda t, y, s=sign: s * oscillate(t, y)  # noqa: E731
        run = lambda y0, end, f=field, **more: solve(f, y0, [0.0, end], **OPTIONS, **more)  # noqa: E731
        for events in ([seldom, crosses], [crosses, seldom]):
            found = run(start, sign * 10.0, events=events)
            assert Status(int(found.status)) is (Status.MORE_EVENTS if jax else Status.CONVERGED)
            assert sorted(int(x.counts) for x in found.events) == [3, 4]
            assert min(x.t.shape for x in found.events) == ((2,) if jax else (3,))
            close(engine.to_numpy(found.failed_at), sign * (np.pi - np.arcsin(0.999)) if jax else np.inf, 1e-4)
        close(engine.to_numpy(found.value)[-1], [np.sin(10.0), np.cos(10.0)], 1e-4)
        assert Status(int(run(start, sign * 7.0, events=crosses).status)) is Status.CONVERGED
    if not jax:
        return
    import jax

    found = jax.jit(lambda y0: solve(oscillate, y0, [0.0, 10.0], events=crosses, **OPTIONS))(start)
    assert Status(int(found.status)) is Status.MORE_EVENTS
    text = r"MORE_EVENTS: .*; raise max_events; the last one that is kept is at t = 6\.283"
    last = lambda y0: odeint(oscillate, y0, [0.0, 10.0], events=crosses, **OPTIONS)[0]  # noqa: E731
    for each in (last, jax.jit(last)):
        with pytest.warns(dil.ConvergenceWarning, match=text):
            jax.block_until_ready(each(start))
    ended = solve_ivp(oscillate, [0.0, 10.0], start, events=crosses, max_events=2, on_failure="ignore")
    assert ended.message.startswith("MORE_EVENTS at t = 6.28")


@on("numpy", "jax:jit")
@pytest.mark.parametrize("last", [2.5, 1.7])
def test_events_behind_the_end_are_not_lost(engine, last):
    """Both functions cross zero twice in the first step, and the solve ends there at t = 1.5."""
    ends = Event(lambda t, y: (t - 1.5) * (t - 2.5), terminal=True)
    options = {**OPTIONS, "max_events": 1, "first_step": 4.0, "events": [ends, lambda t, y: (t - 0.5) * (t - last)]}
    found = solve(lambda t, y: 0.0 * y, engine.asarray([1.0]), [0.0, 8.0], **options)
    assert Status(int(found.status)) is Status.CONVERGED
    assert [int(x.counts) for x in found.events] == [1, 1]
    close(engine.to_numpy(found.events[1].t), [0.5], 1e-12)
    # an event that is lost before the end
    options["events"] = [ends, lambda t, y: (t - 0.5) * (t - 1.3)]
    found = solve(lambda t, y: 0.0 * y, engine.asarray([1.0]), [0.0, 8.0], **options)
    jax = engine.backend == "jax"
    assert Status(int(found.status)) is (Status.MORE_EVENTS if jax else Status.CONVERGED)
    assert [int(x.counts) for x in found.events] == [1, 2]


def test_each_problem_tells_its_lost_events():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    event = Event(lambda t, y: y[..., 0] - 0.5)
    field = lambda t, y: jax.numpy.stack([y[..., 1], -y[..., 0]], axis=-1)  # noqa: E731
    y0 = jax.numpy.asarray([[0.0, 1.0], [0.0, 0.1], [0.0, 2.0]])
    for own in (False, True):
        options = {**OPTIONS, "events": event, "batch_ndim": 1, "own_steps": own}
        found = solve(field, y0, [0.0, 9.0], **options)
        names = [Status(int(x)).name for x in found.status]
        assert names == ["MORE_EVENTS", "CONVERGED", "MORE_EVENTS"]


@on("torch")
def test_a_program_that_is_mapped_keeps_so_many_events(engine):
    """`torch.func.vmap` of the gradient of a time of flight."""
    import torch

    def landing(v):
        y0, g = torch.stack([0.0 * v, v]), torch.tensor(9.81, dtype=v.dtype)
        return odeint(fall, y0, [0.0, 6.0], g, events=GROUND, **OPTIONS)[1][0].t

    speeds = engine.asarray([10.0, 5.0])
    found = torch.func.vmap(landing)(speeds)
    close(found[:, 0], 2 * speeds / 9.81, 1e-12)
    assert bool(found[:, 1].isnan().all())
    close(torch.func.vmap(torch.func.grad(lambda v: landing(v)[0]))(speeds), [2 / 9.81] * 2, 1e-10)
    options = {**OPTIONS, "events": lambda t, y: y[0]}
    states = lambda end: odeint(oscillate, torch.stack([0 * end, end]), [0 * end, end], **options)[0]  # noqa: E731
    with pytest.warns(dil.ConvergenceWarning, match=r"MORE_EVENTS: .* the last one that is kept is at t = 6\.283"):
        torch.func.vmap(states)(speeds)


@on("torch")
def test_narrow_numbers_and_a_tree_as_the_state(engine):
    """float32, and a state of two arrays."""
    import torch

    field = lambda t, y: {"x": y["v"], "v": -y["x"]}  # noqa: E731
    start = {"x": torch.tensor([0.0]), "v": torch.tensor([1.0], requires_grad=True)}
    event = Event(lambda t, y: y["x"][0] - 0.5, terminal=True)
    _, (found,) = odeint(field, start, [0.0, 3.0], rtol=1e-4, method="tsit5", events=event)
    close(found.t.detach(), [np.pi / 6], 1e-3)
    assert tuple(found.y["v"].shape) == (1, 1)
    found.t[0].backward()
    # v sin t = 1/2, so dt/dv = -tan t / v
    close(start["v"].grad, [-np.tan(np.pi / 6)], 5e-3)


@pytest.mark.parametrize(
    ("function", "most"),
    [
        (lambda x: x - 0.3, 12),
        (lambda x: math.exp(9 * x) - 3, 12),
        (lambda x: (x - 0.4) ** 3, 55),
        (lambda x: 1.0 if x > 0.6 else -1.0, 55),
        (lambda x: x, 12),
        (lambda x: (1e8 + x - 0.3) - 1e8, 55),
    ],
)
def test_a_bracket_is_narrowed_to_rounding(function, most):
    calls = []

    def counted(x):
        calls.append(x)
        return function(x)

    eps = 2.2e-16
    x = crossing(counted, function(0.0), function(1.0), eps, python_while)
    assert len(calls) <= most
    assert function(max(0.0, x - 8 * eps)) <= 0 <= function(min(1.0, x + 8 * eps))


def test_behind_the_end_a_function_need_not_have_a_value():
    """The root of 5 - y is NaN in the last step, behind the event at y = 4.9."""
    events = [dil.ode.Event(lambda t, y: y - 4.9, terminal=True), lambda t, y: np.sqrt(5.0 - y) - 10.0]
    with np.errstate(invalid="ignore"):
        found = dil.ode.solve(lambda t, y: 1.0 + 0.0 * y, np.asarray(0.0), [0.0, 10.0], rtol=1e-6, events=events)
    assert (int(found.status), int(found.ended_by)) == (0, 0)
    assert abs(found.value[-1] - 4.9) < 1e-12
