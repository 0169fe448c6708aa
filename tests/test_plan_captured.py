"""Gradients of plans in the arrays that cost and dynamics capture: of closures, modules of torch, Equinox modules."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil.control import DDP, ILQR, Box, mpc_rollout, plan
from dil.solvers import LBFGS

DRAW = np.random.default_rng(0)
A, B = np.eye(2) + 0.2 * DRAW.standard_normal((2, 2)), DRAW.standard_normal((2, 1))
X0, GOAL, PRICE = DRAW.standard_normal((3, 2)), DRAW.standard_normal(2), np.asarray(0.2)


def cost(x, u, theta):
    goal, price = theta
    xp = array_namespace(x)
    return xp.sum((x - goal) ** 2, axis=-1) + price * xp.sum(u**2, axis=-1)


def final(x, theta):
    return 2.0 * array_namespace(x).sum((x - theta[0]) ** 2, axis=-1)


def bent(x, u, theta):
    a, b = theta
    return array_namespace(x).tanh(x @ a.T + u @ b.T)


def by_arguments(x0, goal, price, a, b, **options):
    return plan(cost, bent, 4, final=final, **options)(x0, (goal, price), (a, b))


def by_capture(x0, goal, price, a, b, **options):
    """The goal is captured by cost and final cost, the price is an argument, and the dynamics capture theirs."""
    steer = plan(
        lambda x, u, price: cost(x, u, (goal, price)),
        lambda x, u, _: bent(x, u, (a, b)),
        4,
        final=lambda x, price: final(x, (goal, price)),
        **options,
    )
    return steer(x0, price)


STRICT = "an operator of array_api_strict takes no array that is being differentiated beside its own"
ARGS = (X0, GOAL, PRICE, A, B)


def test_captured_arrays_have_the_gradients_of_arguments(engine):
    if engine.backend == "array_api_strict":
        pytest.skip(STRICT)
    V = np.random.default_rng(1).standard_normal((3, 4, 1))
    u, pull = dil.vjp(lambda *args: by_arguments(*args, solver=DDP()), *ARGS)
    value, found = engine.gradients(lambda *args: by_capture(*args, solver=DDP()), ARGS, V)
    np.testing.assert_allclose(value, u, rtol=1e-9, atol=1e-10)
    for a, b in zip(found, pull(V), strict=True):
        assert np.max(np.abs(a - b)) <= 1e-9 * np.max(np.abs(b))


def own(fun, init, *args):
    return DDP()(fun, init, *args)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": ILQR(max_iter=20), "on_failure": "ignore"},
        {"solver": LBFGS(rtol=1e-12)},
        {"solver": own},
        {"bounds": Box(-0.2, 0.2)},
        {"solver": DDP(), "bounds": (-0.5, 0.5), "barrier": 1e-2},
    ],
    ids=["ILQR", "LBFGS", "own", "Box", "map"],
)
def test_with_every_solver_and_in_both_modes(options):
    V, tangents = np.random.default_rng(1).standard_normal((3, 4, 1)), tuple(0.1 * np.cos(a) for a in ARGS)
    for one, other in zip(
        dil.vjp(lambda *args: by_capture(*args, **options), *ARGS)[1](V),
        dil.vjp(lambda *args: by_arguments(*args, **options), *ARGS)[1](V),
        strict=True,
    ):
        assert np.max(np.abs(one - other)) <= 1e-6 * np.max(np.abs(other))
    one, other = (
        dil.jvp(lambda *args, fn=fn: fn(*args, **options), ARGS, tangents)[1] for fn in (by_capture, by_arguments)
    )
    assert np.max(np.abs(one - other)) <= 1e-6 * np.max(np.abs(other))


def test_a_rollout_of_captured_parameters(eager):
    if eager.backend == "array_api_strict":
        pytest.skip(STRICT)

    def states(a, b, captures):
        if captures:
            steer = plan(cost, lambda x, u, _: bent(x, u, (a, b)), 4, solver=DDP())
        else:
            steer = plan(cost, bent, 4, solver=DDP())
        theta = tuple(map(eager.asarray, (GOAL, PRICE)))
        given = () if captures else ((a, b),)
        run = mpc_rollout(steer, lambda x, u: bent(x, u, (a, b)), eager.asarray(X0), 3, theta, *given)
        return array_namespace(a).sum(run.states**2)

    args = tuple(map(eager.asarray, (A, B)))
    found, expected = (dil.grad(lambda a, b, c=c: states(a, b, c), argnums=(0, 1))(*args) for c in (True, False))
    for one, other in zip(found, expected, strict=True):
        one, other = eager.to_numpy(one), eager.to_numpy(other)
        assert np.max(np.abs(one - other)) <= 1e-9 * np.max(np.abs(other))


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch


def module_of(torch, dtype):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = torch.nn.Linear(3, 5, dtype=dtype), torch.nn.Linear(5, 2, dtype=dtype)

        def forward(self, x, u, theta=None):
            return x + 0.3 * self.outer(torch.tanh(self.inner(torch.cat([x, u], dim=-1))))

    return Net()


def test_a_module_of_torch_is_the_dynamics(torch):
    net, x0 = module_of(torch, torch.float64), torch.tensor(X0)
    theta = tuple(map(torch.tensor, (GOAL, PRICE)))
    torch.sum(plan(cost, net, 4, solver=DDP())(x0, theta) ** 2).backward()
    given = {name: x.detach().clone().requires_grad_() for name, x in net.named_parameters()}

    def functional(x, u, weights):
        return torch.func.functional_call(net, weights, (x, u))

    torch.sum(plan(cost, functional, 4, solver=DDP())(x0, theta, given) ** 2).backward()
    for name, x in net.named_parameters():
        assert torch.max(torch.abs(x.grad - given[name].grad)) <= 1e-9 * torch.max(torch.abs(given[name].grad)), name


def test_a_report_looks_at_the_parameters_of_a_module(torch):
    net, x0 = module_of(torch, torch.float64), torch.tensor(X0)
    report = plan(cost, net, 4, solver=DDP()).report(x0, tuple(map(torch.tensor, (GOAL, PRICE))))
    assert not report.backward.status.any()
    assert np.all(report.backward.bound <= 1e-6)


def test_a_step_of_an_optimiser_is_seen(torch):
    net, x0 = module_of(torch, torch.float64), torch.tensor(X0)
    theta, steer = tuple(map(torch.tensor, (GOAL, PRICE))), plan(cost, net, 4, solver=DDP())
    loss = torch.sum(steer(x0, theta) ** 2)
    loss.backward()
    torch.optim.SGD(net.parameters(), lr=1e-4).step()
    assert torch.sum(steer(x0, theta) ** 2) < loss


def test_a_module_of_another_precision_is_told(torch):
    net = module_of(torch, torch.float32)
    with pytest.raises((dil.DTypeError, RuntimeError), match="dtype"):
        plan(cost, net, 4, solver=DDP())(torch.tensor(X0), tuple(map(torch.tensor, (GOAL, PRICE))))


def test_a_call_without_a_transform_traces_nothing_to_look_for_tracers():
    jax = pytest.importorskip("jax")
    calls = []

    def counted(x):
        calls.append(x)
        return 2.0 * x

    x = jax.numpy.ones(2)
    assert dil.backend("jax").module.lifted(counted, x).arrays == ()
    assert calls == []


def test_a_module_of_equinox_is_the_dynamics():
    eqx, jax = pytest.importorskip("equinox"), pytest.importorskip("jax")

    class Bent(eqx.Module):
        a: jax.Array
        b: jax.Array

        def __call__(self, x, u, theta=None):
            return bent(x, u, (self.a, self.b))

    theta = tuple(map(jax.numpy.asarray, (GOAL, PRICE)))

    @eqx.filter_jit
    @eqx.filter_grad
    def found(net):
        return jax.numpy.sum(plan(cost, net, 4, solver=DDP())(jax.numpy.asarray(X0), theta))

    net = found(Bent(*map(jax.numpy.asarray, (A, B))))
    _, pull = dil.vjp(lambda a, b: plan(cost, bent, 4, solver=DDP())(X0, (GOAL, PRICE), (a, b)), A, B)
    for one, other in zip((net.a, net.b), pull(np.ones((3, 4, 1))), strict=True):
        assert np.max(np.abs(np.asarray(one) - other)) <= 1e-9 * np.max(np.abs(other))
