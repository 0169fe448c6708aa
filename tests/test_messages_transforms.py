"""Wrong cotangents, tangents, derivatives given by hand, and options of check_gradients end in a message."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from messages import (
    V,
    X,
    bowl,
    float32,
    given,
    inner,
    integers,
    jax_,
    pulled,
    to_float32,
    to_int,
)


def two(x):
    return {"a": 2.0 * x, "b": 3.0 * x}


COTANGENTS = {
    "shape": (lambda e: e.asarray(np.ones(3)), r"shape \(3,\) .*; expected an array of shape \(2,\)"),
    "dtype": (lambda e: float32(e, X), r"dtype .*float32.*; expected .*float64"),
    "float": (lambda e: 1.0, r"is 1.0 of type float; expected an array of shape \(2,\)"),
    "None": (lambda e: None, r"is None of type NoneType; expected an array of shape \(2,\)"),
    "list": (lambda e: [1.0, 1.0], r"has leaves \('\[0\]', '\[1\]'\); expected"),
}


@pytest.mark.parametrize("kind", COTANGENTS)
def test_a_cotangent_unlike_the_output(plain, kind):
    make, text = COTANGENTS[kind]
    _, pull = dil.vjp(lambda x: 2.0 * x, plain.asarray(X))
    with pytest.raises(dil.ShapeError, match=text):
        pull(make(plain))


@pytest.mark.parametrize("keys", [("b", "c"), ("a", "c")])
def test_a_cotangent_with_other_keys(eager, keys):
    _, pull = dil.vjp(two, eager.asarray(X))
    with pytest.raises(dil.ShapeError, match=rf"\['{keys[1]}'\].*; expected .*\['b'\]"):
        pull({key: eager.asarray(V) for key in keys})


def test_a_cotangent_of_another_backend():
    jnp = jax_().numpy
    _, pull = dil.vjp(lambda x: 2.0 * x, X)
    with pytest.raises(dil.DilError, match=r"jax.*numpy|numpy.*jax"):
        pull(jnp.asarray(V))


TANGENTS = {
    "count": (lambda e: (), r"1 arguments and 0 tangents; give one tangent \(or None\) for each"),
    "shape": (lambda e: (e.asarray(np.ones(3)),), r"shape \(3,\) .*; expected .*shape \(2,\) .*like its argument"),
    "dtype": (lambda e: (float32(e, X),), r"dtype .*float32.*; expected .*float64"),
    "float": (lambda e: (1.0,), r"is 1.0 of type float; expected an array of shape \(2,\)"),
    "tree": (lambda e: ([e.asarray(X)] * 2,), "a tangent has leaves .*; expected .*, like its argument"),
}


@pytest.mark.parametrize("kind", TANGENTS)
def test_tangents_unlike_the_arguments(plain, kind):
    make, text = TANGENTS[kind]
    with pytest.raises(dil.ShapeError, match=text):
        dil.jvp(lambda x: 2.0 * x, (plain.asarray(X),), make(plain))


@pytest.mark.parametrize(("argument", "tangent"), [(2.0, 1.0), (2, 1), ("integers", "floats"), ("integers", "complex")])
def test_a_tangent_of_what_has_no_derivative(eager, argument, tangent):
    made = {
        "integers": integers(eager, np.arange(2.0)),
        "floats": eager.asarray(V),
        "complex": eager.xp.asarray(X + 1j),
    }
    x = eager.asarray(X)
    with pytest.raises(dil.DTypeError, match="has no derivative; pass a floating array, or None as its tangent"):
        dil.jvp(lambda a, x: x, (made.get(argument, argument), x), (made.get(tangent, tangent), x))
    value, _ = dil.jvp(lambda a, x: x, (made.get(argument, argument), x), (None, x))
    np.testing.assert_allclose(eager.to_numpy(value), X)


def test_a_tangent_with_other_keys(eager):
    x = eager.asarray(X)
    with pytest.raises(dil.ShapeError, match=r"\['c'\].*expected .*\['a'\]"):
        dil.jvp(lambda d: d["a"] + 2.0 * d["b"], ({"a": x, "b": x},), ({"b": x, "c": x},))


@pytest.mark.parametrize("n", [1, 2])
def test_jvp_wants_sequences_of_arguments(eager, n):
    x = eager.asarray(np.ones(n))
    with pytest.raises(dil.DilError, match=r"expected a sequence|tuple"):
        dil.jvp(lambda x: 2.0 * x, x, x)


def test_a_tangent_of_none_is_zero(eager):
    _, moved = dil.jvp(lambda x: 2.0 * x, (eager.asarray(X),), (None,))
    np.testing.assert_array_equal(eager.to_numpy(moved), [0.0, 0.0])


VALUES = {
    "vector": (lambda x: 2.0 * x, r"one number, an array of shape \(\); .*shape \(2,\) .*reduce it, or use dil.vjp"),
    "bool": (lambda x: True, "returned True of type bool; reduce it"),
    "dict": (lambda x: {"v": array_namespace(x).sum(x)}, "of type dict; reduce it"),
    "int": (lambda x: to_int(array_namespace(x).sum(x)), "dtype .*int64"),
}


@pytest.mark.parametrize("kind", VALUES)
def test_grad_of_a_function_that_returns_no_number(plain, kind):
    fn, text = VALUES[kind]
    with pytest.raises(dil.DilError, match=text):
        dil.grad(fn)(plain.asarray(X))


@pytest.mark.parametrize("constant", [3.0, 3], ids=str)
def test_grad_of_a_function_that_returns_a_python_number(plain, constant):
    """Its gradient is zero, as that of a constant array; torch's float() may have cut the number from the argument."""
    x = plain.asarray(X)
    if plain.backend == "torch":
        with pytest.raises(dil.ShapeError, match=r"of type (float|int), which float\(\) or item\(\) may have cut"):
            dil.grad(lambda x: constant)(x)
        return
    value, gradient = dil.value_and_grad(lambda x: constant)(x)
    assert plain.to_numpy(value) == 3.0
    assert value.dtype == x.dtype
    np.testing.assert_array_equal(plain.to_numpy(gradient), np.zeros(2))


def test_grad_where_a_python_constant_wins():
    hinge = dil.grad(lambda u: max(0, u[0] - 1))
    np.testing.assert_array_equal(hinge(np.array([0.5, 2.0])), [0.0, 0.0])
    np.testing.assert_array_equal(hinge(np.array([1.5, 2.0])), [1.0, 0.0])
    np.testing.assert_array_equal(dil.grad(lambda u: sum(x for x in u if x > 9))(np.ones(2)), [0.0, 0.0])
    assert dil.grad(lambda z: 1.0)(1.0 + 2.0j) == 0.0
    assert type(dil.value_and_grad(np.sum)(np.ones(2))[0]) is np.float64  # a float of Python too
    assert dil.value_and_grad(lambda z: 1.0)(np.ones((), np.complex64))[0].dtype == np.float32


def test_jvp_of_a_python_number(plain):
    """Its tangent is zero, as its gradient is, and refused on torch as its gradient is."""
    x = plain.asarray(X)
    if plain.backend == "torch":
        with pytest.raises(dil.ShapeError, match=r"float\(\) or item\(\) may have cut"):
            dil.jvp(lambda x: 3.0, (x,), (x,))
        return
    value, tangent = dil.jvp(lambda x: max(-9.0, 3.0), (x,), (x,))
    assert (plain.to_numpy(value), plain.to_numpy(tangent)) == (3.0, 0.0)
    assert value.dtype == tangent.dtype == x.dtype
    assert dil.jvp(lambda x: (x, 3.0), (x,), (x,))[1][1] is None  # beside arrays it is auxiliary


@pytest.mark.parametrize("argnums", [2, -3, (0, 5)], ids=str)
def test_argnums_out_of_range(eager, argnums):
    with pytest.raises(dil.OptionError, match=r"argnums=.*, but the function was called with 2 positional arguments"):
        dil.grad(inner, argnums)(eager.asarray(X), eager.asarray(V))


@pytest.mark.parametrize("argnums", [1.0, "a", None, (), (0, 0)], ids=str)
def test_argnums_that_are_none(eager, argnums):
    with pytest.raises(dil.OptionError, match="argnums="):
        dil.grad(inner, argnums)(eager.asarray(X), eager.asarray(V))


def test_grad_of_an_integer_array(eager):
    with pytest.raises(dil.DilError, match="int64"):
        dil.grad(lambda a: array_namespace(a).sum(a))(integers(eager, X))


RIGHT = {
    "gradient only": given(),
    "hvp without mixed": given(hvp=lambda u, v, x: v),
    "mixed without hvp": given(mixed=lambda u, w, x: (-w,)),
    "both": given(hvp=lambda u, v, x: v, mixed=lambda u, w, x: (-w,)),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_derivatives_given_in_part(eager, kind):
    np.testing.assert_allclose(pulled(eager, RIGHT[kind], X)[0], V)


@pytest.mark.parametrize("kind", ["gradient only", "hvp without mixed"])
def test_derivatives_given_in_part_on_jax(kind):
    jax = jax_()
    found = jax.grad(lambda x: (RIGHT[kind](x) * V).sum())(jax.numpy.asarray(X))
    np.testing.assert_allclose(found, V)


def hvp(u, v, x):
    return v


WRONG = {
    "gradient shape": (
        given(gradient=lambda u, x: u[:1]),
        r"derivatives.gradient returned \(1,\) of .*; expected \(2,\) of .*like the unknown",
    ),
    "gradient tree": (given(gradient=lambda u, x: {"a": u}), r"derivatives.gradient returned \['a'\] \(2,\)"),
    "gradient float": (given(gradient=lambda u, x: 1.0), "derivatives.gradient is 1.0 of type float; expected"),
    "gradient dtype": (given(gradient=lambda u, x: to_float32(u)), "float32; expected .*float64"),
    "hvp shape": (given(hvp=lambda u, v, x: v[:1]), r"derivatives.hvp returned \(1,\)"),
    "hvp None": (given(hvp=lambda u, v, x: None), "derivatives.hvp is None of type NoneType; expected"),
    "mixed array": (
        given(hvp=hvp, mixed=lambda u, w, x: -w),
        r"of shape \(2,\); expected a tuple of 1 entries, one per positional arg",
    ),
    "mixed count": (
        given(hvp=hvp, mixed=lambda u, w, x: (w, {"a": [w, 1.0]})),
        r"returned \(\w+ of shape \(2,\), \{'a': \[\w+ of shape \(2,\), 1.0\]\}\); expected a tuple of 1 entries",
    ),
    "mixed shape": (
        given(hvp=hvp, mixed=lambda u, w, x: (w[:1],)),
        r"derivatives.mixed returned arrays of shapes \[\(\(1,\).*shapes \[\(\(2,\).*; each entry must be like",
    ),
    "mixed dtype": (given(hvp=hvp, mixed=lambda u, w, x: (to_float32(w),)), "derivatives.mixed.*float32"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_derivatives_of_another_shape_or_structure(eager, kind):
    layer, text = WRONG[kind]
    with pytest.raises(dil.DilError, match=text):
        pulled(eager, layer, X)


def test_what_came_is_told_without_its_numbers(eager):
    """A message with the 2,000 numbers of an array is not read."""
    many = eager.asarray(np.zeros(2000))
    for layer in (
        dil.argmin(lambda u, x: [u, x], dil.solvers.Newton(), init=lambda x: x),
        dil.argmin(
            bowl, lambda f, i, x: x, derivatives=dil.Derivatives(gradient=lambda u, x: u - x, mixed=lambda *a: a)
        ),
    ):
        with pytest.raises(dil.ShapeError, match=r"of shape \(2000,\)") as raised:
            pulled(eager, layer, np.zeros(2000))
        assert len(str(raised.value)) < 600
    with pytest.raises(dil.ShapeError, match=r"returned \[\w+ of shape \(2000,\), 1.0\] of type list"):
        dil.grad(lambda x: [x, 1.0])(many)


def test_mixed_derivatives_of_a_keyword_that_is_not_there(eager):
    products = dil.Derivatives(
        gradient=lambda u, x, c: u - c * x,
        hvp=lambda u, v, x, c: v,
        mixed=lambda u, w, x, c: (-c * w, {"d": -array_namespace(w).sum(w * x)}),
    )
    layer = dil.argmin(lambda u, x, c: bowl(u, c * x), lambda fun, init, x, c: c * x, derivatives=products)
    with pytest.raises(dil.DilError, match=r"derivatives.mixed.*'d'"):
        pulled(eager, lambda x, c: layer(x, c=c), X, 2.0)


def cube(x):
    return array_namespace(x).sum(x**3)


CHECKS = {
    "order=3": ({"order": 3}, "order=3; expected 1 or 2"),
    "order='1'": ({"order": "1"}, "order='1'; expected 1 or 2"),
    "directions=0": ({"directions": 0}, "directions=0; expected an integer >= 1"),
    "directions=1.5": ({"directions": 1.5}, "directions=1.5; expected"),
    "directions='2'": ({"directions": "2"}, "directions='2'; expected"),
    "backends=[]": ({"backends": []}, r"backends=\[\]; expected"),
    "backends='numpy'": ({"backends": "numpy"}, "backends='numpy'; expected"),
    "backends=['nunpy']": ({"backends": ["nunpy"]}, "there is no backend 'nunpy'; expected one of"),
    "seed=-1": ({"seed": -1}, "seed=-1; expected"),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_a_bad_option_of_check_gradients(kind):
    options, text = CHECKS[kind]
    with pytest.raises(dil.DilError, match=text):
        dil.check_gradients(cube, X, **options)


def test_check_gradients_without_a_float_array(eager):
    with pytest.raises(dil.DilError, match="no float array among the arguments"):
        dil.check_gradients(cube, integers(eager, X))
    with pytest.raises(dil.BackendError, match="got no array"):
        dil.check_gradients(cube, 1)


def test_check_gradients_of_a_function_without_floats_in_its_value(eager):
    with pytest.raises(dil.DilError, match="no float array"):
        dil.check_gradients(lambda x: x > 0.0, eager.asarray(X))
