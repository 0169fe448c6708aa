"""Linear solvers: right, or a status that says it is not."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dil
from dil import Status
from dil._frameworks.many import stacked
from dil.linear import (
    CG,
    GMRES,
    IDR,
    MINRES,
    Auto,
    BiCGSTAB,
    Direct,
    Neumann,
    NormalCG,
    OneStep,
    Operator,
    WarmStart,
)
from engines import engines

NEW = [NormalCG, MINRES, GMRES, BiCGSTAB, IDR]
KINDS = {
    "definite": [CG, *NEW],
    "symmetric": [MINRES, NormalCG, GMRES, BiCGSTAB, IDR],
    "general": [NormalCG, GMRES, BiCGSTAB, IDR],
    "shifted": [NormalCG, GMRES, BiCGSTAB, IDR],
}
EXAMPLES = {"numpy": 300, "jax": 2, "array_api_strict": 6}
"""JAX compiles each."""


@pytest.fixture(scope="module", params=[e for e in engines() if e.name == e.backend != "jax"], ids=lambda e: e.name)
def eager(request):
    """Every backend that runs its loops in Python; compiling for JAX would take most of the time of this file."""
    if request.param.reason is not None:
        pytest.skip(request.param.reason)
    return request.param


def orthogonal(n, draw):
    return np.linalg.qr(draw.standard_normal((n, n)))[0]


@lru_cache(maxsize=8)
def matrix(kind, n, condition, seed):
    """Return a random matrix with singular values from 1/condition to 1, or the identity plus half a unit disc."""
    draw = np.random.default_rng(seed)
    if kind == "shifted":
        return np.eye(n) + 0.5 * draw.standard_normal((n, n)) / n**0.5
    Q, P, values = orthogonal(n, draw), orthogonal(n, draw), np.geomspace(1 / condition, 1, n)
    if kind == "symmetric":
        values = values * draw.choice([-1.0, 1.0], n)
    A = (Q * values) @ (P if kind == "general" else Q).T
    return A if kind == "general" else (A + A.T) / 2


def easy(solver, kind, condition, n):
    """Whether theory has the solver converge in far fewer steps than it is given, rounding included."""
    if kind == "shifted" or (kind == "definite" and condition <= 10):
        return n > 1 or kind != "shifted"  # a number near one may be zero or negative
    return condition <= 10 and solver in (MINRES, NormalCG)


def operator(xp, A):
    """Return an operator from matrices (*batch, n, n)."""
    return Operator(lambda p: xp.matmul(A, p[..., None])[..., 0], lambda p: xp.matmul(A.mT, p[..., None])[..., 0])


def run(engine, solver, A, b, *, dtype="float64", **arrays):
    """Solve on an engine; return value, status, iterations, residual and products as NumPy arrays."""
    handle = dil.backend(engine.backend, device=engine.device, dtype=dtype)
    given = {name: handle.asarray(x) for name, x in arrays.items()}
    found = solver(operator(handle.xp, handle.asarray(A)), handle.asarray(b), **given)
    products = (found.extra or {}).get("products", found.iterations)
    assert found.value.dtype == handle.asarray(b).dtype
    assert found.status.shape == found.iterations.shape == found.residual.shape == products.shape == b.shape[:-1]
    return tuple(np.asarray(handle.to_numpy(x)) for x in (*found[:4], products))


def name_of(status):
    return Status(int(status)).name


def residual_of(A, b, x):
    """Return ||b - A x|| / ||b|| in float64, and how far a computation in the dtype of b may be from it."""
    A64, b64, x64 = (v.astype(np.float64) for v in (A, b, x))
    scale = np.abs(b64).max()
    b64, x64 = b64 / scale, x64 / scale
    size = np.linalg.norm(b64)
    terms = np.linalg.norm(np.abs(A64) @ np.abs(x64)) / size + 1
    return np.linalg.norm(b64 - A64 @ x64) / size, (len(b) + 2) * np.finfo(b.dtype).eps * terms


def check_stationarity(solver, kind, condition, A, b, found):
    """Assert that one problem is right to its tolerance, or has a status that says it is not."""
    x, status, steps, residual, products = found
    true, rounding = residual_of(A, b, x)
    assert abs(true - residual) <= rounding
    rtol = np.finfo(b.dtype).eps ** 0.75
    if status == Status.CONVERGED:
        A64, b64 = A.astype(float), b.astype(float)
        exact = np.linalg.solve(A64, b64)
        cond = np.linalg.cond(A64)
        assert true <= rtol + rounding
        error = np.linalg.norm((x - exact) / np.abs(b).max()) / np.linalg.norm(exact / np.abs(b).max())
        assert error <= 1.01 * cond * (rtol + rounding + 8 * np.finfo(float).eps * len(b))
    else:
        assert residual > rtol
        text = f"{solver.__name__} ended {name_of(status)} on an easy system: {kind}, {condition:g}"
        assert not easy(solver, kind, condition, len(b)), text
    if solver is not CG:
        assert products >= steps + 1


def test_right_or_says_so(plain):
    @settings(max_examples=EXAMPLES.get(plain.backend, 15))
    @given(
        case=st.sampled_from([(kind, solver) for kind, solvers in KINDS.items() for solver in solvers]),
        n=st.one_of(st.integers(1, 8), st.integers(1, 80)),
        condition=st.sampled_from([1.0, 3.0, 10.0, 1e4, 1e8]),
        power=st.sampled_from([-30, -13, 0, 13, 30]),
        seed=st.integers(0, 10**6),
        dtype=st.sampled_from(["float32", "float64"]),
    )
    def check(case, n, condition, power, seed, dtype):
        kind, solver = case
        A = matrix(kind, n, condition, seed).astype(dtype)
        b = (np.random.default_rng(seed).standard_normal(n) * 10.0**power).astype(dtype)
        check_stationarity(solver, kind, condition, A, b, run(plain, solver(), A, b, dtype=dtype))

    check()


def test_dense_and_automatic_solves_are_right_or_say_so(plain):
    @settings(max_examples=EXAMPLES.get(plain.backend, 30))
    @given(
        kind=st.sampled_from(["definite", "symmetric", "general"]),
        solver=st.sampled_from([Direct, Auto]),
        n=st.one_of(st.integers(1, 8), st.integers(1, 80)),
        condition=st.sampled_from([1.0, 10.0, 1e4, 1e8, 1e14]),
        power=st.sampled_from([-30, 0, 30]),
        seed=st.integers(0, 10**6),
        dtype=st.sampled_from(["float32", "float64"]),
    )
    def check(kind, solver, n, condition, power, seed, dtype):
        A = matrix(kind, n, condition, seed).astype(dtype)
        b = (np.random.default_rng(seed).standard_normal(n) * 10.0**power).astype(dtype)
        x, status, *_ = run(plain, solver(), A, b, dtype=dtype)
        machine = float(np.finfo(dtype).eps)
        cond = np.linalg.cond(A.astype(float))
        unit = float(np.abs(b).max())
        exact = np.linalg.solve(A.astype(float), b.astype(float) / unit)
        if status == Status.CONVERGED:
            error = np.linalg.norm(x / unit - exact) / np.linalg.norm(exact)
            assert error <= cond * (machine**0.75 + 16 * machine * n)
        elif status == Status.NON_FINITE:
            assert np.abs(exact).max() > 0.5 * float(np.finfo(dtype).max) / unit
        else:
            assert cond * n >= machine ** (-2 / 3), f"{solver.__name__} ended {name_of(status)}: {kind}, {condition:g}"

    check()


@pytest.mark.parametrize(("kind", "solver"), [(kind, solver) for kind in KINDS for solver in KINDS[kind]])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_systems(kind, solver, dtype):
    A = matrix(kind, 300, 5.0, 1).astype(dtype)
    b = np.random.default_rng(2).standard_normal(300).astype(dtype)
    op = operator(np, A)
    found = solver()(op, b)
    products = (found.extra or {}).get("products", found.iterations)
    check_stationarity(solver, kind, 5.0, A, b, (*found[:4], products))


@pytest.mark.parametrize("solver", NEW)
def test_bad_problems_leave_the_others(plain, solver):
    kind = "definite" if solver is MINRES else "shifted"
    good = matrix(kind, 5, 10.0, 3)
    bad, infinite = good.copy(), good.copy()
    bad[1, 2] = bad[2, 1] = np.nan
    infinite[0, 0] = np.inf
    Q = orthogonal(5, np.random.default_rng(4))
    singular = (Q * np.asarray([1.0, 2.0, -1.0, 3.0, 0.0])) @ Q.T
    nan = np.asarray([1.0, np.nan, 1.0, 1.0, 1.0])
    one, inconsistent, consistent = np.ones(5), Q @ np.ones(5), singular @ np.ones(5)
    A = np.stack([good, -good, np.eye(5), bad, infinite, singular, singular, good, good, good])
    b = np.stack([one, one, 0 * one, one, one, inconsistent, consistent, 1e-200 * one, nan, np.inf * one])
    x, status, steps, residual, products = run(plain, solver(), A, b)
    names = [name_of(s) for s in status]
    assert names[:5] == ["CONVERGED", "CONVERGED", "CONVERGED", "NON_FINITE", "NON_FINITE"]
    assert names[5] in ("SINGULAR", "STAGNATED")
    assert names[6:] == ["CONVERGED", "CONVERGED", "NON_FINITE", "NON_FINITE"]
    alone = run(plain, solver(), good, one)
    np.testing.assert_allclose(x[0], alone[0], rtol=1e-9)
    np.testing.assert_allclose(x[1], -alone[0], rtol=1e-9)
    np.testing.assert_allclose(x[7], 1e-200 * alone[0], rtol=1e-9)
    np.testing.assert_allclose(singular @ x[6], consistent, atol=1e-11)
    assert (steps[2], products[2]) == (0, 0)
    assert np.all(x[2] == 0)
    assert residual[5] >= 0.2**0.5 - 1e-9  # the least there is
    assert np.all(np.isfinite(x))


@pytest.mark.parametrize("solver", NEW)
def test_batches_of_any_shape(eager, solver):
    A = np.stack([np.stack([matrix("definite", 4, 10.0, 3 * i + j) for j in range(3)]) for i in range(2)])
    b = np.random.default_rng(0).standard_normal((2, 3, 4))
    x, status, *_ = run(eager, solver(), A, b)
    assert np.all(status == Status.CONVERGED)
    np.testing.assert_allclose(x, np.linalg.solve(A, b[..., None])[..., 0], rtol=1e-9)


@pytest.mark.parametrize("solver", [CG, *NEW])
def test_empty_and_single(eager, solver):
    x, status, *_ = run(eager, solver(), np.zeros((0, 0)), np.zeros(0))
    assert (x.shape, int(status)) == ((0,), Status.CONVERGED)
    x, status, *_ = run(eager, solver(), np.zeros((3, 0, 0)), np.zeros((3, 0)))
    assert (x.shape, status.tolist()) == ((3, 0), [Status.CONVERGED] * 3)
    x, status, steps, *_ = run(eager, solver(), np.asarray([[4.0]]), np.asarray([2.0]))
    assert (x.tolist(), int(status), int(steps)) == ([0.5], Status.CONVERGED, 1)


@pytest.mark.parametrize("solver", NEW)
def test_singular_systems(solver, eager):
    @settings(max_examples=EXAMPLES.get(eager.backend, 5) // 3)
    @given(n=st.integers(2, 30), rank=st.integers(1, 29), seed=st.integers(0, 10**6), solvable=st.booleans())
    def check(n, rank, seed, solvable):
        draw, rank = np.random.default_rng(seed), min(rank, n - 1)
        Q = orthogonal(n, draw)
        values = np.where(np.arange(n) < rank, draw.choice([-1.0, 1.0], n) * draw.uniform(1, 3, n), 0.0)
        A = (Q * values) @ Q.T
        A = (A + A.T) / 2
        b = A @ draw.standard_normal(n) if solvable else Q @ np.ones(n)
        _, status, _, residual, _ = run(eager, solver(), A, b)
        if solver in (NormalCG, MINRES):
            assert (status == Status.CONVERGED) == solvable
            assert solvable or name_of(status) in ("SINGULAR", "STAGNATED")
            least = ((n - rank) / n) ** 0.5
            assert solvable or residual <= 1.1 * least
        else:
            assert solvable or status != Status.CONVERGED

    check()


@pytest.mark.parametrize("n", [2, 5, 6, 40])
@pytest.mark.parametrize("solver", [Direct, Auto])
def test_null_vectors_with_a_pattern_are_seen(eager, solver, n):
    """A Laplacian maps constants to zero, to which a probe of as many ones as minus ones is orthogonal."""
    draw = np.random.default_rng(n)
    W = np.triu(draw.uniform(0.2, 1.0, (n, n)), 1)
    A = np.diag((W + W.T).sum(1)) - W - W.T
    matrix = eager.asarray(A)
    operator = Operator(lambda p: matrix @ p, symmetric=True)
    found = solver()(operator, eager.asarray(draw.standard_normal(n)))
    assert Status(int(found.status)) is Status.SINGULAR
    consistent = A @ draw.standard_normal(n)
    found = Auto()(operator, eager.asarray(consistent))
    assert Status(int(found.status)) in (Status.CONVERGED, Status.SINGULAR)
    if Status(int(found.status)) is Status.CONVERGED:
        np.testing.assert_allclose(A @ eager.to_numpy(found.value), consistent, atol=1e-9 * np.abs(consistent).max())


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("kind", ["symmetric", "general"])
def test_auto_finds_the_shortest_solution_of_a_singular_system(eager, kind, unit):
    """A batch of a singular system that has solutions, one that has none, and a regular one, in each unit of A."""
    n, draw = 6, np.random.default_rng(3)
    regular = matrix(kind, n, 10.0, 2)
    U, values, V = np.linalg.svd(regular)
    singular = regular - values[0] * np.outer(U[:, 0], V[0])
    A, inside = np.stack([singular, singular, regular]), singular @ draw.standard_normal(n)
    b = np.stack([1e-20 * inside, inside + U[:, 0], inside])
    handle = dil.backend(eager.backend, device=eager.device, dtype="float64")
    product = operator(handle.xp, handle.asarray(unit * A))
    found = Auto()(Operator(product.matvec, product.rmatvec, symmetric=kind == "symmetric"), handle.asarray(b))
    x, status = unit * handle.to_numpy(found.value), [name_of(code) for code in handle.to_numpy(found.status)]
    assert status == ["CONVERGED", "SINGULAR", "CONVERGED"]
    shortest = np.linalg.pinv(singular, rcond=1e-9) @ inside
    expected = np.stack([1e-20 * shortest, shortest, np.linalg.solve(regular, inside)])
    np.testing.assert_allclose(x, expected, rtol=1e-11, atol=0)
    if kind == "symmetric":
        eigenvalues = np.linalg.eigvalsh(A)
        assert handle.to_numpy(found.extra["indefinite"]).tolist() == (eigenvalues[:, 0] < -1e-3).tolist()


@pytest.mark.parametrize("condition", [1e9, 1e10, 1e11])
def test_a_system_that_is_right_to_many_digits_is_not_called_singular(condition):
    """No scaling of its rows makes it better."""
    Q = orthogonal(2, np.random.default_rng(1))
    H = (Q * np.asarray([1.0, 1.0 / condition])) @ Q.T
    found = Auto()(Operator(lambda p: H @ p, symmetric=True), Q[:, 1])
    assert name_of(found.status) == "CONVERGED"
    np.testing.assert_allclose(found.value, condition * Q[:, 1], rtol=4 * condition * np.finfo(float).eps)


def test_auto_keeps_a_doubtful_eigenvalue_that_the_right_hand_side_needs():
    """Its eigenvalue is 2.5e-12 of the largest: above eps ** (3/4), 1.8e-12, and below eps ** (2/3), 3.7e-11."""
    Q = orthogonal(6, np.random.default_rng(0))
    A = Operator(lambda p: Q @ (np.asarray([2.5e-12, 0.5, 0.6, 0.7, 0.8, 1.0]) * (Q.T @ p)), symmetric=True)
    found = Auto()(A, Q[:, 1] + 1e-9 * Q[:, 0])
    assert name_of(found.status) == "CONVERGED"
    assert Q[:, 0] @ found.value == pytest.approx(400.0, rel=1e-3)
    found = Auto()(A, Q[:, 1])
    assert name_of(found.status) == "CONVERGED"
    np.testing.assert_allclose(found.value, 2.0 * Q[:, 1], atol=1e-9)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("kind", ["definite", "symmetric", "general"])
def test_units_of_a_dense_matrix_are_immaterial(eager, kind, scale):
    A, b = matrix(kind, 6, 10.0, 0), np.arange(1.0, 7.0)
    handle = dil.backend(eager.backend, device=eager.device, dtype="float32")
    product = operator(handle.xp, handle.asarray((scale * A).astype("float32")))
    A_ = Operator(product.matvec, product.rmatvec, symmetric=kind != "general")
    found = Direct()(A_, handle.asarray(b.astype("float32")))
    assert name_of(found.status) == "CONVERGED"
    np.testing.assert_allclose(
        handle.to_numpy(found.value).astype(float) * scale, np.linalg.solve(A, b), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("solver", [Direct, Auto])
@pytest.mark.parametrize("kind", ["definite", "symmetric", "general"])
def test_units_of_a_small_system_change_nothing_but_units(eager, kind, solver, dtype):
    """For u = D u' and F = C F' the matrix is C A D: the status is the same, and the solution is D^-1 x."""

    @settings(max_examples=EXAMPLES.get(eager.backend, 8) // 4)
    @given(
        n=st.integers(1, 8), condition=st.sampled_from([1.0, 1e3]), power=st.integers(0, 12), seed=st.integers(0, 10**6)
    )
    def check(n, condition, power, seed):
        draw = np.random.default_rng(seed)
        A, x = matrix(kind, n, condition, seed % 8), draw.standard_normal(n)
        D = 10.0 ** draw.uniform(-power, power, n)
        C = D if kind != "general" else 10.0 ** draw.uniform(-power, power, n)
        scaled = C[:, None] * A * D
        handle = dil.backend(eager.backend, device=eager.device, dtype=dtype)
        product = operator(handle.xp, handle.asarray(scaled))
        A_ = Operator(product.matvec, product.rmatvec, symmetric=kind != "general")
        found = solver()(A_, handle.asarray(C * (A @ x)))
        assert name_of(found.status) == "CONVERGED"
        error = np.abs(D * handle.to_numpy(found.value).astype(float) - x).max() / np.abs(x).max()
        assert error <= 64 * n * condition * np.finfo(dtype).eps

    check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_component_that_the_right_hand_side_has_is_never_dropped_in_silence(eager, dtype):
    """The matrix has one eigenvalue far below the others, in a direction that no scale of the entries shows."""

    @settings(max_examples=EXAMPLES.get(eager.backend, 8))
    @given(n=st.integers(2, 8), digits=st.floats(0.3, 1.2), part=st.floats(0.0, 1.2), seed=st.integers(0, 10**6))
    def check(n, digits, part, seed):
        draw, machine = np.random.default_rng(seed), np.finfo(dtype).eps
        Q = orthogonal(n, draw)
        values = draw.uniform(1.0, 2.0, n)
        values[0] = machine**digits
        b = Q[:, 1] + machine**part * Q[:, 0]
        handle = dil.backend(eager.backend, device=eager.device, dtype=dtype)
        product = operator(handle.xp, handle.asarray((Q * values) @ Q.T))
        found = Auto()(Operator(product.matvec, symmetric=True), handle.asarray(b))
        got = Q[:, 0] @ handle.to_numpy(found.value).astype(float)
        right = machine**part / values[0]
        tolerance = 64 * n * machine / values[0]  # of the rounding of A, relative
        wrong = abs(got - right) > max(tolerance, 1e-3) * max(right, 1.0)
        assert not wrong or name_of(found.status) == "SINGULAR" or machine**part <= 64 * n * machine

    check()


@pytest.mark.parametrize("solver", [MINRES, GMRES, BiCGSTAB, IDR])
def test_damping_is_added_to_the_diagonal(eager, solver):
    A, b = matrix("symmetric", 6, 10.0, 0), np.arange(1.0, 7.0)
    x, status, *_ = run(eager, solver(damping=3.0), A, b)
    assert status == Status.CONVERGED
    np.testing.assert_allclose(x, np.linalg.solve(A + 3 * np.eye(6), b), rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
def test_damping_of_normal_equations(eager, scale):
    A, b = scale * matrix("general", 6, 1e3, 0), np.arange(1.0, 7.0)
    A[:, 0] = A[:, 1]
    damping = 0.1 * scale**2
    x, status, _, residual, _ = run(eager, NormalCG(damping=damping), A, b)
    assert status == Status.CONVERGED
    exact = np.linalg.solve(A.T @ A / scale**2 + 0.1 * np.eye(6), A.T @ b / scale)
    np.testing.assert_allclose(x * scale, exact, rtol=1e-9)
    assert residual <= np.finfo(float).eps ** 0.75


@pytest.mark.parametrize("solver", NEW)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_units_of_the_matrix_are_immaterial(eager, solver, scale):
    A, b = matrix("definite", 6, 10.0, 0), np.arange(1.0, 7.0)
    small = (scale * A).astype("float32")
    x, status, *_ = run(eager, solver(), small, b.astype("float32"), dtype="float32")
    assert status == Status.CONVERGED
    np.testing.assert_allclose(x.astype(float) * scale, np.linalg.solve(A, b), rtol=1e-3)


@pytest.mark.parametrize("solver", NEW)
def test_answer_beyond_the_dtype_is_no_answer(solver):
    for power in (30, 38):
        x, status, *_ = solver()(operator(np, np.full((1, 1), 1e-20, "float32")), np.full(1, 10.0**power, "float32"))
        assert name_of(status) == "NON_FINITE", x


@pytest.mark.parametrize("solver", NEW)
def test_start(eager, solver):
    A, b = matrix("shifted" if solver is not MINRES else "definite", 40, 3.0, 1), np.arange(1.0, 41.0)
    exact = np.linalg.solve(A, b)
    cold = run(eager, solver(), A, b)
    near = run(eager, solver(), A, b, x0=exact * (1 + 1e-7 * np.cos(np.arange(40.0))))
    assert near[1] == Status.CONVERGED
    assert near[2] < cold[2]
    np.testing.assert_allclose(near[0], exact, rtol=1e-10)
    there = run(eager, solver(), A, b, x0=exact)
    assert (there[2], there[4]) == (0, 1)
    np.testing.assert_allclose(there[0], exact, rtol=1e-15)  # b was scaled to norm one


@pytest.mark.parametrize("solver", NEW)
def test_start_far_away_is_forgotten(eager, solver):
    A, b = matrix("definite", 4, 10.0, 1), np.arange(1.0, 5.0)
    cold = run(eager, solver(), A, b)[0]
    starts = np.stack([1e6 * np.ones(4), np.full(4, np.nan), np.full(4, np.inf), np.full(4, 1e308)])
    x, status, *_ = run(eager, solver(), A, np.stack([b] * 3 + [1e-30 * b]), x0=starts)
    assert np.all(status == Status.CONVERGED)
    np.testing.assert_allclose(x, np.stack([cold] * 3 + [1e-30 * cold]), rtol=1e-10)
    x, status, steps, *_ = run(eager, solver(), A, 0 * b, x0=starts[0])
    assert (x.tolist(), int(status), int(steps)) == ([0.0] * 4, Status.CONVERGED, 0)


@pytest.mark.parametrize("solver", [Auto(), CG(), IDR()], ids=repr)
def test_a_matrix_in_the_place_of_a_product_is_refused(solver):
    with pytest.raises(dil.OptionError, match=r"A has the type ndarray; expected a function p -> A p"):
        solver(np.eye(3), np.ones(3))


def test_start_of_another_shape_is_refused():
    with pytest.raises(dil.DilError, match="x0 has shape"):
        GMRES()(lambda p: p, np.ones(3), x0=np.ones(4))


@pytest.mark.parametrize("solver", [*NEW, dil.linear.CG, dil.linear.Direct, dil.linear.Auto])
@pytest.mark.parametrize(
    ("product", "message"),
    [
        (lambda p: p[:1], r"shape \(1,\); expected \(3,\)"),  # which would broadcast
        (lambda p: None, "NoneType without a shape"),
        (lambda p: p.astype(np.float32), "dtype float32; expected float64"),
    ],
    ids=["shape", "none", "dtype"],
)
def test_product_that_is_not_like_its_vector_is_refused(solver, product, message):
    with pytest.raises(dil.DilError, match=message):
        solver()(Operator(product, product, symmetric=True), np.ones(3))
    with pytest.raises(dil.ShapeError, match="x0 has shape"):
        solver()(Operator(lambda p: p, lambda p: p, symmetric=True), np.ones(3), x0=np.ones(4))


@pytest.mark.parametrize("solver", NEW)
def test_iteration_limit_and_count_of_products(solver):
    A, b = matrix("definite", 60, 1e6, 3), np.ones(60)
    calls = []

    def counted(name, M):
        def product(p):
            calls.append(name)
            return M @ p

        return product

    for limit in (3, 1000):
        calls.clear()
        found = solver(max_iter=limit)(Operator(counted("A", A), counted("A.T", A.T)), b, x0=1e-3 * b)
        assert found.extra["products"] == len(calls)
        assert found.iterations <= limit
        assert limit == 1000 or (name_of(found.status), int(found.iterations)) == ("MAX_ITER", 3)
        assert found.residual < 1


@pytest.mark.parametrize("limit", [1, 2, 4, 6])
def test_minres_has_the_least_residual_at_every_limit(limit):
    """The least of all vectors of the Krylov space, where the last one is not the one of least ||A r|| / ||r||."""
    draw = np.random.default_rng(0)
    Q = orthogonal(30, draw)
    A, b = (Q * draw.choice([-1.0, 1.0], 30) * np.geomspace(1e-2, 1, 30)) @ Q.T, draw.standard_normal(30)
    images = np.stack([np.linalg.matrix_power(A, i) @ b for i in range(1, limit + 1)], axis=-1)
    least = np.linalg.norm(b - images @ np.linalg.lstsq(images, b, rcond=None)[0]) / np.linalg.norm(b)
    found = MINRES(max_iter=limit)(lambda p: A @ p, b)
    assert name_of(found.status) == "MAX_ITER"
    assert found.residual == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize(("large", "status"), [(1e6, "CONVERGED"), (1e10, "SINGULAR")])
@pytest.mark.parametrize("solver", [MINRES, GMRES, NormalCG])
def test_a_solution_that_rounding_of_the_matrix_changes_at_will_is_none(solver, large, status):
    """The condition number is the square of the large entry, which only the last product shows."""
    A = np.asarray([[0.0, 1.0], [1.0, large]])
    found = solver()(Operator(lambda p: A @ p, symmetric=True), np.asarray([1.0, 0.0]))
    assert name_of(found.status) == status
    if status == "CONVERGED":
        np.testing.assert_allclose(found.value, [-large, 1.0], rtol=1e-9)


def test_bicgstab_takes_no_step_along_a_null_vector():
    """After half an iteration the residual is one, up to rounding of A: what it leads to is only that rounding."""
    n = 64
    A, b = np.eye(n + 1), np.ones(n + 1)
    A[n], A[n, n], b[n] = -1e-3 / n, 0.0, 0.0
    A[:n, n] = np.where(np.arange(n) % 2, 1, -1) * np.finfo(float).eps / n**0.5
    found = BiCGSTAB()(lambda p: A @ p, b)
    assert name_of(found.status) in ("SINGULAR", "STAGNATED")
    assert np.linalg.norm(b - A @ found.value) <= 1.1e-3
    np.testing.assert_allclose(found.value, b, atol=1e-9)


def test_gmres_stagnates_where_its_cycles_gain_nothing():
    n = 6
    shift = np.roll(np.eye(n), 1, axis=0)
    op, b = operator(np, shift), np.eye(n)[0]
    assert name_of(GMRES(restart=n - 1)(op, b).status) == "STAGNATED"
    found = GMRES(restart=n)(op, b)
    assert (name_of(found.status), int(found.iterations)) == ("CONVERGED", n)


def test_bicgstab_survives_breakdowns():
    draw = np.random.default_rng(0)
    B = draw.standard_normal((10, 10))
    skew = B - B.T  # <r, A r> = 0: the first step with the usual shadow residual is impossible
    b = draw.standard_normal(10)
    found = BiCGSTAB()(operator(np, skew), b)
    assert name_of(found.status) == "CONVERGED"
    np.testing.assert_allclose(skew @ found.value, b, rtol=1e-9, atol=1e-9)


def test_matrix_that_is_not_symmetric_does_not_fool_minres():
    found = MINRES()(operator(np, matrix("shifted", 20, 1.0, 5)), np.ones(20))
    assert found.status != Status.CONVERGED
    assert found.residual > 1e-3


@pytest.mark.parametrize("solver", [Direct, Auto, BiCGSTAB, GMRES, IDR, NormalCG])
def test_many_right_hand_sides_of_one_matrix(eager, solver):
    """They have the solutions and the statuses that each has by itself, those of a batch of matrices too."""
    A = np.stack([matrix("shifted", 5, 1.0, seed) for seed in range(3)])
    A[2] = 0.0
    B = np.random.default_rng(0).standard_normal((4, 3, 5))
    B[1, 0] = 0.0
    one = operator(eager.xp, eager.asarray(A))
    found = solver()(stacked(one), eager.asarray(B))
    assert solver()._takes_many
    for k in range(4):
        alone = solver()(one, eager.asarray(B[k]))
        np.testing.assert_array_equal(eager.to_numpy(found.status)[k, :2], eager.to_numpy(alone.status)[:2])
        np.testing.assert_allclose(
            eager.to_numpy(found.value)[k, :2], eager.to_numpy(alone.value)[:2], rtol=1e-6, atol=1e-9
        )
    assert (eager.to_numpy(found.status)[:, 2] != int(Status.CONVERGED)).all()


@pytest.mark.parametrize("k", [1, 3])
def test_many_right_hand_sides_of_a_symmetric_matrix(eager, k):
    A = matrix("definite", 6, 10.0, 0)
    A[5, 5] -= 20.0  # one negative eigenvalue
    B = np.random.default_rng(0).standard_normal((k, 6))
    found = Direct()(
        stacked(Operator(lambda p: eager.xp.matmul(eager.asarray(A), p), symmetric=True)), eager.asarray(B)
    )
    np.testing.assert_allclose(eager.to_numpy(found.value), np.linalg.solve(A, B.T).T, rtol=1e-9)
    assert eager.to_numpy(found.extra["indefinite"]).tolist() == [True] * k


def test_transposes():
    A, b = matrix("shifted", 7, 1.0, 2), np.arange(1.0, 8.0)
    for solver in (NormalCG(), GMRES(), BiCGSTAB(), IDR()):
        np.testing.assert_allclose(solver(operator(np, A).T, b).value, np.linalg.solve(A.T, b), rtol=1e-9)
    with pytest.raises(dil.OptionError, match="rmatvec"):
        NormalCG()(lambda p: A @ p, b)
    S = (A + A.T) / 2
    np.testing.assert_allclose(
        NormalCG()(Operator(lambda p: S @ p, symmetric=True), b).value, np.linalg.solve(S, b), rtol=1e-9
    )


@pytest.mark.parametrize("solver", NEW)
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"damping": -1.0}, "damping=-1.0"),
        ({"damping": float("nan")}, "damping=nan"),
        ({"rtol": 0.0}, "rtol=0.0"),
        ({"rtol": 2.0}, "rtol=2.0"),
        ({"max_iter": 0}, "max_iter=0"),
    ],
)
def test_options_out_of_range(solver, options, text):
    with pytest.raises(dil.OptionError, match=text):
        solver(**options)


@pytest.mark.parametrize("restart", [0, -3, 2.5])
def test_restart_out_of_range(restart):
    with pytest.raises(dil.OptionError, match="restart="):
        GMRES(restart=restart)


@pytest.mark.parametrize("solver", NEW)
def test_under_jit_and_vmap(solver):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    A = np.stack([matrix("definite", 6, 10.0, seed) for seed in range(3)])
    b = np.stack([np.arange(1.0, 7.0), np.zeros(6), 1e-30 * np.ones(6)])

    def solve(A, b, x0):
        return solver()(operator(jax.numpy, A), b, x0=x0)

    x0 = np.zeros((3, 6))
    found = jax.jit(jax.vmap(solve))(A, b, x0)
    eager = solver()(operator(np, A), b, x0=x0)
    assert found.status.tolist() == [Status.CONVERGED] * 3
    assert np.all(abs(found.iterations - eager.iterations) <= 1)  # sums are rounded in another order
    np.testing.assert_allclose(found.value, eager.value, rtol=1e-10)


@pytest.mark.parametrize("solver", [CG, Auto, Direct, *NEW, lambda: Neumann(2), OneStep])
def test_right_hand_sides_that_are_none(solver):
    with pytest.raises(dil.ShapeError, match=r"b of shape \(\); expected \(\*batch, n\)"):
        solver()(Operator(lambda p: 2 * p, lambda p: 2 * p), np.asarray(3.0))
    for b in (np.arange(3), np.ones(3, dtype=complex)):
        with pytest.raises(dil.DTypeError, match="real floating"):
            solver()(Operator(lambda p: 2 * p, lambda p: 2 * p), b)


def test_numbers_of_numpy_are_options_and_booleans_are_none():
    assert CG(max_iter=np.int64(4), rtol=np.float32(1e-3), damping=np.float64(0.5)).max_iter == 4
    for options in ({"max_iter": True}, {"damping": True}, {"rtol": True}):
        with pytest.raises(dil.OptionError):
            CG(**options)


@pytest.mark.parametrize("solver", [lambda: Neumann(2), lambda: WarmStart(CG())])
def test_what_takes_no_start_cannot_be_warmed(solver):
    with pytest.raises(dil.OptionError, match="takes no start x0="):
        WarmStart(solver())


@pytest.mark.parametrize("seed", range(10))
def test_a_problem_of_a_batch_is_solved_as_it_is_alone(plain, seed):
    """The first system has no solution, so its cycle of GMRES ends early, while the second goes on."""
    draw, n = np.random.default_rng(seed), 12
    Q = np.linalg.qr(draw.standard_normal((n, n)))[0][:, : draw.integers(1, 5)]
    A = np.stack([Q @ Q.T, draw.standard_normal((n, n)) + 4 * np.eye(n)])
    b = draw.standard_normal((2, n))
    together, apart = run(plain, GMRES(), A, b), run(plain, GMRES(), A[0], b[0])
    size = np.linalg.norm(apart[0])
    assert np.linalg.norm(together[0][0] - apart[0]) <= 1e-10 * size
    assert name_of(together[1][0]) == name_of(apart[1])
    # A[0] projects onto Q, so what is left at best is the part of b outside of it
    best = np.linalg.norm(b[0] - Q @ (Q.T @ b[0]))
    assert np.linalg.norm(b[0] - A[0] @ together[0][0]) <= (1 + 1e-10) * best


@pytest.mark.parametrize("solver", [CG, MINRES, BiCGSTAB, GMRES, IDR, NormalCG])
@pytest.mark.parametrize("carrier", ["matrix", "right-hand side"])
def test_a_gradient_of_torch_through_the_steps_is_not_lost(solver, carrier):
    """Numbers that carry a gradient are not read. The eigenvalues are close, so no step is the last of its space."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    scales, b = torch.linspace(1.0, 1.3, 8, dtype=torch.float64), torch.arange(1.0, 9.0, dtype=torch.float64)
    theta = torch.ones(8, dtype=torch.float64, requires_grad=True)
    matrix, right = (scales * theta, b) if carrier == "matrix" else (scales, b * theta)
    A = dil.linear.Operator(lambda p: matrix * p, symmetric=True)
    (gradient,) = torch.autograd.grad(solver(rtol=1e-7)(A, right).value.sum(), theta)
    expected = -b / scales if carrier == "matrix" else b / scales
    assert torch.max(torch.abs(gradient - expected)) <= 1e-4 * torch.max(torch.abs(expected))
