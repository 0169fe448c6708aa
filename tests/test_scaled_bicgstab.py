"""Auto on general systems: BiCGSTAB takes the units out of the matrix where this pays, and counts what it spends."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest

import dil
from dil import Status
from dil._base.operator import Operator
from dil.linear import Auto, BiCGSTAB
from engines import Engine

N = 200
RTOL = float(np.finfo("float64").eps) ** 0.75


def matrix(kind, n=N, seed=0):
    """Return a general matrix of a kind."""
    draw = np.random.default_rng(seed)
    B = np.eye(n) + draw.standard_normal((n, n)) * (0.5 / n**0.5)
    units = draw.permutation(np.geomspace(1.0, 1e4, n))
    if kind == "rows":
        return units[:, None] * B
    if kind == "columns":
        return B * units
    if kind == "both":
        return units[:, None] ** 0.5 * B * draw.permutation(units) ** 0.5
    if kind == "similar":
        return units[:, None] ** 0.5 * (np.eye(n) + 1.4 * (B - np.eye(n))) / units**0.5
    if kind == "easy":
        return np.eye(n) + 0.2 * (B - np.eye(n))
    if kind == "flat":
        return np.eye(n) + 1.9 * (B - np.eye(n))
    assert kind == "local"  # a few large singular values, all in some of the rows: M only spreads them
    k = n // 3
    U, V = (np.linalg.qr(draw.standard_normal((k, 12)))[0] for _ in range(2))
    A = np.eye(n)
    A[:k, :k] += (U * np.geomspace(10, 3e3, 12)) @ U.T @ (np.eye(k) + 0.1 * V @ V.T)
    return A


NUMPY = Engine("numpy", "numpy")
SCALED, PLAIN = ("rows", "columns", "both"), ("similar", "easy", "flat", "local")


class Answer(NamedTuple):
    """What Auto returned, as NumPy arrays, and the calls of both products."""

    x: np.ndarray
    status: list[str]
    steps: np.ndarray
    products: np.ndarray
    calls: int
    choice: str


def answered(engine, A, b, dtype="float64", transpose=True, many=False, **options):
    handle = dil.backend(engine.backend, device=engine.device, dtype=dtype)
    A, b, xp, calls = handle.asarray(A), handle.asarray(b), handle.xp, []

    def product(p):
        calls.append(1)
        return xp.matmul(A, p[..., None])[..., 0]

    def transposed(p):
        calls.append(1)
        return xp.matmul(A.mT, p[..., None])[..., 0]

    one = Operator(product, transposed) if many else None
    found = Auto(dense=0, **options)(Operator(product, transposed if transpose else None, one=one), b)
    assert found.value.dtype == b.dtype
    x, status, steps = (np.asarray(handle.to_numpy(v)) for v in found[:3])
    names = [Status(int(s)).name for s in status.reshape(-1)]
    products = np.asarray(handle.to_numpy(found.extra["products"]))
    return Answer(x, names, steps, products, len(calls), str(found.extra["choice"]))


def plain_products(A, b):
    """Return the products of plain BiCGSTAB on NumPy, at most 4,000."""
    return int(BiCGSTAB(max_iter=2000)(lambda p: A @ p, b).extra["products"])


# what it spends


@pytest.mark.parametrize("kind", [*SCALED, *PLAIN])
def test_each_kind_ends_with_the_way_that_suits_it(eager, kind):
    for A in (matrix(kind), matrix(kind).T):
        b = np.random.default_rng(1).standard_normal(N)
        found, plain = answered(eager, A, b), plain_products(A, b)
        assert found.status == ["CONVERGED"]
        assert int(found.products) == found.calls
        assert np.linalg.norm(b - A @ found.x) <= 1.1 * RTOL * np.linalg.norm(b)
        if kind in SCALED:
            assert "scaled by them took" in found.choice
            assert found.calls <= min(200, plain / 4)
        else:
            assert "scaled by them took" not in found.choice
            assert found.calls <= (plain if kind == "easy" else min(2 * plain, plain + 32))


def slow_start(clusters, skewness, seed):
    """Return a matrix with clusters of eigenvalues in half of its unknowns: BiCGSTAB is slow, and then ends at once.

    The sizes of its rows differ, and M spreads the clusters.
    """
    draw, k = np.random.default_rng(seed), N // 2
    values = np.geomspace(1.0, 10 ** draw.uniform(1.5, 4), clusters)[draw.integers(0, clusters, k)]
    Q = np.linalg.qr(draw.standard_normal((k, k)))[0]
    R = np.eye(k) + skewness * np.triu(draw.standard_normal((k, k)), 1) / k**0.5
    A = np.eye(N)
    A[:k, :k] = R @ (Q * values) @ Q.T @ np.linalg.inv(R)
    return A


def test_where_plain_bicgstab_wins_the_products_are_below_twice_its_own():
    """The price of M is that of the first steps, even where the next step is the last one."""
    raced = []
    for clusters, skewness, seed in itertools.product(range(8, 24), (0.0, 0.5), range(3)):
        A, b = slow_start(clusters, skewness, seed), np.random.default_rng(seed).standard_normal(N)
        found, plain = answered(NUMPY, A, b), plain_products(A, b)
        assert found.status == ["CONVERGED"]
        if "lost a race" in found.choice and "scaled by them took" not in found.choice:
            assert found.calls <= min(plain + 32, 2 * plain), (clusters, skewness, seed, found.choice)
            raced.append(plain)
    assert len(raced) >= 20
    assert min(raced) <= 60  # some end soon after the race


def test_without_a_transpose_it_is_plain(eager):
    A, b = matrix("both", 60), np.random.default_rng(1).standard_normal(60)
    found = answered(eager, A, b, transpose=False)
    assert found.choice == f"BiCGSTAB took {int(found.steps)} steps"
    assert found.calls == int(found.products)


def test_the_transpose_is_never_made_for_an_easy_system():
    A, b = matrix("easy"), np.ones(N)

    def never(p):
        raise AssertionError(p)

    assert int(Auto(dense=0)(Operator(lambda p: A @ p, never), b).status) == Status.CONVERGED


# right, for each problem of a batch


def test_a_batch_of_all_kinds_is_its_problems_one_by_one(eager):
    kinds = (*SCALED, *PLAIN)
    A = np.stack([matrix(kind) for kind in kinds])
    x = np.random.default_rng(2).standard_normal((len(kinds), N))
    b = (A @ x[..., None])[..., 0]
    together = answered(eager, A, b)
    assert together.status == ["CONVERGED"] * len(kinds)
    for i in range(len(kinds)):
        alone = answered(eager, A[i], b[i])
        np.testing.assert_allclose(together.x[i], x[i], atol=1e-5)
        assert abs(int(together.products[i]) - int(alone.products)) <= 0.2 * int(alone.products) + 8
    assert together.calls >= together.products.max()


def test_many_right_hand_sides_of_one_matrix(eager):
    A, x = matrix("columns", 100), np.random.default_rng(0).standard_normal((3, 100))
    found = answered(eager, A, (A @ x[..., None])[..., 0], many=True)
    assert found.status == ["CONVERGED"] * 3
    np.testing.assert_allclose(found.x, x, atol=1e-5)
    assert found.calls <= 200


def test_float32(eager):
    for kind in SCALED:
        A, x = matrix(kind, 100), np.random.default_rng(0).standard_normal(100)
        A, b = A.astype("float32"), (A @ x).astype("float32")
        found = answered(eager, A, b, "float32")
        assert found.status == ["CONVERGED"]
        assert np.linalg.norm(b - A.astype(float) @ found.x) <= 2 * np.finfo("float32").eps ** 0.75 * np.linalg.norm(b)


def test_bad_problems_leave_the_others(eager):
    good = matrix("rows", 60)
    nan, null = good.copy(), good.copy()
    nan[3, 3], null[5] = np.nan, 0.0
    b = np.random.default_rng(1).standard_normal((5, 60))
    b[3], b[4] = 0.0, np.inf
    found = answered(eager, np.stack([good, nan, null, good, good]), b)
    assert found.status[0] == found.status[3] == "CONVERGED"
    assert found.status[1] == found.status[4] == "NON_FINITE"
    assert found.status[2] not in ("CONVERGED", "NON_FINITE")
    assert found.steps[3] == found.products[3] == 0
    np.testing.assert_allclose(good @ found.x[0], b[0], atol=1e-9)


@pytest.mark.parametrize("unit", [1e-150, 1e150])
def test_the_units_of_b_and_of_the_matrix_are_immaterial(eager, unit):
    A, b = matrix("rows", 100), np.random.default_rng(1).standard_normal(100)
    usual = answered(eager, A, b)
    for scaled, factor in ((answered(eager, A, unit * b), 1 / unit), (answered(eager, unit * A, b), unit)):
        assert usual.status == scaled.status == ["CONVERGED"]
        np.testing.assert_allclose(scaled.x * factor, usual.x, rtol=1e-5, atol=1e-7 * np.abs(usual.x).max())
        assert abs(scaled.calls - usual.calls) <= 0.1 * usual.calls + 4


def test_max_iter_is_kept(eager):
    A, b = matrix("rows"), np.random.default_rng(1).standard_normal(N)
    for most in (1, 15, 16, 17, 20, 27, 28):
        found = answered(eager, A, b, max_iter=most)
        assert int(found.steps) <= most
        assert found.status == ["MAX_ITER"]
        assert int(found.products) == found.calls


# compiled


def test_under_jit_and_vmap():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    A = np.stack([matrix("columns", 100), matrix("both", 100)])
    x = np.random.default_rng(0).standard_normal((2, 100))

    def solve(A, b):
        found = Auto(dense=0)(Operator(lambda p: A @ p, lambda p: A.T @ p), b)
        return found.value, found.status, found.extra["products"]

    dil.backend("jax", dtype="float64")
    value, status, products = jax.jit(jax.vmap(solve))(A, (A @ x[..., None])[..., 0])
    assert status.tolist() == [Status.CONVERGED] * 2
    assert products.max() <= 200
    np.testing.assert_allclose(value, x, atol=1e-5)
