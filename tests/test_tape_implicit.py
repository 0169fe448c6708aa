"""The custom derivative of the tape, and properties of its rules by random shapes."""

from __future__ import annotations

import math
import threading

import array_api_compat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dil._base.errors import CapturedError, ShapeError
from dil_backends._tape import constant, implicit, is_box, namespace, vjp
from dil_backends._tape.rules.indexing import Rows
from tape_helpers import Doubled, assert_transposed, gradient


def cubic(y, a, b):
    """The residual a y^3 + y - b, increasing in y for a > 0; by functions, for array_api_strict refuses raw * box."""
    tape = namespace(y)
    return tape.subtract(tape.add(tape.multiply(a, tape.pow(y, 3)), y), b)


def solve_cubic(a, b):
    assert not is_box(a)
    assert not is_box(b)
    y = 0.0 * b
    for _ in range(60):
        y = y - cubic(y, a, b) / (3 * a * y**2 + 1)
    return (y,)


class CubicRule:
    """The implicit function theorem for `cubic`, elementwise."""

    def __init__(self):
        self.wrt = []

    def pullback(self, args, y, cotangents, wrt):
        self.wrt.append(tuple(wrt))
        ones = tuple(array_api_compat.array_namespace(part).ones_like(part) for part in y)
        (slope,) = vjp(lambda y: (cubic(y, *args),), *y)[1](ones)
        _, pull = vjp(lambda *args: (cubic(y[0], *args),), *args)
        return pull((-cotangents[0] / slope,), wrt)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_implicit_differentiates(order, xp):
    a, b = xp.asarray([0.5, 1.0, 2.0]), xp.asarray([1.0, -2.0, 0.3])
    f, args = implicit(solve_cubic, CubicRule()), (a, b)
    outputs = 1
    for _ in range(order - 1):
        f, args, outputs = gradient(f, outputs), (*args, *args[:outputs]), len(args)
    assert_transposed(f, args, np.random.default_rng(0), rtol=1e-7)


def test_implicit_asks_for_what_is_wanted_only():
    rule = CubicRule()
    call = implicit(solve_cubic, rule)
    a, b = np.array([0.5]), np.array([1.0])
    y, pull = vjp(lambda a, b: call(a, b * 2.0), a, b)
    pull(y, [1])
    pull(y, [0])
    pull(y)
    vjp(lambda b: call(a, b), b)[1](y)
    assert rule.wrt == [(1,), (0,), (0, 1), (1,)]
    assert type(call(a, b)[0]) is np.ndarray


def test_implicit_has_several_outputs():
    class Swapped:
        def pullback(self, args, y, cotangents, wrt):
            return tuple((cotangents[1], 3.0 * cotangents[0])[i] for i in wrt)

    call = implicit(lambda a, b: (3.0 * b, a, np.array([7])), Swapped())
    a, b = np.array([1.0]), np.array([2.0])

    def f(a, b):
        y, z, count = call(a, b)
        assert type(count) is np.ndarray
        return y * count, z

    y, pull = vjp(f, a, b)
    assert (y[0], y[1]) == (42.0, 1.0)
    assert pull((np.ones(1), np.ones(1))) == (1.0, 21.0)
    _, pull = vjp(lambda a, b: f(a, b)[:1], a, b)
    assert pull((np.ones(1),)) == (0.0, 21.0)  # the second output has no cotangent: zero, not None


def test_a_captured_parameter_is_refused():
    def layer(theta, x):
        def solve(x):
            return (x * theta,)

        return implicit(solve, Doubled())(x)

    x = np.ones(2)
    with pytest.raises(CapturedError, match=r"captured by closure.*Pass it to the layer as an argument"):
        vjp(lambda theta: layer(theta, x), x)
    with pytest.raises(CapturedError, match="captured"):
        vjp(lambda theta: layer(theta, theta), x)
    with pytest.raises(CapturedError, match="captured"):
        vjp(lambda theta: implicit(lambda x: (x,) if np.all(theta > 0) else (-x,), Doubled())(x), x)
    assert layer(x, x)[0] is not None
    vjp(lambda theta: implicit(lambda x: (x * constant(theta),), Doubled())(x), x)


def test_inside_the_solver_new_traces_are_free():
    def solve(x):
        return vjp(lambda y: (np.sum(y**3),), x)[1]((np.ones(()),))

    (y,), _ = vjp(implicit(solve, Doubled()), np.array([2.0]))
    assert y == 12.0


def test_the_barrier_falls_after_an_exception():
    def failing(x):
        raise KeyError

    def f(x):
        with pytest.raises(KeyError):
            implicit(failing, Doubled())(x)
        with pytest.raises(CapturedError):
            implicit(lambda y: (y * x,), Doubled())(x)
        return (x * 2.0,)

    assert vjp(f, np.ones(1))[1]((np.ones(1),))[0] == 2.0


def test_the_barrier_is_of_its_thread():
    inside, done = threading.Event(), threading.Event()

    def solve(x):
        inside.set()
        assert done.wait(10)
        return (x,)

    thread = threading.Thread(target=lambda: vjp(implicit(solve, Doubled()), np.ones(1)))

    def f(x):
        thread.start()
        assert inside.wait(10)
        y = x * 3.0  # while the other thread's barrier is up
        done.set()
        thread.join()
        return (y,)

    assert vjp(f, np.ones(1))[1]((np.ones(1),))[0] == 3.0


def test_a_pullback_of_the_wrong_shape_is_named():
    class Wrong:
        def pullback(self, args, y, cotangents, wrt):
            return (np.ones(3),)

    y, pull = vjp(implicit(lambda x: (x,), Wrong()), np.ones(2))
    with pytest.raises(ShapeError, match=r"shape \(3,\) for an argument of shape \(2,\)"):
        pull(y)


SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


SEEDS = st.integers(0, 2**32 - 1)


@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3, min_side=0), SEEDS)
def test_broadcasting(shapes, seed):
    rng = np.random.default_rng(seed)
    args = tuple(np.asarray(rng.normal(size=shape)) for shape in shapes.input_shapes)
    mask = np.asarray(rng.normal(size=shapes.result_shape)) > 0  # fixed: a difference must not step over a jump

    def f(a, b, c):
        return a * b + np.hypot(b, 1.0) / (c * c + 1.0), np.where(mask, a, np.maximum(a, c + 9.0))

    assert_transposed(f, args, rng, rtol=1e-7)


@given(st.data(), SEEDS)
def test_indexing(data, seed):
    rng = np.random.default_rng(seed)
    shape = data.draw(SHAPES)
    x = np.asarray(rng.normal(size=shape))
    key = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    if shape and math.prod(shape) and data.draw(st.booleans()):
        key = data.draw(hnp.integer_array_indices(shape))
    y, pull = vjp(lambda x: (x[key],), x)
    v = np.asarray(rng.normal(size=np.shape(x[key])))
    np.testing.assert_array_equal(y[0], x[key])
    expected = np.zeros(shape)
    np.add.at(expected, key, v)
    size = np.zeros(shape)
    np.add.at(size, key, abs(v))
    assert np.all(abs(pull((v,))[0] - expected) <= 1e-15 * 8 * size)


@given(st.integers(0, 40), st.integers(1, 6), st.booleans(), SEEDS)
def test_scatter_adds_without_mixing_rows(k, count, wide, seed):
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(k, 2) if wide else (k,)) * 10.0 ** rng.integers(-12, 12, size=(k, 1) if wide else (k,))
    g[rng.random(k) < 0.1] = np.nan
    at = rng.integers(0, count, size=k)
    expected, size = np.zeros((count, *g.shape[1:])), np.zeros((count, *g.shape[1:]))
    np.add.at(expected, at, g)
    np.add.at(size, at, abs(g))
    found = namespace(g).scatter(g, Rows(at, count))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    fine = ~np.isnan(expected)
    assert np.all(abs(found - expected)[fine] <= 1e-14 * size[fine])


@settings(max_examples=50)
@given(SHAPES, st.data(), SEEDS)
def test_reductions(shape, data, seed):
    rng = np.random.default_rng(seed)
    x = np.asarray(rng.permutation(math.prod(shape)).reshape(shape) * 0.3 + rng.uniform(-0.05, 0.05, size=shape) - 1.7)
    axes = data.draw(st.none() | st.sets(st.sampled_from(range(x.ndim)) if x.ndim else st.nothing()).map(tuple))
    axes = axes and tuple(a - x.ndim * data.draw(st.booleans()) for a in axes)
    name = data.draw(st.sampled_from(["sum", "mean", "prod", "max", "min", "norm"]))
    reduced = x.size if axes is None else math.prod(x.shape[a] for a in axes)
    if (axes == () and name == "norm") or (reduced == 0 and name not in ("sum", "prod", "norm")):
        return
    keepdims = data.draw(st.booleans())
    function = getattr(namespace(x), name)
    assert_transposed(lambda x: (function(x, axis=axes, keepdims=keepdims),), (x,), rng, rtol=1e-6)
