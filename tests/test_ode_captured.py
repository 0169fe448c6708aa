"""Functions of a differential equation that capture arrays: closures, modules, methods, partials."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import dil
from dil.ode import Event, odeint, solve
from ode_helpers import close, on

T = [0.0, 0.5]


@on("numpy", "array_api_strict", "torch", "torch:func", "torch:backward", slow=("jax:jit",))
@pytest.mark.parametrize("way", ["implicit", "naive", "unroll", "adjoint"])
def test_a_captured_array_has_its_gradient(engine, way):
    """One step of implicit Euler for y' = -k^2 y: y = 2 / (1 + k^2 / 2). The adjoint method has an error of its own."""

    def captured(rate):
        square = rate * rate
        return odeint(lambda t, y: -square * y, engine.asarray(2.0), T, gradient=way)[-1]

    def argument(rate):
        return odeint(lambda t, y, square: -square * y, engine.asarray(2.0), T, rate * rate, gradient=way)[-1]

    y, (slope,) = engine.gradients(captured, (1.5,))
    close(y, 2.0 / 2.125)
    close(slope, engine.gradients(argument, (1.5,))[1][0])
    if way != "adjoint":
        close(slope, -3.0 / 2.125**2)


@on("jax:jit")
def test_a_tracer_that_is_captured_has_its_gradient(engine):
    y, (slope,) = engine.gradients(
        lambda rate: odeint(lambda t, y: -rate * y, engine.asarray(2.0), T, method="euler")[-1], (1.5,)
    )
    close(y, 0.5)
    close(slope, -1.0)


@on("numpy", "torch", "torch:func")
@pytest.mark.parametrize("method", ["tsit5", "kvaerno5"])
def test_derivatives_through_adaptive_steps(engine, method):
    """Those of an argument, to rounding: both modes and the second order."""
    if method == "kvaerno5" and engine.name != "numpy":
        pytest.skip("NumPy runs this one")
    given = {"method": method, "rtol": 1e-3}

    def captured(rate):
        twice = 2.0 * rate
        return odeint(lambda t, y: -twice * y * y, engine.asarray(2.0), T, **given)[-1]

    def argument(rate):
        return odeint(lambda t, y, rate: -2.0 * rate * y * y, engine.asarray(2.0), T, rate, **given)[-1]

    found, expected = (engine.gradients(fn, (1.5,)) for fn in (captured, argument))
    close(found[0], expected[0])
    close(found[1][0], expected[1][0])
    rate, one = engine.asarray(1.5), engine.asarray(1.0)
    for of in (lambda fn: dil.jvp(fn, (rate,), (one,))[1], lambda fn: dil.grad(dil.grad(fn))(rate)):
        close(engine.to_numpy(of(captured)), engine.to_numpy(of(argument)))


@on("numpy", "torch")
def test_an_event_and_a_jacobian_capture(engine):
    """y = e^-kt meets the level l at t = -log(l) / k."""

    def time(level, rate):
        event = Event(lambda t, y: y[0] - level, terminal=True)
        jac = lambda t, y: -rate * (y[:, None] * 0.0 + 1.0)  # noqa: E731
        options = {"rtol": 1e-9, "jac": jac, "events": event}
        _, (found,) = odeint(lambda t, y: -rate * y, engine.asarray([1.0]), [0.0, 9.0], **options)
        return found.t[0]

    t, (of_level, of_rate) = engine.gradients(time, (0.5, 2.0))
    close(t, np.log(2.0) / 2.0, 1e-7)
    close(of_level, -1.0, 1e-6)
    close(of_rate, -np.log(2.0) / 4.0, 1e-6)


def test_a_captured_array_beside_a_mass_and_arguments():
    def last(hidden, shown, weight):
        return odeint(lambda t, y, a: -hidden * a * y, np.asarray([2.0]), T, shown, mass=np.stack([weight]))[-1, 0]

    args = tuple(map(np.asarray, (1.5, 0.5, 2.0)))
    y, pull = dil.vjp(last, *args)
    close(y, 2.0 / (1.0 + 0.375 / 2))
    scale = -2.0 / (1.0 + 0.375 / 2) ** 2 / 2
    close(np.stack(pull(np.asarray(1.0))), scale * np.asarray([0.25, 0.75, -0.1875]))


def test_a_derivative_within_the_function():
    """The field is the gradient of an energy, which captures an array of a transform around."""

    def last(k):
        return odeint(lambda t, y: -dil.grad(lambda q: 0.5 * k * q * q)(y), np.asarray(2.0), T)[-1]

    k = np.asarray(1.5)
    close(dil.grad(last)(k), -1.0 / 1.75**2)
    close(dil.grad(dil.grad(last))(k), 1.0 / 1.75**3)


@pytest.fixture
def torch():
    module = pytest.importorskip("torch", reason="torch is not installed")
    module.manual_seed(0)
    return module


def network(torch):
    layers = (torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    return torch.nn.Sequential(*layers).double()


def field_of(torch, net):
    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = net, 0

        def forward(self, t, y):
            self.calls += 1
            return self.net(y)

        def other(self, t, y):
            return self(t, y)

    return Field()


def by_hand(A, a, B, b):
    return lambda t, y: B @ (A @ y + a).tanh() + b


WAYS = {
    "module": lambda field: field,
    "method": lambda field: field.other,
    "partial": lambda field: partial(lambda net, t, y: net(t, y), field),
    "closure": lambda field: lambda t, y: field.net(y),
    "weights": lambda field: by_hand(*field.parameters()),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", [{}, {"method": "tsit5", "rtol": 1e-4}], ids=["euler", "tsit5"])
def test_parameters_of_a_module(torch, way, options):
    net = network(torch)
    field, start = field_of(torch, net), torch.tensor([1.0, -0.5], dtype=torch.float64)
    by_name = dict(net.named_parameters())
    called = lambda t, y, p: torch.func.functional_call(net, p, (y,))  # noqa: E731
    expected = torch.autograd.grad(odeint(called, start, T, (by_name,), **options)[-1].sum(), [*by_name.values()])
    found = odeint(WAYS[way](field), start, T, **options)[-1].sum()
    with torch.no_grad():
        assert way in ("closure", "weights") or field.calls > 0
    for a, b in zip(torch.autograd.grad(found, list(net.parameters())), expected, strict=True):
        close(a, b)


@pytest.mark.parametrize("options", [{}, {"method": "tsit5", "rtol": 1e-4}], ids=["euler", "tsit5"])
def test_a_functional_call_around(torch, options):
    """The backward pass comes when the module has its own parameters again."""
    net, start = network(torch), torch.tensor([1.0, -0.5], dtype=torch.float64)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.memory = net, torch.nn.LSTMCell(2, 2).double()
            self.register_buffer("scale", torch.ones((), dtype=torch.float64))

        def forward(self, y):
            zero = torch.zeros(1, 2, dtype=torch.float64)
            field = lambda t, y: self.scale * self.memory(self.net(y)[None], (zero, zero))[0][0]  # noqa: E731
            return odeint(field, y, T, **options)[-1].sum()

    model = Model()
    given = {name: x.detach() for name, x in model.state_dict().items()} | {
        "scale": torch.tensor(2.0, dtype=torch.float64)
    }
    slopes = torch.func.grad(lambda p: torch.func.functional_call(model, p, (start,)))(given)
    direction = {name: torch.randn_like(x) for name, x in given.items()}
    ahead, behind = (
        torch.func.functional_call(model, {k: x + s * direction[k] for k, x in given.items()}, (start,))
        for s in (1e-5, -1e-5)
    )
    along = sum(float((slopes[k] * direction[k]).sum()) for k in given)
    close(along, float((ahead - behind).detach()) / 2e-5, 1e-4)
    assert float(model.scale) == 1.0


def test_a_recurrent_network_keeps_its_weights_in_a_list(torch):
    lstm, start = torch.nn.LSTM(2, 2).double(), torch.tensor([1.0, -0.5], dtype=torch.float64)
    y = odeint(lambda t, y: lstm(y[None])[0][0], start, T, method="euler")[-1]
    found = torch.autograd.grad(y.sum(), list(lstm.parameters()))
    expected = torch.autograd.grad((start + 0.5 * lstm(start[None])[0][0]).sum(), list(lstm.parameters()))
    for a, b in zip(found, expected, strict=True):
        close(a, b)
    assert all(x is y for x, y in zip(lstm._flat_weights, lstm.parameters(), strict=True))


def test_a_parameter_that_is_read_later(torch):
    class Switch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.early, self.late = (torch.nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (1.0, 2.0))

        def forward(self, t, y):
            return (self.early if t < 0.25 else self.late) * y

    switch, hidden = Switch(), []
    start = torch.tensor(1.0, dtype=torch.float64)
    options = {"method": "euler", "steps": 2}
    odeint(switch, start, T, **options)[-1].backward()
    close([float(switch.early.grad), float(switch.late.grad)], [0.25 * 1.5, 0.25 * 1.25])
    hidden.append(switch)
    with pytest.raises(dil.CapturedError, match=r"reads a parameter of shape .* bind it by functools.partial"):
        odeint(lambda t, y: hidden[0](t, y), start, T, **options)


def test_a_solve_without_a_derivative(torch):
    net = network(torch)
    field, start = field_of(torch, net), torch.tensor([1.0, -0.5], dtype=torch.float64)
    with torch.no_grad():
        expected = odeint(field, start, T, rtol=1e-6, method="tsit5")
        assert not expected.requires_grad
    found = solve(field, start, T, rtol=1e-6, method="tsit5").value
    assert not found.requires_grad
    close(found, expected)


def test_what_cannot_be_followed_is_refused(torch):
    class Times(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w, y):
            ctx.save_for_backward(w, y)
            return w * y

        @staticmethod
        def backward(ctx, v):
            w, y = ctx.saved_tensors
            return (v * y).sum(), v * w

    w, y = torch.tensor(0.5, dtype=torch.float64, requires_grad=True), torch.ones(2, dtype=torch.float64)
    with pytest.raises(dil.CapturedError, match=r"in a way that cannot be followed.* pass it in args"):
        odeint(lambda t, y: Times.apply(w, y), y, T)
    close(torch.autograd.grad(odeint(lambda t, y, w: Times.apply(w, y), y, T, w)[-1].sum(), w)[0], 2 * 0.5 / 0.75**2)


def test_a_captured_array_of_another_precision(torch):
    net, y = torch.nn.Linear(2, 2), torch.ones(2, dtype=torch.float64)
    with pytest.raises(dil.DTypeError, match=r"an array that '<lambda>' captures has dtype torch.float32, but y0 has"):
        odeint(lambda t, y: net(y.float()).double(), y, T)


def test_a_module_of_equinox():
    jax, eqx = (pytest.importorskip(name, reason=f"{name} is not installed") for name in ("jax", "equinox"))

    class Field(eqx.Module):
        rate: jax.Array
        power: int

        def __call__(self, t, y):
            return -self.rate * y**self.power

        def method(self, t, y):
            return self(t, y)

    def last(field, way):
        fn = {"module": field, "method": field.method, "partial": partial(Field.__call__, field)}[way]
        return odeint(fn, jax.numpy.asarray(2.0), T, method="euler")[-1]

    field = Field(jax.numpy.asarray(0.5), 2)
    for way in ("module", "method", "partial"):
        slopes = (
            eqx.filter_grad(last)(field, way) if way == "module" else eqx.filter_jit(eqx.filter_grad(last))(field, way)
        )
        close(slopes.rate, -2.0)


@on("torch")
def test_a_function_that_draws_random_numbers_is_refused(engine):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)).double()
    y0 = engine.asarray(np.ones(2))
    event = Event(lambda t, y: net(y)[0] - 9.0)
    for func, more in ((lambda t, y: net(y), {}), (lambda t, y: -y, {"events": event, "rtol": 1e-3})):
        with pytest.raises(dil.OptionError, match=r"draws random numbers \(Dropout in training\)"):
            odeint(func, y0, T, **more)
    with pytest.raises(dil.OptionError, match="draws random numbers, so"):
        odeint(lambda t, y: -y * torch.rand(()), y0, T)

    def seeded(t, y):
        torch.manual_seed(0)
        return -y * torch.rand((), dtype=torch.float64)

    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert torch.isfinite(odeint(seeded, y0, T)).all()
    with torch.no_grad():
        assert torch.isfinite(odeint(lambda t, y: net(y), y0, T, method="euler")).all()
    net.eval()
    odeint(lambda t, y: net(y), y0, T)[-1].sum().backward()
    assert net[0].weight.grad.abs().max() > 0
