"""A torch.autograd.Function whose backward keeps no graph is told where a layer needs the graph, by name."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import func  # noqa: E402

import dil  # noqa: E402
from dil_backends.nn import ImplicitModule  # noqa: E402

A = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
AS = torch.stack([A, 2 * A])


def by_numpy(a, u, cotangent):
    a, u, c = (x.detach().numpy() for x in (a, u, cotangent))
    return torch.from_numpy(c[..., None] * u), torch.from_numpy(c[..., None] * a)


def under_no_grad(a, u, cotangent):
    with torch.no_grad():
        return cotangent[..., None] * u, cotangent[..., None] * a


def from_detached(a, u, cotangent):
    return cotangent[..., None] * u.detach(), cotangent[..., None] * a.detach()


def with_a_graph(a, u, cotangent):
    return cotangent[..., None] * u, cotangent[..., None] * a


def function_of(pullback, detaches=False):
    """Return (a, u) -> the inner product of each row, as a hand-written kernel gives it."""

    class Rows(torch.autograd.Function):
        generate_vmap_rule = pullback is not by_numpy

        @staticmethod
        def forward(a, u):
            return (a * u).sum(-1)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*[x.detach() if detaches else x for x in inputs])

        @staticmethod
        def backward(ctx, cotangent):
            return pullback(*ctx.saved_tensors, cotangent)

    return Rows.apply


LOST = {
    "NumPy": function_of(by_numpy),
    "no_grad": function_of(under_no_grad),
    "detached": function_of(from_detached),
    "saved detached": function_of(with_a_graph, detaches=True),
}
RIGHT = function_of(with_a_graph)
lost = pytest.mark.parametrize("product", LOST.values(), ids=LOST)


def start(a, *rest):
    return torch.zeros_like(a)


def layer_of(product, **options):
    """The minimum is `a`."""
    return dil.argmin(lambda u, a: 0.5 * (u * u).sum(-1) - product(a, u), dil.solvers.Newton(), init=start, **options)


def squares(f):
    return lambda *xs: (f(*xs) ** 2).sum()


TRANSFORMS = {
    "backward": lambda f: torch.autograd.grad(squares(f)(a := A.clone().requires_grad_()), a)[0],
    "grad": lambda f: func.grad(squares(f))(A),
    "jvp": lambda f: func.jvp(squares(f), (A,), (A,))[1],
    "jacrev": lambda f: func.jacrev(f)(A),
    "jacfwd": lambda f: func.jacfwd(f)(A),
    "vmap of grad": lambda f: func.vmap(func.grad(squares(f)))(AS),
    "grad of vmap": lambda f: func.grad(lambda a: squares(func.vmap(f))(a))(AS),
    "jacobian": lambda f: torch.autograd.functional.jacobian(f, A),
    "jacobian, vectorized": lambda f: torch.autograd.functional.jacobian(f, A, vectorize=True),
}
EXPECTED = {
    "backward": 2 * A,
    "grad": 2 * A,
    "jvp": 2 * A @ A,
    "vmap of grad": 2 * AS,
    "grad of vmap": 2 * AS,
}


# torch.func hands its functions no tensor that NumPy can read
CASES = [("NumPy", "backward"), *((name, t) for name in LOST if name != "NumPy" for t in TRANSFORMS)]


@pytest.mark.parametrize(("name", "transform"), CASES)
def test_a_backward_without_a_graph_is_refused(name, transform):
    layer = layer_of(LOST[name])
    for _ in range(2):
        with pytest.raises(dil.SecondDerivativeError, match="gradient for argument 0 would be zero by mistake"):
            TRANSFORMS[transform](layer)


def test_a_later_pass_to_another_argument_is_refused_too():
    """The passes of one node share a matrix, but not what was looked at: a has no mixed derivative, b has one."""
    product = LOST["no_grad"]
    layer = dil.argmin(
        lambda u, a, b: 0.5 * (u**2).sum() - product(a, u) - (u * b).sum(),
        dil.solvers.Newton(),
        init=lambda a, b: torch.zeros_like(b),
    )
    a, b = A.clone().requires_grad_(), A.clone().requires_grad_()
    y = layer(a, b)
    for k in range(3):
        torch.autograd.grad(y[k], b, retain_graph=True)
    with pytest.raises(dil.SecondDerivativeError, match="gradient for argument 0 would be zero by mistake"):
        torch.autograd.grad(y[0], a, retain_graph=True)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_backward_with_a_graph_is_right(transform):
    expected = EXPECTED.get(transform, torch.eye(3, dtype=A.dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = TRANSFORMS[transform](layer_of(RIGHT, on_failure="raise"))
    torch.testing.assert_close(found, expected)


@lost
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_no_unit_and_no_batch_hides_it(product, unit, dtype):
    for rows, batch_ndim in ((A, 0), (AS, 1)):
        layer = dil.argmin(
            lambda u, a: 0.5 * ((u / unit) ** 2).sum(-1) - product(a / unit, u / unit),
            dil.solvers.Newton(),
            init=start,
            batch_ndim=batch_ndim,
        )
        a = (unit * rows.to(dtype)).requires_grad_()
        with pytest.raises(dil.SecondDerivativeError, match="argument 0 would"):
            layer(a).sum().backward()


@lost
def test_an_argument_that_all_rows_share(product):
    layer = dil.argmin(
        lambda u, x, a: 0.5 * ((u - x) ** 2).sum(-1) - product(a.expand_as(u), u),
        dil.solvers.Newton(),
        init=start,
        batch_ndim=1,
    )
    x, a = AS.clone().requires_grad_(), A.clone().requires_grad_()
    with pytest.raises(dil.SecondDerivativeError, match="argument 1 would"):
        layer(x, a).sum().backward()
    torch.testing.assert_close(torch.autograd.grad(layer(x, A).sum(), x)[0], torch.ones_like(AS))


def test_a_parameter_of_a_module_is_named():
    class Energy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(A.clone())

        def forward(self, u, x):
            return 0.5 * ((u - x) ** 2).sum() - LOST["no_grad"](self.weight, u)

    module = ImplicitModule(Energy(), dil.solvers.Newton(), init=torch.zeros_like)
    with pytest.raises(dil.SecondDerivativeError, match="weight"):
        module(A).sum().backward()


def test_detach_is_no_loss():
    def score(u, a, b):
        return 0.5 * (u * u).sum() - (a.detach() * u).sum() + (a**3).sum() - (b * u).sum()

    a, b = A.clone().requires_grad_(), A.clone().requires_grad_()
    layer = dil.argmin(score, dil.solvers.Newton(), init=start, on_failure="raise")
    of_a, of_b = torch.autograd.grad(layer(a, b).sum(), (a, b))
    assert not of_a.any()
    torch.testing.assert_close(of_b, torch.ones_like(A))


def test_a_sparse_gradient_is_no_loss():
    rows = torch.tensor([0, 2])
    layer = dil.argmin(
        lambda u, w: ((u - torch.nn.functional.embedding(rows, w, sparse=True).sum()) ** 2).sum(),
        dil.solvers.Newton(),
        init=lambda w: torch.zeros_like(w[0]),
        on_failure="raise",
    )
    w = AS.repeat(2, 1).requires_grad_()
    layer(w).sum().backward()
    assert w.grad.coalesce().indices().tolist() == [[0, 2]]
