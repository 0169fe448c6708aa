"""Scores, solvers and helpers that the tests of messages share."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil

X = np.asarray([1.0, 2.0])


V = np.asarray([1.0, 3.0])


NEWTON = dil.solvers.Newton()


def zeros(x, *rest, **others):
    return array_namespace(x).zeros_like(x)


def bowl(u, x):
    """1/2 ||u - x||^2, whose minimum is x."""
    return 0.5 * array_namespace(u).sum((u - x) ** 2)


def quartic(u, x):
    xp = array_namespace(u)
    return 0.5 * xp.sum((u - x) ** 2) + 0.25 * xp.sum(u**4)


def solved(fun, init, x, *rest):
    return x * 1.0


def float32(engine, values):
    xp = engine.xp
    return xp.astype(engine.asarray(values), xp.float32)


def integers(engine, values):
    xp = engine.xp
    return xp.astype(engine.asarray(values), xp.int64)


def pulled(engine, layer, *args, cotangent=V):
    """Return the cotangents of the arguments, as NumPy arrays."""
    _, pull = dil.vjp(layer, *map(engine.asarray, args))
    return [None if g is None else engine.to_numpy(g) for g in pull(engine.asarray(cotangent))]


def jax_():
    return pytest.importorskip("jax", reason="JAX is not installed")


def torch_():
    return pytest.importorskip("torch", reason="torch is not installed")


def tensor(values, **options):
    torch = torch_()
    return torch.tensor(values, dtype=torch.float64, **options)


def to_float32(value):
    xp = array_namespace(value)
    return xp.astype(value, xp.float32)


def to_int(value):
    xp = array_namespace(value)
    return xp.astype(value, xp.int64)


def bowls(u, x, h):
    return array_namespace(u).sum(0.5 * h * (u - x) ** 2 + 0.25 * h * u**4, axis=-1)


def inner(a, b):
    return array_namespace(a).sum(a * b)


def given(**parts):
    return dil.argmin(bowl, solved, derivatives=dil.Derivatives(**{"gradient": lambda u, x: u - x, **parts}))
