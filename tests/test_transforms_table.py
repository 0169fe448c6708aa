"""The table of transforms has a row for each name in a `transform` marker, and no other."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from transforms_table import HEAD, render, rows

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "pages" / "transforms.md"
MARKED = [path for path in sorted(ROOT.glob("tests/test_*.py")) if "mark.transform(" in path.read_text()]


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "jax", "optax", "optimistix")),
    reason="without the frameworks their tests are not collected",
)
def test_rows_are_the_marked_tests(tmp_path):
    out = tmp_path / "table.md"
    options = ["-q", "-p", "no:cacheprovider", "--collect-only", "-m", "transform", "--transforms-table", str(out)]
    files = [path for path in MARKED if path != Path(__file__)]
    ran = subprocess.run([sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert sorted(rows(PAGE.read_text())) == sorted(rows(out.read_text())), "write the table anew, as the page says"


def test_no_test_of_the_table_failed():
    assert "FAILED" not in PAGE.read_text()


def test_cells():
    cells = {
        "only JAX": {"jax": [("refused", "")]},
        "b": {"numpy": [("passed", ""), ("skipped", "slow")], "cupy": [("skipped", "no GPU")], "torch": []},
        "a": {"numpy": [("passed", ""), ("failed", "")], "cupy": [("skipped", "no GPU")], "jax": [("passed", "")]},
    }
    page = render(cells)
    assert rows(page) == ["a", "b", "only JAX"]
    assert page.removeprefix(HEAD).splitlines() == [
        "| | NumPy | CuPy | torch | JAX |",
        "|---|:-:|:-:|:-:|:-:|",
        "| a | FAILED | 1 |  | yes |",
        "| b | yes | 1 |  |  |",
        "| only JAX |  |  |  | refused |",
        "",
        "1. no GPU",
    ]


TESTS = """
import pytest

@pytest.mark.transform("runs")
def test_one(): pass

@pytest.mark.transform("refuses")
def test_it_is_refused(): pass

@pytest.mark.transform("elsewhere", backend="jax")
def test_two(): pytest.skip("too slow")
"""


@pytest.mark.parametrize(("file", "code"), [("test_torch_small.py", 0), ("test_small.py", 3)])
def test_a_run_writes_the_table(tmp_path, file, code):
    """In a folder of its own with the plugin alone; a marker without a backend is an error."""
    (tmp_path / file).write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = transform(name): a row\n")
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path[:0] = {[str(ROOT), str(ROOT / 'backends'), str(ROOT / 'tests')]!r}\n"
        "from transforms_table import Table\n"
        "def pytest_configure(config): config.pluginmanager.register(Table('out.md'))\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == code, ran.stdout + ran.stderr
    if code:
        assert "transform(..., backend=), or a file named test_<backend>_*.py" in ran.stdout + ran.stderr
        return
    table = (tmp_path / "out.md").read_text()
    for line in (
        "| runs |  |  | yes |  |",
        "| refuses |  |  | refused |  |",
        "| elsewhere |  |  |  | 1 |",
        "1. too slow",
    ):
        assert line in table.splitlines()
