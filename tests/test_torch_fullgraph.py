"""A layer in a custom operator: the way to `torch.compile(fullgraph=True)`, and what torch's other ways lack."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import dil  # noqa: E402

F64 = torch.float64
Tensor = torch.Tensor
X = torch.tensor([0.3, -1.0, 2.0], dtype=F64)
W = torch.tensor([1.0, 0.5, 2.0], dtype=F64)


def step(u, w, x):
    return 0.5 * torch.tanh(w * u + x)


def start(w, x):
    return torch.zeros_like(x)


KINDS = {
    "argmin": dil.argmin(lambda u, w, x: (w * (u - x) ** 2).sum() + (u**4).sum(), dil.solvers.LBFGS(), init=start),
    "root": dil.root(lambda u, w, x: u - step(u, w, x), dil.solvers.Newton(), init=start),
    "fixed point": dil.fixed_point(step, dil.solvers.Anderson(), init=start),
    "value": dil.value(lambda u, w, x: (w * (u - x) ** 2).sum() + (u**4).sum(), dil.solvers.Newton(), init=start),
}
LAYER = KINDS["argmin"]


@torch.library.custom_op("dil_tests::solve", mutates_args=())
def solve(w: Tensor, x: Tensor) -> Tensor:
    return LAYER(w, x)


@torch.library.custom_op("dil_tests::pull_back", mutates_args=())
def pull_back(w: Tensor, x: Tensor, y: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    _, pull = dil.vjp(lambda w, x: LAYER(w, x, init=y), w, x)
    dw, dx = pull(cotangent)
    return dw.contiguous(), dx.contiguous()


solve.register_fake(lambda w, x: x.new_empty(x.shape))
pull_back.register_fake(lambda w, x, y, cotangent: (w.new_empty(w.shape), x.new_empty(x.shape)))
solve.register_autograd(
    lambda ctx, cotangent: pull_back(*ctx.saved_tensors, cotangent),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, output),
)


def leaves(scale=1.0):
    return (scale * W).requires_grad_(), (scale * X).requires_grad_()


def loss(w, x, layer=solve):
    return (layer(torch.exp(w), torch.sinh(x)) ** 3).sum()


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=0.0)


@pytest.mark.transform("a layer in a custom operator of torch")
@pytest.mark.parametrize("name", KINDS)
def test_a_kernel_in_which_autograd_records_nothing(name):
    """The solver and the derivative need graphs of their own, and the operator's result has none."""
    layer, seen = KINDS[name], []

    @torch.library.custom_op(f"dil_tests::kernel_{name.replace(' ', '_')}", mutates_args=())
    def kernel(w: Tensor, x: Tensor) -> Tensor:
        assert not (2 * w).requires_grad
        y, g = layer(w, x), dil.grad(lambda x: layer(w, x).sum())(x)
        seen.extend([y, layer.solve(w, x).value, g, w.detach().requires_grad_() * 2])
        return y.clone()

    expected = layer(W, X), layer.solve(W, X).value, dil.grad(lambda x: layer(W, x).sum())(X)
    close([kernel(*leaves()), *seen[:3]], [expected[0].detach(), *expected])
    assert not any(x.requires_grad for x in seen)  # below autograd again after the layer


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.transform("torch.compile(fullgraph=True) of a layer in a custom operator")
def test_fullgraph():
    torch.compiler.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    args, others = leaves(), leaves(0.5)
    first, second = compiled(*args), compiled(*others)  # two graphs at a time
    for value, at in ((first, args), (second, others)):
        close(torch.autograd.grad(value, at), torch.autograd.grad(loss(*at, layer=LAYER), at))
    torch.library.opcheck(solve, args)


def test_failures_are_told_when_the_program_runs():
    torch.compiler.reset()
    rough = dil.argmin(lambda u, t: ((u - t) ** 2).sum() + (u**4).sum(), lambda f, u, t: t, init=torch.zeros_like)

    @torch.library.custom_op("dil_tests::rough", mutates_args=())
    def kernel(x: Tensor) -> Tensor:
        _, pull = dil.vjp(rough, x)
        return pull(x)[0].clone()

    kernel.register_fake(torch.empty_like)
    compiled = torch.compile(lambda x: 2 * kernel(x + 1), backend="aot_eager", fullgraph=True)
    for _ in range(2):
        with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
            compiled(X)
