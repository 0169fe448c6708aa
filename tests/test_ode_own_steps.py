"""Batches of differential equations in which each problem has its own adaptive steps: as if it were solved alone."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.ode import Event, StepNewton, odeint, solve
from ode_helpers import close, on

RATES = np.asarray([1.0, 3.0, 60.0])
STARTS = np.asarray([[0.5, 1.0], [1.0, 0.0], [2.0, -1.0]])
TIMES = np.asarray([0.0, 0.3, 1.0])


def chase(t, y, k):
    """y' = -k (y - cos t) - y^2 / 10, for one problem or for a batch."""
    xp = array_namespace(y)
    return -k[..., None] * (y - xp.cos(t)[..., None]) - 0.1 * y * y


def together(y0, times, k, **options):
    return odeint(chase, y0, times, (k,), batch_ndim=1, own_steps=True, **options)


def alone(y0, times, k, **options):
    rows = [odeint(chase, y0[i, ...], times, (k[i],), **options) for i in range(y0.shape[0])]
    return array_namespace(*rows).stack(rows, axis=1)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        *((name, {}) for name in ("tsit5", "kvaerno5", "sdirk3", "bdf2", "trapezoid")),
        ("sdirk2", {"solver": StepNewton()}),
        ("tsit5", {"first_step": 1e-3}),
    ],
)
def test_each_problem_takes_the_steps_that_it_takes_alone(method, more):
    options = {"method": method, "rtol": 1e-4, **more}
    found = solve(chase, STARTS, TIMES, (RATES,), batch_ndim=1, own_steps=True, **options)
    ones = [solve(chase, STARTS[i], TIMES, (RATES[i],), **options) for i in range(3)]
    close(found.value, np.stack([x.value for x in ones], axis=1), 1e-12)
    for name in ("steps", "rejected", "status"):
        assert getattr(found, name).tolist() == [int(getattr(x, name)) for x in ones]
    close(found.iterations, [float(x.iterations) for x in ones], 0.02)  # products of matrices round in another order
    assert found.steps[2] > 2 * found.steps[0]


@on("numpy", "array_api_strict", "torch", "torch:func", slow=("jax:jit", "strict:device"))
@pytest.mark.parametrize("method", ["tsit5", "kvaerno5"])
def test_gradients_are_those_of_each_problem_alone(engine, method):
    if method == "kvaerno5" and engine.name not in ("numpy", "torch"):
        pytest.skip("NumPy and torch run this one")
    options = {"method": method, "rtol": 1e-3, "max_steps": 60}
    v = np.random.default_rng(0).normal(size=(3, 3, 2))
    (y, slopes), (expected, of_each) = (
        engine.gradients(lambda *args, fn=fn: fn(*args, **options), (STARTS, TIMES, RATES), v)
        for fn in (together, alone)
    )
    close(y, expected, 1e-12)
    for a, b in zip(slopes, of_each, strict=True):
        close(a, b, 1e-11)


def test_forward_mode_and_second_order():
    options = {"method": "tsit5", "rtol": 1e-3}
    directions = np.ones((3, 2)), np.asarray([0.1, 0.2, 0.3]), np.ones(3)
    args = STARTS, TIMES, RATES
    moved, expected = (dil.jvp(lambda *x, fn=fn: fn(*x, **options), args, directions)[1] for fn in (together, alone))
    close(moved, expected, 1e-11)

    def curvature(fn):
        slope = dil.grad(lambda k: np.sum(fn(STARTS, TIMES, k, **options)[-1] ** 2))
        return dil.grad(lambda k: np.sum(slope(k)))(RATES)

    close(curvature(together), curvature(alone), 1e-10)


def test_batches_of_two_dimensions_and_mapped_batches():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    options = {"method": "tsit5", "rtol": 1e-4, "own_steps": True}
    start = torch.linspace(0.1, 3.0, 12, dtype=torch.float64).reshape(2, 3, 2)

    def last(y, batch_ndim=1):
        return odeint(lambda t, y: -(1 + t)[..., None] * y * y, y, [0.0, 1.0], batch_ndim=batch_ndim, **options)[-1]

    expected = last(start.reshape(6, 2)).reshape(2, 3, 2)
    close(last(start, 2), expected)
    close(torch.func.vmap(last)(start), expected)
    slopes = torch.func.grad(lambda y: last(y, 2).pow(2).sum())(start)
    close(torch.func.vmap(torch.func.grad(lambda y: last(y).pow(2).sum()))(start), slopes)


def square(t, y):
    return y * y


@on("numpy", "torch", slow=("jax:jit",))
def test_a_pole_leaves_the_other_problems_untouched(engine):
    """y' = y^2 has its pole at 1 / y(0). With shared steps it takes the steps of all."""
    start = engine.asarray([[0.1], [2.0], [0.3]])
    run = lambda y: solve(square, y, [0.0, 0.2, 1.5], method="kvaerno5", rtol=1e-6, batch_ndim=1, own_steps=True)  # noqa: E731
    if engine.backend == "jax":
        import jax

        run = jax.jit(run)
    found = run(start)
    assert [Status(int(x)).name for x in found.status] == ["CONVERGED", "DIVERGED", "CONVERGED"]
    last, y0 = engine.to_numpy(found.value)[-1, :, 0], np.asarray([0.1, 2.0, 0.3])
    close(last[[0, 2]], (y0 / (1 - 1.5 * y0))[[0, 2]], 1e-5)
    assert abs(float(found.failed_at[1]) - 0.5) < 1e-3
    assert int(found.steps[0]) < 10 < int(found.steps[1])
    one = solve(square, start[0, ...], [0.0, 0.2, 1.5], method="kvaerno5", rtol=1e-6)
    assert int(one.steps) == int(found.steps[0])


def test_each_problem_has_its_own_largest_number_of_steps():
    options = {"batch_ndim": 1, "own_steps": True, "method": "tsit5", "rtol": 1e-4}
    most = int(solve(chase, STARTS, TIMES, (RATES,), **options).steps[1])
    found = solve(chase, STARTS, TIMES, (RATES,), max_steps=most, **options)
    assert [Status(int(x)).name for x in found.status] == ["CONVERGED", "CONVERGED", "MAX_ITER"]
    assert int(found.steps[2]) == most
    assert 0.0 < float(found.failed_at[2]) < 1.0


def test_a_failed_problem_has_nan_with_its_time():
    start = np.asarray([[0.1], [2.0]])
    options = {"rtol": 1e-4, "batch_ndim": 1, "own_steps": True, "method": "tsit5"}
    y = odeint(square, start, [0.0, 0.2, 1.5], on_failure="nan", **options)[..., 0]
    assert np.isnan(y).tolist() == [[False, False], [False, False], [False, True]]
    with pytest.raises(dil.ConvergenceError, match=r"1 of 2 problems \(the first at 1\) ended DIVERGED"):
        odeint(square, start, [0.0, 0.2, 1.5], on_failure="raise", **options)


@on("numpy", "torch")
@pytest.mark.parametrize("terminal", [False, True])
def test_events(engine, terminal):
    """cos kt crosses zero at t = pi / (2 k), and the time has the derivative -pi / (2 k^2)."""

    def swing(t, y, k):
        return array_namespace(y).stack([y[..., 1], -k * k * y[..., 0]], axis=-1)

    def first(k):
        zero = 0.0 * k
        start = array_namespace(k).stack([1.0 + zero, zero], axis=-1)
        options = {"method": "tsit5", "rtol": 1e-9, "batch_ndim": 1, "own_steps": True}
        event = Event(lambda t, y, k: y[..., 0] + 0.0 * t, terminal=terminal)
        _, (found,) = odeint(swing, start, [0.0, 2.0], (k,), events=event, **options)
        assert [int(x) for x in found.counts] == ([1, 1] if terminal else [1, 3])
        return found.t[0, ...]

    rates = np.asarray([1.0, 4.0])
    t, (slopes,) = engine.gradients(first, (rates,), np.ones(2))
    close(t, np.pi / 2 / rates, 1e-8)
    close(slopes, -np.pi / 2 / rates**2, 1e-6)


def test_algebraic_equations():
    """y_0' = -k y_1 and y_1 = y_0^2, so y_0 = 1 / (1 + k t)."""

    def field(t, y, k):
        return np.stack([-k * y[..., 1], y[..., 1] - y[..., 0] ** 2], axis=-1)

    options = {"rtol": 1e-5, "batch_ndim": 1, "own_steps": True, "mass": np.asarray([1.0, 0.0])}
    y, pull = dil.vjp(lambda k: odeint(field, np.ones((3, 2)), [0.0, 1.0], (k,), **options)[-1], RATES)
    close(y[:, 0], 1 / (1 + RATES), 1e-4)
    close(pull(np.asarray([[1.0, 0.0]] * 3))[0], -1 / (1 + RATES) ** 2, 1e-4)


def test_trees_jacobians_and_times_that_decrease():
    def field(t, y):
        return {"a": -(1.0 + t) * y["a"], "b": 0.0 * y["b"] + t[..., None]}

    start = {"a": np.asarray([1.0, 2.0]), "b": np.zeros((2, 3))}
    y = odeint(field, start, [0.0, -1.0], rtol=1e-8, batch_ndim=1, own_steps=True)
    close(y["a"][-1], np.exp(0.5) * start["a"], 1e-6)
    close(y["b"][-1], 0.5 * np.ones((2, 3)), 1e-6)

    def jac(t, y, k):
        assert t.shape == k.shape
        return (-k[..., None] - 0.2 * y)[..., None] * np.eye(2)

    found = together(STARTS, TIMES, RATES, rtol=1e-6, jac=jac)
    close(found, alone(STARTS, TIMES, RATES, rtol=1e-6), 1e-6)


@on("numpy", "torch", "jax:jit")
def test_a_function_of_one_time_is_refused(engine):
    """Its times (B,) broadcast over a state (B, B) without an error of the framework."""
    start = engine.asarray(np.ones((3, 3)))
    run = lambda y: solve(lambda t, y: t - y, y, [0.0, 1.0], rtol=1e-3, batch_ndim=1, own_steps=True).value  # noqa: E731
    if engine.backend == "jax":
        import jax

        run = jax.jit(run)
    with pytest.raises(Exception, match=r"'<lambda>' is called with a time for each problem.* write t\[\.\.\., None\]"):
        engine.to_numpy(run(start))


def test_options_that_exclude_each_other():
    for given in ({}, {"rtol": 1e-3, "gradient": "adjoint"}):
        with pytest.raises(dil.OptionError, match=r"own_steps=True with gradient=.* give rtol= or atol="):
            odeint(square, np.ones((2, 1)), [0.0, 0.1], batch_ndim=1, own_steps=True, **given)
    with pytest.raises(dil.OptionError, match="own_steps=1; expected True or False"):
        odeint(square, np.ones((2, 1)), [0.0, 0.1], batch_ndim=1, own_steps=1)
    for more, message in (
        ({"checkpoints": 3}, "checkpoints=3 is for steps that"),
        ({"method": "radau"}, "take 'kvaerno5'"),
    ):
        with pytest.raises(dil.OptionError, match=message):
            odeint(square, np.ones((2, 1)), [0.0, 0.1], rtol=1e-6, batch_ndim=1, own_steps=True, **more)
    one = odeint(square, np.ones(1), [0.0, 0.1], rtol=1e-6, own_steps=True)  # one problem has its own steps anyway
    close(one, odeint(square, np.ones(1), [0.0, 0.1], rtol=1e-6))
    assert odeint(square, np.ones((0, 1)), [0.0, 0.1], rtol=1e-6, own_steps=True, batch_ndim=1).shape == (2, 0, 1)


def test_the_longest_step_and_a_function_that_becomes_nan():
    """As for steps that are shared."""
    options = {"rtol": 1e-3, "batch_ndim": 1, "own_steps": True, "method": "tsit5", "on_failure": "ignore"}
    found = dil.ode.solve(lambda t, y: -y, np.ones((2, 1)), [0.0, 1.0], max_step=0.01, **options)
    assert found.steps.tolist() == [100, 100]

    def until(t, y, end):
        return np.where(t < end, 1.0, np.nan)[:, None] * y

    found = dil.ode.solve(until, np.ones((2, 1)), [0.0, 1.0], np.asarray([0.5, 2.0]), **options)
    assert [dil.Status(int(s)).name for s in found.status] == ["NON_FINITE", "CONVERGED"]
