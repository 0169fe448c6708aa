"""What a backward pass spends on a loose point, and what it says of it."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import dil
from dil._base.options import declares
from dil._diagnostics import newton_comparison
from dil._layers.following import FollowingAuto, following
from dil.linear import Auto
from dil.solvers import Anderson

N = 1200
"""More unknowns than a dense solve serves."""


def mixed(u, t, c):
    """Solve u = t + 0.3 shift(u) + c u^2 / 10, whose derivative changes with u where c is not 0."""
    return t + 0.3 * np.concatenate([u[..., 1:], u[..., :1]], axis=-1) + 0.1 * c * u**2


class Measuring(FollowingAuto):
    """The default linear solver of a loose layer that stays where its solver ended, as in a compiled program."""

    _continues = False


def layer_at(off, **options):
    """Return a fixed-point layer whose solver leaves the relative error `off`, shape batch."""
    exact = dil.fixed_point(mixed, Anderson(rtol=1e-12), init=lambda t, c: 0.0 * t, batch_ndim=1)

    def rough(step, u, t, c):
        return exact.solve(t, c).value * (1.0 + np.asarray(off)[:, None])

    options = {"linear_solver": Measuring(1e-5), "check_smoothness": "never", "batch_ndim": 1} | options
    return dil.fixed_point(mixed, rough, init=lambda t, c: 0.0 * t, **options)


def passed_back(layer, batch=3, c=1.0):
    """Return the gradient in t of a batch of fixed points, and the warnings of the backward pass."""
    t = 0.5 + 0.1 * np.random.default_rng(0).standard_normal((batch, N))
    _, pull = dil.vjp(lambda t, c: layer(t, c), t, np.full((batch, 1), c))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gradient = pull(np.cos(np.arange(batch * N)).reshape(batch, N))
    return gradient, [str(w.message) for w in said]


@pytest.fixture
def along(monkeypatch):
    """Count the derivatives along random directions."""
    count, inner = Counter(), newton_comparison.Sensitivities.along

    def counted(self, k):
        count.update([k])
        return inner(self, k)

    monkeypatch.setattr(newton_comparison.Sensitivities, "along", counted)
    return count


def test_a_gradient_that_holds_is_seen_by_few_directions(along):
    _, said = passed_back(layer_at([1e-4, 2e-4, 1e-5]))
    assert not said
    assert along == dict.fromkeys(range(newton_comparison.FIRST_PROBES), 2)


def test_one_gradient_in_doubt_is_looked_at_along_all(along):
    _, said = passed_back(layer_at([1e-4, 4e-3, 1e-5]))
    assert not said
    assert along == dict.fromkeys(range(newton_comparison.PROBES), 2)


@pytest.mark.parametrize("linear_solver", [Measuring(1e-5), Measuring(1e-3), FollowingAuto(1e-5), Auto()], ids=str)
def test_the_problem_whose_gradient_is_off_is_told(linear_solver):
    _, said = passed_back(layer_at([1e-4, 5e-2, 1e-4], linear_solver=linear_solver))
    assert len(said) == 1
    assert "1 of 3 problems (the first at 1) ended NOT_STATIONARY" in said[0]


@pytest.mark.parametrize("linear_solver", [Measuring(1e-5), FollowingAuto(1e-5)], ids=str)
def test_a_step_that_a_loose_solve_hides_is_told(linear_solver):
    """It is long along a direction of small curvature, and F is large along others; the cotangent sees the first."""
    slopes = np.where(np.arange(N) == 0, 1e-4, np.linspace(0.5, 1.0, N))
    v = np.where(np.arange(N) == 0, 1.0, 0.0)

    def affine(u, t):
        return u - slopes * (u - t)

    def said_of(error):
        layer = dil.fixed_point(
            affine,
            lambda step, u, t: t + error,
            init=lambda t: t,
            linear_solver=linear_solver,
            check_smoothness="never",
        )
        _, pull = dil.vjp(layer, np.ones(N))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            pull(v)
        return [str(w.message) for w in said]

    small = 1e-3 * np.ones(N)
    assert not said_of(small)
    assert "NOT_STATIONARY" in said_of(np.where(np.arange(N) == 0, 0.05, small))[0]


def test_the_step_of_a_check_is_solved_to_two_digits():
    assert FollowingAuto(1e-6)._of_steps == FollowingAuto(1e-2)
    assert declares(FollowingAuto(1e-6), "_takes_start")
    assert isinstance(following(Anderson(rtol=1e-4), 0), FollowingAuto)
    solved = Counter()

    class Counting(Measuring):
        _takes_start = True

        def __call__(self, A, b, /, *, loop, x0=None):
            found = Auto(rtol=self.rtol, max_iter=100)(A, b, loop=loop, x0=x0)  # which rules a factorisation out
            solved.update({(self.rtol, x0 is not None): int(found.iterations.max())})
            return found

        @property
        def _of_steps(self):
            return replace(self, rtol=1e-2)

    passed_back(layer_at([1e-4, 2e-4, 1e-5], linear_solver=Counting(1e-8)))
    assert set(solved) == {(1e-8, False), (1e-2, False), (1e-8, True)}  # g, the step, and g one step further from g
    assert solved[1e-2, False] <= 0.5 * solved[1e-8, False]
    assert solved[1e-8, True] < solved[1e-8, False]


def test_ignored_points_are_not_looked_at():
    off, count = [5e-2, 5e-2], Counter()

    class Counting:
        def __call__(self, A, b, /, *, loop):
            count.update(["solves"])
            return Auto()(A, b, loop=loop)

    found = {}
    for policy in ("ignore", "warn", "nan"):
        count.clear()
        found[policy], said = passed_back(layer_at(off, on_failure=policy, linear_solver=Counting()), batch=2)
        assert (count["solves"] == 1) == (policy == "ignore")
        assert bool(said) == (policy == "warn")
    np.testing.assert_array_equal(found["ignore"][0], found["warn"][0])
    assert np.isnan(found["nan"][0]).all()


def test_a_record_looks_at_points_that_are_ignored():
    layer = layer_at([1e-4, 5e-2], on_failure="ignore")
    with dil.record() as record:
        passed_back(layer, batch=2)
    (entry,) = (e for e in record.entries if e.stage == "backward")
    assert [dil.Status(int(s)).name for s in entry.status] == ["CONVERGED", "NOT_STATIONARY"]
