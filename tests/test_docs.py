"""The code in the README and in the pages runs as it stands, and prints what the pages say it prints."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "pages"
PAGES = sorted(FOLDER.rglob("*.md"))
RESULTS = sorted((ROOT / "docs" / "results").glob("*.md"))
PYTHON = re.compile(r"^( *)```python\n(.*?)^\1```\n(?:\n^\1```text\n(.*?)^\1```$)?", re.DOTALL | re.MULTILINE)
"""A block of code, and the block of text right below it: what it prints. A block in a tab is indented."""
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_readme(backend, capsys):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    code = PYTHON.search((ROOT / "README.md").read_text())[2]
    assert len(code.splitlines()) <= 15
    exec(code.replace('"numpy"', f'"{backend}"', 1), {})
    value, slope = (float(x) for x in re.findall(r"0\.\d+", capsys.readouterr().out)[:2])
    assert value == pytest.approx(0.014566, rel=1e-2)
    assert slope == pytest.approx(0.007857, rel=1e-2)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(FOLDER).as_posix().removesuffix(".md"))
def test_page(page, capsys):
    text, namespace = page.read_text(), {"__name__": page.stem}
    for word, package in (
        ("SciPy", "scipy"),
        ("import scipy", "scipy"),
        ("import torch", "torch"),
        ("import jax", "jax"),
        ("import optax", "optax"),
    ):
        if word in text:
            pytest.importorskip(package, reason=f"{package} is not installed")
    for found in PYTHON.finditer(text):
        # empty lines in front, so that a traceback tells the line of the page
        above = "\n" * text.count("\n", 0, found.start(2))
        exec(compile(above + textwrap.dedent(found[2]), str(page), "exec"), namespace)
        printed = capsys.readouterr().out
        said = textwrap.dedent(found[3] or "")
        assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", said).split(), printed
        # what differs from machine to machine is rounding, and now and then an iteration
        numbers = [[float(x) for x in NUMBER.findall(t)] for t in (printed, said)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.2, abs=1e-12), printed


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=lambda page: page.relative_to(ROOT / "docs").as_posix())
def test_a_page_has_a_picture_or_a_block_that_runs(page):
    if page.parent.name == "reference":
        pytest.skip("its blocks are the examples of the docstrings: see test_site.py")
    drawn = page in RESULTS and page.with_suffix(".png").exists()  # put on the page by docs/hooks/results.py
    drawn = drawn or "<!-- cards -->" in page.read_text()  # the cards of docs/hooks/gallery.py
    assert drawn or "![" in page.read_text() or PYTHON.search(page.read_text())
