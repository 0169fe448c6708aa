"""Linear systems that are solved leave the batch: products have fewer rows, and every answer stays what it was."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil._base.rows import Rows
from dil._frameworks.loops import places_now
from dil.linear import CG, GMRES, MINRES, Auto, BiCGSTAB, NormalCG
from dil.linear.preconditioners import Jacobi

COUNT, N, HARD = 64, 20, 5
"""Problems, unknowns, and the problems that are hard."""

SOLVERS = {
    "CG": (CG(rtol=1e-11), True),
    "CG, one reduction": (CG(rtol=1e-11, one_reduction=True), True),
    "CG, from a start": (dil.linear.WarmStart(CG(rtol=1e-11)), True),
    "MINRES": (MINRES(rtol=1e-11), True),
    "Auto": (Auto(rtol=1e-11, dense=0), True),
    "BiCGSTAB": (BiCGSTAB(rtol=1e-11), False),
    "GMRES": (GMRES(restart=10, rtol=1e-11), False),
    "NormalCG": (NormalCG(rtol=1e-11), False),
    "NormalCG, damped": (NormalCG(rtol=1e-11, damping=1e-3), False),
}


def eager(plain):
    if plain.backend == "jax":
        pytest.skip("the shapes of a compiled program do not depend on values")
    return plain


def matrices(hard=HARD):
    """Return symmetric positive definite matrices; those of the first few problems are worse conditioned."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((COUNT, N, N)))[0]
    values = np.broadcast_to(np.linspace(1.0, 1.2, N), (COUNT, N)).copy()
    values[:hard] = np.logspace(0, 2, N)
    return (Q * values[:, None, :]) @ Q.swapaxes(-1, -2)


class Counted:
    """A linear function of u, whose products are seen by the rows of its gradient."""

    def __init__(self, symmetric, product):
        self.symmetric, self.product, self.rows = symmetric, product, []

    def __call__(self, u, t, *arrays):
        self.rows.append(u.shape[0])
        Au = self.product(u, *arrays)
        return array_namespace(u).sum(0.5 * u * Au - u * t, axis=-1) if self.symmetric else Au - t


def apply(u, A):
    return array_namespace(u).matmul(A, u[..., None])[..., 0]


def pulled(plain, symmetric, solver, product, *arrays, cotangent=None, on_failure="ignore"):
    """Return dL/dt of the layer, which is A^-1 v, and the function with the rows that it saw in the backward pass."""
    fn = Counted(symmetric, product)
    make = dil.argmin if symmetric else dil.root
    options = {"linear_solver": solver, "batch_ndim": 1, "on_failure": on_failure}
    zero = plain.asarray(np.zeros((COUNT, N)))
    layer = make(fn, dil.solvers.Newton(), init=zero, **options)
    _, pull = dil.vjp(lambda t: layer(t, *arrays), zero)
    fn.rows.clear()
    v = np.random.default_rng(1).standard_normal((COUNT, N)) if cotangent is None else cotangent
    return plain.to_numpy(pull(plain.asarray(v))[0]), v, fn


def keep_together(monkeypatch):
    """No batch is large from now on."""
    monkeypatch.setattr("dil._frameworks.leaving.MANY", 10**9)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_hard_systems_go_on_alone_to_the_same_answer(plain, name, monkeypatch):
    solver, symmetric = SOLVERS[name]
    A = matrices()
    found, v, fn = pulled(eager(plain), symmetric, solver, apply, plain.asarray(A))
    assert min(fn.rows) <= COUNT // 2, "no system has left the batch"
    keep_together(monkeypatch)
    other, _, fn = pulled(plain, symmetric, solver, apply, plain.asarray(A))
    assert set(fn.rows) == {COUNT}
    np.testing.assert_allclose(found, other, rtol=1e-8, atol=1e-9 * np.abs(other).max())
    if "damped" not in name:
        np.testing.assert_allclose((A @ found[..., None])[..., 0], v, atol=1e-8 * np.abs(v).max())


@pytest.mark.parametrize("kind", ["captured", "asserted", "counts the rows", "as long as the batch", "by rank"])
def test_a_function_that_is_another_for_some_rows_keeps_the_batch_whole(plain, kind):
    """The products of the rows alone differ, or cannot be made, and the answer is that of the whole batch."""
    A = matrices()
    weights = np.linspace(1.0, 2.0, COUNT)
    a, w = eager(plain).asarray(A), plain.asarray(weights)
    M = np.eye(N) if kind != "as long as the batch" else np.diag(weights)[:, :N].copy()

    def captured(u, A):
        return apply(u, a)

    def asserted(u, A):
        assert u.shape[0] == COUNT
        return apply(u, A)

    def counts_the_rows(u, A):
        return apply(u, A) * (u.shape[0] / COUNT)

    def as_long_as_the_batch(u, A, M):  # u M^T M, for an M of as many rows as there are problems
        xp = array_namespace(u)
        Mu = xp.matmul(u, M.mT) if M.shape[0] == COUNT else xp.matmul(u, M.mT[:, : M.shape[0]])
        return apply(u, A) + xp.matmul(Mu, M)

    def by_rank(u, A, w):  # the weights belong to the places in the batch, and not to the problems
        return apply(u, A) * array_namespace(u).flip(w, axis=0)[: u.shape[0], None]

    arrays = {"as long as the batch": (plain.asarray(M),), "by rank": (w,)}.get(kind, ())
    product = locals()[kind.replace(" ", "_")]
    found, v, fn = pulled(plain, True, CG(rtol=1e-11), product, a, *arrays, on_failure="raise")
    factor = {"as long as the batch": A + M.T @ M, "by rank": A * weights[::-1, None, None]}.get(kind, A)
    assert fn.rows[-1] == COUNT
    np.testing.assert_allclose((factor @ found[..., None])[..., 0], v, atol=1e-8 * np.abs(v).max())


@pytest.mark.parametrize("kind", ["a preconditioner", "few unknowns", "no hard system"])
def test_the_batch_stays_whole(plain, kind):
    solver = CG(rtol=1e-11, preconditioner=Jacobi()) if kind == "a preconditioner" else CG(rtol=1e-11)
    A = matrices(0 if kind == "no hard system" else HARD)
    count = 50 if kind == "few unknowns" else COUNT
    fn = Counted(True, apply)
    zero, a = eager(plain).asarray(np.zeros((count, N))), plain.asarray(A[:count])
    layer = dil.argmin(fn, dil.solvers.Newton(), init=zero, linear_solver=solver, batch_ndim=1)
    _, pull = dil.vjp(lambda t: layer(t, a), zero)
    fn.rows.clear()
    pull(plain.asarray(np.random.default_rng(1).standard_normal((count, N))))
    assert set(fn.rows) == {count}


def test_an_operator_of_a_user_stays_whole(plain):
    a, shapes = eager(plain).asarray(matrices()), set()

    def product(p):
        shapes.add(tuple(p.shape))
        return apply(p, a)

    b = plain.asarray(np.random.default_rng(1).standard_normal((COUNT, N)))
    assert bool(array_namespace(b).all(CG()(dil.linear.Operator(product, symmetric=True), b).status == 0))
    assert shapes == {(COUNT, N)}


def test_systems_that_fail_or_are_not_finite_stay_alone(plain):
    """One system is indefinite, one has a right-hand side of NaN, one is zero; the others are solved."""
    A = matrices()
    A[3], v = -A[3], np.random.default_rng(1).standard_normal((COUNT, N))
    v[10], v[11] = np.nan, 0.0
    solver, seen = MINRES(rtol=1e-11), []

    def watched(A, b, *, loop=None):
        seen.append(solver(A, b, loop=loop))
        return seen[-1]

    found, _, fn = pulled(eager(plain), True, watched, apply, plain.asarray(A), cotangent=v)
    status = plain.to_numpy(seen[0].status)
    assert min(fn.rows) <= COUNT // 2
    assert status[10] == int(dil.Status.NON_FINITE)
    assert np.all(np.delete(status, 10) == int(dil.Status.CONVERGED))
    keep = np.delete(np.arange(COUNT), 10)
    np.testing.assert_allclose((A @ found[..., None])[keep, :, 0], v[keep], atol=1e-8)


def test_rows_are_taken_and_put_back(plain):
    numbers, chosen = np.arange(24.0).reshape(3, 2, 4), np.asarray([0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    x, mask = eager(plain).asarray(numbers), plain.asarray(chosen) > 0.5
    rows = Rows((3, 2), mask, places_now(mask))
    part = rows.take(x)
    assert tuple(part.shape) == (*rows.shape, 4) == (3, 1, 4)
    np.testing.assert_array_equal(plain.to_numpy(part)[:, 0], numbers.reshape(6, 4)[chosen > 0.5])
    back = plain.to_numpy(rows.put(array_namespace(x).zeros_like(x), part)).reshape(6, 4)
    np.testing.assert_array_equal(back, chosen[:, None] * numbers.reshape(6, 4))
    other = x[0, ...]
    assert rows.take(other) is other
