"""The benchmarks run, and write what they say they do."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("rich", reason="rich is not installed")

ROOT = Path(__file__).parents[1]


def run(name, out, *options):
    """Run a benchmark in a process of its own, and return what it wrote."""
    if not (ROOT / "benchmarks").exists():
        pytest.skip("the benchmarks are not part of this installation")
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *options, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / f"{name}.json").read_text())


def test_backward_quick(tmp_path):
    record = run("backward", tmp_path, "--quick", "--backends", "numpy", "--sizes", "10")
    assert [(row["score"], row["size"]) for row in record["times"]] == [("network", 10), ("chain", 10)]
    for row in record["times"]:
        assert row["iterations_hand"] == row["iterations_layer"]
        assert row["difference"] < 1e-12
        assert row["ratio"][1] > 0
    (memory,) = record["memory"]
    assert memory["kept"] < 0.5
    assert str(ROOT) not in (tmp_path / "backward.md").read_text()


def test_figure4_quick(tmp_path):
    """The three gradients agree along one path, and the losses that are written fall."""
    pytest.importorskip("scipy", reason="SciPy is not installed")
    paper = ROOT / "benchmarks" / "paper"
    if not paper.exists():
        pytest.skip("the benchmarks are not part of this installation")
    sys.path.insert(0, str(paper))
    try:
        figure4 = importlib.import_module("figure4")  # one that cannot be imported is an error, not a skip
    finally:
        sys.path.remove(str(ROOT / "benchmarks" / "paper"))
    data = figure4.expert()
    ways = {name: figure4.learn(name, data, 1, 10, lambda: None) for name in figure4.GRADIENTS}
    assert all(apart < figure4.AGREEMENT for apart in ways["analytic"].difference.values())
    for way in ways.values():
        assert way.imitation.shape == way.model.shape == (2, len(figure4.DAMPING), 1)
        assert (way.imitation[-1] < way.imitation[0]).all()
    figure4.picture(tmp_path / "figure4.png", ways)
    assert (tmp_path / "figure4.png").stat().st_size > 10_000


def test_gpu_without_a_gpu(tmp_path):
    """A dry run says that there is no GPU, ends well, and has a row for each framework in each step."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    hidden = {"PATH": os.path.dirname(sys.executable), "CUDA_VISIBLE_DEVICES": ""}  # nvidia-smi is not on this path
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **hidden, "PYTHONPATH": path, "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no NVIDIA GPU was found" in done.stdout
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["dry"]
    for step in ("backward", "batch", "reads", "memory"):
        assert not record[step]["failures"]
        assert [row["framework"] for row in record[step]["rows"]] == ["numpy", "torch", "jax"]
    assert record["tests"]["rows"][0]["passed"] > 0
    assert all(row["difference"] < 1e-6 for row in record["backward"]["rows"])
    assert "## Memory" in (tmp_path / "gpu.md").read_text()


def test_spectra_quick(tmp_path):
    """Each matrix is solved by Auto and by each single solver, and the products are those of converged solves."""
    rows = run("spectra", tmp_path, "--matrices", "3")["rows"]
    assert [row["kind"] for row in rows] == ["clustered", "geometric", "one outlier"]
    for row in rows:
        assert row["status"] == "CONVERGED"
        assert len(row["products"]) == 5
        assert row["products"]["CG, Jacobi()"] == 8 + 2  # an unrotated matrix is diagonal
        assert row["auto"] <= 2 * row["products"]["CG"]
    assert "maximum against CG" in (tmp_path / "spectra.md").read_text()


def test_training_quick(tmp_path):
    """Both loops have the same losses, and the memory takes fewer products after its first steps."""
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    (row,) = run("training", tmp_path, "--only", "softmax", "--steps", "4")["rows"]
    assert row["difference"] < 1e-9
    assert 4 * row["products"][1] < 3 * row["products"][0]


def test_general_quick(tmp_path):
    """Each matrix of a seed is solved by Auto, and the ratios of the table are those of the rows."""
    rows = run("general", tmp_path, "--seeds", "1", "--kinds", "rows,columns,to 0.1")["rows"]
    names = ("rows", "columns", "to 0.1")
    assert [row["kind"] for row in rows] == [name + end for name in names for end in ("", ", transposed")]
    for row in rows:
        assert row["converged"]["Auto"]
        assert set(row["products"]) == {"Auto", "BiCGSTAB", "GMRES"}
        took_M = "scaled by them took" in row["choice"]
        assert took_M == (row["group"] != "discs")
        assert row["products"]["Auto"] <= (0.8 if took_M else 1.1) * row["products"]["BiCGSTAB"]
    assert "| discs | 2 | 0 |" in (tmp_path / "general.md").read_text()


def test_nonsymmetric_quick(tmp_path):
    """Restarts lose, and IDR takes fewer products than BiCGSTAB."""
    pytest.importorskip("scipy", reason="SciPy is not installed")
    (row,) = run("nonsymmetric", tmp_path, "--only", "30 x 30, Pe 100")["rows"]
    products = row["products"]
    assert products["IDR(8)"] < products["IDR(2)"] < products["BiCGSTAB"] < products["GMRES(30)"]
    assert "| 90 % over the best |" in (tmp_path / "nonsymmetric.md").read_text()


def test_large_quick(tmp_path):
    """Both passes agree with sparse matrices by hand, whatever the time."""
    pytest.importorskip("scipy", reason="SciPy is not installed")
    committed = json.loads((ROOT / "docs/results/large.json").read_text())
    kept = [row for row in committed["rows"] if row["problem"].startswith("convection")]
    (tmp_path / "large.json").write_text(json.dumps({**committed, "rows": kept, "command": "before"}))
    options = ("--backends", "numpy", "--ways", "SparseDirect", "--only", "bratu 100", "--seconds", "0")
    record = run("large", tmp_path, *options, "--largest", "50", "--keep")
    assert record["rows"][:-2] == kept
    assert record["command"].splitlines()[:-1] == ["before"]
    assert [row["n"] for row in record["sweep"][-2:]] == [50, 50]
    assert [(row["stage"], row["status"], row["error"] < 1e-8) for row in record["rows"][-2:]] == [
        ("forward", "CONVERGED", True),
        ("backward", "CONVERGED", True),
    ]
    assert "| 50 x 50 | numpy |" in (tmp_path / "large.md").read_text()


def test_ode_quick(tmp_path):
    """Both tolerances are reached, and the ratio is that of the times."""
    pytest.importorskip("scipy", reason="SciPy is not installed")
    record = run("ode", tmp_path, "--quick", "--backends", "numpy", "--only", "HIRES")
    assert [(row["way"], row["rtol"]) for row in record["points"]] == [
        (way, rtol) for way in ("dil, numpy", "SciPy Radau", "SciPy BDF", "SciPy LSODA") for rtol in (1e-4, 1e-6)
    ]
    assert all(row["reached"] and row["error"] < 100 * row["rtol"] for row in record["points"])
    assert [row["peer"] for row in record["rows"]] == ["SciPy Radau", "SciPy BDF", "SciPy LSODA"]
    assert [row["limit"] for row in record["rows"]] == [8.0, None, None]
    assert "| HIRES | 8 | numpy | forward | SciPy Radau |" in (tmp_path / "ode.md").read_text()


def test_peers_quick(tmp_path):
    """The gradient of dil is right, and so is that by hand."""
    pytest.importorskip("torch", reason="torch is not installed")
    rows = run("peers", tmp_path, "--sizes", "40", "--seconds", "0", "--frameworks", "torch")["rows"]
    assert len([row for row in rows if row["library"] == "dil"]) == 6
    assert all(row["error"] < 1e-6 for row in rows if row["library"] in ("dil", "by hand, CG"))


def test_tape_quick(tmp_path):
    """Each case runs, and agrees with autograd where that is installed."""
    record = run("tape", tmp_path, "--seconds", "0")
    times = {row["case"]: row["microseconds"] for row in record["rows"]}
    assert len(times) == 6
    assert times["chain, a further pull"] < times["chain of 300 operations"]  # it does not trace again
    assert "a further pull" in (tmp_path / "tape.md").read_text()


def test_plan_quick(tmp_path):
    """All ways to a linear quadratic plan have one gradient, whatever the time."""
    pytest.importorskip("torch", reason="torch is not installed")
    rows = run("plan", tmp_path, "--quick", "--frameworks", "torch")["peers"]
    assert [row["way"] for row in rows if row["way"] != "mpc.pytorch"] == ["dil, DDP", "by hand"]
    assert all(row["apart"] < 1e-10 for row in rows)
    assert "## A linear quadratic plan" in (tmp_path / "plan.md").read_text()


@pytest.mark.slow
def test_quick_compile():
    """The options that the page on JAX names exist, and make programs that compile faster."""
    pytest.importorskip("jax", reason="JAX is not installed")
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "quick_compile.py")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("with the options") == 2
