"""The tolerance of one call of a linear solver, for all problems of a batch or for each, in the place of its option."""

from __future__ import annotations

import numpy as np
import pytest

import dil
from dil._base.options import declares
from dil._frameworks.registry import common_owner
from dil._layers.following import FollowingAuto
from dil.linear import CG, GMRES, IDR, MINRES, Auto, BiCGSTAB, NormalCG, Recycle, WarmStart
from dil.linear._least_norm import LeastNorm
from dil.linear.preconditioners import Jacobi

N, LOOSE, TIGHT = 60, 0.1, 1e-10
SYMMETRIC = {
    "CG": CG(),
    "CG with a preconditioner": CG(preconditioner=Jacobi()),
    "CG, one reduction": CG(one_reduction=True),
    "MINRES": MINRES(),
    "Auto": Auto(dense=0),
}
GENERAL = {
    "BiCGSTAB": BiCGSTAB(),
    "IDR": IDR(),
    "GMRES": GMRES(restart=40),
    "NormalCG": NormalCG(),
    "Auto, general": Auto(dense=0),
}
SOLVERS = SYMMETRIC | GENERAL


def systems(plain, name, count):
    """Return the same system `count` times: its matrix as an operator, and the right-hand sides."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((N, N)))[0]
    M = (Q * np.linspace(1.0, 30.0, N)) @ Q.T
    M = M if name in SYMMETRIC else M + rng.standard_normal((N, N)) / 8
    M, Mt = plain.asarray(M), plain.asarray(M.T.copy())
    b = plain.asarray(np.tile(rng.standard_normal(N), (count, 1)))
    return dil.linear.Operator(lambda p: p @ Mt, lambda p: p @ M, symmetric=name in SYMMETRIC), b


@pytest.mark.parametrize("name", SOLVERS)
def test_each_problem_has_its_own_tolerance(plain, name):
    if plain.backend == "jax" and name != "Auto, general":
        pytest.skip("JAX compiles each case; Auto runs there")
    A, b = systems(plain, name, 2)
    solution = SOLVERS[name](A, b, rtol=plain.asarray(np.asarray([[LOOSE], [TIGHT]])))
    assert list(plain.to_numpy(solution.status)) == [0, 0]
    loose, tight = plain.to_numpy(solution.residual)
    assert 1e-3 * LOOSE < loose <= LOOSE
    assert tight <= TIGHT
    few, many = plain.to_numpy(solution.iterations)
    assert few < 0.6 * many


@pytest.mark.parametrize("name", SOLVERS)
def test_the_tolerance_of_a_call_stands_for_the_option(eager, name):
    """A number in the call, an array for one problem, and the option lead to the same steps."""
    A, b = systems(eager, name, 1)
    b, option = b[0, :], {"rtol": LOOSE}
    kind = SOLVERS[name]
    by_option = kind.__class__(**{f: getattr(kind, f) for f in kind.__dataclass_fields__} | option)(A, b)
    for rtol in (LOOSE, eager.asarray(np.asarray([LOOSE]))):
        found = kind(A, b, rtol=rtol)
        assert int(found.iterations) == int(by_option.iterations)
        np.testing.assert_array_equal(eager.to_numpy(found.value), eager.to_numpy(by_option.value))
    assert int(kind(A, b).iterations) > int(by_option.iterations)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_tolerance_is_declared(name):
    assert declares(SOLVERS[name], "_takes_tolerance")


def test_solvers_that_do_not_iterate_declare_none():
    assert not declares(dil.linear.Direct(), "_takes_tolerance")
    assert not declares(dil.linear.Neumann(terms=3, step=0.1), "_takes_tolerance")


WITH_MEMORY = {"Recycle": Recycle, "WarmStart": lambda: WarmStart(CG()), "following": lambda: FollowingAuto(1e-6)}


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_solvers_that_solve_by_another_hand_the_tolerance_on(eager, name):
    """In the first call, and in the second, which the memory shortens: b and the tolerances change places."""
    A, b = systems(eager, "CG", 2)
    if name != "WarmStart" and Auto().takes_dense(A, b):
        pytest.skip("a dense solve of this size is cheap")
    given = np.asarray([[LOOSE], [TIGHT]])
    solver, xp = WITH_MEMORY[name](), eager.handle.xp
    assert declares(solver, "_takes_tolerance")
    loop = common_owner([b], ["b"], "the test").loops.while_loop
    for change, rtol in ((0.0, given), (0.5, given[::-1].copy())):
        found = solver(A, b + change * xp.sin(b), loop=loop, rtol=eager.asarray(rtol))
        assert list(eager.to_numpy(found.status)) == [0, 0]
        residual, steps = eager.to_numpy(found.residual), eager.to_numpy(found.iterations)
        assert np.all(residual <= rtol[:, 0])
        loose, tight = np.argmax(rtol), np.argmin(rtol)
        assert residual[loose] > 1e-3 * LOOSE
        assert steps[loose] < 0.6 * steps[tight]
    number = WITH_MEMORY[name]()(A, b[0, :], loop=loop, rtol=LOOSE)
    array = WITH_MEMORY[name]()(A, b[0, :], loop=loop, rtol=eager.asarray(np.asarray([LOOSE])))
    np.testing.assert_array_equal(eager.to_numpy(number.value), eager.to_numpy(array.value))


def test_a_warm_start_of_a_solver_without_tolerance_refuses_one():
    def solver(A, b, /, *, loop=None, x0=None):
        return CG()(A, b, loop=loop, x0=x0)

    warm = WarmStart(solver)
    assert not declares(warm, "_takes_tolerance")
    assert int(warm(lambda p: 2.0 * p, np.ones(3)).status) == 0
    with pytest.raises(dil.OptionError, match="takes no tolerance rtol= in a call; set it in the solver"):
        warm(lambda p: 2.0 * p, np.ones(3), rtol=0.1)


def test_a_dense_solve_is_exact_whatever_the_tolerance(eager):
    A, b = systems(eager, "Auto", 2)
    exact, loose = Auto(dense=N)(A, b), Auto(dense=N)(A, b, rtol=0.5)
    np.testing.assert_array_equal(eager.to_numpy(exact.value), eager.to_numpy(loose.value))


def test_problems_that_leave_the_batch_keep_their_tolerance(eager):
    """Every second problem of a large batch is solved loosely, and leaves it."""
    A, b = systems(eager, "CG", 64)
    given = np.where(np.arange(64) % 2 == 0, LOOSE, TIGHT)[:, None]
    for name in ("CG", "CG, one reduction", "MINRES", "Auto"):
        found = SOLVERS[name](A, b, rtol=eager.asarray(given))
        left = eager.to_numpy(found.residual)
        assert np.all(left <= given[:, 0])
        assert np.all(left[::2] > 1e-3 * LOOSE)


def test_a_matrix_without_inverse_is_solved_to_the_tolerance_of_each_problem(eager):
    """`LeastNorm`, to which Auto hands such a system, misses a tight tolerance and meets a loose one."""
    matrix = np.diag([1.0, 1.0, 0.0])
    A = dil.linear.Operator(lambda p: p @ eager.asarray(matrix), symmetric=True)
    b = eager.asarray(np.asarray([[1.0, 2.0, 1e-15]] * 2))
    status = LeastNorm()(A, b, loop=None, rtol=eager.asarray(np.asarray([[1e-2], [1e-17]]))).status
    assert list(eager.to_numpy(status)) == [int(dil.Status.CONVERGED), int(dil.Status.SINGULAR)]


@pytest.mark.parametrize("rtol", [0.0, 1.0, -1e-3, float("nan"), True, "tight"])
def test_a_tolerance_out_of_range_is_refused(rtol):
    with pytest.raises(dil.OptionError, match="a number between 0 and 1"):
        CG()(lambda p: 2.0 * p, np.ones(3), rtol=rtol)


@pytest.mark.parametrize(
    "rtol", [np.full(2, 0.1), np.full((2, 3), 0.1), np.full((3, 1), 0.1), np.ones((2, 1), np.float32)]
)
@pytest.mark.parametrize("solver", [CG(), Auto(), GMRES()], ids=repr)
def test_a_tolerance_of_another_shape_is_refused(solver, rtol):
    with pytest.raises(dil.ShapeError, match=r"rtol has shape .* expected a number, or an array of shape \(2, 1\)"):
        solver(dil.linear.Operator(lambda p: 2.0 * p, symmetric=True), np.ones((2, 50)), rtol=rtol)
