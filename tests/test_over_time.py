"""Plans whose cost and dynamics differ from time to time."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil.control import DDP, ILQR, Box, mpc_rollout, plan
from dil.linear import Direct
from dil.solvers import LBFGS

HORIZON = 4
DRAW = np.random.default_rng(0)
A, B = np.eye(2) + 0.2 * DRAW.standard_normal((HORIZON, 2, 2)), DRAW.standard_normal((2, 1))
X0, GOALS, WEIGHT = DRAW.standard_normal((3, 2)), DRAW.standard_normal((HORIZON + 1, 2)), np.asarray(1.3)
ARGS = (X0, GOALS, WEIGHT, A, B)
AXES = {"theta_c_axis": {"goal": 0, "weight": None}, "theta_h_axis": (0, None)}


def cost(x, u, theta):
    xp = array_namespace(x)
    return theta["weight"] * xp.sum((x - theta["goal"]) ** 2, axis=-1) + 0.1 * xp.sum(u**2, axis=-1)


def final(x, theta):
    return 2.0 * theta["weight"] * array_namespace(x).sum((x - theta["goal"]) ** 2, axis=-1)


def bent(x, u, theta):
    a, b = theta
    return array_namespace(x).tanh(x @ a.T + u @ b.T)


def steer(**options):
    made = plan(cost, bent, HORIZON, final=final, **AXES, **options)
    return lambda x, goal, weight, a, b: made(x, {"goal": goal, "weight": weight}, (a, b))


def by_hand(**options):
    """The same plan as the argmin of a sum that is written out."""

    def total(u, x, goal, weight, a, b):
        value = 0.0
        for t in range(HORIZON):
            value = value + cost(x, u[t, :], {"goal": goal[t, :], "weight": weight})
            x = bent(x, u[t, :], (a[t, :, :], b))
        return value + final(x, {"goal": goal[-1, :], "weight": weight})

    return dil.argmin(total, dil.solvers.Newton(), linear_solver=Direct(), init=np.zeros((HORIZON, 1)))


def test_gradients_on_every_engine(engine):
    layer, V = by_hand(), DRAW.standard_normal((3, HORIZON, 1))
    pulled = [dil.vjp(lambda x, *rest: layer(x, *rest), x, *ARGS[1:]) for x in X0]
    u = np.stack([value for value, _ in pulled])
    parts = [pull(v) for (_, pull), v in zip(pulled, V, strict=True)]
    expected = [np.stack([part[0] for part in parts]), *(sum(part[i] for part in parts) for i in range(1, 5))]
    value, found = engine.gradients(steer(solver=DDP()), ARGS, V)
    np.testing.assert_allclose(value, u, rtol=1e-8, atol=1e-9)
    for a, b in zip(found, expected, strict=True):
        assert np.max(np.abs(a - b)) <= 1e-9 * np.max(np.abs(b))


@pytest.mark.parametrize(
    "options",
    [
        {"solver": ILQR(rtol=1e-12, max_iter=500)},
        {"solver": LBFGS(rtol=1e-13)},
        {"solver": DDP(), "linear_solver": Direct()},
        {"solver": DDP(rtol=1e-13), "bounds": (-2.0, 2.0), "barrier": 1e-2},
        {"bounds": Box(-0.3, 0.3)},
    ],
    ids=["ILQR", "LBFGS", "Direct", "map", "Box"],
)
def test_gradients_against_finite_differences(options):
    made, draw, h = steer(**options), np.random.default_rng(1), 1e-5
    tangents = [draw.standard_normal(a.shape) for a in ARGS]
    ends = [made(*(a + s * t for a, t in zip(ARGS, tangents, strict=True))) for s in (h, -h)]
    difference = (ends[0] - ends[1]) / (2 * h)
    _, moved = dil.jvp(made, ARGS, tuple(tangents))
    assert np.max(np.abs(moved - difference)) <= 1e-6 * np.max(np.abs(difference))


def test_equal_rows_are_a_plan_without_times():
    once = plan(cost, bent, HORIZON, final=final, solver=DDP())
    goals = np.broadcast_to(GOALS[0], GOALS.shape)
    a = np.broadcast_to(A[0], A.shape)
    expected = once(X0, {"goal": GOALS[0], "weight": WEIGHT}, (A[0], B))
    np.testing.assert_allclose(steer(solver=DDP())(X0, goals, WEIGHT, a, B), expected, rtol=1e-12, atol=1e-12)


def test_the_parameters_of_a_problem_over_time():
    """Each problem of a batch has its own reference: the axis of times comes first."""
    goals = GOALS[:, None, :] + 0.3 * DRAW.standard_normal((HORIZON + 1, 3, 2))
    found = steer(solver=DDP())(X0, goals, WEIGHT, A, B)
    alone = np.stack([steer(solver=DDP())(x, goals[:, i], WEIGHT, A, B) for i, x in enumerate(X0)])
    np.testing.assert_allclose(found, alone, rtol=1e-9, atol=1e-10)


def test_a_rollout_sees_the_rows_from_its_time_on(engine):
    """In step t the plan gets the rows t, t + 1, ... of the whole loop."""
    steps, made = 3, plan(cost, bent, HORIZON, final=final, solver=DDP(), **AXES)
    goals = np.random.default_rng(2).standard_normal((steps + HORIZON, 2))
    a = np.eye(2) + 0.2 * np.random.default_rng(3).standard_normal((steps - 1 + HORIZON, 2, 2))

    def loop(x0, goals, weight, a, b):
        theta = {"goal": goals, "weight": weight}
        return mpc_rollout(made, lambda x, u: bent(x, u, (a[0, :, :], b)), x0, steps, theta, (a, b)).controls

    def in_a_loop(x, goals, weight, a, b):
        found = []
        for t in range(steps):
            rows = {"goal": goals[t : t + HORIZON + 1, :], "weight": weight}
            found.append(made(x, rows, (a[t : t + HORIZON, :, :], b))[..., 0, :])
            x = bent(x, found[-1], (a[0, :, :], b))
        return array_namespace(x).stack(found, axis=-2)

    args, V = (X0, goals, WEIGHT, a, B), np.ones((3, steps, 1))
    expected, pull = dil.vjp(in_a_loop, *args)
    value, found = engine.gradients(loop, args, V)
    np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-9)
    for mine, theirs in zip(found, pull(V), strict=True):
        assert np.max(np.abs(mine - theirs)) <= 1e-8 * np.max(np.abs(theirs))


def test_states_take_the_parameters_over_time():
    made = plan(cost, bent, HORIZON, solver=DDP(), theta_h_axis=(0, None))
    u = DRAW.standard_normal((3, HORIZON, 1))
    states = made.states(u, X0, (A, B))
    for t in range(HORIZON):
        np.testing.assert_allclose(states[:, t + 1], bent(states[:, t], u[:, t], (A[t], B)), rtol=1e-14)


@pytest.mark.parametrize("axis", [1, True, "theta", {"goal": 1}, (0, 0.0)], ids=str)
def test_an_axis_that_is_none_is_refused(axis):
    with pytest.raises(dil.OptionError, match=r"theta_c_axis=.*expected None, 0, or a tree of these"):
        plan(cost, bent, HORIZON, theta_c_axis=axis)


@pytest.mark.parametrize("axis", [{"goal": 0}, (0, None), {"goal": [0, None], "weight": None}], ids=str)
def test_an_axis_with_another_structure_is_refused(axis):
    made = plan(cost, bent, HORIZON, theta_c_axis=axis, theta_h_axis=(0, None))
    with pytest.raises(dil.OptionError, match=r"theta_c_axis=.* where theta_c has"):
        made(X0, {"goal": GOALS, "weight": WEIGHT}, (A, B))


def test_another_number_of_times_is_refused():
    with pytest.raises(dil.ShapeError, match=r"theta_c has shape \(4, 2\); .* a leading axis of 5 times"):
        steer()(X0, GOALS[:-1], WEIGHT, A, B)
    with pytest.raises(dil.ShapeError, match=r"theta_h has shape \(2, 2\); .* a leading axis of 4 times"):
        steer()(X0, GOALS, WEIGHT, A[0], B)
    made = plan(cost, bent, HORIZON, final=final, solver=DDP(), **AXES)
    with pytest.raises(dil.ShapeError, match=r"theta_c has shape \(5, 2\); .* a leading axis of 6 times"):
        mpc_rollout(made, lambda x, u: x, X0, 2, {"goal": GOALS, "weight": WEIGHT}, (A, B))
