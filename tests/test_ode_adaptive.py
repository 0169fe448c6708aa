"""Steps of a differential equation that adapt, and what is told of a step that fails."""

from __future__ import annotations

import math

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.ode import odeint, solve
from dil.ode._methods import METHODS
from dil.ode._odeint import begin
from dil.ode._options import METHODS as EVERY
from dil.ode._options import Options
from dil.ode._pairs import PAIRS
from ode_helpers import close, network, on, riccati


@on("numpy", "torch:func", slow=("jax:jit",))
@pytest.mark.parametrize("gradient", ["implicit", "adjoint"])
def test_adaptive_steps(engine, gradient):
    """y = cos t + (y_0 - 1) e^(-l t) solves y' = -l (y - cos t) - sin t; between the steps it is interpolated."""
    if engine.name != "numpy" and gradient == "adjoint":
        pytest.skip("NumPy runs this one")

    def field(t, y, rate):
        xp = array_namespace(y)
        return -rate * (y - xp.cos(t)) - xp.sin(t)

    def states(start, times, rate):
        options = {"method": "sdirk3", "rtol": 1e-5, "max_steps": 150, "gradient": gradient, "on_failure": "raise"}
        return odeint(field, start, times, (rate,), **options)

    start, rate, times = 3.0, 5.0, np.asarray([0.0, 0.1, 0.15, 0.9, 2.0])
    v = np.asarray([1.0, -2.0, 1.0, 3.0, 0.5])
    y, (of_start, of_times, of_rate) = engine.gradients(states, (start, times, rate), v)
    left = 2.0 * np.exp(-rate * times)
    close(y, np.cos(times) + left, 1e-4)
    close(of_start, np.sum(v * left / 2.0), 1e-4)
    close(of_rate, np.sum(v * -times * left), 1e-3)
    slopes = -rate * left - np.sin(times)
    close(of_times[1:], v[1:] * slopes[1:], 1e-3)
    # y(t) depends on t - t0 by the decay, and on t0 itself by cos t0, from which the state started
    close(of_times[0], np.sum(v[1:] * rate * left[1:]), 1e-3)


def robertson(t, y, k):
    xp = array_namespace(y)
    a, b, c = k[0] * y[0], k[1] * y[1] * y[2], k[2] * y[1] ** 2
    return xp.stack([b - a, a - b - c, c])


RATES = np.asarray([0.04, 1e4, 3e7])


@on("numpy", "torch", slow=("jax:jit",))
def test_robertson(engine):
    """Three species whose rates differ by nine orders of magnitude, over 1e4 s, against Radau IIA of order 5."""
    integrate = pytest.importorskip("scipy.integrate", reason="SciPy is not installed")
    times = np.asarray([0.0, 1e-2, 1.0, 1e2, 1e4])
    fine = {"method": "Radau", "rtol": 1e-10, "atol": 1e-14, "t_eval": times}
    truth = integrate.solve_ivp(lambda t, y: robertson(t, y, RATES), (0.0, 1e4), [1.0, 0.0, 0.0], **fine).y.T
    start, k = (engine.asarray(x) for x in ([1.0, 0.0, 0.0], RATES))
    options = {"method": "sdirk3", "rtol": 1e-3, "atol": 1e-8, "max_steps": 150}
    run = lambda y, t, k: solve(robertson, y, t, (k,), **options)  # noqa: E731
    if engine.backend == "jax":
        import jax

        run = jax.jit(run)
    found = run(start, engine.asarray(times), k)
    assert Status(int(found.status)) is Status.CONVERGED
    assert int(found.steps) < 150
    np.testing.assert_allclose(engine.to_numpy(found.value)[1:], truth[1:], rtol=5e-3)


@on("torch", slow=("numpy", "jax:jit"))
def test_gradients_of_robertson(engine):
    """Its sensitivities in the logarithms of the rates, over 1e4 s, against those of Radau IIA."""
    integrate = pytest.importorskip("scipy.integrate", reason="SciPy is not installed")

    def sensitive(t, z):
        y, S = z[:3], z[3:].reshape(3, 3)
        terms = RATES * np.asarray([y[0], y[1] * y[2], y[1] ** 2])
        stoichiometry = np.asarray([[-1.0, 1.0, 0.0], [1.0, -1.0, -1.0], [0.0, 0.0, 1.0]])
        slopes = RATES[:, None] * np.asarray([[1.0, 0.0, 0.0], [0.0, y[2], y[1]], [0.0, 2 * y[1], 0.0]])
        return np.concatenate([stoichiometry @ terms, (stoichiometry @ (slopes @ S + np.diag(terms))).ravel()])

    fine = {"method": "Radau", "rtol": 1e-9, "atol": 1e-13}
    truth = integrate.solve_ivp(sensitive, (0.0, 1e4), [1.0] + 11 * [0.0], **fine).y[:, -1]
    v = np.asarray([1.0, 0.0, -0.5])

    def last(logs, gradient="implicit"):
        options = {"method": "sdirk3", "rtol": 1e-3, "atol": 1e-8, "max_steps": 150, "on_failure": "raise"}
        k = array_namespace(logs).exp(logs)
        return odeint(robertson, engine.asarray([1.0, 0.0, 0.0]), [0.0, 1e4], (k,), gradient=gradient, **options)[-1, :]

    y, (slope,) = engine.gradients(last, (np.log(RATES),), v)
    np.testing.assert_allclose(y, truth[:3], rtol=5e-3)
    close(slope, v @ truth[3:].reshape(3, 3), 1e-2)
    naive = engine.gradients(lambda logs: last(logs, "naive"), (np.log(RATES),), v)[1][0]
    close(naive, slope, 1e-8)  # of the same function of the rates, its steps included


@pytest.mark.parametrize("method", ["implicit_euler", "trapezoid", "bdf2", "sdirk2", "sdirk3", "radau", *PAIRS])
def test_the_error_follows_the_tolerance(method):
    errors = []
    for rtol in (1e-3, 1e-5):
        found = solve(
            riccati, np.asarray(1.0), [0.0, 1.0, 3.0], (np.asarray(0.7),), method=method, rtol=rtol, max_steps=5000
        )
        assert Status(int(found.status)) is Status.CONVERGED
        errors.append(np.abs(found.value - 1 / (1 + 0.7 * np.sin([0.0, 1.0, 3.0]))).max())
        # an error of the order rtol in each of 1/h steps, h of the order rtol^(1/order of the estimate)
        power = 1 - 1 / EVERY[method].error_order
        assert errors[-1] < 2 * rtol**power
    assert errors[1] < 0.2 * errors[0]


def test_a_step_that_does_not_converge_is_tried_again_smaller():
    """From y = 1, y' = y^2 has no implicit Euler step of 0.5 or more: 1 - 4 h < 0."""
    field = lambda t, y: y * y  # noqa: E731
    long = solve(field, np.asarray(1.0), [0.0, 0.5])
    assert Status(int(long.status)) is not Status.CONVERGED
    short = solve(field, np.asarray(1.0), [0.0, 0.5], rtol=1e-3, first_step=0.5)
    assert Status(int(short.status)) is Status.CONVERGED
    assert int(short.rejected) > 0
    np.testing.assert_allclose(short.value[-1], 2.0, rtol=1e-1)


def test_the_end_of_a_transient_is_solved_on_its_own_branch():
    """z = y - 100 h z^2 has a root of each sign; from y > 0 the solution stays above zero, like that of the ODE."""
    found = solve(lambda t, y: -100.0 * y * y, np.asarray(0.5), [0.0, 0.25, 0.5])
    first = (math.sqrt(1 + 4 * 25 * 0.5) - 1) / 50
    close(found.value, [0.5, first, (math.sqrt(1 + 4 * 25 * first) - 1) / 50])
    assert Status(int(found.status)) is Status.CONVERGED


def test_an_explicit_step_that_is_not_finite_is_told():
    with pytest.raises(dil.ConvergenceError, match=r"NON_FINITE.*step 2, from t = 1 "):
        odeint(lambda t, y: y / (1.0 - t), np.ones(2), [0.0, 1.0, 2.0], method="euler", on_failure="raise")


def test_after_a_mesh_that_was_cut_short_its_last_state_stays():
    found = solve(lambda t, y: -y, np.asarray(1.0), [0.0, 1.0], rtol=1e-6, max_steps=5)
    assert Status(int(found.status)) is Status.MAX_ITER
    np.testing.assert_allclose(found.value[-1], np.exp(-found.failed_at), rtol=1e-4)


def test_a_mesh_that_was_cut_short_failed_where_it_ends():
    """Without an error each step is five times as long as the one before: 1, 1.1, and 1.6."""
    found = solve(lambda t, y: 0.0 * y, np.ones(2), [1.0, 9.0], rtol=1e-3, first_step=0.1, max_steps=2)
    assert Status(int(found.status)) is Status.MAX_ITER
    np.testing.assert_allclose(found.failed_at, 1.6)


def test_each_stage_is_solved_once():
    """With every error allowed the mesh is 0, 0.1, 0.6, 1, and the counts are those of these steps."""
    start, options = np.asarray([1.0, 2.0]), {"method": "sdirk2", "solver": dil.ode.StepNewton(dil.linear.GMRES())}
    found = solve(riccati, start, [0.0, 1.0], (np.asarray(0.7),), atol=1e3, first_step=0.1, **options)
    fixed = solve(riccati, start, [0.0, 0.1, 0.6, 1.0], (np.asarray(0.7),), **options)
    assert (int(found.steps), int(found.rejected)) == (3, 0)
    np.testing.assert_allclose(found.value[-1], fixed.value[-1], rtol=1e-12)
    assert int(found.iterations) == int(fixed.iterations) > 0
    assert int(found.linear) == int(fixed.linear) > 0


def test_a_step_is_rejected_until_its_error_is_allowed():
    """The estimate h^2 / 2 of y' = t is 1/2, then 1/50 after the largest cut, to a fifth; 1/25 is allowed."""
    found = solve(
        lambda t, y: 0.0 * y + t,
        np.asarray(0.0),
        [0.0, 1.0],
        rtol=1e-12,
        atol=0.04,
        first_step=1.0,
        method="implicit_euler",
    )
    assert int(found.rejected) == 1
    assert int(found.steps) > 1


@pytest.mark.parametrize("unit", [2.0**-20, 2.0**20])
@pytest.mark.parametrize("slope", [0.0, 1e-15])
def test_the_first_step_from_rest_has_no_unit_of_time(unit, slope):
    def steps(unit):
        field = lambda t, y: (slope + t / unit * (1.0 - y)) / unit  # noqa: E731
        found = solve(field, np.asarray(2.0), [0.0, 3.0 * unit], rtol=1e-3, method="sdirk3")
        assert Status(int(found.status)) is Status.CONVERGED
        return int(found.steps), int(found.rejected)

    assert steps(unit) == steps(1.0)


class Quadrature:
    """The stages of y' = t^power, which need no solve."""

    def __init__(self, power, t):
        self.power = power
        self.last = self.slope(t, None)

    def slope(self, t, y):
        return (np.asarray([t**self.power]),)

    def solve(self, base, t, gh):
        self.last = self.slope(t, None)
        return (base[0] + gh * self.last[0],)


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.error_order is not None], ids=lambda m: m.name)
@pytest.mark.parametrize("h", [0.25, 1.0])
def test_the_estimate_of_the_error_is_the_error(method, h):
    """y' = t^p from t = 2, whose state at 2 - 1/2 was right: the error is zero below the order of the method."""
    start, last = np.asarray(2.0), np.asarray(0.5)
    assert method.error_order == method.order + 1
    for power in range(method.error_order):

        def integral(t, power=power):
            return np.asarray([t ** (power + 1) / (power + 1)])

        stages = Quadrature(power, start)
        slopes = (*stages.slope(start, None), *stages.slope(start - last, None))
        memory = {"trapezoid": (*slopes, last), "bdf2": (integral(start - last), last)}.get(method.name, ())
        new = method.advance(stages, (integral(start),), memory, start, np.asarray(h))
        error = new.y[0] - integral(start + h)
        np.testing.assert_allclose(np.abs(new.error()[0]), np.abs(error), rtol=1e-11, atol=1e-13)
        assert (np.abs(error) > 1e-4) == (power == method.order)


@pytest.mark.parametrize("name", ["solver", "linear_solver"])
def test_a_solver_is_a_callable(name):
    with pytest.raises(dil.OptionError, match=f"{name}='cg'; expected a callable"):
        odeint(lambda t, y: -y, np.asarray(1.0), [0.0, 1.0], **{name: "cg"})


def test_vmap_of_jax():
    """Rows agree with single calls; failures and times that do not increase are told of under vmap as well."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    jnp = jax.numpy
    many = jax.vmap(lambda y, t: odeint(lambda t, y: y * y, y, t, on_failure="raise"), in_axes=(0, None))
    times = jnp.asarray([0.0, 0.5])
    close(np.asarray(many(jnp.asarray([-1.0, 0.25]), times))[:, 1], [1 - math.sqrt(3), 1 - math.sqrt(0.5)])
    with pytest.raises(Exception, match=r"1 of 2 problems \(the first at 1\).*from t = 0 by h = 0.5"):
        many(jnp.asarray([-1.0, 2.0]), times)
    with pytest.raises(Exception, match=r"from t\[0\] to t\[1\]"):
        jax.vmap(lambda t: odeint(lambda t, y: -y, jnp.ones(1), t))(jnp.asarray([[0.0, 1.0], [1.0, 0.0]]))


def test_vmap_of_torch_over_times():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    times = torch.asarray([[0.0, 0.5, 1.0], [0.0, 1.0, 3.0]])
    one = lambda t: odeint(lambda t, y: -y, torch.ones(1), t)  # noqa: E731
    close(torch.func.vmap(one)(times), torch.stack([one(t) for t in times]), 1e-6)


def circuit(draw):
    """Return a start, times, the weights of a network, and a cotangent."""
    theta = {"in": draw.standard_normal((3, 4)), "time": draw.standard_normal(4), "out": draw.standard_normal((4, 3))}
    return draw.standard_normal(3), np.asarray([0.0, 0.1, 0.2, 0.4, 0.8]), theta, draw.standard_normal((5, 3))


def test_torchdiffeq_agrees():
    """Euler's method to rounding; the order-3 method, refined, with DOPRI5 and its adjoint."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    peer = pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed")
    start, times, theta, v = circuit(np.random.default_rng(2))
    leaves = [torch.tensor(x, requires_grad=True) for x in (start, *theta.values())]
    t, v = torch.tensor(times), torch.tensor(v)
    field = lambda t, y: network(t, y, dict(zip(theta, leaves[1:], strict=True)))  # noqa: E731

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterList([torch.nn.Parameter(x.detach()) for x in leaves[1:]])

        def forward(self, t, y):
            return network(t, y, dict(zip(theta, self.weights, strict=True)))

    def ours(**options):
        args = (dict(zip(theta, leaves[1:], strict=True)),)
        y = odeint(network, leaves[0], t, args, on_failure="raise", **options)
        return y, torch.autograd.grad(y, leaves, v)

    y, gradients = ours(method="euler")
    theirs = peer.odeint(field, leaves[0], t, method="euler")
    close(y.detach(), theirs.detach(), 1e-14)
    for a, b in zip(gradients, torch.autograd.grad(theirs, leaves, v), strict=True):
        close(a, b, 1e-13)

    y, gradients = ours(method="sdirk3", steps=40)
    model = Field()
    theirs = peer.odeint_adjoint(model, leaves[0], t, rtol=1e-9, atol=1e-11)
    close(y.detach(), theirs.detach(), 1e-5)
    for a, b in zip(gradients, torch.autograd.grad(theirs, [leaves[0], *model.parameters()], v), strict=True):
        close(a, b, 1e-5)


@pytest.mark.slow
def test_diffrax_agrees():
    """Its implicit Euler method, step by step, and the gradient of its steps."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    peer = pytest.importorskip("diffrax", reason="diffrax is not installed")
    import optimistix

    start, times, theta, v = (
        jax.numpy.asarray(x) if not isinstance(x, dict) else x for x in circuit(np.random.default_rng(2))
    )
    tight = optimistix.Newton(rtol=1e-13, atol=1e-13)

    def theirs(start, theta):
        return peer.diffeqsolve(
            peer.ODETerm(network),
            peer.ImplicitEuler(root_finder=tight),
            times[0],
            times[-1],
            None,
            start,
            theta,
            saveat=peer.SaveAt(ts=times),
            stepsize_controller=peer.StepTo(ts=times),
            adjoint=peer.DirectAdjoint(),
        ).ys

    def ours(start, theta):
        return odeint(network, start, times, (theta,))

    found = [jax.jit(lambda s, p, fn=fn: (fn(s, p), jax.vjp(fn, s, p)[1](v)))(start, theta) for fn in (ours, theirs)]
    for a, b in zip(*(jax.tree.leaves(x) for x in found), strict=True):
        close(a, b, 1e-9)


def logistic(t, y, k):
    """y' = k y (1 - y): y / (1 - y) grows by e^(k t)."""
    return k * y * (1.0 - y)


def grown(start, k, t):
    odds = start / (1 - start) * np.exp(k * t)
    return odds / (1 + odds)


@on("numpy", "array_api_strict", "torch", "torch:func", "torch:backward", "jax:jit")
@pytest.mark.parametrize("method", ["sdirk3", "bdf2", "tsit5", "kvaerno5"])
def test_gradients_through_found_steps(engine, method):
    """Against the closed form, in the state, a parameter and both ends of the time."""
    if engine.name not in {"bdf2": ("numpy", "jax:jit"), "kvaerno5": ("numpy",)}.get(method, engine.name):
        pytest.skip("NumPy and JAX run this one")

    def last(start, k, times):
        options = {"method": method, "rtol": 1e-6, "atol": 1e-8, "max_steps": 400, "on_failure": "raise"}
        return odeint(logistic, start, times, (k,), **options)[-1]

    start, k, t = 0.2, 1.5, 2.0
    y, (of_start, of_k, of_times) = engine.gradients(last, (start, k, np.asarray([0.0, t])))
    end = grown(start, k, t)
    spread, rtol = end * (1 - end), 1e-3 if method == "bdf2" else 1e-4
    close(y, end, rtol)
    close(of_start, spread / (start * (1 - start)), rtol)
    close(of_k, spread * t, rtol)
    close(of_times, [-spread * k, spread * k], rtol)


@on("numpy", "torch:backward", slow=("torch:func", "jax:jit"))
def test_second_derivatives_through_found_steps(engine):
    """d2y/dk2 = t^2 y (1 - y) (1 - 2 y), and the derivative in forward mode."""

    def last(k):
        return odeint(logistic, 0.0 * k + 0.2, [0.0, 2.0], (k,), method="sdirk3", rtol=1e-5, max_steps=200)[-1]

    end = grown(0.2, 1.5, 2.0)
    _, (bend,) = engine.gradients(dil.grad(last), (1.5,))
    close(bend, 4.0 * end * (1 - end) * (1 - 2 * end), 1e-3)
    close(engine.tangent(last, (1.5,), (2.0,)), 4.0 * end * (1 - end), 1e-4)


@on("numpy", "torch")
@pytest.mark.parametrize("method", ["tsit5", "kvaerno5"])
def test_forward_mode_by_two_pullbacks(engine, method):
    """The first slope of a pair is recorded in a pullback, whose own pullback is the forward mode of dil."""

    def last(k):
        return odeint(logistic, 0.0 * k + 0.2, [0.0, 2.0], (k,), method=method, rtol=1e-4)[-1]

    _, (slope,) = engine.gradients(last, (1.5,))
    close(engine.tangent(last, (1.5,), (2.0,)), 2.0 * slope)


def test_the_gradient_is_that_of_the_steps_on_their_mesh():
    """Fixed steps over the mesh that was found, solved to rounding, have the same derivative."""
    k = np.asarray(1.5)

    def ends(k, t):
        return odeint(logistic, 0.0 * k + 0.2, t, (k,), method="sdirk3", rtol=1e-3, atol=1e-6)[-1]

    y, slope = dil.value_and_grad(lambda k: ends(k, [0.0, 2.0]))(k)
    mesh = mesh_of(logistic, 0.2, [0.0, 2.0], k, method="sdirk3", rtol=1e-3, atol=1e-6)
    fixed = dil.value_and_grad(lambda k: odeint(logistic, 0.0 * k + 0.2, mesh, (k,), method="sdirk3")[-1])
    same_y, same_slope = fixed(k)
    close(y, same_y, 1e-11)
    close(slope, same_slope, 1e-11)


def mesh_of(func, start, times, k, **options):
    """Return the times at which the steps begin and end."""
    integration, y, t, arrays = begin(func, np.asarray(start), times, (k,), Options(**options))
    found = integration._find(y, t, arrays).shortened(integration.backend)
    return np.concatenate([[times[0]], found.begins + found.lengths])


def calls_of(method, **options):
    """Return how often func is called for a solution, and for its gradient."""
    counts = []

    def func(t, y, k):
        counts.append(1)
        return logistic(t, y, k)

    k, start = np.asarray(1.5), np.asarray([0.2])
    run = lambda k: odeint(func, start, [0.0, 2.0], (k,), method=method, **options)[-1, 0]  # noqa: E731
    run(k)
    once = len(counts)
    dil.value_and_grad(run)(k)
    return once, len(counts) - once


def test_the_cost_does_not_depend_on_the_number_of_steps_allowed():
    few, many = (calls_of("sdirk3", rtol=1e-4, max_steps=count) for count in (100, 100_000))
    assert few == many


def test_the_cost_of_a_program_does_not_depend_on_the_number_of_steps_allowed():
    """The loops of a program are counted as they run: those of the search, and those of the sweep and back."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    counts = []

    def func(t, y, k):
        jax.debug.callback(lambda _: counts.append(1), t)
        return logistic(t, y, k)

    def run(k, max_steps):
        y = odeint(func, jax.numpy.asarray([0.2]), [0.0, 2.0], (k,), method="sdirk3", rtol=1e-3, max_steps=max_steps)
        return y[-1, 0]

    made = []
    for max_steps in (50, 5000):
        program = jax.jit(jax.value_and_grad(lambda k, count=max_steps: run(k, count)))
        jax.block_until_ready(program(1.5))
        jax.effects_barrier()
        made.append(len(counts))
        counts.clear()
    assert made[0] == made[1] > 0


def test_steps_that_are_not_differentiated_are_not_taken_again(monkeypatch):
    def refused(*args):
        message = "a second time"
        raise AssertionError(message)

    monkeypatch.setattr("dil.ode._integration.sweep", refused)
    run = lambda k: odeint(logistic, np.asarray([0.2]), [0.0, 2.0], (k,), method="sdirk3", rtol=1e-4)  # noqa: E731
    run(np.asarray(1.5))
    with pytest.raises(AssertionError, match="a second time"):
        dil.grad(lambda k: run(k)[-1, 0])(np.asarray(1.5))


def test_the_default_method_of_adaptive_steps():
    """It takes a tenth of the steps of the default of equal steps, at a smaller error."""
    found = [
        solve(logistic, np.asarray(0.2), [0.0, 2.0], (np.asarray(1.5),), rtol=1e-6, max_steps=5000, **options)
        for options in ({}, {"method": "kvaerno5"}, {"method": "implicit_euler"})
    ]
    assert found[0].value[-1] == found[1].value[-1]
    assert 10 * int(found[0].steps) < int(found[2].steps)
    off = [abs(float(x.value[-1]) - grown(0.2, 1.5, 2.0)) for x in found]
    assert 10 * off[0] < off[2]


def test_a_record_has_the_search_and_the_derivatives_of_the_stages():
    run = lambda k: odeint(logistic, 0.2 + 0.0 * k, [0.0, 2.0], (k,), method="sdirk2", rtol=1e-2)[-1]  # noqa: E731
    with dil.record() as record:
        dil.grad(run)(np.asarray(1.5))
    forward = [entry for entry in record.entries if entry.stage == "forward"]
    backward = [entry for entry in record.entries if entry.stage == "backward"]
    found = solve(logistic, np.asarray(0.2), [0.0, 2.0], (np.asarray(1.5),), method="sdirk2", rtol=1e-2)
    assert len(forward) == 1
    assert int(forward[0].status) == 0
    assert len(backward) == 2 * int(found.steps)


def test_a_batch_has_a_jacobian_for_each_problem():
    """Rates from 1 to 1e4 in one batch: each problem ends like a problem of its own."""
    rates = np.asarray([[1.0], [1e2], [1e4]])
    field = lambda t, y, k: -k * (y - np.cos(t))  # noqa: E731
    options = {"method": "sdirk3", "rtol": 1e-6, "max_steps": 2000}
    found = solve(field, np.zeros((3, 1)), [0.0, 1.0], (rates,), batch_ndim=1, **options)
    assert np.all(found.status == 0)
    for i in range(3):
        alone = solve(field, np.zeros(1), [0.0, 1.0], (rates[i],), **options)
        close(found.value[-1, i], alone.value[-1], 1e-5)
    # a linear problem needs two iterations for a stage, whatever its rate
    assert np.all(found.iterations <= 3 * 3 * (int(found.steps) + int(found.rejected)))


def test_vmap_of_adaptive_steps():
    """Each row has its own steps, and its own gradient, also in the program of a batch."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    jnp = jax.numpy

    def last(k):
        options = {"method": "sdirk2", "rtol": 1e-4, "max_steps": 300, "on_failure": "raise"}
        return odeint(logistic, jnp.asarray([0.2]), [0.0, 2.0], (k,), **options)[-1, 0]

    rates = jnp.asarray([0.1, 1.5, 6.0])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(last)))(rates)
    ends = grown(0.2, np.asarray(rates), 2.0)
    close(values, ends, 1e-3)
    close(slopes, 2.0 * ends * (1 - ends), 5e-3)


@on("numpy", "array_api_strict", "torch", "jax:jit")
def test_a_tolerance_for_each_entry(engine):
    """The same number for all is that number; a large one leaves its entry out of the error control."""

    def field(t, y):
        return {"fast": -50.0 * y["fast"], "slow": -y["slow"]}

    def steps(atol):
        xp = engine.xp
        run = lambda y: solve(field, {"fast": y, "slow": y}, [0.0, 1.0], rtol=1e-6, atol=atol, method="tsit5")  # noqa: E731
        if engine.backend == "jax":
            import jax

            run = jax.jit(run)
        found = run(engine.asarray([1.0, 2.0]) * xp.ones(2, dtype=xp.float64))
        return int(found.steps), engine.to_numpy(found.value["slow"])[-1]

    all_the_same, y = steps({"fast": [1e-6, 1e-6], "slow": np.full(2, 1e-6)})
    assert all_the_same == steps(1e-6)[0]
    close(y, np.exp(-1.0) * np.asarray([1.0, 2.0]), 1e-5)
    assert 1.5 * steps({"fast": 1e3, "slow": 1e-6})[0] < all_the_same


def test_a_tolerance_for_each_entry_of_a_batch_and_of_a_complex_state():
    field = lambda t, y: 1j * y  # noqa: E731
    for shape in ((2,), (3, 2)):
        start, options = np.ones(shape, dtype=complex), {"rtol": 1e-6, "batch_ndim": len(shape) - 1}
        found = [solve(field, start, [0.0, 3.0], atol=a, **options) for a in (1e-7, np.full(2, 1e-7))]
        assert int(found[0].steps) == int(found[1].steps)
        close(found[0].value, found[1].value, 1e-14)


@pytest.mark.parametrize("method", ["kvaerno5", "radau"])
def test_a_constant_jacobian(method):
    A = np.asarray([[-100.0, 1.0], [0.0, -1.0]])
    field, options = (lambda t, y: A @ y + np.sin(t)), {"rtol": 1e-6, "method": method}
    found = [solve(field, np.ones(2), [0.0, 1.0], jac=jac, **options) for jac in (A, A.tolist(), lambda t, y: A)]
    for each in found[1:]:
        assert np.array_equal(found[0].value, each.value)
    batch = solve(lambda t, y: y @ A.T, np.ones((3, 2)), [1.0, 0.9], jac=A, batch_ndim=1, **options)
    close(
        batch.value[-1], np.ones((3, 1)) * solve(lambda t, y: A @ y, np.ones(2), [1.0, 0.9], **options).value[-1], 1e-4
    )


def test_the_longest_step():
    """Two crossings between two points of a step are missed, and found by shorter steps."""
    y = lambda t, y: 0.0 * y  # noqa: E731
    event = lambda t, y: (t - 5.0) ** 2 - 0.01 + 0.0 * y  # noqa: E731
    missed, found = (
        solve(y, np.asarray(1.0), [0.0, 10.3], rtol=1e-3, method="tsit5", events=event, **way)
        for way in ({}, {"max_step": 0.3, "first_step": 0.3})
    )
    assert missed.events[0].t.shape == (0,)
    close(found.events[0].t, [4.9, 5.1])
    assert int(found.steps) == 35


def test_the_first_steps_are_as_long_as_those_of_scipy():
    """Lotka's animals, and Van der Pol's equation from rest: the number of steps in the first hundredth."""
    integrate = pytest.importorskip("scipy.integrate", reason="SciPy is not installed")
    lotka = lambda t, y: np.stack([1.5 * y[0] - y[0] * y[1], -3.0 * y[1] + y[0] * y[1]])  # noqa: E731
    swing = lambda t, y: np.stack([y[1], (1.0 - y[0] ** 2) * y[1] - y[0]])  # noqa: E731
    for field, start in ((lotka, [10.0, 5.0]), (swing, [2.0, 0.0])):
        options = {"rtol": 1e-6, "atol": 1e-9}
        ours = dil.ode.solve_ivp(field, [0, 20], start, **options)
        theirs = integrate.solve_ivp(field, [0, 20], start, **options)
        counts = [int(np.sum(found.t < 0.2)) for found in (ours, theirs)]
        assert counts[0] <= counts[1] + 4
