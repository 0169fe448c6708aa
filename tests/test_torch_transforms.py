"""Every transform that torch has goes through a layer with the gradients of the closed form, or says that it cannot."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import torch.autograd.forward_ad as forward  # noqa: E402
from torch import func  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import dil  # noqa: E402
from dil_backends.nn import ImplicitModule  # noqa: E402

F64 = torch.float64
A = torch.tensor([[3.0, 0.5, -0.2], [0.5, 2.0, 0.3], [-0.2, 0.3, 1.0]], dtype=F64)
B = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
V = torch.tensor([0.3, 1.0, -2.0], dtype=F64)


def score(u, A, b):
    return 0.5 * (u @ (A @ u)) - b @ u


def exact(A, b):
    """The closed form; the score sees the symmetric part of A alone."""
    return torch.linalg.solve(0.5 * (A + A.mT), b)


def zeros(A, b):
    return torch.zeros_like(b)


LAYER = dil.argmin(score, dil.solvers.Newton(), init=zeros)


def loss(A, b, layer=LAYER):
    """Not linear in y, so that its second derivatives have all their terms."""
    return (layer(A, b) ** 3) @ V.to(b.dtype)


def leaves():
    return A.clone().requires_grad_(), B.clone().requires_grad_()


def close(found, expected, rtol=1e-9):
    """Compare trees of tensors, each within rtol of its largest entry."""
    found, expected = (torch.utils._pytree.tree_leaves(x) for x in (found, expected))
    for a, b in zip(found, expected, strict=True):
        top = b.detach().abs().max().item()
        assert top > 0
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=rtol * top)


def expected_gradients():
    args = leaves()
    return torch.autograd.grad(loss(*args, layer=exact), args)


# --- plain autograd ---


@pytest.mark.transform("backward")
def test_backward():
    a, b = leaves()
    loss(a, b).backward()
    close([a.grad, b.grad], expected_gradients())
    loss(a, b).backward()
    close([a.grad, b.grad], [2 * g for g in expected_gradients()])


class Spied(torch.autograd.Function):
    """The identity, which counts the gradients that are pulled through it."""

    count = 0

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, ct):
        Spied.count += 1
        return ct


@pytest.mark.transform("torch.autograd.grad")
def test_grad_with_a_subset_of_inputs_does_no_work_for_the_others():
    def spied(u, c, b):
        return (0.5 * u**2).sum() - (Spied.apply(c) * b * u).sum()

    layer = dil.argmin(spied, lambda fun, u, c, b: c * b)
    c, b = V.clone().requires_grad_(), B.clone().requires_grad_()
    Spied.count = 0
    y = layer(c, b)
    (db,) = torch.autograd.grad(y.sum(), b, retain_graph=True)
    close(db, V)
    assert Spied.count == 0
    torch.autograd.grad(y.sum(), c, retain_graph=True)
    assert Spied.count == 2  # the first pass also looks whether a graph leads to c
    (dc,) = torch.autograd.grad(y.sum(), c)
    close(dc, B)
    assert Spied.count == 3


@pytest.mark.transform("double backward")
def test_double_backward():
    args = leaves()

    def second(layer):
        first = torch.autograd.grad(loss(*args, layer=layer), args, create_graph=True)
        return torch.autograd.grad((first[0] * A).sum() + (first[1] * V).sum(), args)

    close(second(LAYER), second(exact), rtol=1e-8)


@pytest.mark.transform("torch.autograd.functional.hessian")
def test_functional_hessian():
    found, expected = (torch.autograd.functional.hessian(partial(loss, A, layer=layer), B) for layer in (LAYER, exact))
    close(found, expected, rtol=1e-8)


@pytest.mark.transform("torch.autograd.gradcheck")
def test_gradcheck_in_both_modes_and_to_second_order():
    args = leaves()
    assert torch.autograd.gradcheck(LAYER, args, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(LAYER, args, check_fwd_over_rev=True)


@pytest.mark.transform("torch.autograd.forward_ad")
def test_forward_mode_equals_reverse_mode():
    with forward.dual_level():
        duals = forward.make_dual(A, A @ A), forward.make_dual(B, V)
        found = forward.unpack_dual(loss(*duals)).tangent
    close(found, sum((g * t).sum() for g, t in zip(expected_gradients(), (A @ A, V), strict=True)), rtol=1e-10)


# --- torch.func ---

TRANSFORMS = {
    "torch.func.grad": lambda f: func.grad(f, argnums=(0, 1))(A, B),
    "torch.func.vjp": lambda f: func.vjp(f, A, B)[1](torch.tensor(2.0, dtype=F64)),
    "torch.func.jvp": lambda f: func.jvp(f, (A, B), (A @ A, V)),
    "torch.func.jacrev": lambda f: func.jacrev(f, argnums=(0, 1))(A, B),
    "torch.func.jacfwd": lambda f: func.jacfwd(f, argnums=(0, 1))(A, B),
    "torch.func.hessian": lambda f: func.hessian(f, argnums=(0, 1))(A, B),
    "torch.func.vmap": lambda f: func.vmap(f, in_dims=(None, 0))(A, torch.stack([B, V, B * V])),
    "vmap of grad": lambda f: func.vmap(func.grad(f, argnums=(0, 1)), in_dims=(None, 0))(A, torch.stack([B, V])),
    "nested vmap": lambda f: func.vmap(lambda a: func.vmap(lambda b: f(a, b))(torch.stack([B, V])))(
        torch.stack([A, 2 * A])
    ),
    "jvp of vmap": lambda f: func.jvp(
        lambda b: func.vmap(f, in_dims=(None, 0))(A, torch.stack([b, B * b])), (B,), (V,)
    ),
    "hessian of vmap": lambda f: func.hessian(
        lambda b: func.vmap(f, in_dims=(None, 0))(A, torch.stack([b, B * b])).sum()
    )(B),
    "jvp of grad": lambda f: func.jvp(func.grad(partial(f, A)), (B,), (V,)),
    "vmap of jvp": lambda f: func.vmap(lambda b: func.jvp(partial(f, A), (b,), (V,))[1])(torch.stack([B, V])),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(k, marks=pytest.mark.transform(k)) for k in TRANSFORMS])
def test_torch_func(name):
    found, expected = (TRANSFORMS[name](partial(loss, layer=layer)) for layer in (LAYER, exact))
    close(found, expected, rtol=1e-8)


ORDERS = {
    "rr": (func.jacrev, func.jacrev), "rf": (func.jacrev, func.jacfwd), "fr": (func.jacfwd, func.jacrev),
    "ff": (func.jacfwd, func.jacfwd), "fff": (func.jacfwd, func.jacfwd, func.jacfwd),
    "frf": (func.jacfwd, func.jacrev, func.jacfwd), "rff": (func.jacrev, func.jacfwd, func.jacfwd),
}  # fmt: skip


@pytest.mark.transform("torch.func.jacfwd and jacrev, in all orders, of vmap too")
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_higher_derivatives(order, mapped):
    """Of y = sin t: all of its curvature is in how the residual depends on the argument."""
    layer = dil.argmin(lambda u, t: ((u - torch.sin(t)) ** 2).sum(), dil.solvers.Newton(), init=torch.zeros_like)
    rows = torch.stack([B, V])

    def value(fn, t):
        return func.vmap(lambda row: fn(row * t))(rows).sum() if mapped else fn(t * t).sum()

    found, expected = partial(value, layer), partial(value, torch.sin)
    for transform in reversed(ORDERS[order]):
        found, expected = transform(found), transform(expected)
    close(found(V), expected(V), rtol=1e-10)


@pytest.mark.transform("torch.func.vmap")
def test_a_captured_tensor_that_vmap_maps_over_is_named_as_such():
    def fit(row):
        return dil.argmin(lambda u, t: ((u - row * t) ** 2).sum(), dil.solvers.Newton(), init=torch.zeros_like)(B)

    with pytest.raises(dil.CapturedError, match=r"torch\.func\.vmap maps over .* pass it as an argument"):
        func.vmap(fit)(torch.stack([B, V]))


@pytest.mark.transform("torch.func.jacrev of a vector")
def test_jacobians_of_the_solution_itself():
    for jacobian in (func.jacrev, func.jacfwd):
        close(jacobian(LAYER, argnums=(0, 1))(A, B), jacobian(exact, argnums=(0, 1))(A, B), rtol=1e-9)


class Energy(torch.nn.Module):
    def __init__(self, dtype=F64):
        super().__init__()
        self.A = torch.nn.Parameter(A.to(dtype, copy=True))

    def forward(self, u, b):
        return score(u, self.A, b)


def newton_from_zero(b):
    return torch.zeros_like(b)


class Model(torch.nn.Module):
    """A map, a layer, and what is made of its answer."""

    def __init__(self, dtype=F64, **options):
        super().__init__()
        self.map = torch.nn.Linear(3, 3, dtype=dtype)
        with torch.no_grad():
            self.map.weight.copy_(A.flip(0))
            self.map.bias.copy_(V)
        self.layer = ImplicitModule(Energy(dtype), dil.solvers.Newton(), init=newton_from_zero, **options)

    def forward(self, x):
        y = self.layer(self.map(x))
        return (y**3) @ V.to(y.dtype)

    def closed_form(self, x):
        return (exact(self.layer.score.A, self.map(x)) ** 3) @ V.to(x.dtype)


def gradients(model, value):
    return torch.autograd.grad(value, list(model.parameters()))


@pytest.mark.transform("torch.func.functional_call")
def test_functional_call_and_gradients_for_each_sample():
    model = Model()
    params = {name: p.detach() for name, p in model.named_parameters()}
    found = func.grad(lambda p: func.functional_call(model, p, (B,)))(params)
    close(list(found.values()), gradients(model, model.closed_form(B)))
    rows = torch.stack([B, V])
    each = func.vmap(func.grad(lambda p, x: func.functional_call(model, p, (x,))), in_dims=(None, 0))(params, rows)
    for i, x in enumerate(rows):
        close([g[i] for g in each.values()], gradients(model, model.closed_form(x)))


@pytest.mark.transform("ensembles by torch.func.stack_module_state")
def test_an_ensemble():
    models = [Model(), Model()]
    with torch.no_grad():
        models[1].layer.score.A *= 2
    params, buffers = func.stack_module_state(models)
    found = func.vmap(lambda p, b: func.functional_call(models[0], (p, b), (B,)))(params, buffers)
    close(found, torch.stack([m.closed_form(B) for m in models]))


# --- the compiler ---

# the compiler looks at the .grad of what it is handed, and silences torch's warning of it by a filter of its own
ofcompiler = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@ofcompiler
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.transform("torch.compile")
def test_compile_of_a_model_that_holds_a_layer(backend):
    model = Model()
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend)
    for x in (B, V):
        close(gradients(model, compiled(x)), gradients(model, model.closed_form(x)))


@ofcompiler
@pytest.mark.transform("torch.compile")
def test_compile_of_a_plain_layer_and_of_dils_own_transforms():
    torch.compiler.reset()
    args = leaves()
    compiled = torch.compile(lambda a, b: loss(2 * a, b + 1), backend="aot_eager")
    close(torch.autograd.grad(compiled(*args), args), torch.autograd.grad(loss(2 * args[0], args[1] + 1, exact), args))
    found = torch.compile(lambda b: 2 * dil.grad(lambda b: loss(A, b))(b), backend="eager")(B)
    close(found, 2 * expected_gradients()[1])


@ofcompiler
def test_compile_beside_a_program_of_jax_that_reports():
    """The calls of dil go through the guards of all frameworks that the process has imported."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    of_jax = dil.argmin(lambda u, t: (u - t) ** 2, lambda f, i, t: 1.0 * t)
    jax.jit(jax.grad(of_jax))(2.0)
    torch.compiler.reset()
    found = torch.compile(lambda b: 2 * dil.grad(lambda b: loss(A, b))(b), backend="eager")(B)
    close(found, 2 * expected_gradients()[1])


OF_FUNC = {
    "vmap": lambda f, b: func.vmap(f)(torch.stack([b, 2 * b])),
    "jvp": lambda f, b: func.jvp(f, (b,), (V,))[1],
    "grad": lambda f, b: 2 * func.grad(f)(1.0 * b) + 1,
    "hessian": lambda f, b: func.hessian(f)(b),
}


@ofcompiler
@pytest.mark.transform("torch.compile of torch.func")
@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "aot_eager") for name in OF_FUNC), ("jvp", "eager"), ("grad", "eager")]
)
def test_compile_of_torch_func(name, backend):
    """The code around the transform may be compiled, and never the solver within it."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()

    def program(b, layer=LAYER):
        return 2 * OF_FUNC[name](lambda b: loss(A, b, layer=layer), b)

    def call():
        return torch.compile(program, backend=backend)(B)

    if (name, backend) == ("grad", "eager"):
        with pytest.raises(dil.UnsupportedFunctionError, match=r"backend='eager'.*take another.*autograd\.grad"):
            call()
    else:
        close(call(), program(B, layer=exact), rtol=1e-8)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


@ofcompiler
@pytest.mark.transform("torch.compile of torch.func")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_func_of_what_is_compiled(backend):
    torch.compiler.reset()
    compiled = torch.compile(lambda b: loss(A, b), backend=backend)
    if backend == "eager":
        with pytest.raises(dil.UnsupportedFunctionError, match="backend='eager'"):
            func.grad(compiled)(B)
    else:
        close(func.grad(compiled)(B), expected_gradients()[1])
    outside = torch.compiler.disable(func.grad(lambda b: loss(A, b)))
    close(torch.compile(lambda b: 2 * outside(b), backend=backend)(B), 2 * expected_gradients()[1])


# --- precision ---


@pytest.mark.parametrize(
    "linear_solver", [dil.linear.Auto(), dil.linear.CG(), dil.linear.Direct(), dil.linear.MINRES()]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.transform("float32, bfloat16 and float16 scores")
def test_dtypes(dtype, linear_solver):
    layer = dil.argmin(score, dil.solvers.Newton(), linear_solver=linear_solver, init=zeros, on_failure="raise")
    a, b = (x.to(dtype, copy=True).requires_grad_() for x in (A, B))
    y = layer(a, b)
    found = torch.autograd.grad(y @ V.to(dtype), (a, b))
    assert all(x.dtype == dtype for x in (y, *found))
    wide = [x.detach().double().requires_grad_() for x in (a, b)]
    expected = torch.autograd.grad(exact(*wide) @ V.to(dtype).double(), wide)
    eps = torch.finfo(dtype).eps
    close([g.double() for g in (y, *found)], [exact(*wide), *expected], rtol=8 * eps + eps**0.5 * (dtype == F64))


@pytest.mark.transform("autocast")
def test_autocast_leaves_a_layer_its_precision():
    model = Model(torch.float32)
    x = B.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.map(x)
        assert hidden.dtype == torch.bfloat16
        y = model.layer(hidden)
    assert y.dtype == torch.float32
    wide = hidden.detach().double().requires_grad_()
    a = model.layer.score.A.detach().double().requires_grad_()
    close(y.double(), exact(a, wide), rtol=1e-5)
    found = torch.autograd.grad(y @ V.float(), [model.layer.score.A, hidden])
    expected = torch.autograd.grad(exact(a, wide) @ V, [a, wide])
    close(found[0].double(), expected[0], rtol=1e-5)
    close(found[1].double(), expected[1], rtol=2 * torch.finfo(torch.bfloat16).eps)


@pytest.mark.transform("autocast")
def test_autocast_and_a_plain_layer():
    args = [x.float().requires_grad_() for x in (A, B)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = LAYER(*args)
        found = torch.autograd.grad((y * V.float()).sum(), args)
        assert (args[0] @ args[1]).dtype == torch.bfloat16
        close(LAYER.solve(*args).value, y, rtol=1e-6)
    wide = leaves()
    close([g.double() for g in found], torch.autograd.grad(exact(*wide) @ V, wide), rtol=1e-5)


@pytest.mark.transform("autocast")
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_widens_the_activations_of_a_plain_layer(half):
    narrow = [x.float() for x in (A, B)]
    narrow[1] = narrow[1].to(half)
    args = [x.requires_grad_() for x in narrow]
    with pytest.raises(dil.DTypeError):
        LAYER(*args)
    with torch.autocast("cpu", dtype=half):
        y = LAYER(*args)
        tree = dil.root(lambda u, p: p["A"] @ u - p["b"], dil.solvers.Newton(), init=lambda p: torch.zeros_like(p["b"]))
        linear = tree({"A": args[0], "b": args[1]})
        path = dil.ode.odeint(lambda t, y, A: -A @ y, args[1], [0.0, 0.1], (args[0],))
    assert y.dtype == linear.dtype == path.dtype == torch.float32
    found = torch.autograd.grad((y * V.float()).sum(), args)
    assert [g.dtype for g in found] == [torch.float32, half]
    wide = [x.detach().double().requires_grad_() for x in args]
    expected = torch.autograd.grad(exact(*wide) @ V, wide)
    close(found[0].double(), expected[0], rtol=1e-4)
    close(found[1].double(), expected[1], rtol=2 * torch.finfo(half).eps)


@pytest.mark.transform("GradScaler")
def test_grad_scaler():
    model = Model(torch.float32, on_failure="nan")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(model(B.float())).backward()
    scaler.unscale_(optimiser)
    wide = copy.deepcopy(model).double()
    close([p.grad.double() for p in model.parameters()], gradients(wide, wide.closed_form(B)), rtol=1e-4)
    scaler.step(optimiser)
    scaler.update()
    optimiser.zero_grad()
    (scaler.scale(model(B.float())) * 1e38).backward()
    scaler.step(optimiser)  # an overflow is found, and the step skipped
    scaler.update()
    assert scaler.get_scale() == 2.0**15


# --- checkpoints, hooks, copies ---


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.transform("torch.utils.checkpoint")
def test_activation_checkpointing(use_reentrant):
    model, x = Model(), B.clone().requires_grad_()
    value = checkpoint(model, x, use_reentrant=use_reentrant)
    value.backward()
    plain = x.detach().requires_grad_()
    expected = torch.autograd.grad(model.closed_form(plain), [plain, *model.parameters()])
    close([x.grad, *(p.grad for p in model.parameters())], expected)


@pytest.mark.transform("hooks")
def test_hooks_of_tensors_and_modules():
    model, seen = Model(), []
    model.layer.register_forward_hook(lambda m, args, y: seen.append("forward"))
    model.layer.register_full_backward_hook(lambda m, grad_in, grad_out: seen.append("backward"))
    model.layer.score.A.register_hook(lambda g: 2 * g)
    x = B.clone().requires_grad_()
    hidden = model.map(x)
    hidden.register_hook(lambda g: seen.append("hidden"))
    y = model.layer(hidden)
    y.register_hook(lambda g: 3 * g)
    found = torch.autograd.grad((y**3) @ V, [model.layer.score.A, x])
    a = model.layer.score.A.detach().clone().requires_grad_()
    expected = torch.autograd.grad((exact(a, model.map(x)) ** 3) @ V, [a, x])
    close(found, [6 * expected[0], 3 * expected[1]])
    assert sorted(seen) == ["backward", "forward", "hidden"]


class Plain(torch.nn.Module):
    """A model that holds a layer of a score of this file."""

    def __init__(self):
        super().__init__()
        self.A = torch.nn.Parameter(A.clone())
        self.layer = dil.argmin(score, dil.solvers.Newton(), init=zeros)

    def forward(self, x):
        return loss(self.A, x, layer=self.layer)

    def closed_form(self, x):
        return loss(self.A, x, layer=exact)


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_state_dict(model):
    other = type(model)()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(model.state_dict())
    return other


COPIES = {
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
    "state_dict": by_state_dict,
}


@pytest.mark.parametrize("kind", [Model, Plain])
@pytest.mark.parametrize("name", [pytest.param(k, marks=pytest.mark.transform(k)) for k in COPIES])
def test_copies(name, kind):
    model = kind()
    other = COPIES[name](model)
    close(gradients(other, other(B)), gradients(model, model.closed_form(B)))
    assert not {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}


# --- what cannot be had ---


REFUSED = {
    "torch.jit.trace": (
        lambda: torch.jit.trace(lambda a, b: LAYER(a, b), (A, B)),
        "torch.jit.trace.*use torch.compile",
    ),
    "torch.export": (lambda: torch.export.export(Model(), (B,)), "torch.export.*use torch.compile"),
    "make_fx": (
        lambda: torch.fx.experimental.proxy_tensor.make_fx(LAYER)(A, B),
        "make_fx.*use torch.compile",
    ),
    "torch.func.linearize": (lambda: func.linearize(LAYER, A, B), "torch.func.linearize.*torch.func.jvp"),
    "torch.func.functionalize": (lambda: func.functionalize(LAYER)(A, B), "functionalize.*use the function itself"),
    "jacobian(vectorize=True, strategy='forward-mode')": (
        lambda: torch.autograd.functional.jacobian(lambda b: LAYER(A, b), B, vectorize=True, strategy="forward-mode"),
        r"vectorize=True.*use torch\.func\.jacfwd",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_transform_that_cannot_be_had_is_named_with_its_alternative(name):
    call, text = REFUSED[name]
    with pytest.raises(dil.UnsupportedFunctionError, match=text):
        call()
    close(torch.autograd.grad(loss(*(args := leaves())), args), expected_gradients())  # and leaves nothing behind


@ofcompiler
def test_fullgraph_is_refused_with_its_reason():
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"a dil layer is a loop in Python.*without fullgraph=True"):
        torch.compile(Model(), backend="eager", fullgraph=True)(B)


def test_meta_tensors_are_refused():
    with pytest.raises(dil.BackendError, match="on device meta, which holds no numbers to solve with"):
        LAYER(A.to("meta"), B.to("meta"))


@pytest.mark.parametrize(
    ("fn", "solver"),
    [
        (lambda u, t: (u.mul_(2) - t).pow(2).sum(), dil.solvers.Newton()),
        (lambda u, t: (u - t.mul_(2)).pow(2).sum(), dil.solvers.Newton()),
        (lambda u, t: (u.mul_(2) - t).pow(2).sum(), lambda fun, u, t: t / 2),
        (lambda u, t: (u - t).pow(2).sum(), lambda fun, u, t: t.mul_(2)),
    ],
    ids=["u", "argument", "u, closed form", "solver"],
)
def test_a_function_that_writes_into_its_inputs(fn, solver):
    with pytest.raises(dil.UnsupportedFunctionError, match=r"in place.*must leave what.*begin with \w\.clone\(\)"):
        dil.argmin(fn, solver, init=torch.zeros_like, on_failure="ignore")(B.clone())
