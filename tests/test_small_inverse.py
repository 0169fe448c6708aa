"""The inverse in Python numbers, with which derivatives of few unknowns are solved and checked."""

import math
import random

import pytest

from dil._base.small_inverse import condition_limit, product, small_inverse

EPS = 2.0**-52


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


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_the_solution_has_every_digit_in_any_units(n, symmetric):
    for seed in range(20):
        A, x = system(n, symmetric, seed)
        found = small_inverse(A, EPS, symmetric=symmetric)
        solved, _ = found.solve(product(A, x), EPS)
        for here, there in zip(solved, x, strict=True):
            assert abs(here - there) <= 1e3 * EPS * found.condition * max(abs(here), abs(there)) + 64 * EPS * abs(there)


def hilbert(n):
    return [[1.0 / (i + j + 1) for j in range(n)] for i in range(n)]


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
def test_a_matrix_in_doubt_has_none(A, symmetric):
    eps = 2.0**-23 if len(A) == 8 else EPS
    assert small_inverse(A, eps, symmetric=symmetric) is None


def test_a_symmetric_matrix_that_is_indefinite_has_none():
    A = [[1.0, 2.0], [2.0, 1.0]]
    assert small_inverse(A, EPS, symmetric=True) is None
    assert small_inverse(A, EPS, symmetric=False).condition == pytest.approx(3.0)
    assert condition_limit(EPS) > 1e11


@pytest.mark.parametrize("b", [[0.0, 0.0], [math.nan, 1.0], [1e200, 1.0]])
def test_a_right_hand_side_in_doubt_has_no_solution(b):
    assert small_inverse([[2.0, 1.0], [0.0, 1.0]], EPS, symmetric=False).solve(b, EPS) is None
