"""ImplicitModule whose score had its `forward` replaced on the instance, as libraries that wrap modules do."""

from __future__ import annotations

import functools
import types

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import dil  # noqa: E402
from dil_backends.nn import ImplicitModule  # noqa: E402


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

    def forward(self, u, x):
        return ((u - self.w * x) ** 2).sum()


class Outer(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, u, x):
        return self.inner(u, x)


def _wrapped(part):
    old = part.forward

    @functools.wraps(old)
    def forward(*args):
        return old(*args)

    return forward


FUNCTIONS = {
    "of the method": lambda part: lambda u, x, old=part.forward: old(u, x),
    "of the module": lambda part: lambda u, x: ((u - part.w * x) ** 2).sum(),
    "of a parameter": lambda part: lambda u, x, w=part.w: ((u - w * x) ** 2).sum(),
    "of functools.wraps": _wrapped,
}
METHODS = {
    "a method": lambda part: types.MethodType(lambda self, u, x: ((u - self.w * x) ** 2).sum(), part),
    "a partial": lambda part: functools.partial(Scaled.forward, part),
}


@pytest.mark.parametrize("place", ["the module", "its part 'inner'"])
@pytest.mark.parametrize("patch", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_forward_that_was_replaced_by_a_function_is_named(patch, place):
    part = Scaled()
    part.forward = patch(part)
    module = ImplicitModule(part if place == "the module" else Outer(part), dil.solvers.Newton(), init=torch.zeros_like)
    with pytest.raises(dil.CapturedError, match=rf"the forward of {place} was replaced .*MethodType") as told:
        module(torch.ones(2, dtype=torch.float64))
    assert "belongs into" not in str(told.value)


@pytest.mark.parametrize("patch", METHODS.values(), ids=METHODS)
def test_a_forward_that_was_replaced_by_a_method_has_gradients(patch):
    part = Scaled()
    part.forward = patch(part)
    y = ImplicitModule(part, dil.solvers.Newton(), init=torch.zeros_like)(torch.ones(2, dtype=torch.float64))
    y.sum().backward()
    torch.testing.assert_close(part.w.grad, torch.ones(2, dtype=torch.float64))


def test_a_captured_tensor_in_a_module_is_not_told_to_be_another_kind_of_layer():
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    part = Scaled()
    part.register_forward_pre_hook(lambda part, args: (args[0] * w, args[1]))
    with pytest.raises(dil.CapturedError, match=r"or detach it$"):
        ImplicitModule(part, dil.solvers.Newton(), init=torch.zeros_like)(torch.ones(2, dtype=torch.float64))
