"""Gradients of adaptive steps of which few states are kept."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil.ode import odeint
from dil.ode._few_steps import Spacing
from ode_helpers import close, on


def swing(t, y, k):
    xp = array_namespace(y)
    return xp.stack([k[0] * y[1], -k[1] * xp.sin(y[0]) + 0.1 * xp.cos(t)])


START, RATES, TIMES = np.asarray([1.0, 0.3]), np.asarray([1.0, 2.0]), np.asarray([0.0, 0.01, 0.02, 1.0, 1.5, 3.0])
WEIGHTS = np.cos(np.arange(12.0)).reshape(6, 2)


@on("numpy", "torch", slow=("jax:jit",))
@pytest.mark.parametrize(("method", "rtol"), [("tsit5", 1e-5), ("sdirk2", 1e-3), ("kvaerno5", 1e-4), ("radau", 1e-5)])
def test_the_gradient_is_that_of_all_steps(engine, method, rtol):
    """The mesh is the same, and the stages are solved again to the accuracy of the theorem."""
    if engine.name == "torch" and method in ("kvaerno5", "radau"):
        pytest.skip("NumPy runs this one")

    def states(count):
        options = {"method": method, "rtol": rtol, "max_steps": 200, "on_failure": "raise"}
        return lambda y, t, k: odeint(swing, y, t, (k,), checkpoints=count, **options)

    expected, gradients = engine.gradients(states(None), (START, TIMES, RATES), WEIGHTS)
    moved = engine.tangent(states(None), (START, TIMES, RATES), (START, 0.1 * TIMES, RATES))
    for count in (1, 4):
        y, found = engine.gradients(states(count), (START, TIMES, RATES), WEIGHTS)
        close(y, expected, 1e-13)
        for a, b in zip(found, gradients, strict=True):
            close(a, b, 1e-8)
        close(engine.tangent(states(count), (START, TIMES, RATES), (START, 0.1 * TIMES, RATES)), moved, 1e-8)


@on("numpy", "torch", slow=("jax:jit",))
def test_the_second_derivative_is_that_of_all_steps(engine):
    def slope(count):
        def last(k):
            options = {"method": "tsit5", "rtol": 1e-4, "max_steps": 200, "checkpoints": count}
            return odeint(swing, k[0] * engine.asarray(START), [0.0, 1.0, 2.0], (k,), **options)[:, 0].sum()

        return lambda k: dil.grad(last)(k)

    (expected,), (found,) = (engine.gradients(slope(count), (RATES,), RATES)[1] for count in (None, 3))
    close(found, expected, 1e-10)
    step = 1e-5
    ends = [engine.to_numpy(slope(3)(engine.asarray(RATES + s * step * RATES))) for s in (1.0, -1.0)]
    close(found, (ends[0] - ends[1]) / (2 * step), 1e-3)  # to ten times rtol, since the mesh moves


def test_the_memory_follows_the_number_of_states():
    """Without, the pass back records all steps at once."""

    def spring(t, y, k):
        return np.concatenate([k * y[100:], -k * y[:100]])

    def peak(count):
        def last(k):
            options = {"method": "tsit5", "rtol": 1e-4, "atol": 1e-4, "max_steps": 200, "checkpoints": count}
            return odeint(spring, np.ones(200), [0.0, 15.0], (k,), **options)[-1].sum()

        tracemalloc.start()
        slope = dil.grad(last)(np.linspace(1.0, 2.0, 100))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most, slope

    (all_steps, expected), (few, found) = peak(None), peak(8)
    close(found, expected, 1e-10)
    assert few < 0.3 * all_steps


def test_a_mapped_program_is_refused_where_operations_run_at_once():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    run = lambda y: odeint(lambda t, y: -y, y, [0.0, 1.0], method="tsit5", rtol=1e-3, checkpoints=2)  # noqa: E731
    with pytest.raises(dil.OptionError, match=r"checkpoints=2 under a transform such as .* batch_ndim= in the"):
        torch.vmap(run)(torch.ones(2, 3))


@pytest.mark.parametrize("max_steps", [1, 2, 5, 1000, 4097])
@pytest.mark.parametrize("kept", [None, 1, 7, 10_000])
def test_a_spacing_has_room_for_all_steps(max_steps, kept):
    found = Spacing.of(max_steps, kept)
    assert max_steps <= found.rows < max_steps + found.steps
    assert found.kept <= (math.isqrt(max_steps) + 1 if kept is None else kept)
