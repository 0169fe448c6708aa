"""The cart-pole of Table 2: its motion by the balance of energy, its cost, and that the script runs and resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax", reason="jax is not installed")
pytest.importorskip("optax", reason="optax is not installed")
pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "paper" / "table2.py"


@pytest.fixture
def cartpole(monkeypatch):
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of this installation")
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import _cartpole

    return _cartpole


def test_motion_balances_energy(cartpole):
    """The power of force and friction is the change of the energy of a cart and a uniform rod."""
    draw = np.random.default_rng(0)
    x, u = draw.normal(size=(50, 4)) * [1, 2, 5, 3], draw.uniform(-1, 1, (50, 1))
    rate = (np.asarray(cartpole.environment(x, u)) - x) / cartpole.STEP
    _, v, w, angle = x.T
    m, M, length = cartpole.POLE, cartpole.CART, cartpole.LENGTH
    lever = m * length / 2
    # T = (M + m) v^2 / 2 + lever v w cos(angle) + m l^2 w^2 / 6, V = -g lever cos(angle)
    slope = np.stack(
        [
            0 * v,
            (M + m) * v + lever * w * np.cos(angle),
            lever * v * np.cos(angle) + m * length**2 * w / 3,
            lever * np.sin(angle) * (cartpole.GRAVITY - v * w),
        ],
        axis=-1,
    )
    power = (cartpole.FORCE * u[:, 0] - cartpole.FRICTION * v) * v
    terms = slope * rate
    np.testing.assert_allclose(np.sum(terms, axis=-1), power, atol=1e-13 * np.max(np.abs(terms)))


def test_cost_is_of_the_tip(cartpole):
    up, left = [0.0, 3.0, -2.0, np.pi], [-cartpole.WIDTH, 0.0, 0.0, -np.pi]
    costs = np.asarray(cartpole.cost(np.asarray([up, left, [0.0] * 4])))
    np.testing.assert_allclose(costs, [0.0, 1 - np.exp(-0.5), 1 - np.exp(-0.5 * (1.2 / 0.25) ** 2)], atol=1e-15)
    states = np.zeros((3, cartpole.STEPS + 1, 4))
    states[:, -1, 3] = np.pi  # the state after the last control does not count
    np.testing.assert_allclose(cartpole.total(states), cartpole.STEPS * costs[2])


@pytest.mark.slow
def test_table2_runs_and_resumes(tmp_path):
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of this installation")
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])

    def table2():
        done = subprocess.run(
            [sys.executable, str(SCRIPT), "--tiny", "--out", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "COLUMNS": "200"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "table2.json").read_text())

    first = table2()
    assert first["figures"].keys() == {"expert", "cloning", "imitation"}
    assert 0 < first["figures"]["expert"]["low"][0] < 40
    assert 0 < first["solved"] <= 1
    assert (tmp_path / "cartpole.gif").stat().st_size < 1e6
    assert str(ROOT) not in (tmp_path / "table2.md").read_text()

    kept = tmp_path / "table2-runs" / "tiny-0.json"
    run = json.loads(kept.read_text())
    run["costs"]["expert"]["low"] = [1.25, 1.25]
    kept.write_text(json.dumps(run))
    assert table2()["figures"]["expert"]["low"][0] == 1.25, "the stored run was not used"
