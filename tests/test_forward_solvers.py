"""The iterative solvers: found where they say so, each problem of a batch by itself, watched, and under a compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st

import dil
from dil import Status
from dil._base.operator import Operator
from dil._base.quasi_newton import inverse_product
from dil._base.scalars import Scalars, divided, sign
from dil._base.scale import is_short, longest_short
from dil._frameworks.loops import EAGER
from dil._frameworks.registry import owner
from dil._problem.equation import Equation
from dil.solvers import (
    LBFGS,
    Anderson,
    FixedPoint,
    GradientDescent,
    Newton,
    RandomShooting,
    SciPy,
    SciPyRoot,
    _progress,
)
from dil.solvers._forcing import forcing_of_score
from dil.solvers._newton import towards_root

ROOT = Path(__file__).parent.parent
COS = 0.7390851332151607
MINIMISERS = [GradientDescent(), LBFGS(), Newton(), Newton("truncated")]


def name(solver):
    return "-".join([type(solver).__name__, *(v for v in vars(solver).values() if isinstance(v, str))])


@pytest.fixture
def eager(plain):
    if plain.backend == "jax":
        pytest.skip("JAX compiles each case anew; test_under_jit runs every solver on it")
    return plain


def rosenbrock(u):
    xp = array_namespace(u)
    return xp.sum(100.0 * (u[..., 1:] - u[..., :-1] ** 2) ** 2 + (1.0 - u[..., :-1]) ** 2, axis=-1)


def product(A, u):
    return array_namespace(u).matmul(A, u[..., None])[..., 0]


def quadratic(u, A, x):
    return 0.5 * array_namespace(u).sum((u - x) * product(A, u - x), axis=-1)


def affine(u, A, b):
    return product(A, u) + b


def cosine(u):
    return array_namespace(u).cos(u)


def batched(fn, kind="step"):
    """Return a step or a residual as a layer hands it over: it says how many dimensions count problems."""
    return Equation(fn, 1, kind)


def spectrum(eigenvalues, seed):
    Q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2))
    return (Q * np.asarray(eigenvalues)) @ Q.T


def names(engine, status):
    return [Status(int(s)).name for s in np.reshape(engine.to_numpy(status), -1)]


def arrays(engine, dtype, *values):
    handle = dil.backend(engine.backend, device=engine.device, dtype=dtype)
    return [handle.asarray(v) for v in values]


def at_a_maximum(u):
    return array_namespace(u).sum(u**4 - u**2, axis=-1)


def at_a_saddle(u):
    return u[..., 0] ** 2 - u[..., 1] ** 2 + u[..., 1] ** 4


@pytest.mark.parametrize("score", [at_a_maximum, at_a_saddle])
@pytest.mark.parametrize("solver", [*MINIMISERS, SciPy()], ids=name)
def test_a_start_that_is_stationary_converges_and_the_layer_tells_what_it_is(eager, score, solver):
    """A gradient of exactly zero points nowhere: no solver sees a maximum, nor does SciPy."""
    layer = dil.argmin(lambda u, t: score(u - t), solver, init=lambda t: t)
    t = eager.asarray(np.asarray([1.0, 0.5]))
    solution = layer.solve(t)
    assert int(solution.status) == Status.CONVERGED
    np.testing.assert_array_equal(eager.to_numpy(solution.value), [1.0, 0.5])
    _, pull = dil.vjp(layer, t)
    with pytest.warns(dil.ConvergenceWarning, match="NOT_MINIMUM"):
        pull(t)


@pytest.mark.parametrize("solver", [LBFGS(), Newton(), Newton("truncated")], ids=name)
@pytest.mark.parametrize("n", [2, 10])
def test_rosenbrock(eager, solver, n):
    start = np.ones(n) + 0.2 * np.cos(np.arange(n))  # in the valley of the one minimum that is global
    sol = solver(rosenbrock, eager.asarray(start))
    assert names(eager, sol.status) == ["CONVERGED"]
    np.testing.assert_allclose(eager.to_numpy(sol.value), np.ones(n), rtol=1e-8)


@pytest.mark.parametrize("n", [2, 10])
def test_lbfgs_costs_what_scipys_does(n):
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    start = np.tile([-1.2, 1.0], n // 2)
    options = {"gtol": 1e-10, "ftol": 0.0, "maxcor": 10}
    theirs = optimize.minimize(optimize.rosen, start, jac=optimize.rosen_der, method="L-BFGS-B", options=options)
    ours = LBFGS()(rosenbrock, start)
    assert int(ours.iterations) <= 1.5 * theirs.nit
    assert int(ours.extra["evaluations"]) <= 1.5 * theirs.nfev
    assert np.max(np.abs(ours.value - 1.0)) <= 1e-9


def test_lbfgs_is_right_or_says_so(eager):
    @settings(max_examples=eager.examples)
    @given(
        n=st.integers(1, 12),
        condition=st.sampled_from([1.0, 1e2, 1e4]),
        power=st.sampled_from([-30, 0, 30]),
        seed=st.integers(0, 10**6),
        dtype=st.sampled_from(["float32", "float64"]),
    )
    def check(n, condition, power, seed, dtype):
        A = spectrum(np.geomspace(1 / condition, 1, n) * 10.0**power, seed)
        x = np.random.default_rng(seed).standard_normal(n)
        A, x, u0 = arrays(eager, dtype, A, x, np.zeros(n))
        sol = LBFGS()(quadratic, u0, A, x)
        u, A, x = (eager.to_numpy(v).astype("float64") for v in (sol.value, A, x))
        eps = np.finfo(dtype).eps
        if names(eager, sol.status) == ["CONVERGED"]:
            # the least curvature that the solver can have met is no more than the largest there is
            bound = (eps ** (2 / 3) + 4 * n * eps) * (1 + np.linalg.norm(u)) * np.linalg.norm(A, 2)
            assert np.linalg.norm(A @ (u - x)) <= bound
        else:
            assert condition * eps > 1e-4, "a well-conditioned quadratic is not solved"

    check()


@pytest.mark.parametrize("condition", [1e3, 1e5])
def test_lbfgs_on_an_ill_conditioned_quadratic(eager, condition):
    A, x = spectrum(np.geomspace(1 / condition, 1, 5), 0), np.arange(1.0, 6.0)
    sol = LBFGS()(quadratic, *arrays(eager, "float64", np.zeros(5), A, x))
    assert names(eager, sol.status) == ["CONVERGED"]
    # its tolerance is one on the error itself, which the curvature along the flattest direction turns a gradient into
    np.testing.assert_allclose(eager.to_numpy(sol.value), x, atol=10 * np.finfo(float).eps ** (2 / 3) * 8.4)


@pytest.mark.parametrize("unit", [1.0, 1e-200, 1e200])
def test_lbfgs_hands_over_what_it_learned_of_the_hessian(eager, unit):
    n = 5
    A = unit * spectrum(np.geomspace(1e-2, 1, n), 1)
    sol = LBFGS(memory=20)(quadratic, *arrays(eager, "float64", np.zeros(n), A, np.ones(n)))
    pairs = sol.extra["pairs"]
    s, y, rho = (eager.to_numpy(part) for part in pairs)
    assert s.shape == y.shape == (20, n)
    kept = rho > 0
    assert np.sum(kept) >= n
    rounding = 100 * np.finfo(float).eps * (1 + np.linalg.norm(np.ones(n)))
    np.testing.assert_allclose(y[kept] / unit, s[kept] @ (A / unit), atol=rounding)
    np.testing.assert_allclose(rho[kept] * np.sum((s * (y / unit))[kept], axis=-1), 1 / unit, rtol=1e-10)
    eye = np.eye(n)
    product = inverse_product(pairs, owner(sol.value).dense.triangular_solve)
    learned = np.stack([eager.to_numpy(product(eager.asarray(row))) for row in eye * unit])
    assert np.linalg.cond(learned @ A / unit) < 3 < np.linalg.cond(A)


@pytest.mark.parametrize("solver", MINIMISERS[1:], ids=name)
def test_a_batch_of_an_easy_a_hard_and_a_broken_problem(eager, solver):
    start = np.stack([np.full(4, 1.0 + 1e-6), 1.0 + 0.3 * np.cos(np.arange(4.0)), np.full(4, np.nan), np.ones(4)])
    sol = solver(rosenbrock, eager.asarray(start))
    assert names(eager, sol.status) == ["CONVERGED", "CONVERGED", "NON_FINITE", "CONVERGED"]
    steps = eager.to_numpy(sol.iterations)
    assert steps[1] > steps[0]
    assert steps[2] == steps[3] == 0
    for i in (0, 1, 3):
        alone = solver(rosenbrock, eager.asarray(start[i]))
        np.testing.assert_allclose(eager.to_numpy(sol.value)[i], eager.to_numpy(alone.value), rtol=1e-7)


@pytest.mark.parametrize("max_iter", range(1, 6))
def test_a_step_that_does_not_lower_the_score_is_not_taken(max_iter):
    """The curvature is 100: a step of the length of the gradient is 50 times too long."""
    start = np.asarray([1.0, -2.0])
    sol = GradientDescent(max_iter=max_iter)(lambda u: 50.0 * np.sum(u * u), start)
    assert np.sum(sol.value**2) <= np.sum(start**2)


def waves(u):
    return np.sum(np.exp(u) - 2.0 * u) + np.sum(np.exp(0.5 * (u[1:] - u[:-1])))


UNITS = [
    (lambda unit: GradientDescent(step=0.1 / unit, rtol=1e-12), np.zeros(4)),
    (lambda _: LBFGS(), np.zeros(4)),
    (lambda _: Newton(), np.asarray([1.0, 3.0, -2.0, 0.0])),
    (lambda _: Newton("truncated"), np.asarray([1.0, 3.0, -2.0, 0.0])),
]


@pytest.mark.parametrize(("solver", "start"), UNITS, ids=["GradientDescent", "LBFGS", "Newton", "truncated"])
@pytest.mark.parametrize("unit", [2.0**-60, 2.0**60])
def test_no_step_depends_on_the_unit_of_the_score(solver, start, unit):
    here, there = solver(1.0)(waves, start), solver(unit)(lambda u: unit * waves(u), start)
    assert Status(int(here.status)) is Status(int(there.status)) is Status.CONVERGED
    assert int(here.iterations) == int(there.iterations)
    np.testing.assert_allclose(here.value, there.value, rtol=1e-12)


@pytest.mark.parametrize("unit", [2.0**-60, 1.0, 2.0**60])
def test_the_gradient_judges_a_step_whose_change_of_the_score_is_lost(unit):
    """The terms of the score cancel at the minimum, and their rounding hides steps below 1e-6."""

    def score(u):
        return unit * ((np.sum(np.asarray([1.0, 3.0, 10.0]) * (u - 1.0) ** 2 + (u - 1.0) ** 4) + 1e4) - 1e4)

    sol = GradientDescent(step=0.05 / unit, max_iter=300)(score, np.asarray([0.0, 2.0, 1.5]))
    assert Status(int(sol.status)) is Status.CONVERGED
    np.testing.assert_allclose(sol.value, 1.0, rtol=1e-9)


def test_the_memory_is_cleared_once_where_no_step_lowers_the_score():
    """The score is not finite on the side to which its gradient leads."""
    sol = LBFGS(max_iter=20)(lambda u: np.sum(np.where(u < 1.0, np.nan, u)), np.ones(2))
    assert Status(int(sol.status)) is Status.STAGNATED
    assert int(sol.iterations) == 2


def test_a_start_of_negative_curvature_teaches_lbfgs_nothing():
    sol = LBFGS()(lambda u: 0.25 * np.sum((u**2 - 1.0) ** 2), np.asarray([0.1, -0.1]))
    assert Status(int(sol.status)) is Status.CONVERGED
    np.testing.assert_allclose(sol.value, [1.0, -1.0], rtol=1e-9)


@pytest.mark.parametrize("n", [2, 65])
def test_lbfgs_ends_at_its_tolerance(n):
    loose, tight = (LBFGS(rtol=rtol)(lambda u: np.sum(np.exp(u) - 2.0 * u), np.full(n, 4.0)) for rtol in (0.1, 1e-9))
    assert Status(int(loose.status)) is Status(int(tight.status)) is Status.CONVERGED
    assert int(loose.iterations) < int(tight.iterations)


def test_lbfgs_solves_problems_that_are_too_large_to_be_verified():
    score = lambda u: np.sum(np.exp(u) - 2.0 * u)  # noqa: E731
    start = np.linspace(0.0, 1.0, 65)
    found, short = LBFGS(rtol=1e-5)(score, start), LBFGS(max_iter=1)(score, start)
    assert Status(int(found.status)) is Status.CONVERGED
    np.testing.assert_allclose(found.value, np.log(2.0), rtol=1e-4)
    assert Status(int(short.status)) is Status.MAX_ITER


@pytest.mark.parametrize("unit", [2.0**-60, 1.0, 2.0**60])
def test_a_soft_direction_that_no_step_met_is_found_at_the_end(unit):
    """The one step removes the error along (1, 1). What is left, along (1, -1), has a curvature of 1e-12."""
    target, soft = np.asarray([1.0, -1.0]), 2.0**-40
    A = unit * np.asarray([[1.0, 1.0 - soft], [1.0 - soft, 1.0]])
    sol = GradientDescent(step=0.5 / unit)(quadratic, target + 1.0 + 0.01 * target, A, target)
    assert Status(int(sol.status)) is Status.NOT_STATIONARY
    assert int(sol.iterations) == 1


@pytest.mark.parametrize("n", [1, 100])
def test_copies_of_a_root_need_no_more_steps(n):
    """With a damping of 1/4 each step leaves a fifth of F, and of the way."""
    sol = Newton(damping=0.25, rtol=1e-3)(Equation(lambda u: u - 2.0, 0, "residual"), np.ones(n))
    assert Status(int(sol.status)) is Status.CONVERGED
    assert int(sol.iterations) == 5
    np.testing.assert_allclose(sol.value, 2.0 - 0.2**5, rtol=1e-12)


def test_a_step_that_only_damping_makes_short_ends_at_no_root():
    sol = Newton(damping=1e12)(Equation(lambda u: u - 2.0, 0, "residual"), np.ones(2))
    assert Status(int(sol.status)) is Status.MAX_ITER


def test_newtons_step_is_halved_where_it_is_too_long():
    """From 4, whole steps lead away from the minimum of log cosh(u - 1) and from the root of arctan(u - 1)."""
    minimum = Newton()(lambda u: np.sum(np.log(np.cosh(u - 1.0))), np.full(2, 4.0))
    root = Newton()(Equation(lambda u: np.arctan(u - 1.0), 0, "residual"), np.full(2, 4.0))
    for sol in (minimum, root):
        assert Status(int(sol.status)) is Status.CONVERGED
        np.testing.assert_allclose(sol.value, 1.0, rtol=1e-9)


@pytest.mark.parametrize("unit", [1.0, 1e-200, 1e200])
def test_steepest_descent_takes_the_place_of_a_step_that_leads_uphill(unit):
    """It is as long as lowers ||F - J d|| most, whatever the unit of J, whose entries have squares that underflow."""
    J, F = np.asarray([[2.0, 1.0], [0.5, 3.0]]), np.asarray([1.0, -2.0])
    operator = Operator(lambda p: unit * (J @ p), rmatvec=lambda p: unit * (J.T @ p))
    scalars = Scalars(EAGER.number, EAGER.numbers, single=False)
    found = towards_root(operator, F, -np.linalg.solve(J, F) / unit, EAGER, scalars)
    along = J.T @ F
    np.testing.assert_allclose(found.step * unit, along * (along @ along) / np.sum((J @ along) ** 2), rtol=1e-12)


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_a_truncated_step_is_as_exact_as_the_last_one_helped(unit):
    """0.9 (||F|| / ||F of the step before||)^1.618, and at most 1/2."""
    no, before = np.asarray([False]), np.asarray([unit])
    for ratio, expected in ((0.1, 0.9 * 0.1 ** ((1 + 5**0.5) / 2)), (0.9, 0.5), (10.0, 0.5)):
        found = forcing_of_score(ratio * before, before, no, np.finfo(float).eps)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("solver", [FixedPoint(), FixedPoint(damping=0.5), Anderson()], ids=name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_fixed_point_of_cos(eager, solver, dtype):
    sol = solver(cosine, *arrays(eager, dtype, 1.0))
    assert names(eager, sol.status) == ["CONVERGED"]
    # the residual shrinks by |sin| = 0.674 a step, so that the error is at most three times as large
    assert abs(float(sol.value) - COS) <= 3 * np.finfo(dtype).eps ** 0.75 * 2
    assert sol.value.dtype == getattr(array_namespace(sol.value), dtype)


@pytest.mark.parametrize("solver", [FixedPoint(max_iter=2000), Anderson()], ids=name)
def test_affine_contractions_are_right_or_say_so(eager, solver):
    @settings(max_examples=eager.examples)
    @given(
        n=st.integers(1, 8),
        radius=st.sampled_from([0.0, 0.5, 0.9]),
        power=st.sampled_from([-8, 0, 8]),
        seed=st.integers(0, 10**6),
        dtype=st.sampled_from(["float32", "float64"]),
    )
    def check(n, radius, power, seed, dtype):
        draw = np.random.default_rng(seed)
        A = spectrum(radius * draw.uniform(-1, 1, n), seed)
        A, b, u0 = arrays(eager, dtype, A, 10.0**power * draw.standard_normal(n), np.zeros(n))
        sol = solver(affine, u0, A, b)
        u, A, b = (eager.to_numpy(v).astype("float64") for v in (sol.value, A, b))
        assert names(eager, sol.status) == ["CONVERGED"]
        eps = np.finfo(dtype).eps
        bound = eps**0.75 * (1 + np.linalg.norm(u)) + 2 * n * eps * (np.linalg.norm(u) + np.linalg.norm(b))
        assert np.linalg.norm(A @ u + b - u) <= bound

    check()


def test_anderson_needs_far_fewer_steps_where_the_contraction_is_slow(eager):
    A, b = spectrum(np.linspace(-0.95, 0.95, 6), 0), np.ones(6)
    given = arrays(eager, "float64", np.zeros(6), A, b)
    plain, fast = FixedPoint()(affine, *given), Anderson()(affine, *given)
    assert names(eager, plain.status) == names(eager, fast.status) == ["CONVERGED"]
    np.testing.assert_allclose(eager.to_numpy(fast.value), np.linalg.solve(np.eye(6) - A, b), rtol=1e-9)
    assert 10 * int(fast.iterations) < int(plain.iterations)


@pytest.mark.parametrize("solver", [FixedPoint(), Anderson()], ids=name)
def test_fixed_points_of_a_batch(eager, solver):
    start = np.asarray([[1.0, 0.5], [np.nan, 1.0], [COS, COS], [100.0, -3.0]])
    sol = solver(batched(cosine), eager.asarray(start))
    assert names(eager, sol.status) == ["CONVERGED", "NON_FINITE", "CONVERGED", "CONVERGED"]
    assert np.ptp(eager.to_numpy(sol.iterations)) > 3
    np.testing.assert_allclose(eager.to_numpy(sol.value)[[0, 2, 3]], COS, atol=2e-11)


def test_steps_that_do_not_converge(eager):
    def grows(u):
        return u * u

    def cycles(u):
        return 1.0 - u

    def doubles(u):
        return 2.0 * u + 1.0

    def breaks(u):
        return array_namespace(u).sqrt(u - 2.0)

    cases = ((grows, 2.0, "DIVERGED"), (doubles, 0.0, "DIVERGED"), (breaks, 3.0, "NON_FINITE"))
    for fun, u0, status in (*cases, (cycles, 0.2, "MAX_ITER")):
        sol = FixedPoint(max_iter=80)(fun, eager.asarray(u0))
        assert names(eager, sol.status) == [status]
        assert np.isfinite(float(sol.value))


@pytest.mark.parametrize(("slope", "start"), [("exp", -5.0), ("tanh", 3.0)])
def test_anderson_goes_back_from_where_a_secant_shoots(eager, slope, start):
    """Where the residual is nearly flat the secant shoots far off: to where it explodes, or to where it stays flat."""

    def step(u):
        xp = array_namespace(u)
        return u - (0.1 * (xp.exp(u) - 1.0) if slope == "exp" else 0.5 * xp.tanh(u))

    sol = Anderson(max_iter=200)(step, eager.asarray(start))
    assert abs(float(sol.value)) < 10
    if names(eager, sol.status) == ["CONVERGED"]:
        assert abs(float(sol.value)) < 1e-10


def test_random_shooting(eager):
    def far(u):
        xp = array_namespace(u)
        return xp.sum(xp.abs(u - 3.0), axis=-1)

    start = np.asarray([[0.0, 0.0], [np.nan, 0.0], [3.0, 3.0]])
    solver = RandomShooting(samples=16, iterations=60)
    sol = solver(far, eager.asarray(start))
    assert names(eager, sol.status) == ["CONVERGED", "NON_FINITE", "CONVERGED"]
    np.testing.assert_allclose(eager.to_numpy(sol.value)[[0, 2]], 3.0, atol=1e-4)
    again = solver(far, eager.asarray(start[0]))
    assert np.all(eager.to_numpy(again.value) == eager.to_numpy(sol.value)[0])
    other = RandomShooting(samples=16, iterations=60, seed=1)(far, eager.asarray(start[0]))
    assert np.any(eager.to_numpy(other.value) != eager.to_numpy(again.value))


def test_random_shooting_claims_nothing_before_its_spread_is_small(eager):
    sol = RandomShooting(iterations=3)(rosenbrock, eager.asarray([0.0, 0.0]))
    assert names(eager, sol.status) == ["MAX_ITER"]


def test_random_shooting_enters_a_domain_from_outside():
    def score(u):
        return np.sum(np.where(u > 0, u - np.log(np.where(u > 0, u, 1.0)), np.nan))

    sol = RandomShooting()(score, np.asarray([-0.5, 0.5]))
    np.testing.assert_allclose(sol.value, 1.0, atol=1e-3)


def cubic(u, t):
    return u**3 + u - t


@pytest.mark.parametrize("method", ["hybr", "lm", "df-sane"])
def test_roots_by_scipy(eager, method):
    pytest.importorskip("scipy", reason="SciPy is not installed")
    sol = SciPyRoot(method)(cubic, *arrays(eager, "float64", np.ones((2, 2)), [[2.0, 10.0], [30.0, 0.0]]))
    assert names(eager, sol.status) == ["CONVERGED"]
    np.testing.assert_allclose(eager.to_numpy(sol.value), [[1.0, 2.0], [3.0, 0.0]], atol=1e-6)


def test_scipys_jacobian_has_a_block_for_each_problem(eager):
    pytest.importorskip("scipy", reason="SciPy is not installed")
    t = np.asarray([[2.0, 10.0], [30.0, 1.0], [0.0, 0.0]])
    A = np.asarray([[2.0, 1.0], [-1.0, 1.0]])

    def coupled(u, A, t):
        return product(A, u) + 0.1 * u**3 - t

    sol = SciPyRoot()(batched(coupled, "residual"), *arrays(eager, "float64", 0.0 * t, A, t))
    u = eager.to_numpy(sol.value)
    np.testing.assert_allclose(u @ A.T + 0.1 * u**3, t, atol=1e-6)
    assert names(eager, sol.status) == ["CONVERGED"] * 3


WITHOUT_A_ROOT = {
    "above zero": (lambda u, t: u**2 + t, 1.0),
    "one equation of two": (
        lambda u, t: array_namespace(u).stack([u[0] ** 2 + t[0], u[1] - t[1]]),
        1.0,
    ),
    "a minimum away from zero": (lambda u, t: array_namespace(u).cosh(u - t) - 0.5, 1.0),
    "equations that contradict each other": (
        lambda u, t: array_namespace(u).stack([u[0] ** 2 + u[1] ** 2 - t[0], u[0] ** 2 + u[1] ** 2 - 4.0 * t[1]]),
        1.0,
    ),
    "tiny units of u": (lambda u, t: u**2 + 1e-20 * t, 1e-10),
    "huge units of F": (lambda u, t: 1e12 * (u**2 + t), 1.0),
}


@pytest.mark.parametrize("solver", [Newton(), SciPyRoot(), SciPyRoot("lm"), SciPyRoot("df-sane")], ids=str)
@pytest.mark.parametrize("kind", WITHOUT_A_ROOT)
def test_an_equation_without_a_root_is_told_as_such(kind, solver):
    pytest.importorskip("scipy", reason="SciPy is not installed")
    fn, unit = WITHOUT_A_ROOT[kind]
    sol = dil.root(fn, solver).solve(np.ones(2), init=unit * np.asarray([0.9, 0.7]))
    gives_up = kind.startswith("equations") and solver == SciPyRoot("df-sane")  # far from the least residual
    assert Status(int(sol.status)) is (Status.FAILED if gives_up else Status.NO_ROOT)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("solver", [Newton(), SciPyRoot(), SciPyRoot("lm"), SciPyRoot("krylov")], ids=str)
def test_a_root_is_found_in_every_unit(solver, unit):
    pytest.importorskip("scipy", reason="SciPy is not installed")
    sol = dil.root(lambda u, t: u**2 - t, solver).solve(np.full(2, unit**2), init=unit * np.asarray([0.9, 1.7]))
    if solver == SciPyRoot("krylov") and unit < 1:
        assert Status(int(sol.status)) is Status.MAX_ITER  # its steps are absolute, and so it goes nowhere
        return
    assert Status(int(sol.status)) is Status.CONVERGED
    np.testing.assert_allclose(sol.value, unit, rtol=1e-4)


@pytest.mark.parametrize("method", ["hybr", "lm", "krylov", "broyden1"])
@pytest.mark.parametrize("unit", [1e3, 1e6, 1e8])
def test_scipy_calls_no_point_a_root_where_an_equation_of_small_units_is_open(method, unit):
    pytest.importorskip("scipy", reason="SciPy is not installed")

    def rosenbrock(u, t):
        return np.stack([unit * (u[1] - u[0] ** 2), (t[0] - u[0]) / unit])

    sol = dil.root(rosenbrock, SciPyRoot(method)).solve(np.ones(1), init=np.asarray([-1.2, 1.0]))
    assert Status(int(sol.status)) is not Status.CONVERGED or np.allclose(sol.value, 1.0, rtol=1e-3)


def test_the_message_of_scipy_is_in_ours():
    pytest.importorskip("scipy", reason="SciPy is not installed")
    layer = dil.root(lambda u, t: u**2 + t, SciPyRoot(), init=lambda t: 0.0 * t + 0.3)
    said = layer.solve(np.asarray(1.0)).extra["message"]
    with pytest.warns(dil.ConvergenceWarning, match="NO_ROOT") as caught:
        layer(np.asarray(1.0))
    assert f"(the solver's own message: {said})" in str(caught[0].message)


def test_a_scipy_method_that_gives_up_with_an_error_has_failed():
    pytest.importorskip("scipy", reason="SciPy is not installed")
    sol = SciPyRoot("krylov")(lambda u: u**2 + 1e-20, np.full(1, 1e-10))
    assert Status(int(sol.status)) in (Status.NO_ROOT, Status.FAILED, Status.MAX_ITER)
    assert sol.extra["message"]


@pytest.mark.parametrize("method", ["hybr", "lm", "krylov", "df-sane"])
def test_scipys_root_of_a_nan(method):
    pytest.importorskip("scipy", reason="SciPy is not installed")
    sol = SciPyRoot(
        method, options={} if method in ("hybr", "lm") else {"maxfev" if method == "df-sane" else "maxiter": 9}
    )(lambda u: u * np.nan, np.ones(2))
    assert Status(int(sol.status)) is Status.NON_FINITE


def test_an_error_of_the_residual_passes_through_scipy():
    pytest.importorskip("scipy", reason="SciPy is not installed")

    def residual(u):
        message = "the user's own"
        raise ValueError(message)

    with pytest.raises(ValueError, match="the user's own"):
        SciPyRoot("krylov")(residual, np.ones(2))


def test_a_step_of_the_wrong_shape():
    with pytest.raises(dil.ShapeError, match=r"'half' returned \(2,\) of float64; expected \(3,\)"):
        FixedPoint()(half, np.ones(3))


def half(u):
    return 0.5 * u[:2]


def test_a_fixed_point_of_a_tree(eager):
    sol = Anderson()(
        lambda u: {"a": cosine(u["b"]), "b": cosine(u["a"])}, {"a": eager.asarray(1.0), "b": eager.asarray(0.0)}
    )
    assert abs(float(sol.value["a"]) - COS) < 1e-11
    assert abs(float(sol.value["b"]) - COS) < 1e-11


def test_no_graph_grows_through_a_parameter_that_is_held():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    held = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    for solver in (FixedPoint(), Anderson()):
        sol = solver(lambda u: torch.cos(held * u), torch.ones(2, dtype=torch.float64))
        assert not sol.value.requires_grad


WATCHED = [
    (GradientDescent(max_iter=40, history=True), rosenbrock),
    (LBFGS(max_iter=40, history=True), rosenbrock),
    (Newton(max_iter=40, history=True), rosenbrock),
    (RandomShooting(iterations=40, samples=4, history=True), rosenbrock),
    (FixedPoint(max_iter=40, history=True), batched(cosine)),
    (Anderson(max_iter=40, history=True), batched(cosine)),
]


@pytest.mark.parametrize(("solver", "fun"), WATCHED, ids=lambda x: type(x).__name__)
def test_history(eager, solver, fun):
    start = np.asarray([[1.0, 1.1], [np.nan, 1.0], [0.8, 0.9]])
    sol = solver(fun, eager.asarray(start))
    history, steps = eager.to_numpy(sol.extra["history"]), eager.to_numpy(sol.iterations)
    assert history.shape == (40, 3)
    for i in (0, 2):
        assert np.all(np.isfinite(history[: steps[i], i]))
        assert np.all(np.isnan(history[steps[i] :, i]))
        assert history[steps[i] - 1, i] == eager.to_numpy(sol.residual)[i]
    plain = type(solver)(**{**vars(solver), "history": False})(fun, eager.asarray(start))
    np.testing.assert_array_equal(eager.to_numpy(plain.value), eager.to_numpy(sol.value))
    assert "history" not in (plain.extra or {})


def test_history_falls_where_it_must(eager):
    A = spectrum(np.linspace(-0.8, 0.8, 4), 0)
    fixed = FixedPoint(history=True)(affine, *arrays(eager, "float64", np.zeros(4), A, np.ones(4)))
    history = eager.to_numpy(fixed.extra["history"])[: int(fixed.iterations)]
    assert np.all(history[1:] <= 0.8 * history[:-1] * (1 + 1e-3))  # a symmetric step contracts every residual
    newton = Newton("truncated", history=True)(
        quadratic, *arrays(eager, "float64", np.zeros(4), A @ A + np.eye(4), np.ones(4))
    )
    history = eager.to_numpy(newton.extra["history"])[: int(newton.iterations)]
    assert np.all(history[1:] <= 0.5 * history[:-1])  # no forcing is above a half, and full steps suit a quadratic


def test_truncated_newton_converges_superlinearly(eager):
    sol = Newton("truncated", history=True)(rosenbrock, eager.asarray(1.0 + 0.2 * np.cos(np.arange(10.0))))
    history = eager.to_numpy(sol.extra["history"])[: int(sol.iterations)]
    ratios = history[1:] / history[:-1]
    assert ratios[-1] < 1e-3
    assert ratios[-2] < 0.1


@pytest.mark.parametrize("solver", [FixedPoint(progress=True), Anderson(progress=True)], ids=name)
def test_progress(eager, solver, capfd, monkeypatch):
    solver(cosine, eager.asarray(1.0))
    assert capfd.readouterr().err == ""  # a run this short has no bar
    monkeypatch.setattr(_progress, "DELAY", 0.0)
    sol = solver(cosine, eager.asarray(1.0))
    shown = capfd.readouterr().err
    assert type(solver).__name__ in shown
    assert f"{int(sol.iterations)}/1000" in shown
    assert "residual" in shown


def test_progress_ends_with_an_exception(capfd, monkeypatch):
    bars = []

    class Watched(_progress.Bar):
        def __init__(self, *args):
            super().__init__(*args)
            bars.append(self)

    monkeypatch.setattr(_progress, "DELAY", 0.0)
    monkeypatch.setattr(_progress, "Bar", Watched)
    calls = []

    def step(u):
        calls.append(u)
        if len(calls) == 5:
            message = "enough"
            raise RuntimeError(message)
        return np.cos(u)

    with pytest.raises(RuntimeError, match="enough"):
        FixedPoint(progress=True)(step, np.asarray(1.0))
    assert "FixedPoint" in capfd.readouterr().err
    assert [bar._shown for bar in bars] == [None]


def test_progress_needs_rich(monkeypatch):
    for module in ("rich", "rich.progress"):
        monkeypatch.setitem(sys.modules, module, None)
    for solver in (GradientDescent, LBFGS, Newton, FixedPoint, Anderson, RandomShooting):
        solver()
        with pytest.raises(dil.OptionError, match="pip install rich"):
            solver(progress=True)


def test_rich_is_imported_only_for_a_bar():
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'backends')!r}]\n"
        "import numpy as np, dil\n"
        "dil.solvers.FixedPoint(history=True)(np.cos, np.ones(2))\n"
        "print('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (LBFGS, {"memory": 0}, "memory=0; expected an integer > 0"),
        (LBFGS, {"memory": 2.5}, "memory=2.5; expected an integer > 0"),
        (LBFGS, {"rtol": -1.0}, "rtol=-1.0"),
        (FixedPoint, {"damping": 1.5}, r"damping=1.5; expected a number in \(0, 1\]"),
        (FixedPoint, {"history": 1}, "history=1; expected True or False"),
        (Anderson, {"mixing": 0.0}, "mixing=0.0"),
        (Anderson, {"regularisation": -1.0}, "regularisation=-1.0"),
        (Anderson, {"max_iter": True}, "max_iter=True; expected an integer > 0"),
        (RandomShooting, {"samples": 0}, "samples=0"),
        (RandomShooting, {"seed": -1}, "seed=-1; expected an integer >= 0"),
        (SciPyRoot, {"method": None}, "scipy.optimize.root"),
        (SciPyRoot, {"tol": 0.0}, "tol=0.0"),
        (Newton, {"equations": "exact"}, "expected one of hessian, normal, truncated"),
    ],
)
def test_options_out_of_range(make, options, text):
    with pytest.raises(dil.OptionError, match=text):
        make(**options)


@pytest.mark.parametrize("make", [LBFGS, FixedPoint, Anderson, RandomShooting, SciPyRoot])
def test_a_start_is_needed(make):
    with pytest.raises(dil.OptionError, match=f"{make.__name__} needs a start"):
        make()(cosine, None)


@pytest.mark.parametrize("solver", [*MINIMISERS, FixedPoint(), Anderson(), RandomShooting(), SciPyRoot()], ids=name)
def test_nothing_to_solve_for(eager, solver):
    root = isinstance(solver, FixedPoint | Anderson | SciPyRoot)
    sol = solver(cosine if root else rosenbrock_of_none, eager.asarray(np.zeros(0)))
    assert sol.value.shape == (0,)
    assert names(eager, sol.status) == ["CONVERGED"]


def rosenbrock_of_none(u):
    return array_namespace(u).sum(u * u, axis=-1)


JITTED = [
    (LBFGS(memory=3, max_iter=60, history=True), rosenbrock),
    (Newton("truncated", history=True), rosenbrock),
    (GradientDescent(max_iter=60, history=True), rosenbrock),
    (RandomShooting(samples=4, iterations=40), rosenbrock),
    (FixedPoint(history=True), batched(cosine)),
    (Anderson(history=True), batched(cosine)),
    (SciPyRoot(), batched(lambda u: cosine(u) - u, "residual")),
]


@pytest.mark.parametrize(("solver", "fun"), JITTED, ids=lambda x: type(x).__name__)
def test_under_jit(solver, fun):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    start = np.asarray([[1.0, 1.1], [np.nan, 1.0], [0.8, 0.9]])
    start = start[[0, 2]] if isinstance(solver, SciPyRoot) else start
    here = solver(fun, start)
    there = jax.jit(lambda u: solver(fun, u))(jax.numpy.asarray(start))
    np.testing.assert_array_equal(there.status, here.status)
    np.testing.assert_allclose(there.value, here.value, rtol=1e-6)
    if isinstance(solver, LBFGS):
        assert there.extra["pairs"].s.shape == (3, 3, 2)
    if "history" in (here.extra or {}):
        np.testing.assert_allclose(there.extra["history"][:4], here.extra["history"][:4], rtol=1e-4)


def test_progress_under_jit(capfd, monkeypatch):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    monkeypatch.setattr(_progress, "DELAY", 0.0)
    run = jax.jit(lambda u: FixedPoint(progress=True)(cosine, u).iterations)
    steps = int(run(jax.numpy.asarray(1.0)))
    jax.effects_barrier()
    assert f"{steps}/1000" in capfd.readouterr().err
    run(jax.numpy.asarray(0.5))  # compiled already; the next run has a bar of its own
    jax.effects_barrier()
    assert "FixedPoint" in capfd.readouterr().err


def test_scipy_on_a_batch_takes_a_hessian_of_blocks(eager):
    pytest.importorskip("scipy", reason="SciPy is not installed")
    start = eager.asarray(1.0 + 0.2 * np.cos(np.arange(6.0)).reshape(2, 3))
    sol = SciPy("trust-exact", tol=1e-9)(rosenbrock, start)
    np.testing.assert_allclose(eager.to_numpy(sol.value), np.ones((2, 3)), rtol=1e-6)


def rosenbrocks(u):
    xp = array_namespace(u)
    head, tail = u[..., :-1], u[..., 1:]
    return xp.sum(100.0 * (tail - head**2) ** 2 + (1.0 - head) ** 2, axis=-1)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_one_problem_is_solved_as_a_batch_of_one(plain, scale):
    """The scalars of a single problem may be Python numbers; those of a batch are arrays."""

    def score(u):
        return scale * rosenbrocks(u / scale)

    start = scale * np.asarray([-1.2, 1.0, 0.7, -0.4])
    single = LBFGS()(score, plain.asarray(start))
    batch = LBFGS()(score, plain.asarray(start[None, :]))
    assert names(plain, single.status) == names(plain, batch.status) == ["CONVERGED"]
    assert abs(int(single.extra["evaluations"]) - int(batch.extra["evaluations"][0])) <= 2
    np.testing.assert_allclose(plain.to_numpy(single.value), plain.to_numpy(batch.value)[0], rtol=1e-8)
    assert single.residual.shape == single.iterations.shape == ()


def test_the_longest_short_step(plain):
    u, start = plain.asarray([1.0, -2.0, 0.0]), plain.asarray([1.0, 5.0, 3.0])
    for direction in ([1.0, 1.0, 1.0], [0.0, -3.0, 1e-9], [0.0, 0.0, 0.0]):
        d = plain.asarray(direction)
        most = float(longest_short(d, u, start, 1e-3))
        if most == np.inf:
            assert bool(is_short(1e300 * d, u, start, 1e-3)[0])
        else:
            assert bool(is_short(0.999 * most * d, u, start, 1e-3)[0])
            assert not bool(is_short(1.001 * most * d, u, start, 1e-3)[0])


def test_quotients_and_signs_of_python_numbers_are_those_of_arrays():
    numbers = [0.0, -0.0, 1.5, -2.0, float("inf"), float("nan")]
    with np.errstate(all="ignore"):
        for a in numbers:
            np.testing.assert_equal(sign(a), np.sign(a))
            for b in numbers:
                np.testing.assert_equal(divided(a, b), np.asarray(a) / np.asarray(b))


@pytest.mark.parametrize("unit", [1e-150, 1e-15, 1.0, 1e15, 1e150])
@pytest.mark.parametrize("shape", [(2,), (1, 2)])
def test_lbfgs_starts_from_zero_in_any_unit(plain, unit, shape):
    """The way along which the score falls to zero is the scale of the first step, where the start has none."""
    if plain.backend == "jax" and (unit, shape) not in ((1e-150, (2,)), (1e150, (1, 2))):
        pytest.skip("JAX compiles each case; the ends are kept")

    def score(u):
        return array_namespace(u).sum(array_namespace(u).cosh(u / unit - 2.0), axis=-1)

    sol = LBFGS()(score, plain.asarray(np.zeros(shape)))
    assert names(plain, sol.status) == ["CONVERGED"]
    np.testing.assert_allclose(plain.to_numpy(sol.value), 2.0 * unit, rtol=1e-7)
