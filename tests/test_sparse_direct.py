"""SparseDirect: matrices recovered from few products, their factorisation, and ways to get a pattern wrong."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil._frameworks.many import stacked
from dil.linear import Operator, SparseDirect
from dil.linear._colouring import coloured
from dil.linear._logarithmic_scales import logarithmic_scales
from dil.linear._pattern import given_pattern, pattern_for
from dil.linear._sparse_factor import Scaled

sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")


def random_matrix(n, seed, share=0.1, batch=()):
    """Return matrices of one random pattern that is not symmetric, with a dominant diagonal."""
    draw = np.random.default_rng(seed)
    pattern = (draw.uniform(size=(n, n)) < share) | np.eye(n, dtype=bool)
    A = np.where(pattern, draw.standard_normal((*batch, n, n)), 0.0)
    return A + (1.0 + np.abs(A).sum(-1).max()) * np.eye(n), pattern


def operator(engine, A, **options):
    M = engine.asarray(A)

    def product(p):
        return (M @ p[..., None])[..., 0]

    def transposed(p):
        return (M.mT @ p[..., None])[..., 0]

    return Operator(product, transposed, **options)


def solved(engine, solver, A, b, **options):
    """Return the value as NumPy array, the name of the status, and the rest of the solution."""
    found = solver(operator(engine, A, **options), engine.asarray(b))
    names = [Status(int(code)).name for code in np.ravel(engine.to_numpy(found.status))]
    extra = {name: engine.to_numpy(x) for name, x in found.extra.items() if name != "choice"}
    return engine.to_numpy(found.value), names, extra


def chain(u, t):
    """A discrete -u'' + u^3 + drift = t between zeros: J is tridiagonal and not symmetric."""
    xp = array_namespace(u)
    zero = 0.0 * u[:1]
    left, right = xp.concat([zero, u[:-1]]), xp.concat([u[1:], zero])
    return 3.0 * u - left - 0.5 * right + 0.1 * u**3 + 0.1 * u * right - t


@pytest.mark.parametrize("given", ["csr", "matrix", "bool", "function"])
def test_random_patterns(eager, given):
    for n, seed in [(1, 0), (7, 1), (60, 2)]:
        A, entries = random_matrix(n, seed)
        pattern = {
            "csr": sparse.csr_array(A),
            "matrix": sparse.coo_matrix(A),
            "bool": entries,
            "function": lambda m, entries=entries: sparse.csc_array(entries[:m, :m]),
        }[given]
        b = np.random.default_rng(3).standard_normal(n)
        for transposed in (False, True):
            M = A.T if transposed else A
            x, names, extra = solved(eager, SparseDirect(pattern), M, b, transposed=transposed)
            assert names == ["CONVERGED"]
            np.testing.assert_allclose(x, np.linalg.solve(M, b), rtol=1e-12, atol=1e-14)
            assert extra["products"] == extra["colours"] + 2
            assert extra["colours"] <= n
            assert extra["fill"] >= 0.5


def test_bands():
    for k, pattern in [(0, 0), (1, "tridiagonal"), (1, 1), (2, 2), (9, 30)]:
        A = np.triu(np.tril(np.random.default_rng(0).standard_normal((9, 9)), k), -k) + 20.0 * np.eye(9)
        found = SparseDirect(pattern)(Operator(lambda p, A=A: A @ p), np.ones(9))
        np.testing.assert_allclose(found.value, np.linalg.solve(A, np.ones(9)), rtol=1e-12)
        assert found.extra["colours"] == min(2 * k + 1, 9)


def test_columns_of_one_colour_share_no_row():
    for seed in range(5):
        _, entries = random_matrix(80, seed, share=0.05)
        colouring = coloured(pattern_for(given_pattern(entries), 80))
        for colour in range(colouring.count):
            assert entries[:, colouring.colours == colour].sum(axis=1).max() == 1
        assert colouring.count <= 2 * entries.sum(axis=1).max()


@pytest.mark.parametrize("seed", range(4))
def test_a_star_colouring_shows_each_entry(seed):
    """Each entry of a symmetric matrix, from products with fewer columns at once than those that share no row."""
    draw, n = np.random.default_rng(seed), 60
    M = np.where(draw.uniform(size=(n, n)) < 0.04, draw.standard_normal((n, n)), 0.0)
    M = M + M.T + np.diag(draw.standard_normal(n))
    pattern = pattern_for(given_pattern(M != 0), n)
    by_star = coloured(pattern, symmetric=True)
    products = np.stack([M @ (by_star.colours == colour) for colour in range(by_star.count)])
    np.testing.assert_array_equal(products.reshape(-1)[by_star.places], M[pattern.rows, pattern.columns])
    assert by_star.count < coloured(pattern).count


def test_a_symmetric_arrow_takes_two_colours(eager):
    """One unknown that meets all others. Where only the matrix is not symmetric, the check tells it."""
    n = 90
    A = 3.0 * np.eye(n)
    A[40], A[:, 40] = np.linspace(1.0, 2.0, n), np.linspace(1.0, 2.0, n)
    x, names, extra = solved(eager, SparseDirect(A != 0), A, np.ones(n), symmetric=True)
    assert names == ["CONVERGED"]
    assert extra["colours"] == 2
    np.testing.assert_allclose(A @ x, np.ones(n), rtol=1e-12)
    pattern, A[40, 7] = A != 0, 1.5
    assert solved(eager, SparseDirect(pattern), A, np.ones(n), symmetric=True)[1] == ["WRONG_PATTERN"]


def test_a_pattern_that_is_not_symmetric_is_coloured_by_columns():
    pattern = np.triu(np.random.default_rng(0).uniform(size=(50, 50)) < 0.1)
    given = pattern_for(given_pattern(pattern), 50)
    assert coloured(given, symmetric=True).count == coloured(given).count


def test_a_grid_takes_few_products():
    T = sparse.diags_array([np.ones(39), np.ones(40), np.ones(39)], offsets=[-1, 0, 1])
    L = sparse.kron(T, sparse.eye_array(40)) + sparse.kron(sparse.eye_array(40), T)
    assert coloured(pattern_for(given_pattern(L), 1600)).count <= 8


def test_the_direction_with_fewer_products_is_taken(eager):
    """A dense row makes all columns meet, and a dense column all rows."""
    n = 40
    A = 5.0 * np.eye(n)
    A[0] += 1.0 / n
    for M, transposed in [(A, False), (A.T, False), (A.T, True), (A, True)]:
        J = M.T if transposed else M
        x, names, extra = solved(eager, SparseDirect(J != 0), M, np.ones(n), transposed=transposed)
        assert names == ["CONVERGED"]
        assert extra["colours"] == 2
        np.testing.assert_allclose(M @ x, np.ones(n), rtol=1e-12)


def test_batches_share_a_pattern(eager):
    A, pattern = random_matrix(12, 0, batch=(3, 2))
    b = np.random.default_rng(1).standard_normal((3, 2, 12))
    A[1, 1, 4] = 0.0  # a row of zeros
    b[0, 1] = 0.0
    b[2, 0, 3] = np.nan
    x, names, extra = solved(eager, SparseDirect(pattern), A, b)
    assert names == ["CONVERGED", "CONVERGED", "CONVERGED", "SINGULAR", "NON_FINITE", "CONVERGED"]
    for i in [(0, 0), (0, 1), (1, 0), (2, 1)]:
        np.testing.assert_allclose(x[i], np.linalg.solve(A[i], b[i]), rtol=1e-12, atol=1e-15)
    assert extra["fill"].shape == (3, 2)
    assert np.isfinite(x).all()


def test_many_right_hand_sides_take_one_factorisation(eager, monkeypatch):
    A, pattern = random_matrix(20, 0, batch=(2,))
    B = np.random.default_rng(1).standard_normal((5, 2, 20))
    B[2, 1] = 0.0
    factorised, made = Scaled._factorised, []
    monkeypatch.setattr(Scaled, "_factorised", lambda s, **o: made.append(o) or factorised(s, **o))
    one = operator(eager, A)
    found = SparseDirect(pattern)(stacked(one), eager.asarray(B))
    assert len(made) == 2
    assert (eager.to_numpy(found.status) == 0).all()
    assert tuple(found.status.shape) == (5, 2)
    np.testing.assert_allclose(
        eager.to_numpy(found.value), np.linalg.solve(A, B[..., None])[..., 0], rtol=1e-12, atol=1e-15
    )


def test_damping_and_right_hand_sides_of_the_layer(eager):
    A, pattern = random_matrix(15, 0)
    np.fill_diagonal(A, 0.0)
    np.fill_diagonal(pattern, val=False)
    b, e = np.random.default_rng(1).standard_normal((2, 15))
    one = operator(eager, A, probes=(eager.asarray(e),))
    found = SparseDirect(pattern, damping=30.0)(one, eager.asarray(b))
    shifted = A + 30.0 * np.eye(15)
    np.testing.assert_allclose(eager.to_numpy(found.value), np.linalg.solve(shifted, b), rtol=1e-12)
    np.testing.assert_allclose(eager.to_numpy(found.extra["probes"][0]), np.linalg.solve(shifted, e), rtol=1e-12)


def test_units_of_rows_and_columns(eager):
    A, pattern = random_matrix(30, 4)
    draw = np.random.default_rng(0)
    R, C = 10.0 ** draw.uniform(-30, 30, 30), 10.0 ** draw.uniform(-3, 3, 30)
    b = R * draw.standard_normal(30)
    x, names, _ = solved(eager, SparseDirect(pattern), R[:, None] * A * C, b)
    assert names == ["CONVERGED"]
    np.testing.assert_allclose(C * x, np.linalg.solve(A, b / R), rtol=1e-10)


@pytest.mark.parametrize("name", ["chain", "random"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_unit_of_its_own_for_each_row_and_column(eager, name, transposed):
    """From 1e-10 to 1e10: the largest entry of a row stands where the unit of the column is large, and hides others."""
    n, draw = 200, np.random.default_rng(3)
    A = 3.0 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1) if name == "chain" else random_matrix(n, 3, 0.01)[0]
    left, right = 10.0 ** draw.uniform(-10, 10, (2, n))
    B, y = left[:, None] * A * right, draw.standard_normal(n)
    B = B.T if transposed else B
    scale = left if transposed else right
    x, names, _ = solved(eager, SparseDirect(B != 0), B, B @ (y / scale))
    assert names == ["CONVERGED"]
    np.testing.assert_allclose(x * scale, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_singular_matrix_in_any_units_is_told(eager, symmetric):
    """The Laplacian of a ring with random weights, in units from 1e-10 to 1e10."""
    for n, seed in ((10, 0), (60, 1), (60, 2)):
        draw = np.random.default_rng(seed)
        w = draw.uniform(0.5, 2.0, n)
        A = np.diag(w + np.roll(w, 1)) - np.roll(np.diag(w), 1, 0) - np.roll(np.diag(w), 1, 0).T
        left, right = np.ldexp(1.0, draw.integers(-33, 33, (2, n)))
        B = left[:, None] * A * (left if symmetric else right)
        _, names, _ = solved(eager, SparseDirect(B != 0), B, left * draw.standard_normal(n), symmetric=symmetric)
        assert names == ["SINGULAR"]


def test_scales_take_the_units_from_a_matrix():
    A, entries = random_matrix(50, 0)
    rows, columns = np.nonzero(entries)
    left, right = np.ldexp(1.0, np.random.default_rng(0).integers(-300, 300, (2, 50)))
    first = logarithmic_scales(rows, columns, np.abs(A[rows, columns]), 50)
    second = logarithmic_scales(rows, columns, left[rows] * np.abs(A[rows, columns]) * right[columns], 50)
    unit = second[0] / (left * first[0])  # one number may go from the rows to the columns
    assert unit.max() <= 4 * unit.min()
    np.testing.assert_allclose(second[1] / (right * first[1]) * unit.mean(), 1.0, rtol=3)


def test_units_of_a_symmetric_matrix(eager):
    A = np.diag(np.linspace(3.0, 4.0, 20)) + np.eye(20, k=1) + np.eye(20, k=-1)
    S = 10.0 ** np.random.default_rng(0).uniform(-30, 30, 20)
    b = S * np.random.default_rng(1).standard_normal(20)
    x, names, extra = solved(eager, SparseDirect("tridiagonal"), S[:, None] * A * S, b, symmetric=True)
    assert names == ["CONVERGED"]
    assert extra["condition"] < 10.0
    np.testing.assert_allclose(S * x, np.linalg.solve(A, b / S), rtol=1e-12)


def test_an_indefinite_matrix_with_zeros_on_its_diagonal(eager):
    """A saddle point of the kind [[K, B^T], [B, 0]] needs pivots off the diagonal."""
    draw = np.random.default_rng(0)
    B = draw.standard_normal((6, 20)) * (draw.uniform(size=(6, 20)) < 0.5)
    A = np.block([[np.diag(draw.uniform(1e-9, 1.0, 20)), B.T], [B, np.zeros((6, 6))]])
    b = draw.standard_normal(26)
    x, names, extra = solved(eager, SparseDirect(A != 0), A, b, symmetric=True)
    assert names == ["CONVERGED"]
    assert extra["indefinite"]
    assert np.abs(A @ x - b).max() < 1e-12 * np.abs(A).sum(-1).max() * np.abs(x).max()


def test_pivots_that_lose_digits_are_refined(eager):
    """A diagonal of a fiftieth of the other entries is taken for pivots, and the factors grow."""
    A = 0.02 * np.eye(60) + np.eye(60, k=1) + 0.9 * np.eye(60, k=-1) + 0.3 * np.eye(60, k=7)
    A = A + 0.3 * np.eye(60, k=-7)
    b = np.random.default_rng(0).standard_normal(60)
    x, names, _ = solved(eager, SparseDirect(A != 0), A, b)
    assert names == ["CONVERGED"]
    terms = np.abs(A).sum(-1).max() * np.abs(x).max() + np.abs(b).max()
    assert np.abs(A @ x - b).max() < 4 * np.finfo(float).eps * terms


@pytest.mark.parametrize(("least", "indefinite"), [(1.0, False), (-1.0, True)])
def test_a_symmetric_matrix_tells_its_signs(eager, least, indefinite):
    A = np.diag([3.0, least, 2.0, 5.0]) + 0.1 * (np.eye(4, k=1) + np.eye(4, k=-1))
    _, names, extra = solved(eager, SparseDirect("tridiagonal"), A, np.ones(4), symmetric=True)
    assert (names, bool(extra["indefinite"])) == (["CONVERGED"], indefinite)


# --- layers


def energy(u, t):
    """A chain of springs that grow stiff, with loads t."""
    xp = array_namespace(u)
    return xp.sum(0.5 * u**2 + 0.1 * u**4 - t * u, axis=-1) + xp.sum((u[..., 1:] - u[..., :-1]) ** 2, axis=-1)


def layer_of(n, solver=None, **options):
    solver = SparseDirect("tridiagonal") if solver is None else solver
    newton = dil.solvers.Newton(linear_solver=solver, **options)
    return dil.root(chain, newton, linear_solver=solver, init=lambda t: 0.0 * t)


def exact(t, v):
    """Return the solution of the chain and the gradient of <v, y>, by dense NumPy."""
    n = t.shape[0]
    u = np.zeros(n)
    for _ in range(30):
        right = np.append(u[1:], 0.0)
        J = np.diag(3.0 + 0.3 * u**2 + 0.1 * right) - np.eye(n, k=-1) + np.diag(-0.5 + 0.1 * u[:-1], 1)
        u = u - np.linalg.solve(J, chain(u, t))
    return u, np.linalg.solve(J.T, v)


def test_a_layer_and_its_gradient(engine):
    t, v = np.random.default_rng(0).standard_normal((2, 40))
    (y, (g,)), (u, expected) = engine.gradients(layer_of(40), (t,), v), exact(t, v)
    np.testing.assert_allclose(y, u, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(g, expected, rtol=1e-11, atol=1e-13)
    tangent = engine.tangent(layer_of(40), (t,), (v,))
    step = 1e-6
    np.testing.assert_allclose(tangent, (exact(t + step * v, v)[0] - exact(t - step * v, v)[0]) / (2 * step), rtol=1e-6)


def test_second_derivatives(engine):
    t, v, w = np.random.default_rng(0).standard_normal((3, 12))
    layer = layer_of(12)

    def slope(t):
        xp = array_namespace(t)
        value, pull = dil.vjp(layer, t)
        return xp.sum(pull(0.0 * value + xp.asarray(engine.asarray(v)))[0] * engine.asarray(w))

    if engine.backend not in ("numpy", "torch"):
        pytest.skip("one backend by the tape and one by its own graph show what all do")
    _, (found,) = engine.gradients(slope, (t,))
    step = 1e-5
    expected = [(exact(t + e, v)[1] @ w - exact(t - e, v)[1] @ w) / (2 * step) for e in step * np.eye(12)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_a_batched_layer_and_a_score(eager):
    t = np.random.default_rng(0).standard_normal((4, 30))

    def layer(solver):
        newton = dil.solvers.Newton(linear_solver=solver)
        return dil.argmin(energy, newton, linear_solver=solver, init=lambda t: 0.0 * t, batch_ndim=1)

    found = eager.gradients(layer(SparseDirect("tridiagonal")), (t,), np.ones((4, 30)))
    expected = eager.gradients(layer(dil.linear.Direct()), (t,), np.ones((4, 30)))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[1][0], expected[1][0], rtol=1e-10, atol=1e-12)


def test_a_pattern_in_place_is_not_followed():
    """The pattern is that at the time when the solver was made."""
    entries = np.eye(3, dtype=bool)
    solver = SparseDirect(entries)
    entries[:] = False
    assert solver == SparseDirect(np.eye(3, dtype=bool))
    assert hash(solver) == hash(SparseDirect(np.eye(3, dtype=bool)))
    assert solver(Operator(lambda p: 2.0 * p), np.ones(3)).value.tolist() == [0.5] * 3


def test_stored_zeros_belong_to_the_pattern():
    """So does an entry that is stored twice, once."""
    given = sparse.coo_array((np.asarray([0.0, 1.0, -1.0]), ([0, 2, 2], [1, 0, 0])), shape=(3, 3))
    pattern = SparseDirect(given).pattern
    assert pattern.rows.tolist() == [0, 2, 0, 1, 2]
    assert pattern.starts.tolist() == [0, 2, 4, 5]
    assert pattern.T.columns.tolist() == pattern.rows[np.argsort(pattern.rows, kind="stable")].tolist()
    assert pattern == pattern.T.T


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits(dtype):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    A = torch.tensor(3.0 * np.eye(20) + np.eye(20, k=1) - 0.5 * np.eye(20, k=-1), dtype=getattr(torch, dtype))
    found = SparseDirect("tridiagonal")(Operator(lambda p: A @ p), torch.ones(20, dtype=A.dtype))
    assert (found.value.dtype, int(found.status)) == (A.dtype, 0)
    expected = np.linalg.solve(A.double().numpy(), np.ones(20))
    np.testing.assert_allclose(found.value.double().numpy(), expected, rtol=4 * torch.finfo(A.dtype).eps)


def test_single_precision():
    A, pattern = random_matrix(50, 0)
    A, b = A.astype("float32"), np.ones(50, dtype="float32")
    found = SparseDirect(pattern)(Operator(lambda p: A @ p), b)
    assert found.value.dtype == np.float32
    assert found.status == 0
    np.testing.assert_allclose(found.value, np.linalg.solve(A.astype(float), b), rtol=1e-5)


def test_under_jit_a_wrong_pattern_is_told():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    dil.backend("jax", dtype="float64")

    def status(t):
        return layer_of(10, SparseDirect(0)).solve(t).status

    assert Status(int(jax.jit(status)(jax.numpy.ones(10)))).name == "WRONG_PATTERN"


# --- bad input


def test_a_pattern_that_lacks_an_entry(eager):
    """Each entry in turn: it lies beside others of its colour, or alone."""
    A, pattern = random_matrix(8, 5, share=0.3)
    b = np.random.default_rng(0).standard_normal(8)
    for i, j in np.argwhere(pattern & ~np.eye(8, dtype=bool)):
        less = pattern.copy()
        less[i, j] = False
        for transposed in (False, True):
            M = A.T if transposed else A
            x, names, _ = solved(eager, SparseDirect(less), M, b, transposed=transposed)
            assert names == ["WRONG_PATTERN"]
            assert np.isnan(x).all()


def test_a_tiny_entry_that_lacks():
    """Of 1e-8 of its row it is told. Where it is below rounding of the answer, the answer is right."""
    A = np.diag([1.0, 2.0, 3.0])
    for tiny, name in [(1e-8, "WRONG_PATTERN"), (1e-13, "CONVERGED")]:
        A[0, 2] = tiny
        found = SparseDirect(0)(Operator(lambda p: A @ p), np.ones(3))
        assert Status(int(found.status)).name == name


def test_an_entry_that_lacks_and_does_not_matter_for_this_right_hand_side():
    A = np.asarray([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = SparseDirect(0)(Operator(lambda p: A @ p), np.asarray([1.0, 0.0, 0.0]))
    assert Status(int(found.status)).name == "WRONG_PATTERN"


def test_an_entry_that_lacks_in_small_units():
    """A random vector has no units, so it does not show the entry. The solution has them."""
    A = np.asarray([[1.0, 0.0, 1e-13], [0.0, 1.0, 0.0], [0.0, 0.0, 1e-12]])
    found = SparseDirect(0)(Operator(lambda p: A @ p), np.ones(3))
    assert Status(int(found.status)).name == "WRONG_PATTERN"
    found = SparseDirect(2)(Operator(lambda p: A @ p), np.ones(3))
    np.testing.assert_allclose(found.value, [0.9, 1.0, 1e12], rtol=1e-12)


def test_newton_tells_a_wrong_pattern(eager):
    layer = layer_of(10, SparseDirect(0))
    found = layer.solve(eager.asarray(np.ones(10)))
    assert Status(int(found.status)).name == "WRONG_PATTERN"
    score = dil.argmin(energy, layer.solver, init=lambda t: 0.0 * t)
    assert Status(int(score.solve(eager.asarray(np.ones(10))).status)).name == "WRONG_PATTERN"
    assert "SparseDirect" in Status.WRONG_PATTERN.sentence
    strict = dil.root(chain, layer.solver, init=lambda t: 0.0 * t, on_failure="raise")
    with pytest.raises(dil.ConvergenceError, match="WRONG_PATTERN"):
        strict(eager.asarray(np.ones(10)))


def test_the_backward_pass_tells_a_wrong_pattern(eager):
    layer = dil.root(
        chain, dil.solvers.Newton(), linear_solver=SparseDirect(0), init=lambda t: 0.0 * t, on_failure="raise"
    )
    with pytest.raises(dil.ConvergenceError, match="an entry where the pattern of"):
        eager.gradients(layer, (np.ones(10),), np.ones(10))


SINGULAR = {
    "zero": np.zeros((3, 3)),
    "a row of zeros": np.diag([1.0, 0.0, 2.0]),
    "structurally": np.asarray([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]),
    "exactly": np.ones((3, 3)),
    "a Laplacian without a boundary": np.diag([1.0, 2.0, 2.0, 2.0, 1.0]) - np.eye(5, k=1) - np.eye(5, k=-1),
    "to rounding": np.asarray([[1.0, 1 / 3], [3.0, 1.0]]) * [[1.0, 0.1]],
}


@pytest.mark.parametrize("name", SINGULAR)
@pytest.mark.parametrize("symmetric", [False, True])
def test_singular_matrices(eager, name, symmetric):
    A = SINGULAR[name]
    if symmetric and (A != A.T).any():
        A = A + A.T if name == "structurally" else A.T @ A
    n = A.shape[0]
    b = np.random.default_rng(0).standard_normal(n)
    if np.linalg.matrix_rank(A) == n:
        pytest.skip("its symmetric part is regular")
    _, names, _ = solved(eager, SparseDirect(n), A, b, symmetric=symmetric)
    assert names == ["SINGULAR"]
    assert solved(eager, SparseDirect(n), A, 0.0 * b)[1] == ["CONVERGED"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(eager, bad):
    A, pattern = random_matrix(5, 0)
    broken = A.copy()
    broken[1, 1] = bad
    with np.errstate(invalid="ignore"):
        assert solved(eager, SparseDirect(pattern), broken, np.ones(5))[1] == ["NON_FINITE"]
    b = np.ones(5)
    b[2] = bad
    x, names, _ = solved(eager, SparseDirect(pattern), A, b)
    assert names == ["NON_FINITE"]
    assert np.isfinite(x).all()


def test_no_unknowns_and_no_problems(eager):
    for shape in [(0,), (2, 0), (0, 3)]:
        n = shape[-1]
        found = SparseDirect(lambda n: np.eye(n, dtype=bool))(Operator(lambda p: p), eager.asarray(np.zeros(shape)))
        assert tuple(found.value.shape) == shape
        assert tuple(found.status.shape) == shape[:-1], n


@pytest.mark.parametrize(
    ("pattern", "error", "words"),
    [
        ([], dil.OptionError, 'expected a SciPy sparse array .*"tridiagonal"'),
        ("pentadiagonal", dil.OptionError, "pattern='pentadiagonal'; expected"),
        (True, dil.OptionError, "pattern=True; expected"),
        (-1, dil.OptionError, "pattern=-1; expected"),
        (1.5, dil.OptionError, "pattern=1.5; expected"),
        (np.eye(3), dil.OptionError, "of dtype float64; for the entries of a matrix M, write M != 0"),
        ([[True]], dil.OptionError, "pattern=a list; expected"),
        (np.ones((3, 4), dtype=bool), dil.ShapeError, r"pattern of shape \(3, 4\); expected \(n, n\)"),
        (sparse.eye_array(3, 4), dil.ShapeError, r"pattern of shape \(3, 4\)"),
    ],
)
def test_what_is_no_pattern(pattern, error, words):
    with pytest.raises(error, match=words):
        SparseDirect(pattern)


def test_a_pattern_of_another_size():
    with pytest.raises(dil.ShapeError, match=r"has shape \(3, 3\), but the system has 4 unknowns .* expected \(4, 4\)"):
        SparseDirect(np.eye(3, dtype=bool))(Operator(lambda p: p), np.ones(4))
    with pytest.raises(dil.ShapeError, match=r"has shape \(3, 3\), but the system has 4 unknowns"):
        SparseDirect(lambda n: np.eye(3, dtype=bool))(Operator(lambda p: p), np.ones(4))
    with pytest.raises(dil.OptionError, match="pattern="):
        SparseDirect(lambda n: None)(Operator(lambda p: p), np.ones(4))
    with pytest.raises(dil.OptionError, match="returned a function for n = 4"):
        SparseDirect(lambda n: lambda n: 1)(Operator(lambda p: p), np.ones(4))
    with pytest.raises(dil.OptionError, match="damping"):
        SparseDirect(1, damping=-1.0)


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(dil.OptionError, match=r"SparseDirect needs SciPy, .*pip install scipy"):
        SparseDirect(1)(Operator(lambda p: p), np.ones(4))


def test_a_large_diagonal_is_the_pivot_of_a_pattern_that_is_not_symmetric():
    """The order for symmetric patterns fills the factors half as much as the one for pivots of any row."""
    m = 30
    line = sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(m, m))
    A = (sparse.kronsum(line, line) + sparse.diags_array([0.3], offsets=[17], shape=(m * m, m * m))).tocsc()
    found = SparseDirect(A)(Operator(lambda p: A @ p, lambda p: A.T @ p), np.ones(m * m))
    assert found.extra["fill"] < 0.7 * sparse.linalg.splu(A).nnz / A.nnz
    np.testing.assert_allclose(A @ found.value, 1.0, rtol=1e-12)


def test_entries_of_the_pattern_that_are_zero_do_not_fill_the_factors():
    """A pattern serves other functions of a factory too, so it may have the entries of many."""
    n = 400
    A = sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(n, n)).tocsc()
    pattern = A + 1.0 * sparse.random_array((n, n), density=3 / n, rng=np.random.default_rng(0))
    found = SparseDirect(pattern)(Operator(lambda p: A @ p, lambda p: A.T @ p), np.ones(n))
    assert found.extra["fill"] < 2
    np.testing.assert_allclose(A @ found.value, 1.0, rtol=1e-9)
