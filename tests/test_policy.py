"""What becomes of a solve that failed: on_failure, forward and backward, on every engine."""

from __future__ import annotations

import contextlib
import re
import warnings

import numpy as np
import pytest
from array_api_compat import array_namespace, device

import dil
from engines import engines

POLICIES = ["raise", "warn", "nan", "ignore"]
V = np.asarray([0.0, 1.0])
X = np.asarray([1.0, 2.0])


@pytest.fixture(params=[e for e in engines() if ":" not in e.name and e.name != "jax"], ids=lambda e: e.name)
def eager(request):
    """Every backend that does not compile, so that tables of cases may be long."""
    if request.param.reason is not None:
        pytest.skip(request.param.reason)
    return request.param


def bowl(u, x):
    return 0.5 * array_namespace(u).sum((u - x) ** 2)


def flat(u, x):
    """Does not depend on u[1]: H is singular, and the cotangent V lies in its null space."""
    return 0.5 * (u[0] - x[0]) ** 2


def solved(fun, init, x):
    return x * 1.0


def gives_up(fun, init, x):
    xp = array_namespace(x)
    return dil.Solution(x * 1.0, xp.full(x.shape[:0], int(dil.Status.MAX_ITER), dtype=xp.int32, device=device(x)))


LAYERS = {
    "forward": (bowl, gives_up, "forward solve: MAX_ITER: the iteration limit .* raise max_iter"),
    "backward": (flat, solved, r"backward solve: SINGULAR: the curvature vanished .* damping="),
}
RESULTS = {
    ("forward", "nan"): ([np.nan, np.nan], [np.nan, np.nan]),  # there is no gradient at a point that is not there
    ("forward", "ignore"): (X, V),
    ("forward", "warn"): (X, V),
    ("backward", "nan"): (X, [np.nan, 0.0]),
    ("backward", "ignore"): (X, [0.0, 0.0]),
    ("backward", "warn"): (X, [0.0, 0.0]),
}
"""Value and gradient; the gradient is the last iterate before the breakdown, and zero where f does not depend on x."""


def make(stage, policy):
    score, solver, text = LAYERS[stage]
    return dil.argmin(score, solver, on_failure=policy), text


def run(engine, layer, *args, cotangent=V):
    """Return value and gradients once everything that the program does is done."""
    found = engine.gradients(layer, args, cotangent)
    if engine.backend == "jax":
        import jax

        jax.effects_barrier()
    return found


def failure(engine, stage):
    """What "raise" raises: JAX wraps an error of the running program in its own type, text and all.

    The backward solve is always such a program; a forward solve on concrete arrays is not.
    """
    if engine.backend != "jax" or (stage == "forward" and not engine.name.endswith("jit")):
        return dil.ConvergenceError
    import jax

    return jax.errors.JaxRuntimeError


# --- every policy, stage and engine ---


@pytest.mark.parametrize("stage", LAYERS)
def test_raise(engine, stage):
    layer, text = make(stage, "raise")
    with pytest.raises(failure(engine, stage), match=text):
        run(engine, layer, X)


def test_jax_goes_on_after_an_error_under_jit():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    layer, _ = make("forward", "raise")
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"^INTERNAL: argmin layer of '\w+': forward solve: MAX_ITER"):
        jax.block_until_ready(jax.jit(layer)(jax.numpy.asarray(X)))
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.effects_barrier()
    assert float(jax.jit(lambda x: x.sum())(jax.numpy.asarray(X))) == 3.0
    jax.effects_barrier()


def test_an_error_of_another_callback_is_not_taken_for_an_earlier_one_of_dil():
    jax = pytest.importorskip("jax", reason="JAX is not installed")

    def broken(x):
        raise ArithmeticError("the host says no")

    def score(u, x):
        return jax.numpy.sum((u - jax.pure_callback(broken, jax.eval_shape(lambda: x), x)) ** 2)

    layer, _ = make("forward", "raise")
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"^INTERNAL: argmin layer of '\w+': forward solve: MAX_ITER"):
        jax.block_until_ready(jax.jit(layer)(jax.numpy.asarray(X)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="the host says no"):
        dil.argmin(score, dil.solvers.GradientDescent(), init=lambda x: x)(jax.numpy.asarray(X))


@pytest.mark.parametrize("stage", LAYERS)
def test_warn(engine, stage):
    layer, text = make(stage, "warn")
    with pytest.warns(dil.ConvergenceWarning, match=text) as record:
        y, (g,) = run(engine, layer, X)
    assert len(record) == 1
    np.testing.assert_array_equal(y, RESULTS[stage, "warn"][0])
    np.testing.assert_array_equal(g, RESULTS[stage, "warn"][1])


@pytest.mark.parametrize("policy", ["nan", "ignore"])
@pytest.mark.parametrize("stage", LAYERS)
def test_nan_and_ignore_are_quiet(engine, stage, policy):
    if engine.name == "jax" and policy == "ignore":
        pytest.skip("JAX compiles each case; jax:jit runs this one")
    y, (g,) = run(engine, make(stage, policy)[0], X)
    np.testing.assert_array_equal(y, RESULTS[stage, policy][0])
    np.testing.assert_array_equal(g, RESULTS[stage, policy][1])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_solve_that_succeeds_is_quiet(eager, policy):
    y, (g,) = run(eager, dil.argmin(bowl, solved, on_failure=policy), X)
    np.testing.assert_array_equal(y, X)
    np.testing.assert_array_equal(g, V)


def test_warn_is_the_default(eager):
    with pytest.warns(dil.ConvergenceWarning, match="MAX_ITER"):
        dil.argmin(bowl, gives_up)(eager.asarray(X))


def test_the_message_names_the_layer_and_the_stage(eager):
    with pytest.raises(dil.ConvergenceError, match=r"^argmin layer of 'bowl': forward solve: MAX_ITER: "):
        dil.argmin(bowl, gives_up, on_failure="raise")(eager.asarray(X))


def test_an_error_of_the_policy_is_a_dil_error():
    assert issubclass(dil.ConvergenceError, dil.DilError)
    assert issubclass(dil.ConvergenceError, RuntimeError)


@pytest.mark.parametrize("policy", POLICIES)
def test_solve_applies_no_policy(eager, policy):
    solution = dil.argmin(bowl, gives_up, on_failure=policy).solve(eager.asarray(X))
    assert int(solution.status) == dil.Status.MAX_ITER
    np.testing.assert_array_equal(eager.to_numpy(solution.value), X)


def test_both_stages_may_warn(eager):
    layer = dil.argmin(flat, gives_up)
    with pytest.warns(dil.ConvergenceWarning) as record:
        run(eager, layer, X)
    assert [re.search(r"(\w+) solve", str(w.message))[1] for w in record] == ["forward", "backward"]


def test_a_warning_points_to_the_line_of_the_call(eager):
    with pytest.warns(dil.ConvergenceWarning) as record:
        dil.argmin(bowl, gives_up)(eager.asarray(X))
    assert record[0].filename == __file__


def test_warnings_of_every_call_reach_a_filter_that_wants_them(eager):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(3):
            dil.argmin(bowl, gives_up)(eager.asarray(X))
    assert len(record) == 3


# --- a batch ---

ROWS = np.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
CURVATURES = np.asarray([[1.0, 2.0], [1.0, -1.0], [4.0, 5.0]])
COTANGENTS = np.asarray([[1.0, 2.0], [0.0, 1.0], [2.0, 3.0]])


def bowls(u, x, h):
    return 0.5 * array_namespace(u).sum(h * (u - x) ** 2, axis=-1)


def solved_rows(fun, init, x, h):
    return x * 1.0


def half_solved(fun, init, x, h):
    xp = array_namespace(x)
    failed = xp.any(h < 0, axis=-1)
    return dil.Solution(x * 1.0, xp.astype(failed, xp.int32) * int(dil.Status.MAX_ITER))


def test_nan_poisons_the_failed_problem_alone_forward(engine):
    layer = dil.argmin(bowls, half_solved, batch_ndim=1, on_failure="nan", linear_solver=dil.linear.CG(damping=3.0))
    y, _ = run(engine, layer, ROWS, CURVATURES, cotangent=COTANGENTS)
    np.testing.assert_array_equal(y[[0, 2]], ROWS[[0, 2]])
    assert np.isnan(y[1]).all()


def test_nan_poisons_the_failed_problem_alone_backward(engine):
    layer = dil.argmin(bowls, solved_rows, batch_ndim=1, on_failure="nan", linear_solver=dil.linear.CG())
    y, (g, _) = run(engine, layer, ROWS, CURVATURES, cotangent=COTANGENTS)
    np.testing.assert_array_equal(y, ROWS)
    np.testing.assert_allclose(g[[0, 2]], COTANGENTS[[0, 2]], rtol=1e-12)
    assert np.isnan(g[1]).all()


@pytest.mark.parametrize(
    ("solver", "damping", "text"),
    [
        (half_solved, 3.0, r"forward solve: 1 of 3 problems \(the first at 1\) ended MAX_ITER"),
        (solved_rows, 0.0, r"backward solve: 1 of 3 problems \(the first at 1\) ended INDEFINITE"),
    ],
    ids=["forward", "backward"],
)
@pytest.mark.parametrize("policy", ["raise", "warn"])
def test_the_message_counts_the_failed_problems_of_a_batch(eager, solver, damping, text, policy):
    layer = dil.argmin(bowls, solver, batch_ndim=1, on_failure=policy, linear_solver=dil.linear.CG(damping=damping))
    caught = {
        "raise": pytest.raises(dil.ConvergenceError, match=text),
        "warn": pytest.warns(dil.ConvergenceWarning, match=text),
    }
    with caught[policy]:
        run(eager, layer, ROWS, CURVATURES, cotangent=COTANGENTS)


# --- roots and fixed points ---


def level(u, x):
    """A root in u[0] alone: J = diag(1, 0), and the cotangent V lies in the null space of its transpose."""
    return (u - x) * (1.0 - array_namespace(u).asarray(V.tolist(), dtype=u.dtype))


EQUATIONS = {
    "root": (dil.root, lambda u, x: 3.0 * (u - x), level),
    "fixed point": (dil.fixed_point, lambda u, x: 0.5 * (u + x), lambda u, x: u - level(u, x)),
}
CASES = [
    (e, kind)
    for e in engines()
    for kind in EQUATIONS
    if (":" not in e.name and e.name != "jax") or (e.name, kind) == ("jax:jit", "root")
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].name}-{case[1]}")
def equation(request):
    """An engine, and a function of its arguments that makes the layer to fail at a stage."""
    engine, kind = request.param
    if engine.reason is not None:
        pytest.skip(engine.reason)
    make, regular, singular = EQUATIONS[kind]
    solvers = {"forward": (regular, gives_up), "backward": (singular, solved)}
    return engine, lambda stage, policy: make(*solvers[stage], on_failure=policy)


ENDS = {"forward": "forward solve: MAX_ITER", "backward": "backward solve: (SINGULAR|STAGNATED)"}
LEFT = {
    ("forward", "nan"): ([np.nan, np.nan], [np.nan, np.nan]),
    ("backward", "nan"): (X, [np.nan, np.nan]),  # where J is not symmetric, g is poisoned as a whole
}
"""Value and gradient where they are not those of a solve that was left as it ended."""


@pytest.mark.parametrize("stage", ENDS)
def test_raise_of_an_equation(equation, stage):
    engine, make = equation
    with pytest.raises(failure(engine, stage), match=ENDS[stage]):
        run(engine, make(stage, "raise"), X)


@pytest.mark.parametrize("stage", ENDS)
def test_warn_of_an_equation(equation, stage):
    engine, make = equation
    with pytest.warns(dil.ConvergenceWarning, match=ENDS[stage]) as record:
        y, (g,) = run(engine, make(stage, "warn"), X)
    assert len(record) == 1
    np.testing.assert_array_equal(y, X)
    np.testing.assert_allclose(g, V if stage == "forward" else 0 * V, rtol=1e-15)


@pytest.mark.parametrize("policy", ["nan", "ignore"])
@pytest.mark.parametrize("stage", ENDS)
def test_nan_and_ignore_of_an_equation_are_quiet(equation, stage, policy):
    engine, make = equation
    y, (g,) = run(engine, make(stage, policy), X)
    expected = LEFT.get((stage, policy), (X, V if stage == "forward" else 0 * V))
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_allclose(g, expected[1], rtol=1e-15)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_preconditioner_that_is_not_positive_definite_is_told(eager, policy):
    solver = dil.linear.CG(preconditioner=lambda r: -r)
    layer, text = dil.argmin(bowl, solved, linear_solver=solver, on_failure=policy), "backward solve: PRECONDITIONER"
    if policy == "raise":
        with pytest.raises(dil.ConvergenceError, match=text):
            run(eager, layer, X)
    elif policy == "warn":
        with pytest.warns(dil.ConvergenceWarning, match=text):
            run(eager, layer, X)
    else:
        assert np.isnan(run(eager, layer, X)[1][0]).any() == (policy == "nan")


def test_an_error_of_a_preconditioner_reaches_the_caller(eager):
    def broken(r):
        message = "the user's own"
        raise KeyError(message)

    layer = dil.argmin(bowl, solved, linear_solver=dil.linear.CG(preconditioner=broken))
    with pytest.raises(KeyError, match="the user's own"):
        run(eager, layer, X)


# --- NaN in the data ---


@pytest.mark.parametrize("policy", POLICIES)
def test_a_nan_in_the_data(eager, policy):
    layer, x = dil.argmin(bowl, solved, on_failure=policy), eager.asarray([np.nan, 2.0])
    text = "forward solve: NON_FINITE: a NaN or an infinity was met; look for invalid data"
    if policy == "raise":
        with pytest.raises(dil.ConvergenceError, match=text):
            layer(x)
    elif policy == "warn":
        with pytest.warns(dil.ConvergenceWarning, match=text):
            layer(x)
    else:
        expected = [np.nan, np.nan] if policy == "nan" else [np.nan, 2.0]
        np.testing.assert_array_equal(eager.to_numpy(layer(x)), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_solution_that_is_not_finite_is_told(eager, bad):
    layer = dil.argmin(bowl, lambda fun, init, x: eager.asarray([1.0, bad]))
    assert int(layer.solve(eager.asarray(X)).status) == dil.Status.NON_FINITE
    with pytest.warns(dil.ConvergenceWarning, match="forward solve: NON_FINITE"):
        layer(eager.asarray(X))


SOLVERS = [dil.solvers.Newton(), dil.solvers.GradientDescent()]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_solvers_say_that_the_data_hold_a_nan(eager, solver):
    layer = dil.argmin(bowl, solver, init=lambda x: array_namespace(x).zeros_like(x))
    assert int(layer.solve(eager.asarray([np.nan, 2.0])).status) == dil.Status.NON_FINITE


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_solvers_say_that_the_iterations_ran_out(eager, solver):
    hard = dil.argmin(quartic, type(solver)(max_iter=1), init=lambda x: array_namespace(x).zeros_like(x))
    assert int(hard.solve(eager.asarray(X)).status) == dil.Status.MAX_ITER


def quartic(u, x):
    xp = array_namespace(u)
    return 0.5 * xp.sum((u - x) ** 2) + 0.25 * xp.sum(u**4)


def forgets_the_nan(fun, init, x):
    xp = array_namespace(x)
    return xp.where(xp.isfinite(x), x, 0.0 * xp.ones_like(x))


def test_a_finite_point_with_a_gradient_that_is_nan_is_told_backward(eager):
    """F(y) is NaN: y is no solution, though y itself is finite."""
    with pytest.raises(dil.ConvergenceError, match=r"backward solve: (NON_FINITE|NOT_STATIONARY)"):
        run(eager, dil.argmin(bowl, forgets_the_nan, on_failure="raise"), [np.nan, 2.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_cotangent_that_is_not_finite(eager, bad):
    with pytest.warns(dil.ConvergenceWarning, match="backward solve: NON_FINITE") as record:
        run(eager, dil.argmin(bowl, solved), X, cotangent=[bad, 1.0])
    assert {w.category for w in record} == {dil.ConvergenceWarning}


# --- linear solvers of the user's own ---


def says_nothing(matvec, b, /, *, loop):
    return dil.Solution(b)


def returns_nan(matvec, b, /, *, loop):
    return dil.Solution(b * float("nan"))


def returns_an_array(matvec, b, /, *, loop):
    return b


def returns_a_part(matvec, b, /, *, loop):
    return dil.Solution(b[:1])


def test_a_linear_solver_need_not_give_a_status(eager):
    _, (g,) = run(eager, dil.argmin(bowl, solved, linear_solver=says_nothing), X)
    np.testing.assert_array_equal(g, V)


def test_a_nan_of_a_linear_solver_without_status_is_told(eager):
    with pytest.raises(dil.ConvergenceError, match="backward solve: NON_FINITE"):
        run(eager, dil.argmin(bowl, solved, linear_solver=returns_nan, on_failure="raise"), X)


@pytest.mark.parametrize(
    ("linear_solver", "text"), [(returns_an_array, r"dil\.Solution"), (returns_a_part, r"shape \(1,\).*\(2,\)")]
)
def test_a_linear_solver_that_returns_something_else(eager, linear_solver, text):
    with pytest.raises(dil.DilError, match=text):
        run(eager, dil.argmin(bowl, solved, linear_solver=linear_solver), X)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_the_scale_of_the_score_is_immaterial_to_the_judgement(plain, scale):
    """A right gradient is not called anything else because the score is tiny or huge, in float32."""
    handle = dil.backend(plain.backend, dtype="float32")
    k, x = handle.asarray(scale), handle.asarray([1.0, 2.0])
    layer = dil.argmin(lambda u, x, k: k * array_namespace(u).sum((u - x) ** 2), lambda f, u, x, k: x, on_failure="nan")
    _, pull = dil.vjp(lambda x: layer(x, k), x)
    np.testing.assert_allclose(handle.to_numpy(pull(handle.asarray([1.0, 1.0]))[0]), [1.0, 1.0], rtol=1e-5)


def test_no_curvature_along_the_cotangent_is_no_doubt(plain):
    """<g, b> vanishes for a Jacobian that turns its vectors, and at a saddle whose curvatures cancel."""

    def turn(u, t):
        return array_namespace(u).flip(u) * t - 1.0

    def saddle(u, t, bend):
        return 0.5 * array_namespace(u).sum(bend * (u - t) ** 2)

    nearly = 1 + 1e-12  # not to the last digit, so that F is not zero
    layer = dil.root(turn, lambda f, u, t: array_namespace(t).flip(nearly / t), on_failure="raise")
    _, (g,) = run(plain, layer, np.asarray([1.0, -1.0]))
    np.testing.assert_allclose(g, [-1.0, 0.0], atol=1e-9)
    layer = dil.argmin(saddle, lambda f, u, t, bend: nearly * t, linear_solver=dil.linear.MINRES(), on_failure="ignore")
    _, (g, _) = run(plain, layer, X, np.asarray([1.0, -1.0]), cotangent=np.ones(2))
    np.testing.assert_allclose(g, [1.0, 1.0], rtol=1e-9)


def test_a_value_away_from_its_minimum_is_told_in_its_derivative(plain):
    """The envelope theorem says nothing where df/du does not vanish: 10 would come out, and 12 is right."""

    def score(u, t):
        return (u - t) ** 2 + t**3

    for policy in ("raise", "nan", "warn"):
        value = dil.value(score, lambda f, i, t: t + 1.0, on_failure=policy)
        if policy == "nan":
            assert np.isnan(run(plain, value, 2.0, cotangent=1.0)[1][0])
        elif policy == "warn":
            with pytest.warns(dil.ConvergenceWarning, match="derivative of the value: NOT_STATIONARY"):
                run(plain, value, 2.0, cotangent=1.0)
        else:
            with pytest.raises(Exception, match="derivative of the value: NOT_STATIONARY"):  # JAX wraps it
                run(plain, value, 2.0, cotangent=1.0)
    value = dil.value(score, lambda f, i, t: t + 1e-9, on_failure="raise")
    np.testing.assert_allclose(run(plain, value, 2.0, cotangent=1.0)[1][0], 12.0, rtol=1e-8)


def test_a_solution_is_no_alias_of_an_argument():
    x = np.ones(2)
    y = dil.argmin(lambda u, x: np.sum((u - x) ** 2), lambda f, u, x: x)(x)
    y += 1.0
    np.testing.assert_array_equal(x, 1.0)
