"""Auto on symmetric systems: it preconditions itself, stays right, and counts what it spends."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dil
from dil import Status
from dil._base.operator import Operator
from dil._frameworks.registry import common_owner
from dil.linear import CG, Auto
from dil.linear._racing_cg import racing_cg

N = 1000
RTOL = float(np.finfo("float64").eps) ** 0.75
MOST = {"scales": 60, "stiff": 130}
"""The products that a system of a kind may take."""


class Spectral(NamedTuple):
    """Eigenvalues d, (*batch, n), in the basis of some mirrors, (m, *batch, n), and a spring between neighbours."""

    d: np.ndarray
    mirrors: np.ndarray
    spring: float = 0.0

    def scaled(self, unit):
        return self._replace(d=unit * self.d, spring=unit * self.spring)

    def matrix(self):
        """Return A of one problem."""
        n = len(self.d)
        H = np.eye(n)
        for v in self.mirrors:
            H = H - 2 * np.outer(v, v) @ H
        L = np.diag(np.r_[1.0, 2.0 * np.ones(n - 2), 1.0]) - np.eye(n, k=1) - np.eye(n, k=-1)
        return H.T @ (self.d[:, None] * H) + self.spring * L

    def product(self, handle):
        xp, d = handle.xp, handle.asarray(self.d)
        mirrors = [handle.asarray(v) for v in self.mirrors]

        def reflected(p, vectors):
            for v in vectors:
                p = p - 2.0 * xp.sum(v * p, axis=-1, keepdims=True) * v
            return p

        def product(p):
            after = reflected(d * reflected(p, mirrors), mirrors[::-1])
            if self.spring == 0:
                return after
            force, end = self.spring * (p[..., 1:] - p[..., :-1]), 0.0 * p[..., :1]
            return after + xp.concat([end, force], axis=-1) - xp.concat([force, end], axis=-1)

        return product


def spectral(kind, n, seed=0):
    """Return a system of a kind, its mirrors four or none."""
    draw = np.random.default_rng(seed)
    mirrors = draw.standard_normal((4, n))
    mirrors, none = mirrors / np.linalg.norm(mirrors, axis=-1, keepdims=True), np.zeros((4, n))
    outer = n // 20
    if kind == "diagonal":
        return Spectral(draw.permutation(np.geomspace(1, 1e6, n)), none)
    if kind == "scales":
        return Spectral(draw.permutation(np.geomspace(1, 1e6, n)), none, 0.5)
    if kind == "stiff":
        return Spectral(np.concatenate([np.geomspace(1e2, 1e6, outer), 1 + draw.random(n - outer)]), mirrors)
    if kind == "smooth":
        return Spectral(np.geomspace(1, 1e3, n), mirrors)
    assert kind == "flat"
    return Spectral(np.linspace(1, 3, n), mirrors)


KINDS = ("diagonal", "scales", "stiff", "smooth", "flat")


class Answer(NamedTuple):
    """What a solve returned, as NumPy arrays, and the calls of the product."""

    x: np.ndarray
    status: list[str]
    iterations: np.ndarray
    residual: np.ndarray
    products: np.ndarray
    calls: int


def answered(engine, product, b, dtype="float64", max_iter=None, one=None):
    """Solve by the race alone, so that a failure is not solved again by another method."""
    handle = dil.backend(engine.backend, device=engine.device, dtype=dtype)
    b, calls = handle.asarray(b), []
    backend = common_owner([b], ["b"], "the test")

    def counted(p):
        calls.append(1)
        return product(p)

    A = Operator(counted, symmetric=True, one=None if one is None else Operator(one, symmetric=True))
    rtol = float(np.finfo(dtype).eps) ** 0.75
    options = {"rtol": rtol, "max_iter": 10 * b.shape[-1] if max_iter is None else max_iter}
    found = racing_cg(A, b, backend=backend, loops=backend.loops, **options)
    assert found.value.dtype == b.dtype
    shapes = {tuple(x.shape) for x in (found.status, found.iterations, found.residual, found.extra["products"])}
    assert shapes == {tuple(b.shape[:-1])}
    x, status, steps, residual = (np.asarray(handle.to_numpy(v)) for v in found[:4])
    names = [Status(int(s)).name for s in status.reshape(-1)]
    return Answer(x, names, steps, residual, np.asarray(handle.to_numpy(found.extra["products"])), len(calls))


def solved(engine, system, x, dtype="float64", **options):
    """Solve A y = A x for a system; return b and the answer."""
    handle = dil.backend(engine.backend, device=engine.device, dtype=dtype)
    product = system.product(handle)
    b = np.asarray(handle.to_numpy(product(handle.asarray(x))))
    return b, answered(engine, product, b, dtype, **options)


def plain_products(product, b):
    """Return the products that plain CG takes on NumPy."""
    found = CG(max_iter=20 * len(b))(Operator(product, symmetric=True), b)
    assert found.status == Status.CONVERGED
    return int(found.extra["products"])


# right, or a status that says it is not


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_right_to_the_tolerance(eager, dtype):
    @settings(max_examples=max(4, eager.examples // 2))
    @given(
        kind=st.sampled_from(KINDS),
        n=st.sampled_from([2, 9, 33, 100]),
        seed=st.integers(0, 10**6),
        decades=st.sampled_from([0.5, 1.0]),
    )
    def check(kind, n, seed, decades):
        system = spectral(kind, n, seed)
        # float32 holds half of the decades
        system = system._replace(d=system.d ** (decades * (0.5 if dtype == "float32" else 1.0)))
        system = Spectral(*(np.asarray(v, dtype) for v in system[:2]), system.spring)
        x = np.random.default_rng(seed).standard_normal(n).astype(dtype)
        b, found = solved(eager, system, x, dtype)
        A, machine = Spectral(*(v.astype(float) for v in system[:2]), system.spring).matrix(), np.finfo(dtype).eps
        size, length = np.linalg.norm(b.astype(float)), np.linalg.norm(found.x.astype(float))
        rounding = 8 * machine * n**0.5 * np.linalg.norm(A, 2) * length
        true = np.linalg.norm(b - A @ found.x)
        assert abs(true - found.residual * size) <= rounding
        if found.status == ["CONVERGED"]:
            assert true <= machine**0.75 * size + rounding
            exact = np.linalg.solve(A, b.astype(float))
            assert np.linalg.norm(found.x - exact) <= np.linalg.cond(A) * (machine**0.75 + 8 * machine * n) * length
        else:
            # rounding alone is above the tolerance
            assert rounding > machine**0.75 * size
        assert int(found.products) == found.calls

    check()


# what it spends


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_ends_with_the_method_that_suits_it(eager, kind):
    system, x = spectral(kind, N), np.random.default_rng(1).standard_normal(N)
    b, found = solved(eager, system, x)
    assert found.status == ["CONVERGED"]
    assert int(found.products) == found.calls
    product = system.product(dil.backend("numpy"))
    plain = plain_products(product, b)
    most = {"diagonal": 8 + 2 + 2, **MOST, "smooth": 1.3 * plain + 16, "flat": plain}
    assert found.calls <= most[kind], f"plain CG takes {plain}"
    true = np.linalg.norm(b - product(found.x))
    assert true <= 1.05 * RTOL * np.linalg.norm(b)


def test_scales_under_noise_take_three_rounds_of_probes(eager):
    n, draw = 200, np.random.default_rng(3)
    E = draw.standard_normal((n, n)) * (0.05 / n**0.5)
    scales = draw.permutation(np.geomspace(1.0, 1e6, n)) ** 0.5
    A = eager.asarray(scales[:, None] * (np.eye(n) + E + E.T) * scales)
    found = answered(eager, lambda p: A @ p, draw.standard_normal(n))
    assert found.status == ["CONVERGED"]
    assert found.products == found.calls <= 60


def test_no_turn_loses_more_than_it_may():
    """A race ends within twice the products of the better of its methods, and 16."""
    numpy = dil.backend("numpy")
    for kind in ("geometric", "two scales", "outlier"):
        for seed in range(3):
            draw = np.random.default_rng(seed)
            values = {
                "geometric": np.geomspace(1, 1e4, 300),
                "two scales": np.concatenate([draw.uniform(1, 3, 200), 1e4 * draw.uniform(0.3, 1, 100)]),
                "outlier": np.concatenate([draw.uniform(1, 10, 299), [1e5]]),
            }[kind]
            system = spectral("flat", 300, seed)._replace(d=draw.permutation(values))
            product, b = system.product(numpy), draw.standard_normal(300)
            found, plain = Auto(dense=0)(Operator(product, symmetric=True), b), plain_products(product, b)
            assert int(found.status) == Status.CONVERGED
            assert int(found.extra["products"]) <= 2 * plain + 16, f"{kind}, {seed}: plain CG takes {plain}"


# batches


def mixed(n=120):
    """Return a batch of all kinds, and its solutions."""
    systems = [spectral(kind, n, seed) for seed, kind in enumerate(KINDS) if kind != "scales"]
    both = Spectral(np.stack([s.d for s in systems]), np.stack([s.mirrors for s in systems], axis=1))
    return systems, both, np.random.default_rng(2).standard_normal((len(systems), n))


def test_a_batch_of_all_kinds_is_its_problems_one_by_one(eager):
    systems, both, x = mixed()
    _, together = solved(eager, both, x)
    assert together.status == ["CONVERGED"] * len(systems)
    assert together.calls >= together.products.max()
    for i, system in enumerate(systems):
        _, alone = solved(eager, system, x[i])
        assert alone.status == ["CONVERGED"]
        np.testing.assert_allclose(together.x[i], x[i], atol=1e-5 * np.abs(x[i]).max())
        np.testing.assert_allclose(together.x[i], alone.x, atol=1e-5 * np.abs(x[i]).max())
        assert abs(int(together.iterations[i]) - int(alone.iterations)) <= 0.2 * int(alone.iterations) + 8


def test_many_right_hand_sides_of_one_matrix(eager):
    for kind in ("scales", "smooth"):
        system, handle = spectral(kind, 100), eager.handle
        product, x = system.product(handle), np.random.default_rng(0).standard_normal((3, 100))
        b = np.asarray(handle.to_numpy(product(handle.asarray(x))))
        probed = []

        def one(p, A=product, probed=probed):
            probed.append(p.shape)
            return A(p)

        found = answered(eager, product, b, one=one)
        assert found.status == ["CONVERGED"] * 3
        np.testing.assert_allclose(found.x, x, atol=1e-5)
        # the probes are of the one matrix, for all right-hand sides together
        assert set(probed) == {(100,)}
        assert len(probed) <= 8
        assert found.products.max() <= found.calls + len(probed)


def test_bad_problems_leave_the_others(eager):
    n = 40
    good, draw = spectral("scales", n)._replace(spring=0.0).d, np.random.default_rng(0)
    d = np.stack([good, -good, good, np.where(np.arange(n) == 3, np.nan, good), good, good, good])
    d[4, 0] = 0.0
    b = draw.standard_normal((7, n))
    b[2], b[5], b[6] = 0.0, np.nan, 1e-200 * b[0]
    system = Spectral(d, np.zeros((1, 7, n)))
    found = answered(eager, system.product(eager.handle), b)
    assert found.status[:4] == ["CONVERGED", "INDEFINITE", "CONVERGED", "NON_FINITE"]
    assert found.status[4] in ("SINGULAR", "STAGNATED")
    assert found.status[5:] == ["NON_FINITE", "CONVERGED"]
    assert found.iterations[2] == found.products[2] == 0
    assert np.all(found.x[2] == 0)
    np.testing.assert_allclose(found.x[0], b[0] / good, rtol=1e-9)
    np.testing.assert_allclose(found.x[6], 1e-200 * (b[0] / good), rtol=1e-9)


# each way to fail


def test_max_iter_is_kept(eager):
    for kind in ("scales", "stiff", "smooth"):
        system, x = spectral(kind, 200), np.random.default_rng(1).standard_normal(200)
        for most in (1, 7, 8, 9, 20):
            _, found = solved(eager, system, x, max_iter=most)
            assert int(found.iterations) <= most
            assert found.status == ["CONVERGED" if found.residual <= RTOL else "MAX_ITER"]
            assert int(found.products) == found.calls <= most + 8 + 4


def test_curvature_that_is_not_positive_is_told(eager):
    for kind in ("scales", "stiff", "smooth"):
        system, draw = spectral(kind, 60), np.random.default_rng(1)
        negative = system._replace(d=np.where(np.arange(60) % 7 == 6, -system.d, system.d))
        found = answered(eager, negative.product(eager.handle), draw.standard_normal(60))
        assert found.status == ["INDEFINITE"]
        assert np.all(np.isfinite(found.x))
    null = spectral("stiff", 60)
    null = null._replace(d=np.where(np.arange(60) == 59, 0.0, null.d))
    found = answered(eager, null.product(eager.handle), np.random.default_rng(1).standard_normal(60))
    assert found.status[0] in ("SINGULAR", "STAGNATED", "INDEFINITE")


def test_nan_in_the_matrix_is_told(eager):
    system = spectral("stiff", 60)
    d = np.where(np.arange(60) == 5, np.nan, system.d)
    found = answered(eager, system._replace(d=d).product(eager.handle), np.ones(60))
    assert found.status == ["NON_FINITE"]


# units


@pytest.mark.parametrize("unit", [1e-150, 1e150])
def test_the_units_of_b_and_of_the_matrix_are_immaterial(eager, unit):
    for kind in ("scales", "stiff"):
        system, x = spectral(kind, 100), np.random.default_rng(1).standard_normal(100)
        b, usual = solved(eager, system, x)
        scaled = answered(eager, system.product(eager.handle), b * unit)
        assert usual.status == scaled.status == ["CONVERGED"]
        np.testing.assert_allclose(scaled.x / unit, usual.x, rtol=1e-5)
        assert abs(scaled.calls - usual.calls) <= 0.1 * usual.calls + 2
        shrunk = answered(eager, system.scaled(unit).product(eager.handle), b)
        assert shrunk.status == ["CONVERGED"]
        np.testing.assert_allclose(shrunk.x * unit, usual.x, rtol=1e-5)
        assert abs(shrunk.calls - usual.calls) <= 0.1 * usual.calls + 2


# compiled


@pytest.mark.parametrize("kind", ["scales", "stiff"])
def test_under_jit_and_vmap(kind):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    systems = [spectral(kind, 100, seed) for seed in range(2)]
    handle = dil.backend("jax", dtype="float64")
    both = Spectral(np.stack([s.d for s in systems]), np.stack([s.mirrors for s in systems], axis=1), systems[0].spring)
    x = np.random.default_rng(0).standard_normal((2, 100))
    b = np.stack([s.product(dil.backend("numpy"))(y) for s, y in zip(systems, x, strict=True)])

    def solve(d, mirrors, b):
        product = Spectral(d, mirrors, both.spring).product(handle)
        found = Auto(dense=0)(Operator(product, symmetric=True), b)
        return found.value, found.status, found.extra["products"]

    d, mirrors = jax.numpy.asarray(both.d), jax.numpy.asarray(np.moveaxis(both.mirrors, 1, 0))
    one = jax.jit(solve)(d[0], mirrors[0], b[0])
    many = jax.jit(jax.vmap(solve))(d, mirrors, jax.numpy.asarray(b))
    assert int(one[1]) == Status.CONVERGED
    assert many[1].tolist() == [Status.CONVERGED] * 2
    assert int(one[2]) <= MOST[kind]
    np.testing.assert_allclose(one[0], x[0], atol=1e-5)
    np.testing.assert_allclose(many[0], x, atol=1e-5)
