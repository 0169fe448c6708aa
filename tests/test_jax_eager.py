"""Eager calls on JAX: compiled once, and never with what has changed since."""

from __future__ import annotations

import collections
import functools
import gc
import logging
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

import dil

jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy

T = jnp.asarray([1.0, -2.0, 0.5])


def start(t):
    return 0.0 * t


def quartic(u, t):
    return jnp.sum((u - t) ** 2 + 0.25 * u**4)


def layer_at(target):
    """Return a layer whose solution is target(t). Its program is the smallest one."""
    return dil.fixed_point(lambda u, t: 0.0 * u + target(t), dil.solvers.FixedPoint(), init=start)


class Model:
    """A step that reads what its object holds."""

    def __init__(self, weight):
        self.weight = weight
        self.layer = dil.fixed_point(self.step, dil.solvers.FixedPoint(), init=start)

    def step(self, u, t):
        return 0.0 * u + self.weight * t


def gradient(layer, t=T):
    return jax.grad(lambda t: jnp.sum(layer(t) ** 2))(t)


@pytest.fixture
def compiles(caplog):
    """The programs that JAX compiles."""
    with jax.log_compiles(True), caplog.at_level(logging.WARNING, logger="jax"):
        yield lambda: [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]


@pytest.mark.parametrize(
    "layer",
    [
        dil.argmin(quartic, dil.solvers.LBFGS(), init=start),
        dil.argmin(quartic, dil.solvers.Newton(), init=start),
        dil.root(lambda u, t: u**3 + u - t, dil.solvers.Newton(), init=start),
        dil.fixed_point(lambda u, t: 0.5 * jnp.cos(u) + t, dil.solvers.Anderson(), init=start),
        dil.value(quartic, dil.solvers.Newton(), init=start),
        Model(2.0).layer,
        *(
            functools.partial(
                dil.control.plan(lambda x, u, t: jnp.sum((u - t) ** 2, axis=-1), lambda x, u, t: x, 1, solver=solver),
                jnp.zeros(1),
            )
            for solver in (dil.control.ILQR(), dil.control.DDP())
        ),
    ],
    ids=["LBFGS", "Newton", "root", "fixed point", "value", "a layer of its own model", "ILQR", "DDP"],
)
def test_the_second_call_compiles_nothing(layer, compiles):
    gradient(layer)
    other = gradient(layer, T + 1.0)
    before = len(compiles())
    np.testing.assert_array_equal(gradient(layer, T + 1.0), other)
    assert compiles()[before:] == []


def scaled(u, t, shape):
    return quartic(u, t) + 0.0 * np.prod(shape(u))


@pytest.mark.parametrize(
    ("score", "init", "more"),
    [
        (quartic, jnp.zeros_like, ()),
        (scaled, lambda t, shape: 0.0 * t, (np.shape,)),
        (quartic, functools.partial(jnp.multiply, 0.0), ()),
        (jax.jit(quartic), start, ()),
        (lambda u, t, act: quartic(u, t) + 0.0 * jnp.sum(act(t)), lambda t, act: 0.0 * t, (jax.nn.relu,)),
    ],
    ids=["a function of JAX", "a function of NumPy", "partial", "jit", "an argument"],
)
def test_a_function_of_a_framework_does_not_make_it_code_of_the_user(score, init, more, compiles):
    """Its modules do not change, so a layer that reads them keeps its program."""
    layer = dil.argmin(score, dil.solvers.GradientDescent(), init=init)
    layer(T, *more)
    other = layer(T + 1.0, *more)
    before = len(compiles())
    np.testing.assert_array_equal(layer(T + 1.0, *more), other)
    assert compiles()[before:] == []


@pytest.mark.parametrize("made", [lambda: np.random.default_rng(0), lambda: collections.deque([1.0])])
def test_a_layer_that_is_compiled_at_every_call_says_so_once(made):
    held = made()
    layer = layer_at(lambda t: t if held is not None else 2 * t)
    layer(T)
    with pytest.warns(UserWarning, match=f"compiled at every call.*{type(held).__name__}, which may") as record:
        layer(T)
    assert record[0].filename == __file__
    layer(T)


def test_a_weak_type_takes_the_program_of_its_dtype(compiles):
    """`jnp.asarray(0.5)` has one, and what an optimiser makes of it has none."""
    layer = dil.argmin(lambda u, t: (u - t) ** 2, dil.solvers.LBFGS(), init=lambda t: 0 * t)
    weak, strong = jnp.asarray(0.5), jnp.asarray(0.5, dtype=float)
    assert (weak.weak_type, strong.weak_type) == (True, False)
    assert not layer(weak).weak_type
    jax.block_until_ready(2 * strong)  # what the next lines compile beside the layer
    before = len([name for name in compiles() if "traced" in name])
    assert layer(strong) == layer(weak)
    assert len([name for name in compiles() if "traced" in name]) == before


def closure():
    weight = [jnp.asarray(1.0)]
    return layer_at(lambda t: weight[0] * t), lambda: weight.__setitem__(0, jnp.asarray(2.0))


def written():
    weight = np.ones(3)
    return layer_at(lambda t: weight * t), lambda: weight.__setitem__(slice(None), 2.0)


def attribute():
    model = Model(1.0)
    return model.layer, lambda: setattr(model, "weight", 2.0)


def partial():
    weight = [1.0]

    def step(share, u, t):
        return share * u + weight[0] * t

    layer = dil.fixed_point(functools.partial(step, 0.0), dil.solvers.FixedPoint(), init=start)
    return layer, lambda: weight.__setitem__(0, 2.0)


def held_by_an_object():
    class Holder:
        def __call__(self, u, t):
            return self.step(u, t)

    holder, weight = Holder(), [1.0]
    holder.step = functools.partial(lambda u, t: 0.0 * u + weight[0] * t)
    layer = dil.fixed_point(holder, dil.solvers.FixedPoint(), init=start)
    return layer, lambda: weight.__setitem__(0, 2.0)


def plan():
    weight = [1.0]

    def cost(x, u, theta):
        return jnp.sum((u - weight[0] * theta) ** 2, axis=-1)

    steer = dil.control.plan(cost, lambda x, u, theta: x, 1, controls=3)
    return lambda t: steer(jnp.zeros(1), t, None)[0], lambda: weight.__setitem__(0, 2.0)


def module_of_the_user():
    settings = types.ModuleType("settings_of_the_user")
    settings.weight = 1.0
    scope = {"settings": settings, "jnp": jnp, "__name__": "settings_of_the_user"}
    step = eval("lambda u, t: 0.0 * u + settings.weight * t", scope)
    return dil.fixed_point(step, dil.solvers.FixedPoint(), init=start), lambda: setattr(settings, "weight", 2.0)


WEIGHT = 1.0


def module_global():
    def change():
        global WEIGHT
        WEIGHT = 2.0

    return layer_at(lambda t: WEIGHT * t), change


def start_of_the_layer():
    at = {"u": 1.0}
    score, solver = lambda u, t: jnp.sum((u**2 - t**2) ** 2), dil.solvers.Newton()
    layer = dil.argmin(score, solver, init=lambda t: at["u"] * t, on_failure="ignore")
    return layer, lambda: at.__setitem__("u", -1.0)


@pytest.mark.parametrize(
    "make",
    [
        closure,
        written,
        attribute,
        partial,
        held_by_an_object,
        plan,
        module_of_the_user,
        module_global,
        start_of_the_layer,
    ],
)
def test_what_the_score_captures_may_change(make):
    layer, change = make()
    before = layer(T)
    np.testing.assert_allclose(layer(T), before)
    change()
    factor = -1.0 if make is start_of_the_layer else 2.0
    np.testing.assert_allclose(layer(T), factor * T, rtol=1e-6)


def test_other_shapes_options_and_dtypes_have_programs_of_their_own():
    solver = dil.solvers.FixedPoint()
    layer = dil.fixed_point(lambda u, t, *, k=1: 0.0 * u + k * t, solver, init=lambda t, k=1: 0 * t)
    for t, k in ((T, 1), (T[:2], 1), (T, 3), (T.astype(jnp.float32), 3), (T, 1)):
        y = layer(t, k=k)
        assert y.dtype == t.dtype
        np.testing.assert_allclose(y, k * t, rtol=1e-6)


def test_programs_are_few_and_go_with_their_layer():
    from dil._layers.programs import MOST_PROGRAMS, Programs

    assert MOST_PROGRAMS <= 64

    def make():
        big = jnp.ones(1000)
        return layer_at(lambda t: t + 0 * jnp.sum(big)), weakref.ref(big)

    layer, ref = make()
    gradient(layer)
    programs = weakref.ref(layer.programs)
    assert isinstance(programs(), Programs)
    del layer
    gc.collect()
    jax.clear_caches()
    gc.collect()
    assert programs() is None
    assert ref() is None


def test_threads_share_a_program():
    layer = dil.argmin(quartic, dil.solvers.Newton(), init=start)
    right = [gradient(layer, T + 0.1 * i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: gradient(layer, T + 0.1 * (i % 4)), range(16)))
    for i, g in enumerate(found):
        np.testing.assert_array_equal(g, right[i % 4])


def test_failures_of_a_program_that_was_compiled_before():
    """Each call tells of its own, at the user's line; a call that is right tells nothing."""

    def layer_of(on_failure):
        score = lambda u, t: jnp.sum(u**4 + t * u)  # noqa: E731
        return dil.argmin(score, dil.solvers.Newton(max_iter=5), init=lambda t: 1e6 + 0 * t, on_failure=on_failure)

    warning, raising = layer_of("warn"), layer_of("raise")
    for _ in range(2):
        with pytest.warns(dil.ConvergenceWarning, match="forward solve: MAX_ITER") as told:
            warning(T)
        assert [w.filename for w in told] == [__file__]
        with pytest.raises(dil.ConvergenceError, match=r"^argmin layer of '.*': forward solve: MAX_ITER"):
            raising(T)


def test_no_tracer_is_kept():
    with jax.check_tracer_leaks():
        layer = dil.argmin(quartic, dil.solvers.Newton(), init=start)
        gradient(layer)
        jax.vmap(layer)(jnp.stack([T, T]))
        jax.jit(layer)(T)


def test_a_captured_array_of_a_trace_is_not_kept():
    def outer(w):
        layer = dil.argmin(lambda u, t: jnp.sum((u - w * t) ** 2), dil.solvers.Newton(), init=start)
        return layer(T)

    np.testing.assert_allclose(jax.jit(outer)(2.0), 2 * T)
    np.testing.assert_allclose(jax.jit(outer)(3.0), 3 * T)
    with pytest.raises(dil.DilError, match="captured"):
        jax.grad(lambda w: jnp.sum(outer(w)))(2.0)


# --- solvers that are not array code run first, and all else is compiled ---


def test_a_solver_of_the_user_runs_once_and_the_rest_is_compiled_once(compiles):
    calls = []

    def solver(f, init, t):
        calls.append(1)
        return jnp.sqrt(t)

    layer = dil.root(lambda u, t: u * u - t, solver)
    t = jnp.asarray([1.0, 4.0])
    gradient(layer, t)
    expected = gradient(layer, t + 1.0)
    before = len(compiles())
    del calls[:]
    found = gradient(layer, t + 1.0)
    assert (len(calls), compiles()[before:]) == (1, [])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, np.ones(2), rtol=1e-12)


def test_a_solver_of_the_user_may_change():
    """It is no part of the program."""
    power = [1.0]
    layer = dil.root(lambda u, t: u * u - t * t, lambda f, init, t: power[0] * t)
    assert float(jax.grad(layer)(2.0)) == 1.0
    power[0] = -1.0
    assert float(jax.grad(layer)(2.0)) == -1.0
    assert float(layer(jnp.asarray(3.0))) == -3.0


def test_scipy_on_jax_without_jit():
    layer = dil.argmin(quartic, dil.solvers.SciPy(), init=start)
    exact = dil.argmin(quartic, dil.solvers.Newton(), init=start)
    np.testing.assert_allclose(gradient(layer), gradient(exact), rtol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(lambda t: gradient(layer, t))(jnp.stack([T, 2 * T]))[0], gradient(exact), rtol=1e-6
    )


def test_a_failure_of_a_solver_of_the_user_is_told_at_its_line():
    layer = dil.argmin(quartic, lambda f, init, t: dil.Solution(0.5 * t, status=dil.Status.MAX_ITER))
    with pytest.warns(dil.ConvergenceWarning, match="forward solve: MAX_ITER") as record:
        layer(T)
    assert record[0].filename == __file__


@pytest.mark.parametrize(
    "transform", [jax.grad, lambda f: jax.jit(jax.grad(f)), lambda f: lambda t: jax.jvp(f, (t,), (t,))]
)
def test_a_failure_in_a_derivative_is_told_at_the_line_of_the_layer(transform):
    layer = dil.root(lambda u, t: u**2 + jnp.abs(t) + 1.0, dil.solvers.Newton(), init=start)

    def run():
        jax.block_until_ready(transform(lambda t: jnp.sum(layer(t)))(T))
        jax.effects_barrier()

    with pytest.warns(dil.ConvergenceWarning) as record:
        run()
    assert {found.filename for found in record} == {__file__}


@pytest.mark.parametrize("run", ["call", "grad", "jit", "jit of grad"])
def test_a_layer_takes_what_it_captures_with_it(run):
    """JAX keeps the parameters of the last equations, but none of a layer that nothing else holds."""
    size = 100_003

    def use():
        held = jnp.ones(size)
        layer = layer_at(lambda t: t * jnp.mean(held))
        t = jnp.asarray(2.0)
        if run == "call":
            return layer(t)
        fn = layer if run == "jit" else jax.grad(layer)
        return fn(t) if run == "grad" else jax.jit(fn)(t)

    use()
    gc.collect()
    assert not [x for x in jax.live_arrays() if x.shape == (size,)]


def test_an_argument_without_a_hash_does_not_make_a_gradient_late():
    @dataclass
    class Settings:
        shift: float = 0.0

    def total(t):
        found = 0.0
        for c in (1.0, 2.0, 4.0):

            def score(u, t, settings):
                return 0.5 * c * u**2 - t * u + settings.shift  # noqa: B023

            found = found + dil.argmin(score, dil.solvers.Newton(), init=lambda t, settings: 0.0 * t)(t, Settings())
        return found

    t = jnp.asarray(2.0)
    for gradient in (jax.grad(total), jax.grad(jax.jit(total)), jax.jit(jax.grad(total))):
        np.testing.assert_allclose(gradient(t), 1.75, rtol=1e-5)


@pytest.mark.parametrize("solver", [dil.solvers.Newton(), dil.solvers.LBFGS(history=True, max_iter=50)])
def test_the_solver_alone_is_compiled_once(compiles, solver):
    layer = dil.argmin(quartic, solver, init=start)
    first, other = layer.solve(T), T + 1.0
    before = len(compiles())
    again = layer.solve(other)
    assert len(compiles()) == before
    np.testing.assert_allclose(layer(T), first.value, rtol=1e-5)
    np.testing.assert_allclose(layer(other), again.value, rtol=1e-5)
    assert (first.extra or {}).keys() == (again.extra or {}).keys()
    assert int(again.status) == 0
