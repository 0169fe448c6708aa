"""Memory does not grow with the solver's iterations, nor from call to call."""

from __future__ import annotations

import gc
import tracemalloc
from types import CellType, FunctionType, GenericAlias

import numpy as np
import pytest

import dil


def layer_of(steps):
    """Return a layer whose solver takes that many steps."""

    def solver(fun, u, t):
        for _ in range(steps):
            u = u - 0.5 * (u - t)
        return u

    return dil.argmin(lambda u, t: 0.5 * np.sum((u - t) ** 2), solver, init=lambda t: 0.0 * t, on_failure="ignore")


def peak(steps):
    t, v = np.ones(10_000), np.ones(10_000)
    layer = layer_of(steps)
    tracemalloc.start()
    _, pull = dil.vjp(layer, t)
    pull(v)
    _, top = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return top


def test_peak_is_the_same_for_10_and_10000_iterations():
    peak(10)
    assert peak(10_000) <= 1.02 * peak(10)


def test_nothing_is_left_in_cycles(plain):
    if plain.backend == "jax":
        pytest.skip("JAX keeps caches of its own by design")
    score = case_score()
    layer = dil.argmin(score, dil.solvers.Newton(), init=lambda t: 0.0 * t)
    t, v = plain.asarray(np.ones(3)), plain.asarray(np.ones(3))

    def once():
        _, pull = dil.vjp(layer, t)
        pull(v)

    once()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(5):
            once()
        gc.collect()
        left = [x for x in gc.garbage if not (plain.backend == "torch" and of_torch_vmap(x))]
        assert not left
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def of_torch_vmap(x):
    """Whether x is part of the small functions that torch.vmap leaves behind, which call themselves."""
    if isinstance(x, FunctionType):
        return x.__module__ == "torch.utils._pytree"
    return isinstance(x, tuple | CellType | GenericAlias)


def case_score():
    from array_api_compat import array_namespace

    return lambda u, t: array_namespace(u).sum(0.5 * (u - t) ** 2 + 0.25 * u**4)
