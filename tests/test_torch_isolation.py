"""What a user puts around or into a layer on torch: hooks, checkpoints, caches, kernels, sparse and compiled parts."""

from __future__ import annotations

import contextlib

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn.utils import parametrize  # noqa: E402
from torch.utils.checkpoint import (  # noqa: E402
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import dil  # noqa: E402
from dil_backends.nn import ImplicitModule  # noqa: E402

F64 = torch.float64
IGNORED = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # by the compiler itself
X = torch.tensor([0.3, -1.0, 2.0], dtype=F64)


def quartic(u, x):
    return ((u - x) ** 2).sum() + (u**4).sum()


def start(x):
    return torch.zeros_like(x)


LAYERS = {
    "Newton": dil.argmin(quartic, dil.solvers.Newton(), init=start),
    "LBFGS": dil.argmin(quartic, dil.solvers.LBFGS(), init=start),
    "root": dil.root(lambda u, x: u**3 + u - x, dil.solvers.Newton(), init=start),
    "fixed point": dil.fixed_point(lambda u, x: 0.3 * torch.cos(u) + x, dil.solvers.Anderson(), init=start),
    "value": dil.value(quartic, dil.solvers.Newton(), init=start),
    "batch": dil.root(lambda u, x: u**3 + u - x, dil.solvers.Newton(), init=start, batch_ndim=1),
}


def given(name):
    return (torch.stack([X, -X]) if name == "batch" else X).clone().requires_grad_()


def gradient(layer, x):
    return torch.autograd.grad(layer(x).pow(2).sum(), x)[0]


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- saved-tensor hooks and activation checkpointing ---


@pytest.mark.transform("saved-tensor hooks around a layer")
@pytest.mark.parametrize("name", LAYERS)
def test_hooks_see_what_the_layer_keeps_and_nothing_else(name):
    packed = []

    def pack(x):
        packed.append(x)
        return x

    x = given(name)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = LAYERS[name](x)
    assert len(packed) <= 4
    close(torch.autograd.grad(y.pow(2).sum(), x)[0], gradient(LAYERS[name], x))


def test_hooks_are_in_place_again_after_a_layer_and_after_an_error():
    packed = []
    bad = dil.argmin(lambda u, x: u, dil.solvers.Newton(), init=start)
    x = X.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x, lambda x: x):
        with pytest.raises(dil.ShapeError):
            bad(x)
        before = len(packed)
        x.pow(2)
    assert len(packed) == before + 1


@pytest.mark.transform("an activation checkpoint around a layer, of both kinds")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_a_layer_solves_once_more(reentrant):
    solves = 0

    def solver(fun, u, x):
        nonlocal solves
        solves += 1
        return dil.solvers.LBFGS()(fun, u, x)

    layer = dil.argmin(quartic, solver, init=start)
    x = X.clone().requires_grad_()
    y = checkpoint(lambda x: layer(torch.sinh(x)), x, use_reentrant=reentrant)
    found = torch.autograd.grad(y.pow(2).sum(), x)[0] if not reentrant else None
    if reentrant:
        y.pow(2).sum().backward()
        found = x.grad
    assert solves == 2
    close(found, gradient(lambda x: LAYERS["LBFGS"](torch.sinh(x)), X.clone().requires_grad_()))


@pytest.mark.transform("an activation checkpoint around a layer, of both kinds")
@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE])
@pytest.mark.parametrize("name", LAYERS)
def test_a_selective_checkpoint_keeps_no_operation_of_a_solve(name, policy):
    seen = []

    def choose(context, operation, *args, **kwargs):
        seen.append(operation)
        return policy

    def contexts():
        return create_selective_checkpoint_contexts(choose)

    def around(x):
        return LAYERS[name](torch.sinh(x)).sin()

    x = given(name)
    y = checkpoint(around, x, use_reentrant=False, context_fn=contexts)
    close(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(around(x).sum(), x)[0])
    assert set(seen) == {torch.ops.aten.sinh.default, torch.ops.aten.sin.default}
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def test_a_selective_checkpoint_is_on_again_after_a_layer_and_below_other_modes():
    class Counts(torch.utils._python_dispatch.TorchDispatchMode):
        products = sines = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            self.products += operation == torch.ops.aten.mul.Tensor
            self.sines += operation == torch.ops.aten.sin.default
            return operation(*args, **(kwargs or {}))

    model = ImplicitModule(Quartic(), dil.solvers.Newton(), init=start)
    counts, kept = Counts(), []

    def choose(context, operation, *args, **kwargs):
        kept.append(operation)
        return CheckpointPolicy.MUST_SAVE

    def around(x):
        with counts:
            return model(x).sin()

    x = X.clone().requires_grad_()
    y = checkpoint(around, x, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(choose))
    close(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(model(x).sin().sum(), x)[0])
    assert kept == [torch.ops.aten.sin.default]
    assert counts.sines == 1  # the replay ends before it
    assert counts.products > 2  # the modes of others still see a solve


class Quartic(torch.nn.Module):
    def forward(self, u, x):
        return quartic(u, x)


# --- caches of weights, compiled autograd, inference mode ---


class Step(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 3))

    def forward(self, u, x):
        return 0.5 * torch.tanh(self.inner(u) + x)


@pytest.mark.transform("`parametrize.cached()`")
@pytest.mark.parametrize("explicit", [False, True], ids=["ImplicitModule", "functional_call"])
def test_a_cache_of_parametrised_weights(explicit):
    torch.manual_seed(0)
    step = Step().double()
    if explicit:
        names = dict(step.named_parameters())

        def again(u, p, x):
            return torch.func.functional_call(step, p, (u, x))

        layer = dil.fixed_point(again, dil.solvers.Anderson(), init=lambda p, x: torch.zeros_like(x))
        model = lambda x: layer(names, x)  # noqa: E731
    else:
        model = ImplicitModule(step, dil.solvers.Anderson(), kind="fixed_point", init=start)

    def gradients(context):
        with context:
            return torch.autograd.grad(model(X).pow(2).sum(), list(step.parameters()))

    expected = gradients(contextlib.nullcontext())
    found = gradients(parametrize.cached())
    assert all(bool(g.abs().sum() > 0) for g in found)
    for a, b in zip(found, expected, strict=True):
        close(a, b)


@pytest.mark.transform("compiled autograd")
@IGNORED
@pytest.mark.parametrize("name", ["Newton", "root", "fixed point"])
def test_compiled_autograd(name):
    from torch._dynamo import compiled_autograd

    expected = gradient(LAYERS[name], given(name))
    x = given(name)
    with compiled_autograd._enable(torch.compile(backend="eager")):
        LAYERS[name](x * 1.0).pow(2).sum().backward()
    close(x.grad, expected, 1e-6)


@pytest.mark.transform("`torch.func` within `inference_mode`")
@pytest.mark.parametrize("name", LAYERS)
def test_torch_func_inside_inference_mode(name):
    def loss(x):
        return LAYERS[name](x).pow(2).sum()

    x = given(name).detach()
    expected = torch.func.grad(loss)(x), torch.func.jvp(loss, (x,), (x,))[1]
    with torch.inference_mode():
        close(torch.func.grad(loss)(x), expected[0])
        close(torch.func.grad(loss)(x.clone()), expected[0])
        close(torch.func.jvp(loss, (x,), (x,))[1], expected[1])


# --- functions without a second derivative ---


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return torch.nn.functional.softplus(u)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (u,) = ctx.saved_tensors
        return torch.sigmoid(u) * gradient


COMPILED = torch.compile(lambda u, x: torch.nn.functional.softplus(u - x).sum(), backend="aot_eager")
FIRST_ONLY = {
    "once_differentiable": lambda u, x: Once.apply(u - x).sum(),
    "compiled": COMPILED,
    "cdist": lambda u, x: torch.cdist(u[None, :], x[None, :] + 3.0).sum(),
}


@pytest.mark.transform("a compiled part of a score")
@IGNORED
@pytest.mark.parametrize("part", FIRST_ONLY)
@pytest.mark.parametrize("solver", [dil.solvers.LBFGS(), dil.solvers.GradientDescent()], ids=["LBFGS", "descent"])
def test_a_score_without_a_second_derivative_is_refused(part, solver):
    score = FIRST_ONLY[part]
    layer = dil.argmin(lambda u, x: 8.0 * (u**2).sum() + score(u, x), solver, init=lambda x: 0.1 + 0.0 * x)
    with pytest.raises(dil.SecondDerivativeError, match="derivatives="):
        gradient(layer, X.clone().requires_grad_())


@pytest.mark.parametrize("n", [3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lbfgs_says_that_it_converged_without_a_second_derivative(n, dtype):
    """A step that is too short to be taken, as at a gradient of zero, left the status STAGNATED."""

    def quadratic(u, x):
        return 0.5 * (u**2).sum() - (u * x).sum() + 0.0 * Once.apply(u).sum()

    def smooth(u, x):
        return quadratic(u, x) + Once.apply(u - x).sum()

    for score in (quadratic, smooth):
        for seed in range(8):
            x = torch.randn(n, dtype=dtype, generator=torch.Generator().manual_seed(seed))
            found = dil.argmin(score, dil.solvers.LBFGS(), init=torch.zeros_like).solve(x)
            assert found.status == dil.Status.CONVERGED
            assert found.residual <= 1e-4


class Functional(Once):
    """The same for torch.func, which wraps it in functions of its own, at each level and for vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u):
        return torch.nn.functional.softplus(u)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)


INSIDE = {
    "grad": lambda f: torch.func.grad(lambda x: f(x).pow(2).sum())(X),
    "jvp": lambda f: torch.func.jvp(f, (X,), (X,))[1],
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x).pow(2).sum()))(torch.stack([X, 2 * X])),
    "jacrev": lambda f: torch.func.jacrev(f)(X),
}


@pytest.mark.transform("a part of a score without a second derivative, within torch.func")
@pytest.mark.parametrize("inside", INSIDE)
def test_a_missing_second_derivative_is_refused_within_torch_func(inside):
    def layer(part):
        return dil.argmin(lambda u, x: 8.0 * (u**2).sum() + part(u - x), dil.solvers.LBFGS(), init=start)

    for part in (lambda v: Functional.apply(v).sum(), lambda v: FIRST_ONLY["cdist"](v, torch.zeros_like(v))):
        with pytest.raises(dil.SecondDerivativeError, match="derivatives="):
            INSIDE[inside](layer(part))
    value = dil.value(lambda u, x: 8.0 * (u**2).sum() + Functional.apply(u - x).sum(), dil.solvers.LBFGS(), init=start)
    with pytest.warns(dil.ConvergenceWarning, match="was not checked"):
        torch.func.grad(value)(X)  # its first derivative is enough


@IGNORED
@pytest.mark.parametrize("inside", INSIDE)
def test_a_compiled_part_runs_uncompiled_within_torch_func(inside):
    def part(u, x):
        return torch.nn.functional.softplus(u - x).sum()

    compiled, plain = (
        dil.argmin(lambda u, x, s=s: 8.0 * (u**2).sum() + s(u, x), dil.solvers.LBFGS(), init=start)
        for s in (torch.compile(part, backend="aot_eager"), part)
    )
    close(INSIDE[inside](compiled), INSIDE[inside](plain))


def test_a_mixed_derivative_that_is_missing_is_refused():
    once = dil.argmin(lambda u, x: (u**2).sum() + (u * Once.apply(x)).sum(), dil.solvers.Newton(), init=start)
    expected = 0.5 * torch.nn.functional.softplus(X) * torch.sigmoid(X)
    close(gradient(once, X.clone().requires_grad_()), expected)  # its first derivative is enough
    both = dil.argmin(lambda u, x: (u**2).sum() + Once.apply(u + x).sum(), dil.solvers.LBFGS(), init=start)
    with pytest.raises(dil.SecondDerivativeError):
        gradient(both, X.clone().requires_grad_())


@IGNORED
@pytest.mark.parametrize("part", FIRST_ONLY)
def test_the_least_value_needs_no_second_derivative(part):
    score = FIRST_ONLY[part]

    def whole(u, x):
        return 8.0 * (u**2).sum() + score(u, x)

    value = dil.value(whole, dil.solvers.LBFGS(), init=lambda x: 0.1 + 0.0 * x)
    x = X.clone().requires_grad_()
    with pytest.warns(dil.ConvergenceWarning, match="was not checked"):
        (found,) = torch.autograd.grad(value(x), x)
    y = value.solve(x).value
    close(found, torch.autograd.grad(whole(y, x), x)[0])


# --- what a score holds ---


def test_a_leaf_that_the_score_makes_itself():
    def score(u, x):
        w = torch.ones(3, dtype=F64, requires_grad=True)
        (force,) = torch.autograd.grad((w**2 * u).sum(), w, create_graph=True)
        return (force**2).sum() / 8 + 0.5 * ((u - x) ** 2).sum()

    layer = dil.argmin(score, dil.solvers.Newton(), init=start)
    x = X.clone().requires_grad_()
    close(torch.autograd.grad(layer(x).sum(), x)[0], torch.full_like(X, 0.5))
    weight = torch.ones(3, dtype=F64, requires_grad=True)
    captured = dil.argmin(lambda u, x: score(weight * u, x), dil.solvers.Newton(), init=start)
    with pytest.raises(dil.CapturedError):
        captured(x)


def test_a_leaf_within_an_ode():
    def field(t, y, k):
        with torch.enable_grad():
            q = y[:1].detach().requires_grad_()
            (force,) = torch.autograd.grad((0.5 * k * q**2).sum(), q, create_graph=True)
        return torch.cat([y[1:], -k * y[:1] + 0.0 * force.detach()])

    k = torch.tensor(2.0, dtype=F64, requires_grad=True)
    y = dil.ode.odeint(field, torch.tensor([1.0, 0.0], dtype=F64), [0.0, 0.1], (k,), method="euler")
    assert torch.autograd.grad(y[-1].sum(), k)[0] == pytest.approx(-0.1)


@pytest.mark.transform("sparse arguments")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_sparse_matrix_that_requires_grad(layout):
    dense = torch.diag(X.abs() + 1.0) + 0.1
    layer = dil.root(lambda u, A, b: A @ u - b, dil.solvers.Newton(), init=lambda A, b: torch.zeros_like(b))
    sparse = getattr(dense, layout)().requires_grad_()
    (found,) = torch.autograd.grad(layer(sparse, X).sum(), sparse)
    close(found.to_dense(), -torch.outer(torch.linalg.solve(dense.mT, torch.ones(3, dtype=F64)), layer(dense, X)))


@pytest.mark.transform("sparse arguments")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_second_derivatives_beside_a_sparse_matrix(layout):
    dense = torch.diag(X.abs() + 1.0) + 0.1
    layer = dil.root(lambda u, A, b: A @ u + u**3 - b, dil.solvers.Newton(), init=lambda A, b: torch.zeros_like(b))

    def twice(A):
        A, b = A.detach().requires_grad_(), X.clone().requires_grad_()
        (g,) = torch.autograd.grad(layer(A, b).sum(), b, create_graph=True)
        return [x.to_dense() for x in torch.autograd.grad((g * g).sum(), (A, b))]

    for found, expected in zip(twice(getattr(dense, layout)()), twice(dense), strict=True):
        close(found, expected)


@pytest.mark.transform("sparse arguments")
def test_a_sparse_matrix_within_torch_func():
    dense = torch.diag(X.abs() + 1.0) + 0.1
    layer = dil.root(lambda u, A, b: A @ u + u**3 - b, dil.solvers.Newton(), init=lambda A, b: torch.zeros_like(b))

    def loss(A, b):
        return layer(A, b).pow(2).sum()

    for transform in (torch.func.grad, torch.func.jacrev):
        close(transform(loss, 1)(dense.to_sparse(), X), transform(loss, 1)(dense, X))
    close(torch.func.grad(loss)(dense.to_sparse(), X).to_dense(), torch.func.grad(loss)(dense, X))


@pytest.mark.transform("`Embedding(sparse=True)` in a score")
def test_an_embedding_with_a_sparse_gradient():
    def weight(sparse):
        torch.manual_seed(0)
        table, rows = torch.nn.Embedding(10, 3, sparse=sparse).double(), torch.tensor([1, 3, 3])

        class Energy(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.table = table

            def forward(self, u, rows):
                return quartic(u, self.table(rows).sum(0))

        model = ImplicitModule(Energy(), dil.solvers.Newton(), init=lambda rows: torch.zeros(3, dtype=F64))
        model(rows).pow(2).sum().backward()
        return table.weight.grad

    assert weight(True).is_sparse
    close(weight(True).to_dense(), weight(False))


def test_the_kernels_of_attention_are_those_of_the_forward_call():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.manual_seed(0)
    x = torch.randn(1, 1, 4, 8, dtype=F64)

    def score(u, x):
        mixed = torch.nn.functional.scaled_dot_product_attention(u + x, u, x)
        return ((u - x) ** 2).sum() + 0.1 * (mixed**2).sum()

    layer = dil.argmin(score, dil.solvers.LBFGS(), init=start)
    with sdpa_kernel(SDPBackend.MATH):
        inside = x.clone().requires_grad_()
        expected = gradient(layer, inside)
        outside = x.clone().requires_grad_()
        y = layer(outside)
    close(torch.autograd.grad(y.pow(2).sum(), outside)[0], expected)


# --- modules as scores ---


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh())
        self.kept = self.scaled  # a method as an attribute

    def scaled(self, u):
        return 0.5 * self.net(u)

    def forward(self, u, x):
        return self.kept(u) + x


class Checkpointed(Inner):
    def scaled(self, u):
        return 0.5 * checkpoint(self.net, u, use_reentrant=False)


def patched_by_a_method(module):
    def forward(self, u, x):
        return self.scaled(u) + x

    module.forward = forward.__get__(module)
    return module


def compiled_in_place(module):
    module.compile(backend="aot_eager")
    return module


def compiled_child(module):
    module.net = torch.compile(module.net, backend="aot_eager")
    return module


MODULES = {
    "a method as an attribute": lambda: Inner(),
    "an activation checkpoint": lambda: Checkpointed(),
    "a patched forward": lambda: patched_by_a_method(Inner()),
    "compiled": lambda: torch.compile(Inner(), backend="aot_eager"),
    "compiled in place": lambda: compiled_in_place(Inner()),
    "a compiled child": lambda: compiled_child(Inner()),
}


@pytest.mark.transform("compiled modules, and checkpoints within a score")
@IGNORED
@pytest.mark.parametrize("kind", ["fixed_point", "root", "argmin"])
@pytest.mark.parametrize("name", MODULES)
def test_modules_of_all_kinds_get_their_gradients(name, kind):
    class Energy(torch.nn.Module):
        def __init__(self, step):
            super().__init__()
            self.step = step

        def forward(self, u, x):
            return (u**2).sum() - (u * self.step(0.1 * u, x)).sum()

    class Residual(Energy):
        def forward(self, u, x):
            return u - self.step(u, x)

    def gradients(step):
        score = {"argmin": Energy, "root": Residual}.get(kind, lambda step: step)(step).double()
        solver = {"argmin": dil.solvers.LBFGS(), "root": dil.solvers.Newton()}.get(kind, dil.solvers.Anderson())
        model = ImplicitModule(score, solver, kind=kind, init=start)
        model(X).pow(2).sum().backward()
        return [p.grad for p in score.parameters()]

    for found, expected in zip(gradients(MODULES[name]()), gradients(Inner()), strict=True):
        close(found, expected)


@pytest.mark.parametrize("n", [2, 16, 40])
@pytest.mark.parametrize(
    "linear_solver", [None, dil.linear.Direct(), dil.linear.GMRES()], ids=["default", "Direct", "GMRES"]
)
def test_a_root_without_a_second_derivative(n, linear_solver):
    """The product J p would differentiate the pullback. J is made from its rows instead."""
    x = torch.linspace(0.1, 2.0, n, dtype=torch.float64).requires_grad_()
    layer = dil.root(
        lambda u, x: u + Once.apply(u) - x, dil.solvers.Newton(), init=torch.zeros_like, linear_solver=linear_solver
    )
    y = layer(x)
    close(torch.autograd.grad(y.sum(), x)[0], 1.0 / (1.0 + torch.sigmoid(y.detach())))


@pytest.mark.parametrize("n", [3, 100])
def test_a_fixed_point_without_a_second_derivative(n):
    x = torch.linspace(0.1, 2.0, n, dtype=torch.float64).requires_grad_()
    y = dil.fixed_point(lambda u, x: x - 0.5 * Once.apply(u), dil.solvers.Anderson(), init=torch.zeros_like)(x)
    close(torch.autograd.grad(y.sum(), x)[0], 1.0 / (1.0 + 0.5 * torch.sigmoid(y.detach())))


@IGNORED
def test_a_compiled_function_whose_graph_is_walked_once_is_refused():
    """From its second shape on, torch frees the buffers of its graph in the first backward pass."""
    f = torch.compile(lambda u: 0.3 * torch.tanh(u), backend="aot_eager")

    def root(n):
        x = torch.linspace(0.1, 0.9, n, dtype=torch.float64).requires_grad_()
        return dil.root(lambda u, x: u + f(u) - x, dil.solvers.Newton(), init=torch.zeros_like)(x)

    assert root(2).shape == (2,)
    with pytest.raises(dil.UnsupportedFunctionError, match="donated_buffer = False"):
        root(8)
