"""The scripts in docs/figures draw the pictures that the pages show."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
SCRIPTS = sorted((DOCS / "figures").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_draws_the_pictures_of_the_pages(script, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path in module.draw(tmp_path):
        assert path.stat().st_size > 5000
        assert (DOCS / "pages" / path.name).exists() or (DOCS / "results" / path.name).exists()
