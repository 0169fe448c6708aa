"""ImplicitModule: a layer whose score is an nn.Module."""

from __future__ import annotations

import copy
import doctest
import gc
import pickle
import threading

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import dil  # noqa: E402
from dil_backends import nn as dil_nn  # noqa: E402
from dil_backends.nn import ImplicitModule  # noqa: E402

F64 = torch.float64


class Quadratic(torch.nn.Module):
    """1/2 u^T A u - (B x)^T u with A = L L^T + I: y = A^-1 B x."""

    def __init__(self, n=3, dtype=F64):
        super().__init__()
        generator = torch.Generator().manual_seed(n)
        self.L = torch.nn.Parameter(torch.randn(n, n, dtype=dtype, generator=generator))
        self.B = torch.nn.Linear(n, n, bias=False, dtype=dtype)
        self.register_buffer("eye", torch.eye(n, dtype=dtype))

    @property
    def A(self):
        A = self.L @ self.L.mT + self.eye
        return 0.5 * (A + A.mT)

    def forward(self, u, x):
        return 0.5 * (u @ (self.A @ u)) - self.B(x) @ u


def closed_form(score, x):
    return torch.linalg.solve(score.A, score.B(x))


def quadratic(**options):
    torch.manual_seed(0)
    return ImplicitModule(Quadratic(), dil.solvers.Newton(), init=torch.zeros_like, **options)


X = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
V = torch.tensor([0.3, 1.0, -2.0], dtype=F64)


def gradients(fn, model, x):
    """Return the gradients of <v, fn(x)> in x and in the parameters that take part."""
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    return torch.autograd.grad(fn(x) @ V, wanted)


def close(found, expected, rtol=1e-9):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.detach().abs().max().item())


def test_the_example_of_its_docstring_runs():
    assert doctest.testmod(dil_nn)[0] == 0


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_parameters_buffers_and_inputs_get_the_gradients_of_the_closed_form(mode):
    model, x = quadratic().train(mode), X.clone().requires_grad_()
    model.score.eye.requires_grad_()
    close(gradients(model, model, x), gradients(lambda x: closed_form(model.score, x), model, x))
    (eye,) = torch.autograd.grad(model(x) @ V, model.score.eye)
    close([eye], torch.autograd.grad(closed_form(model.score, x) @ V, model.score.eye))


class Residual(Quadratic):
    def forward(self, u, x, *, scale):
        return scale * (self.A @ u - self.B(x))


class Step(Quadratic):
    def forward(self, u, x):
        A = self.A
        return u - (A @ u - self.B(x)) / torch.linalg.matrix_norm(A, 2)


def test_the_other_kinds_and_keyword_arguments():
    x = X.clone().requires_grad_()
    root = ImplicitModule(Residual(), dil.solvers.Newton(), kind="root", init=lambda x, scale: 0 * x)
    scale = torch.tensor(3.0, dtype=F64)
    close(
        gradients(lambda x: root(x, scale=scale), root, x),
        gradients(lambda x: closed_form(root.score, x), root, x),
    )
    step = ImplicitModule(Step(), lambda fun, u, x: closed_form(step.score, x), kind="fixed_point")
    close(gradients(step, step, x), gradients(lambda x: closed_form(step.score, x), step, x), rtol=1e-7)


def test_a_training_loop_learns():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3, dtype=F64), quadratic())
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = ((model(X) - V) ** 2).sum()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


class Tied(torch.nn.Module):
    """Two linear maps that share their weight W: y = W^T W x / (1 + 1)."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 3, bias=False, dtype=F64)
        self.second = torch.nn.Linear(3, 3, bias=False, dtype=F64)
        self.second.weight = self.first.weight

    def forward(self, u, x):
        return (u**2).sum() - u @ self.first(self.second(x))


def test_a_shared_parameter_counts_once_and_gets_the_gradient_of_both_uses():
    model = ImplicitModule(Tied(), dil.solvers.Newton(), init=torch.zeros_like)
    W = model.score.first.weight
    assert len(list(model.parameters())) == 1
    (found,) = torch.autograd.grad(model(X) @ V, W)
    (expected,) = torch.autograd.grad((W @ W @ X) @ V / 2, W)
    close([found], [expected])


class TiedTwice(Tied):
    """The same with a weight that a part of two names holds, and another part."""

    def __init__(self):
        super().__init__()
        self.third = self.second

    def forward(self, u, x):
        return (u**2).sum() - u @ self.first(self.third(x))


def test_a_parameter_of_a_shared_part_that_is_tied_to_another():
    model = ImplicitModule(TiedTwice(), dil.solvers.Newton(), init=torch.zeros_like)
    W = model.score.first.weight
    for _ in range(2):
        (found,) = torch.autograd.grad(model(X) @ V, W)
        (expected,) = torch.autograd.grad((W @ W @ X) @ V / 2, W)
        close([found], [expected])


class Counting(torch.autograd.Function):
    """W x, which counts the gradients of W that are computed."""

    count = 0

    @staticmethod
    def forward(ctx, W, x):
        ctx.save_for_backward(W, x)
        return W @ x

    @staticmethod
    def backward(ctx, ct):
        W, x = ctx.saved_tensors
        dW = None
        if ctx.needs_input_grad[0]:
            Counting.count += 1
            dW = torch.outer(ct, x)
        return dW, W.mT @ ct


class Counted(Quadratic):
    def forward(self, u, x):
        return 0.5 * (u @ (self.A @ u)) - Counting.apply(self.B.weight, x) @ u


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_parameter_gets_no_gradient_and_costs_no_work(frozen):
    model = ImplicitModule(Counted(), lambda fun, u, x: closed_form(fun_score[0], x))
    fun_score = [model.score]
    model.score.B.weight.requires_grad_(not frozen)
    Counting.count = 0
    model(X).backward(V)
    assert (model.score.B.weight.grad is None) == frozen
    assert model.score.L.grad.abs().max() > 0
    assert (Counting.count == 0) == frozen


def test_under_no_grad_it_only_solves():
    model, x = quadratic(), X.clone().requires_grad_()
    with torch.no_grad():
        y = model(x)
    assert not y.requires_grad
    close([y], [closed_form(model.score, x).detach()])
    with torch.inference_mode():
        assert torch.equal(model(x), y)


def test_a_module_without_parameters_is_differentiable_in_its_arguments():
    class Mean(torch.nn.Module):
        def forward(self, u, x):
            return ((u - x) ** 2).sum()

    model, x = ImplicitModule(Mean(), dil.solvers.Newton(), init=lambda x: x[0] * 0), X.clone().requires_grad_()
    assert list(model.parameters()) == []
    (found,) = torch.autograd.grad(model(x), x)
    close([found], [torch.full_like(x, 1 / 3)])


# --- running statistics, modes, threads ---


class Normed(torch.nn.Module):
    """1/2 |u|^2 - sum of BatchNorm(x) u: y is the batch, normalised; statistics are kept while training."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2, dtype=F64)

    def forward(self, u, x):
        return 0.5 * (u**2).sum() - (self.norm(x) * u).sum()


def normed():
    return ImplicitModule(Normed(), dil.solvers.Newton(), init=torch.zeros_like)


BATCH = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 0.5]], dtype=F64)


def test_running_statistics_are_written_once_for_each_call():
    model, alone, x = normed(), torch.nn.BatchNorm1d(2, dtype=F64), BATCH.clone().requires_grad_()
    weight = torch.arange(6, dtype=F64).reshape(3, 2)
    for _ in range(2):
        found = torch.autograd.grad((model(x) * weight).sum(), x)
        close(found, torch.autograd.grad((alone(x) * weight).sum(), x))
    assert int(model.score.norm.num_batches_tracked) == 2
    for name, buffer in alone.named_buffers():
        torch.testing.assert_close(dict(model.score.norm.named_buffers())[name], buffer, rtol=1e-12, atol=0)
    model.eval()
    torch.testing.assert_close(model(x), alone.eval()(x))
    assert int(model.score.norm.num_batches_tracked) == 2
    assert not any(b.requires_grad for b in model.buffers())


def test_the_backward_pass_is_in_the_mode_of_the_forward_pass():
    model, x = normed(), BATCH.clone().requires_grad_()
    weight = torch.arange(6, dtype=F64).reshape(3, 2)
    (expected,) = torch.autograd.grad((model(x) * weight).sum(), x)
    y = model(x)
    model.eval()
    (found,) = torch.autograd.grad((y * weight).sum(), x)
    close([found], [expected])
    assert not model.score.norm.training


def test_dropout_while_training_is_refused():
    class Dropped(Quadratic):
        def forward(self, u, x):
            return super().forward(u, torch.nn.functional.dropout(x, 0.5, self.training))

    model = ImplicitModule(Dropped(), dil.solvers.Newton(), init=torch.zeros_like)
    with pytest.raises(dil.OptionError, match=r"'Dropped' draws random numbers .*put it in eval\(\), or draw them out"):
        model(X)
    close([model.eval()(X)], [closed_form(model.score, X)])


def test_two_threads_may_use_one_module():
    model = quadratic()
    inputs = [X * (1 + i) for i in range(2)]
    expected = [gradients(lambda x: closed_form(model.score, x), model, x.requires_grad_()) for x in inputs]
    found, parameters = {}, list(model.parameters())

    def work(i):
        for _ in range(15):
            found[i] = gradients(model, model, inputs[i])
            close(found[i], expected[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        close(found[i], expected[i])
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_nothing_is_left_behind_by_a_call():
    model = normed()

    def once():
        model(BATCH.clone().requires_grad_()).sum().backward()

    def alive():
        return sum(issubclass(type(x), torch.Tensor | torch.nn.Module) for x in gc.get_objects())

    once()
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for _ in range(10):
            once()
        assert alive() <= before
    finally:
        gc.enable()


def test_an_lstm_keeps_its_weights_in_a_place_of_its_own():
    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = torch.nn.LSTM(3, 2, dtype=F64)

        def forward(self, u, x):
            return ((u - self.cell(x)[0]) ** 2).sum()

    x = BATCH @ torch.ones(2, 3, dtype=F64)
    model = ImplicitModule(Recurrent(), dil.solvers.Newton(), init=lambda x: 0 * x[:, :2])
    found = torch.autograd.grad(model(x).pow(2).sum(), list(model.parameters()))
    expected = torch.autograd.grad(model.score.cell(x)[0].pow(2).sum(), list(model.parameters()))
    close(found, expected)


# --- saving, copying, moving ---


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("init", [torch.zeros(3, dtype=F64), torch.zeros_like], ids=["tensor", "callable"])
def test_copies_are_independent(again, init):
    model = ImplicitModule(Quadratic(), dil.solvers.Newton(), init=init)
    other = again(model)
    close([other(X)], [model(X).detach()], rtol=1e-12)
    other(X).sum().backward()
    assert model.score.L.grad is None
    assert other.score.L.grad.abs().max() > 0


def test_state_dict_holds_the_score_and_nothing_else():
    model, other = quadratic(), quadratic()
    assert list(model.state_dict()) == ["score.L", "score.eye", "score.B.weight"]
    other.score.L.data.zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), model(X))


def test_a_module_moves_with_its_start():
    model = ImplicitModule(Quadratic(), dil.solvers.Newton(), init=torch.zeros(3, dtype=F64))
    y = model.to(torch.float32)(X.float())
    assert y.dtype == torch.float32
    close([y], [closed_form(model.score, X.float())], rtol=1e-5)


def test_a_start_may_be_a_tree():
    class Two(torch.nn.Module):
        def forward(self, u, x):
            return ((u["a"] - x) ** 2).sum() + (u["b"] - 2 * x[0]) ** 2

    start = {"a": torch.zeros(3, dtype=F64), "b": torch.zeros((), dtype=F64)}
    model = ImplicitModule(Two(), dil.solvers.Newton(), init=start)
    y = copy.deepcopy(model).float()(X.float())
    assert y["b"].dtype == torch.float32
    close([y["a"], y["b"]], [X.float(), 2 * X.float()[0]], rtol=1e-5)


def test_solve_and_report():
    model = quadratic()
    sol = model.solve(X)
    assert int(sol.status) == dil.Status.CONVERGED
    assert not sol.value.requires_grad
    close([sol.value], [closed_form(model.score, X).detach()])
    assert model.report(X).ok


# --- bad input ---


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ImplicitModule(lambda u: u, dil.solvers.Newton()), "expected a torch.nn.Module; .*dil.argmin"),
        (lambda: quadratic(kind="max"), "kind='max' is unknown; expected one of argmin, root, fixed_point"),
        (lambda: quadratic(on_failure="rise"), "on_failure='rise' is unknown"),
        (lambda: ImplicitModule(Quadratic(), dil.solvers.Newton), r"solver=.*did you mean Newton\(\)"),
    ],
)  # fmt: skip
def test_options_are_checked_when_the_module_is_made(make, text):
    with pytest.raises(dil.OptionError, match=text):
        make()


def test_a_parameter_on_another_device():
    model = quadratic()
    model.score.B.to("meta")
    with pytest.raises(dil.BackendError, match=r"B\.weight on meta.*move them to one device, the module by"):
        model(X)
    with pytest.raises(dil.BackendError, match=r"on meta.*move them to one device, the module by"):
        quadratic().to("meta")(X)


def test_a_parameter_of_another_dtype():
    text = r"L of the score 'Quadratic' is of torch.float64, but argument 0 of torch.float32; .*cast the argument,"
    with pytest.raises(dil.DTypeError, match=text):
        quadratic()(X.float())
    model = quadratic()
    model.score.B.float()
    with pytest.raises(dil.DTypeError, match=r"L .* but B\.weight of torch.float32; .*module\.to\(torch\.float32\)"):
        model(X)


class InPlace(torch.nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what
        self.w = torch.nn.Parameter(torch.ones(3, dtype=F64))

    def forward(self, u, x):
        {"u": u, "x": x, "w": self.w.detach()}[self.what].mul_(1.5)
        return ((u - self.w * x) ** 2).sum()


@pytest.mark.parametrize("solver", [dil.solvers.Newton(), lambda fun, u, x: x.clone()], ids=["Newton", "closed form"])
@pytest.mark.parametrize("what", ["u", "x", "w"])
def test_a_score_that_writes_into_what_it_is_given(what, solver):
    x = X.clone()
    model = ImplicitModule(InPlace(what), solver, init=torch.zeros_like)
    with pytest.raises(dil.UnsupportedFunctionError, match=r"in place.*must leave what .*begin with u\.clone\(\)"):
        model(x)


def test_a_lazy_parameter():
    class Lazy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.map = torch.nn.LazyLinear(3, dtype=F64)

        def forward(self, u, x):
            return ((u - self.map(x)) ** 2).sum()

    model = ImplicitModule(Lazy(), dil.solvers.Newton(), init=torch.zeros_like)
    with pytest.raises(dil.OptionError, match=r"'map\.weight' of Lazy has no shape yet; call the score once"):
        model(X)
    model.score(X, X)
    assert model(X).shape == (3,)


def test_the_modules_own_argument_is_not_taken_from_the_call():
    with pytest.raises(dil.OptionError, match=r"score_module= of an ImplicitModule is the module's own"):
        quadratic()(X, score_module=1)
