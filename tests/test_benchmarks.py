"""The benchmarks run, and write what they say they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("rich", reason="rich is not installed")

ROOT = Path(__file__).parents[1]


def test_backward_quick(tmp_path):
    script = ROOT / "benchmarks" / "backward.py"
    if not script.exists():
        pytest.skip("the benchmarks are not part of this installation")
    options = ["--quick", "--backends", "numpy", "--sizes", "10", "--out", str(tmp_path)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), *options],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "backward.json").read_text())
    assert [(row["score"], row["size"]) for row in record["times"]] == [("network", 10), ("chain", 10)]
    for row in record["times"]:
        assert row["iterations_hand"] == row["iterations_layer"]
        assert row["difference"] < 1e-12
        assert row["ratio"][1] > 0
    (memory,) = record["memory"]
    assert memory["kept"] < 0.5
    assert str(ROOT) not in (tmp_path / "backward.md").read_text()
