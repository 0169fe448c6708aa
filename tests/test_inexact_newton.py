"""Inexact Newton steps towards large roots, and the linear solver that a user gives to `Newton`."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.linear import CG, GMRES, Auto, Direct, NormalCG
from dil.solvers import Newton
from dil.solvers._forcing import LOOSEST, forcing_of_root

SIDE = 55
"""A square grid of 3,025 unknowns."""


@dataclass
class Counted:
    """A linear solver that counts products with J and remembers the tolerances that it was asked for."""

    solver: object
    inexact: bool = True
    products: int = 0
    asked: list = field(default_factory=list)

    _takes_tolerance = True

    def __call__(self, A, b, /, *, loop, rtol=None):
        def counted(p):
            self.products += 1
            return A(p)

        self.asked.append(rtol)
        return self.solver(dil.linear.Operator(counted), b, loop=loop, rtol=rtol if self.inexact else None)


def bratu(u, k):
    """Bratu's equation -lap u = k exp(u) on a square, with u = 0 on the rim; u: (*batch, n)."""
    xp = array_namespace(u)
    square = xp.reshape(u, (*u.shape[:-1], SIDE, SIDE))
    row, column = square[..., :1, :] * 0.0, square[..., :, :1] * 0.0
    up, down = (xp.concat(x, axis=-2) for x in ([square[..., 1:, :], row], [row, square[..., :-1, :]]))
    right, left = (xp.concat(x, axis=-1) for x in ([square[..., :, 1:], column], [column, square[..., :, :-1]]))
    laplacian = (4.0 * square - up - down - right - left) * float((SIDE + 1) ** 2)
    return xp.reshape(laplacian, u.shape) - k * xp.exp(u)


def field_of(plain, *batch):
    return plain.asarray(1.0 + 0.5 * np.random.default_rng(0).uniform(size=(*batch, SIDE**2)))


def solved(plain, solver, fn=bratu, batch=(), k=None):
    k = field_of(plain, *batch) if k is None else k
    solution = dil.root(fn, solver, init=lambda k: 0.0 * k, batch_ndim=len(batch)).solve(k)
    return solution, plain.to_numpy(solution.value)


def test_inexact_steps_take_less_than_half_of_the_products_and_give_the_same_root(eager):
    inexact, exact = Counted(CG()), Counted(CG(), inexact=False)
    solution, u = solved(eager, Newton(linear_solver=inexact))
    expected = solved(eager, Newton(linear_solver=exact))[1]
    assert int(solution.status) == Status.CONVERGED
    assert 0 < inexact.products < 0.5 * exact.products
    np.testing.assert_allclose(u, expected, rtol=0.0, atol=1e-13 * np.abs(expected).max())


def test_the_default_is_inexact_where_no_dense_solve_is_cheap(eager):
    """J is asked for fewer products than by steps that the same solver takes to the full."""
    if eager.backend == "array_api_strict":
        pytest.skip("slow in array_api_strict, which runs the neighbours")
    loose, full = Counted(Auto()), Counted(Auto(), inexact=False)
    u, by_loose, expected = (
        solved(eager, Newton(**o))[1] for o in ({}, {"linear_solver": loose}, {"linear_solver": full})
    )
    assert loose.products < 0.6 * full.products
    assert loose.asked[0] == LOOSEST
    for found in (u, by_loose):
        np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize(("n", "solver"), [(20, None), (40, Auto(dense=40))])
def test_steps_with_a_dense_matrix_are_exact(eager, monkeypatch, n, solver):
    """A dense matrix is taken where the unknowns are few, and where the user allows one of this size."""
    monkeypatch.setattr("dil.solvers._newton.forcing_of_root", None)
    newton = Newton(linear_solver=solver)
    solution = dil.root(lambda u, t: u**3 + u - t, newton, init=lambda t: 0.0 * t).solve(
        eager.asarray(np.arange(1.0 * n))
    )
    assert int(solution.status) == Status.CONVERGED


def test_each_problem_of_a_batch_has_its_own_tolerance(eager):
    """A problem that begins at its root asks for no exact step, and slows none of the others."""
    k = eager.to_numpy(field_of(eager, 2)) * np.asarray([[1.0], [1e-3]])
    solver = Counted(CG())
    solution, u = solved(eager, Newton(linear_solver=solver), batch=(2,), k=eager.asarray(k))
    assert list(eager.to_numpy(solution.status)) == [Status.CONVERGED] * 2
    assert all(tuple(rtol.shape) == (2, 1) for rtol in solver.asked)
    asked = np.asarray([eager.to_numpy(rtol)[:, 0] for rtol in solver.asked])
    assert np.any(asked[:, 0] != asked[:, 1])
    for i in range(2):
        alone = solved(eager, Newton(linear_solver=Counted(CG(), inexact=False)), k=eager.asarray(k[i]))[1]
        np.testing.assert_allclose(u[i], alone, rtol=0.0, atol=1e-13 * np.abs(alone).max())


def test_problems_leave_a_large_batch(eager):
    """The problems of a chain that are solved leave, and each keeps its tolerance: all end at the root of their own."""
    scale = np.logspace(-6, 3, 64)[:, None]
    t = scale * (1.0 + np.random.default_rng(0).uniform(size=(64, 50)))

    def chain(u, t):
        xp = array_namespace(u)
        end = u[..., :1] * 0.0
        neighbours = xp.concat([u[..., 1:], end], axis=-1) + xp.concat([end, u[..., :-1]], axis=-1)
        return 3.0 * u - neighbours + u**3 - t

    found = [
        dil.root(chain, Newton(linear_solver=solver), init=lambda t: 0.0 * t, batch_ndim=1).solve(eager.asarray(t))
        for solver in (CG(), Direct())
    ]
    assert np.all(eager.to_numpy(found[0].status) == Status.CONVERGED)
    u, expected = (eager.to_numpy(x.value) for x in found)
    assert np.all(np.abs(u - expected) <= 1e-13 * np.abs(expected).max(axis=-1, keepdims=True))


def test_under_jit_and_vmap():
    jax = pytest.importorskip("jax")
    plain = dil.backend("jax", dtype="float64")
    k = field_of(plain, 2)
    layer = dil.root(bratu, Newton(linear_solver=CG()), init=lambda k: 0.0 * k)
    found = np.asarray(jax.jit(jax.vmap(layer))(k))
    for i in range(2):
        F = np.asarray(bratu(found[i], np.asarray(k)[i]))
        assert np.abs(F).max() <= 1e-10


def test_history_is_kept_and_falls(eager):
    solution, _ = solved(eager, Newton(linear_solver=CG(), history=True))
    history = eager.to_numpy(solution.extra["history"])[: int(solution.iterations)]
    assert np.all(history[1:] < history[:-1])


def test_fixed_points(eager):
    """u = (k exp(u) + 4 u - ...) / 4 of the grid: the same equation as a step of Jacobi's method."""

    def step(u, k):
        return u - bratu(u, k) / (4.0 * (SIDE + 1) ** 2)

    k = field_of(eager)
    solution = dil.fixed_point(step, Newton(linear_solver=CG()), init=lambda k: 0.0 * k).solve(k)
    assert int(solution.status) == Status.CONVERGED
    expected = solved(eager, Newton())[1]
    np.testing.assert_allclose(eager.to_numpy(solution.value), expected, rtol=0.0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("linear_solver", [None, GMRES(), NormalCG()], ids=repr)
def test_a_point_without_a_root_is_refused(eager, linear_solver):
    """u^2 + t = 0 has none for t > 0: loose steps towards the least ||F|| are short, and no root."""
    options = {} if linear_solver is None else {"linear_solver": linear_solver}
    t = eager.asarray(np.linspace(0.5, 1.0, 40))
    layer = dil.root(lambda u, t: u**2 + t, Newton(**options, max_iter=15), init=lambda t: 0.0 * t + 1.0)
    assert int(layer.solve(t).status) != Status.CONVERGED


@pytest.mark.parametrize("linear_solver", [GMRES(), NormalCG()], ids=repr)
def test_a_short_rough_step_is_not_the_last(eager, linear_solver):
    """Half of the unknowns hardly move, and half of the equations have tiny coefficients: a loose step is short."""
    half = np.arange(400) < 200
    slope, way = (eager.asarray(np.where(half, *ends)) for ends in ((1.0, 1e-9), (1e-9, 0.1)))

    def F(u, t):
        return slope * (u - 1.0 - way * t)

    t = eager.asarray(np.linspace(1.0, 2.0, 400))
    solution = dil.root(F, Newton(linear_solver=linear_solver), init=lambda t: 0.0 * t + 1.0).solve(t)
    assert int(solution.status) == Status.CONVERGED
    np.testing.assert_allclose(eager.to_numpy(solution.value), eager.to_numpy(1.0 + way * t), rtol=1e-14)


def diagonal(A, b, /, *, loop):
    """Solve a diagonal system by one product. It takes no tolerance."""
    return dil.Solution(b / A(array_namespace(b).ones_like(b)))


def test_a_solver_without_a_tolerance_solves_to_its_own(eager):
    t = eager.asarray(np.linspace(1.0, 2.0, 500))
    solution = dil.root(lambda u, t: u**3 - t, Newton(linear_solver=diagonal), init=lambda t: t).solve(t)
    assert int(solution.status) == Status.CONVERGED
    assert int(solution.iterations) <= 6  # quadratic: no step is taken twice
    np.testing.assert_allclose(eager.to_numpy(solution.value), eager.to_numpy(t) ** (1 / 3), rtol=1e-14)


def test_the_linear_solver_gets_the_damped_matrix(eager):
    seen = []

    def solver(A, b, /, *, loop):
        seen.append(float(eager.to_numpy(A(array_namespace(b).ones_like(b)))[0]))
        return diagonal(A, b, loop=loop)

    t = eager.asarray(np.full(3, 2.0))
    dil.root(lambda u, t: 3.0 * u - t, Newton(linear_solver=solver, damping=0.5), init=lambda t: 0.0 * t).solve(t)
    assert set(seen) == {3.5}


def test_a_minimum_takes_the_linear_solver(eager):
    calls = []

    def solver(A, b, /, *, loop):
        calls.append(A.symmetric)
        return diagonal(A, b, loop=loop)

    def score(u, t):
        xp = array_namespace(u)
        return xp.sum(xp.exp(u) - t * u)

    t = eager.asarray(np.linspace(1.0, 2.0, 7))
    solution = dil.argmin(score, Newton(linear_solver=solver), init=lambda t: 0.0 * t).solve(t)
    np.testing.assert_allclose(eager.to_numpy(solution.value), np.log(eager.to_numpy(t)), rtol=1e-12, atol=1e-14)
    assert calls
    assert all(calls)


@pytest.mark.parametrize("kind", ["root", "argmin"])
@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_a_linear_solver_that_fails_is_told(eager, kind, factor):
    """A step of zero, one that leads away, and one of NaN are no steps: no status says that the problem is solved."""

    def wrong(A, b, /, *, loop):
        status = array_namespace(b).asarray(int(Status.STAGNATED), dtype=array_namespace(b).int32)
        return dil.Solution(factor * diagonal(A, b, loop=loop).value, status)

    def score(u, t):
        xp = array_namespace(u)
        return xp.sum(t * (u - 1.0) ** 2 + 0.1 * (u - 1.0) ** 4)

    def residual(u, t):
        return 2.0 * t * (u - 1.0) + 0.4 * (u - 1.0) ** 3

    t = eager.asarray(np.logspace(0, 6, 40))
    make, fn = (dil.root, residual) if kind == "root" else (dil.argmin, score)
    solver = Newton(linear_solver=wrong, max_iter=20)
    if (kind, factor) == ("argmin", -1.0):
        pytest.skip("a step that points uphill is reversed, which here is Newton's step")
    assert int(make(fn, solver, init=lambda t: 0.0 * t).solve(t).status) != Status.CONVERGED


def test_an_answer_of_another_shape_is_refused(eager):
    def short(A, b, /, *, loop):
        return dil.Solution(b[:1])

    layer = dil.root(lambda u, t: u - t, Newton(linear_solver=short), init=lambda t: 0.0 * t)
    with pytest.raises(dil.ShapeError, match="the linear solver returned a value of shape"):
        layer.solve(eager.asarray(np.ones(3)))
    layer = dil.root(lambda u, t: u - t, Newton(linear_solver=lambda A, b, loop: b), init=lambda t: 0.0 * t)
    with pytest.raises(dil.ShapeError, match=r"expected a dil.Solution"):
        layer.solve(eager.asarray(np.ones(3)))


def test_equal_options_are_equal():
    one, same, other = Newton(linear_solver=CG()), Newton(linear_solver=CG()), Newton(linear_solver=CG(damping=1.0))
    assert one == same
    assert hash(one) == hash(same)
    assert one not in (other, Newton())
    assert pickle.loads(pickle.dumps(one)) == one
    assert "linear_solver=CG(" in repr(one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear_solver": 3}, "linear_solver=3 of type int; expected a callable"),
        ({"linear_solver": CG}, r"did you mean CG\(\)"),
        ({"linear_solver": CG(), "equations": "normal"}, r"take Newton\(linear_solver=.*NormalCG"),
        ({"linear_solver": CG(), "equations": "truncated"}, r"takes no linear_solver=; take Newton\(linear_solver=..."),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(dil.OptionError, match=message):
        Newton(**options)


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_the_forcing_of_a_root(unit):
    """Eisenstat and Walker's second choice; the safeguard holds it back; after a short step, the rest of that one."""
    machine, golden = np.finfo(float).eps, (1 + 5**0.5) / 2

    def found(ratio, last, *, near=False):
        size, before = np.asarray([ratio * unit]), np.asarray([unit])
        return float(forcing_of_root(size, before, np.asarray([last]), np.asarray([near]), machine)[0])

    assert found(0.01, 1e-3) == pytest.approx(0.9 * 0.01**golden)
    assert found(0.01, 0.5) == pytest.approx(0.9 * 0.5**golden)
    assert found(0.01, 0.25) == pytest.approx(0.9 * 0.01**golden)  # 0.9 * 0.25^1.618 is below 0.1
    assert found(1e-9, 1e-3) == machine**0.75
    assert found(5.0, 0.1) == LOOSEST
    assert found(1e-6, 1e-7, near=True) == pytest.approx(machine**0.75 * 1e6)
    assert found(1e-13, 1e-12, near=True) == LOOSEST


def test_a_step_knows_what_it_left(eager):
    """What is left decides, not what was asked for: a solve that is exact by chance needs no second look."""
    asked = []

    @dataclass
    class Exact:
        _takes_tolerance = True

        def __call__(self, A, b, /, *, loop, rtol=None):
            asked.append(rtol)
            return Direct()(A, b, loop=loop)

    t = eager.asarray(np.linspace(1.0, 2.0, 40))
    inexact = dil.root(lambda u, t: u**3 - t, Newton(linear_solver=Exact()), init=lambda t: t).solve(t)
    exact = dil.root(lambda u, t: u**3 - t, Newton(linear_solver=Direct()), init=lambda t: t).solve(t)
    assert all(rtol is not None for rtol in asked)
    assert int(inexact.iterations) == int(exact.iterations)


@pytest.mark.parametrize("solver", [dil.linear.BiCGSTAB(max_iter=3), CG(max_iter=20), GMRES(restart=2, max_iter=10)])
def test_a_linear_solver_that_fails_is_blamed(eager, solver):
    """Helmholtz's equation on a square, whose matrix is indefinite: the equations have a root, which Auto finds."""
    if eager.name == "array_api_strict":
        pytest.skip("these arrays stand for those of a compiled program, which is not looked at")
    n = 16

    def residual(u, t):
        xp = array_namespace(u)
        U = xp.reshape(u, (n, n))
        edge, side = xp.zeros_like(U[:1, :]), xp.zeros_like(U[:, :1])
        up, down = xp.concat([U[1:, :], edge], axis=0), xp.concat([edge, U[:-1, :]], axis=0)
        left, right = xp.concat([U[:, 1:], side], axis=1), xp.concat([side, U[:, :-1]], axis=1)
        return xp.reshape((4 * U - up - down - left - right) * (n + 1) ** 2 - 300.0 * U, (-1,)) - t * xp.exp(u)

    def status(solver):
        layer = dil.root(residual, Newton(max_iter=20, linear_solver=solver), init=eager.asarray(np.zeros(n * n)))
        return int(layer.report(eager.asarray(1.0)).forward.status)

    assert status(Auto()) == Status.CONVERGED
    assert status(solver) == Status.LINEAR_SOLVER


@pytest.mark.parametrize("solver", [CG(max_iter=20), GMRES(), Direct()])
def test_equations_without_a_root_are_not_blamed_on_the_linear_solver(eager, solver):
    if eager.name == "array_api_strict":
        pytest.skip("these arrays stand for those of a compiled program, which is not looked at")
    layer = dil.root(lambda u, t: u**2 + t, Newton(max_iter=60, linear_solver=solver), init=lambda t: 0.0 * t + 1.5)
    found = int(layer.report(eager.asarray(np.linspace(0.5, 1.5, 12))).forward.status)
    assert found == Status.NO_ROOT
