"""Programs that users compile: their reports, JAX's persistent cache, and export to another process."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

import dil  # noqa: E402

ROOT = Path(__file__).parent.parent


def energy(u, t):
    return jnp.sum((u - t) ** 2 + 0.25 * u**4)


def rough(on_failure):
    """Both solves fail."""
    return dil.argmin(energy, lambda f, init, t: 0.5 * t, on_failure=on_failure)


def test_a_warning_of_a_program_points_to_the_line_that_traced_it():
    layer, line = rough("warn"), inspect.currentframe().f_lineno + 3

    def loss(t):
        return jnp.sum(layer(t))

    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY") as record:
        jax.block_until_ready(jax.jit(jax.grad(loss))(jnp.ones(2)))
    assert [(r.filename, r.lineno) for r in record] == [(__file__, line)]


def test_an_error_of_a_program_begins_with_the_sentence():
    with pytest.raises(
        Exception, match=r"^INTERNAL: argmin layer of 'energy': backward solve: NOT_STATIONARY: the sol"
    ):
        jax.block_until_ready(jax.jit(jax.grad(lambda t: jnp.sum(rough("raise")(t))))(jnp.ones(2)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_program_that_integrates_reports_in_its_dtype(dtype):
    def last(y):
        return dil.ode.odeint(
            lambda t, y: -y, y, jnp.asarray([0.0, -1.0], dtype), method="implicit_euler", steps=1, on_failure="raise"
        )[-1]

    with pytest.raises(Exception, match=r"^INTERNAL: t does not increase from t\[0\] to t\[1\]"):
        jax.block_until_ready(jax.jit(last)(jnp.ones(2, dtype)))


def test_each_thread_gets_its_own_reports():
    """One program, eight threads; the runs with an even number fail."""
    layer = dil.argmin(energy, lambda f, init, t: jnp.where(t > 0, t / 0.0, 0.0 * t), on_failure="raise")
    found = {}

    def call(i):
        try:
            layer(jnp.full(2, 1.0 if i % 2 == 0 else -1.0))
            found[i] = "right"
        except dil.ConvergenceError:
            found[i] = "failed"

    call(0)
    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: "right" if i % 2 else "failed" for i in range(8)}


def run(code, **environment):
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    given = {**os.environ, "PYTHONPATH": path, "JAX_ENABLE_X64": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=given).stdout


@pytest.mark.transform("JAX's persistent compilation cache")
def test_the_persistent_cache_keeps_a_program_that_warns(tmp_path):
    code = """
import jax, jax.numpy as jnp, dil
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
layer = dil.argmin(lambda u, t: jnp.sum((u - t) ** 2), lambda f, init, t: 1.0 * t)
loss = lambda t: jnp.sum(layer(t) ** 2)
t = jnp.ones(2)
program = jax.jit(jax.grad(loss)).lower(t)
hits.clear()
compiled = program.compile()
print(len(hits), compiled(t).round(9).tolist())
"""
    given = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    assert run(code, **given).strip() == "0 [2.0, 2.0]"
    assert run(code, **given).strip() == "1 [2.0, 2.0]"


@pytest.mark.transform("jax.export, and a call in another process")
def test_an_exported_program_reports_in_another_process(tmp_path):
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to write a program")
    allowed = [jax.export.DisabledSafetyCheck.custom_call("dil_report")]
    program = jax.jit(jax.value_and_grad(lambda t: jnp.sum(rough("warn")(t))))
    exported = jax.export.export(program, disabled_checks=allowed)(jax.ShapeDtypeStruct((2,), jnp.float64))
    (tmp_path / "program").write_bytes(exported.serialize())
    code = f"""
import warnings, jax, jax.numpy as jnp, dil
dil.backend("jax")
program = jax.export.deserialize(open({str(tmp_path / "program")!r}, "rb").read())
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    value, gradient = jax.block_until_ready(program.call(jnp.ones(2)))
print(value, len(found), found[0].category.__name__, found[0].message)
"""
    said = "1.0 1 ConvergenceWarning argmin layer of 'energy': backward solve: NOT_STATIONARY: "
    assert run(code).startswith(said)


@pytest.mark.parametrize("on_failure", ["nan", "ignore"])
def test_an_exported_program_without_reports(on_failure):
    program = jax.jit(lambda t: rough(on_failure)(t))
    exported = jax.export.export(program)(jax.ShapeDtypeStruct((2,), jnp.float64))
    np.testing.assert_array_equal(exported.call(jnp.ones(2)), program(jnp.ones(2)))


def test_integration_in_float32_truncates_nothing():
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        y = dil.ode.odeint(lambda t, y: -y, jnp.ones(2), [0.0, 0.5, 1.0], method="sdirk2", rtol=1e-3)
    np.testing.assert_allclose(y[-1], np.exp(-1.0), rtol=1e-2)


@pytest.mark.parametrize(
    ("kind", "fn", "solver"),
    [
        (dil.argmin, energy, dil.solvers.Newton()),
        (dil.argmin, energy, dil.solvers.LBFGS()),
        (dil.root, lambda u, t: u + jnp.tanh(u) - t, dil.solvers.Newton()),
        (dil.fixed_point, lambda u, t: 0.5 * jnp.tanh(u) + t, dil.solvers.Anderson()),
    ],
    ids=["Newton", "LBFGS", "root", "fixed point"],
)
def test_a_program_traces_the_users_function_once(kind, fn, solver):
    calls = []

    def counted(u, t):
        calls.append(1)
        return fn(u, t)

    layer = kind(counted, solver, init=lambda t: 0.0 * t)
    jax.jit(jax.grad(lambda t: jnp.sum(layer(t)))).trace(jnp.ones(3))
    assert len(calls) == 1
