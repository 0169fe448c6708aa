"""The default linear solver weighs a dense solve against products: by the work of a product, not by n alone."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil._frameworks.many import stacked
from dil._frameworks.registry import common_owner
from dil.linear import CG, Auto, BiCGSTAB, Operator
from dil.linear._dense_cost import NUMBERS_AT_ONCE, krylov_budget
from dil.linear._direct import dense
from dil.linear._scaled_bicgstab import FIRST
from engines import engines

LIGHT, HEAVY = (0, 0), (10**8, 0)
"""The work of a product that costs nothing beside its calls, and of one that costs a hundred milliseconds."""


@pytest.fixture(scope="module", params=[e for e in engines() if e.name == e.backend], ids=lambda e: e.name)
def engine(request):
    if request.param.reason is not None:
        pytest.skip(request.param.reason)
    return request.param


def arrays(engine, *values):
    handle = dil.backend(engine.backend, device=engine.device, dtype="float64")
    return handle, [handle.asarray(x) for x in values]


def near_identity(n, size, *, symmetric, seed=0):
    M = np.random.default_rng(seed).standard_normal((n, n))
    M = (M + M.T) / 2 if symmetric else M
    return np.eye(n) + size * M / np.linalg.norm(M, 2)


def as_operator(handle, A, *, symmetric, work=LIGHT):
    def product(p):
        return handle.xp.matmul(A, p[..., None])[..., 0]

    return Operator(product, product, symmetric=symmetric, work=lambda: work)


@pytest.mark.parametrize("symmetric", [True, False])
def test_few_unknowns_with_heavy_products_take_few_products(engine, symmetric):
    n = 40 if symmetric else 70
    handle, (A, b) = arrays(engine, near_identity(n, 0.1, symmetric=symmetric), np.arange(1.0, n + 1))
    iterations = {}
    for name, work in (("light", LIGHT), ("heavy", HEAVY)):
        found = Auto()(as_operator(handle, A, symmetric=symmetric, work=work), b)
        assert int(found.status) == Status.CONVERGED
        exact = np.linalg.solve(handle.to_numpy(A), handle.to_numpy(b))
        np.testing.assert_allclose(handle.to_numpy(found.value), exact, rtol=1e-10, atol=1e-10)
        iterations[name] = int(found.iterations)
    assert iterations["heavy"] <= 15
    if engine.backend in ("torch", "jax"):  # where the rows of a light product cost nothing
        assert iterations["light"] == n


def test_auto_tells_whether_a_dense_solve_comes_first(engine):
    """By the number of unknowns that the user gave, or by the work of a product."""
    b = dil.backend(engine.backend, device=engine.device, dtype="float64").asarray(np.ones(100))
    light, heavy = (Operator(lambda p: p, symmetric=True, work=lambda w=w: w) for w in (LIGHT, HEAVY))
    for most, expected in ((100, True), (99, False)):
        assert [Auto(dense=most).takes_dense(A, b) for A in (light, heavy)] == [expected] * 2
    assert not Auto().takes_dense(heavy, b)
    assert Auto().takes_dense(heavy, b[:10])


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_budget_grows_with_the_work_up_to_the_number_of_rows(engine, symmetric):
    n = 100
    handle, (A, b) = arrays(engine, np.eye(n), np.ones(n))
    backend = common_owner([b], ["b"], "the test")
    works = [(0, 0), (10**4, 0), (10**6, 0), (10**8, 0), (10**10, 0)]
    budgets = [krylov_budget(as_operator(handle, A, symmetric=symmetric, work=w), b, backend) for w in works]
    assert budgets == sorted(budgets)
    assert budgets[-1] == pytest.approx(n if symmetric else n / 2, abs=2)  # BiCGSTAB takes two products a step


@pytest.mark.parametrize("symmetric", [True, False])
def test_with_cheap_products_a_dense_solve_comes_first_up_to_about_the_measured_sizes(engine, symmetric):
    if engine.backend == "array_api_strict":
        pytest.skip("its sizes are no measured ones, but small ones for tests")
    handle, (one,) = arrays(engine, np.ones(1))
    backend = common_owner([one], ["b"], "the test")
    size = backend.dense.crossover.symmetric if symmetric else backend.dense.crossover.general

    def budget(n):
        A = Operator(abs, abs, symmetric=symmetric, work=lambda: (n, n**2))
        return krylov_budget(A, handle.asarray(np.ones(n)), backend)

    assert budget(size // 2) == 0
    assert budget(3 * size) > 0


def test_many_right_hand_sides_share_a_dense_matrix(engine):
    """A thousand right-hand sides take a thousand times the work of a step, and one factorisation."""
    n = 40
    handle, (A, one, many) = arrays(engine, np.eye(n), np.ones(n), np.ones((1000, n)))
    A, backend = as_operator(handle, A, symmetric=True, work=(10**6, 0)), common_owner([one], ["b"], "the test")
    assert krylov_budget(A, one, backend) > 30
    assert krylov_budget(stacked(A), many, backend) == 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_hard_system_costs_a_trial_and_a_dense_solve(engine, symmetric):
    n, draw = 80, np.random.default_rng(0)
    Q = np.linalg.qr(draw.standard_normal((n, n)))[0]
    P = Q if symmetric else np.linalg.qr(draw.standard_normal((n, n)))[0]
    handle, (A, b) = arrays(engine, (Q * np.geomspace(1e-6, 1, n)) @ P.T, draw.standard_normal(n))
    A_ = as_operator(handle, A, symmetric=symmetric, work=HEAVY)
    budget = krylov_budget(A_, b, common_owner([b], ["b"], "the test"))
    assert budget > 0
    found = Auto()(A_, b)
    assert int(found.status) == Status.CONVERGED
    # a hard system gets more steps, in which it may find a preconditioner; but not before BiCGSTAB looks for one
    trial = budget // 4
    assert int(found.iterations) == n + (3 * trial if symmetric or trial >= FIRST else trial)
    exact = np.linalg.solve(handle.to_numpy(A), handle.to_numpy(b))
    assert np.linalg.norm(handle.to_numpy(found.value) - exact) <= 1e-9 * np.linalg.norm(exact)


@pytest.mark.parametrize(("solver", "symmetric"), [(CG, True), (BiCGSTAB, False)])
def test_a_trial_ends_slow_problems_alone(engine, solver, symmetric):
    n, draw = 60, np.random.default_rng(1)
    quick, slow = near_identity(n, 0.3, symmetric=symmetric), np.diag(np.geomspace(1e-6, 1, n))
    handle, (A, b) = arrays(engine, np.stack([quick, slow, quick]), draw.standard_normal((3, n)))
    A_ = as_operator(handle, A, symmetric=symmetric)
    found, full = solver().tried(A_, b, trial=6), solver(max_iter=30)(A_, b)
    names = [Status(int(code)).name for code in handle.to_numpy(found.status)]
    assert names == ["CONVERGED", "STAGNATED", "CONVERGED"]
    steps = handle.to_numpy(found.iterations)
    assert steps[1] == 6 < steps[0]
    np.testing.assert_array_equal(steps[[0, 2]], handle.to_numpy(full.iterations)[[0, 2]])
    np.testing.assert_allclose(handle.to_numpy(found.value)[[0, 2]], handle.to_numpy(full.value)[[0, 2]], rtol=1e-12)


@pytest.mark.parametrize("at_once", [None, 1, 3, 7, 100])
def test_rows_in_chunks_are_the_rows(engine, at_once):
    handle, (A, rows) = arrays(engine, near_identity(5, 0.5, symmetric=False), np.arange(35.0).reshape(7, 5))
    backend = common_owner([rows], ["rows"], "the test")
    found = backend.loops.map_rows(lambda p: handle.xp.matmul(A, p), rows, at_once)
    np.testing.assert_allclose(handle.to_numpy(found), handle.to_numpy(rows) @ handle.to_numpy(A).T, rtol=1e-14)


@pytest.mark.parametrize(("made", "expected"), [(0, None), (NUMBERS_AT_ONCE // 4, 3), (10**12, 1)])
def test_the_rows_of_a_dense_matrix_have_bounded_memory(engine, made, expected, monkeypatch):
    n, seen = 40, []
    handle, (A, b) = arrays(engine, near_identity(n, 0.5, symmetric=False), np.ones(n))
    backend = common_owner([b], ["b"], "the test")
    map_rows = backend.loops.map_rows

    def watched(fn, rows, at_once=None):
        seen.append(at_once)
        return map_rows(fn, rows, at_once)

    monkeypatch.setitem(vars(backend.loops), "map_rows", watched)
    matrix = dense(as_operator(handle, A, symmetric=False, work=(made, 0)), b, backend)
    np.testing.assert_allclose(handle.to_numpy(matrix), handle.to_numpy(A), rtol=1e-14)
    assert seen == [expected]


@pytest.mark.parametrize("captured", [False, True])
def test_a_layer_on_many_rows_of_data_is_solved_by_products(engine, captured):
    """Softmax regression of 6 x 10 coefficients on 4,000 rows, which count whether they are arguments or not."""
    if engine.backend == "jax":
        pytest.skip("XLA fuses what a product makes")
    draw, (d, c) = np.random.default_rng(0), (6, 10)
    handle, (X, theta) = arrays(engine, draw.standard_normal((4_000, d)), 1.0)

    def score(w, theta, *data):
        xp = array_namespace(w)
        z = xp.matmul(data[0] if data else X, xp.reshape(w, (d, c)))
        return xp.sum(xp.log(xp.sum(xp.exp(z), axis=-1)) - theta * z[:, 0]) / 4_000 + 0.5 * xp.sum(w * w)

    def init(*args):
        return handle.asarray(np.zeros(d * c))

    seen = []

    def watched(A, b, /, *, loop):
        found = Auto()(A, b, loop=loop)
        seen.append(int(found.iterations))
        return found

    layer = dil.argmin(score, dil.solvers.LBFGS(), init=init, linear_solver=watched)
    dil.vjp(layer, theta, *(() if captured else (X,)))[1](handle.asarray(np.ones(d * c)))
    assert 0 < max(seen) <= 20


def test_the_work_of_a_pullback_counts_what_is_between_the_unknown_and_the_value(engine):
    _, (u, W) = arrays(engine, np.ones(3), np.ones((500, 3)))
    backend = common_owner([u], ["u"], "the test")
    functions = lambda u, W: (2.0 * u,), lambda u, W: (array_namespace(u).sum(W @ u),)
    pulls = [backend.vjp(fn, u, W)[1] for fn in functions]
    few, many = (pull.work() for pull in pulls)
    assert 3 <= few <= 6
    assert many >= few
    if engine.backend != "jax":
        assert 500 <= many <= 600  # W itself is read, and not made
