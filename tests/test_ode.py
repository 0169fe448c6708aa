"""ODEs by implicit layers: closed forms, orders of convergence, and gradients that agree."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.ode import odeint, solve
from dil.solvers import FixedPoint, Newton
from engines import engines

RTOL = 1e-9


def on(*names, slow=()):
    """Run a test on some engines; JAX compiles each case, so that many are left to the slow tests."""
    chosen = {e.name: e for e in engines() if e.name in (*names, *slow)}
    marks = {
        name: [
            *([pytest.mark.slow] if name in slow else []),
            *([pytest.mark.skip(reason=e.reason)] if e.reason is not None else []),
        ]
        for name, e in chosen.items()
    }
    return pytest.mark.parametrize(
        "engine", [pytest.param(e, id=name, marks=marks[name]) for name, e in chosen.items()]
    )


EAGER = ("numpy", "array_api_strict", "torch", "torch:func", "torch:backward", "cupy")


def close(found, expected, rtol=RTOL):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def decay(t, y, rate):
    return -rate * y


# --- closed forms ----------------------------------------------------------------------------------------------------


@on(*EAGER, "jax:jit")
@pytest.mark.parametrize("layer", ["root", "argmin"])
def test_a_stiff_equation(engine, layer):
    """y_2 = y_0 / ((1 + h l) (1 + k l)) for steps h and k of implicit Euler, at l = 1e4."""
    if engine.backend == "jax" and layer == "argmin":
        pytest.skip("JAX compiles each case; the ways to a gradient are compared below")
    start, rate, times = 2.0, 1e4, np.asarray([0.0, 0.5, 0.75])

    def last(start, rate, times):
        return odeint(decay, start, times, (rate,), layer=layer, on_failure="raise")[-1]

    y, (of_start, of_rate, of_times) = engine.gradients(last, (start, rate, times))
    h, k = 1 + 0.5 * rate, 1 + 0.25 * rate
    close(y, start / (h * k))
    close(of_start, 1 / (h * k))
    close(of_rate, -start / (h * k) * (0.5 / h + 0.25 / k))
    of_h, of_k = -rate * start / (h**2 * k), -rate * start / (h * k**2)
    close(of_times, [-of_h, of_h - of_k, of_k])


@on("numpy", "torch:func", slow=("jax:jit",))
def test_a_stiff_linear_system(engine):
    """y_k = (I - h l A)^-k y_0; A and y_0's derivative in l commute with it."""
    A = np.asarray([[-1.0, 0.3, 0.0], [-0.4, -1e-3, 0.1], [0.0, 0.2, -1e-5]])
    start, rate, h = np.asarray([1.0, -2.0, 0.5]), 1e4, 0.1

    def last(start, rate):
        def field(t, y, rate):
            return rate * (array_namespace(y).asarray(engine.asarray(A)) @ y)

        return odeint(field, start, [0.0, 2 * h], (rate,), steps=2, on_failure="raise")[-1, :]

    v = np.asarray([1.0, 2.0, -1.0])
    y, (of_start, of_rate) = engine.gradients(last, (start, rate), v)
    M = np.linalg.inv(np.eye(3) - h * rate * A)
    close(y, M @ M @ start)
    close(of_start, M.T @ M.T @ v)
    close(of_rate, v @ (2 * h * A @ M @ M @ M @ start))


@on("numpy", "array_api_strict", "torch:func", "jax:jit")
def test_second_derivatives(engine):
    """y = y_0 / (1 + h l): d2y/dl2 = 2 h^2 y_0 / (1 + h l)^3."""

    def last(rate):
        return odeint(decay, 0.0 * rate + 2.0, [0.0, 0.5], (rate,))[-1]

    slope, (bend,) = engine.gradients(dil.grad(last), (3.0,))
    close(slope, -0.5 * 2.0 / 2.5**2)
    close(bend, 2 * 0.25 * 2.0 / 2.5**3)


@on("numpy", "torch:func", "torch:backward", slow=("jax:jit",))
def test_forward_mode(engine):
    def last(rate):
        return odeint(decay, 0.0 * rate + 2.0, [0.0, 0.5], (rate,), method="sdirk2")[-1]

    _, (slope,) = engine.gradients(last, (3.0,))
    close(engine.tangent(last, (3.0,), (2.0,)), 2.0 * slope)


# --- order of convergence --------------------------------------------------------------------------------------------


def riccati(t, y, c):
    """y' = -c y^2 cos t: y = 1 / (1 + c sin t) from y(0) = 1."""
    return -c * y * y * array_namespace(y).cos(t)


ORDERS = {
    "implicit_euler": 1,
    "implicit_midpoint": 2,
    "trapezoid": 2,
    "bdf2": 2,
    "sdirk2": 2,
    "sdirk3": 3,
    "euler": 1,
}


@pytest.mark.parametrize("method", ORDERS)
def test_order_of_convergence(method):
    """The error falls with the order's power of h: of the solution and of the adjoint method's gradient."""
    times, c = [0.0, 1.5], np.asarray(0.7)

    def last(c, steps, gradient):
        return odeint(riccati, np.asarray(1.0), times, (c,), method=method, steps=steps, gradient=gradient)[-1]

    errors, off = [], []
    for steps in (16, 32):
        y, slope = dil.value_and_grad(lambda c, n=steps: last(c, n, "adjoint"))(c)
        grown = 1 + 0.7 * math.sin(1.5)
        errors.append(abs(float(y) - 1 / grown))
        off.append(abs(float(slope) + math.sin(1.5) / grown**2))
    for measured in (errors, off):
        assert math.log2(measured[0] / measured[1]) == pytest.approx(ORDERS[method], abs=0.25)


@pytest.mark.parametrize("method", ["bdf2", "trapezoid", "sdirk2", "sdirk3"])
def test_uneven_steps_are_exact_on_polynomials(method):
    """dy/dt = p(t) of degree order - 1 is integrated without error, whatever the steps."""
    times = np.asarray([0.0, 0.3, 0.4, 1.0, 1.1, 3.0])
    degree = ORDERS[method] - 1
    y = odeint(lambda t, y: (degree + 1) * t**degree + 0.0 * y, np.asarray(0.0), times, method=method)
    close(y, times ** (degree + 1), 1e-13)


# --- the ways to a gradient ------------------------------------------------------------------------------------------


def network(t, y, theta):
    xp = array_namespace(y)
    return xp.tanh(y @ theta["in"] + t * theta["time"]) @ theta["out"]


WAYS = {
    "implicit": {},
    "naive": {"gradient": "naive"},
    "unroll": {"gradient": "unroll"},
    "normal equations": {"linear_solver": dil.linear.NormalCG(), "solver": dil.ode.StepNewton(dil.linear.NormalCG())},
    "argmin": {"layer": "argmin", "linear_solver": dil.linear.CG()},
    "fixed point": {"solver": FixedPoint(rtol=1e-14)},
    "unrolled fixed point": {"solver": FixedPoint(rtol=1e-12), "gradient": "unroll", "unroll": 40},
    "newton": {"solver": Newton("normal")},
}
ON_JAX = ("implicit", "naive", "unroll")


@on(*EAGER, "jax:jit")
def test_ways_to_a_gradient_agree(engine):
    draw = np.random.default_rng(0)
    start, times = draw.standard_normal((2, 3)), np.asarray([0.0, 0.2, 0.5])
    theta = [draw.standard_normal(shape) for shape in ((3, 4), (4,), (4, 3))]
    v = draw.standard_normal((3, 2, 3))

    def states(start, times, a, b, c, **options):
        args = ({"in": a, "time": b, "out": c},)
        return odeint(network, start, times, args, batch_ndim=1, steps=2, on_failure="raise", **options)

    if engine.name in ("torch:func", "torch:backward", "array_api_strict"):
        ways = ("implicit", "unroll")
    else:
        ways = ON_JAX if engine.backend == "jax" else tuple(WAYS)
    found = {}
    for way in ways:
        y, gradients = engine.gradients(lambda *args, way=way: states(*args, **WAYS[way]), (start, times, *theta), v)
        found[way] = (y, *gradients)
    for way in ways[1:]:
        for ours, theirs in zip(found[way], found["implicit"], strict=True):
            close(ours, theirs, 1e-8)


@on("numpy", "torch", slow=("jax:jit",))
@pytest.mark.parametrize("method", ["trapezoid", "bdf2", "sdirk3"])
def test_the_adjoint_method_comes_near_the_discrete_gradient(engine, method):
    """With many steps; a tree of states, and times that are differentiated."""
    if engine.name != "numpy" and method != "sdirk3":
        pytest.skip("NumPy runs this one")

    def field(t, y, k):
        return {"x": y["v"], "v": -k * y["x"] + 0.1 * t}

    def last(x, times, k, gradient):
        options = {"method": method, "steps": 12, "gradient": gradient}
        return odeint(field, {"x": x, "v": 0.0 * x}, times, (k,), **options)["x"][-1, :]

    args = (np.asarray([1.0, 2.0]), np.asarray([0.0, 0.4, 0.9]), 3.0)
    v = np.asarray([1.0, -0.5])
    y, gradients = engine.gradients(lambda *args: last(*args, "adjoint"), args, v)
    same, ours = engine.gradients(lambda *args: last(*args, "implicit"), args, v)
    close(y, same, 1e-12)
    for a, b in zip(gradients, ours, strict=True):
        close(a, b, 2e-2)  # about (15 h)^2


@on("torch:func", "jax:jit")
def test_the_adjoint_method_has_no_forward_mode(engine):
    """A framework's; that of dil is made of pullbacks."""

    def last(rate):
        return odeint(decay, 0.0 * rate + 2.0, [0.0, 0.5], (rate,), gradient="adjoint")[-1]

    with pytest.raises((dil.DilError, TypeError), match=r"reverse mode|forward-mode"):
        engine.tangent(last, (3.0,), (2.0,))


# --- steps that adapt ------------------------------------------------------------------------------------------------


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
        options = {"method": "sdirk3", "rtol": 1e-5, "max_steps": 100, "gradient": gradient, "on_failure": "raise"}
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


@pytest.mark.parametrize("method", ["implicit_euler", "trapezoid", "bdf2", "sdirk2", "sdirk3"])
def test_the_error_follows_the_tolerance(method):
    errors = []
    for rtol in (1e-3, 1e-5):
        found = solve(
            riccati, np.asarray(1.0), [0.0, 1.0, 3.0], (np.asarray(0.7),), method=method, rtol=rtol, max_steps=5000
        )
        assert Status(int(found.status)) is Status.CONVERGED
        errors.append(np.abs(found.value - 1 / (1 + 0.7 * np.sin([0.0, 1.0, 3.0]))).max())
        # an error of the order rtol in each of 1/h steps, h of the order rtol^(1/order of the estimate)
        power = 1 - 1 / dil.ode._methods.METHODS[method].error_order
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


# --- other libraries -------------------------------------------------------------------------------------------------


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


# --- reports and failures --------------------------------------------------------------------------------------------


def test_a_report_counts():
    found = solve(network, np.ones((2, 3)), [0.0, 0.2, 0.4], (parameters(),), batch_ndim=1, steps=3, method="sdirk2")
    assert int(found.steps) == 6
    assert int(found.rejected) == 0
    assert found.iterations.shape == found.linear.shape == found.status.shape == (2,)
    assert np.all(found.iterations >= 12)
    assert np.all(found.linear == 0)
    assert np.all(np.isinf(found.failed_at))
    krylov = dil.ode.StepNewton(dil.linear.GMRES())
    found = solve(network, np.ones(3), [0.0, 0.2], (parameters(),), solver=krylov)
    assert int(found.linear) > int(found.iterations)


def parameters():
    draw = np.random.default_rng(1)
    return {"in": draw.standard_normal((3, 4)), "time": draw.standard_normal(4), "out": draw.standard_normal((4, 3))}


def spoilt(t, y, bad):
    """NaN after t = 0.35 where `bad` is not zero."""
    xp = array_namespace(y)
    return -y + xp.where((t > 0.35) & (bad != 0), xp.asarray(math.nan, dtype=y.dtype), 0.0)


SPOILT = (
    r"odeint of 'spoilt': 1 of 2 problems \(the first at 1\) ended NON_FINITE: a NaN .* step 4, from t = 0.3 by h = 0.1"
)


@on("numpy", "torch", "torch:func", slow=("jax:jit",))
@pytest.mark.parametrize("options", [{}, {"rtol": 1e-3}], ids=["even", "adaptive"])
def test_a_problem_that_fails_leaves_the_others_alone(engine, options):
    if engine.name != "numpy" and options:
        pytest.skip("NumPy runs this one")
    bad, times = np.asarray([[0.0], [1.0]]), np.linspace(0.0, 0.5, 6)

    def states(start, bad, on_failure="nan"):
        return odeint(spoilt, start, times.tolist(), (bad,), batch_ndim=1, on_failure=on_failure, **options)

    with np.errstate(invalid="ignore"):
        y, (of_start, _) = engine.gradients(states, (np.ones((2, 1)), bad), np.ones((6, 2, 1)))
    good = odeint(decay, np.ones((1, 1)), times, (np.asarray(1.0),), batch_ndim=1, **options)[:, 0, :]
    close(y[:, 0, :], good, 1e-9 if not options else 1e-2)
    assert np.isnan(y[4:, 1]).all()
    assert np.isfinite(y[:4, 1]).all()
    assert np.isfinite(of_start[0]).all()
    if engine.name in ("numpy", "torch"):
        pattern = SPOILT if not options else "1 of 2 problems .* ended NON_FINITE"
        with np.errstate(invalid="ignore"), pytest.raises(dil.ConvergenceError, match=pattern):
            states(engine.asarray(np.ones((2, 1))), engine.asarray(bad), "raise")


def test_a_failure_under_jit_is_told_with_its_step():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    run = jax.jit(
        lambda y, bad, t: odeint(spoilt, y, t, (bad,), batch_ndim=1),
    )
    times = jax.numpy.linspace(0.0, 0.5, 6)
    good = jax.numpy.asarray([[0.0], [0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(jax.numpy.ones((2, 1)), good, times).block_until_ready()
    with pytest.warns(dil.ConvergenceWarning, match=SPOILT):
        run(jax.numpy.ones((2, 1)), good.at[1].set(1.0), times).block_until_ready()
    with pytest.raises(Exception, match=r"t does not increase from t\[1\] to t\[2\]"):
        run(jax.numpy.ones((2, 1)), good, times.at[2].set(0.0)).block_until_ready()


Y = np.ones(2)
T = [0.0, 1.0]
BAD = {
    "times that fall": ({"t": [0.0, 1.0, 0.5]}, r"t does not increase from t\[1\] to t\[2\]; .* put s = -t"),
    "a time twice": ({"t": [0.0, 1.0, 1.0]}, r"t does not increase from t\[1\] to t\[2\]"),
    "a time that is NaN": ({"t": [0.0, math.nan]}, r"t does not increase from t\[0\] to t\[1\]"),
    "one time": ({"t": [0.0]}, r"t has shape \(1,\); expected \(T,\) with T >= 2"),
    "times of another dtype": ({"t": np.asarray(T, dtype=np.float32)}, "t has dtype float32, but y0 has float64"),
    "arguments of another dtype": ({"args": (np.ones(2, np.float32),)}, "argument 0 of args has dtype float32, but y0"),
    "a state of no entries": ({"y0": np.ones(0)}, r"y0 is \(0,\) of float64, a state without an entry"),
    "an empty tree": ({"y0": []}, "y0 is an empty tree"),
    "another shape": ({"func": lambda t, y: y[:1]}, r"the function '<lambda>' of the ODE returned \(1,\) of float64; "),
    "another structure": ({"func": lambda t, y: {"a": y}}, r"returned \['a'\] \(2,\) of float64; expected \(2,\)"),
    "no function": ({"func": 3}, "func=3 of type int; expected a callable"),
    "args no tuple": ({"args": Y}, r"expected a tuple, \(theta,\) for one argument"),
    "method": ({"method": "rk4"}, "method='rk4' is unknown; expected one of euler, implicit_euler"),
    "gradient": (
        {"gradient": "magic"},
        "gradient='magic' is unknown; expected one of implicit, naive, unroll, adjoint",
    ),
    "layer": ({"layer": "sum"}, "layer='sum' is unknown; expected one of root, argmin"),
    "steps": ({"steps": 0}, "steps=0; expected an integer >= 1"),
    "unroll": ({"unroll": 0.5}, "unroll=0.5; expected an integer >= 1"),
    "rtol": ({"rtol": -1.0}, "rtol=-1.0; expected a number > 0, or None"),
    "first_step": ({"first_step": 0.1}, "first_step= is for steps that adapt"),
    "steps that adapt": ({"rtol": 1e-3, "steps": 2}, "steps=2 is for steps of one size; drop it"),
    "no estimate": ({"method": "implicit_midpoint", "rtol": 1e-3}, "'implicit_midpoint' has no estimate of its error"),
    "naive": ({"gradient": "naive", "linear_solver": dil.linear.CG()}, "gradient='naive' solves by dil.linear.Direct"),
    "policy": ({"on_failure": "shrug"}, "on_failure='shrug' is unknown"),
    "batch": ({"batch_ndim": 2}, r"leaves of y0 have shapes \(2,\); with batch_ndim=2"),
    "explicit": ({"method": "euler", "gradient": "naive"}, "method='euler' has no stage to solve"),
    "explicit solver": ({"method": "euler", "solver": Newton()}, "method='euler' has no stage to solve"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    given, text = BAD[case]
    given = {"func": lambda t, y, *args: -y, "y0": Y, "t": T, **given}
    with pytest.raises(dil.DilError, match=text):
        odeint(given.pop("func"), given.pop("y0"), given.pop("t"), given.pop("args", ()), **given)


def test_solve_refuses_unknown_options():
    with pytest.raises(dil.OptionError, match=r"solve got unknown options tol; expected those of dil\.ode\.odeint"):
        solve(decay, Y, T, (Y,), tol=1e-3)


@on("numpy", "torch", "torch:func", "jax:jit")
@pytest.mark.parametrize("way", ["implicit", "unroll", "adjoint"])
def test_a_captured_parameter_is_refused(engine, way):
    def last(rate):
        return odeint(lambda t, y: -rate * y, engine.asarray(2.0), [0.0, 0.5], gradient=way)[-1]

    with pytest.raises(dil.CapturedError, match=r"odeint of '<lambda>': the function uses an array|closure"):
        engine.gradients(last, (3.0,))


def test_a_long_step_fails_with_its_time():
    with pytest.raises(dil.ConvergenceError, match=r"odeint of '<lambda>': .* step 1, from t = 0 by h = 0.5. Shorter"):
        odeint(lambda t, y: y * y, np.asarray(1.0), [0.0, 0.5], on_failure="raise")
    with pytest.raises(dil.ConvergenceError, match=r"step \d+, from t = 0\.\d+\. Steps were as short as r"):
        odeint(lambda t, y: y * y, np.asarray(1.0), [0.0, 2.0], rtol=0.5, on_failure="raise")
    with pytest.raises(dil.ConvergenceError, match=r"MAX_ITER.* or max_steps= of them were taken: raise it"):
        odeint(decay, np.asarray(1.0), [0.0, 2.0], (np.asarray(1.0),), rtol=1e-6, max_steps=3, on_failure="raise")


def test_times_in_a_list_keep_their_derivative():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    end = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = odeint(decay, torch.tensor(2.0, dtype=torch.float64), [0.0, end], (torch.tensor(3.0, dtype=torch.float64),))
    (slope,) = torch.autograd.grad(y[-1], end)
    close(float(slope), -3.0 * 2.0 / 2.5**2)


def test_a_batch_of_no_problems():
    for options in ({}, {"rtol": 1e-3}):
        y = odeint(lambda t, y: -y, np.zeros((0, 3)), [0.0, 1.0], batch_ndim=1, **options)
        assert y.shape == (2, 0, 3)


def test_importing_dil_does_not_import_ode():
    import subprocess
    import sys

    code = "import dil, sys; print('dil.ode' in sys.modules, dil.ode.odeint.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "odeint"]
