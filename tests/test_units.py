"""Laws of units: a change of the units of the score, the unknowns, the time or the arguments changes nothing else."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st

import dil
from dil import Status
from dil._base.operator import Operator
from dil._base.scale import is_short
from dil._diagnostics.newton_comparison import Point
from dil._diagnostics.stationarity import DerivativeSolve, is_near, probes_of
from dil.solvers import LBFGS, Anderson, FixedPoint, GradientDescent, Newton, SciPy, SciPyRoot

H = np.asarray([[2.0, 0.3, -0.2], [0.3, 1.0, 0.1], [-0.2, 0.1, 1.5]])
T = np.asarray([1.0, -0.5, 2.0])
V = np.asarray([0.3, 1.0, -0.7])
POWERS = st.integers(-40, 40)  # of two, so that a change of units is exact
MINIMISERS = [Newton(), Newton("truncated"), LBFGS(), GradientDescent(max_iter=1000), SciPy()]


MOST = {"numpy": 10, "torch": 5, "jax": 1}
"""Examples on each backend; 2 on the others. JAX compiles each."""


def for_all(engine, **strategies):
    """Run a law on random units."""

    def run(law):
        settings(max_examples=MOST.get(engine.backend, 2))(given(**strategies)(law))()

    return run


def eager_only(engine):
    if engine.backend == "jax":
        pytest.skip("JAX compiles for long; it runs the same array code")


def solution(t):
    u = np.zeros(3)
    for _ in range(60):
        u = u - np.linalg.solve(H + np.diag(3 * u**2), H @ u + u**3 - t)
    return u


EXACT = solution(T)
EXACT_GRADIENT = np.linalg.solve(H + np.diag(3 * EXACT**2), V)


def problem(plain, c, D, solver, *, kind="argmin", start=0.5, **options):
    """The quartic in units D of the unknowns and c of the score, as a layer of the argument t."""
    H_, D_ = plain.asarray(H), plain.asarray(D)

    def score(v, t):
        u, xp = v / D_, array_namespace(v)
        return c * (0.5 * xp.sum(u * (H_ @ u)) + 0.25 * xp.sum(u**4) - xp.sum(t * u))

    def residual(v, t):
        u = v / D_
        return c * (H_ @ u + u**3 - t)

    function = {"argmin": score, "root": residual}[kind]
    init = None if start is None else lambda t: start * D_
    return getattr(dil, kind)(function, solver, init=init, **options)


@pytest.mark.parametrize("solver", MINIMISERS, ids=lambda s: f"{type(s).__name__}-{getattr(s, 'equations', '')}")
def test_units_of_the_score_and_one_unit_of_the_unknowns(plain, solver):
    @for_all(plain, c=POWERS, d=POWERS)
    def _(c, d):
        layer = problem(plain, 2.0**c, np.full(3, 2.0**d), solver)
        found = layer.solve(plain.asarray(T))
        assert Status(int(found.status)) is Status.CONVERGED
        np.testing.assert_allclose(plain.to_numpy(found.value) / 2.0**d, EXACT, rtol=1e-7)


@pytest.mark.parametrize("solver", MINIMISERS, ids=lambda s: f"{type(s).__name__}-{getattr(s, 'equations', '')}")
def test_a_unit_of_its_own_for_each_unknown(plain, solver):
    """An iteration that depends on the units may fail, but what it calls converged is the solution."""

    @for_all(plain, d=st.tuples(POWERS, POWERS, POWERS))
    def _(d):
        D = 2.0 ** np.asarray(d)
        found = problem(plain, 1.0, D, solver).solve(plain.asarray(T))
        if Status(int(found.status)) is Status.CONVERGED:
            np.testing.assert_allclose(plain.to_numpy(found.value) / D, EXACT, rtol=1e-4)


@pytest.mark.parametrize("solver", [Newton(), SciPyRoot()], ids=lambda s: type(s).__name__)
def test_units_of_a_root(plain, solver):
    @for_all(plain, c=POWERS, d=POWERS)
    def _(c, d):
        found = problem(plain, 2.0**c, np.full(3, 2.0**d), solver, kind="root").solve(plain.asarray(T))
        assert Status(int(found.status)) is Status.CONVERGED
        np.testing.assert_allclose(plain.to_numpy(found.value) / 2.0**d, EXACT, rtol=1e-7)


@pytest.mark.parametrize("solver", [FixedPoint(), Anderson()], ids=lambda s: type(s).__name__)
def test_units_of_a_fixed_point(plain, solver):
    @for_all(plain, d=POWERS)
    def _(d):
        D, W = 2.0**d, plain.asarray(0.2 * H)

        def step(v, t):
            return D * array_namespace(v).tanh(W @ (v / D) + t)

        found = dil.fixed_point(step, solver, init=lambda t: 0.0 * t).solve(plain.asarray(T))
        u = np.zeros(3)
        for _ in range(200):
            u = np.tanh(0.2 * H @ u + T)
        assert Status(int(found.status)) is Status.CONVERGED
        np.testing.assert_allclose(plain.to_numpy(found.value) / D, u, rtol=1e-9)


@pytest.mark.parametrize("kind", ["argmin", "root"])
def test_units_of_a_gradient(plain, kind):
    """The gradient is the same up to units, and the status, for a solution that is right and for one that is not."""

    @for_all(plain, c=POWERS, d=st.tuples(POWERS, POWERS, POWERS), e=POWERS)
    def _(c, d, e):
        D, E = 2.0 ** np.asarray(d), 2.0**e
        for error, status in ((0.0, Status.CONVERGED), (0.5, Status.NOT_STATIONARY)):
            rough = plain.asarray(EXACT * D * (1 + error))
            layer = problem(plain, 2.0**c, D, lambda *_, rough=rough: rough, kind=kind, start=None, on_failure="ignore")
            inner = lambda s, layer=layer: layer(s / E)  # noqa: E731
            with dil.record() as record:
                _, pull = dil.vjp(inner, plain.asarray(T * E))
                (g,) = pull(plain.asarray(V / D))
            assert Status(int(record.backward[0].status)) is status
            if not error:
                np.testing.assert_allclose(plain.to_numpy(g) * E, EXACT_GRADIENT, rtol=1e-9)


@pytest.mark.parametrize("method", ["implicit_euler", "sdirk2", "euler"])
def test_units_of_an_ode(plain, method):
    """States in units of `unit` and times in units of `time`: the state and the gradient in the rate."""
    eager_only(plain)

    @for_all(plain, unit=POWERS, time=POWERS)
    def _(unit, time):
        s, u = 2.0**time, 2.0**unit

        def end(k):
            times = [0.25 * s * k for k in range(5)]
            y = dil.ode.odeint(lambda t, y, k: -k * y * (1 + y / u) / s, plain.asarray(u), times, (k,), method=method)
            return y[-1, ...] / u

        value, slope = dil.value_and_grad(end)(plain.asarray(3.0))
        s, u = 1.0, 1.0
        right, right_slope = dil.value_and_grad(end)(plain.asarray(3.0))
        np.testing.assert_allclose(plain.to_numpy(value), plain.to_numpy(right), rtol=1e-9)
        np.testing.assert_allclose(plain.to_numpy(slope), plain.to_numpy(right_slope), rtol=1e-7)


def test_units_of_the_states_of_a_riccati_equation(plain):
    eager_only(plain)

    @for_all(plain, d=st.tuples(st.integers(-10, 10), st.integers(-10, 10)))
    def _(d):
        A, B, Q, R = np.asarray([[0.9, 0.4], [0.0, 0.5]]), np.asarray([[0.0], [0.1]]), np.eye(2), np.eye(1)
        D = 2.0 ** np.asarray(d)

        def cost(A):
            S = dil.control.dare(A, *(plain.asarray(x) for x in (D[:, None] * B, Q / np.outer(D, D), R)))
            return array_namespace(S).sum(S * plain.asarray(np.outer(D, D)))

        value, slope = dil.value_and_grad(cost)(plain.asarray(A * np.outer(D, 1 / D)))
        D, d_ = np.ones(2), D
        right, right_slope = dil.value_and_grad(cost)(plain.asarray(A))
        np.testing.assert_allclose(plain.to_numpy(value), plain.to_numpy(right), rtol=1e-8)
        np.testing.assert_allclose(plain.to_numpy(slope) * np.outer(d_, 1 / d_), plain.to_numpy(right_slope), rtol=1e-6)


def test_a_tiny_start_does_not_hide_a_failure(plain):
    """refine= clears a failure only where a solution was found."""
    layer = dil.root(
        lambda u, t: u**2 - 1e-20 * t,
        lambda f, i, t: dil.Solution(0 * t + 1e-8, array_namespace(t).astype(0 * t + 7, array_namespace(t).int32)),
        refine=1,
    )
    assert Status(int(layer.solve(plain.asarray(1.0)).status)) is Status.FAILED


@pytest.mark.parametrize(("sign", "status"), [(1.0, Status.CONVERGED), (-1.0, Status.FAILED)])
@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_a_failure_is_cleared_at_a_minimum_and_not_at_a_maximum(plain, sign, status, unit):
    def failed(f, i, t):
        xp = array_namespace(t)
        return dil.Solution((1 + 1e-9) * t, xp.astype(0 * t + int(Status.FAILED), xp.int32)[0])

    layer = dil.argmin(lambda u, t: sign * array_namespace(u).sum((u - t) ** 2), failed, refine=1)
    assert Status(int(layer.solve(plain.asarray([unit, -3 * unit])).status)) is status


@pytest.mark.parametrize("step", [0, 1e-9])
def test_a_failure_is_cleared_at_a_solution_of_zero(plain, step):
    """Both sides of the equation are as large as their terms: no rounding of u can say so."""
    A = plain.asarray([[1.0, 3.0], [-2.0, 0.7]])
    exact = plain.asarray(np.linalg.solve([[1.0, 3.0], [-2.0, 0.7]], [0.1, 0.3]))

    def failed(f, i, c):
        xp = array_namespace(c)
        return dil.Solution(0 * c + step, xp.astype(0 * c + int(Status.FAILED), xp.int32)[0])

    layer = dil.root(lambda u, c: A @ (u + exact) - c, failed, refine=1)
    assert Status(int(layer.solve(plain.asarray([0.1, 0.3])).status)) is Status.CONVERGED


@pytest.mark.parametrize("exponent", [0, 3, 6, 9, 12])
def test_newton_takes_one_step_in_least_squares_whatever_the_units_of_the_unknowns(plain, exponent):
    draw = np.random.default_rng(0)
    A = draw.standard_normal((30, 6))
    D, y = 10.0 ** np.linspace(-exponent, exponent, 6), A @ draw.standard_normal(6)
    X, zero = plain.asarray(A / D), plain.asarray(0 * D)
    layer = dil.argmin(
        lambda u, y: 0.5 * array_namespace(u).sum((X @ u - y) ** 2), dil.solvers.Newton(), init=lambda y: zero
    )
    found = layer.solve(plain.asarray(y))
    assert Status(int(found.status)) is Status.CONVERGED
    assert int(found.iterations) <= 3
    np.testing.assert_allclose(plain.to_numpy(found.value) / D, np.linalg.lstsq(A, y)[0], rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [dil.argmin, dil.root], ids=lambda f: f.__name__)
@pytest.mark.parametrize("way", ["reverse", "forward"])
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_a_small_error_of_the_unknown_is_a_large_one_of_a_difference(make, way, unit, dtype):
    """dy/dh is that of y - 1, 1e-4 of y, which the solver misses by as much."""
    small, h = 1e-4, np.asarray(1.0, dtype)

    def slope(u, h):
        return h * (u / unit - 1.0) + small

    function = slope if make is dil.root else lambda u, h: 0.5 * h * (u / unit - 1.0) ** 2 + small * u / unit
    for error, told in ((small, True), (small / 1e3, False)):
        rough = lambda f, i, h, e=error: np.asarray(unit * (1 - small / h + e), dtype)  # noqa: E731
        layer = make(function, rough)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            g = dil.vjp(layer, h)[1](h)[0] if way == "reverse" else dil.jvp(layer, (h,), (h,))[1]
        assert any("NOT_STATIONARY" in str(w.message) for w in caught) == told
        if not told:
            np.testing.assert_allclose(g, unit * small, rtol=0.02)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_the_default_accuracy_of_odeint_has_the_units_of_the_state(eager, unit):
    """Two states of different units, one of which starts at zero."""
    if "strict" in eager.name:
        pytest.skip("array_api_strict is slow")
    D = eager.asarray([unit, 1e3 * unit])

    def field(t, y):
        xp = array_namespace(y)
        u = y / D
        x, v = u[..., 0], u[..., 1]
        return D * xp.stack([v, -x - 0.3 * v * x**2], axis=-1)

    found = dil.ode.odeint(field, eager.asarray([unit, 0.0]), [0.0, 2.0], method="sdirk3", rtol=1e-5, max_steps=400)
    right = [-0.32413885, -0.88159855]
    np.testing.assert_allclose(eager.to_numpy(found[-1, ...] / D), right, rtol=1e-4)


@pytest.mark.parametrize("solver", MINIMISERS, ids=lambda s: f"{type(s).__name__}-{getattr(s, 'equations', '')}")
def test_a_soft_direction_behind_a_stiff_one(plain, solver):
    """Condition number 1e11: a small gradient is no small error."""
    h = plain.asarray([1.0, 1e-11])
    layer = dil.argmin(lambda u, t: 0.5 * array_namespace(u).sum(h * (u - t) ** 2), solver, init=lambda t: 0.0 * t)
    found = layer.solve(plain.asarray([1.0, 1.0]))
    if Status(int(found.status)) is Status.CONVERGED:
        np.testing.assert_allclose(plain.to_numpy(found.value), [1.0, 1.0], rtol=1e-4)


def test_a_step_is_short_beside_the_way_from_the_start():
    """An unknown that ends at zero, or beyond it, has its way as its scale; one at rest has none."""
    rounding = np.finfo(float).eps
    u, start = np.asarray([[1.0], [-1.0], [0.0]]), np.asarray([[1.0], [1.0], [1.0]])
    short = is_short(np.full((3, 1), 3 * rounding), u, start, 0.0)
    np.testing.assert_array_equal(short, [[False], [True], [True]])


def turned(unit):
    """A root whose two unknowns are coupled, in a unit of its own; J is not symmetric."""
    return lambda v, t: v - t + unit * np.asarray([0.1, -0.1]) * np.flip(v / unit) ** 3


@pytest.mark.parametrize("unit", [1e-100, 1e-9, 1.0, 1e9, 1e100])
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_a_derivative_by_products_alone_is_judged_in_any_unit(mode, unit):
    t = np.asarray([1.0, 2.0]) * unit
    exact = dil.root(turned(unit), Newton(), init=lambda t: t)(t)
    for error, status in ((1e-5, Status.CONVERGED), (0.5, Status.NOT_STATIONARY)):
        rough = exact * (1 + error)
        layer = dil.root(turned(unit), lambda *_, y=rough: y, linear_solver=dil.linear.GMRES(), on_failure="ignore")
        with dil.record() as record:
            if mode == "forward":
                dil.jvp(layer, (t,), (np.ones(2),))
            else:
                dil.vjp(layer, t)[1](np.ones(2))
        assert Status(int(record.backward[-1].status)) is status


def test_probes_of_the_newton_step_have_the_unit_of_one_over_each_unknown():
    A, F, backend = (
        Operator(lambda p: p, lambda p: p, transposed=True),
        np.ones(3),
        dil._frameworks.registry.load("numpy"),
    )
    scale, D = np.asarray([1.0, 2.0, 3.0]), np.asarray([2.0**-30, 1.0, 2.0**30])
    found, right = (np.stack(probes_of(A, F, s, backend)) for s in (scale * D, scale))
    np.testing.assert_array_equal(found * D, right)
    assert np.linalg.matrix_rank(right) == 2


def flat_far_out(v, t, unit):
    """Unknowns that are not coupled: Newton's method converges in the first; in the second it does only from near 0."""
    u = v / unit
    return unit * np.stack([u[0] + u[0] ** 3, 10 * np.tanh(u[1])]) - t


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e150])
@pytest.mark.parametrize(("far", "status"), [(0.0, "CONVERGED"), (2.0, "NOT_STATIONARY")])
def test_a_change_below_a_percent_is_accepted_where_the_newton_step_contracts(unit, far, status):
    """The derivative of the first unknown changes by 6e-3, and the second one is not in the loss."""
    v, t = unit * np.asarray([1.004, far]), unit * np.asarray([2.0, 0.0])
    layer = dil.root(lambda v, t: flat_far_out(v, t, unit), lambda *_: v, on_failure="ignore")
    with dil.record() as record:
        dil.vjp(layer, t)[1](np.asarray([1.0, 0.0]))
    assert Status(int(record.backward[0].status)).name == status


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_a_refining_step_that_does_not_lower_the_gradient_is_not_taken(unit):
    """The Newton step of sqrt(1 + u^2) leads from u to -u^3."""

    def score(v, t):
        return unit * np.sum(np.sqrt(1 + ((v - t) / unit) ** 2))

    for start, end in ((2.0, 2.0), (0.5, -0.125)):
        start, end = unit * np.asarray([start]), unit * np.asarray([end])
        layer = dil.argmin(score, lambda *_, y=start: y, refine=1)
        np.testing.assert_allclose(layer.solve(0 * start).value, end, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_small_unknown_that_alone_is_in_the_loss_is_judged_by_its_own_size(scale):
    t, half_off = np.asarray([1e-12, 1.0]), np.asarray([1.5, 1.0 + 1e-13])
    layer = dil.root(lambda u, t: scale * (u - t), lambda f, i, t: half_off * t, linear_solver=dil.linear.GMRES())
    _, pull = dil.vjp(layer, t)
    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
        pull(np.asarray([1.0, 0.0]))


# --- unknowns that are zero ---

UNITS = [1e-12, 1e-6, 1e-2, 1.0, 1e6]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", ["argmin", "root"])
def test_a_wrong_zero_is_told_in_any_unit(kind, unit):
    """The solver returns its start, zero, and the solution is t in the unit: nothing of u has a size."""

    def score(u, t):
        return np.sum((u / unit - t) ** 2)

    layer = getattr(dil, kind)(score if kind == "argmin" else lambda u, t: u / unit - t, lambda f, i, t: 0.0 * t)
    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
        dil.grad(lambda t: np.sum((layer(t) / unit - 0.5) ** 2))(np.asarray([1.0, 2.0]))


def test_a_wrong_zero_beside_a_right_entry_is_told():
    D = np.asarray([1e-6, 1.0])
    layer = dil.argmin(lambda u, t: np.sum((u / D - t) ** 2), lambda f, i, t: np.stack([0.0 * t[0], t[1]]))
    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
        dil.grad(lambda t: np.sum((layer(t) / D - 0.5) ** 2))(np.asarray([1.0, 2.0]))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("solver", [Newton(), LBFGS(), None], ids=["Newton", "LBFGS", "closed"])
def test_a_right_zero_is_not_called_wrong(solver, unit):
    """The terms of F cancel up to rounding at u = 0."""
    A = np.asarray([[1.0, 2.0], [-0.3, 1.1], [0.7, -1.9], [1.3, 0.2]])
    t = np.linalg.svd(A.T)[2][-1] * 3.0  # A^T t = 0 up to rounding

    def score(u, t):
        return np.sum((A @ u / unit - t) ** 2)

    layer = dil.argmin(score, solver or (lambda f, i, t: np.zeros(2)), init=lambda t: np.zeros(2))
    np.testing.assert_allclose(dil.grad(lambda t: np.sum(layer(t) / unit))(t), np.linalg.pinv(A).sum(0), rtol=1e-8)


# --- the cheap test of a point, by itself ---


def solved(F, g, b, scale, probes=None, *, symmetric=True):
    """A pullback with J^T g = b at a point of size `scale`, as the check of stationarity gets it."""
    handle = dil.backend("numpy")
    F, g, b, scale = (np.asarray(x, dtype=float) for x in (F, g, b, scale))
    problem = SimpleNamespace(backend=handle.module, symmetric=symmetric)
    solution = dil.Solution(g, extra=None if probes is None else {"probes": probes})
    A = Operator(lambda p: p, symmetric=symmetric, transposed=True)
    return DerivativeSolve(SimpleNamespace(problem=problem), A, b, F, Point(scale, g, (), scale), solution, None)


@pytest.mark.parametrize("power", [-900, -300, 0, 300, 900])
@pytest.mark.parametrize("of", ["F and u", "b", "g and F"])
def test_no_unit_matters_to_the_cheap_test(of, power):
    """J = diag(1, 4), so g = b / (1, 4), and a step of 1e-13 u is near, one of 1e-11 u is not."""
    unit = {name: 2.0 ** (power * (name == of)) for name in ("F and u", "b", "g and F")}
    scale, b = unit["F and u"] * np.asarray([1.0, 2.0]), unit["b"] * np.asarray([1.0, 1.0])
    J = np.asarray([1.0, 4.0]) / unit["g and F"]
    for step, near in ((1e-13, True), (1e-11, False)):
        with np.errstate(over="ignore", under="ignore"):
            found = is_near(solved(J * step * scale, b / J, b, scale))
        assert bool(found) is near


@pytest.mark.parametrize(("first", "second"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_both_combinations_of_the_newton_step_must_be_small(first, second):
    """The probes x = A^-1 e of a residual give <x, F>, which is 1e-9 times the numbers here."""
    probes = (np.asarray([first, 0.0]), np.asarray([0.0, second]))
    found = is_near(solved([1e-9, 1e-9], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], probes, symmetric=False))
    assert bool(found) is (first == second == 0.0)


def test_the_probes_of_a_score_are_the_step_itself():
    for step, near in ((1e-13, True), (1e-11, False)):
        for entry in ([step, 0.0], [0.0, -step]):
            assert bool(is_near(solved([1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], (np.asarray(entry),)))) is near


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_step_without_curvature_has_the_size_of_the_unknown(unit, size):
    """CG gives none at the start of a double well, whose curvature is negative there."""
    found = Newton("truncated")(
        lambda u: unit * np.sum((u / size) ** 4 / 4 - (u / size) ** 2 / 2), size * np.full(2, 0.1)
    )
    assert Status(int(found.status)) is Status.CONVERGED
    np.testing.assert_allclose(np.abs(found.value), size, rtol=1e-6)
