"""Controls that are held at the bounds of a box."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.control import DDP, ILQR, Box, plan
from dil.linear import CG
from dil.solvers import LBFGS

DRAW = np.random.default_rng(0)
A, B = np.eye(3) + 0.1 * DRAW.standard_normal((3, 3)), 0.4 * DRAW.standard_normal((3, 2))
X0, GOAL = 2.0 * DRAW.standard_normal((2, 3)), 0.3 * np.ones(3)
BOX = Box(-0.3, (0.4, 0.25))


def cost(x, u, goal):
    xp = array_namespace(x)
    return xp.sum((x - goal) ** 2, axis=-1) + 0.1 * xp.sum(u**2, axis=-1)


def bent(x, u, theta):
    a, b = theta
    return array_namespace(x).tanh(x @ a.T + u @ b.T)


def near(x, u, wish):
    """A cost of the controls alone: the best are the wish, cut to the box."""
    return array_namespace(x).sum((u - wish) ** 2, axis=-1) + 0.0 * x[..., 0]


def stay(x, u, theta):
    return x + 0.0 * u


def names(solution):
    return [Status(int(s)).name for s in np.ravel(np.asarray(solution.status))]


def backward_names(record):
    (entry,) = record.backward
    return names(entry)


def bent_steer(**options):
    steer = plan(cost, bent, 6, controls=2, bounds=BOX, **options)
    return lambda x, goal, a, b: steer(x, goal, (a, b))


def nearest(wish, box=BOX, solver=None, **options):
    """Return the plan of one step that is next to a wish of two controls, its statuses, and its derivative."""
    steer = plan(near, stay, 1, controls=2, bounds=box, solver=solver, on_failure="ignore", **options)
    x0 = np.zeros((*wish.shape[:-1], 2))
    u, pull = dil.vjp(lambda wish: steer(x0, wish), wish)
    return u[..., 0, :], pull(np.ones_like(u))[0]


def test_controls_that_reach_their_bounds_have_no_derivative(engine):
    wish, x0 = np.asarray([[0.1, 0.9], [-0.7, 0.2]]), np.zeros((2, 2))
    steer = plan(near, stay, 1, controls=2, bounds=BOX)
    u, (found,) = engine.gradients(lambda wish: steer(engine.asarray(x0), wish), (wish,), np.ones((2, 1, 2)))
    np.testing.assert_allclose(u[:, 0], [[0.1, 0.25], [-0.3, 0.2]], rtol=1e-12)
    np.testing.assert_allclose(found, [[1.0, 0.0], [0.0, 1.0]], rtol=1e-12, atol=1e-12)


def test_every_engine_finds_the_plan_and_gradient_of_numpy(engine):
    V, args = np.random.default_rng(1).standard_normal((2, 6, 2)), (X0, GOAL, A, B)
    u, pull = dil.vjp(bent_steer(), *args)
    assert (u == -0.3).any()
    assert (u == [0.4, 0.25]).any()
    found, gradients = engine.gradients(bent_steer(), args, V)
    np.testing.assert_allclose(found, u, rtol=1e-8, atol=1e-9)
    for a, b in zip(gradients, pull(V), strict=True):
        assert np.max(np.abs(a - b)) <= 1e-7 * np.max(np.abs(b))


def test_the_plan_is_stationary_where_it_may_move_and_pushed_where_it_may_not():
    steer = plan(cost, bent, 6, controls=2, bounds=BOX)
    solution = steer.solve(X0, GOAL, (A, B))
    assert names(solution) == ["CONVERGED", "CONVERGED"]
    u = solution.value

    def total(u):
        x, value = X0, 0.0
        for t in range(6):
            value, x = value + np.sum(cost(x, u[:, t, :], GOAL)), bent(x, u[:, t, :], (A, B))
        return value

    slope = dil.grad(total)(u)
    low, high = u <= -0.3, u >= np.asarray([0.4, 0.25])
    scale = np.max(np.abs(slope))
    assert np.all(slope[low] > 0)
    assert np.all(slope[high] < 0)
    assert np.max(np.abs(slope[~low & ~high])) <= 1e-8 * scale


def test_the_gradient_against_finite_differences_and_in_both_modes():
    draw, steer = np.random.default_rng(2), bent_steer(solver=DDP(rtol=1e-13))
    args = (X0, GOAL, A, B)
    tangents = tuple(draw.standard_normal(a.shape) for a in args)

    def shifted(h):
        return steer(*(a + h * t for a, t in zip(args, tangents, strict=True)))

    h = 1e-5
    difference = (shifted(h) - shifted(-h)) / (2 * h)
    V = draw.standard_normal(difference.shape)
    u, moved = dil.jvp(steer, args, tangents)
    assert np.max(np.abs(moved - difference)) <= 1e-7 * np.max(np.abs(difference))
    assert np.all(moved[u == -0.3] == 0)
    pulled = sum(np.sum(g * t) for g, t in zip(dil.vjp(steer, *args)[1](V), tangents, strict=True))
    assert abs(pulled - np.sum(V * moved)) <= 1e-12 * np.sum(np.abs(V * moved))


@pytest.mark.parametrize("unit", [1e-8, 1e8])
@pytest.mark.parametrize("money", [1e-8, 1e8])
def test_units_change_nothing(unit, money):
    def priced(x, u, goal):
        return money * cost(x, u / unit, goal)

    def moved(x, u, theta):
        return bent(x, u / unit, theta)

    box = Box(-0.3 * unit, (0.4 * unit, 0.25 * unit))
    found = plan(priced, moved, 6, controls=2, bounds=box).solve(X0, GOAL, (A, B))
    expected = plan(cost, bent, 6, controls=2, bounds=BOX).solve(X0, GOAL, (A, B))
    assert names(found) == names(expected)
    np.testing.assert_allclose(found.value / unit, expected.value, rtol=1e-8, atol=1e-9)


def test_a_control_about_to_leave_its_bound_is_a_kink_in_its_row_alone():
    wish = np.asarray([[0.1, 0.25], [0.1, 0.9], [-0.3, 0.1]])
    with dil.record() as record:
        u, found = nearest(wish)
    np.testing.assert_allclose(u, wish.clip(-0.3, [0.4, 0.25]), rtol=1e-12)
    np.testing.assert_allclose(found[1], [1.0, 0.0], atol=1e-12)
    assert backward_names(record) == ["KINK", "CONVERGED", "KINK"]


def test_a_control_held_where_leaving_would_pay_is_told():
    wish = np.asarray([[0.1, 0.1], [0.1, 0.9]])

    def too_low(fun, init, *args):
        return np.asarray([[[-0.3, 0.1]], [[0.1, 0.25]]])

    with dil.record() as record:
        nearest(wish, solver=too_low)
    assert backward_names(record) == ["NOT_STATIONARY", "CONVERGED"]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (Box(-0.3, np.inf), [0.1, 0.9]),
        (Box(-np.inf, 0.25), [0.1, 0.25]),
        (Box((0.2, -np.inf), (np.inf, np.inf)), [0.2, 0.9]),
        (Box(2.0, 3.0), [2.0, 2.0]),
        (Box(-np.inf, -1e-9), [-1e-9, -1e-9]),
    ],
    ids=["no upper", "no lower", "one only", "all held", "far side"],
)
def test_sides_may_be_infinite_and_all_controls_held(box, expected):
    u, found = nearest(np.asarray([0.1, 0.9]), box)
    np.testing.assert_allclose(u, expected, rtol=1e-12)
    np.testing.assert_allclose(found, np.where(u == [0.1, 0.9], 1.0, 0.0), atol=1e-12)


def test_a_start_outside_is_cut_to_the_box():
    """The best plan without bounds, which costs less than any within them."""
    steer = plan(cost, bent, 6, controls=2, bounds=BOX)
    outside = plan(cost, bent, 6, controls=2, solver=DDP())(X0, GOAL, (A, B))
    found = steer.solve(X0, GOAL, (A, B), init=outside)
    assert names(found) == ["CONVERGED", "CONVERGED"]
    np.testing.assert_allclose(found.value, steer(X0, GOAL, (A, B)), rtol=1e-8, atol=1e-9)


def test_a_held_control_slows_no_sweep():
    found = plan(cost, bent, 50, controls=2, bounds=BOX).solve(X0, GOAL, (A, B))
    assert names(found) == ["CONVERGED", "CONVERGED"]
    assert np.max(found.iterations) <= 8
    assert np.max(found.residual) <= 1e-8


@pytest.mark.parametrize(
    "options", [{"solver": ILQR()}, {"solver": LBFGS()}, {"linear_solver": CG()}, {"barrier": 0.1}], ids=str
)
def test_what_does_not_know_the_box_is_refused(options):
    with pytest.raises(dil.OptionError, match=r"Box\(|bounds=\(low, high\)"):
        plan(cost, bent, 6, controls=2, bounds=BOX, **options)


@pytest.mark.parametrize(
    "limits",
    [(1.0, 1.0), (1.0, -1.0), (np.nan, 1.0), ("a", 1.0), (None, 1.0), ((0.0, 0.0), (1.0, 1.0, 1.0)), ((0.0, 2.0), 1.0)],
    ids=str,
)
def test_limits_that_are_none_are_refused(limits):
    with pytest.raises(dil.OptionError, match=r"Box\("):
        Box(*limits)


def test_a_box_for_another_number_of_controls_is_refused():
    with pytest.raises(dil.OptionError, match="3, one for each control"):
        plan(cost, bent, 6, controls=3, bounds=BOX)
