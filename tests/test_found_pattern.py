"""SparseDirect without a pattern: it is found by products, kept for the next call, and found anew where it is wrong."""

from __future__ import annotations

import functools
import importlib

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil._frameworks.registry import owner
from dil.linear import Operator, SparseDirect
from dil.linear._found_pattern import find_pattern
from dil.linear._known_patterns import KNOWN_PATTERNS, MOST_FULLER, KnownPatterns
from dil.linear._pattern import entries_by_column, given_pattern, pattern_of_entries
from dil.linear._peeling import Peeling, factors
from dil.linear._sparse_factor import random_vector

sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
MODULE = importlib.import_module("dil.linear._sparse_direct")


def grid(m):
    """Return the five-point stencil on m x m points."""
    T = sparse.diags_array([-np.ones(m - 1), 2.0 * np.ones(m), -np.ones(m - 1)], offsets=[-1, 0, 1])
    return (sparse.kron(T, sparse.eye_array(m)) + sparse.kron(sparse.eye_array(m), T)).tocsr()


def random_sparse(n, entries, seed):
    """Return a matrix of a random pattern with about this many entries a row, and a dominant diagonal."""
    draw = np.random.default_rng(seed)
    M = sparse.random_array((n, n), density=entries / n, rng=draw, data_sampler=draw.standard_normal)
    return (M + 10.0 * sparse.eye_array(n)).tocsr()


def operator(engine, M, **options):
    """Return the operator of a matrix, or of a stack of them, by dense products."""
    A = engine.asarray(M.toarray() if sparse.issparse(M) else M)

    def product(p):
        return (A @ p[..., None])[..., 0]

    def transposed(p):
        return (A.mT @ p[..., None])[..., 0]

    return Operator(product, transposed, **options)


def sparse_operator(M, **options):
    MT = M.T.tocsr()
    return Operator(lambda p: M @ p, lambda p: MT @ p, **options)


def solved(engine, A, b):
    found = SparseDirect()(A, engine.asarray(b))
    names = [Status(int(code)).name for code in np.ravel(engine.to_numpy(found.status))]
    return engine.to_numpy(found.value), names, int(np.ravel(engine.to_numpy(found.extra["products"]))[0])


# --- what is found


@pytest.mark.parametrize("transposed", [False, True])
def test_the_pattern_of_a_random_matrix(eager, transposed):
    for n, entries, seed in [(1, 1, 0), (7, 2, 1), (13, 3, 2), (120, 3, 3)]:
        M = random_sparse(n, entries, seed)
        A = operator(eager, M.T if transposed else M, transposed=transposed)
        found = find_pattern(A, eager.asarray(np.ones(n)), owner(eager.asarray(np.ones(1))))
        expected = given_pattern(M)
        assert found.pattern == expected if n > 7 else set(expected.rows) <= set(found.pattern.rows)
        assert found.products <= n + 36


@pytest.mark.parametrize(("m", "most"), [(32, 36), (100, 36), (101, 36)])
def test_a_grid_takes_few_products(m, most):
    """Also one whose sides are a power of two, which no power of two of groups separates."""
    A = sparse_operator(grid(m))
    found = find_pattern(A, np.ones(m**2), owner(np.ones(1)))
    assert found.pattern == given_pattern(grid(m))
    assert found.products <= most


def test_a_graph_without_order_takes_some_products():
    M = random_sparse(4000, 5, 0)
    found = find_pattern(sparse_operator(M), np.ones(4000), owner(np.ones(1)))
    assert found.pattern == given_pattern(M)
    assert found.products <= 150


@pytest.mark.parametrize("by_row", [False, True])
def test_a_full_row_or_column_is_read_by_the_other_product(by_row):
    n = 400
    M = sparse.lil_array(sparse.eye_array(n) * 3.0)
    full = np.random.default_rng(0).standard_normal(n)
    if by_row:
        M[5, :] = full
    else:
        M[:, 5] = full
    found = find_pattern(sparse_operator(M.tocsr()), np.ones(n), owner(np.ones(1)))
    assert found.pattern == given_pattern(M)
    assert found.products < 120


def test_entries_of_very_different_sizes():
    """One alone in its groups is found whatever its size; others down to what the solve notices."""
    n = 200
    draw = np.random.default_rng(0)
    M = random_sparse(n, 3, 0)
    M.data *= 10.0 ** draw.uniform(-9, 0, M.data.size)
    found = find_pattern(sparse_operator(M), np.ones(n), owner(np.ones(1)))
    assert found.pattern == given_pattern(M)


def in_units(M, seed, decades=6):
    """Return a matrix with each equation and each unknown in a unit of its own, and the units of the unknowns."""
    draw, n = np.random.default_rng(seed), M.shape[0]
    left, right = 10.0 ** draw.uniform(-decades, decades, (2, n))
    return (sparse.diags_array(left) @ M @ sparse.diags_array(right)).tocsr(), right


@pytest.mark.parametrize("seed", [1, 2])
def test_units_of_unknowns_and_equations(eager, seed):
    """An entry below the rounding of its row decides where its column has another unit; those are found by a search
    in the units of the entries that are known."""
    if eager.name == "array_api_strict":
        pytest.skip("its numbers count as those of a program, which decodes the entries at each solve")
    M = random_sparse(120, 4, seed)
    A, unit = in_units(M, seed)
    x = np.random.default_rng(9).standard_normal(120)
    once = find_pattern(sparse_operator(A), x, owner(x))
    assert once.pattern != given_pattern(A)
    y, names, products = solved(eager, operator(eager, A), A @ (x / unit))
    assert names == ["CONVERGED"]
    np.testing.assert_allclose(y * unit, x, rtol=1e-11)
    scaled = find_pattern(sparse_operator(A), x, owner(x), scales=once.scales)
    assert scaled.pattern == given_pattern(A)
    assert products >= once.products + scaled.products + 4  # and the colours, which are checked by two


def test_a_pattern_that_misses_what_decides_is_told(monkeypatch):
    """Its sums show nothing. The residual is compared with the terms of each row, not with the largest of all."""
    monkeypatch.setattr(MODULE, "MOST_SCALED", 0)
    for seed in (1, 2):
        A, unit = in_units(random_sparse(120, 4, seed), seed)
        b = A @ (np.random.default_rng(9).standard_normal(120) / unit)
        assert Status(int(SparseDirect()(sparse_operator(A), b).status)) is Status.WRONG_PATTERN


def test_single_precision():
    M = random_sparse(500, 4, 0).astype(np.float32)
    A = sparse_operator(M)
    found = find_pattern(A, np.ones(500, dtype=np.float32), owner(np.ones(1)))
    missing = set(zip(*M.nonzero(), strict=True)) - set(
        zip(found.pattern.rows.tolist(), found.pattern.columns.tolist(), strict=True)
    )
    assert not missing
    x = SparseDirect()(A, np.ones(500, dtype=np.float32))
    np.testing.assert_allclose(M @ x.value, np.ones(500), rtol=1e-5)


def test_the_problems_of_a_batch_share_the_pattern(eager):
    """An entry of one problem alone belongs to it, whatever the units of the others."""
    n = 40
    A = np.stack([np.eye(n) * 1e8, np.eye(n) + np.eye(n, k=3) * 0.5, np.eye(n) + 0.25 * np.eye(n, k=-9)])
    b = np.random.default_rng(0).standard_normal((3, n))
    x, names, _ = solved(eager, operator(eager, A), b)
    assert names == ["CONVERGED"] * 3
    np.testing.assert_allclose(x, np.linalg.solve(A, b[..., None])[..., 0], rtol=1e-12)


def test_a_matrix_of_few_unknowns(eager):
    for n in (1, 2, 5):
        A = np.random.default_rng(n).standard_normal((n, n)) + 3.0 * np.eye(n)
        x, names, _ = solved(eager, operator(eager, A), np.ones(n))
        assert names == ["CONVERGED"]
        np.testing.assert_allclose(A @ x, np.ones(n), rtol=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_first_solve_takes_the_entries_of_the_search(eager, transposed):
    """No product is taken for them again: two more check them."""
    if eager.name == "array_api_strict":
        pytest.skip("its numbers count as those of a program, which decodes the entries at each solve")
    M, b = grid(15), np.random.default_rng(0).standard_normal(225)
    M = (M + 0.5 * sparse.eye_array(225, k=1)).tocsr()
    x, names, products = solved(eager, operator(eager, M.T if transposed else M, transposed=transposed), b)
    found = find_pattern(sparse_operator(M), np.ones(225), owner(np.ones(1)))
    assert names == ["CONVERGED"]
    assert products == found.products + 2
    np.testing.assert_allclose((M.T if transposed else M) @ x, b, rtol=1e-12, atol=1e-13)


def test_entries_that_lost_digits_are_recovered_again():
    """Beside a large entry of the same sums, a small one is known to few digits, and a group of its own tells all."""
    n = 300
    M = random_sparse(n, 6, 0)
    M.data *= 10.0 ** np.random.default_rng(1).uniform(-4, 0, M.data.size)
    M = (M + 10.0 * sparse.eye_array(n)).tocsr()
    found = find_pattern(sparse_operator(M), np.ones(n), owner(np.ones(1)))
    assert found.pattern == given_pattern(M)
    assert not found.is_exact
    solution = SparseDirect()(sparse_operator(M), np.ones(n))
    assert solution.extra["products"] == found.products + solution.extra["colours"] + 2
    np.testing.assert_allclose(solution.value, sparse.linalg.spsolve(M.tocsc(), np.ones(n)), rtol=1e-12)


def test_an_entry_that_fits_its_sums_alone_is_refused(monkeypatch):
    """One in a wrong column has a factor that gives the same sum: the check has other factors."""
    M = grid(15)
    right = find_pattern(sparse_operator(M), np.ones(225), owner(np.ones(1)))
    places = right.entries.pattern.columns.astype(np.int64) + 225 * right.entries.pattern.rows
    order = np.argsort(places)
    places, values = places[order], right.entries.values[order].copy()
    s, at = random_vector(225), np.searchsorted(places, 225 * 100 + 101)
    values[at] *= s[101] / s[108]  # of the same group of 7
    places[at] = 225 * 100 + 108
    wrong = right._replace(entries=entries_by_column(*(x[np.argsort(places)] for x in (places, values)), 225))
    monkeypatch.setattr(MODULE, "find_pattern", lambda *_, **__: wrong)
    monkeypatch.setattr(MODULE, "MOST_SCALED", 0)
    assert Status(int(SparseDirect()(sparse_operator(M), np.ones(225)).status)) is Status.WRONG_PATTERN


@pytest.mark.parametrize("empty", [False, True])
def test_entries_by_column(empty):
    """Also where the diagonal is zero, and in a matrix without an entry."""
    M = sparse.csr_array((30, 30)) if empty else random_sparse(30, 3, 0) - 10.0 * sparse.eye_array(30)
    M = M.tocsr()
    M.eliminate_zeros()
    M.sort_indices()
    places = np.repeat(np.arange(30), np.diff(M.indptr)).astype(np.int64) * 30 + M.indices
    pattern, transposed, values = entries_by_column(places, M.data, 30)
    assert pattern == given_pattern(M)
    assert transposed == pattern.T
    again = sparse.csc_array((values, pattern.rows, pattern.starts), shape=(30, 30))
    assert abs(again - M).max() == 0


def test_wrong_entries_are_taken_back():
    """Sums that seem to be one entry by chance, as in single precision, are explained in the end."""
    n, machine = 300, float(np.finfo(np.float32).eps)
    M = random_sparse(n, 4, 1)
    known = Peeling(n, machine)
    for count in (7, 11, 13, 17):
        groups, scaled = factors(n, count, 3)
        vectors = np.concatenate([np.where(groups == c, s, 0.0)[None] for s in scaled for c in range(count)])
        known.add(count, (M.astype(np.float32) @ vectors.T.astype(np.float32)).T.astype(float))
    places, values = known.entries()
    assert known.open_rows().size == 0
    np.testing.assert_allclose(
        sparse.coo_array((values, divmod(places, n)), shape=(n, n)).toarray(), M.toarray(), atol=1e-4
    )


# --- layers


def chain(u, t):
    """J is tridiagonal; at u = 0 its entries above the diagonal are zero."""
    xp = array_namespace(u)
    zero = 0.0 * u[:1]
    return 3.0 * u - xp.concat([zero, u[:-1]]) + 0.5 * xp.concat([u[1:], zero]) ** 2 - t


def exact(t, v):
    """Return the root of the chain and the gradient of <v, y>, by dense NumPy."""
    n, u = t.shape[0], np.zeros(t.shape[0])
    for _ in range(30):
        J = 3.0 * np.eye(n) - np.eye(n, k=-1) + np.diag(u[1:], 1)
        u = u - np.linalg.solve(J, chain(u, t))
    return u, np.linalg.solve(J.T, v)


def chain_layer():
    return dil.root(
        lambda u, t: chain(u, t),
        dil.solvers.Newton(linear_solver=SparseDirect()),
        linear_solver=SparseDirect(),
        init=lambda t: 0.0 * t,
    )


def test_a_layer_whose_entries_are_zero_at_the_start(engine):
    """The pattern at the start lacks them; it is found anew, and nothing is told."""
    n = 20 if engine.backend == "jax" else 300
    t, v = np.random.default_rng(0).standard_normal((2, n))
    (y, (g,)), (u, expected) = engine.gradients(chain_layer(), (t,), v), exact(t, v)
    np.testing.assert_allclose(y, u, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(g, expected, rtol=1e-11, atol=1e-13)


def test_under_jit_the_entries_are_decoded():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    dil.backend("jax", dtype="float64")
    t, v = np.random.default_rng(0).standard_normal((2, 120))  # more unknowns than sums
    y, pull = jax.vjp(jax.jit(chain_layer()), jax.numpy.asarray(t))
    u, expected = exact(t, v)
    np.testing.assert_allclose(y, u, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(pull(jax.numpy.asarray(v))[0], expected, rtol=1e-10, atol=1e-12)


def test_the_pattern_is_found_once_for_a_layer(eager, monkeypatch):
    if eager.name == "array_api_strict":
        pytest.skip("its numbers count as those of a program, which decodes the entries at each solve")
    searches = []

    def counted(*args, **kwargs):
        searches.append(args[1].shape)
        return find_pattern(*args, **kwargs)

    monkeypatch.setattr(MODULE, "find_pattern", counted)
    monkeypatch.setattr(MODULE, "KNOWN_PATTERNS", KnownPatterns())
    layer = dil.root(
        lambda u, t: 3.0 * u + 0.1 * u**3 - array_namespace(u).roll(u, 1) - t,
        dil.solvers.Newton(linear_solver=SparseDirect()),
        linear_solver=SparseDirect(),
        init=lambda t: t,
    )
    for n in (50, 50, 60, 50):
        y, pull = dil.vjp(layer, eager.asarray(np.linspace(1.0, 2.0, n)))
        pull(y)
    assert searches == [(50,), (60,)]


def test_functions_of_one_code_share_what_fits():
    """Where the pattern of another function is known, the new one is found; both are kept while that is cheap."""

    def layer(shift):
        return dil.root(
            lambda u, t: 3.0 * u - np.roll(u, shift) - t,
            dil.solvers.Newton(linear_solver=SparseDirect()),
            linear_solver=SparseDirect(),
            init=lambda t: t,
        )

    for shift in (1, 2, 1, 3):
        t = np.random.default_rng(0).standard_normal(40)
        y = layer(shift)(t)
        np.testing.assert_allclose(3.0 * y - np.roll(y, shift), t, rtol=1e-12, atol=1e-13)


def test_a_function_is_known_within_its_wrappers(monkeypatch):
    """A partial that is made anew at each call, and a wrapper whose code is that of many functions."""
    known = KnownPatterns()
    monkeypatch.setattr(MODULE, "KNOWN_PATTERNS", known)
    searches = []
    monkeypatch.setattr(MODULE, "find_pattern", lambda *a: searches.append(0) or find_pattern(*a))

    def wrapped(fn):
        return functools.wraps(fn)(lambda *args: fn(*args))

    def up(c, u, t):
        return c * u - np.roll(u, 1) - t

    def down(u, t):
        return 3.0 * u - np.roll(u, -1) - t

    for _ in range(2):
        for F in (functools.partial(up, 3.0), wrapped(down)):
            newton = dil.solvers.Newton(linear_solver=SparseDirect())
            dil.root(F, newton, linear_solver=SparseDirect(), init=lambda t: t)(np.linspace(1.0, 2.0, 50))
    assert len(searches) == 2


def test_a_pattern_that_became_too_full_is_replaced():
    from dil._base.operator import Source

    source, n = Source(lambda: None, ()), 50
    rows = np.arange(n)
    wide = [(rows + k) % n for k in range(10)]
    full = pattern_of_entries(np.concatenate(wide), np.tile(rows, 10), n)
    KNOWN_PATTERNS.add(source, full)
    narrow = pattern_of_entries(rows, rows, n)
    assert MOST_FULLER * narrow.rows.size < full.rows.size
    assert KNOWN_PATTERNS.add(source, narrow) == narrow
    assert KNOWN_PATTERNS.get(source, n) == narrow
    assert KNOWN_PATTERNS.get(None, n) is None
    assert KNOWN_PATTERNS.get(Source([], ()), n) is None


def test_a_batched_score(eager):
    def energy(u, t):
        xp = array_namespace(u)
        return xp.sum(0.5 * u**2 + 0.1 * u**4 - t * u, axis=-1) + xp.sum((u[..., 1:] - u[..., :-1]) ** 2, axis=-1)

    t = np.random.default_rng(0).standard_normal((3, 30))

    def gradients(solver):
        newton = dil.solvers.Newton(linear_solver=solver)
        layer = dil.argmin(energy, newton, linear_solver=solver, init=lambda t: 0.0 * t, batch_ndim=1)
        return eager.gradients(layer, (t,), np.ones((3, 30)))

    found, expected = gradients(SparseDirect()), gradients(dil.linear.Direct())
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[1][0], expected[1][0], rtol=1e-10, atol=1e-12)


# --- bad input


def test_a_matrix_that_is_too_full():
    n = 600
    A = np.random.default_rng(0).standard_normal((n, n)) + 100.0 * np.eye(n)
    found = SparseDirect()(Operator(lambda p: A @ p, lambda p: A.T @ p), np.ones(n))
    assert Status(int(found.status)).name == "WRONG_PATTERN"
    assert np.isnan(found.value).all()
    assert found.extra["products"] <= 512
    assert "too many" in Status.WRONG_PATTERN.sentence


def test_a_full_matrix_of_some_unknowns(eager):
    A = np.random.default_rng(0).standard_normal((60, 60)) + 30.0 * np.eye(60)
    x, names, _ = solved(eager, operator(eager, A), np.ones(60))
    assert names == ["CONVERGED"]
    np.testing.assert_allclose(A @ x, np.ones(60), rtol=1e-12)


def test_under_jit_a_matrix_that_is_too_full_is_told():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    dil.backend("jax", dtype="float64")
    A = jax.numpy.asarray(np.random.default_rng(0).standard_normal((120, 120)) + 60.0 * np.eye(120))
    status = jax.jit(lambda b: SparseDirect()(Operator(lambda p: A @ p), b).status)(jax.numpy.ones(120))
    assert Status(int(status)).name == "WRONG_PATTERN"


@pytest.mark.parametrize("n", [3, 40])
def test_singular_matrices(eager, n):
    for A in (np.zeros((n, n)), np.diag(np.arange(n) * 1.0)):
        assert solved(eager, operator(eager, A), np.ones(n))[1] == ["SINGULAR"]
        assert solved(eager, operator(eager, A), np.zeros(n))[1] == ["CONVERGED"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(eager, bad):
    A = 3.0 * np.eye(40) + np.eye(40, k=1)
    A[4, 5] = bad
    with np.errstate(invalid="ignore"):
        assert solved(eager, operator(eager, A), np.ones(40))[1] == ["NON_FINITE"]
    many = np.stack([A, 2.0 * np.eye(40)])
    with np.errstate(invalid="ignore"):
        x, names, _ = solved(eager, operator(eager, many), np.ones((2, 40)))
    assert names == ["NON_FINITE", "CONVERGED"]
    np.testing.assert_allclose(x[1], 0.5 * np.ones(40))


def test_products_that_are_random_come_to_an_end():
    draw = np.random.default_rng(0)
    found = SparseDirect()(Operator(lambda p: p + draw.standard_normal(p.shape)), np.ones(100))
    assert Status(int(found.status)).name in ("WRONG_PATTERN", "SINGULAR")


def test_no_unknowns_and_no_problems(eager):
    for shape in [(0,), (2, 0), (0, 3)]:
        found = SparseDirect()(Operator(lambda p: p), eager.asarray(np.zeros(shape)))
        assert tuple(found.value.shape) == shape
