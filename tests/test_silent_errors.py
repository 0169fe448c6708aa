"""Where the theorem does not hold, or the derivative is not that of the score: each is told by a status of its own."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.solvers import LBFGS, Anderson, GradientDescent, Newton, SciPy, SciPyRoot

X = np.asarray([1.0, -0.5, 2.0])
MINIMISERS = [GradientDescent(max_iter=200), LBFGS(), Newton(), SciPy()]


def zeros(x):
    return 0.0 * x


def named(solver):
    return type(solver).__name__


# --- the score and its unknown ---


def cut(u, x):
    return array_namespace(x).sum((dil.constant(u) - x) ** 2) + 0.0 * array_namespace(u).sum(u)


def without_the_unknown(u, x):
    return array_namespace(x).sum(x**2) + 0.0 * array_namespace(u).sum(u)


@pytest.mark.parametrize("solver", MINIMISERS, ids=named)
@pytest.mark.parametrize("score", [cut, without_the_unknown], ids=lambda f: f.__name__)
def test_a_score_that_was_cut_from_its_unknown(plain, solver, score):
    found = dil.argmin(score, solver, init=zeros).solve(plain.asarray(X))
    assert Status(int(plain.to_numpy(found.status))) is Status.NO_DERIVATIVE


def linear(u, x):
    return array_namespace(u).sum(u * x)


def wavy(u, x):
    xp = array_namespace(u)
    return xp.sum(u * x**2 + 0.1 * xp.sin(u))


@pytest.mark.parametrize("score", [linear, wavy], ids=lambda f: f.__name__)
@pytest.mark.parametrize("solver", MINIMISERS[:3], ids=named)
def test_a_score_without_a_lower_bound(plain, solver, score):
    found = dil.argmin(score, solver, init=lambda x: 0.0 * x + 0.1).solve(plain.asarray(X))
    assert Status(int(plain.to_numpy(found.status))) is Status.DIVERGED


@pytest.mark.parametrize("start", [-3.0, 3.0])
@pytest.mark.parametrize("step", [0.2, 0.6])
def test_a_search_that_was_cut_short_is_no_score_without_a_lower_bound(start, step):
    """u went from 3 to 2.4, or to 1.2. It counts how far it went, not where it is."""
    found = GradientDescent(max_iter=1, step=step)(lambda u: 0.5 * np.sum(u**2), np.asarray([start]))
    np.testing.assert_allclose(found.value, (1 - step) * start)
    assert Status(int(found.status)) is Status.MAX_ITER


def test_a_score_that_rose_on_the_way_is_not_called_unbounded():
    """The slope at 2 pi is that of the start, but the mean slope is an eighth of it."""
    slope = 1.0 + 1.0 / (2 * np.pi)
    found = GradientDescent(max_iter=1, step=2 * np.pi / slope)(
        lambda u: np.sum(-np.sin(u) - u / (2 * np.pi)), np.zeros(1)
    )
    np.testing.assert_allclose(found.value, 2 * np.pi)
    assert Status(int(found.status)) is Status.MAX_ITER


@pytest.mark.parametrize(("n", "at"), [(100_000, 0.0), (1, 1.0), (1, 1e10)])
def test_a_cut_score_is_seen_from_points_that_are_near(n, at):
    """The curvature of the score does not hide its slope, however many unknowns there are."""

    def score(u):
        return np.sum(np.exp(dil.constant(u) / max(at, 1.0))) + 0.0 * np.sum(u)

    found = Newton()(score, np.full(n, at))
    assert Status(int(found.status)) is Status.NO_DERIVATIVE


@pytest.mark.parametrize("solver", MINIMISERS, ids=named)
def test_a_start_at_the_minimum_is_no_cut_score(plain, solver):
    layer = dil.argmin(lambda u, x: array_namespace(u).sum((u - x) ** 2), solver, init=lambda x: 1.0 * x)
    found = layer.solve(plain.asarray(X))
    assert Status(int(plain.to_numpy(found.status))) is Status.CONVERGED


@pytest.mark.parametrize("size", [1.0, 1e10])
def test_the_rounding_of_a_minimum_is_no_slope(size):
    """u / t - 1 is rounded as u is, by more than the score itself: at the minimum it is zero."""
    for t in size * np.random.default_rng(0).standard_normal((20, 2)):
        found = Newton()(lambda u, t=t: np.sum((u / t - 1.0) ** 2), t)
        assert Status(int(found.status)) is Status.CONVERGED


HIDDEN = {
    "a large constant": lambda u, t: 1e-6 * np.sum(u**2) + 14.0 * np.sum(t**2),
    "a huge unit": lambda u, t: np.sum((u / 1e12) ** 2) + 14.0 * np.sum(t**2),
    "an exponential of a huge unit": lambda u, t: np.sum(np.exp(u / 1e12) - u / 1e12) + 0.0 * np.sum(t),
}


@pytest.mark.parametrize("solver", MINIMISERS, ids=named)
@pytest.mark.parametrize("score", HIDDEN)
def test_a_score_that_hides_its_change_is_not_called_cut(score, solver):
    found = dil.argmin(HIDDEN[score], solver, init=zeros).solve(np.ones(2))
    assert Status(int(found.status)) is Status.CONVERGED


def test_an_answer_that_the_score_cannot_take_is_the_solvers(plain):
    layer = dil.argmin(lambda u, x: array_namespace(u).sum((u - x) ** 2), lambda f, init, x: x[:2])
    with pytest.raises(dil.ShapeError, match=r"the result of the solver '<lambda>', which is \(2,\)"):
        layer(plain.asarray(X))


# --- kinks and random numbers ---


def lasso(u, t):
    xp = array_namespace(u)
    return 0.5 * xp.sum((u - t) ** 2) + xp.sum(xp.abs(u))


def soft_threshold(f, init, t):
    xp = array_namespace(t)
    return xp.sign(t) * xp.maximum(xp.abs(t) - 1.0, 0.0 * t)


@pytest.mark.parametrize(("t", "status"), [((2.0, 0.0), "KINK"), ((2.0, -3.0), "CONVERGED")])
def test_a_report_finds_a_kink(plain, t, status):
    report = dil.argmin(lasso, soft_threshold).report(plain.asarray(t))
    assert Status(int(report.backward.status)).name == status
    assert np.isinf(float(report.backward.bound)) == (status == "KINK")


@dataclass
class Lasso:
    """A score without a hash."""

    weight: float

    def __call__(self, u, t):
        return 0.5 * np.sum((u - t) ** 2) + self.weight * np.sum(np.abs(u))


@pytest.mark.parametrize("score", [lasso, Lasso(1.0)], ids=["function", "object"])
def test_the_first_backward_pass_finds_a_kink(score):
    layer = dil.argmin(score, soft_threshold)
    for _ in range(2):  # a kink is told each time
        with pytest.warns(dil.ConvergenceWarning, match="KINK"):
            dil.vjp(layer, np.asarray([2.0, 0.0]))[1](np.ones(2))


@pytest.mark.parametrize("check", ["always", "never", "first"])
def test_when_a_layer_looks_for_kinks(plain, check):
    if plain.backend == "jax" and check != "always":
        pytest.skip("JAX's derivative of |u| at zero is not zero, so the point is no stationary one")
    layer = dil.argmin(lambda u, t: lasso(u, t), soft_threshold, check_smoothness=check, on_failure="raise")
    smooth, kink = plain.asarray([2.0, -3.0]), plain.asarray([2.0, 0.0])
    ones = plain.asarray(np.ones(2))
    dil.vjp(layer, smooth)[1](ones)
    if check == "always":
        with pytest.raises(dil.ConvergenceError, match="KINK"):
            dil.vjp(layer, kink)[1](ones)
    else:
        dil.vjp(layer, kink)[1](ones)


def test_a_kink_whose_derivative_is_the_mean_of_its_sides(eager):
    """F falls off the line through its slope on both sides by the same."""
    layer = dil.root(
        lambda u, t: abs(u - t) + 2.0 * (u - t), lambda f, i, t: 1.0 * t, check_smoothness="always", on_failure="raise"
    )
    with pytest.raises(dil.ConvergenceError, match="KINK"):
        eager.gradients(layer, (np.asarray([1.0, -2.0]),), np.ones(2))


CUT = {
    "fixed point": dil.fixed_point(
        lambda u, t: 0.5 * array_namespace(u).tanh(dil.constant(u)) + t, dil.solvers.Anderson(), init=lambda t: 0 * t
    ),
    "root": dil.root(lambda u, t: u + dil.constant(u) ** 3 - t, lambda f, i, t: cubic_root(t)),
    "a part of a score": dil.argmin(
        lambda u, t: array_namespace(u).sum((u - t) ** 2 + dil.constant(u) * u), lambda f, i, t: 2 / 3 * t
    ),
}


def cubic_root(t):
    """The root of u + u^3 = t."""
    xp = array_namespace(t)
    s = xp.asinh(1.5 * 3**0.5 * t) / 3
    return 2 / 3**0.5 * xp.sinh(s)


@pytest.mark.parametrize("layer", CUT.values(), ids=CUT)
@pytest.mark.parametrize("t", [[1.0, 2.0], [-0.3, 0.7]])
def test_a_derivative_that_is_cut_in_part_is_told(eager, layer, t):
    check = "always" if "strict" in eager.name else "first"  # strict arrays stand for those that cannot be read
    layer = replace(layer, check_smoothness=check, policy=replace(layer.policy, on_failure="raise"))
    with pytest.raises(dil.ConvergenceError, match="WRONG_DERIVATIVE"):
        eager.gradients(layer, (np.asarray(t),), np.ones(2))
    report = layer.report(eager.asarray(t))
    assert Status(int(report.backward.status)) is Status.WRONG_DERIVATIVE


def test_a_cut_derivative_that_is_meant_is_not_told():
    layer = replace(CUT["fixed point"], check_smoothness="never")
    np.testing.assert_allclose(dil.vjp(layer, np.ones(2))[1](np.ones(2))[0], [1.0, 1.0])


def test_an_unknown_value_of_check_smoothness():
    with pytest.raises(dil.OptionError, match="check_smoothness='often' is unknown; expected one of first, always, ne"):
        dil.argmin(lasso, soft_threshold, check_smoothness="often")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_of_relus_has_no_false_kink(dtype):
    """Among many units some are near their kink, where the derivative of one side is right."""
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    W, b = (torch.asarray(x.astype(dtype)) for x in (draw.standard_normal((300, 300)) / 40, draw.standard_normal(300)))
    layer = dil.fixed_point(lambda u, b: torch.relu(W @ u + b), Anderson(), init=torch.zeros_like)
    assert Status(int(layer.report(b).backward.status)) is Status.CONVERGED


def test_a_report_finds_random_numbers(plain):
    if plain.backend == "jax":
        pytest.skip("a function that JAX traces draws its numbers once")
    draw = np.random.default_rng(0)

    def score(u, t):
        return float(1.0 + draw.uniform()) * array_namespace(u).sum((u - t) ** 2)

    report = dil.argmin(score, lambda f, init, t: t * (1 + 1e-9)).report(plain.asarray(X))
    assert Status(int(report.backward.status)) is Status.RANDOM


def test_the_fixed_point_of_the_proximal_step_has_the_right_gradient(plain):
    """As the sentence of KINK says."""

    def step(u, t):
        xp = array_namespace(u)
        v = u - 0.5 * (u - t)
        return xp.sign(v) * xp.maximum(xp.abs(v) - 0.5, 0.0 * v)

    layer = dil.fixed_point(step, Anderson(), init=lambda t: 0.0 * t + 0.3)
    y, (g,) = plain.gradients(layer, (np.asarray([2.0, 0.0]),), np.ones(2))
    np.testing.assert_allclose(y, [1.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(g, [1.0, 0.0], atol=1e-9)


# --- 16 bits ---

HALVES = [("torch", "bfloat16"), ("torch", "float16"), ("jax", "bfloat16"), ("jax", "float16")]
KINDS = {
    "argmin": (lambda u, t: array_namespace(u).sum(0.5 * (u - t) ** 2 + 0.1 * u**4), MINIMISERS),
    "root": (lambda u, t: u + 0.4 * u**3 - t, [Newton(), SciPyRoot()]),
    "fixed_point": (lambda u, t: t - 0.4 * array_namespace(u).tanh(u), [dil.solvers.FixedPoint(), Anderson()]),
}


@pytest.mark.parametrize(("backend", "dtype"), HALVES, ids=lambda x: x)
@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_bits(kind, backend, dtype):
    pytest.importorskip(backend)
    fn, solvers = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right, pull = dil.vjp(getattr(dil, kind)(fn, solvers[0], init=zeros), X)
        (right_g,) = pull(np.ones(3))
        handle = dil.backend(backend, dtype=dtype)
        for solver in solvers if backend == "torch" else solvers[-1:]:
            layer = getattr(dil, kind)(fn, solver, init=zeros)
            y, pull = dil.vjp(layer, handle.asarray(X))
            (g,) = pull(0.0 * y + 1.0)
            np.testing.assert_allclose(handle.to_numpy(y).astype(float), right, rtol=0.03)
            np.testing.assert_allclose(handle.to_numpy(g).astype(float), right_g, rtol=0.05)


# --- JAX ---


def test_calls_on_jax_raise_the_exception_of_dil():
    jax = pytest.importorskip("jax")
    score = lambda u, t: jax.numpy.sum((u - t) ** 2 + u**4)  # noqa: E731
    rough = dil.argmin(score, lambda f, init, t: 0.7 * t, on_failure="raise")
    short = dil.argmin(score, GradientDescent(max_iter=2), init=zeros, on_failure="raise")
    x = jax.numpy.ones(3)
    with pytest.raises(dil.ConvergenceError, match="backward solve: NOT_STATIONARY"):
        dil.grad(lambda t: jax.numpy.sum(rough(t)))(x)
    with pytest.raises(dil.ConvergenceError, match="forward solve: MAX_ITER"):
        short(x)
    compiled = jax.jit(lambda t: jax.numpy.sum(rough(t)))
    for _ in range(2):  # the second call runs a program that was traced in the first
        with pytest.raises(dil.ConvergenceError, match="NOT_STATIONARY"):
            dil.grad(compiled)(x)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_rounding_in_another_order_is_no_random_number(unit):
    """F is zero up to the rounding of its terms, and the sum goes forwards and backwards in turn."""
    turn = iter(range(10**6))

    def total(u, terms):
        found = 0.0
        for k in terms:
            found = found + unit * k * np.sin(0.1 * k * u)
        return found

    def residual(u, t):
        order = 1 if next(turn) % 2 else -1
        return total(u, (1.0, 3.0, -7.0, 0.2, 1.3)[::order]) - total(t, (1.0, 3.0, -7.0, 0.2, 1.3))

    report = dil.root(residual, lambda f, i, t: 1.0 * t).report(np.asarray([0.3, 0.7, 1.1]))
    assert Status(int(report.backward.status)) is Status.CONVERGED


# --- the value of a score, and differential equations ---


@pytest.mark.parametrize("stiff", [1.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_a_stiff_direction_hides_no_soft_one_from_the_value(stiff, unit):
    """The error of the soft unknown is 50 %, and its slope is below that of the stiff one."""
    h = np.asarray([stiff, 1.0])

    def score(u, t):
        return np.sum(h * (u / [1.0, unit] - t) ** 2) / 2 + np.sum((u / [1.0, unit]) ** 2 * [0.0, 1.0]) / 2

    def value(error):
        solved = lambda f, i, t: np.asarray([t[0] * (1 + error / stiff), unit * t[1] / 2 * (1 + error / 2)])  # noqa: E731
        return dil.value(score, solved, on_failure="raise")

    np.testing.assert_allclose(dil.grad(value(0.0))(np.ones(2)), [0.0, 0.5], atol=1e-12)
    with pytest.raises(dil.ConvergenceError, match="NOT_STATIONARY"):
        dil.grad(value(1.0))(np.ones(2))


def test_a_value_whose_score_is_cut_in_part(plain):
    part_cut = dil.value(
        lambda u, t: array_namespace(u).sum((u - t) ** 2 + dil.constant(u) * u), lambda f, i, t: 2 / 3 * t, init=None
    )
    if plain.backend == "jax":
        pytest.skip("numbers of a traced call cannot be read")
    layer = replace(part_cut.layer, policy=replace(part_cut.layer.policy, on_failure="raise"))
    with pytest.raises(dil.ConvergenceError, match="WRONG_DERIVATIVE"):
        plain.gradients(replace(part_cut, layer=layer), (np.asarray([1.0, 2.0]),), np.ones(()))


def test_a_value_whose_score_is_random():
    draw = np.random.default_rng(0)
    v = dil.value(
        lambda u, t: np.sum((u - t) ** 2) + np.sum(t * draw.uniform(size=2)),
        lambda f, i, t: 1.0 * t,
        on_failure="raise",
    )
    with pytest.raises(dil.ConvergenceError, match="RANDOM"):
        dil.grad(v)(np.ones(2))


def test_a_value_at_a_kink_has_a_derivative():
    v = dil.value(lasso, soft_threshold, on_failure="raise")
    np.testing.assert_allclose(dil.grad(v)(np.asarray([3.0, 0.5])), [1.0, 0.5])


def test_another_solver_of_the_same_score_is_looked_at_anew():
    def score(u, t):
        return lasso(u, t)

    dil.vjp(dil.argmin(score, soft_threshold, on_failure="raise"), np.asarray([2.0, 3.0]))[1](np.ones(2))
    other = dil.argmin(score, lambda *args: soft_threshold(*args), on_failure="raise")
    with pytest.raises(dil.ConvergenceError, match="KINK"):
        dil.vjp(other, np.asarray([2.0, 0.0]))[1](np.ones(2))


def test_a_solver_without_a_hash_is_looked_at_once():
    calls = []

    def score(u, t):
        calls.append(1)
        return np.sum((u - t) ** 2)

    layer = dil.argmin(score, SciPy(options={"maxiter": 50}), init=zeros)

    def evaluations():
        del calls[:]
        dil.vjp(layer, np.ones(2))[1](np.ones(2))
        return len(calls)

    first, second = evaluations(), evaluations()
    assert second < first


@pytest.mark.parametrize("method", ["implicit_euler", "trapezoid", "bdf2", "sdirk2", "sdirk3", "implicit_midpoint"])
def test_coupled_rows_of_a_differential_equation_are_refused(method):
    def field(t, y):
        return -y + 2.0 * np.mean(y, axis=0) * np.tanh(y)

    y0 = np.random.default_rng(0).standard_normal((6, 4))
    with pytest.raises(dil.OptionError, match="batch_ndim=1 says that its problems are independent"):
        dil.ode.odeint(field, y0, [0.0, 0.5], batch_ndim=1, method=method, steps=2)
    dil.ode.odeint(field, y0, [0.0, 0.5], method=method, steps=2)


def test_a_field_that_is_cut_in_part_is_told():
    y = lambda k: dil.ode.odeint(  # noqa: E731
        lambda t, y, k: -k * np.tanh(dil.constant(y)) - y, np.ones(2), [0.0, 0.5], (k,), on_failure="raise"
    )
    with pytest.raises(dil.ConvergenceError, match="WRONG_DERIVATIVE"):
        dil.grad(lambda k: np.sum(y(k)))(np.asarray(1.0))
