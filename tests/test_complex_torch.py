"""Complex tensors in what torch has of its own: modules, vmap, lazy conjugates, optimisers and its own checks."""

from __future__ import annotations

import pytest

import dil

torch = pytest.importorskip("torch", reason="torch is not installed")


def square(z):
    return (z.conj() * z).real


def bowl(u, x):
    return square(u - x).sum() + (u * u).real.sum() ** 2 * 0.1


LAYER = dil.argmin(bowl, dil.solvers.Newton(), init=lambda x: 0 * x)
X = torch.randn(6, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))


def loss(x):
    return square(LAYER(x)).sum()


class Shrunk(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(X[0].clone())
        self.weight = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, u, x):
        return square(u - self.scale * x).sum(-1) + self.weight * square(u).sum(-1)


def test_a_module_with_complex_and_real_parameters():
    """y = scale x / 3 for each row x: the gradient of sum |y|^2 is 2 scale sum |x|^2 / 9, and -2 sum |y|^2 / 3."""
    from dil_backends.nn import ImplicitModule

    module = ImplicitModule(Shrunk(), dil.solvers.Newton(), init=torch.zeros_like, batch_ndim=1)
    y = module(X)
    scale = module.score.scale.detach()
    torch.testing.assert_close(y.detach(), scale * X / 3)
    square(y).sum().backward()
    torch.testing.assert_close(module.score.scale.grad, 2 * scale * square(X).sum(0) / 9)
    torch.testing.assert_close(module.score.weight.grad, -2 * square(y.detach()).sum() / 3)


def test_vmap():
    torch.testing.assert_close(torch.vmap(LAYER)(X), torch.stack([LAYER(x) for x in X]))
    rows = torch.stack([dil.grad(loss)(x) for x in X])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(X), rows)


def test_tensors_that_are_conjugated_lazily_or_lie_apart():
    for x in (X[0].conj(), X[::2, 1]):
        torch.testing.assert_close(LAYER(x), LAYER(x.clone().resolve_conj()))


def test_an_optimiser_of_torch():
    from dil_backends.optim import TorchOptim

    solver = TorchOptim(lambda params: torch.optim.Adam(params, lr=0.05), rtol=1e-4)
    found = dil.argmin(bowl, solver, init=lambda x: 0 * x)(X[0])
    torch.testing.assert_close(found, LAYER(X[0]), rtol=1e-3, atol=1e-3)


def test_the_checks_of_torch_to_second_order():
    x = X[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(LAYER, x)
    assert torch.autograd.gradgradcheck(LAYER, x)
