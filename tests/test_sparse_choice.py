"""`Auto` takes a sparse factorisation where it pays, says so, and goes on as before where it does not."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil._base.operator import Source
from dil.linear import Auto, Operator, SparseDirect
from dil.linear._known_patterns import KnownPatterns
from dil.linear._pattern import given_pattern
from dil.linear._sparse_cost import is_cheaper, steps_to_come

sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
CHOICE, DIRECT = (importlib.import_module(f"dil.linear.{name}") for name in ("_sparse_choice", "_sparse_direct"))
SIDE = 48


@pytest.fixture(autouse=True)
def patterns(monkeypatch):
    """Nothing is known of any function."""
    known = KnownPatterns()
    for module in (CHOICE, DIRECT):
        monkeypatch.setattr(module, "KNOWN_PATTERNS", known)
    return known


def laplacian(m, *, periodic=False):
    T = sparse.diags_array([-np.ones(m - 1), 2.0 * np.ones(m), -np.ones(m - 1)], offsets=[-1, 0, 1]).tolil()
    if periodic:
        T[0, -1] = T[-1, 0] = -1.0
    return (sparse.kron(T, sparse.eye_array(m)) + sparse.kron(sparse.eye_array(m), T)).tocsr()


def bratu(u, k):
    """-lap u = k exp(u) on a square with wind, u = 0 on the rim: not symmetric."""
    xp = array_namespace(u)
    P = xp.reshape(u, (SIDE, SIDE))
    row, column = 0.0 * P[:1, :], 0.0 * P[:, :1]
    down, up = xp.concat([P[1:, :], row]), xp.concat([row, P[:-1, :]])
    right, left = xp.concat([P[:, 1:], column], axis=1), xp.concat([column, P[:, :-1]], axis=1)
    return xp.reshape(4.0 * P - 1.2 * down - 0.8 * up - right - left, (-1,)) - k * xp.exp(u) / SIDE**2


def test_a_layer_by_the_defaults(eager):
    layer = dil.root(bratu, dil.solvers.Newton(), init=lambda k: 0.0 * k)
    k = np.linspace(1.0, 2.0, SIDE**2)
    (y, (g,)), (_, (again,)) = (eager.gradients(layer, (k,), np.ones(SIDE**2)) for _ in range(2))
    wind = sparse.diags_array([-0.8 * np.ones(SIDE - 1), -1.2 * np.ones(SIDE - 1)], offsets=[-1, 1])
    line = sparse.diags_array([-np.ones(SIDE - 1), -np.ones(SIDE - 1)], offsets=[-1, 1])
    one = sparse.eye_array(SIDE)
    L = sparse.kron(wind, one) + sparse.kron(one, line) + 4.0 * sparse.eye_array(SIDE**2)
    np.testing.assert_allclose(L @ y, k * np.exp(y) / SIDE**2, rtol=1e-9, atol=1e-12)
    J = (L - sparse.diags_array(k * np.exp(y) / SIDE**2)).tocsc()
    expected = sparse.linalg.spsolve(J.T.tocsc(), np.ones(SIDE**2)) * np.exp(y) / SIDE**2
    np.testing.assert_allclose(g, expected, rtol=1e-9)
    np.testing.assert_allclose(again, expected, rtol=1e-9)
    if eager.name != "array_api_strict":  # whose numbers count as those of a program
        said = str(layer.report(eager.asarray(k)))
        assert "sparse LU, which paid before: " in said
        assert "colours, factors" in said


def at(A, source):
    return Operator(lambda p: A @ p, lambda p: A.T @ p, _source=source)


def test_the_first_steps_are_followed_by_the_factorisation(patterns):
    A, source = laplacian(50), Source(lambda: None, ())
    b = np.random.default_rng(0).standard_normal(2500)
    first = Auto()(at(A, source), b)
    said = str(first.extra["choice"])
    assert said.startswith("BiCGSTAB gave up after 4 steps; a sparse LU took over: 18 colours, ")
    assert "times as full as the matrix" in said
    assert first.extra["products"] == 9 + 36 + 2  # the steps, the search, and the checks of what it found
    np.testing.assert_allclose(A @ first.value, b, rtol=1e-9, atol=1e-11)
    assert patterns.pays(source, 2500) is True
    second = Auto()(at(A, source), b)
    assert str(second.extra["choice"]).startswith("sparse LU, which paid before: ")
    assert second.extra["products"] <= 12
    from_start = Auto()(at(A, source), b, x0=0.0 * b)  # as of a check of the layer
    assert str(from_start.extra["choice"]).startswith("sparse LU, which paid before: ")
    many = Auto(damping=1.0)(at(A, source), b)
    np.testing.assert_allclose(A @ many.value + many.value, b, rtol=1e-9, atol=1e-11)


def test_a_batch_of_systems(patterns):
    """Each problem has a factorisation of its own, and the pattern is that of all."""
    A, source = laplacian(40), Source(lambda: None, ())
    more = A + 0.5 * sparse.eye_array(1600, k=7)
    b = np.random.default_rng(0).standard_normal((2, 1600))
    two = Operator(
        lambda p: np.stack([A @ p[0], more @ p[1]]), lambda p: np.stack([A.T @ p[0], more.T @ p[1]]), _source=source
    )
    for said in ("a sparse LU took over", "which paid before"):
        found = Auto()(two, b)
        assert said in str(found.extra["choice"])
        for M, x, right in zip((A, more), found.value, b, strict=True):
            np.testing.assert_allclose(M @ x, right, rtol=1e-9, atol=1e-10)
    assert patterns.get(source, 1600) == given_pattern(more)


def test_a_system_that_is_soon_solved_is_not_looked_at(patterns, monkeypatch):
    monkeypatch.setattr(CHOICE, "find_pattern", lambda *_: pytest.fail("a search"))
    source = Source(lambda: None, ())
    A = sparse.eye_array(2500).tocsr() + 0.01 * laplacian(50)
    found = Auto()(at(A, source), np.ones(2500))
    assert Status(int(found.status)).name == "CONVERGED"
    assert str(found.extra["choice"]).startswith("BiCGSTAB took ")
    assert patterns.pays(source, 2500) is None


def test_a_root_whose_first_step_is_the_hardest_is_iterated(eager, monkeypatch):
    """The first matrix of Newton's method promises hundreds of steps to the full, and those of all steps take 40."""
    monkeypatch.setattr(CHOICE, "find_pattern", lambda *_: pytest.fail("a search"))

    def F(u, k):
        xp = array_namespace(u)
        P = xp.reshape(u, (SIDE, SIDE))
        row, column = 0.0 * P[:1, :], 0.0 * P[:, :1]
        sides = [xp.concat(pair) for pair in ((P[1:, :], row), (row, P[:-1, :]))]
        sides += [xp.concat(pair, axis=1) for pair in ((P[:, 1:], column), (column, P[:, :-1]))]
        return xp.reshape(4.02 * P - sum(sides), (-1,)) + u**3 - k

    k = 1.0 + 0.5 * np.random.default_rng(0).uniform(size=SIDE**2)
    solution = dil.root(F, dil.solvers.Newton(), init=lambda k: 0.0 * k).solve(eager.asarray(k))
    assert Status(int(solution.status)) is Status.CONVERGED
    A, y = laplacian(SIDE) + 0.02 * sparse.eye_array(SIDE**2), eager.to_numpy(solution.value)
    np.testing.assert_allclose(A @ y + y**3, k, rtol=1e-10)


def test_steps_and_solves_to_the_full_are_decided_apart(patterns, monkeypatch):
    """A loose step that is soon solved decides nothing, and the pattern that one has found serves the other."""
    A, source = laplacian(50), Source(lambda: None, ())
    b = np.ones(2500)
    assert str(Auto()(at(A, source), b, rtol=0.9).extra["choice"]).startswith("BiCGSTAB took ")
    assert patterns.pays(source, 2500, step=True) is None
    assert "a sparse LU took over" in str(Auto()(at(A, source), b, rtol=1e-8).extra["choice"])
    assert patterns.pays(source, 2500, step=True) is True
    assert patterns.pays(source, 2500) is None
    monkeypatch.setattr(CHOICE, "find_pattern", lambda *_: pytest.fail("a search"))
    # the pace for white noise would promise few steps, but what pays for a step pays for a solve to the full
    for full in (np.random.default_rng(0).standard_normal(2500), b):
        found = Auto()(at(A, source), full)
        assert str(found.extra["choice"]).startswith("sparse LU, which paid before")
        np.testing.assert_allclose(A @ found.value, full, rtol=1e-9)


def test_a_few_hundred_unknowns(patterns):
    """A dense solve would follow the iteration there."""
    A = (laplacian(20) + sparse.eye_array(400, k=1) * 0.3).tocsr()
    found = Auto()(at(A, Source(lambda: None, ())), np.ones(400))
    assert "a sparse LU took over" in str(found.extra["choice"])
    np.testing.assert_allclose(A @ found.value, np.ones(400), rtol=1e-9)


def test_where_no_factorisation_pays_the_pattern_is_not_searched(patterns, monkeypatch):
    monkeypatch.setattr(CHOICE, "find_pattern", lambda *_: pytest.fail("a search"))
    A, source = sparse.diags_array(np.geomspace(1.0, 3.0, 2500)).tocsr(), Source(lambda: None, ())
    found = Auto()(at(A, source), np.ones(2500))
    assert patterns.pays(source, 2500) is False
    np.testing.assert_allclose(A @ found.value, np.ones(2500), rtol=1e-9)


def test_a_full_matrix_is_looked_at_once(patterns, monkeypatch):
    searches = []
    search = CHOICE.find_pattern
    monkeypatch.setattr(CHOICE, "find_pattern", lambda *args: searches.append(search(*args)) or searches[-1])
    draw, source = np.random.default_rng(0), Source(lambda: None, ())
    A = np.diag(np.geomspace(1.0, 100.0, 2100)) + 0.1 * draw.standard_normal((2100, 2100)) / 46.0
    b = draw.standard_normal(2100)
    first, second = Auto()(at(A, source), b), Auto()(at(A, source), b)
    assert [found.pattern for found in searches] == [None]
    assert searches[0].products <= 48
    assert patterns.pays(source, 2100) is False
    assert first.extra["products"] - second.extra["products"] == searches[0].products + 9
    np.testing.assert_allclose(A @ second.value, b, rtol=1e-8, atol=1e-9)


def test_a_graph_without_order_is_iterated(patterns):
    """Its factors would be nearly full."""
    draw, source = np.random.default_rng(0), Source(lambda: None, ())
    A = sparse.random_array((4000, 4000), density=5 / 4000, rng=draw) + 3.0 * sparse.eye_array(4000)
    found = Auto()(at(A.tocsr(), source), np.ones(4000))
    assert "sparse" not in str(found.extra["choice"])
    assert not patterns.pays(source, 4000)
    np.testing.assert_allclose(A @ found.value, np.ones(4000), rtol=1e-8)


def test_costs():
    """A grid in the plane pays, one in space does not, and neither does a pattern without order."""
    assert is_cheaper(given_pattern(laplacian(100)), 5e7)
    line = laplacian(20)
    T = sparse.diags_array([-np.ones(19), np.ones(20), -np.ones(19)], offsets=[-1, 0, 1])
    space = sparse.kron(line, sparse.eye_array(20)) + sparse.kron(sparse.eye_array(400), T)
    assert not is_cheaper(given_pattern(space), 5e7)
    shuffled = np.random.default_rng(0).permutation(10_000)
    assert is_cheaper(given_pattern(laplacian(100)[shuffled][:, shuffled]), 5e7)
    draw = np.random.default_rng(0)
    graph = sparse.random_array((10_000, 10_000), density=5e-4, rng=draw)
    assert not is_cheaper(given_pattern(graph), 5e7)
    assert steps_to_come(8, 0.1, 1e-12) == pytest.approx(96.0)
    assert steps_to_come(8, 2.0, 1e-12) == steps_to_come(8, float("nan"), 1e-12) == 512.0


def test_options_and_operators_of_a_user_are_as_before(patterns):
    A = laplacian(50)
    b = np.ones(2500)
    for solver, source in [
        (Auto(dense=0), Source(lambda: None, ())),
        (Auto(max_iter=5000), Source(len, ())),
        (Auto(), None),
    ]:
        assert "sparse" not in str(solver(at(A, source), b).extra["choice"])
    assert "sparse" not in str(Auto()(at(A, Source(lambda: None, ())), b, x0=b).extra["choice"])


def test_without_scipy_it_iterates(monkeypatch):
    monkeypatch.setattr(CHOICE, "_has_scipy", lambda: False)
    found = Auto()(at(laplacian(50), Source(lambda: None, ())), np.ones(2500))
    assert "CG or MINRES" in str(found.extra["choice"])


def test_a_singular_matrix_goes_on_as_before(patterns):
    """The Laplacian of a torus: constants are its null space. The right-hand side has a solution."""
    A, source = laplacian(50, periodic=True), Source(lambda: None, ())
    b = np.random.default_rng(0).standard_normal(2500)
    b -= b.mean()
    found, before = Auto()(at(A, source), b), Auto()(at(A, None), b)
    assert patterns.pays(source, 2500) is False
    assert found.status == before.status
    assert found.extra["products"] > before.extra["products"]
    np.testing.assert_allclose(found.value, before.value, rtol=1e-10)


def test_a_symmetric_matrix_that_is_indefinite_is_told():
    A = laplacian(50) - 1.0 * sparse.eye_array(2500)
    operator = Operator(lambda p: A @ p, symmetric=True, _source=Source(lambda: None, ()))
    found = Auto()(operator, np.random.default_rng(0).standard_normal(2500))
    assert "sparse LU" in str(found.extra["choice"])
    assert bool(found.extra["indefinite"])


def test_the_words_of_the_direct_solver():
    found = SparseDirect("tridiagonal")(Operator(lambda p: 2.0 * p), np.ones((2, 5)))
    assert str(found.extra["choice"]) == (
        "2 problems: sparse LU, as asked for: 3 colours, factors 2 times as full as the matrix"
    )
    wrong = SparseDirect(0)(Operator(lambda p: p + np.roll(p, 1)), np.ones(5))
    assert str(wrong.extra["choice"]).endswith("1 colour, but the pattern lacks an entry")
    full = SparseDirect()(lambda p: p + np.sum(p, axis=-1, keepdims=True), np.ones(400))
    assert str(full.extra["choice"]).endswith("no pattern was found, for the matrix has too many entries")
    empty = SparseDirect()(lambda p: 0.0 * p, np.ones(5))
    assert str(empty.extra["choice"]).endswith("5 colours, but the matrix is singular")


def test_another_matrix_of_the_same_source_is_looked_at_anew(patterns):
    """Functions of one factory share their code: what pays for a chain does not for a graph without order."""
    n, source, draw = 2500, Source(lambda: None, ()), np.random.default_rng(0)
    chain = sparse.diags_array([-1.0, 2.01, -1.0], offsets=[-1, 0, 1], shape=(n, n)).tocsr()
    graph = (sparse.random_array((n, n), density=12 / n, rng=draw) + 6.5 * sparse.eye_array(n)).tocsr()
    b = draw.standard_normal(n)
    for A, is_sparse in ((chain, True), (graph, False)):
        found = Auto()(at(A, source), b)
        assert ("sparse LU" in str(found.extra["choice"])) == is_sparse
        np.testing.assert_allclose(A @ found.value, b, rtol=1e-9, atol=1e-9)
    assert patterns.pays(source, n) is False
