"""Products with sparse matrices, in a function and in a layer: of SciPy on the tape, of torch, and JAX's BCOO."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import dil
from tape_helpers import assert_transposed, gradient

sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")

RNG = np.random.default_rng(0)
D = RNG.normal(size=(4, 4)) * (RNG.random((4, 4)) > 0.4) + np.diag([1.0, 0.0, 2.0, 0.0])
WIDE = RNG.normal(size=(5, 3)) * (RNG.random((5, 3)) > 0.4)
FORMATS = [
    f"{form}_{kind}" for form in ("csr", "csc", "coo", "dia", "bsr", "lil", "dok") for kind in ("array", "matrix")
]
TIMES = {
    "S @ u": lambda S, u: S @ u,
    "S.dot(u)": lambda S, u: S.dot(u),
    "S.T @ u": lambda S, u: S.T @ u,
    "u @ S": lambda S, u: u @ S,
}


@pytest.mark.parametrize("spelling", TIMES)
@pytest.mark.parametrize("form", FORMATS)
def test_products(form, spelling):
    """The product, its derivative and its second derivative are those of the dense matrix."""
    times, plainly = TIMES[spelling], TIMES[spelling.replace("S.dot(u)", "S @ u")]
    rng = np.random.default_rng(1)
    for dense, shape in ((D, (4,)), (D, (4, 4)), (WIDE, ()), (WIDE, (2,))):
        S = getattr(sparse, form)(dense)
        inner = dense.shape[0] if spelling in ("S.T @ u", "u @ S") else dense.shape[1]
        u = rng.normal(size=shape if dense is D else (*shape, inner) if spelling == "u @ S" else (inner, *shape))
        f = lambda u, S=S: ((times(S, u) if S is not dense else plainly(dense, u)) ** 3,)  # noqa: E731, B023
        y = f(u, dense)[0]
        assert_transposed(f, (u,), rng)
        assert_transposed(gradient(f, 1), (u, rng.normal(size=y.shape)), rng, rtol=2e-7)
        weights = rng.normal(size=y.shape)
        scalar = lambda u, S=S: np.sum(weights * f(u, S)[0])  # noqa: E731, B023
        np.testing.assert_allclose(dil.grad(scalar)(u), dil.grad(lambda u: scalar(u, dense))(u), rtol=1e-12, atol=0)  # noqa: B023
        _, moved = dil.jvp(scalar, (u,), (np.ones_like(u),))
        np.testing.assert_allclose(moved, np.sum(dil.grad(scalar)(u)), rtol=1e-12)


@pytest.mark.parametrize("spelling", TIMES)
@pytest.mark.parametrize("numbers", ["real", "complex"])
def test_products_with_a_complex_matrix(numbers, spelling):
    rng = np.random.default_rng(2)
    S = sparse.csr_array(D + 1j * np.roll(D, 1))
    u = rng.normal(size=4) + (1j * rng.normal(size=4) if numbers == "complex" else 0.0)
    f = lambda u: (TIMES[spelling](S, u) ** 3,)  # noqa: E731
    assert_transposed(f, (u,), rng)
    v = rng.normal(size=4) + 1j * rng.normal(size=4)
    assert_transposed(gradient(f, 1), (u, v), rng, rtol=2e-7)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_dtypes(dtype):
    S = sparse.csr_array(D.astype(dtype))
    u = np.ones(4, dtype="float32")
    g = dil.grad(lambda u: np.sum((S @ u) ** 2))(u)
    assert g.dtype == np.float32
    np.testing.assert_allclose(g, 2.0 * S.toarray().T.astype(float) @ (S @ u), rtol=1e-6)


REFUSED = {
    "S * u[0]": (lambda S, u: S * u[0], "no other function of scipy.sparse"),
    "u[0] * S": (lambda S, u: u[0] * S, "no other function of scipy.sparse"),
    "S + u": (lambda S, u: S + u, r"S\.toarray\(\) \+ u"),
    "u - S": (lambda S, u: u - S, r"S\.toarray\(\) \+ u"),
    "u[0] + S": (lambda S, u: u[0] + S, r"S\.toarray\(\) \+ u"),
    "u / S": (lambda S, u: u / S, "no other function of scipy.sparse"),
    "np.dot": (lambda S, u: np.dot(S, u), r"`S @ u` for `np\.dot\(S, u\)`"),
    "np.matmul": (lambda S, u: np.matmul(S, u), "the products `S @ u`"),
    "np.add": (lambda S, u: np.add(S, u), r"S\.toarray\(\) \+ u"),
    "multiply": (lambda S, u: S.multiply(u), "no other function of scipy.sparse"),
    "solve": (
        lambda S, u: pytest.importorskip("scipy.sparse.linalg").spsolve(S, u),
        "no other function of scipy.sparse",
    ),
    "objects": (lambda S, u: S @ np.asarray(u), "u in that of np.asarray"),
}


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csr_matrix])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_names_the_product(case, kind):
    """No other function of SciPy, and no conversion, cuts the derivative without a word."""
    f, words = REFUSED[case]
    with pytest.raises(dil.UnsupportedFunctionError, match=words):
        dil.grad(lambda u: np.sum(f(kind(D), u)))(np.ones(4))


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil"])
@pytest.mark.parametrize("shape", [(4,), (4, 4)])
def test_the_star_of_a_sparse_matrix(kind, shape):
    """It is the matrix product, as in SciPy. That of a sparse array is refused, because it works entry by entry."""
    S, A = getattr(sparse, f"{kind}_matrix")(D), getattr(sparse, f"{kind}_array")(D)
    u = RNG.normal(size=shape)
    for star, product in ((lambda S, u: S * u, lambda u: D @ u), (lambda S, u: u * S, lambda u: u @ D)):
        np.testing.assert_allclose(star(S, u), product(u), rtol=1e-12)
        found = dil.grad(lambda u, star=star: np.sum(star(S, u) ** 3))(u)
        np.testing.assert_allclose(found, dil.grad(lambda u, f=product: np.sum(f(u) ** 3))(u), rtol=1e-12)
        with pytest.raises(dil.UnsupportedFunctionError, match="if S is a sparse array"):
            dil.grad(lambda u, star=star: star(A, u).sum())(u)


@pytest.mark.parametrize("spelling", TIMES)
@pytest.mark.parametrize("shape", [(4,), (4, 4)])
def test_a_sparse_array_of_one_axis(spelling, shape):
    """The product with a vector is that with the dense one, to second order."""
    S, u, times = sparse.coo_array(D[0]), RNG.normal(size=shape), TIMES[spelling]
    f = lambda u, S=S: (times(S, u) ** 3,)  # noqa: E731
    np.testing.assert_allclose(f(u)[0], f(u, D[0])[0], rtol=1e-12)
    np.testing.assert_allclose(dil.grad(lambda u: np.sum(f(u)[0]))(u), dil.grad(lambda u: np.sum(f(u, D[0])[0]))(u))
    assert_transposed(f, (u,), RNG)
    assert_transposed(gradient(f, 1), (u, RNG.normal(size=f(u)[0].shape)), RNG, rtol=2e-7)


def test_a_sparse_array_of_three_axes_is_refused():
    S = sparse.coo_array(np.ones((2, 3, 4)))
    with pytest.raises(dil.UnsupportedFunctionError, match=r"one or two axes.*toarray"):
        dil.grad(lambda u: np.sum(u @ S))(np.ones(3))


def test_a_user_function_of_the_same_name_cuts_nothing():
    """The product is known by its module, not by its name alone."""

    def _matmul_dispatch(u):
        return np.asarray(u)

    np.testing.assert_array_equal(dil.grad(lambda u: _matmul_dispatch(u).sum())(np.ones(2)), np.ones(2))


def test_no_gradient_in_a_sparse_matrix():
    S = sparse.csr_array(D)
    with pytest.raises(dil.DTypeError, match="argument 1 holds no floating array"):
        dil.grad(lambda u, S: np.sum(S @ u), argnums=1)(np.ones(4), S)
    np.testing.assert_allclose(dil.grad(lambda u, S: np.sum(S @ u))(np.ones(4), S), D.sum(axis=0), rtol=1e-12)


# ridge regression: min |S u - b|^2 / 2 + t |u|^2 / 2
TALL = RNG.normal(size=(8, 4)) * (RNG.random((8, 4)) > 0.4)
B = RNG.normal(size=8)
T = 0.3


def exact(order):
    """The sum of the solution, differentiated in t: u' = -H^-1 u, u'' = 2 H^-2 u."""
    H = TALL.T @ TALL + T * np.eye(4)
    u = np.linalg.solve(H, TALL.T @ B)
    for k in range(order):
        u = -(k + 1) * np.linalg.solve(H, u)
    return np.sum(u)


def layers(b, zeros):
    score = lambda u, t, S: 0.5 * ((S @ u - b) ** 2).sum() + 0.5 * t * (u * u).sum()  # noqa: E731
    yield lambda S: lambda t: dil.argmin(score, dil.solvers.Newton(), init=lambda t, S: zeros)(t, S).sum()
    yield lambda S: lambda t: dil.argmin(
        lambda u, t: score(u, t, S), dil.solvers.Newton(), init=lambda t: zeros
    )(t).sum()  # fmt: skip


@pytest.mark.parametrize("form", ["csr_array", "csr_matrix", "coo_array", "lil_array"])
def test_layer_of_scipy(form):
    S = getattr(sparse, form)(TALL)
    for layer in layers(B, np.zeros(4)):
        first = dil.grad(layer(S))
        assert first(np.float64(T)) == pytest.approx(exact(1), rel=1e-9)
        assert dil.grad(first)(np.float64(T)) == pytest.approx(exact(2), rel=1e-7)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.parametrize("form", ["to_sparse", "to_sparse_csr"])
def test_layer_of_torch(form):
    torch = pytest.importorskip("torch")
    S = getattr(torch.tensor(TALL), form)()
    for layer in layers(torch.tensor(B), torch.zeros(4, dtype=torch.float64)):
        t = torch.tensor(T, dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(layer(S)(t), t, create_graph=True)
        assert first.item() == pytest.approx(exact(1), rel=1e-9)
        assert torch.autograd.grad(first, t)[0].item() == pytest.approx(exact(2), rel=1e-7)


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta state:UserWarning")
@pytest.mark.parametrize("form", ["to_sparse", "to_sparse_csr", "to_sparse_csc"])
def test_a_torch_matrix_that_requires_grad(form):
    """A solver looks at how F changes with its arguments, also for a layout that torch does not multiply by entries."""
    torch = pytest.importorskip("torch")
    M, b = torch.tensor(TALL.T @ TALL + np.eye(4)), torch.tensor(B[:4])
    score, residual = (lambda u, S, b: 0.5 * u @ (S @ u) - b @ u), (lambda u, S, b: S @ u - b)
    right = -torch.outer(torch.linalg.solve(M, torch.ones_like(b)), torch.linalg.solve(M, b))
    # the Hessian of the score is the symmetric part of S
    for layer, expected in (
        (
            dil.argmin(score, dil.solvers.LBFGS(rtol=1e-12)),
            0.5 * (right + right.T),
        ),
        (dil.root(residual, dil.solvers.Newton()), right),
    ):
        S = getattr(M, form)().requires_grad_()
        layer(S, b, init=torch.zeros_like(b)).sum().backward()
        torch.testing.assert_close(S.grad.to_dense(), expected, atol=1e-10, rtol=1e-8)


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta state:UserWarning")
@pytest.mark.parametrize("form", ["to_sparse_coo", "to_sparse_csr"])
def test_a_sparse_argument_is_never_made_dense(form):
    """Neither are its zeros drawn as random numbers, where a solver looks at how F changes with its arguments."""
    torch = pytest.importorskip("torch")
    n = 3000  # 72 MB as a dense array
    places = torch.arange(n).expand(2, n)
    values = torch.linspace(1.0, 2.0, n, dtype=torch.float64)
    S = torch.sparse_coo_tensor(places, values, (n, n), check_invariants=False).coalesce()
    S, b = getattr(S, form)() if form != "to_sparse_coo" else S, torch.ones(n, dtype=torch.float64)
    cg = dil.linear.CG()
    layer = dil.root(
        lambda u, S, b: S @ u - b, dil.solvers.Newton(linear_solver=cg), init=lambda S, b: 0 * b, linear_solver=cg
    )
    layer(S, b)  # what the first call imports and keeps
    tracemalloc.start()
    b.requires_grad_()
    (found,) = torch.autograd.grad(layer(S, b).sum(), b)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    torch.testing.assert_close(found, 1 / values)
    assert most < 8 * n * n / 8


BLOCKS = pytest.mark.parametrize("form", ["to_sparse_bsr", "to_sparse_bsc"])


def blocks(form, **options):
    torch = pytest.importorskip("torch")
    S = getattr(torch.eye(4, dtype=torch.float64) * 2, form)((2, 2)).clone()
    return S.requires_grad_() if options.get("grad") else S


@BLOCKS
@pytest.mark.parametrize("kind", [dil.root, dil.argmin])
@pytest.mark.filterwarnings("ignore:Sparse BS. tensor support is in beta state:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta state:UserWarning")
def test_a_torch_matrix_of_blocks_is_refused_by_name(form, kind):
    torch = pytest.importorskip("torch")
    F = {dil.root: lambda u, S, b: S @ u - b, dil.argmin: lambda u, S, b: 0.5 * u @ (S @ u) - b @ u}[kind]
    layer = kind(F, dil.solvers.Newton(), init=lambda S, b: torch.zeros_like(b))
    b = torch.ones(4, dtype=torch.float64, requires_grad=True)
    S = blocks(form)
    for run in (lambda: layer(S, b), lambda: torch.func.grad(lambda b: layer(S, b).sum())(b)):
        with pytest.raises(dil.UnsupportedFunctionError, match="COO or CSR instead"):
            run()
    torch.testing.assert_close(layer(S.to_sparse(), b), b / 2)


@BLOCKS
@pytest.mark.filterwarnings("ignore:Sparse BS. tensor support is in beta state:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta state:UserWarning")
def test_the_gradient_in_a_torch_matrix_of_blocks_is_refused_by_name(form):
    torch = pytest.importorskip("torch")
    b = torch.ones(4, dtype=torch.float64)
    layer = dil.root(lambda u, S, b: S.to_dense() @ u - b, dil.solvers.Newton(), init=lambda S, b: 0 * b)
    with pytest.raises(dil.UnsupportedFunctionError, match=r"requires a gradient .* COO or CSR instead"):
        layer(blocks(form, grad=True), b)
    for S in (blocks(form), blocks(form, grad=True).detach()):  # its numbers alone can be used
        torch.testing.assert_close(layer(S, b), b / 2)
    with torch.no_grad():
        torch.testing.assert_close(layer(blocks(form, grad=True), b), b / 2)


def test_layer_of_jax():
    jax = pytest.importorskip("jax")
    from jax.experimental.sparse import BCOO

    S = BCOO.fromdense(jax.numpy.asarray(TALL))
    for layer in layers(jax.numpy.asarray(B), jax.numpy.zeros(4)):
        assert float(jax.grad(layer(S))(T)) == pytest.approx(exact(1), rel=1e-9)
