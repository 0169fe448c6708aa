"""What stands beside an array that is being differentiated: arrays with operators of their own, other gradients."""

from __future__ import annotations

import operator

import numpy as np
import pytest

import dil

U = np.array([1.0, 2.0])
MASKED = np.ma.array([1.0, 2.0], mask=[False, True])
MATRIX = np.array([[1.0, 2.0], [3.0, 4.0]]).view(np.matrix)  # np.matrix itself warns
OPERATORS = (operator.mul, operator.add, operator.sub, operator.truediv, np.hypot, np.add)


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.__name__)
def test_a_mask_is_not_dropped(op):
    with pytest.raises(dil.UnsupportedFunctionError, match=r"MaskedArray.*np\.where"):
        dil.grad(lambda u: op(u, MASKED).sum())(U)


def test_a_layer_refuses_a_mask():
    layer = dil.argmin(lambda u, t: np.sum((u - t * MASKED) ** 2), dil.solvers.Newton(), init=lambda t: t)
    with pytest.raises(dil.UnsupportedFunctionError, match="MaskedArray"):
        layer(U)


@pytest.mark.parametrize("product", [lambda u: u.reshape(2, 1) * MATRIX, lambda u: MATRIX * u.reshape(2, 1)])
def test_the_product_of_a_matrix_is_not_taken_by_entries(product):
    with pytest.raises(dil.UnsupportedFunctionError, match=r"numpy matrix.*`@`"):
        dil.grad(lambda u: product(u)[0, 0])(U)


@pytest.mark.parametrize("kind", [np.recarray, np.memmap])
def test_other_kinds_of_arrays_are_arrays(kind, tmp_path):
    other = np.memmap(tmp_path / "x", dtype=float, mode="w+", shape=2) if kind is np.memmap else U.view(kind)
    other[:] = U
    np.testing.assert_array_equal(dil.grad(lambda u: np.sum(u * other))(U), U)


def test_no_gradient_is_another_one():
    both = dil.grad(lambda p: np.sum((p["a"] + p["b"]) ** 2))({"a": U.copy(), "b": U.copy()})
    both["a"] *= 0.0
    np.testing.assert_array_equal(both["b"], 4 * U)
    first, second = dil.vjp(lambda a, b: a + b, U, U)[1](np.ones(2))
    first *= 0.0
    np.testing.assert_array_equal(second, np.ones(2))


@pytest.mark.parametrize("fn", [np.mean, np.sum, lambda u: np.sum(u.reshape(1, 2)), lambda u: u[0] + 0.0 * u[1]])
def test_a_gradient_can_be_written_into(fn):
    g = dil.grad(fn)(U)
    g *= 2.0
    np.testing.assert_array_equal(g, 2.0 * dil.grad(fn)(U))


@pytest.mark.parametrize("fn", [lambda x: x, lambda x: x.reshape(1, 2), lambda x: x.T])
def test_a_gradient_is_not_its_cotangent(fn):
    out, pull = dil.vjp(fn, U)
    c = np.ones_like(out)
    pull(c)[0][...] = 5.0
    np.testing.assert_array_equal(c, np.ones_like(out))


class WithUnit(np.ndarray):
    """A kind of NumPy array whose operations are not NumPy's."""

    def __array_ufunc__(self, ufunc, method, *args, **options):
        plain = [np.asarray(x) if isinstance(x, WithUnit) else x for x in args]
        return 1000.0 * getattr(ufunc, method)(*plain, **options)


class WithOperator(np.ndarray):
    def __radd__(self, other):
        return 1000.0 * other + np.asarray(self)


@pytest.mark.parametrize("kind", [WithUnit, WithOperator])
@pytest.mark.parametrize("op", [*OPERATORS, operator.matmul], ids=lambda op: op.__name__)
def test_a_kind_of_array_with_operations_of_its_own_is_refused(op, kind):
    other = np.array([3.0, 4.0]).view(kind)
    with pytest.raises(dil.UnsupportedFunctionError, match=rf"{kind.__name__}.*np\.asarray"):
        dil.grad(lambda u: np.sum(op(u, other)))(U)


@pytest.mark.parametrize("kind", [type("Plain", (np.ndarray,), {}), np.recarray])
def test_a_kind_of_array_with_the_operations_of_arrays_is_one(kind):
    other = np.array([3.0, 4.0]).view(kind)
    np.testing.assert_array_equal(dil.grad(lambda u: np.sum(u * other + other * u))(U), [6.0, 8.0])


class Quantity:
    """A number with a unit, as libraries of units have it: it holds an array, and takes NumPy's operations."""

    def __init__(self, x):
        self.x = x

    def __array_ufunc__(self, ufunc, method, *args, **options):
        return Quantity(getattr(ufunc, method)(*[getattr(x, "x", x) for x in args], **options))

    def __array_function__(self, function, types, args, options):
        return Quantity(function([getattr(x, "x", x) for x in args[0]], *args[1:], **options))


class Operator:
    """A linear operator: NumPy leaves `v @ A` to it."""

    __array_ufunc__ = None

    def __rmatmul__(self, v):
        return 3.0 * v


QUANTITY = Quantity(np.array([3.0, 4.0]))


@pytest.mark.parametrize("op", [*OPERATORS, operator.pow, operator.matmul], ids=lambda op: op.__name__)
def test_what_takes_numpys_operations_is_asked(op):
    other = QUANTITY.x
    for ours, theirs in (
        (lambda u: op(u, QUANTITY).x, lambda u: op(u, other)),
        (lambda u: np.add(QUANTITY, u).x, lambda u: other + u),
        (lambda u: op(u, Quantity(u)).x, lambda u: op(u, u)),
    ):
        np.testing.assert_array_equal(*(dil.grad(lambda u, f=f: np.sum(f(u) ** 2))(U) for f in (ours, theirs)))


def test_an_operator_that_takes_a_product_alone_is_asked():
    np.testing.assert_array_equal(dil.grad(lambda u: np.sum(u @ Operator()))(U), [3.0, 3.0])


def test_functions_ask_it_too_or_name_it():
    np.testing.assert_array_equal(dil.grad(lambda u: np.sum(np.concatenate([u, QUANTITY]).x ** 2))(U), 2.0 * U)
    with pytest.raises(dil.UnsupportedFunctionError, match="Quantity"):
        dil.grad(lambda u: u.__array_namespace__().add(u, QUANTITY))(U)
