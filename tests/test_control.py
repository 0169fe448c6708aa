"""Plans and their closed loops: what they find, their gradients, and what they say of bad input."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.control import DDP, ILQR, lqr_gain, mpc_rollout, plan, shift
from dil.solvers import LBFGS, CrossEntropy, Newton, RandomShooting, Sequence

# --- a pendulum ------------------------------------------------------------------------------------------------------


def eager(engine, strict=False):
    """Skip where a test costs too much for what it adds: JAX compiles each solver, array_api_strict is slow."""
    if engine.backend == "jax" or (engine.backend == "array_api_strict" and not strict):
        pytest.skip("NumPy and torch take it; gradients and closed loop run here")


X0 = np.asarray([[1.0, 0.0], [0.5, -1.0]])
GOAL, GRAVITY = np.asarray([0.2, 0.0]), np.asarray(9.8)


def cost(x, u, goal):
    xp = array_namespace(x)
    return xp.sum((x - goal) ** 2, axis=-1) + 0.1 * xp.sum(u**2, axis=-1)


def final(x, goal):
    return 3.0 * array_namespace(x).sum((x - goal) ** 2, axis=-1)


def pendulum(x, u, gravity):
    xp = array_namespace(x)
    speed = x[..., 1:] + 0.1 * (u - gravity * xp.sin(x[..., :1]))
    return xp.concat([x[..., :1] + 0.1 * speed, speed], axis=-1)


def pendulum_plan(solver, horizon=4, **options):
    return plan(cost, pendulum, horizon, final=final, solver=solver, **options)


def arguments(engine, x0=X0):
    return tuple(engine.asarray(x) for x in (x0, GOAL, GRAVITY))


SHARP = pendulum_plan(LBFGS(rtol=1e-12), refine=1)
SOLVERS = {
    "LBFGS": (LBFGS(), 1e-8),
    "truncated": (Newton("truncated"), 1e-8),
    "ILQR": (ILQR(), 1e-8),
    "CrossEntropy": (CrossEntropy(samples=300, iterations=100, spread=3.0), 0.01),
    "Sequence": (Sequence(RandomShooting(samples=1000, iterations=1), LBFGS()), 1e-8),
}


def reference():
    return SHARP(*map(np.asarray, (X0, GOAL, GRAVITY)))


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_find_the_same_plan(plain, name):
    eager(plain, strict=True)
    solver, tolerance = SOLVERS[name]
    found = pendulum_plan(solver).solve(*arguments(plain))
    assert [Status(int(s)).name for s in plain.to_numpy(found.status)] == ["CONVERGED"] * 2
    np.testing.assert_allclose(plain.to_numpy(found.value), reference(), atol=tolerance)


def differences(fn, args, directions, step=1e-5):
    """Return the derivative of a number along a direction in each argument."""
    return [
        (
            fn(*(x + step * d if i == j else x for j, x in enumerate(args)))
            - fn(*(x - step * d if i == j else x for j, x in enumerate(args)))
        )
        / (2 * step)
        for i, d in enumerate(directions)
    ]


def check(gradients, directions, slopes, rtol):
    for g, d, slope in zip(gradients, directions, slopes, strict=True):
        assert abs(np.sum(g * d) - slope) <= rtol * np.sum(np.abs(g * d))


def test_gradients(engine):
    """In the observed state, a parameter of the cost and one of the dynamics, for a batch."""
    draw = np.random.default_rng(0)
    V = draw.standard_normal((2, 4, 1))
    args = (X0, GOAL, GRAVITY)
    directions = [draw.standard_normal(x.shape) for x in args]

    def known(fun, init, *args):  # any black box will do, and JAX need not compile a solver
        return engine.asarray(reference())

    y, found = engine.gradients(pendulum_plan(known if engine.backend == "jax" else ILQR()), args, V)
    np.testing.assert_allclose(y, reference(), atol=1e-9)
    slopes = differences(lambda *xs: np.sum(V * SHARP(*xs)), args, directions)
    check(found, directions, slopes, 1e-7)


@pytest.mark.parametrize("name", ["ILQR", "LBFGS"])
def test_bounds(plain, name):
    """The controls stay within, the barrier keeps a gradient, and the start is one of bounded controls."""
    eager(plain)
    draw = np.random.default_rng(0)
    V, bounds = draw.standard_normal((2, 4, 1)), (-1.0, 2.0)
    bounded = pendulum_plan(SOLVERS[name][0], bounds=bounds, barrier=1e-2, refine=1)
    u, found = plain.gradients(bounded, (X0, GOAL, GRAVITY), V)
    assert bounds[0] < u.min()
    assert 1.9 < u.max() < bounds[1]
    directions = [draw.standard_normal(x.shape) for x in (X0, GOAL, GRAVITY)]
    sharp = pendulum_plan(LBFGS(rtol=1e-12), bounds=bounds, barrier=1e-2, refine=1)
    check(found, directions, differences(lambda *xs: np.sum(V * sharp(*xs)), (X0, GOAL, GRAVITY), directions), 1e-6)
    again = bounded.solve(*arguments(plain), init=plain.asarray(u))
    assert int(plain.to_numpy(again.iterations).max()) < int(
        plain.to_numpy(bounded.solve(*arguments(plain)).iterations).max()
    )


def test_bounded_controls_of_a_linear_system_take_few_sweeps(plain):
    """Nothing is neglected there: the derivatives of the bounds are part of the sweeps, which are Newton steps."""
    eager(plain)
    A, B, x0 = np.asarray([[1.0, 0.5], [0.0, 1.0]]), np.asarray([[0.3, 0.0], [0.2, 1.0]]), np.asarray([1.0, -2.0])
    args = [plain.asarray(x) for x in (x0, np.eye(2), np.asarray([[0.5, 0.2], [0.2, 0.5]]), A, B)]

    def solved(solver):
        steer = plan(quadratic, linear, 4, controls=2, bounds=(-1.0, 1.0), barrier=1e-2, solver=solver)
        return steer.solve(args[0], tuple(args[1:3]), tuple(args[3:]))

    found = solved(ILQR())
    assert Status(int(found.status)) is Status.CONVERGED
    assert int(found.iterations) <= 15
    expected = plain.to_numpy(solved(LBFGS(rtol=1e-12)).value)
    np.testing.assert_allclose(plain.to_numpy(found.value), expected, atol=1e-8)


def test_a_problem_that_has_ended_keeps_its_residual(plain):
    """The second problem takes four sweeps less than the first."""
    eager(plain)
    states = np.asarray([[2.0, -1.0], [0.2, 0.0]])
    steer = pendulum_plan(ILQR(rtol=1e-4), horizon=6)
    together = steer.solve(*arguments(plain, states))
    counts, residuals = plain.to_numpy(together.iterations), plain.to_numpy(together.residual)
    assert counts[1] < counts[0]
    for i, state in enumerate(states):
        alone = steer.solve(*arguments(plain, state))
        assert int(alone.iterations) == counts[i]
        assert float(alone.residual) == pytest.approx(residuals[i], rel=1e-6)


@pytest.mark.parametrize("limit", [1, 2])
def test_sweeps_end_at_their_limit(limit):
    found = pendulum_plan(ILQR(max_iter=limit)).solve(X0, GOAL, GRAVITY)
    assert [Status(int(s)).name for s in found.status] == ["MAX_ITER"] * 2
    assert found.iterations.tolist() == [limit] * 2


def test_random_shooting_needs_refining(plain):
    """Samples stop near the plan: refine= takes it from there, and without it the gradient is said to be another's."""
    eager(plain)
    rough = RandomShooting(samples=1000, iterations=20)
    u = plain.to_numpy(pendulum_plan(rough, refine=4)(*arguments(plain)))
    np.testing.assert_allclose(u, reference(), atol=1e-6)
    rougher = RandomShooting(samples=100, iterations=5)
    with (
        pytest.warns(dil.ConvergenceWarning, match="plan through 'pendulum': forward solve: .* MAX_ITER"),
        pytest.warns(dil.ConvergenceWarning, match="plan through 'pendulum': backward solve: .* NOT_STATIONARY"),
    ):
        plain.gradients(pendulum_plan(rougher), (X0, GOAL, GRAVITY), np.ones((2, 4, 1)))


def test_many_plans_in_one_call_are_the_plans_one_by_one():
    """RandomShooting values a plan's samples at once, and finds what it finds sample by sample."""
    rough = RandomShooting(samples=50, iterations=3)
    args = (X0, GOAL, GRAVITY)
    one = dil.argmin(lambda u, *args: SHARP.score(u, *args), rough, batch_ndim=1)
    np.testing.assert_allclose(
        pendulum_plan(rough).solve(*args).value, one.solve(*args, init=np.zeros((2, 4, 1))).value, rtol=1e-12
    )


# --- the linear regulator --------------------------------------------------------------------------------------------


def quadratic(x, u, weights):
    Q, R = weights
    xp = array_namespace(x)
    return xp.sum((x @ Q) * x, axis=-1) + xp.sum((u @ R) * u, axis=-1)


def linear(x, u, system):
    A, B = system
    return x @ A.mT + u @ B.mT


def test_a_linear_plan_is_the_regulator(plain):
    """Controls and their derivative in A are those of Riccati's recursion, another algorithm; one sweep does."""
    eager(plain, strict=True)
    draw = np.random.default_rng(1)
    A, B, x0 = draw.standard_normal((3, 3)), draw.standard_normal((3, 2)), draw.standard_normal(3)
    Q, R, V = np.eye(3), 0.5 * np.eye(2), draw.standard_normal((4, 2))
    steer = plan(quadratic, linear, 4, controls=2, solver=ILQR())
    const = [plain.asarray(x) for x in (x0, Q, R, B, V)]

    def planned(A):
        x0, Q, R, B, V = const
        u = steer(x0, (Q, R), (A, B))
        return array_namespace(u).sum(V * u)

    def by_riccati(A):
        x, Q, R, B, V = const
        gains, total = lqr_gain(A, B, Q, R, horizon=4), 0.0
        for t in range(4):
            u = -(gains[t, ...] @ x)
            total = total + array_namespace(u).sum(V[t, ...] * u)
            x = A @ x + B @ u
        return total

    found, expected = (plain.gradients(fn, (A,)) for fn in (planned, by_riccati))
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    np.testing.assert_allclose(found[1][0], expected[1][0], rtol=1e-8, atol=1e-9)
    assert int(steer.solve(const[0], tuple(const[1:3]), (plain.asarray(A), const[3])).iterations) == 2


# --- a network -------------------------------------------------------------------------------------------------------


def network(x, u, layers):
    """Two hidden layers of 64 units; the next state is x plus a tenth of what they give."""
    xp = array_namespace(x)
    z = xp.concat([x, u], axis=-1)
    for W, b in layers[:-1]:
        z = xp.tanh(z @ W + b)
    return x + 0.1 * (z @ layers[-1][0] + layers[-1][1])


def near(x, u, goal):
    xp = array_namespace(x)
    return 0.05 * xp.sum((x - goal) ** 2, axis=-1) + xp.sum(u**2, axis=-1)


def weights(sizes=(10, 64, 64, 6), seed=0):
    draw = np.random.default_rng(seed)
    return [(draw.standard_normal((a, b)) / a**0.5, 0.1 * draw.standard_normal(b)) for a, b in pairwise(sizes)]


def check_network(engine):
    """Gradients of 50 steps of 4 controls through two layers of 64 units, within 1e-6 of finite differences."""
    draw = np.random.default_rng(2)
    flat = [x for pair in weights() for x in pair]
    args = (draw.standard_normal(6), draw.standard_normal(6), *flat)
    V = draw.standard_normal((50, 4))

    def steered(solver):
        steer = plan(near, network, 50, controls=4, solver=solver)
        return lambda x0, goal, *flat: steer(x0, goal, list(zip(flat[::2], flat[1::2], strict=True)))

    _, found = engine.gradients(steered(LBFGS()), args, V)
    sharp = steered(LBFGS(rtol=1e-12))
    directions = [draw.standard_normal(x.shape) for x in args]
    groups = [(0,), (1,), tuple(range(2, len(args)))]
    for group in groups:
        slope = differences(
            lambda t, group=group: np.sum(
                V
                * sharp(
                    *(x + t * d if i in group else x for i, (x, d) in enumerate(zip(args, directions, strict=True)))
                )
            ),
            (np.zeros(()),),
            (np.ones(()),),
        )[0]
        terms = [found[i] * directions[i] for i in group]
        assert abs(sum(map(np.sum, terms)) - slope) <= 1e-6 * sum(np.sum(np.abs(t)) for t in terms)


def test_gradients_through_a_network(plain):
    if plain.backend != "numpy":
        pytest.skip("the other backends take it among the slow tests")
    check_network(plain)


@pytest.mark.slow
def test_gradients_through_a_network_everywhere(engine):
    check_network(engine)


# --- the closed loop -------------------------------------------------------------------------------------------------


def test_closed_loop(plain):
    """The environment is heavier than the plan thinks; every state follows from the last by the first control."""
    if plain.backend == "array_api_strict":
        pytest.skip("array_api_strict is slow")
    steps = 4
    steer = pendulum_plan(ILQR(), horizon=5)
    args = arguments(plain)

    def heavier(x, u):
        return pendulum(x, u, 1.1 * args[2])

    def loop(x0):
        return mpc_rollout(steer, heavier, x0, steps, *args[1:])

    if plain.backend == "jax":
        import jax

        loop = jax.jit(loop)
    run = [plain.to_numpy(x) for x in loop(args[0])]
    assert [x.shape for x in run] == [(2, steps + 1, 2), (2, steps, 1), (2, steps)]
    states, controls, status = run
    assert not status.any()
    np.testing.assert_allclose(states[:, 0], X0)
    for t in range(steps):
        np.testing.assert_allclose(states[:, t + 1], pendulum(states[:, t], controls[:, t], 1.1 * GRAVITY), rtol=1e-12)
        u = steer(states[:, t], GOAL, GRAVITY)
        np.testing.assert_allclose(controls[:, t], u[:, 0], atol=1e-8)


def test_a_warm_start_is_the_last_plan_shifted():
    calls = []

    def watching(fun, init, *args):
        calls.append(init)
        return LBFGS()(fun, init, *args)

    steer = pendulum_plan(watching)
    run = mpc_rollout(steer, lambda x, u: pendulum(x, u, GRAVITY), X0, 2, GOAL, GRAVITY)
    first = steer(X0, GOAL, GRAVITY)
    np.testing.assert_array_equal(calls[0], np.zeros((2, 4, 1)))
    np.testing.assert_array_equal(calls[1], shift(first))
    mpc_rollout(steer, lambda x, u: pendulum(x, u, GRAVITY), X0, 2, GOAL, GRAVITY, warm_start=False)
    np.testing.assert_array_equal(calls[-1], np.zeros((2, 4, 1)))
    assert run.states.shape == (2, 3, 2)


def realised(x0, goal, gravity, steer, **options):
    """The cost of a closed loop whose environment is heavier than the plan thinks."""
    run = mpc_rollout(steer, lambda x, u: pendulum(x, u, 1.1 * gravity), x0, 3, goal, gravity, **options)
    xp = array_namespace(run.states)
    return xp.sum(run.states**2, axis=(-2, -1)) + xp.sum(run.controls, axis=(-2, -1))


def test_the_gradient_through_a_closed_loop(engine):
    """Through each plan, the environment, and the states between: that of the plan called in a loop."""
    steer, args = plan(cost, pendulum, 4, final=final, solver=DDP()), (X0, GOAL, GRAVITY)

    def in_a_loop(x0, goal, gravity):
        x, total = x0, np.sum(x0**2, axis=-1)
        for _ in range(3):
            u = steer(x, goal, gravity)[..., 0, :]
            x = pendulum(x, u, 1.1 * gravity)
            total = total + np.sum(x**2, axis=-1) + np.sum(u, axis=-1)
        return total

    expected, pull = dil.vjp(in_a_loop, *args)
    v = np.asarray([1.0, -2.0])
    value, found = engine.gradients(lambda *args: realised(*args, steer), args, v)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    for a, b in zip(found, pull(v), strict=True):
        assert np.max(np.abs(a - b)) <= 1e-8 * np.max(np.abs(b))


def test_the_gradient_through_a_closed_loop_against_finite_differences():
    steer, h = plan(cost, pendulum, 4, final=final, solver=DDP(rtol=1e-13)), 1e-5
    for i in range(3):
        tangent = [np.ones_like(a) if i == j else 0.0 * a for j, a in enumerate((X0, GOAL, GRAVITY))]
        ends = [
            realised(*(a + s * t for a, t in zip((X0, GOAL, GRAVITY), tangent, strict=True)), steer) for s in (h, -h)
        ]
        moved = dil.jvp(lambda *args: realised(*args, steer), (X0, GOAL, GRAVITY), tuple(tangent))[1]
        np.testing.assert_allclose(moved, (ends[0] - ends[1]) / (2 * h), rtol=1e-7)


def test_a_gradient_through_plans_that_are_no_solutions_is_told():
    steer = plan(cost, pendulum, 4, final=final, solver=DDP(max_iter=1))
    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
        dil.grad(lambda goal: np.sum(realised(X0, goal, GRAVITY, steer)))(GOAL)


# --- random search ---------------------------------------------------------------------------------------------------


def test_cross_entropy_treats_each_problem_by_itself(plain):
    eager(plain)

    def far(u, t):
        xp = array_namespace(u)
        return xp.sum(xp.where(u > -1.0, (u - t) ** 2, xp.nan * u), axis=-1)

    solver = CrossEntropy(history=True)
    t = np.asarray([[1.0, 2.0], [-0.5, 0.0], [np.nan, 0.0]])
    sol = dil.argmin(far, solver, batch_ndim=1).solve(plain.asarray(t), init=plain.asarray(np.zeros((3, 2))))
    assert [Status(int(s)).name for s in plain.to_numpy(sol.status)] == ["CONVERGED", "CONVERGED", "NON_FINITE"]
    values = plain.to_numpy(sol.value)
    np.testing.assert_allclose(values[:2], t[:2], atol=1e-4)
    alone = dil.argmin(far, solver).solve(plain.asarray(t[1]), init=plain.asarray(np.zeros(2)))
    np.testing.assert_allclose(plain.to_numpy(alone.value), values[1], rtol=1e-12)
    history = plain.to_numpy(sol.extra["history"])
    assert np.isnan(history[int(sol.iterations[0]) :, 0]).all()
    assert history[int(sol.iterations[0]) - 1, 0] < 1e-4


# --- what is refused, and what is told -------------------------------------------------------------------------------

REFUSED = {
    "horizon": (lambda: plan(cost, pendulum, 0), "horizon=0; expected an integer >= 1"),
    "controls": (lambda: plan(cost, pendulum, 2, controls=0), "controls=0; expected an integer >= 1"),
    "cost": (lambda: plan(None, pendulum, 2), "cost=None of type NoneType; expected a callable"),
    "cost of two": (lambda: plan(lambda x, u: 0.0, pendulum, 2), r"called as cost\(x, u, theta_c\)"),
    "dynamics of two": (lambda: plan(cost, lambda x, u: x, 2), r"called as dynamics\(x, u, theta_h\)"),
    "final of one": (lambda: plan(cost, pendulum, 2, final=lambda x: 0.0), r"called as final\(x, theta_c\)"),
    "dynamics that ask more": (lambda: plan(cost, lambda x, u, t, wind: x, 2), r"called as dynamics"),
    "solver": (lambda: plan(cost, pendulum, 2, solver=LBFGS), r"did you mean LBFGS\(\)"),
    "bounds": (lambda: plan(cost, pendulum, 2, bounds=(1.0, -1.0)), "each lower bound must be below"),
    "bound": (lambda: plan(cost, pendulum, 2, bounds=1.0), r"expected a pair \(low, high\)"),
    "lengths": (lambda: plan(cost, pendulum, 2, bounds=((0.0, 0.0), (1.0, 1.0))), "or of 1 numbers each"),
    "barrier": (lambda: plan(cost, pendulum, 2, barrier=0.1), r"and bounds=\(low, high\) that it keeps"),
    "steps": (lambda: mpc_rollout(SHARP, pendulum, X0, 0), "steps=0; expected an integer >= 1"),
    "plan": (lambda: mpc_rollout(pendulum, pendulum, X0, 1), "expected one made by dil.control.plan"),
    "elites": (lambda: CrossEntropy(samples=4, elites=5), "expected an integer from 2 to samples"),
    "smoothing": (lambda: CrossEntropy(smoothing=1.0), "smoothing=1.0"),
    "seed": (lambda: CrossEntropy(seed=-1), "seed=-1"),
    "sequence": (lambda: Sequence(), "expected one solver or more"),
    "member": (lambda: Sequence(LBFGS), "expected one solver or more"),
    "ILQR": (lambda: ILQR()(lambda u: np.sum(u), np.zeros(2)), "ILQR solves plans only"),
    "max_iter": (lambda: ILQR(max_iter=0), "max_iter=0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_out_of_range(name):
    call, message = REFUSED[name]
    with pytest.raises(dil.OptionError, match=message):
        call()


def test_functions_with_optional_arguments_are_taken(plain):
    steer = plan(lambda *args: cost(*args), lambda x, u, theta=None, wind=0.0: x + u + wind, 2)
    assert steer(plain.asarray(X0), plain.asarray(GOAL)).shape == (*X0.shape[:-1], 2, 1)


def test_a_state_of_integers_is_refused_by_its_name(plain):
    x0 = plain.asarray(X0)
    whole = array_namespace(x0).astype(x0, array_namespace(x0).int32)
    with pytest.raises(dil.DTypeError, match=r"x0 has dtype .*int32"):
        SHARP(whole, plain.asarray(GOAL), plain.asarray(GRAVITY))


def wider(x, u, theta):
    return array_namespace(x).concat([x, u], axis=-1)


def whole(x, u, theta):
    return array_namespace(x).sum(x**2)


SHAPES = {
    "dynamics": (
        lambda x: plan(cost, wider, 2)(x, GOAL),
        r"'wider' returned shape \(2, 3\) for states of shape \(2, 2\)",
    ),
    "cost": (lambda x: plan(whole, pendulum, 2)(x, GOAL, GRAVITY), r"the cost 'whole' returned shape \(\)"),
    "none": (lambda x: plan(cost, lambda x, u, t: None, 2)(x, GOAL), "returned None for states"),
    "x0": (lambda x: SHARP(x[0, 0, ...], GOAL, GRAVITY), r"x0 has shape \(\); expected \(\*batch, n_x\)"),
    "init": (
        lambda x: SHARP(x, GOAL, GRAVITY, init=x),
        r"expected \(2, 4, 1\), that is \(\*batch, horizon, controls\)",
    ),
    "environment": (
        lambda x: mpc_rollout(SHARP, lambda x, u: u, x, 1, GOAL, GRAVITY),
        r"the environment '<lambda>' returned shape \(2, 1\)",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_that_do_not_belong_together(name):
    call, message = SHAPES[name]
    with pytest.raises(dil.ShapeError, match=message):
        call(X0)


def test_no_array_and_another_dtype():
    with pytest.raises(dil.BackendError, match="plan through 'pendulum' got no array"):
        SHARP([1.0, 0.0], GOAL, GRAVITY)
    with pytest.raises(dil.DTypeError, match="the dynamics '<lambda>' returned dtype float32"):
        plan(cost, lambda x, u, t: array_namespace(x).astype(x + u, np.float32), 2)(X0, GOAL)
    with pytest.raises(dil.DTypeError, match="the environment '<lambda>' returned dtype int64 for states of"):
        mpc_rollout(SHARP, lambda x, u: x.astype(int), X0, 1, GOAL, GRAVITY)


@pytest.mark.parametrize("solver", [LBFGS(), ILQR(), CrossEntropy()], ids=lambda s: type(s).__name__)
def test_no_problem_and_a_state_that_is_none(solver):
    steer = plan(cost, pendulum, 3, solver=solver, on_failure="ignore")
    assert steer(X0[:0], GOAL, GRAVITY).shape == (0, 3, 1)
    status = steer.solve(np.where(np.arange(2)[:, None] == 0, np.nan, X0), GOAL, GRAVITY).status
    assert Status(int(status[0])) is Status.NON_FINITE
    assert (steer.solve(X0, GOAL, np.nan * GRAVITY).status == Status.NON_FINITE).all()


@pytest.mark.parametrize("solver", [ILQR(), Newton("truncated"), Newton(), LBFGS()], ids=repr)
def test_the_units_of_the_cost_do_not_matter(solver):
    """From a start of negative curvature, where a step has to find its length by itself."""

    def solved(unit):
        def wells(x, u, theta):
            return unit * np.sum(x**2 + 0.25 * u**4 - 4.0 * u**2, axis=-1)

        steer = plan(wells, lambda x, u, _: 0.5 * x + u, 4, solver=solver, init=np.full((4, 1), 0.05))
        return steer.solve(np.asarray([0.3]))

    plain = solved(1.0)
    assert Status(int(plain.status)) is Status.CONVERGED
    for unit in (2.0**-60, 2.0**40):
        other = solved(unit)
        assert Status(int(other.status)) is Status.CONVERGED
        np.testing.assert_allclose(other.value, plain.value, rtol=1e-6)


def explosive(x, u, theta):
    return 1e4 * x * x + u


@pytest.mark.parametrize("solver", [LBFGS(), ILQR()], ids=lambda s: type(s).__name__)
def test_a_plan_that_diverges_says_so(plain, solver):
    eager(plain)
    diverging = plan(cost, explosive, 20, solver=solver)
    x0, goal = plain.asarray([[1.0], [0.0]]), plain.asarray([0.0])
    status = [Status(int(s)).name for s in plain.to_numpy(diverging.solve(x0, goal).status)]
    assert status == ["DIVERGED", "CONVERGED"]
    with pytest.warns(
        dil.ConvergenceWarning, match="plan through 'explosive': forward solve: 1 of 2 .* DIVERGED: .* states of a plan"
    ):
        diverging(x0, goal)
    with pytest.raises(dil.ConvergenceError, match="DIVERGED"):
        plan(cost, explosive, 20, solver=solver, on_failure="raise")(x0, goal)


def test_the_report_is_the_layers():
    report = SHARP.report(X0, GOAL, GRAVITY)
    assert not report.forward.status.any()
    assert (report.backward.bound < 1e-6).all()


def test_states_are_those_of_the_dynamics(plain):
    eager(plain, strict=True)
    u = plain.asarray(np.full((2, 4, 1), 0.5))
    x0, _, gravity = arguments(plain)
    states = plain.to_numpy(SHARP.states(u, x0, gravity))
    assert states.shape == (2, 5, 2)
    np.testing.assert_allclose(states[:, 1], pendulum(X0, np.full((2, 1), 0.5), GRAVITY))
