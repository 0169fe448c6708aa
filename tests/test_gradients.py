"""Gradients of layers on every engine, against finite differences and against NumPy."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings

import dil
from dil._diagnostics.finite_differences import Line
from dil._frameworks.arguments import split_arguments
from dil._frameworks.transforms import Flat
from problems import SHAPES, Case, cases


@lru_cache(maxsize=512)
def reference(case: Case):
    """Value, cotangents, and the difference quotient along a random direction, all by NumPy."""
    args, v = case.args(), case.cotangent()
    flat = Flat(case.function(), *split_arguments(args, {}))
    backend = flat.backend
    y, pull = backend.vjp(flat, *args)
    grads = pull((v,))
    draw = np.random.default_rng(case.seed + 2)
    t = tuple(np.asarray(draw.standard_normal(x.shape)) for x in args)
    difference, spread = Line(backend, flat, args, t, (v,), float(np.finfo(float).eps), {}).derivative()
    return y[0], grads, t, difference, spread


def agree(engine, case: Case) -> None:
    y, grads, t, difference, spread = reference(case)
    found_y, found = engine.gradients(case.function(), case.args(), case.cotangent())
    np.testing.assert_allclose(found_y, y, rtol=1e-10, atol=1e-10 * np.abs(y).max())
    for mine, theirs in zip(found, grads, strict=True):
        assert np.linalg.norm(mine - theirs) <= 1e-10 * np.linalg.norm(theirs)
    terms = sum(np.abs(g * d).sum() for g, d in zip(found, t, strict=True))
    reverse = sum((g * d).sum() for g, d in zip(found, t, strict=True))
    assert spread <= 1e-7 * terms, "the finite differences themselves are not sharp here"
    assert abs(reverse - difference) <= 1e-7 * terms


def test_random_scores(engine):
    @settings(max_examples=engine.examples)
    @given(cases)
    def run(case):
        agree(engine, case)

    run()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["network", "coupled"])
def test_every_shape_on_every_backend(plain, kind, shape):
    if plain.backend == "jax" and (kind, shape) not in (("network", ()), ("coupled", (2, 3))):
        pytest.skip("JAX compiles each; every kind and the corners are kept, the random test draws the rest")
    agree(plain, Case(kind, shape, 7))


def test_second_order(plain):
    if plain.backend == "jax":
        pytest.skip("JAX would compile every difference quotient; tests/test_jax.py checks its second order")
    case = Case("network", (3,), 3)
    args = tuple(plain.asarray(x) for x in case.args())
    report = dil.check_gradients(case.function(), *args, order=2, directions=1)
    assert report.ok, str(report)


def test_forward_equals_reverse(plain):
    case = Case("quartic", (2, 2), 5)
    args = tuple(plain.asarray(x) for x in case.args())
    v, draw = plain.asarray(case.cotangent()), np.random.default_rng(0)
    t = tuple(plain.asarray(draw.standard_normal(x.shape)) for x in case.args())
    _, moved = dil.jvp(case.function(), args, t)
    _, pull = dil.vjp(case.function(), *args)
    forward = (plain.to_numpy(moved) * plain.to_numpy(v)).sum()
    products = [plain.to_numpy(g) * plain.to_numpy(d) for g, d in zip(pull(v), t, strict=True)]
    assert abs(forward - sum(p.sum() for p in products)) <= 1e-10 * sum(np.abs(p).sum() for p in products)


def test_pushforward_of_the_theorem(plain):
    """The rule's own pushforward, which torch's and JAX's forward mode call, equals the transpose of its pullback."""
    from dil._layers.theorem import ImplicitRule

    case = Case("network", (3,), 11)
    layer = case.layer()
    arrays = [plain.asarray(x) for x in case.args()]
    call, flat = layer.begin(tuple(arrays), {}, None)
    y = call.forward(*flat)
    rule = ImplicitRule(call.problem, layer.linear_solver, layer.policy)
    draw = np.random.default_rng(1)
    t = tuple(plain.asarray(draw.standard_normal(x.shape)) for x in case.args())
    v = plain.asarray(case.cotangent())
    moved, *_ = rule.pushforward(tuple(flat), y, t)
    pulled = rule.pullback(tuple(flat), y, (v,), (0, 1))
    forward = (plain.to_numpy(moved) * plain.to_numpy(v)).sum()
    products = [plain.to_numpy(g) * plain.to_numpy(d) for g, d in zip(pulled, t, strict=True)]
    assert abs(forward - sum(p.sum() for p in products)) <= 1e-10 * sum(np.abs(p).sum() for p in products)
