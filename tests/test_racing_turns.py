"""The turns of the race between conjugate gradients with a diagonal and with orthogonal residuals."""

from __future__ import annotations

import numpy as np
import pytest

from dil import Status
from dil._base.operator import Operator
from dil._frameworks.registry import common_owner
from dil.linear import CG
from dil.linear._choice_in_words import Way
from dil.linear._racing_cg import FIRST, racing_cg

N = 300


def raced(A, b):
    """Return the solution by the race, its course and its products."""
    calls = []

    def product(p):
        calls.append(1)
        return A @ p

    backend = common_owner([b], ["b"], "the test")
    options = {"rtol": 1.8e-12, "max_iter": 10 * N, "backend": backend, "loops": backend.loops}
    found = racing_cg(Operator(product, symmetric=True), b, **options)
    assert int(found.status) == Status.CONVERGED
    assert int(found.extra["products"]) == len(calls)
    return found, found.extra["raced"][0], len(calls)


def spectrum(kind, draw):
    """Return a spectrum in which the diagonal does not help, although its entries differ where few vectors rule it."""
    if kind == "clusters":
        return draw.choice([1.0, 30.0, 1e3, 3e3], N) * np.exp(0.01 * draw.standard_normal(N))
    large = int(draw.integers(5, 60))
    return np.concatenate([np.geomspace(10, 3e3, large), draw.uniform(1, 2, N - large)])


@pytest.mark.parametrize("kind", ["clusters", "low rank"])
def test_a_diagonal_that_loses_takes_fewer_steps_than_the_other_way(kind):
    races = 0
    for seed in range(8):
        draw = np.random.default_rng(seed)
        # a matrix whose diagonal varies at random, for which the spectrum is not to blame
        v = draw.standard_normal(N) * np.exp(draw.standard_normal(N))
        v, d = v / np.linalg.norm(v), spectrum(kind, draw)
        H = np.eye(N) - 2 * np.outer(v, v)
        A, b = H @ np.diag(draw.permutation(d)) @ H, draw.standard_normal(N)
        found, course, calls = raced((A + A.T) / 2, b)
        plain = CG(max_iter=10 * N)(Operator(lambda p, A=A: A @ p, symmetric=True), b)
        if int(course.way) == Way.RACE and not course.by_diagonal:
            races += 1
            assert int(course.diagonal) < int(course.orthogonal)
            assert int(course.diagonal) <= 48
            assert int(found.iterations) == FIRST + int(course.diagonal) + int(course.orthogonal)
            # one more for each check of the true residual
            assert calls <= 2 * (FIRST + int(course.orthogonal)) + 1
            assert calls <= 2 * int(plain.extra["products"])
    assert races >= 2


def test_a_diagonal_that_wins_leaves_the_other_at_its_turn():
    draw = np.random.default_rng(0)
    E = draw.standard_normal((N, N)) * (0.1 / N**0.5)
    scales = draw.permutation(np.geomspace(1.0, 1e6, N)) ** 0.5
    found, course, calls = raced(scales[:, None] * (np.eye(N) + E + E.T) * scales, draw.standard_normal(N))
    assert int(course.way) == Way.RACE
    assert bool(course.by_diagonal)
    assert int(course.orthogonal) in (16, 32, 64)
    assert calls <= int(course.diagonal) + 80 + 1
    assert int(found.iterations) == FIRST + int(course.diagonal) + int(course.orthogonal)


def systems():
    """Return a matrix for each way after the first steps, and its name."""
    draw = np.random.default_rng(5)
    Q, _ = np.linalg.qr(draw.standard_normal((N, N)))
    smooth = (Q * np.geomspace(1, 1e3, N)) @ Q.T
    return {"diagonal": np.diag(np.geomspace(1, 1e6, N)) + 0.1 * smooth / 1e3, "orthogonal": (smooth + smooth.T) / 2}


@pytest.mark.parametrize("way", ["diagonal", "orthogonal"])
def test_a_product_that_errs_once_is_made_good_by_a_restart(way):
    """The recurrence goes on to fall, the true residual does not: the iteration starts again from it."""
    A, b, calls = systems()[way], np.random.default_rng(1).standard_normal(N), []

    def product(p):
        calls.append(1)
        return (1 + 1e-7 * (len(calls) == 14)) * (A @ p)

    backend = common_owner([b], ["b"], "the test")
    options = {"rtol": 1.8e-12, "max_iter": 10 * N, "backend": backend, "loops": backend.loops}
    found = racing_cg(Operator(product, symmetric=True), b, **options)
    assert bool(found.extra["raced"][0].by_diagonal) == (way == "diagonal")
    assert int(found.status) == Status.CONVERGED
    assert np.linalg.norm(b - A @ found.value) <= 2e-12 * np.linalg.norm(b)
    assert int(found.extra["products"]) == len(calls)


@pytest.mark.parametrize("way", ["diagonal", "orthogonal"])
def test_a_product_in_single_precision_is_told_with_its_true_residual(way):
    A, b = systems()[way], np.random.default_rng(1).standard_normal(N)
    coarse = A.astype(np.float32)

    def product(p):
        return (coarse @ p.astype(np.float32)).astype(float)

    backend = common_owner([b], ["b"], "the test")
    options = {"rtol": 1.8e-12, "max_iter": 10 * N, "backend": backend, "loops": backend.loops}
    found = racing_cg(Operator(product, symmetric=True), b, **options)
    true = np.linalg.norm(b - product(found.value)) / np.linalg.norm(b)
    assert int(found.status) in (Status.STAGNATED, Status.MAX_ITER, Status.SINGULAR)
    assert true > 1e-10
    assert abs(float(found.residual) - true) <= 1e-3 * true
