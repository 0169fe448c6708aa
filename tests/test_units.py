"""Laws of units: a change of the units of the score, the unknowns, the time or the arguments changes nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st

import dil
from dil import Status
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


@pytest.mark.parametrize("solver", MINIMISERS, ids=lambda s: f"{type(s).__name__}-{getattr(s, 'equations', '')}")
def test_a_soft_direction_behind_a_stiff_one(plain, solver):
    """Condition number 1e11: a small gradient is no small error."""
    h = plain.asarray([1.0, 1e-11])
    layer = dil.argmin(lambda u, t: 0.5 * array_namespace(u).sum(h * (u - t) ** 2), solver, init=lambda t: 0.0 * t)
    found = layer.solve(plain.asarray([1.0, 1.0]))
    if Status(int(found.status)) is Status.CONVERGED:
        np.testing.assert_allclose(plain.to_numpy(found.value), [1.0, 1.0], rtol=1e-4)
