"""The scripts of benchmarks/paper: their data, their bookkeeping, and what they say of what they measured."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("rich", reason="rich is not installed")
pytest.importorskip("scipy", reason="SciPy is not installed")

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "benchmarks" / "paper"
pytestmark = pytest.mark.skipif(not PAPER.exists(), reason="the benchmarks are not part of this installation")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(PAPER.parent))
    monkeypatch.syspath_prepend(str(PAPER))
    return importlib.import_module


def test_trajectories_obey_their_equations_and_splits_meet(script):
    series = script("_series")
    vdp, spiral = series.van_der_pol(), series.spiral()
    assert [len(x[0]) for x in (vdp.train, vdp.validation, vdp.test)] == [107, 107, 107]
    assert [len(x[0]) for x in (spiral.train, spiral.validation, spiral.test)] == [100, 51, 151]
    for one in (vdp, spiral):
        assert np.array_equal(one.train[0, -1], one.validation[0, 0])
        assert np.array_equal(one.validation[0, -1], one.test[0, 0])
    x = spiral.test[0]
    # fourth-order differences; the spiral is slow there
    slope = (x[:-4] - 8 * x[1:-3] + 8 * x[3:-1] - x[4:]) / (12 * series.DT)
    right = x[2:-2] ** 3 @ np.asarray([[-1.0, 2.0], [-2.0, -0.1]]).T
    assert np.max(np.abs(slope - right)) < 1e-5 * np.max(np.abs(right))
    assert np.max(np.abs(vdp.test[0, :, 0])) == pytest.approx(2.02, abs=0.02)  # the limit cycle's amplitude


def test_a_run_that_is_there_is_not_run_again(script, tmp_path):
    table1, recipes = script("table1"), script("_recipes")
    spiral = script("_series").spiral()
    recipe = recipes.FULL["spiral"]
    row = "forward_euler_adjoint"
    done = [{"data": "spiral", "row": row, "seed": seed, "recipe": asdict(recipe)} for seed in range(3)]
    left = {unit.row: unit.seeds for unit in table1.units(spiral, recipe, 5, done)}
    assert left == {name: (3, 4) if name == row else (0, 1, 2, 3, 4) for name in table1.ROWS}
    old = {**done[0], "recipe": asdict(recipes.QUICK["spiral"])}
    (tmp_path / "table1.json").write_text(json.dumps({"runs": [*done, old]}))
    assert table1.load(tmp_path / "table1.json", recipes.FULL) == done
    assert table1.load(tmp_path / "none.json", recipes.FULL) == []


def test_claims_are_judged_by_the_runs(script, tmp_path):
    table1 = script("table1")
    spiral = script("_series").spiral()
    means = dict(zip(table1.ROWS, (0.13, 0.20, 0.11, 0.09, 0.08), strict=True))
    recipe = asdict(script("_recipes").FULL["spiral"])
    runs = [
        {"data": "spiral", "row": row, "seed": i, "test": mean + 0.02 * i, "validation": 0.1, "seconds": 1.0}
        | {"iteration": 100, "recipe": recipe}
        for row, mean in means.items()
        for i in (-1, 0, 1)
    ]
    lost = {**runs[0], "seed": 9, "test": None}
    cells = table1.summarised("spiral", [*runs, lost])
    assert [(c.runs, c.diverged) for c in cells] == [(4, 1)] + 4 * [(3, 0)]
    assert [c.mean for c in cells] == pytest.approx(list(means.values()))
    assert cells[0].error == pytest.approx(0.02 / 3**0.5)
    met = {c.claim: c.met for c in table1.claims(cells)}
    assert list(met.values()) == [True, True, True, True]
    worse = [{**run, "test": run["test"] + 0.05 * (run["row"] == "backward_euler_cg")} for run in runs]
    assert [c.met for c in table1.claims(table1.summarised("spiral", worse))] == [False, False, True, False]
    table1.write(tmp_path, "command", {"cpu": "one"}, [spiral], [*runs, lost])
    assert len(json.loads((tmp_path / "table1.json").read_text())["runs"]) == 16
    assert "0.080 ± 0.012 | 0.09 ± 0.01" in (tmp_path / "table1.md").read_text()


def test_each_training_walk_is_held_out_once(script):
    made = script("_series")
    walks = np.arange(10 * 4 * 2, dtype=float).reshape(10, 4, 2)
    series = made.Series("walking", "walks", walks[:7], walks[7:8], walks[8:], context=3)
    folds = made.folds(series)
    held = [part.validation[:-1] for part in folds]
    np.testing.assert_array_equal(np.sort(np.concatenate(held), axis=0), series.train)
    for part, out in zip(folds, held, strict=True):
        np.testing.assert_array_equal(part.validation[-1:], series.validation)
        np.testing.assert_array_equal(part.test, series.validation)  # the test walks stay unseen
        assert not {float(walk[0, 0]) for walk in part.train} & {float(walk[0, 0]) for walk in out}


def test_a_gradient_whose_squares_overflow_is_clipped_to_its_direction(script):
    for module in ("jax", "optax", "diffrax"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    import optax

    forecast = script("_forecast")
    clip = optax.chain(forecast.squarable(), optax.clip_by_global_norm(10.0))
    direction = {"a": np.asarray([3.0, 0.0], np.float32), "b": np.asarray([[-4.0]], np.float32)}
    for size in (1e-3, 1.0, 1e10, 1e25):
        grads = {name: np.float32(size) * x for name, x in direction.items()}
        clipped = clip.update(grads, clip.init(grads))[0]
        for name, x in direction.items():
            np.testing.assert_allclose(clipped[name], min(size, 2.0) * x, rtol=1e-5)


def test_figure2_measures_and_draws(script, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    clock, figure2 = script("_clock"), script("figure2")
    found = [clock.measure(clock.Case(2, 1.0, seed), 1) for seed in (0, 1)]
    for one in found:
        assert one["dopri5"].error < 1e-6  # as its tolerances ask
        assert 1e-6 < one["dil"].error < 0.02  # (s dt)^2 / 2 and no more
        assert one["dil"].error == pytest.approx(one["dil_cg"].error, rel=1e-3)
        assert all(t.forward > 0 and t.backward > 0 for t in one.values())
    close = clock.close(clock.Case(2, 1.0, 0), ("sdirk2",), 1)
    assert close["sdirk2"].time.error < clock.CLOSE
    plan = figure2.Plan(2, (2,), (1.0,), 1, 1)
    cases = [("times", 2, figure2.STIFF), ("times", figure2.SIZE, 1.0)]
    records = [figure2.record(*case, seed, found[seed]) for case in cases for seed in (0, 1)]
    records = figure2.plain([*records, figure2.record("close", figure2.SIZE, 1.0, 0, close)])
    figure2.write(tmp_path, "command", {"cpu": "one"}, plan, records)
    assert (tmp_path / "figure2.png").read_bytes()[:4] == b"\x89PNG"
    report = json.loads((tmp_path / "figure2.json").read_text())
    assert [row["runs"] for row in report["times"]] == 6 * [2]
    assert [(row["method"], row["runs"]) for row in report["equal_error"]][1:3] == [
        ("implicit_euler", 0),
        ("sdirk2", 1),
    ]
    assert len(report["claims"]) == 6
    there = figure2.load(tmp_path / "figure2.json", {"cpu": "one"})
    assert list(plan.jobs(there)) == []
    assert list(plan.jobs(there[1:])) == [("times", 2, figure2.STIFF, [0])]
    assert figure2.load(tmp_path / "figure2.json", {"cpu": "another"}) == []


@pytest.mark.slow
def test_table1_quick(tmp_path):
    for module in ("jax", "optax", "diffrax"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(PAPER / "table1.py"), "--quick", "--sets", "spiral", "--out", str(tmp_path)]
    for _ in range(2):  # the second finds all that it needs
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": path}, check=False
        )
        assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "table1.json").read_text())
    assert len(record["runs"]) == 5
    assert all(run["test"] < 1.0 for run in record["runs"])
    assert str(ROOT) not in (tmp_path / "table1.md").read_text()
