"""The program `dil`: what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dil

pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("rich", reason="rich is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from typer.testing import CliRunner

from dil._cli import bench
from dil._cli.bench import Data
from dil._cli.commands import app

ROOT = Path(dil.__file__).parents[1]

CASES = """
import dil
from array_api_compat import array_namespace


def mean(u, x):
    return array_namespace(u).sum((u - x) ** 2)


def right(handle):
    layer = dil.argmin(mean, lambda score, init, x: x)
    return layer, handle.asarray([1.0, 2.0, -0.5])


def cube(handle):
    return lambda x: x**3, handle.asarray([1.0, 2.0])


def wrong(handle):
    import jax

    cube = jax.custom_vjp(lambda x: x**3)
    cube.defvjp(lambda x: (x**3, x), lambda x, ct: (2.9 * x**2 * ct,))
    return cube, handle.asarray([1.0, 2.0])


def misshapen(handle):
    return dil.argmin(lambda u, x: (u - x) ** 2, lambda score, init, x: x), handle.asarray([1.0, 2.0])


def soft_threshold(score, init, x):
    xp = array_namespace(x)
    return xp.sign(x) * xp.maximum(xp.abs(x) - 1.0, 0.0 * x)


def lasso(u, x):
    xp = array_namespace(u)
    return 0.5 * xp.sum((u - x) ** 2) + xp.sum(xp.abs(u))


def sparse(handle):
    return dil.argmin(lasso, soft_threshold), handle.asarray([2.0, 0.3])


def tupleless(handle):
    return mean


number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory that holds a module of cases; what the program adds to sys.path is taken back."""
    (tmp_path / "cases_of_test_cli.py").write_text(CASES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cases_of_test_cli", raising=False)
    return tmp_path


def run(*args):
    """Run a command in this process."""
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(a) for a in args])


def run_program(*args, cwd, before="", **env):
    """Run `python -m dil`, or a few lines before it, in a process of its own."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    command = ["-m", "dil"] if not before else ["-c", f"{before}\nfrom dil._cli.app import main\nmain()"]
    return subprocess.run(
        [sys.executable, *command, *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "80", **env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def assert_one_line(result, *parts):
    """Bad usage is one line on standard error, with no traceback."""
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    for part in parts:
        assert part in result.stderr


# --- dil backends, and the program itself ---


def test_backends_as_a_module(tmp_path):
    result = run_program("backends", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    for info in dil.backends():
        if info.name not in ("numpy", "torch", "jax", "cupy"):
            continue  # of a plug-in that only this process has on its path
        assert (" yes" in rows[info.name]) == info.usable
        assert ("no: " in rows[info.name]) == (not info.usable)
    assert "2." in rows["numpy"]
    assert "cpu" in rows["numpy"]


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(tmp_path, package):
    result = run_program("backends", cwd=tmp_path, before=f"import sys; sys.modules['{package}'] = None")
    assert result.returncode == 2
    assert result.stdout == ""
    expected = f'dil: {package} is needed and cannot be imported; pip install "dil-layers[cli]"'
    assert result.stderr.splitlines() == [expected]


def test_matplotlib_is_asked_for_by_the_demo_only(tmp_path):
    missing = "import sys; sys.modules['matplotlib'] = None"
    assert run_program("--version", cwd=tmp_path, before=missing).returncode == 0
    result = run_program("demo", "kepler", cwd=tmp_path, before=missing)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        'dil: matplotlib is needed and cannot be imported; pip install "dil-layers[cli]"'
    ]


def test_the_entry_point_imports_without_the_extra(tmp_path):
    before = "import sys; sys.modules.update(typer=None, rich=None, matplotlib=None); import dil._cli.app; sys.exit(0)"
    assert run_program(cwd=tmp_path, before=before).returncode == 0


def test_version():
    assert run("--version").output.strip() == dil.__version__


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("check", "--help"),
        ("demo",),
        ("demo", "kepler", "--help"),
        ("demo", "stiff", "--help"),
        ("demo", "swing", "--help"),
        ("backends", "--help"),
        ("bench", "--help"),
    ],
)
def test_help(args):
    result = run(*args)
    assert result.exit_code == 0
    assert "Usage: " in result.output


# --- dil check ---


def test_check_of_a_right_function(here):
    result = run("check", "cases_of_test_cli:right", "--backends", "numpy", "--order", "1", "--seed", "3")
    assert result.exit_code == 0, result.output
    assert "all 3 rows within their bound" in result.output
    assert "…" not in result.output


def test_check_of_a_right_and_of_a_wrong_function_on_jax(here):
    pytest.importorskip("jax", reason="JAX is not installed")
    names = "numpy, jax"
    right = run("check", "cases_of_test_cli:cube", "--backends", names, "--order", "2")
    assert right.exit_code == 0, right.output
    assert "against numpy" in right.output
    wrong = run("check", "cases_of_test_cli:wrong", "--backends", "jax")
    assert wrong.exit_code == 1
    assert "3 of 3 rows beyond their bound" in wrong.output
    assert wrong.output.count("WRONG") == 3


def test_check_says_below_its_table_what_it_found(tmp_path):
    (tmp_path / "cases_of_test_cli.py").write_text(CASES)
    result = run_program("check", "cases_of_test_cli:sparse", "--backends", "numpy,torch", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == ""
    below = " ".join(result.stdout.partition("beyond their bound")[2].split())
    assert below.startswith("numpy, torch: argmin layer of 'lasso': backward solve: KINK: the solution lies on a kink")
    assert result.stdout.count("KINK") == 1


def test_a_mistake_inside_the_case_is_a_failure(here):
    result = run("check", "cases_of_test_cli:misshapen", "--backends", "numpy")
    assert result.exit_code == 1
    assert "returned shape (2,); expected ()" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["no_such_module_at_all:f"], "the module 'no_such_module_at_all' cannot be imported"),
        (["cases_of_test_cli:nothing"], "has no callable 'nothing'"),
        (["cases_of_test_cli:number"], "has no callable 'number'"),
        (["cases_of_test_cli"], "not of the form MODULE:CALLABLE"),
        (["cases_of_test_cli:tupleless", "--backends", "numpy"], "expected a tuple (fn, *args)"),
        (["cases_of_test_cli:right", "--backends", "numpy,fortran"], "there is no backend 'fortran'"),
        (["cases_of_test_cli:right", "--dtype", "float23"], "has no dtype 'float23'"),
    ],
)
def test_bad_usage_of_check(here, args, part):
    assert_one_line(run("check", *args), "dil check: ", part)


def test_a_module_that_breaks_names_what_broke_it(here):
    (here / "broken_of_test_cli.py").write_text("import no_such_package_at_all")
    assert_one_line(run("check", "broken_of_test_cli:f"), "broken_of_test_cli", "no_such_package_at_all")


def test_an_option_out_of_range_is_refused(here):
    result = run("check", "cases_of_test_cli:right", "--order", "3")
    assert result.exit_code == 2
    assert "--order" in result.stderr


# --- dil demo kepler ---


def test_demo(tmp_path):
    out = tmp_path / "new" / "folder"
    result = run("demo", "kepler", "--backend", "numpy", "--out", out)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) < 30
    assert max(map(len, lines[:-1])) <= 110
    for part in ("dL/de: layer", "dE/de", "dE/dM", "0.70000000", "kepler.png"):
        assert part in result.output
    assert (out / "kepler.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((out / "kepler.json").read_text())
    assert record["converged"] is True
    assert record["path"][-1]["e"] == pytest.approx(0.7, abs=1e-9)
    assert record["check"]["dE/de"]["relative_error"] < 1e-12
    assert record["field"]["sign_as_on_the_line"] > 0.9 * record["field"]["points"]


def test_demo_on_jax_switches_float64_on_itself(tmp_path):
    pytest.importorskip("jax", reason="JAX is not installed")
    env = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    result = subprocess.run(
        [sys.executable, "-m", "dil", "demo", "kepler", "--backend", "jax", "--out", "."],
        cwd=tmp_path,
        env={**env, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "kepler.json").read_text())
    assert record["backend"] == "jax"
    assert record["path"][-1]["e"] == pytest.approx(0.7, abs=1e-9)


def test_demo_that_does_not_arrive_fails_and_still_draws(tmp_path):
    result = run("demo", "kepler", "--backend", "numpy", "--steps", "3", "--out", tmp_path)
    assert result.exit_code == 1
    assert "after 3 steps; raise --steps" in result.stderr
    assert json.loads((tmp_path / "kepler.json").read_text())["converged"] is False
    assert (tmp_path / "kepler.png").exists()


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--backend", "fortran"], "there is no backend 'fortran'"),
        (["--target", "3"], "no eccentricity in [0, 1) has E = 3 rad"),
        (["--start", "1.5"], "start=1.5"),
        (["--mean-anomaly", "0"], "no multiple of pi"),
        (["--steps", "0"], "steps=0"),
    ],
)
def test_bad_usage_of_the_demo(tmp_path, args, part):
    result = run("demo", "kepler", "--out", tmp_path / "out", *args)
    assert_one_line(result, "dil demo kepler: ", part)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    result = run("demo", "kepler", "--backend", "numpy", "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "cannot write" in result.stderr


# --- the other demos ---


def test_the_list_of_demos_names_each_command():
    result = run("demo", "--list")
    assert result.exit_code == 0
    for name in ("kepler", "stiff", "swing"):
        assert sum(line.startswith(name + " ") for line in result.output.splitlines()) == 1


def test_demo_stiff(tmp_path):
    result = run("demo", "stiff", "--backend", "numpy", "--steps", "4", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "0.04000000" in result.output
    assert (tmp_path / "stiff.png").read_bytes().startswith(b"\x89PNG")


def test_demo_stiff_that_does_not_arrive_fails_and_still_draws(tmp_path):
    result = run("demo", "stiff", "--backend", "numpy", "--steps", "1", "--out", tmp_path)
    assert result.exit_code == 1
    assert "after 1 steps; raise --steps" in result.stderr
    assert (tmp_path / "stiff.png").exists()


def test_demo_swing_that_is_too_short_fails_and_still_draws(tmp_path):
    result = run("demo", "swing", "--backend", "numpy", "--steps", "2", "--out", tmp_path)
    assert result.exit_code == 1
    assert "does not stand upright after 2 plans" in result.stderr
    assert (tmp_path / "swing.gif").read_bytes().startswith(b"GIF")


@pytest.mark.slow
def test_demo_swing(tmp_path):
    result = run("demo", "swing", "--backend", "numpy", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "swing.gif").stat().st_size < 2e6


@pytest.mark.parametrize("name", ["stiff", "swing"])
def test_bad_usage_of_the_other_demos(tmp_path, name):
    result = run("demo", name, "--backend", "fortran", "--out", tmp_path / "out")
    assert_one_line(result, f"dil demo {name}: ", "there is no backend 'fortran'")
    assert not (tmp_path / "out").exists()


# --- dil bench ---


@pytest.mark.parametrize("name", [m.name for m in bench.METHODS if "jax" not in m.needs])
def test_every_method_of_the_benchmark_finds_the_slope(name):
    method = next(m for m in bench.METHODS if m.name == name)
    for package in method.needs:
        pytest.importorskip(package, reason=f"{package} is not installed")
    small = bench.data(30, 3)
    tolerance = 1e-3 if "difference" in name or "unrolled" in name else 1e-5
    assert method.make(small)() == pytest.approx(bench.by_hand(small)(), rel=tolerance)


def test_the_closed_form_of_the_benchmark_is_the_slope():
    small = bench.data(30, 3)
    assert bench.by_hand(small)() == pytest.approx(bench.by_differences(small)(), rel=1e-3)


def test_bench_prints_a_row_for_each_method(monkeypatch):
    monkeypatch.setattr(bench, "data", lambda: Data(*(np.ones((4, 2)) * [[1], [2], [-1], [3]] for _ in range(2))))
    missing = bench.Method("by a package that is not there", ("no_such_package_at_all",), bench.by_hand)
    monkeypatch.setattr(bench, "METHODS", (*bench.METHODS[:2], missing))
    result = run("bench", "--seconds", "0")
    assert result.exit_code == 0, result.output
    assert "by hand" in result.output
    assert "dil on NumPy, Newton" in result.output
    assert "by a package" not in result.output
    assert "not compared: no_such_package_at_all" in result.output
