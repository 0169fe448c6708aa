"""What is told of a point that is not stationary, of right-hand sides and of Hessians of every kind."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from messages import (
    NEWTON,
    V,
    X,
    bowl,
    bowls,
    jax_,
    pulled,
    quartic,
    solved,
    zeros,
)

SCALES = [1e-6, 1e-3, 1.0, 1e3, 1e6]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("solver", [NEWTON, dil.solvers.GradientDescent()], ids=lambda s: type(s).__name__)
def test_no_false_alarm_over_scales_of_the_unknown(eager, solver, scale):
    """A warning is an error here."""
    (g,) = pulled(eager, dil.argmin(quartic, solver, init=zeros), scale * X)
    assert np.isfinite(g).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("solver", [NEWTON, dil.solvers.GradientDescent()], ids=lambda s: type(s).__name__)
def test_no_false_alarm_over_scales_of_the_score(eager, solver, scale):
    layer = dil.argmin(lambda u, x: scale * quartic(u, x), solver, init=zeros)
    np.testing.assert_allclose(pulled(eager, layer, X)[0][1], V[1] / 4.0, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_a_solution_that_is_half_off_is_told(eager, scale):
    layer = dil.argmin(bowl, lambda fun, init, x: 1.5 * x)
    with pytest.warns(dil.ConvergenceWarning, match="backward solve: NOT_STATIONARY: .*run the forward solver"):
        pulled(eager, layer, scale * X)


@pytest.mark.parametrize("unit", [1e-100, 1e-9, 1.0, 1e100])
def test_the_measure_of_stationarity_is_the_size_of_u(eager, unit):
    """A step within 1 % of u counts, in any unit."""
    pulled(eager, dil.argmin(bowl, lambda fun, init, x: x * (1 + 1e-4)), unit * X)
    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
        pulled(eager, dil.argmin(bowl, lambda fun, init, x: x * (1 + 3e-2)), unit * X)


def half_off(fun, init, x):
    return 1.5 * x


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_not_stationary_is_told_whatever_the_size_of_the_cotangent(name, dtype, scale):
    pytest.importorskip(name)
    handle = dil.backend(name, dtype=dtype)
    _, pull = dil.vjp(dil.argmin(bowl, half_off), handle.asarray(X))
    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
        pull(handle.asarray(scale * V))


@pytest.mark.parametrize("name", ["numpy", "torch", "array_api_strict", "jax"])
def test_a_cotangent_whose_solution_underflows_is_no_failure(name):
    pytest.importorskip(name)
    handle = dil.backend(name, dtype="float64")
    layer = dil.argmin(steep, solved, on_failure="raise")
    (g,) = dil.vjp(layer, handle.asarray(X))[1](handle.asarray(np.full(2, 5e-324)))
    assert np.abs(handle.to_numpy(g)).max() <= 5e-324


def steep(u, x):
    return 3.0 * array_namespace(u).sum((u - x) ** 2)


@pytest.mark.parametrize("name", ["numpy", "torch", "array_api_strict", "jax"])
@pytest.mark.parametrize("error", [1e-7, 0.5])
@pytest.mark.parametrize("size", [1e-32, 1e32])
def test_a_score_whose_gradient_has_squares_beyond_the_dtype_is_judged_like_any_other(name, error, size):
    pytest.importorskip(name)
    handle = dil.backend(name, dtype="float32")

    def score(u, x):
        return size * array_namespace(u).sum((u - x) ** 2)

    layer = dil.argmin(score, lambda fun, init, x: (1.0 + error) * x, on_failure="raise")
    _, pull = dil.vjp(layer, handle.asarray(X))
    if error > 0.01:
        with pytest.raises(Exception, match="NOT_STATIONARY"):
            np.asarray(pull(handle.asarray(V))[0])
    else:
        np.testing.assert_allclose(handle.to_numpy(pull(handle.asarray(V))[0]), V, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["numpy", "torch", "array_api_strict"])
def test_tiny_and_huge_cotangents_lose_nothing(name, dtype, scale):
    pytest.importorskip(name)
    handle = dil.backend(name, dtype=dtype)
    _, pull = dil.vjp(dil.argmin(quartic, NEWTON, init=zeros), handle.asarray(X))
    unit, scaled = (handle.to_numpy(pull(handle.asarray(s * V))[0]) for s in (1.0, scale))
    tolerance = 10 * np.finfo(dtype).eps ** 0.75
    np.testing.assert_allclose(scaled.astype("float64") / scale, unit, rtol=tolerance)


def test_tiny_cotangents_lose_nothing_on_jax():
    jax = jax_()
    x = jax.numpy.asarray(X, dtype="float32")
    _, pull = dil.vjp(dil.argmin(quartic, NEWTON, init=zeros), x)
    np.testing.assert_allclose(pull(1e-30 * (x / x))[0] / 1e-30, pull(x / x)[0], rtol=1e-4)


@dataclasses.dataclass
class Counting:
    """CG that counts its products with the Hessian."""

    products: int = 0

    def __call__(self, matvec, b, /, *, loop):
        def counted(p):
            self.products += 1
            return matvec(p)

        return dil.linear.CG()(counted, b, loop=loop)


def test_a_zero_cotangent_costs_no_product_and_gives_exact_zeros(eager):
    counting = Counting()
    layer = dil.argmin(quartic, NEWTON, init=zeros, linear_solver=counting)
    (g,) = pulled(eager, layer, X, cotangent=[0.0, 0.0])
    assert counting.products == 0
    np.testing.assert_array_equal(g, [0.0, 0.0])


def test_a_zero_right_hand_side_of_cg(plain):
    found = dil.linear.CG()(lambda p: 2.0 * p, plain.asarray([[0.0, 0.0], [1.0, 0.0]]))
    assert plain.to_numpy(found.iterations).tolist() == [0, 1]
    np.testing.assert_array_equal(plain.to_numpy(found.value), [[0.0, 0.0], [0.5, 0.0]])


def weighted(*h, linear_solver=None):
    """1/2 sum h (u - x)^2, with Hessian diag(h), solved by u = x."""

    def score(u, x):
        return 0.5 * sum(k * (u[i] - x[i]) ** 2 for i, k in enumerate(h))

    return dil.argmin(score, solved, on_failure="raise", linear_solver=linear_solver)


def first_only(u, x):
    return 0.5 * (u[0] - x[0]) ** 2


def almost_flat(u, x):
    """The curvature along (1, -1) is 1e-18 of that along (1, 1): the directions are no units of the entries."""
    e, d = u[0] + u[1] - x[0] - x[1], u[0] - u[1] - x[0] + x[1]
    return 0.5 * (e**2 + 1e-18 * d**2)


def constant(u, x):
    return array_namespace(x).sum(x)


CONSISTENT = {
    "other units": (weighted(1.0, 1e-18), [1.0, 2.0]),
    "singular": (dil.argmin(first_only, solved), [2.0, 0.0]),
    "indefinite": (weighted(1.0, -1.0, linear_solver=dil.linear.CG()), [2.0, 0.0]),
    "no dependence": (dil.argmin(constant, solved), [0.0, 0.0]),
}


@pytest.mark.parametrize("kind", CONSISTENT)
def test_a_cotangent_that_does_not_meet_the_defect_of_the_hessian(plain, kind):
    layer, cotangent = CONSISTENT[kind]
    if plain.backend == "jax" and kind == "no dependence":
        pytest.skip("JAX solves with one program in both modes, and in forward mode a zero system is degenerate")
    (g,) = pulled(plain, layer, X, cotangent=cotangent)
    np.testing.assert_allclose(g, cotangent)


def fourth_power(u, x):
    return 0.25 * array_namespace(u).sum((u - x) ** 4)


def cubic(u, x):
    return (u - x) ** 3


@pytest.mark.parametrize("layer", [dil.argmin(fourth_power, solved), dil.root(cubic, solved)], ids=["argmin", "root"])
def test_a_degenerate_solution_is_told_in_forward_mode(plain, layer):
    """dF/du and dF/dx both vanish, so the system 0 dy = 0 has the solution zero, but dy/dx is one."""
    with pytest.warns(dil.ConvergenceWarning, match="SINGULAR"):
        plain.tangent(layer, (X,), (np.ones(2),))


def test_a_direction_in_which_nothing_moves_is_no_degenerate_solution(plain):
    moved = plain.tangent(dil.argmin(bowl, solved), (X,), (np.zeros(2),))
    np.testing.assert_array_equal(moved, [0.0, 0.0])


def bent(u, x):
    """The derivative of u[0] in x[0] is (u[1] - 3)^2, and no unknown but u[0] is in its equation to first order."""
    xp = array_namespace(u)
    return xp.stack([u[0] - (u[1] - 3.0) ** 2 * x[0] - 1.0, u[1] - x[1]])


def test_an_error_that_the_loss_does_not_see_to_first_order_is_told(eager):
    """u[1] is 3 and not 4, so the derivative is 0 and not 1, though F is orthogonal to the solution of the system."""
    layer = dil.root(bent, lambda *_: eager.asarray([1.0, 3.0]), linear_solver=dil.linear.GMRES(), on_failure="raise")
    with pytest.raises(dil.ConvergenceError, match="backward solve: NOT_STATIONARY"):
        pulled(eager, layer, [1.0, 4.0], cotangent=[1.0, 0.0])


def test_the_number_of_unknowns_hides_no_error_in_forward_mode(eager):
    """All 20,000 are 5 % off, and so are their derivatives."""
    n = 20_000
    layer = dil.root(lambda u, t: u * u - t, lambda f, i, t: 1.05 * t**0.5, on_failure="raise")
    with pytest.raises(dil.ConvergenceError, match="backward solve: NOT_STATIONARY"):
        eager.tangent(layer, (np.ones(n),), (np.ones(n),))


def refined(score, y, *, status=dil.Status.CONVERGED):
    layer = dil.argmin(score, lambda *_: dil.Solution(np.asarray(y), status), linear_solver=dil.linear.CG(), refine=1)
    return dil.Status(int(layer.solve(np.ones(len(y))).status)).name


def test_a_solution_that_could_not_be_refined_has_the_status_of_its_linear_solve():
    """Where the Hessian is -1, 0 and NaN. What the solver said of a failure stays."""

    def undefined(u, x):
        return np.sum(x * u * float("nan"))

    hill, line = (lambda u, x: -bowl(u, x)), (lambda u, x: np.sum(x * u) + 0.0 * np.sum(u**2))
    ends = {"INDEFINITE": hill, "SINGULAR": line, "NON_FINITE": undefined}
    for name, score in ends.items():
        assert refined(score, [3.0, 3.0]) == name
        assert refined(score, [3.0, 3.0], status=dil.Status.MAX_ITER) == "MAX_ITER"


DEFECTS = {
    "singular": (dil.argmin(first_only, solved, on_failure="raise"), [0.0, 1.0], "SINGULAR"),
    "singular, in part": (dil.argmin(first_only, solved, on_failure="raise"), [1.0, 1.0], "SINGULAR"),
    "zero": (dil.argmin(constant, solved, on_failure="raise"), [1.0, 0.0], "SINGULAR"),
    "nearly singular": (dil.argmin(almost_flat, solved, on_failure="raise"), [1.0, 2.0], "SINGULAR"),
    "negative": (weighted(1.0, -1.0), [0.0, 1.0], "NOT_MINIMUM"),
    "saddle": (weighted(1.0, -1.0), [2.0, 1.0], "NOT_MINIMUM"),
    "maximum": (weighted(-1.0, -1.0), [1.0, 0.0], "NOT_MINIMUM"),
    "negative, large": (weighted(1.0, -1.0, linear_solver=dil.linear.Auto(dense=0)), [0.0, 1.0], "NOT_MINIMUM"),
    "negative, by CG": (weighted(1.0, -1.0, linear_solver=dil.linear.CG()), [0.0, 1.0], "INDEFINITE"),
    **{
        f"saddle, by {name}": (
            weighted(1.0, -1.0, linear_solver=getattr(dil.linear, name)()),
            [2.0, 1.0],
            "NOT_MINIMUM",
        )
        for name in ("MINRES", "GMRES", "IDR", "BiCGSTAB", "NormalCG")
    },
    "saddle, by CG": (weighted(1.0, -1.0, linear_solver=dil.linear.CG()), [2.0, 1.0], "INDEFINITE"),
}


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_hessian_that_is_not_positive_definite(eager, kind):
    layer, cotangent, status = DEFECTS[kind]
    with pytest.raises(dil.ConvergenceError, match=f"backward solve: {status}: "):
        pulled(eager, layer, X, cotangent=cotangent)


def test_a_saddle_seen_along_a_direction_of_no_curvature_is_not_called_converged(eager):
    with pytest.raises(dil.ConvergenceError, match=r"backward solve: NOT_MINIMUM"):
        pulled(eager, weighted(1.0, -1.0), X, cotangent=[1.0, 1.0])


BAD = {"NaN": (np.nan, 1.0), "indefinite": (2.0, -1.0), "singular": (2.0, 0.0)}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_problem_leaves_the_others_right(plain, kind):
    """The minimiser x of row k solves x + x^3 = c; the bad row is the second."""
    draw = np.random.default_rng(0)
    y, h, v = draw.standard_normal((4, 2)), draw.uniform(1.0, 2.0, (4, 2)), draw.standard_normal((4, 2))
    if kind == "NaN":
        y[1, 0] = np.nan
    h[1] *= 1.0 if kind == "NaN" else BAD[kind]
    layer = dil.argmin(bowls, lambda fun, init, x, h: 1.0 * init, batch_ndim=1, on_failure="nan")
    start = plain.asarray(y)
    found, (gx, _) = plain.gradients(lambda x, h: layer(x, h, init=start), (y + y**3, h), v)
    good = [0, 2, 3]
    np.testing.assert_allclose(found[good], y[good], rtol=1e-12)
    np.testing.assert_allclose(gx[good], (v / (1.0 + 3.0 * y**2))[good], rtol=1e-12)
    assert np.isnan(gx[1]).any()


def test_one_bad_problem_leaves_the_solver_of_the_others_alone(eager):
    x = np.asarray([[1.0, 2.0], [np.nan, 1.0], [3.0, 4.0]])
    layer = dil.argmin(bowls, NEWTON, init=zeros, batch_ndim=1)
    h = np.ones((3, 2))
    spoilt = eager.to_numpy(layer.solve(eager.asarray(x), eager.asarray(h)).value)
    alone = eager.to_numpy(layer.solve(eager.asarray(x[[0, 2]]), eager.asarray(h[:2])).value)
    np.testing.assert_allclose(spoilt[[0, 2]], alone, rtol=1e-12)
