"""Mass matrices and algebraic equations: closed forms, references, consistent initial values, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.ode import odeint, solve
from ode_helpers import close, on

ALGEBRAIC = ("implicit_euler", "trapezoid", "bdf2", "sdirk2", "sdirk3", "kvaerno5", "radau")


def driven(t, y, k):
    """y' = -k y + z and 0 = z - k sin t, so z is algebraic."""
    xp = array_namespace(y)
    return xp.stack([y[1] - k * y[0], y[1] - k * xp.sin(t)])


def driven_state(t, k, m=1.0, start=1.0):
    """The solution of m y' = -k y + k sin t."""
    r = k / m
    return (start + r / (r * r + 1)) * np.exp(-r * t) + r * (r * np.sin(t) - np.cos(t)) / (r * r + 1)


def driven_slope(t, k):
    """The derivative of the state in k."""
    h = 1e-4
    f = [driven_state(t, k + i * h) for i in (-2, -1, 1, 2)]
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)


START = np.asarray([1.0, 0.3])
T = np.asarray([0.0, 0.4, 1.0, 2.0])


@on("numpy", "torch", slow=("torch:func", "torch:backward", "jax:jit"))
def test_a_linear_equation_and_its_derivatives(engine):
    """In k, in the mass, in the time and in y0, of which only the entry with a derivative counts."""

    def state(k, mass, times, start):
        options = {"rtol": 1e-10, "max_steps": 500, "on_failure": "raise"}
        return odeint(driven, start, times, (k,), mass=array_namespace(mass).stack([mass, 0.0 * mass]), **options)[-1]

    args = (2.0, 1.0, np.asarray([0.0, 1.0]), START)
    y, (of_k, of_mass, of_times, of_start) = engine.gradients(state, args, np.asarray([1.0, 0.0]))
    close(y, [driven_state(1.0, 2.0), 2.0 * np.sin(1.0)])
    slope = driven_slope(1.0, 2.0)
    close(of_k, slope, 1e-8)
    close(of_mass, -2.0 * slope, 1e-8)  # the solution depends on k / m alone
    close(of_times[1], 2.0 * (np.sin(1.0) - y[0]), 1e-8)
    close(of_start, [np.exp(-2.0), 0.0], 1e-8)
    tangents = (1.0, 0.0, np.zeros(2), np.zeros(2))
    close(engine.tangent(state, args, tangents), [slope, np.sin(1.0)], 1e-8)


@on("numpy", "torch:func", "jax:jit")
def test_second_derivatives(engine):
    """One step of implicit Euler: y = (y0 + h k sin h) / (1 + h k)."""
    h, k = 0.5, 2.0

    def last(k):
        return odeint(driven, 0.0 * k + engine.asarray(START), [0.0, h], (k,), mass=[1.0, 0.0])[-1, 0]

    slope, (bend,) = engine.gradients(dil.grad(last), (k,))
    close(slope, h * (np.sin(h) - 1.0) / (1 + h * k) ** 2)
    close(bend, -2 * h * h * (np.sin(h) - 1.0) / (1 + h * k) ** 3)


ORDERS = {"implicit_euler": 1, "trapezoid": 2, "bdf2": 2, "sdirk2": 2, "sdirk3": 3, "kvaerno5": 5, "radau": 5}


def nonlinear(t, y):
    """y' = z and z^3 + z = y + c(t), where c makes y = e^-t the solution."""
    z = -np.exp(-t)
    return np.stack([y[1], y[1] ** 3 + y[1] - y[0] - (z**3 + z - np.exp(-t))])


@pytest.mark.parametrize("method", ALGEBRAIC)
def test_the_order_of_both_kinds_of_unknowns(method):
    """The algebraic equations hold at every time, and the error of z follows from that of y."""
    errors = []
    for steps in (8, 16):
        y = odeint(nonlinear, START, [0.0, 1.0], mass=[1.0, 0.0], method=method, steps=steps, on_failure="raise")
        errors.append(np.abs(y[-1] - [np.exp(-1.0), -np.exp(-1.0)]))
        assert abs(nonlinear(1.0, y[-1])[1]) < 1e-13
    found = np.log2(errors[0] / errors[1])
    assert np.all((found > ORDERS[method] - 0.35) & (found < ORDERS[method] + 0.6))


@pytest.mark.parametrize("method", ALGEBRAIC)
def test_the_error_follows_the_tolerance_between_the_steps_too(method):
    times, errors = np.linspace(0.0, 2.0, 23), []
    for rtol in (1e-3, 1e-5):
        options = {"method": method, "rtol": rtol, "max_steps": 5000}
        found = solve(nonlinear, START, times, mass=[1.0, 0.0], **options)
        assert Status(int(found.status)) is Status.CONVERGED
        errors.append(np.abs(found.value - np.exp(-times)[:, None] * [1, -1]).max(axis=0))
        *between, last = [abs(nonlinear(t, y)[1]) for t, y in zip(times, found.value, strict=True)]
        assert max(between) < 1e-12
        assert last < 1e-2 * rtol  # `solve` solves a stage to a share of the error of its step
    power = 1 - 1 / {**ORDERS, "kvaerno5": 4, "radau": 3}[method]
    assert np.all(errors[1] < 3 * 1e-5 ** max(power, 0.4))
    assert np.all(errors[1] < 0.3 * errors[0])


def test_a_mass_matrix_of_any_form():
    """Equations that are combined, M with fewer zeros: the same solution; the null spaces are found."""
    mixed = np.asarray([[1.0, 2.0], [3.0, -1.0]])
    unknowns = np.asarray([[1.0, 0.5], [-0.5, 2.0]])  # w with y = unknowns w
    options = {"rtol": 1e-9, "on_failure": "raise"}
    expected = odeint(driven, START, T, (np.asarray(2.0),), mass=[1.0, 0.0], **options)
    field = lambda t, w, k: mixed @ driven(t, unknowns @ w, k)  # noqa: E731
    mass = mixed @ np.diag([1.0, 0.0]) @ unknowns
    w0 = np.linalg.solve(unknowns, START)
    for scale in (1.0, 1e-12):  # capacitors of some picofarads beside resistors of some ohms
        scaled = lambda t, w, k, s=scale: s * field(t, w, k)  # noqa: E731
        found = odeint(scaled, w0, T, (np.asarray(2.0),), mass=scale * mass, **options)
        close(found @ unknowns.T, expected, 1e-7)
    rows = np.diag([1e-15, 1.0])
    found = odeint(lambda t, w, k: rows @ field(t, w, k), w0, T, (np.asarray(2.0),), mass=rows @ mass, **options)
    close(found @ unknowns.T, expected, 1e-7)


@pytest.mark.parametrize("way", [{"steps": 6, "method": "sdirk3"}, {"rtol": 1e-8, "max_steps": 300}])
def test_a_mass_matrix_that_is_not_singular(way):
    """It is the equation y' = M^-1 f, and so are the derivatives, that in M included."""
    M = np.asarray([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.3, 0.0, 1.0]])
    A, start = np.asarray([[-1.0, 2.0, 0.0], [0.0, -3.0, 1.0], [1.0, 0.0, -50.0]]), np.asarray([1.0, 2.0, -1.0])
    field, v = (lambda t, y, A: A @ y - np.sin(t)), np.asarray([1.0, -2.0, 1.0])
    options = {"on_failure": "raise", **way}

    def ours(M, A):
        return v @ odeint(field, start, [0.0, 1.0], (A,), mass=M, **options)[-1]

    def theirs(M, A):
        inverse = array_namespace(M).linalg.inv(M)
        return v @ odeint(lambda t, y, W, A: W @ field(t, y, A), start, [0.0, 1.0], (inverse, A), **options)[-1]

    rtol = 1e-10 if "steps" in way else 1e-7
    calls = [(lambda x, fn=fn: fn(x, A), M) for fn in (ours, theirs)]
    calls += [(lambda x, fn=fn: fn(M, x), A) for fn in (ours, theirs)]
    found = [dil.value_and_grad(fn)(x) for fn, x in calls]
    for (y, slope), (same_y, same_slope) in (found[:2], found[2:]):
        close(y, same_y, rtol)
        close(slope, same_slope, rtol)


def robertson(t, y, k):
    xp = array_namespace(y)
    a, b, c = k[0] * y[0], k[1] * y[1] * y[2], k[2] * y[1] ** 2
    return xp.stack([b - a, a - b - c, y[0] + y[1] + y[2] - 1.0])


RATES = np.asarray([0.04, 1e4, 3e7])


@on("numpy", "torch", slow=("jax:jit",))
def test_robertson_with_the_sum_in_the_place_of_a_rate(engine):
    """The values at t = 40 are those of Radau IIA at rtol = 1e-12, and those at 1e11 of the IVP test set."""
    times = engine.asarray([0.0, 40.0, 1e11])
    run = lambda y, k: solve(robertson, y, times, (k,), mass=[1.0, 1.0, 0.0], rtol=1e-7, atol=1e-12, max_steps=400)  # noqa: E731
    if engine.backend == "jax":
        import jax

        run = jax.jit(run)
    found = run(engine.asarray([1.0, 0.0, 0.0]), engine.asarray(RATES))
    y = engine.to_numpy(found.value)
    assert Status(int(found.status)) is Status.CONVERGED
    np.testing.assert_allclose(y.sum(axis=1), 1.0, rtol=0, atol=1e-14)
    np.testing.assert_allclose(y[1], [0.7158270688, 0.9185534765e-5, 0.2841637457], rtol=1e-4)
    np.testing.assert_allclose(y[2], [0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050], rtol=5e-4)


def test_the_sensitivities_of_robertson_are_those_of_the_equation_without_a_constraint():
    def rates(t, y, k):
        f = robertson(t, y, k)
        return array_namespace(f).stack([f[0], f[1], -f[0] - f[1]])

    def last(logs, func, mass):
        options = {"method": "sdirk3", "rtol": 1e-3, "atol": 1e-8, "mass": mass, "on_failure": "raise"}
        return odeint(func, np.asarray([1.0, 0.0, 0.0]), [0.0, 1e3], (np.exp(logs),), **options)[-1, 0]

    found = [
        dil.value_and_grad(lambda x, f=f, m=m: last(x, f, m))(np.log(RATES))
        for f, m in ((robertson, [1, 1, 0]), (rates, None))
    ]
    close(found[0][0], found[1][0], 1e-3)
    close(found[0][1], found[1][1], 3e-3)


def pendulum(constraint):
    """A rod of length 1: positions, velocities, and the pull of the rod, which the constraint determines or not."""

    def field(t, s):
        x, y, u, v, pull = s
        return array_namespace(s).stack([u, v, -x * pull, -y * pull - 9.81, constraint(x, y, u, v, pull)])

    return field


ROD, AT_REST = np.asarray([1.0, 1.0, 1.0, 1.0, 0.0]), np.asarray([1.0, 0.0, 0.0, 0.0, 0.0])


def test_a_pendulum_of_index_one():
    """The tension is found from the accelerations; energy and length are kept to the tolerance."""
    field = pendulum(lambda x, y, u, v, pull: u * u + v * v - pull * (x * x + y * y) - 9.81 * y)
    found = solve(field, AT_REST, np.linspace(0.0, 3.0, 7), mass=ROD, rtol=1e-9, max_steps=2000)
    assert Status(int(found.status)) is Status.CONVERGED
    x, y, u, v, pull = found.value.T
    np.testing.assert_allclose(np.hypot(x, y), 1.0, rtol=1e-6)
    np.testing.assert_allclose(0.5 * (u * u + v * v) + 9.81 * y, 0.0, atol=1e-5)
    np.testing.assert_allclose(pull, -3 * 9.81 * y, atol=1e-4)


@pytest.mark.parametrize("way", [{"steps": 4}, {"rtol": 1e-6}])
@pytest.mark.parametrize(
    "constraint",
    [lambda x, y, u, v, pull: x * u + y * v, lambda x, y, u, v, pull: x * x + y * y - 1.0],
    ids=["two", "three"],
)
def test_a_higher_index_is_told(constraint, way):
    with pytest.raises(dil.ConvergenceError, match=r"HIGHER_INDEX: .* the index is above 1; .*No step was taken"):
        odeint(pendulum(constraint), AT_REST, [0.0, 1.0], mass=ROD, on_failure="raise", **way)
    found = solve(pendulum(constraint), AT_REST, [0.0, 1.0], mass=ROD, **way)
    assert Status(int(found.status)) is Status.HIGHER_INDEX
    assert found.failed_at == 0.0
    if "rtol" in way:
        assert int(found.steps) == int(found.rejected) == 0
    close(found.value[-1], AT_REST)


def test_an_end_of_the_solution_is_told():
    """z^2 = 1 - t has no root after t = 1."""
    field = lambda t, y: np.stack([y[1], y[1] ** 2 - (1 - t)])  # noqa: E731
    with pytest.raises(dil.ConvergenceError, match=r"from t = 1\b.*the index changes and the solution may end"):
        odeint(field, np.ones(2), [0.0, 2.0], mass=[1.0, 0.0], rtol=1e-6, on_failure="raise")


@on("numpy", "torch:func", slow=("jax:jit",))
def test_a_circuit_of_a_resistor_and_a_capacitor(engine):
    """C u' = (e - u) / R: with e = sin wt and a current that is algebraic; the derivatives in R and C."""
    w = 3.0

    def field(t, y, R):
        xp = array_namespace(y)  # y: the voltage of the capacitor and the current through the resistor
        return xp.stack([y[1], xp.sin(w * t) - y[0] - R * y[1]])

    def voltage(R, C):
        mass = array_namespace(C).stack([C, 0.0 * C])
        options = {"rtol": 1e-9, "max_steps": 300, "on_failure": "raise"}
        return odeint(field, engine.asarray([0.0, 0.0]), [0.0, 1.0], (R,), mass=mass, **options)[-1, 0]

    def exact(R, C):
        a = w * R * C
        return (np.sin(w) - a * np.cos(w) + a * np.exp(-1 / (R * C))) / (1 + a * a)

    u, slopes = engine.gradients(voltage, (2.0, 0.3))
    close(u, exact(2.0, 0.3), 1e-7)
    h = 1e-3
    of_R = (8 * (exact(2 + h, 0.3) - exact(2 - h, 0.3)) - exact(2 + 2 * h, 0.3) + exact(2 - 2 * h, 0.3)) / (12 * h)
    close(slopes, [of_R, of_R * 2.0 / 0.3], 1e-7)


def test_a_rectifier():
    """Source, resistor, diode, and a capacitor beside a load: the node before the diode is algebraic."""
    integrate = pytest.importorskip("scipy.integrate", reason="SciPy is not installed")
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    source = lambda t: 5.0 * np.sin(100 * np.pi * t)  # noqa: E731
    current = lambda u, v: 1e-12 * (np.exp((u - v) / 0.02585) - 1)  # noqa: E731

    def rectifier(t, y):
        i = current(y[1], y[0])
        return np.stack([i - y[0] / 1e3, (source(t) - y[1]) / 10.0 - i])

    def voltage(t, v):
        node = lambda u: (source(t) - u) / 10.0 - current(u, v)  # noqa: E731
        return optimize.brentq(node, min(source(t), v) - 1, v + 1, xtol=1e-14)

    reduced = lambda t, y: [(current(voltage(t, y[0]), y[0]) - y[0] / 1e3) / 1e-5]  # noqa: E731
    options = {"method": "Radau", "rtol": 1e-7, "atol": 1e-8, "max_step": 1e-3}
    truth = integrate.solve_ivp(reduced, (0.0, 0.03), [0.0], **options).y[0, -1]
    found = solve(rectifier, np.zeros(2), [0.0, 0.03], mass=[1e-5, 0.0], rtol=1e-6, atol=1e-8, max_steps=2000)
    assert Status(int(found.status)) is Status.CONVERGED
    close(found.value[-1], [truth, voltage(0.03, truth)], 1e-5)


@on("numpy", "torch:func", "torch:backward", slow=("jax:jit",))
def test_consistent_initial_values_and_their_derivative(engine):
    """z^3 + z = a y at the start, so dz/da = y / (3 z^2 + 1). The z that is given is a guess."""

    def state(a, start):
        field = lambda t, y, a: array_namespace(y).stack([-y[0], y[1] ** 3 + y[1] - a * y[0]])  # noqa: E731
        return odeint(field, start, [0.0], (a,), mass=[1.0, 0.0], on_failure="raise")[0]

    y, (of_a, of_start) = engine.gradients(state, (5.0, np.asarray([2.0, 0.4])), np.asarray([0.0, 1.0]))
    close(y, [2.0, 2.0])  # 2^3 + 2 = 5 * 2
    close(of_a, 2.0 / 13.0)
    close(of_start, [5.0 / 13.0, 0.0])


@pytest.mark.parametrize("guess", [0.0, 5.0])
def test_a_guess_that_is_far(guess):
    """From 5 V each of Newton's steps lowers the voltage of a diode by 26 mV."""
    field = lambda t, y: np.stack([y[1] - y[0], (5.0 - y[1]) / 10.0 - 1e-12 * (np.exp(y[1] / 0.02585) - 1.0)])  # noqa: E731
    found = solve(field, np.asarray([0.0, guess]), [0.0], mass=[1.0, 0.0])
    assert Status(int(found.status)) is Status.CONVERGED
    assert abs(field(0.0, found.value[0])[1]) < 1e-12


def test_inconsistent_initial_values_are_told():
    times, options = [0.0, 0.5, 1.0], {"mass": [1.0, 0.0], "consistent": "check"}
    pattern = r"INCONSISTENT: .* residual of 0\.3 at the initial values, t = 0\. No step was taken"
    for way in ({"steps": 3}, {"rtol": 1e-6}):
        with pytest.raises(dil.ConvergenceError, match=pattern):
            odeint(driven, START, times, (np.asarray(2.0),), on_failure="raise", **options, **way)
        kept = solve(driven, START, times, (np.asarray(2.0),), **options, **way)
        assert Status(int(kept.status)) is Status.INCONSISTENT
        close(kept.value, [START] * 3)
        good = odeint(driven, np.asarray([1.0, 0.0]), times, (np.asarray(2.0),), on_failure="raise", **options, **way)
        found = odeint(driven, START, times, (np.asarray(2.0),), on_failure="raise", mass=[1.0, 0.0], **way)
        close(good, found, 1e-6)


def test_initial_values_that_do_not_exist_are_told():
    field = lambda t, y: np.stack([-y[0], y[1] ** 2 + 1.0])  # noqa: E731
    with pytest.raises(dil.ConvergenceError, match=r"residual of 2 at the initial values"):
        odeint(field, np.ones(2), [0.0, 1.0], mass=[1.0, 0.0], rtol=1e-6, on_failure="raise")


def test_an_unknown_that_is_zero_by_cancellation():
    """y_0 + y_1 = 1, so z = 1 - y_0 - y_1 is rounding, and so is 4 z: no stage may ask for relative accuracy there."""
    field = lambda t, y, k: array_namespace(y).stack(  # noqa: E731
        [-k * y[0], k * y[0], y[0] + y[1] + y[2] - 1.0, y[3] - 4.0 * y[2]]
    )
    start, mass = np.asarray([1.0, 0.0, 0.0, 0.0]), [1.0, 1.0, 0.0, 0.0]
    for way in ({"steps": 10, "method": "sdirk3"}, {"rtol": 1e-6}):

        def last(k, way=way):
            y = odeint(field, start, [0.0, 3.0], (k,), mass=mass, on_failure="raise", **way)
            return y[-1] @ np.asarray([1.0, 0.0, 1.0, 1.0])

        y, slope = dil.value_and_grad(last)(np.asarray(0.7))
        close(y, np.exp(-2.1), 1e-3)
        close(slope, -3.0 * np.exp(-2.1), 1e-3)


def test_a_batch_of_problems():
    """Rows of one batch, a start without a solution among them: the others end like problems of their own."""

    def field(t, y, k):
        return np.stack([y[..., 1] - k[..., 0] * y[..., 0], y[..., 1] ** 2 - k[..., 1]], axis=-1)

    k, start = np.asarray([[1.0, 4.0], [30.0, 9.0], [1.0, -1.0]]), np.asarray([[1.0, 1.0]] * 3)
    for way in ({"rtol": 1e-6}, {"steps": 5, "method": "sdirk3"}):
        found = solve(field, start, [0.0, 0.3, 1.0], (k,), mass=[1.0, 0.0], batch_ndim=1, **way)
        assert found.status[0] == found.status[1] == 0 != found.status[2]
        assert found.failed_at[2] == 0.0
        for i in (0, 1):
            alone = solve(field, start[i], [0.0, 0.3, 1.0], (k[i],), mass=[1.0, 0.0], **way)
            close(found.value[:, i], alone.value, 1e-5 if "rtol" in way else 1e-12)


def test_transforms_of_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def last(k, c):
        start, options = torch.asarray(START), {"method": "trapezoid", "steps": 2, "on_failure": "raise"}
        return odeint(driven, start, [0.0, 1.0], (k,), mass=torch.stack([c, 0.0 * c]), **options)[-1, 0]

    k, c = torch.asarray([2.0, 3.0], dtype=torch.float64), torch.asarray([1.0, 2.0], dtype=torch.float64)
    slopes = torch.func.vmap(torch.func.grad(last))(k, c)
    close(slopes, [torch.func.grad(last)(*pair) for pair in zip(k, c, strict=True)])
    h = 1e-4
    around = [torch.func.grad(last)(k[0] + i * h, c[0]) for i in (-1, 1)]
    close(torch.func.hessian(last)(k[0], c[0]), (around[1] - around[0]) / (2 * h), 1e-6)


@pytest.mark.slow
def test_vmap_of_adaptive_steps():
    """Rows of another number of steps: those that pad the shorter one are no solves, and nothing is told of them."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    jnp = jax.numpy

    def last(k, c):
        options = {"method": "sdirk2", "rtol": 1e-4, "max_steps": 100, "on_failure": "raise"}
        return odeint(driven, jnp.asarray(START), [0.0, 1.0], (k,), mass=jnp.stack([c, 0.0 * c]), **options)[-1, 0]

    k, c = np.asarray([2.0, 3.0]), np.asarray([1.0, 2.0])
    values, (of_k, of_c) = jax.jit(jax.vmap(jax.value_and_grad(last, (0, 1))))(k, c)
    close(values, [driven_state(1.0, *pair) for pair in zip(k, c, strict=True)], 2e-3)
    close(of_c, -np.asarray(of_k) * k / c, 1e-8)


def test_the_derivatives_of_a_mass_matrix_that_is_no_diagonal():
    """A capacitor c between two nodes: M = c [[1, -1], [-1, 1]], whose null spaces do not depend on c."""

    def last(c):
        field = lambda t, u: array_namespace(u).stack([np.sin(3 * t) - 1.5 * u[0], -3.0 * u[1]])  # noqa: E731
        mass = c * np.asarray([[1.0, -1.0], [-1.0, 1.0]])
        return odeint(field, np.asarray([0.3, 0.1]), [0.0, 0.7], mass=mass, rtol=1e-10, on_failure="raise")[-1, 0]

    h, c = 1e-3, 0.4
    f = [float(last(np.asarray(c + i * h))) for i in (-2, -1, 1, 2)]
    close(dil.grad(last)(np.asarray(c)), (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h), 1e-6)


def test_stages_that_a_solver_solves_one_by_one():
    """As those of a large state: the estimate of the error is then found from a stage of no length."""
    krylov = dil.ode.StepNewton(dil.linear.GMRES())
    for method in ("sdirk3", "kvaerno5", "radau"):
        options = {"mass": [1.0, 0.0], "rtol": 1e-7, "method": method}
        found, small = (solve(nonlinear, START, [0.0, 2.0], **options, **way) for way in ({"solver": krylov}, {}))
        assert Status(int(found.status)) is Status.CONVERGED
        assert abs(int(found.steps) - int(small.steps)) <= 0.3 * int(small.steps)
        close(found.value[-1], small.value[-1], 1e-4)


def test_the_ways_to_a_gradient_agree():
    def last(k, **way):
        return odeint(driven, START, [0.0, 0.5, 1.0], (k,), mass=[1.0, 0.0], method="sdirk2", **way)[-1, 0]

    ways = ({"steps": 3}, {"rtol": 1e-3})
    for way in ways:
        slopes = [
            dil.grad(lambda k, g=g, w=way: last(k, gradient=g, on_failure="raise", **w))(np.asarray(2.0))
            for g in ("implicit", "naive", "unroll")
        ]
        close(slopes[1:], [slopes[0]] * 2, 1e-8)


def test_times_that_decrease():
    """From the end back to the start."""
    end = driven_state(1.0, 2.0)
    y = odeint(driven, np.asarray([end, 0.0]), [1.0, 0.4, 0.0], (np.asarray(2.0),), mass=[1.0, 0.0], rtol=1e-9)
    close(y[:, 0], driven_state(np.asarray([1.0, 0.4, 0.0]), 2.0), 1e-6)


REFUSED = {
    "explicit": ({"method": "tsit5", "rtol": 1e-3}, r"method='tsit5' cannot keep the algebraic equations .* take impl"),
    "euler": ({"method": "euler"}, "method='euler' cannot keep the algebraic equations of mass=, since it solves no"),
    "midpoint": ({"method": "implicit_midpoint"}, "satisfies them in the middle of a step alone"),
    "adjoint": ({"gradient": "adjoint"}, "gradient='adjoint' is for M = I"),
    "fixed point": ({"solver": dil.solvers.FixedPoint()}, "a stage without a mass matrix"),
    "shape": ({"mass": np.eye(3)}, r"mass has shape \(3, 3\); expected \(2, 2\), or \(2,\) for a diagonal matrix"),
    "consistent": ({"consistent": "yes"}, "consistent='yes' is unknown; expected one of find, check"),
    "complex": ({"y0": np.asarray([1.0 + 0j])}, "mass has shape|mass= is for a real state"),
    "tolerance": ({"rtol": 1e-17}, r"rtol=1e-17 is below the rounding of float64; expected 8\.9e-16 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_had_is_refused(case):
    given, text = REFUSED[case]
    options = {"y0": START, "mass": [1.0, 0.0], **given}
    with pytest.raises(dil.DilError, match=text):
        odeint(driven, options.pop("y0"), T, (np.asarray(2.0),), **options)


@pytest.mark.parametrize("mixed", [False, True], ids=["diagonal", "matrix"])
def test_events_of_algebraic_equations(mixed):
    """x' = -x, 0 = z - x^2: x falls to 1/2 at t = log 2. In another basis, the state is (x + z, z)."""

    def dae(t, u):
        return np.stack([-u[..., 0], u[..., 1] - u[..., 0] ** 2], axis=-1)

    basis = np.asarray([[1.0, 1.0], [0.0, 1.0]]) if mixed else np.eye(2)
    back = np.linalg.inv(basis)

    def in_basis(t, u):
        return dae(t, (back @ u[..., None])[..., 0])

    mass = np.asarray([[1.0, 0.0], [0.0, 0.0]]) @ back if mixed else np.asarray([1.0, 0.0])
    half = dil.ode.Event(lambda t, u: (back @ u[..., None])[..., 0, 0] - 0.5, terminal=True)
    options = {"mass": mass, "rtol": 1e-8, "events": half}
    found = dil.ode.solve(in_basis, basis @ np.ones(2), [0.0, 0.5, 2.0], **options)
    np.testing.assert_allclose(found.events[0].t, [np.log(2.0)], rtol=1e-7)
    np.testing.assert_allclose(found.events[0].y, [basis @ [0.5, 0.25]], rtol=1e-7)
    np.testing.assert_allclose(found.value[2], basis @ [0.5, 0.25], rtol=1e-7)
    np.testing.assert_allclose(found.value[1], basis @ [np.exp(-0.5), np.exp(-1.0)], rtol=1e-7)
    quarter = dil.ode.Event(lambda t, u: u[..., 1] - 0.25)
    with pytest.raises(dil.OptionError, match="depends on unknowns without a derivative"):
        dil.ode.solve(in_basis, basis @ np.ones(2), [0.0, 2.0], **{**options, "events": quarter})
    with pytest.raises(dil.OptionError, match="events= of a batch with mass="):
        dil.ode.solve(in_basis, np.ones((3, 2)), [0.0, 2.0], batch_ndim=1, **options)


@pytest.mark.parametrize("method", ["sdirk2", "kvaerno5"])
def test_the_derivative_of_algebraic_unknowns_in_the_last_time(method):
    """x = exp(-t), z = sin(5 t) x: a polynomial through stages is of a low order in z."""

    def field(t, s):
        return np.stack([-s[0], s[1] - np.sin(5.0 * t) * s[0]])

    def last(t):
        times = np.stack([0.0 * t, t])
        return odeint(field, np.asarray([1.0, 0.0]), times, mass=[1.0, 0.0], rtol=1e-6, method=method)[-1, 1]

    expected = (5.0 * np.cos(5.0) - np.sin(5.0)) * np.exp(-1.0)
    close(dil.grad(last)(np.asarray(1.0)), expected, 1e-4)
