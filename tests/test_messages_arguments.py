"""Trees, integers and shapes of the unknown, and captured parameters: a right answer or a message."""

from __future__ import annotations

import dataclasses
from collections import namedtuple

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from messages import (
    NEWTON,
    V,
    X,
    bowl,
    integers,
    jax_,
    pulled,
    solved,
    tensor,
    torch_,
    zeros,
)

Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass(frozen=True)
class Box:
    a: object
    b: object


TREES = {
    "dict": (lambda a, b: {"b": b, "a": a}, lambda t: (t["a"], t["b"])),
    "list": (lambda a, b: [a, b], tuple),
    "tuple": (lambda a, b: (a, (b,)), lambda t: (t[0], t[1][0])),
    "namedtuple": (Pair, tuple),
    "dataclass": (Box, lambda t: (t.a, t.b)),
}


def tree_layer(make, take):
    """The minimum of 1/2 ||a - x||^2 + 1/2 (b - c)^2 with unknown (a, b) and argument (x, c)."""

    def score(u, p):
        (a, b), (x, c) = take(u), take(p)
        return bowl(a, x) + 0.5 * (b - c) ** 2

    def solver(fun, init, p):
        x, c = take(p)
        return make(x * 1.0, c * 1.0)

    return dil.argmin(score, solver)


@pytest.mark.parametrize("kind", TREES)
def test_trees_as_unknown_and_as_argument(eager, kind):
    make, take = TREES[kind]
    argument = make(eager.asarray(X), eager.asarray(3.0))
    y, pull = dil.vjp(tree_layer(make, take), argument)
    assert type(y) is type(argument)
    (found,) = pull(make(eager.asarray(V), eager.asarray(5.0)))
    assert type(found) is type(argument)
    np.testing.assert_allclose(eager.to_numpy(take(found)[0]), V)
    np.testing.assert_allclose(eager.to_numpy(take(found)[1]), 5.0)


def test_trees_on_jax():
    jnp = jax_().numpy
    make, take = TREES["namedtuple"]
    _, pull = dil.vjp(tree_layer(make, take), make(jnp.asarray(X), jnp.asarray(3.0)))
    (found,) = pull(make(jnp.asarray(V), jnp.asarray(5.0)))
    np.testing.assert_allclose(found.a, V)


@pytest.mark.parametrize("empty", [{}, [], (), {"a": []}], ids=str)
def test_an_empty_tree_as_unknown(eager, empty):
    layer = dil.argmin(bowl, lambda fun, init, x: empty)
    with pytest.raises(dil.ShapeError, match=r"is an empty tree .*; give at least one float array"):
        layer(eager.asarray(X))


@pytest.mark.parametrize("name", ["Newton", "GradientDescent", "SciPy"])
def test_an_empty_array_as_unknown(eager, name):
    layer = dil.argmin(bowl, getattr(dil.solvers, name)(), init=zeros)
    x = eager.asarray(np.zeros(0))
    y, pull = dil.vjp(layer, x)
    assert tuple(y.shape) == tuple(pull(x)[0].shape) == (0,)


@pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
def test_a_batch_without_problems_or_without_unknowns(eager, shape):
    layer = dil.argmin(lambda u, x: array_namespace(u).sum((u - x) ** 2, axis=-1), NEWTON, init=zeros, batch_ndim=1)
    x = eager.asarray(np.zeros(shape))
    y, pull = dil.vjp(layer, x)
    assert tuple(y.shape) == tuple(pull(x)[0].shape) == shape


def test_a_scalar_unknown_has_a_gradient(plain):
    layer = dil.argmin(lambda u, x: 0.5 * (u - 2.0 * x) ** 2, lambda fun, init, x: 2.0 * x)
    y, (g,) = plain.gradients(layer, (3.0,), 5.0)
    assert (y.shape, float(y), float(g)) == ((), 6.0, 10.0)


def scaled_layer():
    def score(u, x, k):
        return bowl(u, x * array_namespace(u).astype(k, u.dtype))

    return dil.argmin(score, lambda fun, init, x, k: x * array_namespace(x).astype(k, x.dtype))


def test_integer_leaves_are_carried_along_without_a_gradient(plain):
    x, k = plain.asarray(X), integers(plain, [2.0, 3.0])
    _, pull = dil.vjp(scaled_layer(), x, k)
    gx, gk = pull(plain.asarray(V))
    np.testing.assert_allclose(plain.to_numpy(gx), V * [2.0, 3.0])
    assert gk is None


def test_integer_leaves_have_float0_gradients_on_jax():
    jax = jax_()
    x, k = jax.numpy.asarray(X), jax.numpy.asarray([2, 3])
    gradient = jax.grad(lambda x, k: scaled_layer()(x, k).sum(), argnums=(0, 1), allow_int=True)
    gx, gk = gradient(x, k)
    np.testing.assert_allclose(gx, [2.0, 3.0])
    assert gk.dtype == jax.dtypes.float0


def test_keyword_arguments_have_gradients(plain):
    layer = dil.argmin(lambda u, x, c: bowl(u, c * x), lambda fun, init, x, c: c * x)
    gx, gc = pulled(plain, lambda x, c: layer(x, c=c), X, 2.0)
    np.testing.assert_allclose(gx, 2.0 * V)
    np.testing.assert_allclose(gc, (V * X).sum())


def test_python_numbers_and_strings_are_carried_along(eager):
    layer = dil.argmin(lambda u, x, k, how: bowl(u, k * x), lambda fun, init, x, k, how: k * x)
    (g,) = pulled(eager, lambda x: layer(x, 2.0, how="now"), X)
    np.testing.assert_allclose(g, 2.0 * V)


CAPTURED = "captured by a? ?closure.*[Pp]ass it"


def closure(solver=solved, **options):
    """A layer as a function of t, which its score holds and its arguments do not."""

    def fn(t, x):
        return array_namespace(x).sum(dil.argmin(lambda u, x: bowl(u, t * x), solver, **options)(x))

    return fn


@pytest.mark.parametrize("solver", [solved, NEWTON], ids=["closed form", "Newton"])
def test_a_captured_parameter_under_dil_grad(plain, solver):
    with pytest.raises(dil.CapturedError, match=CAPTURED):
        dil.grad(closure(solver, init=zeros))(plain.asarray(2.0), plain.asarray(X))


def test_a_captured_parameter_that_is_not_differentiated(plain):
    """The other argument is: here the captured one is a constant, which it may be."""
    found = dil.grad(closure(NEWTON, init=zeros), argnums=1)(plain.asarray(2.0), plain.asarray(X))
    np.testing.assert_allclose(plain.to_numpy(found), [2.0, 2.0])


@pytest.mark.parametrize("place", ["solver", "init"])
def test_what_a_solver_or_an_init_captures_needs_no_gradient_or_is_refused(eager, place):
    """Neither can change the minimum: either an error, or the right gradient, zero."""

    def fn(t, x):
        solver = (lambda fun, init, x: x + 0.0 * t) if place == "solver" else NEWTON
        layer = dil.argmin(bowl, solver, init=lambda x: 0.0 * x + t)
        return array_namespace(x).sum(layer(x))

    try:
        gradient = dil.grad(fn)(eager.asarray(2.0), eager.asarray(X))
    except dil.CapturedError:
        return
    assert float(gradient) == 0.0


def test_a_captured_parameter_of_a_given_gradient(eager):
    def fn(t, x):
        given = dil.Derivatives(gradient=lambda u, x: u - t * x)
        layer = dil.argmin(bowl, lambda fun, init, x: x * 2.0, derivatives=given)
        return array_namespace(x).sum(layer(x))

    with pytest.raises(dil.CapturedError, match=CAPTURED):
        dil.grad(fn)(eager.asarray(2.0), eager.asarray(X))


@pytest.mark.parametrize("solver", [solved, NEWTON], ids=["closed form", "Newton"])
class TestCapturedOnTorch:
    def test_under_backward(self, solver):
        with pytest.raises(dil.CapturedError, match=CAPTURED):
            closure(solver, init=zeros)(tensor(2.0, requires_grad=True), tensor([1.0, 2.0]))

    def test_a_tensor_that_is_no_leaf(self, solver):
        t = 2.0 * tensor(1.0, requires_grad=True)
        with pytest.raises(dil.CapturedError, match=CAPTURED):
            closure(solver, init=zeros)(t, tensor([1.0, 2.0], requires_grad=True))

    def test_under_torch_func(self, solver):
        torch = torch_()
        with pytest.raises(dil.CapturedError, match=CAPTURED):
            torch.func.grad(closure(solver, init=zeros))(tensor(2.0), tensor([1.0, 2.0]))

    def test_under_forward_mode(self, solver):
        torch = torch_()
        x = tensor([1.0, 2.0])
        with pytest.raises(dil.CapturedError, match=CAPTURED):
            torch.func.jvp(lambda t: closure(solver, init=zeros)(t, x), (tensor(2.0),), (tensor(1.0),))

    def test_under_no_grad_it_is_fine(self, solver):
        torch = torch_()
        with torch.no_grad():
            closure(NEWTON, init=zeros)(tensor(2.0, requires_grad=True), tensor([1.0, 2.0]))


class TestModuleOnTorch:
    @pytest.fixture
    def module(self):
        torch = torch_()

        class Energy(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.w = torch.nn.Parameter(tensor([1.0, 2.0]))

            def forward(self, u, x):
                return bowl(u, x) + 0.5 * (self.w * u**2).sum()

        return Energy()

    def layer(self, module):
        return dil.argmin(module, NEWTON, init=zeros)

    def test_its_parameters_are_refused(self, module):
        with pytest.raises(dil.CapturedError, match=r"a parameter of a module.*pass it as an argument, or detach it"):
            self.layer(module)(tensor([1.0, 2.0], requires_grad=True))

    def test_under_no_grad_they_are_fine(self, module):
        with torch_().no_grad():
            y = self.layer(module)(tensor([1.0, 2.0]))
        np.testing.assert_allclose(y, [1.0 / 2.0, 2.0 / 3.0], rtol=1e-9)

    def test_frozen_parameters_are_fine(self, module):
        x = tensor([1.0, 2.0], requires_grad=True)
        self.layer(module.requires_grad_(False))(x).sum().backward()
        np.testing.assert_allclose(x.grad, [1.0 / 2.0, 1.0 / 3.0], rtol=1e-9)

    def test_passed_as_an_argument_they_get_their_gradient(self, module):
        call = torch_().func.functional_call
        layer = dil.argmin(lambda u, x, p: call(module, p, (u, x)), NEWTON, init=zeros)
        layer(tensor([1.0, 2.0]), dict(module.named_parameters())).sum().backward()
        np.testing.assert_allclose(module.w.grad, [-1.0 / 4.0, -2.0 / 9.0], rtol=1e-9)

    def test_under_torch_func_grad(self, module):
        call = torch_().func.functional_call

        def loss(p):
            return dil.argmin(lambda u, x: call(module, p, (u, x)), NEWTON, init=zeros)(tensor([1.0, 2.0])).sum()

        with pytest.raises(dil.CapturedError, match=CAPTURED):
            torch_().func.grad(loss)(dict(module.named_parameters()))


@pytest.mark.parametrize("solver", [solved, NEWTON], ids=["closed form", "Newton"])
@pytest.mark.parametrize("order", ["grad", "jit of grad", "grad of jit", "jvp"])
def test_a_captured_parameter_on_jax(solver, order):
    jax = jax_()
    t, x = jax.numpy.asarray(2.0), jax.numpy.asarray(X)
    fn = closure(solver, init=zeros)
    transformed = {
        "grad": jax.grad(fn),
        "jit of grad": jax.jit(jax.grad(fn)),
        "grad of jit": jax.grad(jax.jit(fn)),
        "jvp": lambda t, x: jax.jvp(lambda t: fn(t, x), (t,), (t,)),
    }
    with pytest.raises(dil.CapturedError, match=CAPTURED):
        transformed[order](t, x)


def test_a_captured_tracer_that_is_not_differentiated_on_jax():
    jax = jax_()
    t, x = jax.numpy.asarray(2.0), jax.numpy.asarray(X)
    found = jax.jit(jax.grad(closure(NEWTON, init=zeros), argnums=1))(t, x)
    np.testing.assert_allclose(found, [2.0, 2.0])
