"""Memory does not grow with the solver's iterations, nor from call to call."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
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


# --- from call to call -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Census:
    """What is alive after a collection."""

    arrays: int
    """Arrays of the framework; those of NumPy are among the blocks alone."""
    objects: int
    """Of Python, as far as its collector tracks them."""
    blocks: int
    """Of Python's allocator: every object, tracked or not."""
    resident: int
    """KiB of memory; zero where the system does not tell."""


forget_attributes = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache
"""CPython keeps the name of an attribute that was looked up, in one of 4096 slots by its address: every 'item' or
'float64' that NumPy makes anew for a look-up looks like a leak until the slots that it can reach are taken."""


def census(engine):
    forget_attributes()
    gc.collect()
    pages = Path("/proc/self/statm")
    resident = 4 * int(pages.read_text().split()[1]) if pages.exists() else 0
    return Census(count_arrays(engine), len(gc.get_objects()), sys.getallocatedblocks(), resident)


def count_arrays(engine):
    if engine.backend == "jax":
        return len(sys.modules["jax"].live_arrays())
    kind = type(engine.asarray(0.0))
    return sum(issubclass(type(x), kind) for x in gc.get_objects())


def passes_of(engine, layer):
    """Return a function that takes a layer forward and backward a number of times, and then counts."""
    if engine.name == "jax":
        pytest.skip("without jit JAX compiles every pass anew, and keeps what it has compiled by design; see jax:jit")
    t, v = engine.asarray(np.linspace(0.5, 1.0, 3)), engine.asarray(np.ones(3))

    def both(t, v):
        return engine.pullback(layer, (t,), v)

    if engine.name == "jax:jit":  # one program: engine.pullback would compile every time
        jax = sys.modules["jax"]
        both = jax.jit(lambda t, v: jax.vjp(layer, t)[1](v))

    def run(count):
        for _ in range(count):
            both(t, v)
        return census(engine)

    return run


def test_nothing_grows_from_pass_to_pass(engine):
    layer = dil.argmin(case_score(), lambda fun, init, t: t, linear_solver=dil.linear.CG(), on_failure="ignore")
    run = passes_of(engine, layer)
    run(10)
    before, after = run(10), run(40)
    assert after.arrays == before.arrays
    assert after.objects <= before.objects + 8
    assert after.blocks < before.blocks + 20  # half of one for each pass


@pytest.mark.slow
def test_nothing_grows_over_2000_passes(engine):
    run = passes_of(engine, dil.argmin(case_score(), dil.solvers.Newton(), init=lambda t: 0.0 * t))
    run(100)  # the census takes memory of its own, the first time
    before, after = run(100), run(1800)
    assert after.arrays == before.arrays
    assert after.objects <= before.objects + 8
    assert after.blocks < before.blocks + 45
    assert after.resident < before.resident + 1024
