"""How many sweeps differential dynamic programming takes on plans of the literature, and in which units."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.control import DDP, ILQR, Box, plan

HANGING = np.asarray([np.pi - 0.1, 0.0])
"""A pendulum whose angle is zero where it stands."""


def pendulum(x, u, theta):
    xp = array_namespace(x)
    speed = x[..., 1:] + 0.1 * (u + 9.8 * xp.sin(x[..., :1]))
    return xp.concat([x[..., :1] + 0.1 * speed, speed], axis=-1)


def upright(x, u, theta):
    xp = array_namespace(x)
    return 1.0 - xp.cos(x[..., 0]) + 0.01 * x[..., 1] ** 2 + 0.01 * u[..., 0] ** 2


def stand(x, theta):
    return 50.0 * (1.0 - array_namespace(x).cos(x[..., 0])) + 5.0 * x[..., 1] ** 2


PUSH = 3.0 * np.sign(np.sin(0.3 * np.arange(30)))[:, None]
"""To and fro, for a motor that is too weak to lift the pendulum."""

MASS, ARM, TURN, INERTIA = 0.5, 0.17, 0.016, (4.9e-3, 4.9e-3, 8.8e-3)
"""A quadcopter: kg, m, m, kg m^2."""
HOVER = MASS * 9.81 / 4


def quadcopter(x, u, theta):
    """Positions, angles of Euler, velocities and body rates after 0.05 s under the thrusts of four rotors."""
    xp, dt = array_namespace(x), 0.05
    (a, b, c), (p, q, r) = (tuple(x[..., i + k] for k in range(3)) for i in (3, 9))
    sa, ca, sb, cb, sc, cc = xp.sin(a), xp.cos(a), xp.sin(b), xp.cos(b), xp.sin(c), xp.cos(c)
    lift = xp.sum(u, axis=-1) / MASS
    force = (lift * (ca * sb * cc + sa * sc), lift * (ca * sb * sc - sa * cc), lift * ca * cb - 9.81)
    front, left, back, right = (u[..., i] for i in range(4))
    torque = (ARM * (left - right), ARM * (back - front), TURN * (front - left + back - right))
    i, j, k = INERTIA
    spin = ((torque[0] + (j - k) * q * r) / i, (torque[1] + (k - i) * p * r) / j, (torque[2] + (i - j) * p * q) / k)
    turn = (p + (q * sa + r * ca) * sb / cb, q * ca - r * sa, (q * sa + r * ca) / cb)
    v, w = x[..., 6:9] + dt * xp.stack(force, axis=-1), x[..., 9:] + dt * xp.stack(spin, axis=-1)
    return xp.concat([x[..., :3] + dt * v, x[..., 3:6] + dt * xp.stack(turn, axis=-1), v, w], axis=-1)


def fly(x, u, goal):
    xp = array_namespace(x)
    away = xp.sum((x[..., :3] - goal) ** 2, axis=-1) + 0.1 * xp.sum(x[..., 3:9] ** 2, axis=-1)
    return away + 0.01 * xp.sum(x[..., 9:] ** 2, axis=-1) + 0.1 * xp.sum((u - HOVER) ** 2, axis=-1)


def arrive(x, goal):
    xp = array_namespace(x)
    return 10.0 * xp.sum((x[..., :3] - goal) ** 2, axis=-1) + xp.sum(x[..., 3:] ** 2, axis=-1)


AT_REST = np.zeros(12)
TUMBLING = np.asarray([-1.0, 0.5, -0.5, 0.5, -0.4, 1.0, 1.0, -1.0, 0.5, 0.0, 0.0, 0.0])


def cartpole(x, u, theta):
    """Position, velocity, angular velocity and angle after 0.05 s (Deisenroth 2010, C.2); the pole hangs at zero."""
    xp = array_namespace(x)
    v, w, angle = x[..., 1], x[..., 2], x[..., 3]
    s, c, force = xp.sin(angle), xp.cos(angle), 10.0 * u[..., 0] - 0.1 * v
    mass = 4.0 - 1.5 * c**2
    push = (0.6 * w**2 * s + 14.73 * s * c + 4 * force) / mass
    spin = (0.9 * w**2 * s * c + 58.92 * s + 6 * force * c) / (0.6 * mass)
    return x + 0.05 * xp.stack([v, push, -spin, w], axis=-1)


def effort(x, u, theta):
    return 0.1 * u[..., 0] ** 2


def balanced(x, theta):
    return 10.0 * (x[..., 0] ** 2 + (x[..., 3] - np.pi) ** 2 + 0.1 * x[..., 1] ** 2 + 0.1 * x[..., 2] ** 2)


DRAW = np.random.default_rng(0)
A, B = np.eye(4) + 0.1 * DRAW.standard_normal((4, 4)), 0.3 * DRAW.standard_normal((4, 2))
X0 = DRAW.standard_normal((3, 4))


def bent(x, u, theta):
    return np.tanh(x @ A.T + u @ B.T)


def distance(x, u, theta):
    return np.sum((x - 0.3) ** 2, axis=-1) + 0.1 * np.sum(u**2, axis=-1)


PLANS = {
    "tanh": (distance, bent, 200, X0, {"controls": 2}, {}, 15),
    "pendulum": (upright, pendulum, 25, HANGING, {}, {}, 12),
    "pendulum in a box": (upright, pendulum, 50, HANGING, {"bounds": Box(-5.0, 5.0)}, {}, 19),
    "pendulum between smooth bounds": (
        upright,
        pendulum,
        30,
        HANGING,
        {"final": stand, "bounds": (-4.0, 4.0), "barrier": 1e-2},
        {"init": PUSH},
        30,
    ),
    "quadcopter": (fly, quadcopter, 50, AT_REST, {"final": arrive, "controls": 4}, {"goal": 1.0}, 8),
    "quadcopter that tumbles": (fly, quadcopter, 50, TUMBLING, {"controls": 4}, {"goal": 1.0}, 11),
    "cart-pole": (effort, cartpole, 40, np.zeros(4), {"final": balanced}, {}, 26),
}


def solve(name, solver, asarray=np.asarray, money=1.0, unit=1.0):
    """Return the solution of a plan whose cost is in units of `money`, and its controls in units of `unit`."""
    cost, dynamics, horizon, x0, options, call, _ = PLANS[name]
    scaled = dict(options)
    if "final" in options:
        scaled["final"] = lambda x, theta_c: money * options["final"](x, theta_c)
    if isinstance(options.get("bounds"), Box):
        scaled["bounds"] = Box(options["bounds"].low * unit, options["bounds"].high * unit)
    steer = plan(
        lambda x, u, theta_c: money * cost(x, u / unit, theta_c),
        lambda x, u, theta_h: dynamics(x, u / unit, theta_h),
        horizon,
        solver=solver,
        **scaled,
    )
    start = HOVER * np.ones((horizon, 4)) if dynamics is quadcopter else call.get("init")
    goal = asarray(call["goal"] * np.ones(3)) if "goal" in call else None
    init = None if start is None else asarray(unit * start)
    return steer, steer.solve(asarray(x0), goal, init=init), goal


def names(solution):
    return {Status(int(s)).name for s in np.ravel(solution.status)}


@pytest.mark.parametrize("name", PLANS)
def test_the_number_of_sweeps(name):
    steer, found, goal = solve(name, DDP())
    assert names(found) == {"CONVERGED"}
    assert np.max(found.iterations) <= PLANS[name][-1]
    if steer.score.bounds is None:
        x0 = PLANS[name][3]
        slope, first = (dil.grad(lambda u: np.sum(steer.score(u, x0, goal)))(u) for u in (found.value, 0 * found.value))
        assert np.max(np.abs(slope)) <= 1e-9 * np.max(np.abs(first))


def test_every_engine_takes_the_same_sweeps(plain):
    _, found, _ = solve("pendulum", DDP(), plain.asarray)
    _, expected, _ = solve("pendulum", DDP())
    assert int(plain.to_numpy(found.iterations)) == int(expected.iterations)
    np.testing.assert_allclose(plain.to_numpy(found.value), expected.value, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("money", "unit"), [(1e-8, 1e6), (1e8, 1.0), (1.0, 1e-6)])
@pytest.mark.parametrize("name", ["pendulum", "cart-pole"])
def test_units_change_no_sweep(name, money, unit):
    (_, found, _), (_, expected, _) = solve(name, DDP(), money=money, unit=unit), solve(name, DDP())
    assert names(found) == {"CONVERGED"}
    assert int(found.iterations) == int(expected.iterations)
    np.testing.assert_allclose(found.value / unit, expected.value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "sweeps"), [("tanh", 95), ("pendulum", 30), ("pendulum between smooth bounds", 50)])
def test_the_regulator_converges(name, sweeps):
    """With a cost, and a map to the controls, that bend the other way at the start."""
    _, found, _ = solve(name, ILQR())
    assert names(found) == {"CONVERGED"}
    assert np.max(found.iterations) <= sweeps
    assert np.max(found.residual) <= 1e-9


def test_the_rate_of_the_regulator_is_that_of_its_matrix():
    """The largest |1 - e| for the eigenvalues e of H_GN^-1 H."""
    horizon, x0 = 10, X0[0]
    steer = plan(distance, bent, horizon, controls=2, solver=DDP())
    u = steer(x0)
    x = steer.states(u, x0)
    J, H_gn = np.zeros((4, horizon, 2)), 0.2 * np.eye(2 * horizon)
    for t in range(horizon):
        slope = 1.0 - x[t + 1] ** 2
        if t:
            flat = J.reshape(4, -1)
            H_gn += 2.0 * flat.T @ flat
        J = np.einsum("ij,jtk->itk", slope[:, None] * A, J)
        J[:, t, :] = slope[:, None] * B
    H = dil.jacobian(dil.grad(lambda u: steer.score(u.reshape(horizon, 2), x0)))(u.reshape(-1))
    rate = np.max(np.abs(1.0 - np.linalg.eigvals(np.linalg.solve(H_gn, H))))
    regulator = plan(distance, bent, horizon, controls=2, solver=ILQR(history=True))
    sizes = regulator.solve(x0, init=u + 1e-4 * np.linalg.norm(u)).extra["history"]
    late = sizes[(sizes < 1e-3) & (sizes > 1e-9)]
    assert abs((late[-1] / late[-5]) ** 0.25 - rate) <= 1e-2 * rate


@pytest.mark.parametrize("solver", [DDP(), ILQR()], ids=["DDP", "ILQR"])
def test_states_that_grow_without_bound_are_brought_back(solver):
    """Most full steps make the states grow even faster."""

    def growing(x, u, theta):
        return x + x**3 + u

    def near(x, u, theta):
        return x[..., 0] ** 2 + 1e-4 * u[..., 0] ** 2

    found = plan(near, growing, 6, solver=solver).solve(np.asarray([0.5]))
    assert names(found) == {"CONVERGED"}
    assert int(found.iterations) <= 30


@pytest.mark.parametrize("money", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("solver", [DDP(), ILQR()], ids=["DDP", "ILQR"])
def test_a_last_control_without_effect_stays_where_it_is(solver, money):
    def free(x, u, theta):
        return money * np.sum((x - 0.3) ** 2, axis=-1)

    steer = plan(free, lambda x, u, theta: np.tanh(x @ A.T + u), 6, controls=4, solver=solver)
    found = steer.solve(X0, init=np.full((3, 6, 4), 0.1))
    assert names(found) == {"CONVERGED"}
    assert np.max(found.iterations) <= 15
    assert np.all(found.value[:, -1] == 0.1)
