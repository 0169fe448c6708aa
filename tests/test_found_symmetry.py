"""`Auto` finds by two products that a large matrix is symmetric, and solves it as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import dil
from dil import Status
from dil._base.operator import Source
from dil.linear import Auto, Operator
from dil.linear._choice_in_words import sentence
from dil.linear._known_patterns import KNOWN_PATTERNS

N = 2100
"""More unknowns than a dense solve may have."""


class Ring:
    """d_i x_i + up_i x_(i+1) + down_i x_(i-1) on a ring: a Laplacian, or less, with any values."""

    def __init__(self, engine, d, up=-1.0, down=None, scale=1.0, dtype="float64"):
        self.handle = dil.backend(engine.backend, device=engine.device, dtype=dtype)
        up = np.broadcast_to(up, (N,))
        down = np.roll(up, 1) if down is None else down
        self.parts = [self.handle.asarray(scale * (x + np.zeros(N))) for x in (d, up, down)]
        self.calls = 0

    def product(self, p):
        self.calls += 1
        d, up, down = self.parts
        xp = self.handle.xp
        return d * p + up * xp.roll(p, -1, axis=-1) + down * xp.roll(p, 1, axis=-1)

    def transposed(self, p):
        self.calls += 1
        d, up, down = self.parts
        xp = self.handle.xp
        return d * p + xp.roll(up * p, 1, axis=-1) + xp.roll(down * p, -1, axis=-1)

    def operator(self, symmetric=False):
        return Operator(self.product, None if symmetric else self.transposed, symmetric)

    def right(self, *shape, seed=0):
        return self.handle.asarray(np.random.default_rng(seed).standard_normal((*shape, N)))

    def residual(self, x, b):
        r = self.handle.to_numpy(b - self.product(x))
        return np.max(np.linalg.norm(r, axis=-1) / np.linalg.norm(self.handle.to_numpy(b), axis=-1))


def status_of(ring, found):
    return {Status(int(s)).name for s in np.ravel(ring.handle.to_numpy(found.status))}


SYMMETRIC = {
    "a Laplacian": {"d": 2.01},
    "of negative sign": {"d": -2.01, "up": 1.0},
    "in tiny units": {"d": 2.01, "scale": 1e-200},
    "in huge units": {"d": -2.01, "up": 1.0, "scale": 1e200},
    "a stiff one": {"d": 2.2 + np.linspace(0.0, 50.0, N) ** 2},
    "of mixed couplings": {"d": 2.002, "up": np.cos(np.arange(N) / 50.0)},
}


@pytest.mark.parametrize("case", SYMMETRIC)
def test_a_symmetric_matrix_costs_some_products_more_than_a_known_one(eager, case):
    """16 steps of BiCGSTAB, a check of their residual, and two products that show it."""
    ring = Ring(eager, **SYMMETRIC[case])
    b = ring.right()
    found = Auto()(ring.operator(), b)
    calls, ring.calls = ring.calls, 0
    assert status_of(ring, found) == {"CONVERGED"}
    assert ring.residual(found.value, b) <= 2e-12
    ring = Ring(eager, **{**SYMMETRIC[case], "d": np.abs(SYMMETRIC[case]["d"]), "up": SYMMETRIC[case].get("up", -1.0)})
    known = Auto()(ring.operator(symmetric=True), b)
    assert int(found.extra["products"]) == calls
    assert int(known.extra["products"]) + 30 <= calls <= int(known.extra["products"]) + 36
    assert "; 2 products say that the matrix is symmetric; CG or MINRES took " in str(found.extra["choice"])


def test_a_system_that_is_solved_soon_is_not_looked_at(eager):
    ring = Ring(eager, 4.0)
    b = ring.right()
    found = Auto()(ring.operator(), b)
    assert status_of(ring, found) == {"CONVERGED"}
    assert ring.calls == int(found.extra["products"]) <= 60
    assert str(found.extra["choice"]).startswith("BiCGSTAB took ")


def test_a_matrix_with_eigenvalues_of_both_signs_goes_to_minres(eager):
    ring = Ring(eager, 1.5)
    b = ring.right()
    found = Auto()(ring.operator(), b)
    assert status_of(ring, found) == {"CONVERGED"}
    assert ring.residual(found.value, b) <= 2e-12
    assert "CG or MINRES took" in str(found.extra["choice"])
    assert not bool(found.extra["indefinite"])  # what a root layer may have


@pytest.mark.parametrize("part", [1e-11, 1e-6, 0.1])
def test_a_part_that_is_not_symmetric_is_seen(eager, part):
    ring = Ring(eager, 2.5, -1.0, -1.0 + part)
    b = ring.right()
    found = Auto()(ring.operator(), b)
    assert status_of(ring, found) == {"CONVERGED"}
    assert ring.residual(found.value, b) <= 2e-12
    assert "symmetric" not in str(found.extra["choice"])
    assert "BiCGSTAB" in str(found.extra["choice"])


def test_single_precision(eager):
    ring = Ring(eager, 2.002, dtype="float32")
    b = ring.right()
    found = Auto()(ring.operator(), b)
    assert status_of(ring, found) == {"CONVERGED"}
    assert "is symmetric" in str(found.extra["choice"])


def test_the_problems_of_a_batch(eager):
    d = np.asarray([2.01, 2.02, 2.03])[:, None] * np.ones(N)
    ring = Ring(eager, d)
    b = ring.right(3)
    found = Auto()(ring.operator(), b)
    assert status_of(ring, found) == {"CONVERGED"}
    assert ring.residual(found.value, b) <= 2e-12
    assert "3 problems: BiCGSTAB gave up" in str(found.extra["choice"])


def test_one_matrix_that_is_not_symmetric_is_solved_as_it_is(eager):
    ring = Ring(eager, 2.01)
    xp, product, transposed = ring.handle.xp, ring.product, ring.transposed
    last = ring.handle.asarray(np.asarray([0.0, 0.1])[:, None])
    A = Operator(
        lambda p: product(p) + last * xp.roll(p, 1, axis=-1), lambda p: transposed(p) + last * xp.roll(p, -1, axis=-1)
    )
    b = ring.right(2)
    found = Auto()(A, b)
    assert status_of(ring, found) == {"CONVERGED"}
    assert "1 problem by CG or MINRES after BiCGSTAB in" in str(found.extra["choice"])
    r = ring.handle.to_numpy(b - A(found.value))
    assert np.max(np.linalg.norm(r, axis=-1) / np.linalg.norm(ring.handle.to_numpy(b), axis=-1)) <= 2e-12


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(eager, bad):
    d = np.full(N, 2.1)
    d[7] = bad
    ring = Ring(eager, d)
    with np.errstate(invalid="ignore"):
        found = Auto()(ring.operator(), ring.right())
    assert status_of(ring, found) == {"NON_FINITE"}


def test_a_start_and_small_systems_are_not_looked_at(eager):
    ring = Ring(eager, 2.1)
    b = ring.right()
    found = Auto()(ring.operator(), b, x0=0.0 * b)
    assert "symmetric" not in str(found.extra["choice"])
    small = Operator(lambda p: 2.0 * p, lambda p: 2.0 * p)
    found = Auto(max_iter=5)(small, b[:8])
    assert int(found.extra["products"]) <= 8
    assert str(found.extra["choice"]).startswith("dense: ")


def test_damping_belongs_to_the_matrix(eager):
    ring = Ring(eager, 2.0)
    b = ring.right()
    found = Auto(damping=0.5)(ring.operator(), b)
    assert status_of(ring, found) == {"CONVERGED"}
    r = ring.handle.to_numpy(b - ring.product(found.value) - 0.5 * found.value)
    assert np.linalg.norm(r) <= 2e-12 * np.linalg.norm(ring.handle.to_numpy(b))


def test_the_gradient_of_a_large_root_that_is_the_gradient_of_an_energy(eager):
    """-lap u + u^3 = t on a ring, written with the sign that makes J negative definite."""
    xp = eager.xp

    def equations(u, t):
        return t - 2.01 * u + xp.roll(u, 1) + xp.roll(u, -1) - u * u * u

    layer = dil.root(equations, dil.solvers.Newton(), init=lambda t: 0.0 * t)
    t = eager.asarray(1.0 + 0.5 * np.sin(np.arange(N) / 50.0))
    u, g = map(eager.to_numpy, (layer(t), dil.grad(lambda t: xp.sum(layer(t) ** 2))(t)))

    def product(p):
        return 2.01 * p - np.roll(p, 1) - np.roll(p, -1)

    np.testing.assert_allclose(product(u) + u**3, eager.to_numpy(t), rtol=1e-10)
    np.testing.assert_allclose(product(g) + 3 * u * u * g, 2 * u, rtol=1e-9, atol=1e-10 * np.max(np.abs(u)))


def test_under_jit():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    b = jax.numpy.asarray(np.random.default_rng(0).standard_normal(N))

    @jax.jit
    def solve(b, part):
        def product(p, up, down):
            return -2.01 * p + up * jax.numpy.roll(p, -1) + down * jax.numpy.roll(p, 1)

        A = Operator(lambda p: product(p, 1.0, 1.0 - part), lambda p: product(p, 1.0 - part, 1.0))
        found = Auto()(A, b)
        return found.value, found.status, found.extra["choice"].numbers()

    for part, told in ((0.0, True), (0.1, False)):
        x, status, numbers = solve(b, part)
        r = b + 2.01 * x - jax.numpy.roll(x, -1) - (1.0 - part) * jax.numpy.roll(x, 1)
        assert (int(status), "symmetric" in sentence(np.asarray(numbers))) == (0, told)
        assert float(jax.numpy.linalg.norm(r)) <= 2e-12 * float(jax.numpy.linalg.norm(b))


def test_the_next_matrix_of_a_function_is_looked_at_first(eager):
    """It saves the first steps of BiCGSTAB. A matrix that is not symmetric any more is solved as it is."""

    def code():
        """Stand for the function that the matrices are of."""

    source = Source(code, "key")
    KNOWN_PATTERNS.decide(source, N, pays=False)
    ring = Ring(eager, 2.01)
    b = ring.right()
    first, second = (Auto()(replace(ring.operator(), _source=source), b) for _ in range(2))
    assert status_of(ring, second) == {"CONVERGED"}
    assert ring.residual(second.value, b) <= 2e-12
    if eager.name == "array_api_strict":  # whose numbers count as those of a program
        assert str(second.extra["choice"]) == str(first.extra["choice"])
        return
    assert str(second.extra["choice"]).startswith("2 products say that the matrix is symmetric; CG or MINRES took ")
    known = Auto()(ring.operator(symmetric=True), b)
    assert int(second.extra["products"]) == int(known.extra["products"]) + 2 < int(first.extra["products"]) - 25
    assert int(second.iterations) == int(known.iterations)

    skew = Ring(eager, 2.01, -1.0, -0.9)
    third = Auto()(replace(skew.operator(), _source=source), b)
    assert status_of(skew, third) == {"CONVERGED"}
    assert skew.residual(third.value, b) <= 2e-12
    assert skew.calls - 1 == int(third.extra["products"]) + 2  # the look in vain
