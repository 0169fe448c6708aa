"""The residuals that conjugate gradients keep, and when they make new ones orthogonal to them."""

from __future__ import annotations

import numpy as np
import pytest

from dil import Status
from dil._base.scalars import Scalars
from dil._frameworks.registry import common_owner
from dil.linear import CG, Auto, Operator
from dil.linear._racing_cg import PROBES
from dil.linear._scaled_cg import MOST_REPAIRS
from dil.linear._window import MOST_ROWS, Window


def laplacian(side):
    """Return the product with the matrix of a square grid, with u = 0 on the rim."""

    def product(p):
        v = p.reshape(side, side)
        after = 4.0 * v
        after[1:] -= v[:-1]
        after[:-1] -= v[1:]
        after[:, 1:] -= v[:, :-1]
        after[:, :-1] -= v[:, 1:]
        return after.reshape(-1)

    return product


def rotated(d):
    """Return the product with a matrix with the eigenvalues d in a random basis."""
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((len(d), len(d))))[0]
    A = (Q * d) @ Q.T
    A = (A + A.T) / 2
    return lambda p: A @ p


@pytest.fixture
def repairs(monkeypatch):
    """Return a list with an entry for each residual that was made orthogonal."""
    seen, orthogonal = [], Window.orthogonal

    def counted(self, r):
        seen.append(self.count)
        return orthogonal(self, r)

    monkeypatch.setattr(Window, "orthogonal", counted)
    return seen


@pytest.fixture
def looks(monkeypatch):
    """Return a list with an entry for each look at the component of a residual along the window."""
    seen, component = [], Window.component

    def counted(self, r, scalars):
        seen.append(self.count)
        return component(self, r, scalars)

    monkeypatch.setattr(Window, "component", counted)
    return seen


def products(solver, product, b):
    """Return the products of a solve that converges."""
    found = solver(Operator(product, symmetric=True), b)
    assert int(found.status) == Status.CONVERGED
    return int(found.extra["products"])


@pytest.mark.parametrize("shape", [(40,), (2, 40)])
def test_a_window_takes_away_the_components_along_its_rows(shape):
    loops = common_owner([np.ones(1)], ["b"], "the test").loops
    window, draw = Window.empty(np.ones(shape), grows=True), np.random.default_rng(0)
    Q = np.linalg.qr(draw.standard_normal((*shape, 20)))[0]
    for k in range(20):
        window = window.with_row(Q[..., k], loops)
    r = draw.standard_normal(shape)
    expected = r - (Q @ (Q.mT @ r[..., None]))[..., 0]
    np.testing.assert_allclose(window.orthogonal(r), expected, rtol=0.0, atol=1e-14)
    scalars = Scalars(loops.number, loops.numbers, len(shape) == 1)
    assert np.all(np.asarray(window.component(r, scalars)) > 0.01)
    assert np.all(np.asarray(window.component(expected, scalars)) < 1e-13)


def test_a_window_forgets_the_problems_that_start_anew():
    loops = common_owner([np.ones(1)], ["b"], "the test").loops
    rows = np.stack([np.eye(40)[:20], np.eye(40)[:20]], axis=1)
    window = Window.empty(np.ones((2, 40)), grows=True)
    for row in rows:
        window = window.with_row(row, loops)
    assert window.without(False) is window
    window, r = window.without(np.asarray([[True], [False]])), np.ones((2, 40))
    np.testing.assert_array_equal(window.orthogonal(r), np.stack([r[0], (np.arange(40) >= 20) * 1.0]))
    component = window.component(r, Scalars(loops.number, loops.numbers, False))
    assert component[0] == 0 < component[1]


@pytest.mark.parametrize("b", ["ones", "noise"])
def test_no_residual_is_made_orthogonal_on_a_fine_grid(repairs, looks, b):
    """Its eigenvalues lie close, so the first residuals have found none when they are all kept."""
    side = 100
    b = np.ones(side**2) if b == "ones" else np.random.default_rng(0).standard_normal(side**2)
    taken, plain = (products(solver, laplacian(side), b) for solver in (Auto(dense=0), CG()))
    assert not repairs
    assert len(looks) <= MOST_ROWS
    assert taken <= plain + PROBES + 1  # it takes the steps of plain CG


def test_a_few_large_eigenvalues_are_found_once(repairs):
    draw = np.random.default_rng(1)
    product = rotated(np.concatenate([np.geomspace(10, 1e4, 20), draw.uniform(1, 2, 280)]))
    taken, plain = (products(solver, product, draw.standard_normal(300)) for solver in (Auto(dense=0), CG()))
    assert 0 < len(repairs) < MOST_REPAIRS
    assert taken < 0.6 * plain


@pytest.mark.parametrize("kind", ["geometric", "two scales"])
def test_after_the_last_repair_the_iteration_starts_anew(repairs, looks, kind):
    """More eigenvalues than the window can hold. What the repairs took from the residual must not cost steps later."""
    draw = np.random.default_rng(1)
    scales = np.concatenate([draw.uniform(1, 3, 200), 3e5 * draw.uniform(0.3, 1, 100)])
    product, b = rotated(np.geomspace(1, 1e4, 300) if kind == "geometric" else scales), draw.standard_normal(300)
    taken, plain = (products(solver, product, b) for solver in (Auto(dense=0), CG(max_iter=10_000)))
    assert len(repairs) == MOST_REPAIRS
    assert len(looks) < MOST_REPAIRS + MOST_ROWS
    assert taken < 1.2 * plain
