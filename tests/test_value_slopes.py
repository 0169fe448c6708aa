"""A score whose gradient has lost a part is told at the first call, on every engine, and no other score is."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.solvers import LBFGS, GradientDescent, Newton

X = np.asarray([1.0, -0.5, 2.0])


def zeros(x):
    return 0.0 * x


def total(x):
    return array_namespace(x).sum(x)


def square(u, t):
    return total((u - t) ** 2)


LOST = {
    "linear": lambda u, t: square(u, t) + total(1.3 * dil.constant(u)),
    "square": lambda u, t: square(u, t) + 0.7 * total(dil.constant(u) ** 2),
    "product": lambda u, t: square(u, t) + total(u * dil.constant(u)),
    "quartic": lambda u, t: square(u, t) + 0.7 * total(dil.constant(u) ** 4),
    "one entry": lambda u, t: square(u, t) + 1.3 * dil.constant(u)[0] ** 2,
    "curvature alone": lambda u, t: square(u, t) + 0.7 * total((dil.constant(u) - t) ** 2),
}
UNITS = [1e-12, 1.0, 1e12]
UNREAD = "these arrays stand for those of a compiled program, whose numbers cannot be read"


@pytest.mark.parametrize("score", LOST.values(), ids=LOST)
def test_a_part_that_is_lost_is_told_at_each_call(plain, score):
    layer = dil.argmin(score, lambda f, i, t: 1.0 * t, on_failure="warn")
    x = plain.asarray(X)
    for _ in range(2):
        with pytest.warns(dil.ConvergenceWarning, match="first call: WRONG_DERIVATIVE"):
            layer(x)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("of_u", UNITS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_unit_hides_a_part_that_is_lost(unit, of_u, dtype):
    if dtype == "float32":
        unit, of_u = unit**0.5, of_u**0.5
    x = np.asarray(X * of_u, dtype=dtype)
    for score in LOST.values():
        layer = dil.argmin(lambda u, t, f=score: unit * f(u / of_u, t / of_u), lambda f, i, t: t, on_failure="raise")
        with pytest.raises(dil.ConvergenceError, match="WRONG_DERIVATIVE"):
            layer(x)


def test_only_the_problems_of_a_batch_whose_part_is_lost_are_poisoned(plain):
    def score(u, t, lost):
        xp = array_namespace(u)
        return xp.sum((u - t) ** 2, axis=-1) + lost * xp.sum(dil.constant(u), axis=-1)

    layer = dil.argmin(score, lambda f, i, t, lost: 1.0 * t, batch_ndim=1, on_failure="nan")
    y = layer(plain.asarray(np.stack([X, X])), plain.asarray(np.asarray([0.0, 1.0])))
    np.testing.assert_array_equal(np.isnan(plain.to_numpy(y)), [[False] * 3, [True] * 3])


@pytest.mark.parametrize("make", [dil.argmin, dil.value])
@pytest.mark.parametrize("score", LOST.values(), ids=LOST)
def test_where_the_answer_is_poisoned_its_derivative_is_too(eager, make, score):
    if eager.name == "array_api_strict":
        pytest.skip(UNREAD)
    layer = make(score, lambda f, i, t: 1.0 * t, on_failure="nan")
    y, (g,) = eager.gradients(layer, (X,), X if make is dil.argmin else np.asarray(1.0))
    assert np.isnan(y).all()
    assert np.isnan(g).all()


def test_the_derivatives_of_the_other_problems_are_finite(eager):
    if eager.name == "array_api_strict":
        pytest.skip(UNREAD)

    def score(u, t, lost):
        xp = array_namespace(u)
        return xp.sum((u - t) ** 2, axis=-1) + lost * xp.sum(dil.constant(u), axis=-1)

    lost = eager.asarray(np.asarray([0.0, 1.0]))
    layer = dil.argmin(score, lambda f, i, t, lost: 1.0 * t, batch_ndim=1, on_failure="nan")
    _, (g,) = eager.gradients(lambda t: layer(t, lost), (np.stack([X, X]),), np.ones((2, 3)))
    np.testing.assert_array_equal(np.isnan(g), [[False] * 3, [True] * 3])


@pytest.mark.parametrize("options", [{"check_smoothness": "never"}, {"on_failure": "ignore"}], ids=str)
def test_a_part_that_is_cut_on_purpose_is_not_told(options):
    dil.argmin(LOST["linear"], lambda f, i, t: 1.0 * t, **options)(X)


def test_a_gradient_of_the_user_is_not_compared():
    own = dil.Derivatives(gradient=lambda u, t: 2 * (u - t))
    dil.argmin(LOST["linear"], lambda f, i, t: 1.0 * t, derivatives=own, on_failure="raise")(X)


def test_the_value_of_a_score_that_lost_a_part(plain):
    value = dil.value(LOST["linear"], lambda f, i, t: 1.0 * t, on_failure="nan")
    assert np.isnan(plain.to_numpy(value(plain.asarray(X))))


def test_a_score_that_passed_is_not_evaluated_for_it_again():
    calls = []

    def score(u, t):
        calls.append(1)
        return square(u, t)

    layer = dil.argmin(score, lambda f, i, t: 1.0 * t)

    def evaluations():
        del calls[:]
        layer(X)
        return len(calls)

    first, second = evaluations(), evaluations()
    assert second < first <= second + 3 * 5  # three for each of five directions of three unknowns


def test_a_function_that_is_made_anew_at_each_call_is_looked_at_in_one_direction():
    calls = []

    def call():
        del calls[:]

        def score(u, t):
            calls.append(1)
            return square(u, t)

        dil.argmin(score, lambda f, i, t: 1.0 * t)(X)
        return len(calls)

    counts = [call() for _ in range(6)]
    assert len(set(counts[:3])) == 1
    assert counts[-1] == counts[0] - 3 * 4  # of five directions


# --- soft directions ---


def softened(n, condition, which, dtype, lost=1.0):
    """A quadratic score whose part along one principal direction, as large as the curvature there, is lost."""
    drawn = np.random.default_rng(n)
    Q = np.linalg.qr(drawn.standard_normal((n, n)))[0]
    curvatures = np.geomspace(1.0, condition, n)
    A, v = np.asarray(Q * curvatures @ Q.T, dtype=dtype), np.asarray(Q[:, which], dtype=dtype)
    share = float(lost * curvatures[which])

    def score(u, t):
        xp = array_namespace(u)
        H, w = (xp.asarray(a, device=getattr(u, "device", None)) for a in (A, v))
        d = dil.constant(u) - t
        return 0.5 * xp.sum((u - t) * (H @ (u - t))) + 0.5 * share * xp.sum(w * d) ** 2

    return score, np.asarray(drawn.standard_normal(n), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "which"), [(2, 0), (3, 0), (3, 1), (6, 0), (10, 0), (10, 5), (10, 9), (30, 29)])
def test_a_part_that_is_lost_along_any_direction_is_told(plain, n, which, dtype):
    """Stiff directions hide a soft one from a random vector, but not from conjugate ones."""
    conditions = [1e3] if plain.backend == "jax" else [1.0, 10.0, 1e3 if n < 10 else 1e2]
    if plain.backend == "jax" and (n, dtype) != (3, "float64"):
        pytest.skip("one score is enough where each is compiled")
    if plain.name == "array_api_strict":
        pytest.skip(UNREAD)

    def typed(t):
        x = plain.asarray(t)
        xp = array_namespace(x)
        return xp.astype(x, getattr(xp, dtype))

    for condition in conditions:
        score, t = softened(n, condition, which, dtype)
        with pytest.raises(dil.ConvergenceError, match="first call: WRONG_DERIVATIVE"):
            dil.argmin(score, lambda f, i, t: 1.0 * t, on_failure="raise")(typed(t))
        score, t = softened(n, condition, which, dtype, lost=0.0)
        dil.argmin(score, lambda f, i, t: 1.0 * t, on_failure="raise")(typed(t))


def test_a_soft_part_is_told_in_its_problem_of_a_batch_alone():
    score, t = softened(4, 1e6, 0, "float64")
    fine, _ = softened(4, 1e6, 0, "float64", lost=0.0)

    def both(u, t):
        return np.stack([score(u[0], t[0]), fine(u[1], t[1])])

    y = dil.argmin(both, lambda f, i, t: 1.0 * t, batch_ndim=1, on_failure="nan")(np.stack([t, t]))
    np.testing.assert_array_equal(np.isnan(y), [[True] * 4, [False] * 4])


@pytest.mark.parametrize(
    "curvatures", [[1.0, -1.0, 3.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 1.0]], ids=str
)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_score_without_a_minimum_is_compared_too(curvatures, which):
    """Where there is no curvature the search for directions ends, and goes on with random ones."""
    w, X = np.asarray(curvatures), np.asarray([1.0, -0.5, 2.0])

    def score(u, t, lost=0.0):
        return np.sum(w * (u - t) ** 2 + u) + lost * dil.constant(u)[which] ** 2

    dil.argmin(score, lambda f, i, t: 1.0 * t, on_failure="raise")(X)
    with pytest.raises(dil.ConvergenceError, match="WRONG_DERIVATIVE"):
        dil.argmin(lambda u, t: score(u, t, 3.0), lambda f, i, t: 1.0 * t, on_failure="raise")(X)


# --- reports, records, and compiled programs ---


def test_the_report_alone_shows_a_part_that_is_lost(plain):
    for score in ["linear"] if plain.backend == "jax" else ["linear", "square", "curvature alone"]:
        rep = dil.argmin(LOST[score], lambda f, i, t: 1.0 * t).report(plain.asarray(X))
        assert Status(int(rep.backward.status)) is Status.WRONG_DERIVATIVE
        assert not rep.ok
        assert "WRONG_DERIVATIVE" in str(rep)


def test_the_report_of_a_right_score_is_ok(eager):
    assert dil.argmin(square, lambda f, i, t: 1.0 * t).report(eager.asarray(X)).ok


def test_the_report_names_the_problems_of_a_batch(eager):
    def score(u, t, lost):
        xp = array_namespace(u)
        part = xp.sum(dil.constant(u) ** 2, axis=-1)
        return xp.sum((u - t) ** 2, axis=-1) + xp.where(lost, part, 0.0 * part)

    layer = dil.argmin(score, lambda f, i, t, lost: 1.0 * t, batch_ndim=1)
    # a mask has no gradient that the lost part could make wrong in both problems
    rep = layer.report(eager.asarray(np.stack([X, X])), eager.asarray(np.asarray([1.0, -1.0])) < 0)
    assert rep.backward.status.tolist() == [Status.CONVERGED, Status.WRONG_DERIVATIVE]


@pytest.mark.parametrize("make", [dil.argmin, dil.value])
def test_a_record_shows_a_part_that_is_lost(engine, make):
    layer = make(LOST["square"], lambda f, i, t: 1.0 * t, on_failure="ignore")
    with dil.record() as record:
        engine.gradients(layer, (X,), X if make is dil.argmin else np.asarray(1.0))
    backward = [entry for entry in record.entries if entry.stage == "backward"]
    assert [Status(int(entry.status)) for entry in backward] == [Status.WRONG_DERIVATIVE]


def test_always_tells_in_the_backward_pass_of_any_program(engine):
    layer = dil.argmin(LOST["square"], lambda f, i, t: 1.0 * t, check_smoothness="always")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        engine.gradients(layer, (X,), X)
    assert any("backward solve: WRONG_DERIVATIVE" in str(w.message) for w in told)


# --- false alarms ---


def cancelling(u, t):
    big = 1e6 * total(array_namespace(u).tanh(u))
    return (big + 0.5 * square(u, t)) - big


draw = np.random.default_rng(0)
W = draw.standard_normal((40, 3))
FINE = {
    "relu": lambda u, t: total(array_namespace(u).maximum(u * 1.0, 0.0 * u)) + square(u, t),
    "l1": lambda u, t: 2.0 * total(array_namespace(u).abs(u)) + square(u, t),
    "quartic": lambda u, t: total((u - t) ** 4),
    "a large constant": lambda u, t: 1e6 + square(u, t),
    "cancelling": cancelling,
    "stiff": lambda u, t: total(array_namespace(u).exp(20.0 * (u - t)) - 20.0 * (u - t)),
    "linear": lambda u, t: total(u * t),
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("score", FINE.values(), ids=FINE)
def test_a_score_with_its_own_gradient_is_not_told(plain, score, unit):
    if plain.backend == "jax" and unit != 1.0:
        pytest.skip("one unit is enough where each score is compiled")
    for point in (X, 0.0 * X, np.asarray([0.0, 1e-9, 1e6])):
        layer = dil.argmin(lambda u, t: unit * score(u, t), lambda f, i, t, p=point: 0.0 * t + plain.asarray(p))
        layer = dil.argmin(layer.condition.fn, layer.solver, on_failure="raise")
        layer(plain.asarray(point + 0.3))
        if unit == 1.0 and plain.backend != "jax":
            report = layer.report(plain.asarray(point + 0.3))
            assert Status.WRONG_DERIVATIVE not in set(np.atleast_1d(report.backward.status).tolist())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layers_of_relus_and_noise_are_not_told(dtype):
    """40 kinks near a random point, and random numbers in the score."""
    noise = np.random.default_rng(1)
    weights = W.astype(dtype)
    for k in range(30):
        x = draw.standard_normal(3).astype(dtype)
        for score in (
            lambda u, t: np.sum(np.maximum(weights @ u, 0.0 * (weights @ u))) + square(u, t),
            lambda u, t, k=k: square(u, t) * float(1.0 + 10.0 ** -(k % 12) * noise.uniform()),
        ):
            dil.argmin(score, lambda f, i, t: 1.0 * t, on_failure="raise")(x)


def test_complex_unknowns(plain):
    z = plain.asarray(X + 1j * X[::-1])

    def score(u, t, lost=0.0):
        xp = array_namespace(u)
        cut = dil.constant(u)
        return xp.sum(xp.real((u - t) * xp.conj(u - t))) + lost * xp.sum(xp.imag(cut))

    dil.argmin(score, lambda f, i, t: 1.0 * t, on_failure="raise")(z)
    with pytest.raises(dil.ConvergenceError, match="WRONG_DERIVATIVE"):
        dil.argmin(lambda u, t: score(u, t, 1.0), lambda f, i, t: 1.0 * t, on_failure="raise")(z)


# --- solvers ---


@pytest.mark.parametrize("solver", [LBFGS(), GradientDescent(), Newton()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("batch", [False, True])
def test_a_solver_ends_soon_where_value_and_gradient_disagree(eager, solver, batch):
    calls = []

    def score(u, t):
        calls.append(1)
        xp, cut = array_namespace(u), dil.constant(u)
        return xp.sum((u - t) ** 2, axis=-1) + xp.sum(xp.exp(cut), axis=-1)

    x = eager.asarray(np.stack([X, 2 * X]) if batch else X)
    found = dil.argmin(score, solver, init=zeros, batch_ndim=int(batch)).solve(x)
    assert len(calls) <= 400
    statuses = set(np.atleast_1d(eager.to_numpy(found.status)).tolist())
    # strict arrays stand for those of a compiled program, which does not look for the reason
    assert statuses == {int(Status.STAGNATED if "strict" in eager.name else Status.WRONG_DERIVATIVE)}


# --- cotangents ---


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "linear", [None, dil.linear.CG(), dil.linear.Direct(), dil.linear.GMRES(), dil.linear.MINRES()], ids=str
)
def test_a_cotangent_that_is_not_finite_gives_nan(plain, linear, bad):
    layer = dil.argmin(square, lambda f, i, t: 1.0 * t, linear_solver=linear, on_failure="ignore")
    _, (g,) = plain.gradients(layer, (X,), np.asarray([1.0, bad, 1.0]))
    assert np.isnan(g).all()


@pytest.mark.parametrize("linear", [None, dil.linear.CG(), dil.linear.GMRES()], ids=str)
def test_it_gives_nan_in_its_own_problem_alone(plain, linear):
    layer = dil.root(lambda u, t: u**3 + u - t, Newton(), init=zeros, batch_ndim=1, linear_solver=linear)
    bad = np.ones((2, 3))
    bad[1, 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dil.ConvergenceWarning)
        _, (g,) = plain.gradients(layer, (np.stack([X, X]),), bad)
    np.testing.assert_array_equal(np.isfinite(g), [[True] * 3, [False] * 3])
