"""Preconditioners, the flexible method under them, warm starts and cheap approximations."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st

import dil
from dil import Status
from dil._base.operator import shifted
from dil._base.quasi_newton import Pairs, inverse_product, no_pairs, remember
from dil.linear import CG, GMRES, Jacobi, LBFGSPairs, Neumann, Nystrom, OneStep, Operator, WarmStart
from dil.linear.preconditioners import Preconditioner, Prepared
from dil_backends.numpy import dense
from engines import engines

TRUE = np.asarray(True)
TRIANGULAR = dense.triangular_solve


@pytest.fixture(params=[e for e in engines() if ":" not in e.name and e.name != "jax"], ids=lambda e: e.name)
def eager(request):
    """Every backend that does not compile, so that tables of cases may be long."""
    if request.param.reason is not None:
        pytest.skip(request.param.reason)
    return request.param


def not_on_jax_but(engine, name, chosen):
    if engine.backend == "jax" and name != chosen:
        pytest.skip(f"JAX compiles each case; {chosen!r} runs there")


def spd(n, condition, seed):
    """Return a random symmetric matrix with eigenvalues from 1/condition to 1."""
    draw = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(draw.standard_normal((n, n)))
    return (Q * np.geomspace(1 / condition, 1, n)) @ Q.T


def scaled_spd(n, decades, seed):
    """Return a well-conditioned matrix between diagonal scales over some decades."""
    scales = np.logspace(0, decades / 2, n)
    return scales[:, None] * (np.eye(n) + 0.5 * spd(n, 10.0, seed)) * scales


def handle_of(engine, dtype="float64"):
    return dil.backend(engine.backend, device=engine.device, dtype=dtype)


def product(handle, A):
    A = handle.asarray(A)
    return lambda p: handle.xp.matmul(A, p[..., None])[..., 0]


def run(engine, A, b, solver, dtype="float64", pairs=None, **kwargs):
    """Solve with matrices (*batch, n, n) on an engine; return the solution, all NumPy arrays."""
    handle = handle_of(engine, dtype)
    if pairs is not None:
        pairs = Pairs(*(handle.asarray(x) for x in pairs))
    kwargs = {name: handle.asarray(x) for name, x in kwargs.items()}
    found = solver(Operator(product(handle, A), symmetric=True, pairs=pairs), handle.asarray(b), **kwargs)
    arrays = [np.asarray(handle.to_numpy(x)) for x in found[:4]]
    products = np.asarray(handle.to_numpy(found.extra["products"])) if found.extra else None
    return dil.Solution(*arrays, {"products": products})


def names(found):
    return [Status(int(s)).name for s in found.status.reshape(-1)]


def lbfgs_pairs(product, c, memory, rtol=1e-5, max_iter=100):
    """Minimise u^T A u / 2 - c^T u by L-BFGS with an exact line search; return its last pairs."""
    g = -c
    pairs = no_pairs(c, memory)
    for _ in range(max_iter):
        p = -inverse_product(pairs, TRIANGULAR)(g)
        Ap = product(p)
        s = -(g @ p) / (p @ Ap) * p
        y = -(g @ p) / (p @ Ap) * Ap
        g = g + y
        pairs = remember(pairs, s, y, TRUE)
        if np.linalg.norm(g) <= rtol * np.linalg.norm(c):
            break
    return pairs


def some_pairs(A, memory=3):
    c = np.random.default_rng(9).standard_normal(A.shape[-1])
    return lbfgs_pairs(lambda p: A @ p, c, memory, max_iter=min(memory, A.shape[-1]))


PRECONDITIONERS = {
    "none": None,
    "callable": lambda r: 0.5 * r,
    "jacobi": Jacobi(probes=3),
    "nystrom": Nystrom(2),
    "adaptive": Nystrom(1, adaptive=True, max_rank=8, depth=2),
    "pairs": LBFGSPairs(),
}


def flexible(name, **options):
    """Return CG by the flexible method: also without a preconditioner."""
    M = PRECONDITIONERS[name]
    return CG(preconditioner=(lambda r: r) if M is None else M, **options)


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_right_or_says_so(plain, name):
    not_on_jax_but(plain, name, "jacobi")

    @settings(max_examples=max(3, plain.examples // 2))
    @given(
        n=st.sampled_from([1, 2, 7, 30]),
        condition=st.sampled_from([1.0, 1e4, 1e8]),
        power=st.sampled_from([-30, 0, 30]),
        seed=st.integers(0, 10**6),
        dtype=st.sampled_from(["float32", "float64"]),
    )
    def check(n, condition, power, seed, dtype):
        A = spd(n, condition, seed).astype(dtype)
        b = (np.random.default_rng(seed).standard_normal(n) * 10.0**power).astype(dtype)
        pairs = Pairs(*(x.astype(dtype) for x in some_pairs(A.astype(float)))) if name == "pairs" else None
        found = run(plain, A, b, flexible(name), dtype=dtype, pairs=pairs)
        eps = np.finfo(dtype).eps
        residual = np.linalg.norm(b.astype(float) - A.astype(float) @ found.value.astype(float))
        if found.status == Status.CONVERGED:
            rounding = 4 * eps * n * np.linalg.norm(found.value.astype(float))
            assert residual <= eps**0.75 * np.linalg.norm(b.astype(float)) + rounding
        else:
            assert condition * eps > 1e-9, f"a well-conditioned system ended {names(found)}"
        assert found.extra["products"] >= found.iterations + 1

    check()


@pytest.mark.parametrize("name", [n for n in PRECONDITIONERS if n != "pairs"])
def test_one_bad_problem_leaves_the_others(plain, name):
    not_on_jax_but(plain, name, "adaptive")
    good = spd(5, 1e3, 0)
    bad = good.copy()
    bad[0, 0] = np.nan
    singular = np.diag([1.0, 1.0, 0.0, 1.0, 1.0])
    A = np.stack([good, -good, np.eye(5), bad, singular, good])
    b = np.stack([np.ones(5), np.ones(5), np.zeros(5), np.ones(5), np.ones(5), 1e-200 * np.ones(5)])
    found = run(plain, A, b, flexible(name))
    assert names(found)[0::5] == ["CONVERGED", "CONVERGED"]
    assert names(found)[1:4] == ["INDEFINITE", "CONVERGED", "NON_FINITE"]
    assert names(found)[4] in ("SINGULAR", "STAGNATED")
    alone = np.linalg.solve(good, np.ones(5))
    np.testing.assert_allclose(found.value[0], alone, rtol=1e-8)
    np.testing.assert_allclose(found.value[5], 1e-200 * alone, rtol=1e-8)
    assert found.iterations[2] == 0
    assert np.all(found.value[2] == 0)


def test_bad_right_hand_sides_leave_the_others(eager):
    A = np.broadcast_to(spd(4, 10.0, 1), (4, 4, 4)).copy()
    b = np.stack([np.ones(4), np.full(4, np.nan), np.full(4, np.inf), 1e300 * np.ones(4)])
    found = run(eager, A, b, CG(preconditioner=Jacobi()))
    assert names(found) == ["CONVERGED", "NON_FINITE", "NON_FINITE", "CONVERGED"]
    np.testing.assert_allclose(found.value[3] / 1e300, found.value[0], rtol=1e-9)


def test_batches_of_pairs(plain):
    A = np.stack([scaled_spd(6, 4, 0), spd(6, 10.0, 1), np.eye(6)])
    memory = 3
    several = [some_pairs(a, memory) for a in A[:2]] + [no_pairs(np.ones(6), memory)]
    pairs = Pairs(*(np.stack(parts, axis=1) for parts in zip(*several, strict=True)))
    b = np.ones((3, 6))
    found = run(plain, A, b, CG(preconditioner=LBFGSPairs()), pairs=pairs)
    assert names(found) == ["CONVERGED"] * 3
    np.testing.assert_allclose(found.value, np.linalg.solve(A, b[..., None])[..., 0], rtol=1e-9)


def test_statuses(eager):
    A = spd(8, 10.0, 3)
    cases = {
        "PRECONDITIONER": CG(preconditioner=lambda r: -r),
        "NON_FINITE": CG(preconditioner=lambda r: r * float("nan")),
        "MAX_ITER": CG(preconditioner=Jacobi(), max_iter=1),
    }
    for name, solver in cases.items():
        found = run(eager, A, np.ones(8), solver)
        assert names(found) == [name]
        assert np.all(np.isfinite(found.value))
    # also one that turns indefinite under way, or only in some problems of a batch
    signs = np.asarray([[1.0], [-1.0]])
    handle = handle_of(eager)
    solver = CG(preconditioner=lambda r: r * handle.asarray(signs))
    found = run(eager, np.stack([A, A]), np.ones((2, 8)), solver)
    assert names(found) == ["CONVERGED", "PRECONDITIONER"]
    found = run(eager, np.diag([1.0, 2.0, 3.0]), np.ones(3), CG(preconditioner=Jacobi(np.asarray([1.0, 1.0, -0.5]))))
    assert names(found)[0] in ("PRECONDITIONER", "CONVERGED")
    assert "not positive definite" in Status.PRECONDITIONER.sentence


@pytest.mark.parametrize("make", [CG, GMRES])
def test_a_preconditioner_that_returns_zero_is_named(eager, make):
    """The matrix is regular: SINGULAR would send the reader to it."""
    A = np.stack([spd(8, 10.0, 3)] * 2)
    handle = handle_of(eager)
    parts = handle.asarray(np.asarray([[1.0], [0.0]]))
    found = run(eager, A, np.ones((2, 8)), make(preconditioner=lambda r: r * parts))
    assert names(found) == ["CONVERGED", "PRECONDITIONER"]
    assert np.all(np.isfinite(found.value))
    assert "maps a residual r to zero" in Status.PRECONDITIONER.sentence
    found = run(eager, A[0], np.ones(8), make(preconditioner=lambda r: r * float("nan")))
    assert names(found) == ["NON_FINITE"]
    assert np.all(np.isfinite(found.value))
    singular = np.diag(np.arange(8.0))
    assert names(run(eager, singular, np.ones(8), make(preconditioner=lambda r: 2.0 * r)))[0] != "PRECONDITIONER"


def test_a_preconditioner_that_changes_from_step_to_step():
    draw = np.random.default_rng(0)
    A, b = scaled_spd(200, 6, 2), draw.standard_normal(200)
    found = [
        CG(preconditioner=lambda r, s=size: r / np.diag(A) * np.exp(s * draw.standard_normal(200)))(lambda p: A @ p, b)
        for size in (0.0, 0.5)
    ]
    assert [int(x.status) for x in found] == [Status.CONVERGED] * 2
    assert found[1].iterations <= 3 * found[0].iterations


def test_what_a_far_start_has_lost_is_won_back(plain):
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    A = (Q * np.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 1e-9])) @ Q.T
    b = Q @ np.asarray([1.0, 2.0, 3.0, 1.0, 1.0, 0.0])
    x0 = Q @ np.asarray([1.0, 1.0, 1.0, 0.0, 0.0, 1e8])  # its rounding alone is above the tolerance
    found = run(plain, A, b, CG(), x0=x0)
    assert names(found) == ["CONVERGED"]
    assert found.extra["products"] >= found.iterations + 3


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_the_scale_of_anything_is_immaterial(eager, scale):
    A, b = scaled_spd(6, 2, 1), np.arange(1.0, 7.0)
    for M in (Jacobi(), Nystrom(3), lambda r: r * 1e-180, lambda r: r * 1e180):
        found = run(eager, A * scale, b, CG(preconditioner=M))
        assert names(found) == ["CONVERGED"]
        np.testing.assert_allclose(found.value * scale, np.linalg.solve(A, b), rtol=1e-9)


@pytest.mark.parametrize("name", PRECONDITIONERS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), (2, 1, 3)])
def test_shapes_and_zero(eager, name, shape):
    A = np.broadcast_to(np.diag(np.arange(1.0, shape[-1] + 1)), (*shape, shape[-1])).copy()
    pairs = no_pairs(np.zeros(shape), 2) if name == "pairs" else None
    found = run(eager, A, np.zeros(shape), flexible(name), pairs=pairs)
    assert found.value.shape == shape
    assert found.status.shape == found.extra["products"].shape == shape[:-1]
    assert np.all(found.value == 0)
    assert np.all(found.status == 0)
    assert np.all(found.iterations == 0)


def test_wrong_results_of_a_preconditioner(eager):
    A, b = np.eye(3), np.ones(3)
    with pytest.raises(dil.ShapeError, match=r"returned shape \(2,\); expected \(3,\)"):
        run(eager, A, b, CG(preconditioner=lambda r: r[:2]))
    with pytest.raises(dil.ShapeError, match="returned shape"):
        run(eager, A, b, CG(preconditioner=lambda r: None))
    with pytest.raises(dil.DTypeError, match="float32"):
        run(eager, A, b, CG(preconditioner=lambda r: array_namespace(r).astype(r, array_namespace(r).float32)))
    with pytest.raises(dil.ShapeError, match=r"diagonal has shape \(2,\)"):
        run(eager, A, b, CG(preconditioner=Jacobi(np.ones(2))))

    def broken(r):
        message = "no such thing"
        raise KeyError(message)

    with pytest.raises(KeyError, match="no such thing"):
        run(eager, A, b, CG(preconditioner=broken))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: CG(preconditioner=3), "preconditioner=3; expected a callable"),
        (lambda: CG(preconditioner=Jacobi), r"did you mean Jacobi\(\)\?"),
        (lambda: Jacobi(probes=0), "probes=0; expected an integer >= 1"),
        (lambda: Jacobi(seed=-1), "seed=-1"),
        (lambda: Nystrom(0), "rank=0; expected an integer >= 1"),
        (lambda: Nystrom(2.0), "rank=2.0"),
        (lambda: Nystrom(True), "rank=True"),
        (lambda: Nystrom(4, shift=-1.0), "shift=-1.0; expected a number >= 0"),
        (lambda: Nystrom(4, shift=float("inf")), "shift=inf"),
        (lambda: Nystrom(4, max_rank=3), "max_rank=3; expected an integer >= 4"),
        (lambda: Nystrom(4, adaptive=1), "adaptive=1"),
        (lambda: Nystrom(4, depth=0), "depth=0"),
        (lambda: Neumann(0), "terms=0"),
        (lambda: Neumann(2, step=0.0), "step=0.0"),
        (lambda: OneStep(step=-1.0), "step=-1.0"),
        (lambda: OneStep(rtol=2.0), "rtol=2.0"),
        (lambda: WarmStart(CG), r"did you mean CG\(\)\?"),
        (lambda: WarmStart(1), "solver=1; expected a linear solver"),
    ],
)
def test_options_out_of_range(make, text):
    with pytest.raises(dil.OptionError, match=text):
        make()


def test_pairs_that_nobody_handed_over(plain):
    with pytest.raises(dil.OptionError, match=r"dil\.solvers\.LBFGS\(\)"):
        run(plain, np.eye(2), np.ones(2), CG(preconditioner=LBFGSPairs()))


def test_protocol():
    assert all(isinstance(M, Preconditioner) for M in (Jacobi(), Nystrom(2), LBFGSPairs()))
    assert Prepared(lambda r: 2 * r, 3)(4.0) == 8.0


# what they are worth: products with A, all of them counted


def chain(scales, coupling):
    """Diagonal scales and a spring between neighbours."""

    def product(p):
        force = coupling * np.diff(p)
        return scales * p + np.concatenate([[0.0], force]) - np.concatenate([force, [0.0]])

    return product


def stiff(n, seed):
    """50 eigenvalues from 1e2 to 1e6 over a floor of 1 to 2, in no basis that stands out."""
    draw = np.random.default_rng(seed)
    mirrors = [v / np.linalg.norm(v) for v in draw.standard_normal((4, n))]
    spectrum = np.concatenate([np.geomspace(1e2, 1e6, 50), 1 + draw.random(n - 50)])

    def product(p):
        for v in mirrors:
            p = p - 2 * v * (v @ p)
        p = spectrum * p
        for v in reversed(mirrors):
            p = p - 2 * v * (v @ p)
        return p

    return product


def count(product, b, preconditioner=None, pairs=None):
    """Return the products that a converged solve took, counted here and by the solver."""
    spent = 0

    def counted(p):
        nonlocal spent
        spent += 1
        return product(p)

    found = CG(preconditioner=preconditioner)(Operator(counted, symmetric=True, pairs=pairs), b)
    assert found.status == Status.CONVERGED
    assert np.linalg.norm(b - product(found.value)) <= 1.9e-12 * np.linalg.norm(b)
    assert preconditioner is None or found.extra["products"] == spent
    return spent


N = 10_000


@pytest.fixture(scope="module")
def systems():
    """Both systems, a right-hand side, and what plain CG takes."""
    draw = np.random.default_rng(0)
    both = {"scales": chain(draw.permutation(np.logspace(0, 6, N)), 0.5), "stiff": stiff(N, 1)}
    b = draw.standard_normal(N)
    return {name: (A, b, count(A, b)) for name, A in both.items()}


@pytest.mark.parametrize("probes", [1, 8])
def test_jacobi_takes_a_tenth(systems, probes):
    A, b, usual = systems["scales"]
    assert 10 * count(A, b, Jacobi(probes=probes)) <= usual


def test_rounds_of_probes_find_a_diagonal_under_noise():
    """D (I + E) D: one mean over 8 probes led to 74 products, three rounds lead to 22."""
    n, draw = 300, np.random.default_rng(3)
    E = draw.standard_normal((n, n)) * (0.05 / n**0.5)
    scales = draw.permutation(np.geomspace(1.0, 1e6, n)) ** 0.5
    A, b = scales[:, None] * (np.eye(n) + E + E.T) * scales, draw.standard_normal(n)
    exact = count(lambda p: A @ p, b, Jacobi(np.diag(A).copy()))
    assert count(lambda p: A @ p, b, Jacobi()) <= exact + 8 + 3


@pytest.mark.parametrize("probes", [1, 2, 3, 5, 8])
def test_each_probe_is_one_product(eager, probes):
    handle, spent = handle_of(eager), []
    A = handle.asarray(scaled_spd(20, 6, 1))

    def counted(p):
        spent.append(1)
        return handle.xp.matmul(A, p[..., None])[..., 0]

    solver = CG(preconditioner=Jacobi(probes=probes))
    found = solver(Operator(counted, symmetric=True), handle.asarray(np.ones((2, 20))))
    products = handle.to_numpy(found.extra["products"])
    assert names(dil.Solution(None, handle.to_numpy(found.status))) == ["CONVERGED"] * 2
    assert int(products.max()) == len(spent)
    assert handle.to_numpy(found.iterations).max() + probes < len(spent)


@pytest.mark.parametrize("sketch", [Nystrom(60), Nystrom(16, adaptive=True), Nystrom(16, adaptive=True, shift=1.0)])
def test_nystrom_takes_a_fifth(systems, sketch):
    A, b, usual = systems["stiff"]
    assert 5 * count(A, b, sketch) <= usual


def test_blocks_of_a_krylov_space_find_more(systems):
    A, b, _ = systems["stiff"]
    assert count(A, b, Nystrom(60, depth=4)) < 0.9 * count(A, b, Nystrom(60, depth=1))


@pytest.mark.parametrize(("name", "memory"), [("scales", 1), ("scales", 10), ("stiff", 30), ("stiff", 60)])
def test_pairs_take_half(systems, name, memory):
    A, b, usual = systems[name]
    pairs = lbfgs_pairs(A, np.random.default_rng(5).standard_normal(N), memory)
    assert 2 * count(A, b, LBFGSPairs(), pairs) <= usual


def test_damping_reaches_the_pairs():
    A = scaled_spd(30, 6, 1)
    pairs = some_pairs(A, 10)
    solver = CG(damping=3.0, preconditioner=LBFGSPairs())
    found = solver(Operator(lambda p: A @ p, symmetric=True, pairs=pairs), np.ones(30))
    np.testing.assert_allclose((A + 3.0 * np.eye(30)) @ found.value, np.ones(30), atol=1e-10)
    B = shifted(Operator(lambda p: A @ p, pairs=pairs), 3.0)
    newest = pairs.s[-1]
    np.testing.assert_allclose(
        inverse_product(B.pairs, TRIANGULAR)(B(newest)), newest, rtol=1e-9
    )  # the secant equation


# starts


def test_a_start(eager):
    A, b = np.stack([spd(6, 1e3, i) for i in range(5)]), np.ones((5, 6))
    b[3] = 0
    x = np.linalg.solve(A, b[..., None])[..., 0]
    start = np.stack([x[0], 1e8 * np.ones(6), np.full(6, np.nan), np.ones(6), x[4] * (1 + 1e-6)])
    found = run(eager, A, b, CG(), x0=start)
    cold = run(eager, A, b, CG(preconditioner=lambda r: r))
    assert names(found) == ["CONVERGED"] * 5
    np.testing.assert_allclose(found.value, x, rtol=1e-7)
    assert found.iterations[0] == 0
    assert found.extra["products"][0] == 1
    np.testing.assert_array_equal(found.iterations[1:3], cold.iterations[1:3])
    assert np.all(found.value[3] == 0)
    with pytest.raises(dil.ShapeError, match="x0 has shape"):
        run(eager, A, b, CG(), x0=np.ones(6))


def test_a_warm_start_changes_the_count_alone(eager):
    handle = handle_of(eager)
    A, b = (
        handle.asarray(np.stack([spd(20, 1e4, 0), spd(20, 10.0, 1)])),
        np.random.default_rng(2).standard_normal((2, 20)),
    )
    solver = WarmStart(CG())
    asked = lambda b: solver(Operator(product(handle, A), symmetric=True), handle.asarray(b))  # noqa: E731
    cold, again, scaled = asked(b), asked(b), asked(-1e-9 * b)
    near, other = asked(b + 1e-6), asked(np.flip(b, axis=-1).copy())
    steps = [handle.to_numpy(x.iterations) for x in (cold, again, scaled, near, other)]
    assert np.all(steps[1] == 0)
    assert np.all(steps[2] == 0)
    assert np.all(steps[3] < steps[0])
    assert np.all(handle.to_numpy(other.status) == 0)
    exact = np.linalg.solve(np.asarray(handle.to_numpy(A)), np.flip(b, axis=-1)[..., None])[..., 0]
    np.testing.assert_allclose(handle.to_numpy(other.value), exact, rtol=1e-6)
    solver.forget()
    np.testing.assert_array_equal(handle.to_numpy(asked(b).iterations), steps[0])
    asked(np.full((2, 20), np.nan))  # poison
    after = asked(b)
    assert np.all(handle.to_numpy(after.status) == 0)


def test_a_warm_start_under_jit():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    A, b = jax.numpy.asarray(spd(12, 100.0, 0)), jax.numpy.ones(12)
    solver = WarmStart(CG())

    @jax.jit
    def solve(b):
        found = solver(Operator(lambda p: A @ p, symmetric=True), b)
        return found.value, found.iterations

    first = solve(b)
    jax.block_until_ready(first)
    second = solve(2.0 * b)
    assert int(first[1]) > 0
    assert int(second[1]) == 0
    np.testing.assert_allclose(second[0], 2.0 * first[0], rtol=1e-9)
    stacked = jax.vmap(lambda b: solve(b)[0])(jax.numpy.eye(12)[:3])
    np.testing.assert_allclose(stacked, np.linalg.inv(A)[:3], rtol=1e-8)


# approximations


def test_the_series(eager):
    A, b = spd(5, 3.0, 4), np.arange(1.0, 6.0)
    term, total = 0.9 * b, 0.0 * b
    for terms in (1, 2, 3, 4):
        total = total + term
        term = term - 0.9 * A @ term
        found = run(eager, A, b, Neumann(terms, step=0.9))
        np.testing.assert_allclose(found.value, total, rtol=1e-12)
        assert names(found) == ["APPROXIMATE"]
        assert found.iterations == found.extra["products"] == terms
        np.testing.assert_allclose(found.residual, np.linalg.norm(b - A @ total) / np.linalg.norm(b), rtol=1e-9)
    assert names(run(eager, A, b, Neumann(200, step=0.9))) == ["CONVERGED"]
    assert names(run(eager, np.eye(5), b, OneStep())) == ["CONVERGED"]
    np.testing.assert_allclose(run(eager, A, b, OneStep(step=2.0)).value, 2.0 * b)
    batch = run(eager, np.stack([np.eye(5), A, A]), np.stack([b, np.nan * b, 0 * b]), Neumann(2))
    assert names(batch) == ["CONVERGED", "NON_FINITE", "CONVERGED"]
    assert names(run(eager, -1e300 * np.eye(5), b, Neumann(5))) == ["NON_FINITE"]


def bowl(u, x):
    xp = array_namespace(u)
    return xp.sum(u**2) - xp.sum(u * x)


@pytest.mark.parametrize("policy", ["raise", "warn", "nan"])
def test_an_approximation_asked_for_is_no_failure(engine, policy):
    solved = lambda fun, init, x: 0.5 * x  # noqa: E731
    layer = dil.argmin(bowl, solved, linear_solver=OneStep(step=0.25), on_failure=policy)
    _, (found,) = engine.gradients(layer, [np.asarray([1.0, 2.0])], np.asarray([1.0, -1.0]))
    np.testing.assert_allclose(found, [0.25, -0.25])  # half of the exact one
    assert not Status.APPROXIMATE.ok


def test_an_approximation_does_not_hide_a_point_that_is_no_solution():
    layer = dil.argmin(bowl, lambda fun, init, x: x + 1.0, linear_solver=OneStep(step=0.25), on_failure="raise")
    with pytest.raises(dil.ConvergenceError, match="NOT_STATIONARY"):
        dil.vjp(layer, np.ones(2))[1](np.ones(2))


# layers


def score(u, A, x):
    xp = array_namespace(u)
    w = xp.matmul(A, u)
    scales = xp.exp(2.0 * x)
    return 0.5 * xp.sum(w * w) + xp.sum(scales * (u**2 + 0.1 * u**4)) - xp.sum(x * u)


LAYER_SOLVERS = {
    "jacobi": CG(preconditioner=Jacobi()),
    "nystrom": CG(preconditioner=Nystrom(2, adaptive=True, max_rank=3)),
    "warm": WarmStart(CG()),
}


@pytest.mark.parametrize("name", LAYER_SOLVERS)
def test_gradients_of_a_layer(engine, name):
    if engine.name == "jax":
        pytest.skip("jax:jit runs this one")
    draw = np.random.default_rng(3)
    args = (draw.standard_normal((4, 4)), draw.standard_normal(4))
    layer = dil.argmin(score, dil.solvers.Newton(rtol=1e-11), linear_solver=LAYER_SOLVERS[name], init=_zeros)
    usual = dil.argmin(score, dil.solvers.Newton(rtol=1e-11), init=_zeros)
    expected = dil.vjp(usual, *args)[1](np.ones(4))
    _, found = engine.gradients(layer, args, np.ones(4))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-10)


def _zeros(A, x):
    return array_namespace(x).zeros_like(x)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_second_derivatives_through_a_preconditioned_layer(backend):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    draw = np.random.default_rng(3)
    args = (draw.standard_normal((3, 3)), draw.standard_normal(3))
    layer = dil.argmin(score, dil.solvers.Newton(rtol=1e-11), linear_solver=CG(preconditioner=Jacobi()), init=_zeros)
    report = dil.check_gradients(layer, *args, backends=[backend], order=2, directions=1)
    assert report.ok, str(report)


def test_second_derivatives_under_jit():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    draw = np.random.default_rng(3)
    A, x, t = draw.standard_normal((3, 3)), draw.standard_normal(3), draw.standard_normal(3)
    layer = dil.argmin(score, dil.solvers.Newton(rtol=1e-11), linear_solver=CG(preconditioner=Jacobi()), init=_zeros)

    def pulled(A, x):
        return dil.vjp(lambda x: layer(A, x), x)[1](0.0 * x + 1.0)[0]

    J = jax.numpy.asarray(A)
    found = jax.jit(lambda x, t: jax.jvp(lambda x: pulled(J, x), (x,), (t,))[1])(x, t)
    difference = (pulled(A, x + 1e-5 * t) - pulled(A, x - 1e-5 * t)) / 2e-5
    np.testing.assert_allclose(found, difference, rtol=1e-6, atol=1e-8 * np.abs(difference).max())


@pytest.mark.parametrize("M", [Jacobi(), Nystrom(3)], ids=["jacobi", "nystrom"])
def test_a_preconditioner_under_vmap(M):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    A = jax.numpy.stack([jax.numpy.asarray(spd(6, 100.0, i)) for i in range(3)])
    solve = jax.jit(jax.vmap(lambda A: CG(preconditioner=M)(lambda p: A @ p, jax.numpy.ones(6)).value))
    np.testing.assert_allclose(solve(A), np.linalg.solve(A, np.ones((3, 6, 1)))[..., 0], rtol=1e-9)


def test_no_warning_of_the_arrays_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for M in (Jacobi(), Nystrom(2), lambda r: r):
            CG(preconditioner=M)(lambda p: p * np.asarray([1.0, np.nan]), np.ones(2))
