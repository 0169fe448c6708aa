"""Incomplete factors as a preconditioner of CG and GMRES, and a hierarchy of another package."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import OptionError, Status
from dil.linear import CG, GMRES, Operator, SparseILU

sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")


def grid(m):
    """Return the five-point stencil on m x m points."""
    T = sparse.diags_array([-np.ones(m - 1), 2.0 * np.ones(m), -np.ones(m - 1)], offsets=[-1, 0, 1])
    return (sparse.kron(T, sparse.eye_array(m)) + sparse.kron(sparse.eye_array(m), T)).toarray()


def operator(engine, A, **options):
    M = engine.asarray(A)
    return Operator(lambda p: (M @ p[..., None])[..., 0], lambda p: (M.mT @ p[..., None])[..., 0], **options)


def solved(engine, solver, A, b, **options):
    found = solver(operator(engine, A, **options), engine.asarray(b))
    names = [Status(int(code)).name for code in np.ravel(engine.to_numpy(found.status))]
    return engine.to_numpy(found.value), names, int(np.max(engine.to_numpy(found.iterations)))


def test_conjugate_gradients(eager):
    """In units that differ by 1e6, too: the matrix is scaled before small entries are dropped."""
    A, b = grid(15), np.random.default_rng(0).standard_normal(225)
    scales = np.geomspace(1.0, 1e3, 225)
    for M in (A, scales[:, None] * A * scales):
        solver = CG(preconditioner=SparseILU(A != 0))
        x, names, steps = solved(eager, solver, M, b, symmetric=True)
        assert names == ["CONVERGED"]
        assert steps <= 12  # plain CG takes 54 steps, and 2,250 do not do in the other units
        np.testing.assert_allclose(M @ x, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("transposed", [False, True])
def test_general_matrices_in_a_batch(eager, transposed):
    """Each matrix has its factors, for the pattern of both, in both directions."""
    A, b = grid(12), np.random.default_rng(0).standard_normal((2, 144))
    M = np.stack([A + 0.5 * np.eye(144, k=1), A + 2.0 * np.eye(144, k=-30)])
    pattern = None if eager.name != "array_api_strict" else (M != 0).any(0) | (M != 0).any(0).T
    x, names, steps = solved(eager, GMRES(preconditioner=SparseILU(pattern)), M, b, transposed=transposed)
    assert names == ["CONVERGED"] * 2
    assert steps <= 8
    np.testing.assert_allclose((M @ x[..., None])[..., 0], b, rtol=1e-8, atol=1e-9)


def equation(u, t):
    """A discrete -u'' + u^3 + drift = t between zeros."""
    xp = array_namespace(u)
    zero = 0.0 * u[:1]
    left, right = xp.concat([zero, u[:-1]]), xp.concat([u[1:], zero])
    return 2.0 * u - left - right + 0.3 * (right - u) + 0.1 * u**3 - t


def test_a_layer(engine):
    """Newton's steps and the backward pass by one solver, under jit too."""
    solver = GMRES(preconditioner=SparseILU("tridiagonal"))
    layer = dil.root(equation, dil.solvers.Newton(linear_solver=solver), linear_solver=solver, init=lambda t: 0.0 * t)
    t, v = np.linspace(0.1, 0.2, 60), np.ones(60)
    y, (g,) = engine.gradients(layer, (t,), v)
    J = np.diag(1.7 + 0.3 * y**2) - np.eye(60, k=-1) - 0.7 * np.eye(60, k=1)
    np.testing.assert_allclose(equation(y, t), 0.0 * t, atol=1e-12)
    np.testing.assert_allclose(g, np.linalg.solve(J.T, v), rtol=1e-8)


def test_what_is_wrong_is_told(eager):
    A, b = grid(10), np.ones(100)
    with pytest.raises(OptionError, match="SparseILU lacks an entry"):
        solved(eager, GMRES(preconditioner=SparseILU("tridiagonal")), A, b)
    empty = np.diag(np.arange(100.0))
    assert solved(eager, GMRES(preconditioner=SparseILU(0)), empty, b)[1] == ["NON_FINITE"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drop_tol": -1.0}, "drop_tol=-1.0; expected a finite number >= 0"),
        ({"fill_factor": 0.5}, "fill_factor=0.5; expected a finite number >= 1"),
        ({"pattern": "banded"}, "pattern='banded'"),
    ],
)
def test_options(options, words):
    with pytest.raises(OptionError, match=words):
        SparseILU(**options)


def test_a_full_matrix_has_no_pattern():
    A = np.random.default_rng(0).standard_normal((600, 600))
    with pytest.raises(OptionError, match="no sparse pattern"):
        GMRES(preconditioner=SparseILU())(Operator(lambda p: A @ p), np.ones(600))


def test_a_compiled_program_needs_the_pattern():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    solver = GMRES(preconditioner=SparseILU())
    with pytest.raises(OptionError, match="cannot search for the pattern"):
        jax.jit(lambda b: solver(Operator(lambda p: 2.0 * p), b).value)(jax.numpy.ones(4))


def test_a_start_is_not_used_with_a_preconditioner():
    A = grid(10)
    solver = GMRES(preconditioner=SparseILU(A != 0))
    one, two = (solver(Operator(lambda p: A @ p), np.ones(100), x0=x0) for x0 in (None, np.ones(100)))
    np.testing.assert_array_equal(one.value, two.value)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_hierarchy_of_pyamg(backend):
    """Algebraic multigrid as the callable of a preconditioner: the recipe of the page on linear solvers."""
    pyamg = pytest.importorskip("pyamg", reason="pyamg is not installed")
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    m = 40
    A, as_array = sparse.csr_array(grid(m)), dil.backend(backend).asarray
    cycle = pyamg.smoothed_aggregation_solver(sparse.csr_matrix(A)).aspreconditioner()
    P = as_array(np.pad(np.zeros((m, m)), 1))

    def energy(u, t):
        xp = array_namespace(u)
        U = xp.reshape(u, (m, m))
        rim = P[:1, :m]
        rows = xp.concat([rim, U, rim])
        columns = xp.concat([rim.T, U, rim.T], axis=1)
        return 0.5 * (xp.sum((rows[1:] - rows[:-1]) ** 2) + xp.sum((columns[:, 1:] - columns[:, :-1]) ** 2)) - u @ t

    def v_cycle(r):
        return as_array(cycle @ dil.backend(backend).to_numpy(r))

    steps = []
    t, v = np.ones(m * m), np.linspace(0.0, 1.0, m * m)
    for preconditioner in (None, v_cycle):
        layer = dil.argmin(
            energy,
            dil.solvers.Newton(linear_solver=CG(preconditioner=preconditioner)),
            linear_solver=CG(preconditioner=preconditioner),
            init=lambda t: 0.0 * t,
        )
        with dil.record() as record:
            gradient = dil.vjp(layer, as_array(t))[1](as_array(v))[0]
        steps.append(int(record.backward[-1].iterations))
        expected = sparse.linalg.spsolve(A.tocsc(), v)
        np.testing.assert_allclose(dil.backend(backend).to_numpy(gradient), expected, rtol=1e-8)
    assert steps[1] < steps[0] / 4


@pytest.mark.parametrize("solver", [CG, GMRES])
def test_a_residual_that_is_rounding_is_no_stagnation(eager, solver):
    """An exact preconditioner leaves few products, along smooth vectors, which say little of the norm of A."""
    n = 300
    A = np.diag(2.0 * np.ones(n)) - np.diag(np.ones(n - 1), 1) - np.diag(np.ones(n - 1), -1)
    b = np.random.default_rng(0).standard_normal(n)
    options = {"symmetric": True} if solver is CG else {}
    x, names, _ = solved(eager, solver(preconditioner=SparseILU("tridiagonal")), A, b, **options)
    size = 4.0 * np.linalg.norm(x) + np.linalg.norm(b)
    assert np.linalg.norm(b - A @ x) <= 4.0 * np.finfo(float).eps * size
    assert names == ["CONVERGED"]
