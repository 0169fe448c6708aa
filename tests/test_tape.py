"""The tape: every rule against finite differences to second order, the laws of a pull, and what is refused."""

import gc
import math
import operator
import threading
import weakref
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import array_api_compat
import array_api_compat.numpy as np_xp
import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dil._base.errors import BackendError, CapturedError, DTypeError, ShapeError, UnsupportedFunctionError
from dil_backends._tape import constant, implicit, is_box, namespace, value_type, vjp
from dil_backends._tape import primitive as _tape
from dil_backends._tape import rules as _tape_rules
from dil_backends._tape.rules.indexing import Rows
from dil_backends._tape.trace import OPEN

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=["numpy", "strict"])
def xp(request):
    """A raw namespace; array_api_strict allows what the standard promises and nothing else."""
    if request.param == "numpy":
        yield np_xp
        return
    before = array_api_strict.get_array_api_strict_flags()
    array_api_strict.set_array_api_strict_flags(
        api_version="2024.12", boolean_indexing=False, data_dependent_shapes=False
    )
    yield array_api_strict
    array_api_strict.set_array_api_strict_flags(**before)


# --- finite differences ----------------------------------------------------------------------------------------------


def total(x):
    """The sum of all entries, as a float."""
    return float(array_api_compat.array_namespace(x).sum(constant(x)))


def inner(xs, ys):
    """The inner product of two tuples of arrays, and the sum of the absolute values of its terms."""
    products = [x * y for x, y in zip(xs, ys, strict=True)]
    return sum(map(total, products)), sum(total(abs(p)) for p in products)


def random_like(xs, rng):
    return tuple(array_api_compat.array_namespace(x).asarray(rng.normal(size=x.shape), dtype=x.dtype) for x in xs)


def assert_transposed(f, args, rng, *, step=1e-3, rtol=5e-9):
    """Hold <v, J u> of a central difference of fourth order against <J^T v, u> of the pull."""
    y, pull = vjp(f, *args)
    u, v = random_like(args, rng), random_like(y, rng)
    weights = {1: 8 / 12, -1: -8 / 12, 2: -1 / 12, -2: 1 / 12}
    parts = []
    for k, weight in weights.items():
        moved = f(*(a + k * step * d for a, d in zip(args, u, strict=True)))
        changes = tuple(there - here for there, here in zip(moved, y, strict=True))
        parts.append(inner(changes, tuple(w * (weight / step) for w in v)))
    forward, scale_forward = sum(p[0] for p in parts), sum(p[1] for p in parts)
    backward, scale_backward = inner(pull(v), u)
    rounding = np.finfo(float).eps / step * inner(y, v)[1]
    assert abs(forward - backward) <= rtol * (scale_forward + scale_backward) + 20 * rounding


def gradient(f, outputs):
    """The function (*primals, *cotangents) -> cotangents of the primals: linear in the last, and differentiable."""

    def g(*args):
        primals, cotangents = args[:-outputs], args[-outputs:]
        return vjp(f, *primals)[1](cotangents)

    return g


# --- a case for each rule --------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A function of the tape's namespace and some arrays. Its name starts with the name of the rule that it covers."""

    name: str
    f: object
    shapes: tuple
    domain: str = "real"

    def arguments(self, xp, rng):
        draw = {
            "real": lambda shape: rng.normal(size=shape),
            "positive": lambda shape: rng.uniform(0.5, 2.0, size=shape),
            "unit": lambda shape: rng.uniform(-0.8, 0.8, size=shape),
            "above": lambda shape: rng.uniform(1.3, 3.0, size=shape),
            # no two entries closer than the steps of the differences
            "apart": lambda shape: (rng.permutation(math.prod(shape)).reshape(shape) - 1.7) * 0.3,
            # one entry is zero
            "zero": lambda shape: rng.normal(size=shape) * (np.arange(math.prod(shape)).reshape(shape) != 1),
            "regular": lambda shape: rng.normal(size=shape) + 3.0 * np.eye(*shape[-2:]),
        }[self.domain]
        return tuple(xp.asarray(np.asarray(draw(shape))) for shape in self.shapes)

    def function(self, xp):
        def f(*args):
            y = self.f(xp, *args)
            return tuple(y) if isinstance(y, tuple | list) else (y,)

        return f


def unary(name, domain="real"):
    return Case(name, lambda xp, x: getattr(xp, name)(x), ((2, 3),), domain)


def binary(name, domain="real", shapes=((3, 1), (2, 1, 4)), *scalars):
    cases = [Case(name, lambda xp, a, b: getattr(xp, name)(a, b), shapes, domain)]
    cases += [Case(f"{name}#right", lambda xp, a: getattr(xp, name)(a, 1.5), ((3,),), domain)]
    cases += [Case(f"{name}#left", lambda xp, a: getattr(xp, name)(1.5, a), ((3,),), domain)]
    return cases


def reduction(name, domain="real", **options):
    def reduce(**where):
        return lambda xp, x: getattr(xp, name)(x, **where, **options)

    return [
        Case(name, reduce(), ((2, 3),), domain),
        Case(f"{name}#axis", reduce(axis=1), ((2, 3),), domain),
        Case(f"{name}#axes", reduce(axis=(0, -1), keepdims=True), ((2, 2, 3),), domain),
        Case(f"{name}#middle", reduce(axis=(-2,)), ((2, 2, 3),), domain),
        Case(f"{name}#keepdims", reduce(keepdims=True), ((2, 3),), domain),
        Case(f"{name}#scalar", reduce(), ((),), domain),
    ]


def scan(name, axis, initial):
    f = lambda xp, x: getattr(xp, name)(x, axis=axis, include_initial=initial)  # noqa: E731
    return Case(f"{name}#{axis}{initial}", f, ((3, 5),), "zero")


def solve(shapes, domain):
    return Case(f"linalg.solve#{shapes}", lambda xp, a, b: xp.linalg.solve(spd(xp, a), b), shapes, domain)


def spd(xp, x):
    return x @ xp.matrix_transpose(x) + xp.eye(x.shape[-1])


def ints(xp, *values):
    return xp.asarray(values)


MASK = [[True, False, True], [False, True, True]]

CASES = [
    *map(unary, ["negative", "positive", "abs", "square", "exp", "expm1", "sin", "cos", "tan", "atan"]),
    *map(unary, ["sinh", "cosh", "tanh", "asinh"]),
    *(unary(name, "positive") for name in ["sqrt", "reciprocal", "log", "log1p", "log2", "log10"]),
    *(unary(name, "unit") for name in ["asin", "acos", "atanh"]),
    unary("acosh", "above"),
    *(case for name in ["add", "subtract", "multiply", "maximum", "minimum", "hypot"] for case in binary(name)),
    *(case for name in ["atan2", "logaddexp", "copysign"] for case in binary(name)),
    *(case for name in ["divide", "pow"] for case in binary(name, "positive")),
    *binary("remainder", "above", ((3, 1), (2, 1, 3))),
    *(Case(f"pow#{n}", lambda xp, x, n=n: xp.pow(x, n), ((3,),)) for n in [0, 1, 2, 3, -1, 2.0]),
    Case("pow#zero", lambda xp, x: x**2 + x**1 + x**0 + x**3, ((3,),), "zero"),
    Case("pow#array", lambda xp, x: x ** xp.asarray([0.0, 1.0, 2.0]), ((3,),)),
    Case("where", lambda xp, a, b: xp.where(xp.asarray(MASK), a, b), ((3,), (2, 1))),
    Case("where#left", lambda xp, a: xp.where(xp.asarray(MASK), a, 0.0), ((2, 3),)),
    Case("where#right", lambda xp, a: xp.where(a > 0, 1.0, a), ((2, 3),)),
    Case("clip", lambda xp, x: xp.clip(x, -0.5, 0.5), ((2, 3),)),
    Case("clip#arrays", lambda xp, x, a, b: xp.clip(x, min=-abs(a), max=abs(b)), ((4, 3), (4, 3), (4, 3))),
    Case("clip#low", lambda xp, x: xp.clip(x, 0.1), ((3,),)),
    unary("real"),
    unary("conj"),
    # reductions
    *(case for name in ["sum", "mean"] for case in reduction(name)),
    *(case for name in ["max", "min"] for case in reduction(name, "apart")),
    *reduction("prod"),
    Case("prod#zeros", lambda xp, x: xp.prod(x, axis=1), ((2, 3),), "zero"),
    *(case for name in ["var", "std"] for case in reduction(name)[:-1]),
    Case("var#half", lambda xp, x: xp.var(x, correction=0.5), ((4, 2),)),
    Case("var#correction", lambda xp, x: xp.var(x, axis=0, correction=1), ((4, 2),)),
    Case("std#correction", lambda xp, x: xp.std(x, axis=0, correction=1), ((4, 2),)),
    *reduction("norm"),
    *(scan(name, axis, i) for name in ["cumulative_sum", "cumulative_prod"] for axis in [0, -1] for i in [False, True]),
    Case("cumulative_sum", lambda xp, x: xp.cumulative_sum(x), ((4,),)),
    Case("cumulative_prod", lambda xp, x: xp.cumulative_prod(x), ((7,),)),
    # shapes
    Case("reshape", lambda xp, x: xp.reshape(x, (3, -1)), ((2, 3),)),
    Case("expand_dims", lambda xp, x: xp.expand_dims(x, axis=1), ((2, 3),)),
    Case("squeeze", lambda xp, x: xp.squeeze(x, axis=(0, -1)), ((1, 3, 1),)),
    Case("permute_dims", lambda xp, x: xp.permute_dims(x, (2, 0, 1)), ((2, 3, 4),)),
    Case("matrix_transpose", lambda xp, x: xp.matrix_transpose(x) * 2.0, ((2, 3, 4),)),
    Case("transpose", lambda xp, x: x.T, ((2, 3),)),
    Case("swapaxes", lambda xp, x: xp.swapaxes(x, 0, -1), ((2, 3, 4),)),
    Case("moveaxis", lambda xp, x: xp.moveaxis(x, 0, -1), ((2, 3, 4),)),
    Case("moveaxis#two", lambda xp, x: xp.moveaxis(x, (0, 1), (2, 0)), ((2, 3, 4),)),
    Case("flip", lambda xp, x: xp.flip(x), ((2, 3),)),
    Case("flip#axis", lambda xp, x: xp.flip(x, axis=-1), ((2, 3),)),
    Case("roll", lambda xp, x: xp.roll(x, 2), ((2, 3),)),
    Case("roll#axes", lambda xp, x: xp.roll(x, (1, -2), axis=(0, 1)), ((2, 3),)),
    Case("tril", lambda xp, x: xp.tril(x, k=-1), ((2, 3, 3),)),
    Case("triu", lambda xp, x: xp.triu(x, k=1), ((3, 4),)),
    Case("unstack", lambda xp, x: xp.unstack(x, axis=1), ((2, 3),)),
    Case("unstack#part", lambda xp, x: xp.unstack(x)[1] ** 2, ((2, 3),)),
    Case("broadcast_to", lambda xp, x: xp.broadcast_to(x, (4, 2, 3)), ((2, 1),)),
    Case("broadcast_arrays", lambda xp, a, b: xp.broadcast_arrays(a, b), ((2, 1), (3,))),
    Case("meshgrid", lambda xp, a, b, c: xp.meshgrid(a, b, c), ((2,), (3,), (2,))),
    Case("meshgrid#ij", lambda xp, a, b: xp.meshgrid(a, b, indexing="ij"), ((2,), (3,))),
    Case("astype", lambda xp, x: xp.astype(x, xp.float64, copy=True), ((3,),)),
    Case("sort", lambda xp, x: xp.sort(x), ((2, 4),), "apart"),
    Case("sort#down", lambda xp, x: xp.sort(x, axis=0, descending=True), ((4, 2),), "apart"),
    Case("concat", lambda xp, a, b: xp.concat([a, b], axis=1), ((2, 3), (2, 1))),
    Case("concat#flat", lambda xp, a, b: xp.concat([a, b], axis=None), ((2, 3), (2, 1))),
    Case("stack", lambda xp, a, b: xp.stack([a, b], axis=-1), ((2, 3), (2, 3))),
    Case("join", lambda xp, a, b: xp.join(a, b, a), ((2, 3), (1, 3))),
    Case("pile", lambda xp, a, b: xp.pile(a, b, axis=1), ((2, 3), (2, 3))),
    Case("tile", lambda xp, x: xp.tile(x, (2, 1, 3)), ((2, 3),)),
    Case("tile#few", lambda xp, x: xp.tile(x, (2,)), ((2, 3),)),
    Case("repeat", lambda xp, x: xp.repeat(x, 3, axis=0), ((2, 3),)),
    Case("repeat#flat", lambda xp, x: xp.repeat(x, 2), ((2, 3),)),
    Case("diff", lambda xp, x: xp.diff(x, n=2), ((2, 4),)),
    Case("diff#ends", lambda xp, x, a: xp.diff(x, axis=0, prepend=a, append=a), ((3, 2), (1, 2))),
    Case("asarray", lambda xp, a, b: xp.asarray([[a, 1.0], [b, a]]), ((), ())),
    # indices
    Case("getitem", lambda xp, x: (x[1, ...], x[..., 0], x[:, 1:], x[::-1, None, -1], x[None, ...]), ((3, 4),)),
    Case("getitem#integers", lambda xp, x: x[ints(xp, 2, 0, 2, 2, 1, -1)], ((4,),)),
    Case("getitem#pairs", lambda xp, x: x[ints(xp, 2, 0, 2), ints(xp, 1, 1, 1)], ((3, 2),)),
    Case("getitem#scalar", lambda xp, x: x[xp.argmax(x)], ((4,),), "apart"),
    Case("indexed", lambda xp, x: xp.indexed(x, (slice(None, None, 2), 1)), ((3, 2),)),
    Case("placed", lambda xp, x: xp.placed(x, (4, 2), (slice(None, None, 2), None, 1)), ((2, 1),)),
    Case("gather", lambda xp, x: xp.gather(x, Rows(ints(xp, 1, 1, 0, 1), 3)), ((3, 2),)),
    Case("scatter", lambda xp, x: xp.scatter(x, Rows(ints(xp, 1, 3, 1, 1, 1, 0), 5)), ((6, 2),)),
    Case("take", lambda xp, x: xp.take(x, ints(xp, 0, 2, 2, 0, 0), axis=1), ((2, 3),)),
    Case("take#vector", lambda xp, x: xp.take(x, ints(xp, 0, 2)), ((3,),)),
    Case("take_along_axis", lambda xp, x: xp.take_along_axis(x, xp.asarray([[0, 0], [2, 1]]), axis=1), ((2, 3),)),
    # products
    *(
        Case(f"matmul#{i}", lambda xp, a, b: xp.matmul(a, b), shapes)
        for i, shapes in enumerate([
            *[((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 3), (3, 4)), ((5, 2, 3), (3,)), ((3,), (5, 3, 2))],
            *[((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((5, 1, 2, 3), (4, 3, 2))],
        ])
    ),
    Case("vecdot", lambda xp, a, b: xp.vecdot(a, b), ((4, 3), (2, 1, 3))),
    Case("vecdot#axis", lambda xp, a, b: xp.vecdot(a, b, axis=-2), ((3, 4), (3, 4))),
    Case("tensordot", lambda xp, a, b: xp.tensordot(a, b, axes=2), ((2, 3, 4), (3, 4, 2))),
    Case("tensordot#axes", lambda xp, a, b: xp.tensordot(a, b, axes=((0, -1), (1, 0))), ((2, 3, 4), (4, 2, 5))),
    Case("tensordot#outer", lambda xp, a, b: xp.tensordot(a, b, axes=0), ((2,), (3,))),
    Case("dot", lambda xp, a, b: xp.dot(a, b), ((2, 3), (3,))),
    Case("linalg.outer", lambda xp, a, b: xp.linalg.outer(a, b), ((2,), (3,))),
    Case("linalg.cross", lambda xp, a, b: xp.linalg.cross(a, b), ((2, 3), (1, 3))),
    Case("linalg.trace", lambda xp, x: xp.linalg.trace(x, offset=1), ((2, 3, 4),)),
    *(
        Case(f"linalg.diagonal#{k}{shape}", lambda xp, x, k=k: xp.linalg.diagonal(x, offset=k), (shape,))
        for k in [0, 1, -1, 3, -4]
        for shape in [(3, 4), (2, 4, 2)]
    ),
    *(
        Case(f"linalg.vector_norm#{p}", lambda xp, x, p=p: xp.linalg.vector_norm(x, axis=-1, ord=p), ((2, 3),))
        for p in [1, 2, math.inf]
    ),
    Case("linalg.vector_norm", lambda xp, x: xp.linalg.vector_norm(x, keepdims=True), ((2, 3),)),
    Case("linalg.matrix_norm", lambda xp, x: xp.linalg.matrix_norm(x), ((2, 3, 2),)),
    Case("linalg.norm", lambda xp, x: xp.linalg.norm(x, axis=0), ((2, 3),)),
    *(
        Case(f"linalg.matrix_power#{n}", lambda xp, x, n=n: xp.linalg.matrix_power(x, n), ((2, 2, 2),), "regular")
        for n in [-2, 0, 1, 3, 4]
    ),
    *(solve(s, "real") for s in [((3, 3), (3,)), ((2, 3, 3), (3,)), ((2, 3, 3), (3, 2)), ((3, 3), (2, 3, 2))]),
    Case("linalg.solve", lambda xp, a, b: xp.linalg.solve(a, b), ((3, 3), (3, 2)), "regular"),
    Case("linalg.inv", lambda xp, x: xp.linalg.inv(x), ((2, 3, 3),), "regular"),
    Case("linalg.det", lambda xp, x: xp.linalg.det(x), ((2, 3, 3),), "regular"),
    Case("linalg.slogdet", lambda xp, x: xp.linalg.slogdet(x), ((2, 3, 3),), "regular"),
    Case("linalg.cholesky", lambda xp, x: xp.linalg.cholesky(spd(xp, x)), ((2, 3, 3),)),
    Case("linalg.cholesky#upper", lambda xp, x: xp.linalg.cholesky(spd(xp, x), upper=True), ((3, 3),)),
    # empty and 0-D arrays
    *(Case(f"sum#{shape}", lambda xp, x: xp.sum(xp.exp(x) * x, axis=0), (shape,)) for shape in [(0,), (0, 2), (2, 0)]),
    Case("prod#empty", lambda xp, x: xp.prod(x, axis=1), ((2, 0),)),
    Case("matmul#empty", lambda xp, a, b: xp.matmul(a, b), ((2, 0), (0, 3))),
    Case("matmul#batchless", lambda xp, a, b: xp.matmul(a, b), ((0, 2, 3), (3, 4))),
    Case("tensordot#empty", lambda xp, a, b: xp.tensordot(a, b, axes=1), ((2, 0), (0, 3))),
    Case("take#empty", lambda xp, x: xp.take(x, xp.asarray([], dtype=xp.int64), axis=0), ((2, 3),)),
    Case("cumulative_prod#empty", lambda xp, x: xp.cumulative_prod(x), ((0,),)),
    Case("sort#empty", lambda xp, x: xp.sort(x), ((0,),)),
]  # fmt: skip
NUMPY_ONLY = [
    # what the standard leaves out, or array_api_strict's strictest flags refuse
    Case("clip#broadcast", lambda xp, x, low, high: xp.clip(x, min=low, max=high), ((4, 3), (3,), (4, 1))),
    Case("full", lambda xp, a: xp.full((2, 3), a), ((),)),
    Case("full_like", lambda xp, x, a: x * xp.full_like(x, a), ((2, 3), ())),
    Case("getitem#mask", lambda xp, x: x[xp.asarray(MASK)], ((2, 3),)),
    Case("getitem#mixed", lambda xp, x: x[:, ints(xp, 1, 1, 0), None], ((2, 3),)),
    Case("getitem#list", lambda xp, x: x[[1, 1, 0]] * x[0], ((2, 3),)),
    Case("getitem#rows", lambda xp, x: x[xp.asarray([[1, 1], [0, -1]])], ((2, 3),)),
    Case("repeat#each", lambda xp, x: xp.repeat(x, ints(xp, 2, 0, 3), axis=1), ((2, 3),)),
    Case("linalg.trace#offset", lambda xp, x: xp.linalg.trace(x, offset=-5), ((2, 3),)),
]


def named(cases):
    return [pytest.param(case, id=case.name) for case in cases]


def test_every_rule_has_a_case():
    covered = {case.name.partition("#")[0] for case in CASES + NUMPY_ONLY}
    assert covered == set(_tape_rules.RULES) | set(_tape_rules.COMPOSED)


def check(case, xp, order):
    rng = np.random.default_rng(len(case.name))
    args = case.arguments(xp, rng)
    f = case.function(namespace(args[0]))
    boxed_values = vjp(f, *args)[0]
    raw_values = f(*args)
    for boxed, raw in zip(boxed_values, raw_values, strict=True):
        assert (boxed.shape, boxed.dtype) == (raw.shape, raw.dtype)
        distance = inner((abs(boxed - raw),), (1.0,))[0]
        assert distance <= 1e-14 * total(abs(raw))
    cotangents = random_like(raw_values, rng)
    if order == 1:
        assert_transposed(f, args, rng)
    else:
        assert_transposed(gradient(f, len(raw_values)), (*args, *cotangents), rng)
    for i in range(len(args) if order == 2 else 0):  # boxes and raw arrays in one formula
        before, after = args[:i], (*args[i + 1 :], *cotangents)
        assert_transposed(lambda x: gradient(f, len(cotangents))(*before, x, *after), args[i : i + 1], rng)  # noqa: B023


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", named(CASES))
def test_rule(case, order, xp):
    check(case, xp, order)


@pytest.mark.parametrize(
    ("name", "position"),
    [
        pytest.param(name, i, id=f"{name}-{i}")
        for name, rule in _tape_rules.RULES.items()
        for i, formula in enumerate(rule.formulas or (rule.each,) * 2)
        if formula is not None
    ],
)
def test_the_cases_bite(name, position, monkeypatch):
    """A formula that is wrong by one in a hundred thousand fails a case of its rule."""
    pull = _tape.Primitive.pull

    def wrong(self, node, c, wanted):
        factors = [1 + 1e-5 * (self.name == name and i == position) for i in wanted]
        return [factor * g for factor, g in zip(factors, pull(self, node, c, wanted), strict=True)]

    monkeypatch.setattr(_tape.Primitive, "pull", wrong)
    failed = 0
    for case in CASES:
        if case.name.partition("#")[0] == name:
            try:
                check(case, np_xp, 1)
            except AssertionError:
                failed += 1
    assert failed


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", named(NUMPY_ONLY))
def test_rule_beyond_the_standard(case, order):
    check(case, np_xp, order)


# --- conventions -----------------------------------------------------------------------------------------------------


def pulled(f, *args):
    """The gradient of the sum of f, by arrays of NumPy."""
    y, pull = vjp(lambda *xs: (f(array_api_compat.array_namespace(*xs), *xs),), *map(np.asarray, args))
    grads = pull((np.ones(y[0].shape),))
    return grads[0] if len(args) == 1 else grads


def test_ties_share_equally():
    x = np.array([2.0, 1.0, 2.0, 2.0])
    np.testing.assert_array_equal(pulled(lambda xp, x: xp.max(x), x), [1 / 3, 0, 1 / 3, 1 / 3])
    np.testing.assert_array_equal(pulled(lambda xp, x: xp.min(-x), x), [-1 / 3, 0, -1 / 3, -1 / 3])
    for name in ["maximum", "minimum"]:
        both = pulled(lambda xp, a, b, name=name: getattr(xp, name)(a, b), x, x)
        np.testing.assert_array_equal(both, 0.5)
    np.testing.assert_array_equal(pulled(lambda xp, x: xp.clip(x, 1.0, 2.0), x), 0.5)


def test_kinks():
    np.testing.assert_array_equal(pulled(lambda xp, x: abs(x), [0.0, -2.0]), [0, -1])
    (g, _) = pulled(lambda xp, a, b: xp.copysign(a, b), [0.0, -2.0], [1.0, 1.0])
    np.testing.assert_array_equal(g, [0, -1])
    with np.errstate(divide="ignore"):
        assert pulled(lambda xp, x: xp.sqrt(x), 0.0) == np.inf


ZERO_AT_ZERO = {
    "vector_norm": lambda xp, x: xp.linalg.vector_norm(x, axis=-1),
    "matrix_norm": lambda xp, x: xp.linalg.matrix_norm(x[:, None, :]),
    "std": lambda xp, x: xp.std(x, axis=-1),
    "hypot": lambda xp, x: xp.hypot(x[:, 0], x[:, 1]),
}


@pytest.mark.parametrize("name", ZERO_AT_ZERO)
def test_a_zero_row_spoils_no_other(name):
    x = np.array([[0.0, 0.0, 0.0], [3.0, -4.0, 1.0]])

    def gradient_of(x):
        return pulled(ZERO_AT_ZERO[name], x)

    def f(x):
        return (ZERO_AT_ZERO[name](array_api_compat.array_namespace(x), x),)

    def second(x):
        _, pull = vjp(gradient(f, 1), x, np.ones(2))
        return pull((np.array([[1.0, 2.0, 3.0]] * 2),))[0]

    np.testing.assert_array_equal(gradient_of(x)[0], 0)
    np.testing.assert_array_equal(second(x)[0], 0)
    np.testing.assert_allclose(gradient_of(x)[1], gradient_of(x[1:])[0], rtol=1e-15)
    assert np.all(second(x)[1] == second(x[[1, 1]])[0])
    assert np.any(second(x)[1] != 0)


@pytest.mark.parametrize(("n", "first", "second"), [(0, 0, 0), (1, 1, 0), (2, 0, 2), (3, 0, 0), (2.0, 0, 2)])
def test_powers_are_exact_at_zero(n, first, second):
    x = np.array(0.0)
    (g,), pull = vjp(gradient(lambda x: (x**n,), 1), x, np.array(1.0))
    assert (g, pull((np.array(1.0),))[0]) == (first, second)


def test_power_with_an_array_exponent():
    base, exponent = np.array([0.0, 2.0, 2.0]), np.array([2.0, 0.0, 3.0])
    da, db = pulled(lambda xp, a, b: a**b, base, exponent)
    np.testing.assert_allclose(da, [0, 0, 12])
    np.testing.assert_allclose(db, [0, math.log(2), 8 * math.log(2)])
    np.testing.assert_array_equal(pulled(lambda xp, b: 0.0**b, exponent[:1]), [0.0])


def test_rules_warn_of_nothing_that_the_function_did_not():
    x = np.array([1.0, np.nan, 3.0])
    assert not np.any(pulled(lambda xp, x: xp.max(x), x))
    np.testing.assert_array_equal(pulled(lambda xp, x: xp.where(x > 0, x, 0.0), [-1.0, 2.0]), [0, 1])


def test_zeros_do_no_harm_in_products():
    np.testing.assert_array_equal(pulled(lambda xp, x: xp.prod(x), [2.0, 0.0, 3.0]), [0, 6, 0])
    np.testing.assert_array_equal(pulled(lambda xp, x: xp.prod(x), [2.0, 0.0, 0.0]), [0, 0, 0])
    np.testing.assert_array_equal(pulled(lambda xp, x: xp.cumulative_prod(x), [2.0, 0.0, 3.0]), [1, 8, 0])


# --- dtypes ----------------------------------------------------------------------------------------------------------


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


def test_only_real_floating_arrays_are_differentiated(xp):
    with pytest.raises(DTypeError, match="int64"):
        vjp(lambda x: (x,), xp.asarray([1, 2]))
    with pytest.raises(UnsupportedFunctionError, match="real functions only"):
        vjp(lambda x: (x * xp.asarray([1j]),), xp.asarray([1.0]))
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


# --- the laws of a pull ----------------------------------------------------------------------------------------------


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


# --- boxes -----------------------------------------------------------------------------------------------------------


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
    "NumPy array": np.asarray,
    "writing": lambda x: operator.setitem(x, 0, 1.0),
}


@pytest.mark.parametrize("name", CUTS)
def test_nothing_cuts_the_derivative_silently(name):
    with pytest.raises(UnsupportedFunctionError, match=f"{name}.*would cut the derivative.*constant"):
        vjp(lambda x: (CUTS[name](x),), np.array(1.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: np.array([x, x]),
        lambda x: np.zeros(2).__setitem__(0, x),
        lambda x: np.full(2, x),
        lambda x: np_xp.asarray([[x]]),
        lambda x: np.array([1.0], dtype=object) * np.array([x], dtype=object),
    ],
)
def test_no_object_arrays(make):
    with pytest.raises((UnsupportedFunctionError, ValueError)) as caught:
        vjp(lambda x: (make(x),), np.array(1.0))
    # NumPy says first that it cannot set an element, and gives our reason as the cause
    assert "would cut the derivative" in f"{caught.value} {caught.value.__cause__}"


def test_attributes_beyond_the_standard_are_named():
    def f(x):
        assert not hasattr(x, "ravel")
        return (x.ravel(),)

    with pytest.raises(AttributeError, match="no attribute `ravel`, only those of the array API standard"):
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


# --- the namespace, and NumPy's own functions ------------------------------------------------------------------------


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
    "linalg.svd": np.linalg.svd,
    "linalg.eigh": np.linalg.eigh,
    "fft.fft": np.fft.fft,
    "unique": np.unique,
    "einsum": lambda x: np.einsum("ij->", x),
    "add.reduce": np.add.reduce,
    r"add\(out=...\)": lambda x: np.add(x, 1.0, out=np.zeros((2, 2))),
    r"add\(out": lambda x: operator.iadd(np.zeros((2, 2)), x),
    "block": lambda x: np.block([[x]]),
    "trace": np.trace,
    "place": lambda x: np.place(x, [True], [1.0]),
    r"linalg.norm\(ord='nuc'\)": lambda x: np.linalg.norm(x, "nuc"),
    r"linalg.vector_norm\(ord=3\)": lambda x: np.linalg.vector_norm(x, ord=3),
    "linalg.qr": lambda x: x.__array_namespace__().linalg.qr(x),
    "fft.rfft": lambda x: x.__array_namespace__().fft.rfft(x),
    "unique_values": lambda x: x.__array_namespace__().unique_values(x),
    "arange": lambda x: x.__array_namespace__().arange(x),
    "linspace": lambda x: np.linspace(x, 1.0),
    "svdvals": lambda x: x.__array_namespace__().linalg.svdvals(x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_function(name):
    with pytest.raises(UnsupportedFunctionError, match=f"no derivative rule for `.*{name}.*derivatives=.*JAX backend"):
        vjp(lambda x: (REFUSED[name](x),), np.eye(2))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: np.sum(x, where=np.ones(2, dtype=bool)), "`sum` was called with where="),
        (lambda x: np.mean(x, dtype=np.float32), "`mean` was called with dtype="),
        (lambda x: np.sum(x, 0, None, None), "`sum` was called with 4 positional"),
        (lambda x: np.sum(a=x), r"sum: .*positional argument"),
        (lambda x: np.sin(1.0, where=x), "sin: .*positional argument"),
    ],
)
def test_refusals_name_the_argument(call, named):
    with pytest.raises(UnsupportedFunctionError, match=named):
        vjp(lambda x: (call(x),), np.ones(2))


# --- lifetime --------------------------------------------------------------------------------------------------------


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


# --- implicit --------------------------------------------------------------------------------------------------------


class Doubled:
    def pullback(self, args, y, cotangents, wrt):
        return tuple(2.0 * cotangents[0] for _ in wrt)


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


# --- properties ------------------------------------------------------------------------------------------------------

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
