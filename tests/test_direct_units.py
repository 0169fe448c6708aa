"""Dense solves in any units of the unknowns and of the equations: D A E for diagonal D and E."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil._base.operator import Operator

N = 12


def chain(draw):
    return 2.5 * np.eye(N) - np.eye(N, k=1) - 1.2 * np.eye(N, k=-1)


def scattered(draw):
    return np.eye(N)[draw.permutation(N)] + 0.3 * (draw.random((N, N)) < 2 / N) * draw.standard_normal((N, N))


def saddle_point(draw):
    """Symmetric, with a block of zeros on its diagonal."""
    m = N // 3
    B = draw.standard_normal((m, N - m))
    return np.block([[np.eye(N - m), B.T], [B, np.zeros((m, m))]])


def full(draw):
    return np.linalg.qr(draw.standard_normal((N, N)))[0]


KINDS = {"chain": chain, "scattered": scattered, "saddle point": saddle_point, "full": full}


def system(kind, seed, decades):
    """Return D A E, the solution in the units of E, and E."""
    draw = np.random.default_rng(seed)
    A = KINDS[kind](draw)
    D = 10.0 ** draw.uniform(-decades, decades, N)
    E = D if kind == "saddle point" else 10.0 ** draw.uniform(-decades, decades, N)
    x = 1.0 + draw.random(N)
    return D[:, None] * A * E, D * (A @ x), x, E


def solve(engine, matrix, b, symmetric=False):
    M, b = engine.asarray(matrix), engine.asarray(b)

    def product(M):
        return lambda p: (M @ p[..., None])[..., 0]

    def run(M, b):
        return dil.linear.Direct()(Operator(product(M), None if symmetric else product(M.mT), symmetric=symmetric), b)[
            :2
        ]

    if engine.name == "jax:jit":
        import jax

        run = jax.jit(run)
    return [engine.to_numpy(part) for part in run(M, b)]


@pytest.mark.parametrize("decades", [4, 8, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_units_do_not_matter(engine, kind, decades):
    rows = [system(kind, seed, decades) for seed in range(8)]
    A, b, x, E = (np.stack(part) for part in zip(*rows, strict=True))
    value, status = solve(engine, A, b, symmetric=kind == "saddle point")
    assert [int(s) for s in status] == [Status.CONVERGED] * 8
    np.testing.assert_allclose(value * E, x, rtol=1e-8)
    one, status = solve(engine, A[0], b[0], symmetric=kind == "saddle point")
    assert int(status) == Status.CONVERGED
    np.testing.assert_allclose(one * E[0], x[0], rtol=1e-8)


@pytest.mark.parametrize("decades", [0, 4, 8, 12])
@pytest.mark.parametrize("kind", ["rank", "null vector", "empty row", "structure", "saddle point"])
def test_a_singular_matrix_stays_singular(engine, kind, decades):
    """In all units, as one problem of a batch whose others are solved."""
    regular = [system("chain", seed, decades) for seed in range(2)]
    draw = np.random.default_rng(1)
    A = {"saddle point": saddle_point, "structure": chain, "empty row": chain}.get(kind, full)(draw)
    if kind == "rank":
        A = A[:, :-1] @ draw.standard_normal((N - 1, N))
    elif kind == "null vector":  # the Laplacian of a ring, of constants
        A = 2 * np.eye(N) - np.roll(np.eye(N), 1, 0) - np.roll(np.eye(N), -1, 0)
    elif kind == "empty row":
        A[3] = 0.0
    elif kind == "structure":  # three equations of two unknowns
        A[:3] = 0.0
        A[:3, :2] = draw.standard_normal((3, 2))
    else:
        A[-1], A[:, -1] = A[-2], A[:, -2]
        A[-1, -1] = A[-1, -2] = A[-2, -1] = A[-2, -2] = 0.0
    D = 10.0 ** draw.uniform(-decades, decades, N)
    E = D if kind == "saddle point" else 10.0 ** draw.uniform(-decades, decades, N)
    D, E = (2.0 ** np.round(np.log2(x)) for x in (D, E))  # rounding would make another matrix of it
    b = D * draw.standard_normal(N)
    matrices = np.stack([regular[0][0], D[:, None] * A * E, regular[1][0]])
    value, status = solve(engine, matrices, np.stack([regular[0][1], b, regular[1][1]]))
    assert [int(s) for s in status] == [Status.CONVERGED, Status.SINGULAR, Status.CONVERGED]
    np.testing.assert_allclose(value[0] * regular[0][3], regular[0][2], rtol=1e-8)
    np.testing.assert_allclose(value[2] * regular[1][3], regular[1][2], rtol=1e-8)


@pytest.mark.parametrize("solver", [dil.linear.Direct(), dil.linear.Auto()], ids=["Direct", "Auto"])
@pytest.mark.parametrize("n", [6, 40])
def test_the_gradient_of_a_root_in_mixed_units(eager, n, solver):
    """Unknowns and equations in units from 1e-10 to 1e10: Newton's steps and both modes."""
    draw = np.random.default_rng(n)
    D, E = 10.0 ** draw.uniform(-10, 10, (2, n))
    A = 2.5 * np.eye(n) - np.eye(n, k=1) - 1.2 * np.eye(n, k=-1)
    M, rows, columns = (eager.asarray(x) for x in (A, D, E))

    def residual(u, t):
        x = u / columns
        return rows * ((M @ x) + x**3 - t)

    layer = dil.root(
        residual,
        dil.solvers.Newton(linear_solver=solver),
        linear_solver=solver,
        init=lambda t: 0.0 * t,
        on_failure="raise",
    )
    t = np.linspace(0.5, 1.5, n)
    y, (dt,) = eager.gradients(lambda t: array_namespace(t).sum(layer(t) / columns), (t,))
    x = np.zeros(n)
    for _ in range(40):
        x = x - np.linalg.solve(A + np.diag(3 * x**2), A @ x + x**3 - t)
    np.testing.assert_allclose(y, x.sum(), rtol=1e-8)
    np.testing.assert_allclose(dt, np.linalg.solve((A + np.diag(3 * x**2)).T, np.ones(n)), rtol=1e-6)
