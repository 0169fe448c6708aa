"""The residuals that conjugate gradients keep, and when they make new ones orthogonal to them."""

from __future__ import annotations

import numpy as np
import pytest

from dil import Status
from dil.linear import CG, Auto, Operator
from dil.linear._scaled_cg import MOST_REPAIRS
from dil.linear._window import Window


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


def products(solver, product, b):
    """Return the products of a solve that converges."""
    found = solver(Operator(product, symmetric=True), b)
    assert int(found.status) == Status.CONVERGED
    return int(found.extra["products"])


@pytest.mark.parametrize("b", ["ones", "noise"])
def test_no_residual_is_made_orthogonal_on_a_fine_grid(repairs, b):
    """Its eigenvalues lie close, so the first residuals have found none when they are all kept."""
    side = 100
    b = np.ones(side**2) if b == "ones" else np.random.default_rng(0).standard_normal(side**2)
    taken, plain = (products(solver, laplacian(side), b) for solver in (Auto(dense=0), CG()))
    assert not repairs
    assert taken <= 1.15 * plain


def test_a_few_large_eigenvalues_are_found_once(repairs):
    draw = np.random.default_rng(1)
    product = rotated(np.concatenate([np.geomspace(10, 1e4, 20), draw.uniform(1, 2, 280)]))
    taken, plain = (products(solver, product, draw.standard_normal(300)) for solver in (Auto(dense=0), CG()))
    assert 0 < len(repairs) < MOST_REPAIRS
    assert taken < 0.6 * plain


@pytest.mark.parametrize("kind", ["geometric", "two scales"])
def test_after_the_last_repair_the_iteration_starts_anew(repairs, kind):
    """More eigenvalues than the window can hold. What the repairs took from the residual must not cost steps later."""
    draw = np.random.default_rng(1)
    scales = np.concatenate([draw.uniform(1, 3, 200), 3e5 * draw.uniform(0.3, 1, 100)])
    product, b = rotated(np.geomspace(1, 1e4, 300) if kind == "geometric" else scales), draw.standard_normal(300)
    taken, plain = (products(solver, product, b) for solver in (Auto(dense=0), CG(max_iter=10_000)))
    assert len(repairs) == MOST_REPAIRS
    assert taken < 1.2 * plain
