"""The Riccati recursion as the linear solver of a plan, and differential dynamic programming."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.control import DDP, ILQR, Riccati, plan
from dil.linear import CG, Auto, Direct
from dil.solvers import LBFGS, Newton

DRAW = np.random.default_rng(0)
A, B = np.eye(4) + 0.1 * DRAW.standard_normal((4, 4)), 0.3 * DRAW.standard_normal((4, 2))
X0, GOAL = DRAW.standard_normal((3, 4)), 0.3 * np.ones(4)


def cost(x, u, goal):
    xp = array_namespace(x)
    return xp.sum((x - goal) ** 2, axis=-1) + 0.1 * xp.sum(u**2, axis=-1)


def final(x, goal):
    return array_namespace(x).sum((x - goal) ** 2 + 0.3 * x**4, axis=-1)


def bent(x, u, theta):
    a, b = theta
    return array_namespace(x).tanh(x @ a.T + u @ b.T)


def bent_plan(horizon, solver, **options):
    return plan(cost, bent, horizon, controls=2, solver=solver, **options)


def names(engine, solution):
    return {Status(int(s)).name for s in np.ravel(engine.to_numpy(solution.status))}


@pytest.mark.parametrize("options", [{}, {"final": final}, {"bounds": (-0.8, 0.8), "barrier": 1e-2}])
def test_the_gradient_is_that_of_a_dense_solve(engine, options):
    """With the second derivatives of the dynamics, of the final cost, and of the map to bounded controls."""
    if engine.backend == "jax" and "bounds" not in options:
        pytest.skip("JAX compiles each case: one with all terms runs there")
    u = bent_plan(5, DDP(), **options)(X0, GOAL, (A, B))

    def run(solver, asarray):
        def known(fun, init, *args):
            return asarray(np.arctanh(u / 0.8) if "bounds" in options else u)

        steer = bent_plan(5, known, linear_solver=solver, **options)
        return lambda x, goal, a, b: steer(x, goal, (a, b))

    V, args = np.random.default_rng(1).standard_normal((3, 5, 2)), (X0, GOAL, A, B)
    dense = run(Direct(), np.asarray)
    expected = dil.vjp(dense, *args)[1](V)
    found = engine.gradients(run(Riccati(), engine.asarray), args, V)[1]
    for a, b in zip(found, expected, strict=True):
        assert np.max(np.abs(a - b)) <= 1e-11 * np.max(np.abs(b))
    if engine.backend == "jax":
        return  # the pushforward is one more program to compile
    tangents = (X0, GOAL, 0.1 * A, B)
    moved, there = engine.tangent(run(Riccati(), engine.asarray), args, tangents), dil.jvp(dense, args, tangents)[1]
    assert np.max(np.abs(moved - there)) <= 1e-11 * np.max(np.abs(there))


@pytest.mark.parametrize("solver", [DDP(), ILQR(), LBFGS()], ids=["DDP", "ILQR", "LBFGS"])
def test_it_is_the_default_beside_solvers_that_take_all_times_at_once(solver):
    expected = Auto if isinstance(solver, LBFGS) else Riccati
    assert isinstance(bent_plan(3, solver).linear_solver, expected)


@pytest.mark.parametrize("horizon", [1, 2, 30])
def test_the_gradient_against_finite_differences(horizon):
    steer = bent_plan(horizon, DDP(), final=final)
    V, D = np.random.default_rng(1).standard_normal((3, horizon, 2)), 0.1 * A[:, :2]
    slope = np.sum(dil.grad(lambda b: np.sum(V * steer(X0, GOAL, (A, b))))(B) * D)
    h = 2e-4
    a, b, c, d = (np.sum(V * steer(X0, GOAL, (A, B + k * h * D))) for k in (-2, -1, 1, 2))
    assert abs(slope - (a - 8 * b + 8 * c - d) / (12 * h)) <= 1e-8 * abs(slope)


def test_the_second_derivative(plain):
    """By products with the same recursion: the derivative of a directional derivative."""
    if plain.backend == "jax":
        pytest.skip("NumPy and torch take it")
    steer = bent_plan(4, DDP(), final=final)
    b, a, goal, x = (plain.asarray(y) for y in (B, A, GOAL, X0[0]))

    def slope(b):
        return dil.grad(lambda b: array_namespace(b).sum(steer(x, goal, (a, b)) ** 2))(b)

    second = plain.to_numpy(dil.jvp(slope, (b,), (b,))[1])
    step = 1e-5
    ends = [plain.to_numpy(slope(b * (1 + s * step))) for s in (1, -1)]
    assert np.max(np.abs(second - (ends[0] - ends[1]) / (2 * step))) <= 1e-7 * np.max(np.abs(second))


def test_a_control_without_effect_is_named():
    """The last control of a plan without a final cost moves no cost."""

    def free(x, u, goal):
        return np.sum((x - goal) ** 2, axis=-1)

    steer = plan(free, bent, 3, controls=2, solver=lambda fun, init, *args: init, on_failure="raise")
    with pytest.raises(dil.ConvergenceError, match="SINGULAR"):
        dil.grad(lambda x: np.sum(steer(x, GOAL, (A, B))))(X0[0])
    steer = plan(free, bent, 3, controls=2, solver=lambda f, u, *a: u, linear_solver=Riccati(), on_failure="raise")
    with pytest.raises(dil.ConvergenceError, match=r"SINGULAR.*\(at step 2\)$"):
        dil.grad(lambda x: np.sum(steer(x, x @ A.T @ A.T, (np.eye(4), B))))(0.0 * X0[0])


def test_the_message_names_the_step_of_the_first_problem(engine):
    """The second problem of three has a control without effect at step 1."""

    def priced(x, u, prices):
        return array_namespace(x).sum(x**2, axis=-1) + prices * u[..., 0] ** 2

    prices = np.asarray([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    steer = plan(
        priced,
        lambda x, u, gain: x + 0.0 * u,
        3,
        solver=lambda fun, init, *args: init,
        linear_solver=Riccati(),
        theta_c_axis=0,
    )
    with pytest.warns(
        dil.ConvergenceWarning, match=r"1 of 3 problems \(the first at 1\) ended SINGULAR.* \(at step 1\)$"
    ):
        engine.gradients(lambda x: steer(x, engine.asarray(prices)), (np.ones((3, 1)),), np.ones((3, 3, 1)))


def test_the_first_step_that_is_not_positive_is_told():
    """A maximum in the second control alone: the solution is right, and said to be that of no minimum."""

    def bowl(x, u, goal):
        return x[..., 0] ** 2 + u[..., 0] ** 2

    def last(x, goal):
        return -3.0 * x[..., 0] ** 2

    steer = plan(bowl, lambda x, u, gain: x + u, 3, final=last, solver=lambda fun, init, *args: init)
    found = {}

    def solver(A, b, /, *, loop):
        found["x"] = Riccati()(A, b, loop=loop)
        found["dense"] = Direct()(A, b, loop=loop).value
        return found["x"]

    steer = plan(bowl, lambda x, u, gain: x + u, 3, final=last, solver=lambda f, i, *a: i, linear_solver=solver)
    with pytest.warns(dil.ConvergenceWarning, match=r"NOT_MINIMUM.*\(at step 2\)$"):
        dil.grad(lambda x: np.sum(np.asarray([1.0, 2.0, 3.0]) * steer(x)[:, 0]))(np.zeros(1))
    assert np.max(np.abs(found["x"].value - found["dense"])) <= 1e-12 * np.max(np.abs(found["dense"]))
    assert bool(found["x"].extra["indefinite"])
    assert int(found["x"].extra["step"]) == 2


def test_another_layer_is_refused():
    layer = dil.argmin(lambda u, t: np.sum((u - t) ** 2), Newton(), linear_solver=Riccati(), init=lambda t: 0.0 * t)
    with pytest.raises(dil.OptionError, match=r"solves the systems of a plan; take dil\.linear\.Auto"):
        dil.grad(lambda t: np.sum(layer(t)))(np.ones(40))


def test_one_problem_of_a_batch_with_nan_leaves_the_others():
    x = np.concatenate([X0, np.full((1, 4), np.nan)])
    steer = bent_plan(4, DDP(), on_failure="ignore")
    found, alone = steer.solve(x, GOAL, (A, B)), steer.solve(X0, GOAL, (A, B))
    assert [Status(int(s)).name for s in found.status] == ["CONVERGED"] * 3 + ["NON_FINITE"]
    np.testing.assert_allclose(found.value[:3], alone.value, atol=1e-12)
    slope = dil.grad(lambda x: np.sum(steer(x, GOAL, (A, B))[:3]))(x)
    np.testing.assert_allclose(slope[:3], dil.grad(lambda x: np.sum(steer(x, GOAL, (A, B))))(X0), atol=1e-11)


def test_newton_steps_by_the_recursion_are_those_of_cg():
    solutions = [bent_plan(20, Newton(linear_solver=s)).solve(X0, GOAL, (A, B)) for s in (Riccati(), CG(rtol=1e-13))]
    np.testing.assert_allclose(solutions[0].value, solutions[1].value, atol=1e-10)


@pytest.mark.parametrize("horizon", [1, 10, 50])
def test_differential_dynamic_programming_takes_few_sweeps(plain, horizon):
    """Where the regulator without second derivatives takes a hundred."""
    if plain.backend not in ("numpy", "torch") and horizon == 50:
        pytest.skip("NumPy and torch run the long one")
    if plain.backend == "jax" and horizon == 1:
        pytest.skip("JAX compiles one case")
    args = plain.asarray(X0), plain.asarray(GOAL), (plain.asarray(A), plain.asarray(B))
    found = bent_plan(horizon, DDP()).solve(*args)
    assert names(plain, found) == {"CONVERGED"}
    assert int(np.max(plain.to_numpy(found.iterations))) <= 15
    if horizon == 10:
        close = bent_plan(horizon, ILQR(max_iter=500)).solve(X0, GOAL, (A, B)).value
        np.testing.assert_allclose(plain.to_numpy(found.value), close, atol=1e-9)


def test_the_convergence_is_quadratic():
    found = bent_plan(50, DDP(history=True)).solve(X0[0], GOAL, (A, B))
    sizes = found.extra["history"]
    sizes = sizes[np.isfinite(sizes)]
    late = sizes[(sizes < 1e-2) & (sizes > 1e-13)]
    assert len(late) >= 2
    assert all(b <= 1e2 * a**1.7 for a, b in pairwise(late) if b > 1e-12)


def swing_up(x, u, theta):
    xp = array_namespace(x)
    speed = x[..., 1:] + 0.1 * (u + 9.8 * xp.sin(x[..., :1]))
    return xp.concat([x[..., :1] + 0.1 * speed, speed], axis=-1)


def upright(x, u, theta):
    xp = array_namespace(x)
    return 1.0 - xp.cos(x[..., 0]) + 0.01 * x[..., 1] ** 2 + 0.01 * u[..., 0] ** 2


def test_a_pendulum_is_swung_up():
    """The Hessian is not positive definite at the start, nor is that of the cost."""
    steer, x = plan(upright, swing_up, 25, solver=DDP()), np.asarray([np.pi - 0.1, 0.0])
    found = steer.solve(x)
    assert Status(int(found.status)) == Status.CONVERGED
    assert abs(np.cos(steer.states(found.value, x)[-1, 0]) - 1.0) < 0.1
    slope, start = (dil.grad(lambda v: steer.score(v, x))(v) for v in (found.value, 0.0 * found.value))
    assert np.max(np.abs(slope)) <= 1e-9 * np.max(np.abs(start))
