"""Attempts to break a layer: writes, strides, copies, threads, cycles and memory."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import tracemalloc
from contextlib import nullcontext

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from messages import (
    NEWTON,
    V,
    X,
    bowl,
    bowls,
    jax_,
    pulled,
    quartic,
    solved,
    tensor,
    torch_,
    zeros,
)


def overwrites(u, x):
    u -= x
    return array_namespace(u).sum(u * u)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_score_that_writes_into_u_leaves_the_solution_alone_or_is_refused(name):
    pytest.importorskip(name)
    handle = dil.backend(name, dtype="float64")
    try:
        y = dil.argmin(overwrites, solved)(handle.asarray(X.copy()))
    except (dil.DilError, RuntimeError):
        return
    np.testing.assert_array_equal(handle.to_numpy(y), X)


def in_place(fun, init, x):
    init[...] = 2.0 * x
    return init


@pytest.mark.parametrize("name", ["numpy", "torch"])
class TestSolverThatWritesIntoItsStart:
    def double(self, **options):
        return dil.argmin(lambda u, x: bowl(u, 2.0 * x), in_place, **options)

    def test_it_leaves_an_argument_alone(self, name):
        pytest.importorskip(name)
        handle = dil.backend(name, dtype="float64")
        x = handle.asarray(X.copy())
        self.double(init=lambda x: x)(x)
        np.testing.assert_array_equal(handle.to_numpy(x), X)

    def test_it_leaves_the_start_of_the_layer_alone(self, name):
        pytest.importorskip(name)
        handle = dil.backend(name, dtype="float64")
        start = handle.asarray(np.zeros(2))
        self.double(init=start)(handle.asarray(X.copy()))
        np.testing.assert_array_equal(handle.to_numpy(start), [0.0, 0.0])


INFERRED = {
    "argmin": (dil.argmin, lambda u, a, b: ((u - a) ** 4 + b * u**2).sum()),
    "root": (dil.root, lambda u, a, b: u**3 - a + b * u),
    "fixed point": (dil.fixed_point, lambda u, a, b: 0.3 * a * (u + 1.0) ** 0.5 + b),
    "value": (dil.value, lambda u, a, b: ((u - a) ** 4 + b * u**2).sum()),
}


@pytest.mark.parametrize("kind", INFERRED)
@pytest.mark.parametrize("where", ["inference_mode", "no_grad", "neither"])
def test_tensors_of_inference_mode(kind, where):
    """They cannot be saved for a backward pass, which no pass here needs."""
    torch = torch_()
    make, fn = INFERRED[kind]
    solver = dil.solvers.Anderson() if kind == "fixed point" else NEWTON
    layer = make(fn, solver, init=lambda a, b: 0.0 * a)
    a, b = tensor([1.0, 2.0]), tensor([0.5, 0.25])
    expected = layer(a, b)
    with torch.inference_mode():
        inferred = a * 1.0, b * 1.0
    with nullcontext() if where == "neither" else getattr(torch, where)():
        y = layer(*inferred)
    np.testing.assert_array_equal(y.numpy(), expected.numpy())


def test_an_init_that_requires_grad_gets_none():
    init = tensor([0.0, 0.0], requires_grad=True)
    x = tensor([1.0, 2.0], requires_grad=True)
    dil.argmin(bowl, NEWTON)(x, init=init).sum().backward()
    assert init.grad is None
    np.testing.assert_allclose(x.grad, [1.0, 1.0])


@pytest.mark.parametrize("solver", ["Newton", "GradientDescent", "SciPy"])
def test_arrays_that_are_read_only(solver):
    x = X.copy()
    x.flags.writeable = False
    _, pull = dil.vjp(dil.argmin(bowl, getattr(dil.solvers, solver)(), init=lambda x: x), x)
    np.testing.assert_allclose(pull(x)[0], X)


STRIDES = {
    "transposed": lambda a: a.T,
    "every other row": lambda a: a[::2, :],
    "broadcast": lambda a: a[:1, :] if type(a).__module__ != "numpy" else np.broadcast_to(a[:1, :], a.shape),
}


@pytest.mark.parametrize("kind", STRIDES)
def test_arrays_that_are_not_contiguous(eager, kind):
    x = STRIDES[kind](eager.asarray(np.arange(12.0).reshape(3, 4)))
    _, pull = dil.vjp(dil.argmin(bowl, NEWTON, init=zeros), x)
    np.testing.assert_allclose(eager.to_numpy(pull(x)[0]), eager.to_numpy(x))


def test_a_layer_inside_the_score_of_another(eager):
    """The inner layer gives 3 u, so that 1/2 ||3 u - x||^2 + 1/2 ||u||^2 is least at u = 0.3 x."""
    inner = dil.argmin(lambda w, u: bowl(w, 3.0 * u), lambda fun, init, u: 3.0 * u)
    outer = dil.argmin(lambda u, x: bowl(inner(u), x) + bowl(u, 0.0 * x), NEWTON, init=zeros)
    np.testing.assert_allclose(eager.to_numpy(outer(eager.asarray(X))), 0.3 * X, rtol=1e-9)
    np.testing.assert_allclose(pulled(eager, outer, X)[0], 0.3 * V, rtol=1e-9)


def test_a_layer_of_the_output_of_another(eager):
    layer = dil.argmin(quartic, NEWTON, init=zeros)
    assert dil.check_gradients(lambda x: layer(2.0 * layer(x)), eager.asarray(X), directions=1).ok


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_layer_is_copied_and_pickled(twin):
    layer = twin(dil.argmin(quartic, NEWTON, init=np.zeros(2), batch_ndim=0, on_failure="nan"))
    assert dil.check_gradients(layer, X, directions=1).ok


@pytest.mark.parametrize("status", dil.Status, ids=lambda s: s.name)
def test_a_status_is_pickled_with_its_sentence(status):
    again = pickle.loads(pickle.dumps(status))
    assert again is status
    assert again.sentence


def test_jit_of_a_layer_that_holds_its_start():
    jax = jax_()
    layer = dil.argmin(bowl, solved, init=jax.numpy.zeros(2))
    np.testing.assert_array_equal(jax.jit(layer)(jax.numpy.asarray(X)), X)


def test_threads_do_not_meet(eager):
    layer, found = dil.argmin(quartic, NEWTON, init=zeros), {}

    def work(i):
        for _ in range(5):
            found[i] = pulled(eager, layer, X + i)[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(found[i], pulled(eager, layer, X + i)[0])


def test_a_long_batch(eager):
    x = np.random.default_rng(0).standard_normal((20_000, 2))
    ones = np.ones_like(x)
    layer = dil.argmin(bowls, NEWTON, init=zeros, batch_ndim=1)
    y, pull = dil.vjp(layer, eager.asarray(x), eager.asarray(ones))
    (g, _), y = pull(eager.asarray(ones)), eager.to_numpy(y)
    np.testing.assert_allclose(eager.to_numpy(g), 1.0 / (1.0 + 3.0 * y**2), rtol=1e-9)


def dil_step(handle):
    layer, x, v = dil.argmin(quartic, solved_by_newton, on_failure="ignore"), handle.asarray(X), handle.asarray(V)
    return lambda: dil.vjp(layer, x)[1](v)


def torch_step(handle):
    layer, x = dil.argmin(quartic, solved_by_newton, on_failure="ignore"), tensor([1.0, 2.0], requires_grad=True)

    def step():
        x.grad = None
        layer(x).sum().backward()

    return step


def solved_by_newton(fun, init, x):
    return NEWTON(fun, 0.0 * x, x).value


STEPS = {"numpy": dil_step, "torch": dil_step, "torch:backward": torch_step}


@pytest.mark.parametrize("name", STEPS)
def test_nothing_is_left_in_cycles(name):
    """What reference counting frees is free at once; a cycle keeps large arrays until the collector comes."""
    pytest.importorskip(name.partition(":")[0])
    step = STEPS[name](dil.backend(name.partition(":")[0], dtype="float64"))
    step()
    while gc.collect():  # what other tests have left is freed in stages
        pass
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(10):
            step()
        gc.collect()
        # torch.vmap leaves small functions of its own behind, which hold no tensor
        assert not [x for x in gc.garbage if hasattr(x, "shape") or type(x).__module__.startswith("dil")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("name", STEPS)
def test_memory_does_not_grow_from_call_to_call(name):
    pytest.importorskip(name.partition(":")[0])
    step = STEPS[name](dil.backend(name.partition(":")[0], dtype="float64"))
    for _ in range(20):
        step()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(80):  # lists of freed memory fill up: the next calls add less than half of what these do
            step()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(60):
            step()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 30_000
