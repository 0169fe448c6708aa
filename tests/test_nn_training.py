"""ImplicitModule in the loops that people train with, and with the wrappers that people put around parameters.

Each gradient is compared with that of the plain iteration of the same step, unrolled to rounding.
"""

from __future__ import annotations

import copy
import io

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn.utils import parametrizations, parametrize  # noqa: E402

import dil  # noqa: E402
from dil_backends.nn import ImplicitModule  # noqa: E402

F64 = torch.float64
X = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.5, -0.5]], dtype=F64)
Y = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]], dtype=F64)


class Step(torch.nn.Module):
    """A contraction: y = 0.4 tanh(W y + x) + b x."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(3, 3, dtype=F64)
        self.scale = torch.nn.Parameter(torch.tensor(0.3, dtype=F64))
        with torch.no_grad():
            self.inner.weight.mul_(0.5)

    def forward(self, u, x):
        return 0.4 * torch.tanh(self.inner(u) + x) + self.scale * x


class Model(torch.nn.Module):
    """A head, a layer and a loss, as a LightningModule holds them."""

    def __init__(self, step=None):
        super().__init__()
        torch.manual_seed(1)
        self.head = torch.nn.Linear(3, 3, dtype=F64)
        step = Step() if step is None else step
        self.layer = ImplicitModule(
            step, dil.solvers.Anderson(), kind="fixed_point", init=torch.zeros_like, on_failure="raise"
        )

    def forward(self, x):
        return self.layer(self.head(x))

    def unrolled(self, x):
        x = self.head(x)
        u = torch.zeros_like(x)
        for _ in range(120):
            u = self.layer.score(u, x)
        return u

    def training_step(self, batch, forward=None):
        x, y = batch
        return ((self if forward is None else forward)(x) - y).pow(2).mean()


def gradients(model, forward=None, batch=(X, Y)):
    wanted = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(model.training_step(batch, forward), wanted)


def close(found, expected, rtol=1e-9):
    for a, b in zip(found, expected, strict=True):
        top = b.abs().max().item()
        assert top > 0
        torch.testing.assert_close(a.to(b.dtype), b, rtol=0.0, atol=rtol * top)


def check(model, rtol=1e-9):
    close(gradients(model), gradients(model, model.unrolled), rtol)


# --- loops ---


def fit(model, steps, accumulate=2, forward=None, after=lambda model: None):
    """Train as Lightning's automatic optimisation does: accumulate, clip, step, and validate in between."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        for part in range(accumulate):
            batch = (X[part % 2], Y[part % 2])
            loss = model.training_step(batch, None if forward is None else getattr(model, forward)) / accumulate
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        after(model)
        losses.append(loss.item())
    return losses


@pytest.mark.transform("a loop with accumulation, validation in no_grad and in inference_mode", backend="torch")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_training_loop_with_accumulation_and_validation(mode):
    """Validation in between must leave nothing behind that the next step of training trips over."""
    seen = []

    def validate(model):
        model.eval()
        with mode():
            y = model(X)
            assert not y.requires_grad
            seen.append((y - model.unrolled(X)).abs().max().item())
        model.train()

    model, plain = Model(), Model()
    found = fit(model, 5, after=validate)
    expected = fit(plain, 5, forward="unrolled")
    assert found == pytest.approx(expected, rel=1e-7)
    assert max(seen) < 1e-7
    assert len(seen) == 5
    close(list(model.parameters()), list(plain.parameters()), 1e-7)


def test_a_checkpoint_is_resumed_and_an_average_is_kept():
    model = Model()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    copied = copy.deepcopy(model)
    fit(model, 2, after=average.update_parameters)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = Model()
    other.load_state_dict(torch.load(file, weights_only=True))
    close(gradients(other), gradients(model), 1e-12)
    check(average.module)
    check(copied)
    ours, plain = model(X), copied(X)
    assert (ours - plain).abs().max() > 1e-4
    fit(copied, 2)
    close(copied(X), ours)  # the copy has learned the same, on its own


def test_a_module_that_changes_its_dtype():
    model = Model()
    narrow = copy.deepcopy(model).to(torch.float32)
    found = gradients(narrow, batch=(X.float(), Y.float()))
    assert all(g.dtype == torch.float32 for g in found)
    close(found, gradients(model, model.unrolled), 1e-4)
    check(narrow.to(F64), 1e-9)


def test_parameters_that_are_frozen_and_thawed():
    model = Model()
    for p in (model.head.weight, model.layer.score.scale):
        p.requires_grad_(False)
    check(model)
    assert len(gradients(model)) == 3
    model.requires_grad_(True)
    check(model)
    model.layer.requires_grad_(False)
    check(model)


def test_what_inference_mode_has_made_may_be_an_argument():
    model = Model()
    with torch.inference_mode():
        x = X * 1.0
    with torch.no_grad():
        close(model.layer(x), model.layer(X))
    check(model)


# --- parameters that are computed ---

PARAMETRISED = {
    "weight_norm": lambda layer: parametrizations.weight_norm(layer),
    "orthogonal": lambda layer: parametrizations.orthogonal(layer),
    "spectral_norm": lambda layer: parametrizations.spectral_norm(layer),
    "one's own": lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
    "two": lambda layer: parametrize.register_parametrization(
        parametrizations.weight_norm(layer), "weight", Symmetric()
    ),
    "old weight_norm": lambda layer: torch.nn.utils.weight_norm(layer),
}


class Symmetric(torch.nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.transform("parametrised weights of a score, put on and taken off", backend="torch")
@pytest.mark.parametrize("name", PARAMETRISED)
def test_parametrised_weights(name):
    """On a module that was made, and called, without them."""
    model = Model()
    model.eval()  # spectral_norm in training changes its vectors at every call
    plain = gradients(model)
    PARAMETRISED[name](model.layer.score.inner)
    check(model)
    if name != "old weight_norm":
        check(copy.deepcopy(model))
        parametrize.remove_parametrizations(model.layer.score.inner, "weight")
        check(model)
        assert len(gradients(model)) == len(plain)


# --- low-rank adapters ---


class LoRA(torch.nn.Module):
    """A frozen base and two factors: W x + B A x; merged, the factors are in the base."""

    def __init__(self, base, rank=1):
        super().__init__()
        self.base = base.requires_grad_(False)
        generator = torch.Generator().manual_seed(2)
        self.A = torch.nn.Parameter(0.3 * torch.randn(rank, 3, dtype=F64, generator=generator))
        self.B = torch.nn.Parameter(0.3 * torch.randn(3, rank, dtype=F64, generator=generator))
        self.merged = False

    def merge(self, sign=1.0):
        with torch.no_grad():
            self.base.weight += sign * self.B @ self.A
        self.merged = sign > 0

    def forward(self, x):
        return self.base(x) if self.merged else self.base(x) + (x @ self.A.mT) @ self.B.mT


@pytest.mark.transform("low-rank adapters in a score, merged and not", backend="torch")
def test_low_rank_adapters_put_in_after_the_module_was_made():
    model = Model()
    base = model.layer.score.inner.weight.detach().clone()
    check(model)
    adapter = model.layer.score.inner = LoRA(model.layer.score.inner)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert "layer.score.inner.A" in names
    assert "layer.score.inner.base.weight" not in names
    check(model)
    before = model(X)
    adapter.merge()
    close(model(X), before.detach())
    wanted = [p for p in model.layer.parameters() if p.requires_grad]
    found = torch.autograd.grad(model(X).sum(), wanted, allow_unused=True, materialize_grads=True)
    assert [bool(g.abs().sum() > 0) for g in found] == [p is model.layer.score.scale for p in wanted]
    adapter.merge(-1.0)
    fit(model, 2)
    torch.testing.assert_close(adapter.base.weight.detach(), base)
    check(model)


# --- modules in the place of others ---

PARTS = {
    "Linear": lambda: torch.nn.Linear(3, 3, dtype=F64),
    "BatchNorm1d": lambda: torch.nn.BatchNorm1d(3, dtype=F64),
    "Tanh": torch.nn.Tanh,
}


@pytest.mark.parametrize(
    ("before", "after"), [("Linear", "BatchNorm1d"), ("BatchNorm1d", "Linear"), ("BatchNorm1d", "Tanh")]
)
def test_a_part_in_the_place_of_another_that_writes_other_buffers(before, after):
    """What the score writes is known from its first call, but only as long as it has the same parts."""
    step = Step()
    step.inner = PARTS[before]()
    model = Model(step)
    model(X)
    model.layer.score.inner = PARTS[after]()
    y = model(X)
    assert getattr(model.layer.score.inner, "num_batches_tracked", 1) == 1
    close(y, model.unrolled(X).detach(), 1e-7)
    check(model, 1e-7)


def test_dropout_in_the_place_of_a_linear_map_is_refused():
    model = Model()
    model(X)
    model.layer.score.inner = torch.nn.Dropout(0.5)
    with pytest.raises(dil.OptionError, match="draws random numbers"):
        model(X)


def test_spectral_norm_in_training():
    """It writes its vectors at every call; at the solution, as a module of its own, once."""
    model = Model()
    parametrizations.spectral_norm(model.layer.score.inner, n_power_iterations=50)
    found = gradients(model)
    close(found, gradients(model.eval(), model.unrolled))


# --- mixed precision ---


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.transform("GradScaler and autocast around a model with a layer", backend="torch")
def test_a_scaled_loss_under_autocast(half):
    model, wide = Model().float(), Model()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(2):
        with torch.autocast("cpu", dtype=half):
            loss = model.training_step((X.float(), Y.float()))
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        wide.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
        close([p.grad.double() for p in model.parameters()], gradients(wide, wide.unrolled), 2e-2)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
    assert scaler.get_scale() == 2.0**10
