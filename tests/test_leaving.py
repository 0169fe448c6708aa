"""Problems that have ended leave the batch: fewer rows are computed, and every answer stays what it was."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil.solvers import LBFGS, Anderson, FixedPoint, GradientDescent, Newton

COUNT = 1536
HARD = 8
"""Each so many-th problem is hard."""


def eager(plain):
    if plain.backend == "jax":
        pytest.skip("the shapes of a compiled program do not depend on values")
    return plain


def starts(*args):
    return array_namespace(args[0]).ones_like(args[0])


def growth(u):
    """Newton's method comes down by one a step: the root of exp(u) = exp(x) from u = 1 takes |x| steps for x < 0."""
    return array_namespace(u).exp(u)


def by_kind(x, hard, easy):
    xp = array_namespace(x)
    return xp.where(x < 0, xp.full_like(x, hard), xp.full_like(x, easy))


class Counted:
    """A function that counts the rows that it was evaluated for."""

    def __init__(self, fn):
        self.fn, self.rows = fn, []

    def __call__(self, u, *args):
        self.rows.append(u.shape[0])
        return self.fn(u, *args)


def bowl(u, x):
    return array_namespace(u).sum(0.5 * by_kind(x, 1e-3, 1.0) * (u - x) ** 2 + 0.25 * (u - x) ** 4, axis=-1)


def flat_far_away(u, x):
    xp = array_namespace(u)
    return xp.where(x < 0, u - 0.3 * xp.tanh(u - x), x + 0.1 * (u - x))


CASES = {
    "root": (dil.root, Newton(), lambda u, x: growth(u) - growth(x)),
    "score": (dil.argmin, Newton(), lambda u, x: array_namespace(u).sum(growth(u) - u * growth(x), axis=-1)),
    "quasi-Newton": (dil.argmin, LBFGS(), bowl),
    "descent": (dil.argmin, GradientDescent(step=0.1), bowl),
    "Anderson": (dil.fixed_point, Anderson(memory=2), flat_far_away),
    "step": (dil.fixed_point, FixedPoint(), lambda u, x: x + by_kind(x, 0.9, 0.1) * (u - x)),
}


def problems(n=1):
    """Return the answers; a few are far away."""
    x = np.random.default_rng(0).uniform(0.5, 0.9, (COUNT, n))
    x[::HARD] -= 9.0
    return x


@pytest.mark.parametrize("case", CASES)
def test_the_few_hard_problems_do_not_make_all_pay(plain, case, monkeypatch):
    make, solver, fn = CASES[case]
    x, counted = eager(plain).asarray(problems()), Counted(fn)
    layer = make(counted, solver, init=starts, batch_ndim=1)
    found = layer.solve(x)
    values, iterations = plain.to_numpy(found.value), plain.to_numpy(found.iterations)
    assert np.all(plain.to_numpy(found.status) == int(dil.Status.CONVERGED))
    np.testing.assert_allclose(values, problems(), rtol=1e-6)
    easy = np.delete(iterations, np.s_[::HARD])
    assert iterations[::HARD].min() > easy.max(), "the case has no hard problems"
    assert min(counted.rows) <= COUNT // 2, "no problem has left the batch"
    together = Counted(fn)
    keep_together(monkeypatch)
    make(together, solver, init=starts, batch_ndim=1).solve(x)
    assert sum(counted.rows) < 0.8 * sum(together.rows)


def keep_together(monkeypatch):
    """No batch is large from now on."""
    monkeypatch.setattr("dil._frameworks.leaving.MANY", 10**9)


@pytest.mark.parametrize("case", CASES)
def test_the_answers_are_those_of_the_whole_batch(plain, case, monkeypatch):
    make, solver, fn = CASES[case]
    x = eager(plain).asarray(problems())
    one = make(fn, solver, init=starts, batch_ndim=1).solve(x)
    keep_together(monkeypatch)
    other = make(fn, solver, init=starts, batch_ndim=1).solve(x)
    np.testing.assert_allclose(plain.to_numpy(one.value), plain.to_numpy(other.value), rtol=1e-12)
    assert np.array_equal(plain.to_numpy(one.iterations), plain.to_numpy(other.iterations))
    assert np.array_equal(plain.to_numpy(one.status), plain.to_numpy(other.status))


def test_a_batch_of_two_dimensions(plain):
    x = eager(plain).asarray(problems().reshape(48, 32, 1))
    scale = plain.asarray(np.linspace(1.0, 2.0, 32)[:, None])  # one for each problem of the second dimension
    counted = Counted(lambda u, x, c: c * (growth(u) - growth(x)))
    found = dil.root(counted, Newton(), init=starts, batch_ndim=2).solve(x, scale)
    np.testing.assert_allclose(plain.to_numpy(found.value), plain.to_numpy(x), rtol=1e-9)
    # the scale does not begin with the shape of the batch, so a part of the problems would get the wrong ones
    assert min(counted.rows) == 48
    whole = plain.asarray(np.broadcast_to(plain.to_numpy(scale), (48, 32, 1)).copy())
    counted.rows.clear()
    found = dil.root(counted, Newton(), init=starts, batch_ndim=2).solve(x, whole)
    np.testing.assert_allclose(plain.to_numpy(found.value), plain.to_numpy(x), rtol=1e-9)
    assert max(counted.rows) > 48, "no problem has left the batch"


def test_a_matrix_for_all_that_has_as_many_rows_as_the_batch(plain):
    """Its shape begins with that of the batch. F tells that it has no parts."""
    n = 64
    M = np.eye(n) + 0.1 * np.random.default_rng(0).standard_normal((n, n)) / n
    x = problems()[:n] + np.zeros((1, n))
    b, matrix = (eager(plain).asarray(a) for a in (np.exp(x) @ M, M))
    counted = Counted(lambda u, b, M: array_namespace(u).matmul(growth(u), M) - b)
    found = dil.root(counted, Newton(), init=starts, batch_ndim=1).solve(b, matrix)
    np.testing.assert_allclose(plain.to_numpy(found.value), x, rtol=1e-6)
    assert np.all(plain.to_numpy(found.status) == int(dil.Status.CONVERGED))
    assert n in counted.rows[-10:]


SOLVERS = {
    "root": (dil.root, Newton()),
    "score": (dil.argmin, Newton()),
    "quasi-Newton": (dil.argmin, LBFGS()),
    "descent": (dil.argmin, GradientDescent()),
    "Anderson": (dil.fixed_point, Anderson()),
    "step": (dil.fixed_point, FixedPoint()),
}


def of_kind(make, F):
    """Return the function of a layer for F(u, x, ...) = s u + x."""
    if make is dil.fixed_point:
        return lambda u, *args: u - 0.5 * F(u, *args)
    if make is dil.root:
        return F
    return lambda u, x, *s: array_namespace(u).sum(0.5 * u * (F(u, x, *s) + x), axis=-1)


@pytest.mark.parametrize("case", SOLVERS)
@pytest.mark.parametrize("kind", ["shared", "place"])
def test_no_problem_gets_the_numbers_of_another(plain, case, kind):
    """At the start, zero, F does not show them: a shared scale as long as the batch, and one that counts the rows."""
    make, solver = SOLVERS[case]
    n = 40
    scale = np.linspace(1.0, 1.9, n)
    x = np.zeros((n, n))
    hard = slice(8, 9) if kind == "shared" else slice(None, None, HARD)  # the parts for one problem broadcast
    x[hard] = np.random.default_rng(0).uniform(1.0, 2.0, x[hard].shape)  # the others end at the start
    if kind == "shared":
        y, expected, args = lambda u, x, s: s * u + x, -x / scale, (x, scale)
    else:
        held = eager(plain).asarray(scale[:, None])
        y, expected, args = lambda u, x: held[: u.shape[0], ...] * u + x, -x / scale[:, None], (x,)
    layer = make(of_kind(make, y), solver, init=lambda x, *_: 0.0 * x, batch_ndim=1, on_failure="ignore")
    found = layer.solve(*(eager(plain).asarray(a) for a in args))
    assert np.all(plain.to_numpy(found.status) == int(dil.Status.CONVERGED))
    np.testing.assert_allclose(plain.to_numpy(found.value), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", ["captured", "asserted", "reshaped", "mixed"])
def test_a_function_that_needs_the_whole_batch_gets_it(plain, kind):
    x = eager(plain).asarray(problems())

    def captured(u, z):
        return growth(u) - growth(x)

    def asserted(u, z):
        assert u.shape[0] == COUNT
        return growth(u) - growth(z)

    def reshaped(u, z):
        xp = array_namespace(u)
        return xp.reshape(xp.reshape(growth(u) - growth(z), (COUNT // 2, 2)), (COUNT, 1))

    def mixed(u, z):  # each problem is told how many there are
        return growth(u) - growth(z) * (u.shape[0] / COUNT)

    layer = dil.root(locals()[kind], Newton(), init=starts, batch_ndim=1)
    found = layer.solve(x)
    np.testing.assert_allclose(plain.to_numpy(found.value), problems(), rtol=1e-9)
    assert np.all(plain.to_numpy(found.status) == int(dil.Status.CONVERGED))


def test_problems_that_fail_stay_alone(plain):
    """A row of NaN ends NON_FINITE, one without a root NO_ROOT or SINGULAR, and the others are solved."""
    x = problems()
    x[1], shift = np.nan, np.zeros((COUNT, 1))
    shift[8] = 1.0
    fn = lambda u, x, s: (1 - s) * (growth(u) - growth(x)) + s * (u**2 + 1.0)  # noqa: E731
    found = dil.root(fn, Newton(), init=starts, batch_ndim=1, on_failure="ignore").solve(
        *(eager(plain).asarray(a) for a in (x, shift))
    )
    status, values = plain.to_numpy(found.status), plain.to_numpy(found.value)
    assert status[1] == int(dil.Status.NON_FINITE)
    assert status[8] in (int(dil.Status.NO_ROOT), int(dil.Status.SINGULAR), int(dil.Status.STAGNATED))
    others = np.delete(np.arange(COUNT), [1, 8])
    assert np.all(status[others] == int(dil.Status.CONVERGED))
    np.testing.assert_allclose(values[others], x[others], rtol=1e-9)


@pytest.mark.parametrize("unit", [1e-60, 1e60])
def test_no_unit_matters(plain, unit):
    x = eager(plain).asarray(problems() * unit)
    counted = Counted(lambda u, x: growth(u / unit) - growth(x / unit))
    found = dil.root(counted, Newton(), init=lambda x: unit * starts(x), batch_ndim=1).solve(x)
    np.testing.assert_allclose(plain.to_numpy(found.value), problems() * unit, rtol=1e-9)
    assert min(counted.rows) <= COUNT // 2


def test_a_root_whose_slope_is_tiny_ends_when_F_is_rounding(plain):
    """F is 0 to the last digit over a long way; Newton's steps are long there and lower F by chance alone."""
    x = np.full((COUNT, 1), 0.5)
    slope = np.full((COUNT, 1), 1.0)
    slope[::HARD] = 1e-14
    counted = Counted(lambda u, x, a: (1.0 + a * (u - x)) ** 3 - 1.0)
    found = dil.root(counted, Newton(), init=lambda x, a: 0.7 * starts(x), batch_ndim=1).solve(
        *(eager(plain).asarray(a) for a in (x, slope))
    )
    assert np.all(plain.to_numpy(found.status) == int(dil.Status.CONVERGED))
    assert plain.to_numpy(found.iterations).max() <= 20


def test_gradients_through_a_batch_whose_problems_left(plain):
    """y = x, so dy/dx is one."""
    x = eager(plain).asarray(problems())
    _, pull = dil.vjp(dil.root(lambda u, x: growth(u) - growth(x), Newton(), init=starts, batch_ndim=1), x)
    (g,) = pull(array_namespace(x).ones_like(x))
    np.testing.assert_allclose(plain.to_numpy(g), np.ones((COUNT, 1)), rtol=1e-9)
