"""The pairs of order 5: their order conditions, dense output, and other libraries."""

from __future__ import annotations

import numpy as np
import pytest

import dil
from dil import Status
from dil._frameworks.registry import owner
from dil.ode import odeint, solve
from dil.ode._in_turn import InTurn
from dil.ode._pairs import PAIRS
from dil.ode._row_groups import RowGroups
from ode_helpers import close, decay, riccati

# Hairer, Norsett and Wanner 1993, table II.2.2: the sums over the trees of each order, and their values
CONDITIONS = {
    1: (lambda w, A, c: [w.sum()], [1]),
    2: (lambda w, A, c: [w @ c], [2]),
    3: (lambda w, A, c: [w @ c**2, w @ A @ c], [3, 6]),
    4: (lambda w, A, c: [w @ c**3, w @ (c * (A @ c)), w @ A @ c**2, w @ A @ A @ c], [4, 8, 12, 24]),
    5: (
        lambda w, A, c: [
            w @ c**4,
            w @ (c**2 * (A @ c)),
            w @ (c * (A @ c**2)),
            w @ A @ c**3,
            w @ (A @ c) ** 2,
            w @ (c * (A @ A @ c)),
            w @ A @ (c * (A @ c)),
            w @ A @ A @ c**2,
            w @ A @ A @ A @ c,
        ],
        [5, 10, 15, 20, 20, 30, 40, 60, 120],
    ),
}


def order_of(w, A, c, part):
    """Return the order of the state at t + part h that the weights give."""
    for order, (sums, values) in CONDITIONS.items():
        if not np.allclose(sums(w, A, c), part**order / np.asarray(values), rtol=0, atol=1e-12):
            return order - 1
    return 5


class Unit(InTurn):
    """Stages whose slopes are unit vectors, so that a step shows its coefficients."""

    def __init__(self, count):
        self.count, self.rows, self.times = count, [], []

    def slope(self, t, y):
        self.rows.append(y[0])
        self.times.append(float(t))
        return (np.eye(self.count)[len(self.rows)],)

    def solve(self, base, t, gh):
        (k,) = self.slope(t, base)
        return (base[0] + gh * k,)


@pytest.mark.parametrize("method", PAIRS.values(), ids=lambda method: method.name)
def test_order_conditions(method):
    stages = Unit(7)
    now = (np.eye(7)[0],)
    step = method.advance(stages, (np.zeros(7),), now, np.asarray(0.0), np.asarray(1.0))
    # the rows of an implicit method are bases, without the diagonal
    diagonal = 0.26 if method.implicit else 0.0
    A = np.asarray([np.zeros(7), *stages.rows]) + diagonal * np.diag([0, *np.ones(6)])
    c = A.sum(axis=1)
    np.testing.assert_allclose(c[1:], stages.times, atol=1e-15)
    b, estimate, bulge = step.y[0], step.error()[0], step.bulge()[0]
    assert order_of(b, A, c, 1.0) == 5
    assert order_of(b - estimate, A, c, 1.0) == 4
    ends = 0.125 * (np.eye(7)[0] - np.eye(7)[6])
    assert order_of(bulge + 0.5 * b + ends, A, c, 0.5) == 4


def test_kvaerno5_is_stiffly_accurate_and_its_error_is_that_of_a_stage():
    """At a rate of 1e12 a step leaves nothing: both states of the pair are zero."""
    found = solve(decay, np.asarray([1.0]), [0.0, 1.0], (np.asarray(1e12),), method="kvaerno5")
    assert abs(found.value[-1, 0]) < 1e-10


@pytest.mark.parametrize("method", [*PAIRS, "radau"])
def test_dense_output_is_of_order_four(method):
    """The largest error between the ends of a step falls with the fifth power of its length."""
    times, errors = np.linspace(0.0, 1.0, 41), []
    for h in (0.5, 0.25):
        options = {"method": method, "rtol": 1e10, "first_step": h, "atol": 1e10}
        y = odeint(riccati, np.asarray(1.0), h * times, (np.asarray(0.7),), **options)
        errors.append(np.abs(y - 1 / (1 + 0.7 * np.sin(h * times))).max())
    assert np.log2(errors[0] / errors[1]) > 4.4


def test_dopri5_takes_the_steps_of_scipy():
    integrate = pytest.importorskip("scipy.integrate", reason="SciPy is not installed")
    c, h = 0.7, 0.25
    theirs = integrate.RK45(lambda t, y: riccati(t, y, c), 0.0, [1.0], 1.0, first_step=h, rtol=1e3, atol=1e3)
    theirs.step()
    ours = odeint(riccati, np.asarray([1.0]), [0.0, h], (np.asarray(c),), method="dopri5")
    close(ours[-1], theirs.y, 1e-14)


@pytest.mark.parametrize("method", ["sdirk3", "kvaerno5", "radau"])
def test_no_fold_is_missed(method):
    """Van der Pol's equation at eps = 1e-6 jumps at t = 0.807 and 1.614; past a fold, a step may stay where it is."""
    field = lambda t, y: np.stack([y[1], ((1 - y[0] ** 2) * y[1] - y[0]) / 1e-6])  # noqa: E731
    for rtol in (1e-2, 1e-3, 1e-4):
        found = solve(field, np.asarray([2.0, -0.66]), [0.0, 2.0], method=method, rtol=rtol, max_steps=2000)
        assert Status(int(found.status)) is Status.CONVERGED
        np.testing.assert_allclose(found.value[-1], [1.706167732, -0.892810011], rtol=2e-2)


def test_an_orbit_is_followed_explicitly_at_the_tolerance():
    """y'' = -y over three periods by each explicit pair."""
    for method in ("tsit5", "dopri5"):
        times = np.linspace(0.0, 6 * np.pi, 7)
        found = solve(lambda t, y: np.stack([y[1], -y[0]]), np.asarray([1.0, 0.0]), times, method=method, rtol=1e-7)
        assert Status(int(found.status)) is Status.CONVERGED
        np.testing.assert_allclose(found.value[:, 0], np.cos(times), atol=2e-5)
        assert int(found.steps) < 200


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_rows_of_a_jacobian_are_pulled_back_together(engine):
    """Few pullbacks give a matrix with three diagonals; an entry that comes later is found by the one that checks."""
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    backend = dil.backend(engine, dtype="float64")
    n, draw, groups = 40, np.random.default_rng(1), RowGroups()
    one = np.triu(np.tril(draw.standard_normal((n, n)), 1), -1)
    start = backend.asarray(np.ones(n))
    for matrix, most in ((one, n), (2.0 * one, 6), (one + np.eye(n, k=17), n + 6), (3.0 * one, 8)):
        J, rows = backend.asarray(matrix), []

        def pull(p, J=J, rows=rows):
            rows.append(p)
            return p @ J

        found = groups.jacobian(pull, start, owner(start))
        np.testing.assert_allclose(backend.to_numpy(found), matrix, rtol=1e-15)
        assert engine == "torch" or len(rows) <= most  # torch maps the rows at once
