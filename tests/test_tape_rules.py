"""Every rule of the tape against finite differences, to second order, and its conventions where there is none."""

from __future__ import annotations

import math

import array_api_compat
import array_api_compat.numpy as np_xp
import numpy as np
import pytest

from dil_backends._tape import rules as _tape_rules
from dil_backends._tape import vjp
from dil_backends._tape.rules.indexing import Rows
from dil_backends._tape.rules.numpy_own import NUMPY_RULES
from linalg_cases import LINALG_CASES, LINALG_NUMPY_ONLY
from tape_complex_cases import COMPLEX, NUMPY_TRANSFORMS, TRANSFORMS
from tape_helpers import Case, check, failures_of_a_wrong_formula, gradient, named, solve, spd

pytestmark = pytest.mark.filterwarnings("error")


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


def ints(xp, *values):
    return xp.asarray(values)


MASK = [[True, False, True], [False, True, True]]


CASES = [
    *map(unary, ["negative", "positive", "abs", "square", "exp", "expm1", "sin", "cos", "tan", "atan"]),
    *map(unary, ["sinh", "cosh", "tanh", "asinh", "sech_squared"]),
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
    *(binary("nextafter", "real", ((3, 1), (2, 1, 4)))[:1]),
    *map(unary, ["real", "conj", "angle", "sign"]),
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
    Case("linalg.cholesky#triangle", lambda xp, x: xp.linalg.cholesky(xp.tril(spd(xp, x))), ((3, 3),)),
    Case("cholesky_factor", lambda xp, x: xp.cholesky_factor(spd(xp, x)), ((3, 3),)),
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
    Case("full_like#number", lambda xp, x: x * xp.full_like(x, 3.0), ((2, 3),)),
    Case("getitem#mask", lambda xp, x: x[xp.asarray(MASK)], ((2, 3),)),
    Case("getitem#mixed", lambda xp, x: x[:, ints(xp, 1, 1, 0), None], ((2, 3),)),
    Case("getitem#list", lambda xp, x: x[[1, 1, 0]] * x[0], ((2, 3),)),
    Case("getitem#rows", lambda xp, x: x[xp.asarray([[1, 1], [0, -1]])], ((2, 3),)),
    Case("repeat#each", lambda xp, x: xp.repeat(x, ints(xp, 2, 0, 3), axis=1), ((2, 3),)),
    Case("linalg.trace#offset", lambda xp, x: xp.linalg.trace(x, offset=-5), ((2, 3),)),
    unary("imag"),
    Case("unique_values", lambda xp, x: xp.unique_values(x) ** 2, ((2, 3),), "apart"),
    *(
        Case(name, lambda xp, x, name=name: getattr(xp, name)(x[:, [1, 2, 1, 0]]).values, ((2, 3),), "apart")
        for name in ["unique_all", "unique_counts", "unique_inverse"]
    ),
]


def is_tested_elsewhere(name):
    """Functions of NumPy's own (test_tape_numpy.py), special functions (test_tape_special.py), sparse matrices."""
    return name in NUMPY_RULES or name.startswith("special.") or "sparse" in name


EVERY = CASES + NUMPY_ONLY + LINALG_CASES + LINALG_NUMPY_ONLY


def test_every_rule_has_a_case():
    covered = {case.name.partition("#")[0] for case in EVERY + COMPLEX + TRANSFORMS + NUMPY_TRANSFORMS}
    assert covered == {name for name in _tape_rules.RULES | _tape_rules.COMPOSED if not is_tested_elsewhere(name)}


@pytest.mark.parametrize("name", ["exp", "multiply", "sum"])
def test_what_a_formula_gets_beside_is_no_option(name):
    """The cotangent and the value are no keywords of the function, and it takes no more positions than its own."""
    rule = _tape_rules.RULES[name]
    assert not rule.options & {"xp", "c", "y", "x", "a", "b"}
    assert rule.positional == {"exp": 1, "multiply": 2, "sum": 2}[name]


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
        if formula is not None and not is_tested_elsewhere(name)
    ],
)
def test_the_cases_bite(name, position, monkeypatch):
    """A formula that is wrong by one in a hundred thousand fails a case of its rule."""
    assert failures_of_a_wrong_formula(name, position, EVERY + COMPLEX + TRANSFORMS[::5], monkeypatch)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", named(NUMPY_ONLY))
def test_rule_beyond_the_standard(case, order):
    check(case, np_xp, order)


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
