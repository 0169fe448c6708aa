"""Riccati's equation and the gains of the linear quadratic regulator, on every engine."""

from __future__ import annotations

import numpy as np
import pytest

import dil
from dil import Status
from dil.control import dare, lqr_gain
from dil.control._dare import _controllable, solve_one

linalg = pytest.importorskip("scipy.linalg", reason="SciPy is not installed")

NAMES = ("A", "B", "Q", "R")


def eager(engine):
    if engine.backend == "jax":
        pytest.skip("JAX compiles each; the gradients and the finite horizon run on it")


KRYLOV = {"NormalCG": dil.linear.NormalCG(rtol=1e-13), "GMRES": dil.linear.GMRES(restart=150, rtol=1e-13)}
FEW = {"jax:jit": 4}
"""The size that is enough elsewhere than on NumPy and torch; 2 by default."""


def system(n, m, seed=0, batch=()):
    """Return a system that is not stable by itself."""
    draw = np.random.default_rng(seed)
    A, B = draw.standard_normal((*batch, n, n)), draw.standard_normal((*batch, n, m))
    A *= 1.1 / np.abs(np.linalg.eigvals(A)).max(axis=-1)[..., None, None]
    L, M = draw.standard_normal((*batch, n, n)), draw.standard_normal((*batch, m, m))
    return A, B, L @ np.swapaxes(L, -1, -2) / n + 0.1 * np.eye(n), M @ np.swapaxes(M, -1, -2) / m + np.eye(m)


def spring(c, k=1.0, m=1.0):
    """Return the mass, spring and damper of the paper's appendix C."""
    A = np.asarray([[0.0, 1.0], [-k / m, -c / m]])
    return A, np.asarray([[0.0], [-1.0 / m]]), np.eye(2), 2.0 * np.eye(1)


def direction(args, seed=1):
    """Return a direction for each argument, in symmetric matrices for Q and R."""
    draw = np.random.default_rng(seed)
    found = [draw.standard_normal(x.shape) for x in args]
    return [*found[:2], *(x + np.swapaxes(x, -1, -2) for x in found[2:])]


def slopes(args, V, step=1e-4):
    """Return d<V, S> along a direction in each argument, by differences of SciPy's solution of fourth order."""

    def moved(i, d, t):
        S, status = solve_one(*(x + t * d if j == i else x for j, x in enumerate(args)))
        assert status == Status.CONVERGED
        return np.sum(V * S)

    return [
        (8 * (moved(i, d, step) - moved(i, d, -step)) - (moved(i, d, 2 * step) - moved(i, d, -2 * step))) / (12 * step)
        for i, d in enumerate(direction(args))
    ]


@pytest.mark.parametrize("c", [1.0, 0.1, -0.6])
def test_is_what_scipy_finds(plain, c):
    eager(plain)
    args = spring(c)
    S = plain.to_numpy(dare(*map(plain.asarray, args)))
    expected = linalg.solve_discrete_are(*args)
    np.testing.assert_allclose(S, expected, rtol=1e-12)
    A, B, _, R = args
    K = np.linalg.solve(R + B.T @ expected @ B, B.T @ expected @ A)
    np.testing.assert_allclose(plain.to_numpy(lqr_gain(*map(plain.asarray, args))), K, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n", range(2, 13))
def test_gradients(engine, n):
    """dS/dA, dS/dB, dS/dQ, dS/dR: against finite differences within 1e-7, and the analytic form within 1e-9."""
    if engine.name not in ("numpy", "torch") and n != FEW.get(engine.name, 2):
        pytest.skip("NumPy and torch take every size, the others one")
    check_gradients(engine, n)


@pytest.mark.slow
def test_gradients_of_many_states(engine):
    check_gradients(engine, 12)


def check_gradients(engine, n):
    args = system(n, 1 + n // 3, seed=n)
    V = np.random.default_rng(2).standard_normal((n, n))
    _, analytic = dil.backend("numpy").module.vjp(lambda *xs: (dare(*xs, gradient="analytic"),), *args)
    expected = analytic((V,))
    _, found = engine.gradients(dare, args, V)
    _, written = engine.gradients(lambda *xs: dare(*xs, gradient="analytic"), args, V) if n == 2 else (None, expected)
    for i, (d, slope) in enumerate(zip(direction(args), slopes(args, V), strict=True)):
        scale = np.sum(np.abs(found[i] * d))
        assert abs(np.sum(found[i] * d) - slope) <= 1e-7 * scale, NAMES[i]
        for other in (expected, written):
            assert np.abs(found[i] - other[i]).max() <= 1e-9 * np.abs(other[i]).max(), NAMES[i]


@pytest.mark.parametrize("name", KRYLOV)
def test_krylov_gradients(plain, name):
    """Conjugate gradients on the normal equations, as the paper has it, and GMRES agree with the naive inverse."""
    if plain.backend == "jax":
        pytest.skip("the iterations are the same on JAX, which compiles each")
    args, V = system(6, 2, seed=3), np.random.default_rng(2).standard_normal((6, 6))
    _, found = plain.gradients(lambda *xs: dare(*xs, linear_solver=KRYLOV[name]), args, V)
    _, naive = plain.gradients(lambda *xs: dare(*xs, linear_solver=dil.linear.Direct()), args, V)
    for a, b in zip(found, naive, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


@pytest.mark.parametrize("gradient", ["implicit", "analytic"])
def test_forward_mode_and_second_derivatives(gradient):
    args, V = system(3, 2, seed=4), np.random.default_rng(2).standard_normal((3, 3))
    directions = direction(args)
    _, tangent = dil.jvp(lambda *xs: dare(*xs, gradient=gradient), args, tuple(directions))
    assert np.sum(V * tangent) == pytest.approx(sum(slopes(args, V)), rel=1e-7)

    def slope(A):
        return np.sum(dil.grad(lambda A: np.sum(V * dare(A, *args[1:], gradient=gradient)))(A) * directions[0])

    bend = np.sum(dil.grad(slope)(args[0]) * directions[0])
    step = 1e-5
    assert bend == pytest.approx(
        (slope(args[0] + step * directions[0]) - slope(args[0] - step * directions[0])) / (2 * step), rel=1e-6
    )


@pytest.mark.parametrize("gradient", ["implicit", "analytic"])
def test_forward_mode_in_each_argument(gradient):
    """Against finite differences, on torch, which takes the formula of the tangent; `dil.jvp` takes pullbacks alone."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    args, V = system(3, 2, seed=4), np.random.default_rng(2).standard_normal((3, 3))
    tensors = [torch.asarray(x) for x in args]
    for i, (d, slope) in enumerate(zip(direction(args), slopes(args, V), strict=True)):

        def of_one(x, i=i):
            return dare(*tensors[:i], x, *tensors[i + 1 :], gradient=gradient)

        _, found = torch.func.jvp(of_one, (tensors[i],), (torch.asarray(d),))
        assert np.sum(V * found.numpy()) == pytest.approx(slope, rel=1e-7), NAMES[i]


def test_batches(plain):
    """Every system by itself, with an R that they share."""
    if plain.backend == "jax":
        pytest.skip("JAX compiles it for half a minute")
    A, B, Q, R = system(3, 2, seed=5, batch=(2, 2))
    V = np.random.default_rng(2).standard_normal((2, 2, 3, 3))
    R = R[0, 0]
    S, grads = plain.gradients(dare, (A, B, Q, R), V)
    shared = np.zeros_like(R)
    for i in np.ndindex(2, 2):
        one, alone = dil.vjp(dare, A[i], B[i], Q[i], R)
        np.testing.assert_allclose(S[i], one, rtol=1e-10)
        own = alone(V[i])
        for j in range(3):
            np.testing.assert_allclose(grads[j][i], own[j], rtol=1e-8, atol=1e-9)
        shared += own[3]
    np.testing.assert_allclose(grads[3], shared, rtol=1e-8)


def test_the_finite_horizon(plain):
    """The gains minimise the sum: no gradient is left in the controls; over many steps they become the infinite one."""
    A, B, Q, R = system(3, 2, seed=6)
    x0, H = np.asarray([1.0, -1.0, 0.5]), 4
    final = 2.0 * np.eye(3)
    gains = plain.to_numpy(lqr_gain(*map(plain.asarray, (A, B, Q, R)), horizon=H, final=plain.asarray(final)))
    assert gains.shape == (H, 2, 3)

    def total(u):
        x, value = x0, 0.0
        for t in range(H):
            value = value + x @ Q @ x + u[t] @ R @ u[t]
            x = A @ x + B @ u[t]
        return value + x @ final @ x

    x, u = x0, []
    for K in gains:
        u.append(-K @ x)
        x = A @ x + B @ u[-1]
    slope = dil.grad(total)(np.stack(u))
    assert np.abs(slope).max() <= 1e-12 * total(np.stack(u))
    if plain.backend == "numpy":
        far = lqr_gain(A, B, Q, R, horizon=60)
        np.testing.assert_allclose(far[0], lqr_gain(A, B, Q, R), rtol=1e-9)
        # the same number by both: the finite one is differentiated by its steps, the infinite by the theorem
        V = np.random.default_rng(2).standard_normal((2, 3))
        steps = dil.grad(lambda A: np.sum(V * lqr_gain(A, B, Q, R, horizon=60)[0]))(A)
        np.testing.assert_allclose(dil.grad(lambda A: np.sum(V * lqr_gain(A, B, Q, R)))(A), steps, rtol=1e-8)


def rotated(angle, *matrices):
    c, s = np.cos(angle), np.sin(angle)
    T = np.asarray([[c, -s], [s, c]])
    return [T @ M @ T.T if M.shape == (2, 2) else T @ M for M in matrices]


TURN = rotated(0.3, np.eye(2))[0] @ np.asarray([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
FREE = rotated(0.3, np.asarray([[1.0, 1.0], [0.0, 1.0]]), np.asarray([[0.0], [1.0]]), np.diag([0.0, 1.0]))
JORDAN = np.eye(3) + np.diag([1.0, 1.0], 1)

BAD = {
    "unseen rotation": (TURN, [[1.0], [0.0]], np.zeros((2, 2)), [[1.0]], "UNDETECTABLE"),
    "free position": (*FREE, [[1.0]], "UNDETECTABLE"),
    "unmoved Jordan block": (JORDAN, [[1.0], [0.0], [0.0]], np.eye(3), [[1.0]], "UNSTABILISABLE"),
    "unstabilisable": ([[1.2, 0.0], [0.0, 0.5]], [[0.0], [1.0]], np.eye(2), [[1.0]], "UNSTABILISABLE"),
    "undetectable": ([[1.0, 0.0], [0.0, 0.5]], [[1.0], [1.0]], np.diag([0.0, 1.0]), [[1.0]], "UNDETECTABLE"),
    "Q": ([[0.5, 0.0], [0.0, 0.5]], [[1.0], [1.0]], np.diag([1.0, -0.1]), [[1.0]], "NOT_CONVEX"),
    "R": ([[0.5, 0.0], [0.0, 0.5]], [[1.0], [1.0]], np.eye(2), [[0.0]], "NOT_CONVEX"),
    "NaN": ([[np.nan, 0.0], [0.0, 0.5]], [[1.0], [1.0]], np.eye(2), [[1.0]], "NON_FINITE"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("gradient", ["implicit", "analytic"])
def test_systems_without_a_solution(plain, name, gradient):
    if plain.backend == "jax" and gradient == "analytic":
        pytest.skip("JAX takes the other")
    *args, word = BAD[name]
    args = [plain.asarray(x) for x in args]
    with pytest.raises(dil.ConvergenceError, match=f"dare: forward solve: {word}"):
        dare(*args, gradient=gradient)
    S = dare(*args, gradient=gradient, on_failure="nan")
    assert np.isnan(plain.to_numpy(S)).all()


def turned(A, B, Q, seed):
    T = np.linalg.qr(np.random.default_rng(seed).standard_normal(A.shape))[0]
    return T @ A @ T.T, T @ B, T @ Q @ T.T


def test_a_finite_horizon_without_a_least_cost(plain):
    A, B, Q, R = (plain.asarray(x) for x in system(3, 2))
    with pytest.raises(Exception, match="lqr_gain: recursion: NOT_CONVEX: no control minimises the cost"):
        np.asarray(plain.to_numpy(lqr_gain(A, B, Q, -5.0 * R, horizon=3)))
    zero = 0.0 * R  # a last step without any cost is flat, one before it need not be
    with pytest.raises(Exception, match="NOT_CONVEX"):
        np.asarray(plain.to_numpy(lqr_gain(A, B, Q, zero, horizon=3)))
    assert np.isfinite(plain.to_numpy(lqr_gain(A, B, Q, zero, horizon=3, final=Q))).all()
    gains = plain.to_numpy(lqr_gain(A, B, Q, np.nan * R, horizon=3, on_failure="nan"))
    assert np.isnan(gains).all()


def test_a_cost_that_is_singular_to_rounding_has_no_least_control():
    """The eigenvalues of R are 2 and 6e-8, which float32 cannot tell from zero."""
    near = 1.0 - 2.0**-24
    given = (np.eye(2), np.eye(2), np.eye(2), np.asarray([[1.0, near], [near, 1.0]]))
    with pytest.raises(dil.ConvergenceError, match="NOT_CONVEX"):
        lqr_gain(*(x.astype("float32") for x in given), horizon=1)


@pytest.mark.parametrize("gradient", ["implicit", "analytic"])
@pytest.mark.parametrize("seed", range(8))
def test_causes_are_seen_in_every_basis(gradient, seed):
    """SciPy returns a matrix for many of these, which solves the equation or not."""
    draw = np.random.default_rng(seed)
    A, C = 0.5 * np.triu(draw.standard_normal((2, 2))), draw.standard_normal((2, 2))
    A[0, 0], C[:, 0] = 1.0, 0.0
    unseen = turned(A, draw.standard_normal((2, 2)), C.T @ C, seed)
    drifting = turned(np.asarray([[1.0, 0.1], [0.0, 1.0]]), np.asarray([[0.0], [0.1]]), np.diag([0.0, 1.0]), seed)
    for A, B, Q in (unseen, drifting):
        with pytest.raises(dil.ConvergenceError, match="UNDETECTABLE"):
            dare(A, B, Q, np.eye(B.shape[1]), gradient=gradient)
    chain = 1.3 * np.eye(3) + np.diag(np.ones(2), 1)
    A, B, Q = turned(chain, np.asarray([[1.0], [0.0], [0.0]]), np.eye(3), seed)
    with pytest.raises(dil.ConvergenceError, match="UNSTABILISABLE"):
        dare(A, B, Q, np.eye(1), gradient=gradient)


def test_what_rounding_leaves_unsolved_is_no_solution():
    A, B = np.asarray([[1.0, 0.1], [0.0, 1.0]]), np.asarray([[0.0], [0.1]])
    with pytest.raises(dil.ConvergenceError, match="dare: forward solve: FAILED"):
        dare(A, B, np.eye(2), 1e40 * np.eye(1))


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_units_of_states_and_controls_make_no_difference(unit):
    A, B, Q, R = np.asarray([[1.0, 0.1], [0.0, 1.0]]), np.asarray([[0.0], [0.1]]), np.eye(2), np.eye(1)
    S = linalg.solve_discrete_are(A, B, Q, R)
    D, back = np.diag([1.0, unit]), np.diag([1.0, 1.0 / unit])
    np.testing.assert_allclose(D @ dare(D @ A @ back, D @ B, back @ Q @ back, R) @ D, S, rtol=1e-9)
    np.testing.assert_allclose(dare(A, unit * B, Q, unit**2 * R), S, rtol=1e-9)


@pytest.mark.parametrize("unit", [1.0, 1e4, 1e8])
def test_units_of_states_make_no_difference_to_the_cause(unit):
    """The position costs nothing, in metres or in tens of nanometres."""
    A, B = np.asarray([[1.0, unit], [0.0, 1.0]]), np.asarray([[0.0], [1.0]])
    assert solve_one(A, B, np.diag([0.0, 1.0]), np.eye(1))[1] == Status.UNDETECTABLE
    assert solve_one(A.T, B, np.diag([0.0, 1.0]), np.eye(1))[1] == Status.UNSTABILISABLE


def test_a_matrix_that_misses_the_equation_is_no_solution():
    """With dear controls of an unstable system SciPy returns matrices that are wrong by a few percent."""
    A, B, Q = np.asarray([[-33.0, -12.0], [6.0, -14.0]]), np.asarray([[0.6], [-0.6]]), np.eye(2)
    for power in range(13):
        R = 10.0**power * np.eye(1)
        S, status = solve_one(A, B, Q, R)
        assert power > 6 or status == Status.CONVERGED
        if status == Status.CONVERGED:
            terms = A.T @ S @ A, A.T @ S @ B @ np.linalg.solve(R + B.T @ S @ B, B.T @ S @ A), S, Q
            missed = terms[0] - terms[1] - terms[2] + terms[3]
            assert np.abs(missed).max() <= 2e-3 * max(np.abs(term).max() for term in terms)


def test_one_bad_system_leaves_the_others(plain):
    eager(plain)
    A = np.stack([0.5 * np.eye(2), np.diag([1.2, 0.5])])
    B, Q, R = np.asarray([[0.0], [1.0]]), np.eye(2), np.eye(1)
    with pytest.warns(dil.ConvergenceWarning, match=r"1 of 2 problems \(the first at 1\) ended UNSTABILISABLE"):
        S = plain.to_numpy(dare(*map(plain.asarray, (A, B, Q, R)), on_failure="warn"))
    np.testing.assert_allclose(S[0], linalg.solve_discrete_are(A[0], B, Q, R), rtol=1e-12)
    assert np.isnan(S[1]).all()


def test_a_bad_system_is_named_under_jit():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    args = [jax.numpy.asarray(x) for x in BAD["unstabilisable"][:4]]
    with pytest.raises(Exception, match="UNSTABILISABLE"):
        jax.block_until_ready(jax.jit(dare)(*args))


def test_what_does_not_belong_together():
    A, B, Q, R = system(3, 2)
    with pytest.raises(dil.ShapeError, match=r"Q \(2, 2\).*expected A \(\*batch, n, n\)"):
        dare(A, B, np.eye(2), R)
    with pytest.raises(dil.ShapeError, match=r"B \(3,\)"):
        dare(A, B[:, 0], Q, R)
    with pytest.raises(dil.ShapeError, match="leading dimensions that broadcast"):
        dare(np.stack([A] * 2), np.stack([B] * 3), Q, R)
    with pytest.raises(dil.ShapeError, match=r"A \(0, 0\), B \(0, 1\)"):
        dare(np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((0, 0)), np.eye(1))
    with pytest.raises(dil.DTypeError, match="cast them to one"):
        dare(A, B.astype("float32"), Q, R)
    for dtype in ("float16", "int64"):
        with pytest.raises(dil.DTypeError, match=f"have dtype {dtype}; expected float32 or float64"):
            lqr_gain(*(x.astype(dtype) for x in (A, B, Q, R)), horizon=2)
    for final, error, text in (
        (3.0, dil.DTypeError, "final=3.0 of type float; expected an array like Q"),
        (np.eye(3, dtype="float32"), dil.DTypeError, "final has dtype float32, but Q has float64"),
        (np.eye(2), dil.ShapeError, r"final has shape \(2, 2\); expected \(3, 3\)"),
        (np.stack([np.eye(3)] * 2), dil.ShapeError, r"final has shape \(2, 3, 3\); expected \(3, 3\)"),
    ):
        with pytest.raises(error, match=text):
            lqr_gain(A, B, Q, R, horizon=2, final=final)
    with pytest.raises(dil.OptionError, match="gradient='naive' is unknown"):
        dare(A, B, Q, R, gradient="naive")
    with pytest.raises(dil.OptionError, match="linear_solver= is for gradient='implicit'"):
        dare(A, B, Q, R, gradient="analytic", linear_solver=dil.linear.Direct())
    with pytest.raises(dil.OptionError, match="horizon=0; expected an integer >= 1"):
        lqr_gain(A, B, Q, R, horizon=0)
    with pytest.raises(dil.OptionError, match="needs horizon="):
        lqr_gain(A, B, Q, R, final=Q)
    with pytest.raises(dil.OptionError, match="for the infinite horizon"):
        lqr_gain(A, B, Q, R, horizon=2, gradient="analytic")
    with pytest.raises(dil.ShapeError, match=r"final has shape \(2, 2\)"):
        lqr_gain(A, B, Q, R, horizon=2, final=np.eye(2))


def test_only_the_symmetric_part_counts(plain):
    eager(plain)
    A, B, Q, R = system(3, 2, seed=7)
    skew = np.asarray([[0.0, 1.0, 2.0], [-1.0, 0.0, 3.0], [-2.0, -3.0, 0.0]])
    S, same = (plain.to_numpy(dare(*map(plain.asarray, (A, B, X, R)))) for X in (Q, Q + skew))
    np.testing.assert_allclose(same, S, rtol=1e-12)


@pytest.mark.parametrize("unit", [1e-12, 1e-9, 1e9, 1e12])
def test_controls_may_have_any_unit(unit):
    A, B, Q = np.asarray([[1.1, 0.3], [0.0, 0.7]]), np.asarray([[0.0, 0.2], [1.0, 0.1]]), np.eye(2)
    expected, status = solve_one(A, B, Q, np.eye(2))
    for units in ([unit, unit], [unit, 1.0], [unit, 1.0 / unit]):
        S, status = solve_one(A, B * units, Q, np.diag(units) ** 2)
        assert status == Status.CONVERGED
        np.testing.assert_allclose(S, expected, rtol=1e-12)
    S, status = solve_one(A, B, unit * Q, unit * np.eye(2))
    np.testing.assert_allclose(S, unit * expected, rtol=1e-12)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("seed", range(4))
def test_an_uncontrolled_mode_is_seen_beside_the_rounding_of_any_size(size, seed):
    Q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    A = size * Q @ np.diag([3.0, 2.0, 1.5]) @ Q.T
    assert not _controllable(A, Q[:, 1:], outside=True)
    assert _controllable(A, Q[:, :1] + Q[:, 1:2] + Q[:, 2:], outside=True)
