"""The inverses in Python numbers and in NumPy, with which systems of few unknowns are solved and checked."""

import math
import random

import pytest

from dil._base.numpy_inverse import numpy_inverse
from dil._base.reciprocal import reciprocal
from dil._base.small_inverse import condition_limit, product, small_inverse, transpose

EPS = 2.0**-52
both = pytest.mark.parametrize("invert", [small_inverse, numpy_inverse])


def system(n, symmetric, seed):
    rng = random.Random(seed)
    B = [[rng.gauss(0, 1) for _ in range(n)] for _ in range(n)]
    if symmetric:
        B = [
            [sum(x * y for x, y in zip(p, q, strict=True)) + (i == j) for j, q in enumerate(B)] for i, p in enumerate(B)
        ]
    units = [10.0 ** rng.randint(-12, 12) for _ in range(n)]
    A = [[s * a * t for a, t in zip(row, units, strict=True)] for s, row in zip(units, B, strict=True)]
    return A, [rng.gauss(0, 1) / t for t in units]


@both
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 12])
def test_the_solution_has_every_digit_in_any_units(n, symmetric, invert):
    for seed in range(20):
        A, x = system(n, symmetric, seed)
        found = invert(A, EPS, symmetric=symmetric)
        solved, _ = found.solve(product(A, x), EPS)
        for here, there in zip(solved, x, strict=True):
            assert abs(here - there) <= 1e3 * EPS * found.condition * max(abs(here), abs(there)) + 64 * EPS * abs(there)


def hilbert(n):
    return [[1.0 / (i + j + 1) for j in range(n)] for i in range(n)]


@both
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "A",
    [
        [[0.0]],
        [[math.nan]],
        [[1.0, math.inf], [0.0, 1.0]],
        [[1.0, 1.0], [1.0, 1.0]],
        [[1.0, 0.0], [0.0, 0.0]],
        [[1e-300, 0.0], [0.0, 1.0]],
        hilbert(8),
    ],
)
def test_a_matrix_in_doubt_has_none(A, symmetric, invert):
    eps = 2.0**-23 if len(A) == 8 else EPS
    assert invert(A, eps, symmetric=symmetric) is None


@both
def test_a_symmetric_matrix_that_is_indefinite_has_none(invert):
    A = [[1.0, 2.0], [2.0, 1.0]]
    assert invert(A, EPS, symmetric=True) is None
    assert invert(A, EPS, symmetric=False).condition == pytest.approx(3.0)
    assert condition_limit(EPS) > 1e11


@both
@pytest.mark.parametrize("b", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [1e200, 1.0]])
def test_a_right_hand_side_in_doubt_has_no_solution(b, invert):
    assert invert([[2.0, 1.0], [0.0, 1.0]], EPS, symmetric=False).solve(b, EPS) is None


@both
@pytest.mark.parametrize("transposed", [False, True])
def test_a_step_is_short_in_the_scale_of_each_entry(transposed, invert):
    A, step = system(4, False, 0)  # F = A step, or A^T step
    F = product(transpose(A) if transposed else A, step)
    found, size = invert(A, EPS, symmetric=False), [abs(s) for s in step]
    assert found.step_is_short(F, [2.0 * s for s in size], 1.0, transposed=transposed)
    for i in range(4):
        scale = [0.5 * s if i == j else 2.0 * s for j, s in enumerate(size)]
        assert not found.step_is_short(F, scale, 1.0, transposed=transposed)
    assert not found.step_is_short([math.nan, *F[1:]], size, 1e9, transposed=transposed)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("a", [2.0, -3.0, 1e-50, 1e50, 1e-70, -1e70, 0.0, math.nan, math.inf])
def test_one_unknown_has_the_answers_of_a_matrix(a, symmetric):
    alone, matrix = (invert([[a]], EPS, symmetric=symmetric) for invert in (reciprocal, small_inverse))
    assert (alone is None) == (matrix is None)
    if alone is None or matrix is None:
        return
    assert alone.condition == pytest.approx(matrix.condition)
    for b in (0.7 * a, -1e20 * a, 0.0, math.nan, math.inf, 1e-300, 1e300):
        one, other = alone.solve([b], EPS), matrix.solve([b], EPS)
        assert (one is None) == (other is None)
        assert one is None or one[0] == pytest.approx(other[0], rel=4 * EPS)
    for F, scale in ((0.9 * a, 1.0), (-1.1 * a, 1.0), (math.nan, 1.0), (0.0, 0.0), (a, 0.0)):
        for transposed in (False, True):
            short = alone.step_is_short([F], [scale], 1.0, transposed=transposed)
            assert short == matrix.step_is_short([F], [scale], 1.0, transposed=transposed)
