"""Finite differences and small helpers that the tests of the tape share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import array_api_compat
import array_api_compat.numpy as np_xp
import numpy as np
import pytest

from dil_backends._tape import constant, namespace, vjp
from dil_backends._tape import primitive as _tape


def total(x):
    """The sum of all entries, as a float."""
    return float(array_api_compat.array_namespace(x).sum(constant(x)))


def is_complex(x):
    return array_api_compat.array_namespace(x).isdtype(x.dtype, "complex floating")


def parts(x):
    """The real arrays that an array stands for."""
    xp = array_api_compat.array_namespace(x)
    return (xp.real(x), xp.imag(x)) if is_complex(x) else (x,)


def inner(xs, ys):
    """The inner product of two tuples of arrays, and the sum of the absolute values of its terms."""
    products = [p * q for x, y in zip(xs, ys, strict=True) for p, q in zip(parts(x), parts(y), strict=True)]
    return sum(map(total, products)), sum(total(abs(p)) for p in products)


def random_like(xs, rng):
    def draw(x):
        values = rng.normal(size=x.shape) + (1j * rng.normal(size=x.shape) if is_complex(x) else 0.0)
        return array_api_compat.array_namespace(x).asarray(values, dtype=x.dtype)

    return tuple(map(draw, xs))


def assert_transposed(f, args, rng, *, step=1e-3, rtol=5e-9, terms=0.0, finer=()):
    """Hold <v, J u> of a central difference of fourth order against <J^T v, u> of the pull.

    `terms` is the size of what was summed to an entry of f, where that is larger than the entry. The smaller steps
    `finer` are tried where f bends too much for the difference. A wrong derivative differs from all of them.
    """
    y, pull = vjp(f, *args)
    u, v = random_like(args, rng), random_like(y, rng)
    backward, scale_backward = inner(pull(v), u)
    for h in (step, *finer):
        forward, scale_forward = difference(f, args, y, u, v, h)
        rounding = np.finfo(float).eps / h * (inner(y, v)[1] + terms * sum(total(abs(w)) for w in v))
        within = abs(forward - backward) <= rtol * (scale_forward + scale_backward) + 20 * rounding
        if within:
            break
    assert within


def difference(f, args, y, u, v, step):
    """<v, J u> by a central difference of fourth order, and the size of what was summed."""
    parts = []
    for k, weight in {1: 8 / 12, -1: -8 / 12, 2: -1 / 12, -2: 1 / 12}.items():
        moved = f(*(a + k * step * d for a, d in zip(args, u, strict=True)))
        changes = tuple(there - here for there, here in zip(moved, y, strict=True))
        parts.append(inner(changes, tuple(w * (weight / step) for w in v)))
    return sum(p[0] for p in parts), sum(p[1] for p in parts)


def gradient(f, outputs):
    """The function (*primals, *cotangents) -> cotangents of the primals: linear in the last, and differentiable."""

    def g(*args):
        primals, cotangents = args[:-outputs], args[-outputs:]
        return vjp(f, *primals)[1](cotangents)

    return g


@dataclass
class Case:
    """A function of the tape's namespace and some arrays. Its name starts with the name of the rule that it covers."""

    name: str
    f: object
    shapes: tuple
    domain: str = "real"
    numbers: tuple = ("real",)
    """"real" or "complex", for each argument in turn."""

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
            "away": lambda shape: rng.uniform(0.7, 1.5, size=shape) * rng.choice([-1.0, 1.0], size=shape),
            # eigenvalues and singular values far from each other and from zero
            "spread": lambda shape: (
                0.2 * rng.normal(size=shape) + np.eye(*shape[-2:]) * (1.0 + 1.5 * np.arange(shape[-1]))
            ),
            "regular": lambda shape: rng.normal(size=shape) + 3.0 * np.eye(*shape[-2:]),
        }[self.domain]

        def draw_complex(shape):
            # away from 0, from the real axis and so from branch cuts, by many steps of the differences
            values = np.asarray(draw(shape))
            return values + 1j * rng.uniform(0.3, 0.7, size=shape) * rng.choice([-1, 1], size=shape) * (values != 0)

        draws = [draw_complex if kind == "complex" else draw for kind in self.numbers]
        return tuple(xp.asarray(np.asarray(draws[i % len(draws)](s))) for i, s in enumerate(self.shapes))

    def function(self, xp):
        def f(*args):
            y = self.f(xp, *args)
            return tuple(y) if isinstance(y, tuple | list) else (y,)

        return f


def check(case, xp, order):
    """Hold a case against the raw functions and against finite differences of first or second order."""
    rng = np.random.default_rng(len(case.name))
    args = case.arguments(xp, rng)
    f = case.function(namespace(args[0]))
    boxed_values = vjp(f, *args)[0]
    raw_values = f(*args)
    for boxed, raw in zip(boxed_values, raw_values, strict=True):
        assert (boxed.shape, boxed.dtype) == (raw.shape, raw.dtype)
        assert total(abs(boxed - raw)) <= 1e-14 * total(abs(raw))
    cotangents = random_like(raw_values, rng)
    if order == 1:
        assert_transposed(f, args, rng)
    else:
        assert_transposed(gradient(f, len(raw_values)), (*args, *cotangents), rng)
    for i in range(len(args) if order == 2 else 0):  # boxes and raw arrays in one formula
        before, after = args[:i], (*args[i + 1 :], *cotangents)
        assert_transposed(lambda x: gradient(f, len(cotangents))(*before, x, *after), args[i : i + 1], rng)  # noqa: B023


def failures_of_a_wrong_formula(name, position, cases, monkeypatch):
    """The number of cases of a rule that fail if one of its formulas is wrong by one in a hundred thousand."""
    pull = _tape.Primitive.pull

    def wrong(self, node, c, wanted, used=None):
        factors = [1 + 1e-5 * (self.name == name and i == position) for i in wanted]
        return [factor * g for factor, g in zip(factors, pull(self, node, c, wanted, used), strict=True)]

    monkeypatch.setattr(_tape.Primitive, "pull", wrong)
    failed = 0
    for case in cases:
        if case.name.partition("#")[0] == name:
            try:
                check(case, np_xp, 1)
            except AssertionError:
                failed += 1
    return failed


def solve(shapes, domain):
    return Case(f"linalg.solve#{shapes}", lambda xp, a, b: xp.linalg.solve(spd(xp, a), b), shapes, domain)


def spd(xp, x):
    return x @ xp.matrix_transpose(xp.conj(x)) + xp.eye(x.shape[-1])


def named(cases):
    return [pytest.param(case, id=case.name) for case in cases]


class Doubled:
    def pullback(self, args, y, cotangents, wrt):
        return tuple(2.0 * cotangents[0] for _ in wrt)
