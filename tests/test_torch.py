"""Layers inside torch: backward, double backward, forward mode, torch.func, custom Functions in the score."""

from __future__ import annotations

import gc

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import dil  # noqa: E402
from dil_backends.torch import function as torch_backend  # noqa: E402


def score(u, A, b):
    return 0.5 * (u * (A @ u)).sum() - (b * u).sum() + 0.25 * (u**4).sum()


LAYER = dil.argmin(score, dil.solvers.Newton(rtol=1e-11), init=lambda A, b: torch.zeros_like(b))


def symmetric(A, b):
    return LAYER(0.5 * (A + A.mT), b)


@pytest.fixture
def args():
    draw = np.random.default_rng(0)
    M = draw.standard_normal((4, 4))
    return torch.tensor(M @ M.T + np.eye(4)), torch.tensor(draw.standard_normal(4))


def test_gradcheck_and_gradgradcheck(args):
    leaves = [x.requires_grad_() for x in args]
    assert torch.autograd.gradcheck(symmetric, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(symmetric, leaves)


def test_hessian_is_not_silently_zero(args):
    A, b = args
    H = torch.autograd.functional.hessian(lambda b: (symmetric(A, b) ** 2).sum(), b)
    assert H.abs().max() > 1e-3
    twice = dil.grad(lambda b: (dil.grad(lambda b: (symmetric(A, b) ** 2).sum())(b) * torch.ones(4).double()).sum())(b)
    torch.testing.assert_close(H.sum(0), twice, rtol=1e-9, atol=0)


def test_torch_func(args):
    A, b = args
    expected = torch.autograd.functional.jacobian(lambda b: symmetric(A, b), b)
    direction = torch.ones_like(b)
    gradient = torch.func.grad(lambda b: symmetric(A, b).sum())(b)
    torch.testing.assert_close(gradient, expected.sum(0), rtol=1e-9, atol=0)
    _, pull = torch.func.vjp(lambda b: symmetric(A, b), b)
    torch.testing.assert_close(pull(direction)[0], expected.sum(0), rtol=1e-9, atol=0)
    _, moved = torch.func.jvp(lambda b: symmetric(A, b), (b,), (direction,))
    torch.testing.assert_close(moved, expected.sum(1), rtol=1e-9, atol=0)
    nested = torch.func.grad(lambda b: torch.func.grad(lambda b: (symmetric(A, b) ** 2).sum())(b).sum())(b)
    H = torch.autograd.functional.hessian(lambda b: (symmetric(A, b) ** 2).sum(), b)
    torch.testing.assert_close(nested, H.sum(0), rtol=1e-9, atol=0)


def test_only_what_is_asked_for(args, monkeypatch):
    A, b = args[0].requires_grad_(), args[1].requires_grad_()
    asked = []
    real = torch_backend.Implicit.backward

    def spy(ctx, *cotangents):
        asked.append(tuple(ctx.needs_input_grad[2:]))
        return real(ctx, *cotangents)

    monkeypatch.setattr(torch_backend.Implicit, "backward", staticmethod(spy))
    y = LAYER(A.detach(), b)
    (db,) = torch.autograd.grad(y.sum(), [b])
    assert db.shape == b.shape
    assert asked == [(False, True)]


class OldStyle(torch.autograd.Function):
    """A Function without setup_context, which torch.func refuses and plain autograd takes."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, ct):
        (x,) = ctx.saved_tensors
        return 2 * x * ct


def test_score_with_an_old_style_function():
    layer = dil.argmin(lambda u, t: OldStyle.apply(u - t).sum() + 0.5 * (u**2).sum(), lambda f, u0, t: t / 1.5)
    t = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(layer(t).sum(), t)
    torch.testing.assert_close(g, torch.full((3,), 1 / 1.5, dtype=torch.float64))


def test_solver_may_use_torch_optim():
    def solver(fun, u0, t):
        u = torch.zeros_like(t, requires_grad=True)
        optimiser = torch.optim.LBFGS([u], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14)

        def closure():
            optimiser.zero_grad()
            value = fun(u, t)
            value.backward()
            return value

        optimiser.step(closure)
        return u.detach()

    layer = dil.argmin(lambda u, t: ((u - t) ** 2).sum() + (u**4).sum(), solver)
    t = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(layer(t).sum(), t)
    y = layer(t).detach()
    torch.testing.assert_close(g, 2 / (2 + 12 * y**2), rtol=1e-6, atol=0)


def test_no_grad_only_solves(args):
    with torch.no_grad():
        y = LAYER(*args)
    assert not y.requires_grad


def test_nothing_leaks(args):
    A, b = args[0].requires_grad_(), args[1].requires_grad_()

    def once():
        torch.autograd.grad(LAYER(A, b).sum(), [A, b])

    def alive():
        return sum(type(x) is torch.Tensor for x in gc.get_objects())

    once()
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for _ in range(20):
            once()
        assert alive() <= before
    finally:
        gc.enable()


def test_vmap_and_the_jacobians_of_torch_func(args):
    A, b = args
    expected = torch.autograd.functional.jacobian(lambda b: symmetric(A, b), b)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(jacobian(lambda b: symmetric(A, b))(b), expected, rtol=1e-9, atol=1e-14)
    rows = torch.func.vmap(lambda b: symmetric(A, b))(torch.stack([b, 2 * b]))
    torch.testing.assert_close(rows[1], symmetric(A, 2 * b), rtol=1e-12, atol=0)
    H = torch.func.hessian(lambda b: (symmetric(A, b) ** 2).sum())(b)
    expected = torch.autograd.functional.hessian(lambda b: (symmetric(A, b) ** 2).sum(), b)
    torch.testing.assert_close(H, expected, rtol=1e-8, atol=1e-12)


def test_vmap_of_derivatives():
    """Gradients for each sample: the solve under vmap sees what it judges row by row."""
    layer = dil.argmin(lambda u, x, c: ((u - c * x) ** 2 + u**4).sum(), dil.solvers.Newton(), init=lambda x, c: 0 * x)
    c = torch.tensor(1.5, dtype=torch.float64)
    rows = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.5, -0.2]], dtype=torch.float64)

    def loss(x, c):
        return layer(x, c).pow(3).sum()

    expected = torch.stack([torch.func.grad(loss)(x, c) for x in rows])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(rows, c), expected)
    _, moved = torch.func.vmap(lambda x: torch.func.jvp(lambda x: loss(x, c), (x,), (torch.ones_like(x),)))(rows)
    torch.testing.assert_close(moved, expected.sum(1))
    second = torch.func.vmap(lambda x: torch.func.hessian(lambda x: loss(x, c))(x))(rows)
    torch.testing.assert_close(second[1], torch.func.hessian(lambda x: loss(x, c))(rows[1]))


def test_forward_mode_keeps_or_refuses_a_tangent():
    import torch.autograd.forward_ad as forward

    x = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    with forward.dual_level():
        d = forward.make_dual(x, torch.ones_like(x))
        _, tangent = forward.unpack_dual(dil.grad(lambda x: (x**3).sum())(d))
        torch.testing.assert_close(tangent, 6 * x)
        captures = dil.argmin(lambda u, x: ((u - x * d) ** 2).sum(), lambda f, u, x: x * x)
        with pytest.raises(dil.CapturedError, match="not among the arguments"):
            captures(x)


@pytest.mark.parametrize("given", [(), ("hvp", "mixed")])
def test_given_derivatives_under_nested_transforms(given):
    products = {"hvp": lambda u, v, t: (3 * u**2 + 1) * v, "mixed": lambda u, w, t: (-w,)}
    layer = dil.argmin(
        lambda u, t: (u**4 / 4 + u**2 / 2 - t * u).sum(),
        dil.solvers.Newton(rtol=1e-11),
        init=lambda t: t,
        derivatives=dil.Derivatives(lambda u, t: u**3 + u - t, **{name: products[name] for name in given}),
    )
    t = torch.tensor([0.5, 1.0], dtype=torch.float64)
    y = layer(t)
    expected = torch.diag(-6 * y / (3 * y**2 + 1) ** 3)
    torch.testing.assert_close(torch.func.hessian(lambda t: layer(t).sum())(t), expected, rtol=1e-8, atol=1e-12)
