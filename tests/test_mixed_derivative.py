"""A gradient that would be zero because a function in a score keeps no graph is refused, and no other zero is."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil._base.scale import scale_of
from dil._problem.mixed_derivative import lost_arguments

T = np.asarray([1.0, -0.5, 2.0])
DTYPES = ["float32", "float64"]


class Product:
    """The rule of theta * u. `cut` may take the arguments out of the graph of its derivative."""

    def __init__(self, cut):
        self.cut = cut

    def pullback(self, args, y, cotangents, wrt):
        theta, u = map(self.cut, args)
        (v,) = cotangents
        return [(v * u, v * theta)[i] for i in wrt]

    def pushforward(self, args, y, tangents):
        theta, u = map(self.cut, args)
        zero = 0.0 * theta
        dtheta, du = (zero if t is None else t for t in tangents)
        return (u * dtheta + theta * du,)


def linear_in_product(engine, cut):
    """0.5 |u|^2 - <theta, u>, whose minimum is theta."""
    module = dil.backend(engine.backend).module
    product = module.implicit(lambda theta, u: (theta * u,), Product(module.constant if cut else lambda x: x))

    def score(u, theta):
        xp = array_namespace(u)
        return 0.5 * xp.sum(u * u) - xp.sum(product(theta, u)[0])

    return score


def layer_of(score, **options):
    return dil.argmin(score, dil.solvers.Newton(), init=lambda t, *rest: 0.0 * t, **options)


def test_a_gradient_that_would_be_zero_is_refused_at_each_pass(eager):
    if eager.name == "array_api_strict":
        pytest.skip("these arrays stand for those of a compiled program, whose numbers cannot be read")
    for policy in ("warn", "raise", "nan"):
        layer = layer_of(linear_in_product(eager, cut=True), on_failure=policy)
        for _ in range(2):
            with pytest.raises(dil.SecondDerivativeError, match=r"argument 0 would be zero by mistake.*derivatives="):
                eager.gradients(layer, (T,), T)


def test_the_gradient_with_a_graph_is_right(eager):
    _, (g,) = eager.gradients(layer_of(linear_in_product(eager, cut=False), on_failure="raise"), (T,), T)
    np.testing.assert_allclose(g, T, rtol=1e-12)


def test_the_value_needs_no_mixed_derivative(eager):
    layer = layer_of(linear_in_product(eager, cut=True), on_failure="raise")
    np.testing.assert_allclose(eager.to_numpy(layer(eager.asarray(T))), T, rtol=1e-12)


@pytest.mark.parametrize("options", [{"check_smoothness": "never"}, {"on_failure": "ignore"}], ids=str)
def test_what_is_meant_is_not_told(eager, options):
    _, (g,) = eager.gradients(layer_of(linear_in_product(eager, cut=True), **options), (T,), T)
    np.testing.assert_array_equal(g, 0.0 * T)


def test_a_report_shows_it(eager):
    if eager.name == "array_api_strict":
        pytest.skip("these arrays stand for those of a compiled program, whose numbers cannot be read")
    for cut, status in ((True, Status.WRONG_DERIVATIVE), (False, Status.CONVERGED)):
        report = layer_of(linear_in_product(eager, cut=cut)).report(eager.asarray(T))
        assert Status(int(report.backward.status)) is status


def test_another_wanted_argument_is_looked_at_anew():
    """The first pass wants the gradient in the second argument alone, and says nothing of the first one."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    module = dil.backend("torch").module
    product = module.implicit(lambda theta, u: (theta * u,), Product(module.constant))
    layer = layer_of(lambda u, theta, x: 0.5 * ((u - x) ** 2).sum() - product(theta, u)[0].sum())
    theta, x = torch.asarray(T), torch.asarray(T)
    x.requires_grad_()
    torch.autograd.grad(layer(theta, x).sum(), x)
    torch.func.jvp(lambda x: layer(theta, x), (x.detach(),), (x.detach(),))
    theta.requires_grad_()
    with pytest.raises(dil.SecondDerivativeError, match="argument 0 would"):
        torch.autograd.grad(layer(theta, x).sum(), theta)


def test_a_score_that_passed_is_not_looked_at_again():
    calls = []

    def score(u, t):
        calls.append(1)
        return np.sum((u - t) ** 2)

    layer = layer_of(score)

    def evaluations():
        _, pull = dil.vjp(layer, T)
        del calls[:]
        pull(T)
        return len(calls)

    first, second, third = evaluations(), evaluations(), evaluations()
    assert second == third < first


# --- the look itself ---


def lost_at(score, u, *arguments):
    """Return the numbers of the arguments that are lost at u."""
    call, arrays = dil.argmin(score, lambda f, i, *rest: u).begin(arguments, {}, None)
    call.run(tuple(arrays))
    F, floats = call.problem().optimality(tuple(arrays))
    return [i - 1 for i in lost_arguments(F, u, floats, scale_of(u, None), range(1, 1 + len(floats)))]


def total(x):
    return array_namespace(x).sum(x)


def relu(x):
    """The derivative at zero is zero."""
    return array_namespace(x).where(x > 0, x, 0.0 * x)


def inner_part(u):
    xp = array_namespace(u)
    return xp.where(u > 0.5, u, 0.0 * u)


SILENT = {
    "no mixed derivative is zero": lambda u, t: total((u - t) ** 2),
    "detached": lambda u, t: total((u - dil.constant(t)) ** 2),
    "detached, and additive": lambda u, t: total((u - dil.constant(t)) ** 2) + total(t**3),
    "additive": lambda u, t: total(u**2) + total(t**2),
    "unused": lambda u, t: total(u**2),
    "squares": lambda u, t: total(t * u**2),
    "cubes": lambda u, t: total(t * u**3),
    "squares and a large constant": lambda u, t: 1e8 * total(t) + total(t * u**2),
    "absolute": lambda u, t: total(t * array_namespace(u).abs(u)),
    "relu": lambda u, t: total(t * relu(u)),
    "one relu of all": lambda u, t: t[0] * total(relu(u)),
    "relus that cancel": lambda u, t: t[0] * (relu(u[0]) - relu(u[1])),
    "many relus that cancel": lambda u, t: t[0] * (relu(u[0]) - relu(u[1]) + relu(-u[2])),
    "norm": lambda u, t: t[0] * array_namespace(u).linalg.vector_norm(u),
    "a mask of t": lambda u, t: total(array_namespace(u).where(t > 0, u, 0.0 * u) ** 2),
    "a mask of u": lambda u, t: total(array_namespace(u).where(u > 0, t, 0.0 * t)) + total(u**2),
    "a part that is masked": lambda u, t: total(t * inner_part(u)) + total(u**2),
    "rounded": lambda u, t: total(t * array_namespace(u).round(2.0 * array_namespace(u).tanh(u))) + total(u**2),
    "sign": lambda u, t: total(t * array_namespace(u).sign(u)) + total(u**2),
}


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", SILENT.values(), ids=SILENT)
def test_a_zero_that_is_right_is_not_told(score, dtype, backend):
    """At u = 0 kinks have the derivative zero, and so have squares."""
    module = dil.backend(backend).module
    for seed in range(4):
        t = np.random.default_rng(seed).standard_normal(3)
        for u in (0.0 * t, t, 1e-8 * t, 1e8 * t, np.asarray([0.0, 0.5, -0.5])):
            u_there, t_there = (module.asarray(x.astype(dtype)) for x in (u, t))
            assert lost_at(score, u_there, t_there) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("of_t", [1e-8, 1.0, 1e8])
def test_no_unit_hides_a_lost_argument(unit, of_t, dtype):
    module = dil.backend("torch").module
    product = module.implicit(lambda theta, u: (theta * u,), Product(module.constant))

    def score(u, t, x):
        return 0.5 * total((u / unit) ** 2) - total(product(t / of_t, u / unit)[0]) + total(u * x) / unit

    t, x = (module.asarray(np.asarray(T * scale, dtype=dtype)) for scale in (of_t, 1.0))
    for u in (unit * x, 0.0 * x):
        assert lost_at(score, u, t, x) == [0]
