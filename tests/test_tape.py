"""What a pull and a box keep: dtypes, laws, names in refusals, lifetime."""

from __future__ import annotations

import gc
import math
import operator
import threading
import weakref
from collections import Counter
from itertools import pairwise

import array_api_compat
import array_api_compat.numpy as np_xp
import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dil._base.errors import BackendError, CapturedError, DTypeError, ShapeError, UnsupportedFunctionError
from dil_backends._tape import constant, implicit, is_box, namespace, value_type, vjp
from dil_backends._tape import primitive as _tape
from dil_backends._tape.trace import OPEN
from tape_helpers import Doubled, assert_transposed, gradient, inner, random_like, total


def test_dtype_and_device_are_those_of_the_primal(xp):
    a, b = xp.asarray([1.0, 2.0], dtype=xp.float32), xp.asarray([[3.0, 4.0]], dtype=xp.float64)

    def f(a, b):
        tape = array_api_compat.array_namespace(a, b)
        return tape.sum(a * b**2 + tape.matmul(b, a) + 2 * a), tape.astype(a, xp.float64), tape.concat([a[None, :], b])

    def kept(grads, primals):
        return [(g.dtype, g.shape, g.device) for g in grads] == [(x.dtype, x.shape, x.device) for x in primals]

    y, pull = vjp(f, a, b)
    assert [part.dtype for part in y] == [xp.float64] * 3
    assert kept(pull(y), (a, b))
    assert kept(pull(tuple(xp.astype(part, xp.float32) for part in y)), (a, b))
    grads, again = vjp(lambda a, b, *c: vjp(f, a, b)[1](c), a, b, *y)
    assert kept(again(grads), (a, b, *y))
    assert kept(pull(y, [0]), (a,))


def test_float32_stays_float32():
    x = np.asarray([0.5, 1.5], dtype=np.float32)
    functions = [lambda x: x**2, lambda x: 2.0 * x / 3, lambda x: np.where(x > 1, x, 0.0), lambda x: x @ x]
    for f in [*functions, np.tanh, np.var, np.linalg.norm]:
        (y,), pull = vjp(lambda x, f=f: (f(x),), x)
        assert y.dtype == pull((np.ones_like(y),))[0].dtype == np.float32


def test_only_floating_arrays_are_differentiated(xp):
    with pytest.raises(DTypeError, match="int64"):
        vjp(lambda x: (x,), xp.asarray([1, 2]))
    with pytest.raises(BackendError, match="one library"):
        vjp(lambda a, b: (a,), np.ones(2), array_api_strict.ones(2))


def test_integers_come_out_without_boxes(xp):
    def f(x):
        tape = array_api_compat.array_namespace(x)
        values = [tape.astype(x, tape.int64), tape.argmax(x), x > 0, x == x, tape.sign(x), tape.floor(x), x // 1.0]
        values += [tape.isfinite(x), tape.zeros_like(x), tape.searchsorted(x, x), tape.sum(x, dtype=tape.int64)]
        assert not any(map(is_box, values))
        assert tape.result_type(x, tape.float32) == tape.finfo(x).dtype == tape.finfo(x.dtype).dtype == xp.float64
        return (x,)

    vjp(f, xp.asarray([1.0, 2.0]))


def score(u, a):
    xp = array_api_compat.array_namespace(u, a)
    return (xp.sum(xp.log1p(xp.exp(xp.matmul(a, u)))) + 0.5 * xp.sum(u * u) * xp.prod(u),)


def gradient_of_score(u, a):
    return gradient(score, 1)(u, a, array_api_compat.array_namespace(u).ones_like(u[0]))


@given(st.integers(0, 2**32 - 1), st.floats(-1e3, 1e3))
def test_pull_is_linear(seed, scale):
    rng = np.random.default_rng(seed)
    x, u = rng.normal(size=(3, 2)), rng.normal(size=(3, 2))
    y, pull = vjp(lambda x: (np.exp(x) @ x.T, np.sum(x**3, axis=0)), x)
    v, w = random_like(y, rng), random_like(y, rng)
    (both,) = pull(tuple(a + scale * b for a, b in zip(v, w, strict=True)))
    # the terms that are summed: |J|^T |v|, and the same of w
    _, absolute = vjp(lambda x: (np.exp(x) @ x.T, np.sum(x**3, axis=0)), abs(x))
    terms = absolute(tuple(abs(a) + abs(scale * b) for a, b in zip(v, w, strict=True)))[0]
    difference = both - pull(v)[0] - scale * pull(w)[0]
    assert abs(np.sum(difference * u)) <= 1e-14 * np.sum(terms * abs(u))


def test_hessian_is_symmetric(xp):
    rng = np.random.default_rng(0)
    u, a, v, w = (xp.asarray(rng.normal(size=shape)) for shape in [(4,), (5, 4), (4,), (4,)])
    _, pull = vjp(lambda u: gradient_of_score(u, a)[:1], u)
    left, size = inner(pull((v,)), (w,))
    right, _ = inner(pull((w,)), (v,))
    assert abs(left - right) <= 1e-14 * size


def test_mixed_second_derivatives_are_transposes(xp):
    """d/da of the gradient in u, pulled, against d/du of the gradient in a, pulled."""
    rng = np.random.default_rng(1)
    u, a = xp.asarray(rng.normal(size=3)), xp.asarray(rng.normal(size=(2, 3)))
    (du, da), pull = vjp(gradient_of_score, u, a)
    v, w = random_like((du, da), rng)
    zero_u, zero_a = xp.zeros_like(u), xp.zeros_like(a)
    left, size = inner(pull((v, zero_a), [1]), (w,))
    right, _ = inner(pull((zero_u, w), [0]), (v,))
    assert abs(left - right) <= 1e-14 * size


def test_what_is_unconnected_gets_an_exact_zero(xp):
    x, z = xp.asarray([1.0, 2.0]), xp.asarray([[math.inf]])
    y, pull = vjp(lambda x, z: (xp.ones(3), z - 1.0, x, x), x, z)
    one = tuple(xp.ones_like(part) for part in y)
    zeros = tuple(map(xp.zeros_like, one))
    assert total(abs(pull((one[0], *zeros[1:]))[0])) == 0
    gx, gz = pull((one[0], zeros[1], one[2], one[3]))
    assert (total(gx), total(abs(gz)), gz.shape) == (4, 0, (1, 1))
    _, pull = vjp(lambda x, z: (x,), x, z)
    assert total(abs(pull((x,), [1])[0])) == 0
    assert pull((x,), []) == ()


def test_wrt_does_no_other_work(monkeypatch):
    calls = Counter()
    pull_of = _tape.Primitive.pull

    def counted(self, node, c, wanted):
        calls.update((self.name, i) for i in wanted)
        return pull_of(self, node, c, wanted)

    monkeypatch.setattr(_tape.Primitive, "pull", counted)
    a, b = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    y, pull = vjp(lambda a, b: (np.exp(a) * np.sin(b), np.cos(a), np.tanh(np.tanh(b))), a, b)
    pull(y, [1])
    assert calls == {("multiply", 1): 1, ("sin", 0): 1, ("tanh", 0): 2}
    calls.clear()
    pull(y, [0])
    assert calls == {("multiply", 0): 1, ("exp", 0): 1, ("cos", 0): 1}
    calls.clear()
    pull(y, ())
    assert not calls


def test_pull_checks_its_cotangents():
    y, pull = vjp(lambda x: (x, x[0]), np.ones(2))
    with pytest.raises(ShapeError, match="1 cotangents were given for 2 outputs"):
        pull(y[:1])
    with pytest.raises(ShapeError, match=r"shape \(2,\) has shape \(3,\)"):
        pull((np.ones(3), y[1]))
    with pytest.raises(ShapeError, match="tuple of arrays; it returned Box"):
        vjp(lambda x: x, np.ones(2))


def test_third_derivatives(xp):
    def derivative(f):
        return lambda x: vjp(lambda x: (f(x),), x)[1]((array_api_compat.array_namespace(x).ones_like(x),))[0]

    x = xp.asarray(0.7)
    third = derivative(derivative(derivative(lambda x: array_api_compat.array_namespace(x).sin(x))))
    assert math.isclose(float(third(x)), -math.cos(0.7), rel_tol=1e-15)
    assert float(derivative(derivative(derivative(derivative(lambda x: x**4))))(x)) == 24.0
    u = xp.asarray(np.random.default_rng(2).normal(size=4))
    second = gradient(gradient(lambda u: (array_api_compat.array_namespace(u).prod(u) * u[0],), 1), 1)
    assert_transposed(second, (u, xp.asarray(1.3), u), np.random.default_rng(3))


def test_no_perturbation_confusion():
    def inner_derivative(x):
        return vjp(lambda y: (x + y,), np.array(1.0))[1]((np.array(1.0),))[0]

    y, pull = vjp(lambda x: (x * inner_derivative(x),), np.array(3.0))
    assert (y[0], pull((np.array(1.0),))[0]) == (3.0, 1.0)


def test_control_flow_on_values():
    def f(x):
        while x < 10.0:
            x = x * x if x > 3 else 3 * x
        return (x,)

    y, pull = vjp(f, np.array(2.0))
    assert (y[0], pull((np.array(1.0),))[0]) == (36.0, 36.0)


def test_operators_and_attributes(xp):
    def f(x):
        assert (x.shape, x.ndim, x.size, x.dtype, len(x), x.device) == ((2, 3), 2, 6, xp.float64, 2, a.device)
        assert (x.T.shape, x.mT.shape, repr(x)) == ((3, 2), (3, 2), f"Box({constant(x)!r})")
        assert {x: 1}[x] == 1
        assert x is +x or is_box(+x)
        first, second = x
        compared = [x < 1.0, x <= x, x > 0, x >= 1, x != x, x == x]
        assert not any(map(is_box, compared))
        y = 1 + x - 2 * x / 3.0 + (2 - x) ** 2 + 2.0**x + 1.0 / (x + 4.0) + abs(-x) + x % 0.7 + 5.0 % (x + 9)
        return y, x @ x.T, first * second, x // 2.0

    a = xp.asarray(np.random.default_rng(0).uniform(0.1, 0.6, size=(2, 3)))
    assert_transposed(lambda x: f(x) if is_box(x) else vjp(f, x)[0], (a,), np.random.default_rng(1))


CUTS = {
    "float": float,
    "int": int,
    "complex": complex,
    "integer": operator.index,
    "NumPy array": lambda x: np.asarray(x, dtype=float),
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
    "writing": lambda x: operator.setitem(x, 0, 1.0),
}


@pytest.mark.parametrize("name", CUTS)
def test_nothing_cuts_the_derivative_silently(name):
    with pytest.raises(UnsupportedFunctionError, match=f"{name}.*would cut the derivative.*constant"):
        vjp(lambda x: (CUTS[name](x),), np.array(1.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: np.array([x, x], dtype=float),
        lambda x: np.zeros(2).__setitem__(0, x),
        lambda x: np.zeros(2).__setitem__(slice(None), x),
        lambda x: np.full(2, x, dtype=float),
        lambda x: np_xp.asarray([[x]], dtype=np.float32),
        lambda x: np.float64(x),
    ],
)
def test_no_array_of_numbers_is_made(make):
    with pytest.raises(UnsupportedFunctionError, match=r"(would cut the derivative|writes in place).*np\.stack"):
        vjp(lambda x: (make(x),), np.array(1.0))


def test_attributes_that_no_array_has_are_named():
    def f(x):
        assert not hasattr(x, "detach")
        return (x.detach(),)

    with pytest.raises(AttributeError, match="an array that is being differentiated has no attribute `detach`"):
        vjp(f, np.ones(2))


def test_constant_and_value_type():
    def f(x):
        def g(y):
            assert value_type(y) is value_type(x) is np.ndarray
            assert is_box(y)
            assert not is_box(constant(y))
            return (constant(y) * x,)

        return (*vjp(g, x * x)[1]((x,)), constant(x) * x)

    x = np.array([2.0])
    y, pull = vjp(f, x)
    assert (value_type(x), y[0], y[1]) == (np.ndarray, 0.0, 4.0)
    assert pull((x, np.ones(1)))[0] == 2.0


def test_namespace(xp):
    a = xp.asarray([1.0, 2.0])
    tape = namespace(a)
    assert repr(tape) == f"<tape over {xp.__name__}>"
    assert tape is namespace(xp.asarray(1))
    assert tape.float64 is xp.float64
    assert (tape.pi, tape.newaxis) == (math.pi, None)
    assert tape.__array_namespace_info__().dtypes
    assert not hasattr(tape, "no_such_function")

    def f(x):
        for arrays in [(x,), (x, x), (x, 2.0), (x, a), (x, x * 2, a, None)]:
            assert array_api_compat.array_namespace(*arrays) is tape
        assert array_api_compat.array_namespace(a, x) is array_api_compat.array_namespace(a)
        assert not is_box(tape.linalg.qr(tape.eye(2))[0])  # of raw arrays, everything is allowed
        return (tape.linalg.matmul(x, x),)

    vjp(f, a)


def test_numpy_functions_take_boxes():
    a = np.random.default_rng(0).normal(size=(3, 3))

    def f(x):
        xp = array_api_compat.array_namespace(a, x)  # NumPy, for the raw array comes first
        row = np.concatenate([x[0], a[1]], axis=0)
        return (
            np.sin(x) + np.sum(x, axis=0) + np.sum(x, 1, keepdims=True) - np.arctan2(x, a) * np.power(x, 2),
            a @ x + a * x - a / (x + 9.0) + np.float64(2.0) * x + np.array(3.0) * x + np.float64(1.5) ** x,
            np.stack([x[0], a[0]]) + np.clip(x[1:], -0.5, 0.5) + np.where(a > 0, x, 0.0)[:2],
            np.cumsum(x, axis=0) + np.concatenate((x, a))[2:5] + np.amax(x, 0) + np.absolute(x) + np.arcsinh(x),
            np.linalg.solve(a, x) + np.linalg.inv(a + np.transpose(x)) + np.linalg.norm(x) + np.linalg.norm(x[0], 1),
            np.dot(a, x) + np.outer(x[0], a[0]) + np.mean(x) + np.diff(row, n=3)[:3] + np.exp(row[3:]),
            xp.sum(x, axis=0) + xp.matrix_transpose(x) + xp.var(x, correction=1) + xp.permute_dims(x, (1, 0)),
            xp.concat([x, a]) + xp.expand_dims(xp.unstack(x)[0], axis=0) + xp.cumulative_sum(x, axis=1)[0, 0],
        )

    x = np.random.default_rng(1).normal(size=(3, 3))
    assert all(type(y) is np.ndarray and y.dtype == np.float64 for y in vjp(f, x)[0])
    assert_transposed(f, (x,), np.random.default_rng(2))


REFUSED = {
    "polydiv": lambda x: np.polydiv(x[0], x[1]),
    "ix_": lambda x: np.ix_(x[0]),
    r"add\(out=...\)": lambda x: np.add(x, 1.0, out=np.zeros((2, 2))),
    r"add\(out": lambda x: operator.iadd(np.zeros((2, 2)), x),
    "arange": lambda x: x.__array_namespace__().arange(x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_function(name):
    with pytest.raises(UnsupportedFunctionError, match=f"no derivative rule for `.*{name}.*derivatives=.*JAX backend"):
        vjp(lambda x: (REFUSED[name](x),), np.eye(2))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: np.sin(x, where=np.ones(2, dtype=bool)), "`sin` was called with where="),
        (lambda x: np.add(x, x, dtype=np.float32), "`add` was called with dtype="),
        (lambda x: x.__array_namespace__().sum(x, 0, None), "`sum` was called with 3 positional"),
        (lambda x: x.__array_namespace__().sum(x=x), r"sum: .*positional argument"),
        (lambda x: np.sin(1.0, where=x), "sin: .*positional argument"),
    ],
)
def test_refusals_name_the_argument(call, named):
    with pytest.raises(UnsupportedFunctionError, match=named):
        vjp(lambda x: (call(x),), np.ones(2))


def test_leaked_boxes_are_refused():
    kept = []
    vjp(lambda x: (kept.append(x * 2.0) or x,), np.ones(2))
    for use in [lambda x: x + 1.0, lambda x: np.exp(x), lambda x: x > 0, bool, lambda x: np.sign(x), lambda x: x[0]]:
        with pytest.raises(CapturedError, match=r"has ended.*return it from there"):
            use(kept[0])
    with pytest.raises(CapturedError, match="has ended"):
        vjp(lambda y: (y * kept[0],), np.ones(2))
    np.testing.assert_array_equal(constant(kept[0]), 2.0)


def test_a_trace_ends_by_exception():
    kept = []

    def f(x):
        kept.append(x)
        raise KeyError

    with pytest.raises(KeyError):
        vjp(f, np.ones(2))
    assert OPEN.traces == []
    with pytest.raises(CapturedError):
        -kept[0]


def test_no_cycles():
    def work():
        x = np.ones(3)
        alive = weakref.ref(x)
        (g,), pull = vjp(lambda x: gradient(lambda x: (np.sum(np.sort(np.exp(x))) * x[0],), 1)(x, np.ones(()))[:1], x)
        pull((g,))
        call = implicit(lambda a: (a * 2.0,), Doubled())
        vjp(lambda x: call(x), x)[1]((x,))
        return alive

    work()  # imports what is loaded at first use
    for _ in range(10):  # what other tests left, whose end may leave more
        if not gc.collect():
            break
    gc.disable()
    try:
        alive = work()
        assert alive() is None
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_deep_chains():
    def f(x):
        for _ in range(10_000):
            x = x + 0.001 * x
        return (x,)

    (y,), pull = vjp(f, np.array(1.0))
    assert math.isclose(pull((np.array(1.0),))[0], y, rel_tol=1e-10)

    def long(x):
        for _ in range(100_000):
            x = -x
        return (x,)

    vjp(long, np.array(1.0))  # and is freed without recursion


def test_threads_do_not_meet():
    start = threading.Barrier(2)
    results, errors = {}, []

    def work(k):
        try:
            rng = np.random.default_rng(k)
            u, a, v = rng.normal(size=3), rng.normal(size=(4, 3)), rng.normal(size=3)
            start.wait()
            results[k] = [vjp(lambda u: gradient_of_score(u, a)[:1], u)[1]((v,))[0] for _ in range(200)]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for k in range(2):
        assert all(np.array_equal(a, b) for a, b in pairwise(results[k]))
    assert not np.array_equal(results[0][0], results[1][0])
