"""The examples in the docstrings and in the README run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import dil

ROOT = Path(__file__).parent.parent
MODULES = sorted(m.name for m in pkgutil.walk_packages(dil.__path__, "dil.") if not m.name.endswith("__main__"))


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failures == 0


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_readme(backend, capsys):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert len(code.splitlines()) <= 15
    exec(code.replace('"numpy"', f'"{backend}"', 1), {})
    value, slope = (float(x) for x in re.findall(r"0\.\d+", capsys.readouterr().out)[:2])
    assert value == pytest.approx(0.014566, rel=1e-2)
    assert slope == pytest.approx(0.007857, rel=1e-2)
