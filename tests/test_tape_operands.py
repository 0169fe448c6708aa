"""What stands beside a box: lists, tuples and fractions as NumPy takes them, and what is refused in words."""

from __future__ import annotations

import operator
import statistics
from fractions import Fraction

import array_api_strict
import numpy as np
import pytest
import scipy.sparse

import dil
from dil_backends._tape import rules as _tape_rules
from dil_backends._tape import vjp

U = np.array([0.3, 0.7])
S = scipy.sparse.csr_matrix(np.array([[1.0, 2.0], [0.0, 3.0]]))

OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow]
OPERATORS += [operator.matmul, operator.lt, operator.eq, np.hypot, np.power, np.arctan2, np.matmul, np.maximum, divmod]
OTHERS = {
    "list": lambda u: [1.5, 2.0],
    "tuple": lambda u: (1.5, 2.0),
    "list of boxes": lambda u: [u[1], 2.0],
    "tuple of boxes": lambda u: (u[1] * u[0], 2.0 * u[0]),
    "nested": lambda u: [[u[0], 1.0], [2.0, u[1]]],
    "fraction": lambda u: Fraction(1, 3),
}


def as_array(x):
    if isinstance(x, Fraction):
        return float(x)
    return np.stack([as_array(part) for part in x]) if isinstance(x, list | tuple) else x


def score(op, left, right):
    found = op(left, right)
    return np.sum((found[1] if op is divmod else found) * np.array([1.0, 0.6]))


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.__name__)
def test_an_operand_is_the_array_that_numpy_makes_of_it(op, kind):
    other = OTHERS[kind]
    if kind == "fraction" and (isinstance(op, np.ufunc) or op in (operator.matmul, divmod)):
        pytest.skip("NumPy takes no fraction there")
    for ours, theirs in (
        (lambda u: score(op, u, other(u)), lambda u: score(op, u, as_array(other(u)))),
        (lambda u: score(op, other(u), u), lambda u: score(op, as_array(other(u)), u)),
    ):
        assert ours(U) == theirs(U)
        first, expected = dil.grad(ours), dil.grad(theirs)
        np.testing.assert_array_equal(first(U), expected(U))
        second, wanted = (dil.grad(lambda u, d=d: np.sum(np.sin(d(u))))(U) for d in (first, expected))
        np.testing.assert_array_equal(second, wanted)


def test_a_strict_array_takes_no_list():
    with pytest.raises(TypeError):
        vjp(lambda u: (u * [1.0, 2.0],), array_api_strict.asarray([1.0, 2.0]))


def written(u):
    v = np.zeros(2)
    v.flat[0] = u[0]
    return np.sum(v)


REFUSED = {
    "a sparse matrix times a number": (lambda u: np.sum((u[0] * S) @ u), r"u\[0\] \* \(S @ v\)"),
    "a vector plus a sparse matrix": (lambda u: np.sum(u + S), r"S\.toarray\(\) \+ u"),
    "a sparse matrix of a ufunc": (lambda u: np.sum(np.multiply(u, S)), "S @ u"),
    "flat": (written, r"v\.flat\[0\] = u\[0\].*np\.stack"),
    "nditer": (lambda u: sum(x * x for x in np.nditer(u)), r"np\.stack"),
    "statistics.mean": (lambda u: statistics.mean(list(u)), r"np\.mean.*np\.stack.*statistics\.mean"),
    "statistics.stdev": (lambda u: statistics.stdev(list(u)), r"np\.mean.*np\.stack.*statistics\.mean"),
    "statistics.fmean": (lambda u: statistics.fmean(list(u)), r"float\(\).*np\.stack"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_what_to_write(case):
    f, words = REFUSED[case]
    with pytest.raises(dil.UnsupportedFunctionError, match=f"(?s){words}"):
        dil.grad(f)(U)


def test_a_number_cannot_be_iterated():
    seen = []
    dil.grad(lambda u: [seen.append(np.iterable(u[0])), u[0]][1])(U)
    assert seen == [False]


PLAIN = {
    "argmax": (0,), "argmin": (0,), "argsort": (0,), "argpartition": (1, 0), "all": (0,), "any": (0,),
    "count_nonzero": (0,), "round": (1,), "around": (1,), "searchsorted": (0.5, "right"), "nanargmax": (0,),
    "nanargmin": (0,), "isclose": (0.3, 1e-3, 1e-3), "allclose": (0.3, 1e-3, 1e-3), "digitize": ([0.1, 0.5], True),
    "isin": ([0.3], True), "array_equal": (U, True), "heaviside": (0.5,), "linalg.matrix_rank": (1e-3,),
    "array2string": (4, 2), "array_str": (4, 2), "array_repr": (4, 2), "fix": (),
}  # fmt: skip
"""Functions without a derivative, with NumPy's further arguments in their places."""


def whole(name, namespace=np):
    for part in name.split("."):
        namespace = getattr(namespace, part, None)
    return namespace


def point(name):
    return np.diag(U) if name == "linalg.matrix_rank" or name.endswith("_indices_from") else U


def takes(name):
    """Whether a name is of a function of NumPy that takes such arguments."""
    function = whole(name)
    if not callable(function) or isinstance(function, type):
        return False
    try:
        function(point(name), *PLAIN.get(name, ()))
    except TypeError:
        return False
    return True


CONSTANT = [name for name in _tape_rules.CONSTANT if takes(name)]


def test_there_are_such_functions():
    assert set(PLAIN) <= {*CONSTANT, "fix"}
    assert len(CONSTANT) > 40


@pytest.mark.parametrize("name", CONSTANT)
def test_a_function_without_a_derivative_takes_the_arguments_of_numpy(name):
    function, more, x = whole(name), PLAIN.get(name, ()), point(name)
    seen = []
    dil.grad(lambda u: [seen.append(function(u, *more)), np.sum(u)][1])(x)
    np.testing.assert_equal(seen[0], function(x, *more))
